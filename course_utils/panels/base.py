"""What every panel is made of: a canvas to draw on, controls, and `Panel`, which joins them."""

import asyncio
import html
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

import ipywidgets as widgets
import matplotlib as mpl
import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from course_utils import images, models, photographs, plotting, scenes
from course_utils.contract import explaining, hearing
from course_utils.plotting import BLUE, FAINT, INK, MUTED, ORANGE, PAPER

SHARPNESS = 1.5  # pixels drawn per pixel of the page: sharp text, yet quick to encode
MARGIN = 4  # around what is drawn
WIDTH = "300px"  # of a control
PATIENCE = 0.5  # seconds until a bar shows how far a picture is


@cache
def _font(size: float, bold: bool) -> ImageFont.FreeTypeFont:
    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"  # matplotlib brings them everywhere
    path = Path(mpl.get_data_path(), "fonts", "ttf", name)
    return ImageFont.truetype(path, size * SHARPNESS, layout_engine=ImageFont.Layout.BASIC)


class Canvas:
    """A white picture to draw on. Lengths are pixels of the page, (x, y) is the top left corner."""

    def __init__(self, width: int, height: int) -> None:
        self.width, self.height, self.alt = width + 2 * MARGIN, height + 2 * MARGIN, ""
        self.image = Image.new(
            "RGB", (round(self.width * SHARPNESS), round(self.height * SHARPNESS)), PAPER
        )
        self._pen = ImageDraw.Draw(self.image)

    @staticmethod
    def _dots(x: float, y: float) -> tuple[int, int]:
        return round((x + MARGIN) * SHARPNESS), round((y + MARGIN) * SHARPNESS)

    def text(
        self,
        x: float,
        y: float,
        text: str,
        *,
        size: float = 13,
        color: str = INK,
        bold: bool = False,
        anchor: str = "la",
    ) -> None:
        """Write at (x, y); `anchor` as in Pillow: l, m, r then a (top), m, s (baseline)."""
        self._pen.text(self._dots(x, y), text, color, _font(size, bold), anchor)

    def box(
        self,
        x: float,
        y: float,
        width: float,
        height: float,
        *,
        fill: str | None = None,
        edge: str | None = None,
        line: float = 1,
    ) -> None:
        """A rectangle; its edge is drawn around it."""
        out = line if edge else 0
        left, top = self._dots(x - out, y - out)
        right, bottom = self._dots(x + width + out, y + height + out)
        if right > left and bottom > top:
            self._pen.rectangle(
                (left, top, right - 1, bottom - 1), fill, edge, round(line * SHARPNESS)
            )

    def line(self, points: Sequence[tuple[float, float]], color: str, width: float = 1.5) -> None:
        """A line through points."""
        dots = [self._dots(x, y) for x, y in points]
        self._pen.line(dots, color, round(width * SHARPNESS))

    def heading(self, x: float, y: float, title: str, below: str = "") -> None:
        """A title, and a smaller line below it: 40 pixels high."""
        self.text(x, y, title, size=15, bold=True)
        self.text(x, y + 21, below, size=12, color=MUTED)

    def picture(
        self,
        x: float,
        y: float,
        width: float,
        pixels: NDArray[np.uint8],
        *,
        height: float | None = None,
        smooth: bool = False,
    ) -> None:
        """A (H, W, 3) uint8 picture, enlarged with its pixels visible unless `smooth`."""
        tall = width * pixels.shape[0] / pixels.shape[1] if height is None else height
        size = (round(width * SHARPNESS), round(tall * SHARPNESS))
        shrinks = pixels.shape[1] > size[0]
        way = Image.Resampling.BICUBIC if smooth or shrinks else Image.Resampling.NEAREST
        picture = Image.fromarray(np.ascontiguousarray(pixels)).resize(size, way)
        self.image.paste(picture, self._dots(x, y))

    def cells(
        self,
        x: float,
        y: float,
        side: float,
        colors: NDArray[np.uint8],
        numbers: ArrayLike | None = None,
        window: tuple[int, int, int] | None = None,
    ) -> None:
        """Coloured squares (H, W, 3) with numbers (H, W) in them; small or NaN ones are left out.

        `window` (row, column, size) marks a square of cells.
        """
        rows, columns = colors.shape[:2]
        self.picture(x, y, side * columns, colors)
        for row in range(rows + 1):
            self.line([(x, y + row * side), (x + columns * side, y + row * side)], FAINT, 0.7)
        for column in range(columns + 1):
            self.line([(x + column * side, y), (x + column * side, y + rows * side)], FAINT, 0.7)
        if numbers is not None and side >= 20:
            for (row, column), value in np.ndenumerate(np.asarray(numbers)):
                if not np.isnan(value):
                    at = (x + (column + 0.5) * side, y + (row + 0.5) * side)
                    text = short(value)
                    size = min(15, round(side * (0.42 if len(text) < 4 else 0.34)))
                    color = PAPER if plotting.is_dark(colors[row, column]) else INK
                    self.text(*at, text, size=size, color=color, anchor="mm")
        if window:
            row, column, cells = window
            width = cells * side
            self.box(x + column * side, y + row * side, width, width, edge=ORANGE, line=3)

    def bars(
        self,
        x: float,
        y: float,
        width: float,
        pairs: Sequence[tuple[str, float]],
        truth: str = "",
        *,
        row: float = 32,
    ) -> None:
        """Probabilities as bars, each `row` pixels high; the bar of the true class is orange."""
        left, high = x + 150, 0.72 * row
        room = width - 150 - 44
        for index, (name, value) in enumerate(pairs):
            top, right = y + row * index, name == truth
            middle = top + high / 2
            shown = name if len(name) <= 17 else name[:16] + "…"
            label = f"✓ {shown}" if right else shown
            self.text(left - 10, middle, label, size=14, anchor="rm", bold=right)
            self.box(left, top, room, high, fill="#eef1f4")
            self.box(left, top, room * value, high, fill=ORANGE if right else BLUE)
            self.text(left + room + 8, middle, f"{value:.2f}", size=14, anchor="lm")

    def jpeg(self) -> bytes:
        """The drawing as a JPEG file: a PNG would take ten times as long, and a slider waits."""
        buffer = io.BytesIO()
        self.image.save(buffer, "JPEG", quality=92, subsampling=0)
        return buffer.getvalue()


def short(value: float) -> str:
    """A number in at most four characters, if it can be: .52, −.5, 1.3, 12."""
    text = (
        f"{value:.2f}"
        if abs(value) < 0.995
        else f"{value:.1f}"
        if abs(value) < 10
        else f"{value:.0f}"
    )
    text = text.rstrip("0").rstrip(".") if "." in text else text
    return text.replace("0.", ".", 1).replace("-", "−") if text not in ("-0", "") else "0"


Drawing = Canvas | Sequence[Canvas]


class Panel(widgets.VBox):
    """Controls beside pictures; a new value redraws before its assignment returns.

    `draw` takes the value of every control by name and returns one `Canvas` or several. It may also
    yield them, a coarse picture within 100 ms and better ones after it, each soon after the one
    before; in a notebook the better ones come while the controls can be moved on. `linked` maps a
    control (or button) to a function from its new value to values for other controls. `arranged`
    is the box in which the controls stand, by default one below the other.

    Raises what `draw` raises when the panel opens. Later an error is a sentence in the panel, which
    the next good picture takes away.
    """

    def __init__(
        self,
        name: str,
        controls: Mapping[str, widgets.Widget],
        draw: Callable[..., Drawing | Iterator[Drawing]],
        *,
        linked: Mapping[str, Callable[[Any], Mapping[str, Any]]] | None = None,
        arranged: widgets.Widget | None = None,
    ) -> None:
        super().__init__()
        self.name, self.controls = name, dict(controls)
        self._draw, self._linked, self._paused = draw, dict(linked or {}), False
        self._refinement: asyncio.Task[None] | None = None
        self._coming = self._drawings()
        *_, self._canvases = self._coming
        self.pictures = tuple(
            widgets.Image(
                value=canvas.jpeg(),
                format="jpeg",
                layout=widgets.Layout(width=f"{canvas.width}px", max_width="100%", height="auto"),
            )
            for canvas in self._canvases
        )
        self.picture = self.pictures[0]
        self.status = widgets.HTML()
        self.bar = widgets.FloatProgress(max=1, layout={"width": "300px", "display": "none"})
        # ipywidgets 8 knows no alt text, and an Image with a tooltip does not open in JupyterLab.
        self.caption = widgets.HTML(_caption(self.words))
        beside = widgets.VBox(
            [self.status, self.bar, *self.pictures, self.caption],
            layout={"flex": "1 1 480px"},
        )
        arranged = arranged or widgets.VBox(list(self.controls.values()))
        arranged.layout.flex = "0 0 auto"
        self.children = [
            widgets.HBox(
                [arranged, beside], layout={"flex_flow": "row wrap", "grid_gap": "8px 16px"}
            )
        ]
        for key, control in self.controls.items():
            if isinstance(control, widgets.Button):
                control.on_click(lambda _, key=key: self._changed(key, None))
            else:
                control.observe(lambda change, key=key: self._changed(key, change.new), "value")

    @property
    def values(self) -> dict[str, Any]:
        """The value of every control."""
        return {
            name: control.value
            for name, control in self.controls.items()
            if not isinstance(control, widgets.Button)
        }

    @property
    def words(self) -> str:
        """What the pictures show, in words: their text alternative, and a caption for everybody."""
        return " ".join(canvas.alt for canvas in self._canvases)

    def update(self, **values: Any) -> None:
        """Set several controls and redraw once."""
        for name in values:
            if name not in self.controls:
                near = get_close_matches(name, self.controls, cutoff=0.3) or list(self.controls)
                raise ValueError(
                    f"{self!r} has no control {name!r}; near it are {', '.join(near)}."
                )
        with self._pause():
            for name, value in values.items():
                self.controls[name].value = value
        self._redraw()

    @contextmanager
    def _pause(self) -> Iterator[None]:
        """What is set in here does not redraw."""
        before, self._paused = self._paused, True
        try:
            yield
        finally:
            self._paused = before

    def _changed(self, name: str, value: Any) -> None:
        if self._paused:
            return
        try:
            self.update(**(self._linked[name](value) if name in self._linked else {}))
        except Exception as error:
            self._say(error)

    def _redraw(self) -> None:
        if self._refinement:
            self._refinement.cancel()  # what it refines is no longer what the controls say
            self._refinement = None
        self._coming = self._drawings()
        self._advance()
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:  # not in a notebook: nobody waits at a slider
            self._finish()
        else:
            self._refinement = loop.create_task(self._refine())

    async def _refine(self) -> None:
        await asyncio.sleep(0.01)
        while self._advance():
            await asyncio.sleep(0.01)  # lets the kernel hear of the next move

    def _finish(self) -> None:
        while self._advance():
            pass

    def _advance(self) -> bool:
        """Show the next drawing; False where there was none, or an error."""
        self._began = self._told = perf_counter()
        try:
            with hearing(self._hear):
                canvases = next(self._coming, None)
            if canvases is None:
                return False
            self._canvases = canvases
            for picture, canvas in zip(self.pictures, canvases, strict=True):
                picture.value = canvas.jpeg()
            self.caption.value = _caption(self.words)
        except Exception as error:
            self._say(error)
            return False
        finally:
            self.bar.layout.display = "none"
        self.status.value = ""
        return True

    def _hear(self, done: int, total: int) -> None:
        """Show how far a drawing is, where it takes long."""
        now = perf_counter()
        if now - self._began > PATIENCE and now - self._told > 0.1:
            self._told, self.bar.value = now, done / total
            self.bar.layout.display = None

    def _drawings(self) -> Iterator[tuple[Canvas, ...]]:
        with self._pause():
            drawn = self._draw(**self.values)
        if not isinstance(drawn, Iterator):
            drawn = iter([drawn])
        while True:
            with self._pause():
                drawing = next(drawn, None)
            if drawing is None:
                return
            yield (drawing,) if isinstance(drawing, Canvas) else tuple(drawing)

    def _say(self, error: Exception) -> None:
        """Show an error in the reader's words; the picture stays what it was."""
        said = str(error).strip().split("\n")[0] or "no reason was given."
        if not isinstance(error, ValueError | TypeError | FileNotFoundError):
            said = f"{type(error).__name__}: {said}"
        self.status.value = (
            f'<div role="alert" style="color:#7a2e00;background:#fff1e5;padding:6px 10px;'
            f'border-left:4px solid {ORANGE}">{html.escape(said)}</div>'
        )

    def __repr__(self) -> str:
        return f"panel: {self.name}"

    def _repr_mimebundle_(self, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """The widget and, for a page where widgets do not run, its picture."""
        self._finish()
        drawings = [canvas.image for canvas in self._canvases]
        size = (max(d.width for d in drawings), sum(d.height for d in drawings))
        whole, top = Image.new("RGB", size, PAPER), 0
        for drawing in drawings:
            whole.paste(drawing, (0, top))
            top += drawing.height
        buffer = io.BytesIO()
        plotting.few_colors(whole).save(buffer, "PNG", optimize=True)
        data = super()._repr_mimebundle_(**kwargs)
        data["image/png"] = buffer.getvalue()
        return data, {"image/png": {"alt": self.words, "width": round(whole.width / SHARPNESS)}}


def _caption(words: str) -> str:
    style = f"font-size:12px;line-height:1.4;max-width:900px;color:{MUTED}"
    return f'<div aria-live="polite" style="{style}">{html.escape(words)}</div>'


def slider(name: str, low: float, high: float, value: float, step: float | None = None) -> Any:
    """A slider: of whole numbers if `low`, `high` and `value` are whole and no step is given."""
    style, layout = {"description_width": "110px"}, widgets.Layout(width=WIDTH)
    kind, step = (widgets.FloatSlider, step) if step else (widgets.IntSlider, 1)
    return kind(
        min=low, max=high, value=value, step=step, description=name, style=style, layout=layout
    )


def choice(name: str, options: Sequence[Any], value: Any = None) -> widgets.Dropdown:
    """A list to choose from."""
    return widgets.Dropdown(
        options=options,
        value=options[0] if value is None else value,
        description=name,
        style={"description_width": "110px"},
        layout=widgets.Layout(width=WIDTH),
    )


def classifier_of(model: models.Classifier | str | None) -> models.Classifier:
    """The classifier a panel was given, or the one of that name."""
    if model is None or isinstance(model, str):
        return models.load(model)
    if not isinstance(model, models.Classifier):
        raise TypeError(
            f"model must be a Classifier or a model's name, not {type(model).__name__}; "
            "models.load gives one."
        )
    return model


def knows_scenes(classifier: models.Classifier) -> bool:
    """Whether it was trained on drawn scenes; all other models get photographs first."""
    return set(classifier.classes) <= set(scenes.CLASSES)


def offered(
    classifier: models.Classifier, image: Any, specs: Mapping[str, scenes.SceneSpec]
) -> dict[str, Any]:
    """What a panel's list of pictures offers, by name: one's own, scenes, and photographs."""
    own = {} if image is None else {"your picture": image}
    photos = {name: name for name in photographs.NAMES}
    return {**own, **specs, **photos} if knows_scenes(classifier) else {**own, **photos, **specs}


def typical(classifier: models.Classifier) -> Any:
    """The picture to begin with: the typical zebra, or a photograph of a cat."""
    return scenes.canonical("zebra") if knows_scenes(classifier) else photographs.NAMES[0]


def pixels_of(image: Any) -> NDArray[np.uint8]:
    """The picture of a scene, a photo or a photograph's name."""
    if isinstance(image, str) and image in photographs.NAMES:
        return photographs.picture(image)
    if isinstance(image, scenes.SceneSpec):
        image = scenes.render(image)
    return image.image if isinstance(image, scenes.Scene) else images.load_image(image)


class Seen(NamedTuple):
    """A picture as the model gets it, as it looks, where its object is, and the model's answer."""

    x: Tensor
    pixels: NDArray[np.uint8]
    mask: NDArray[np.bool_] | None  # None where nothing is known
    answer: int

    def inside(self, map_: NDArray[np.float64]) -> str:
        """The share of |map| inside the object, in words."""
        if self.mask is None:
            return ""
        share = np.abs(map_)[self.mask].sum() / (np.abs(map_).sum() or 1)
        return f"{share:.0%} inside the object, {self.mask.mean():.0%} of the picture"


def looker(
    classifier: models.Classifier, image: Any, labels: Sequence[str]
) -> tuple[dict[str, Any], Callable[[str], Seen]]:
    """The pictures on offer by name, typical scenes of the labels, and what makes one `Seen`."""
    specs = {label: scenes.canonical(label) for label in labels}
    pictures = offered(classifier, image, specs)

    @cache
    def look(name: str) -> Seen:
        source, mask = pictures[name], None
        x = classifier.to_input(pixels_of(source))
        if isinstance(source, scenes.SceneSpec):
            mask = scenes.render(source, classifier.size).mask
        with explaining(classifier.model), torch.no_grad():
            answer = int(classifier.model(x).argmax())
        return Seen(x, classifier.to_image(x), mask, answer)

    return pictures, look


def decimal(value: float) -> str:
    """A number with two decimals: −0.25."""
    return f"{value:.2f}".replace("-0.00", "0.00").replace("-", "−")


def with_truth(answers: list[tuple[str, float]], truth: str, k: int = 5) -> list[tuple[str, float]]:
    """The first k answers, and the truth below them where it is not among them."""
    return answers[:k] + [answer for answer in answers[k:] if answer[0] == truth]


def draw_concepts(
    canvas: Canvas,
    x: float,
    y: float,
    told: Sequence[tuple[str, float, float, float]],
    width: float = 240,
) -> None:
    """Concepts (name, AUROC, low, high), each a dot on its interval, from 0.5 to 1.

    40 pixels of heading, 36 a concept, 20 of scale. Classes are orange, all else is blue.
    """
    canvas.heading(x, y, "concepts it tells best", "AUROC, 95 % interval; classes in orange")

    def at(value: float) -> float:
        return x + width * (min(max(value, 0.5), 1) - 0.5) / 0.5

    for index, (name, area, low, high) in enumerate(told):
        top, color = y + 46 + 36 * index, ORANGE if name.startswith("class") else BLUE
        canvas.text(x, top, name)
        canvas.text(x + width, top, f"{area:.2f}", anchor="ra", color=MUTED)
        canvas.line([(x, top + 24), (x + width, top + 24)], FAINT)
        canvas.line([(at(low), top + 24), (at(high), top + 24)], color, 3)
        canvas.box(at(area) - 3, top + 21, 6, 6, fill=color)
    below = y + 48 + 36 * len(told)
    canvas.text(x, below, "0.5: knows nothing", size=11, color=MUTED)
    canvas.text(x + width, below, "1", size=11, color=MUTED, anchor="ra")
