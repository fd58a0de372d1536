"""Panels: controls beside a picture that is computed again at every move.

A panel is a function `NAME(model=None, image=None)`. It makes the controls, says in `draw` how
their values become a picture, and gives both to `Panel`, which does the rest.
"""

import html
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields, replace
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Any

import ipywidgets as widgets
import matplotlib as mpl
import numpy as np
import torch
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import ArrayLike, NDArray
from PIL import Image, ImageDraw, ImageFont
from torch.nn import functional as F

from course_utils import images, layers, models, plotting, scenes
from course_utils.plotting import BLUE, FAINT, INK, MUTED, ORANGE, PAPER

SHARPNESS = 1.5  # pixels drawn per pixel of the page: sharp text, yet quick to encode
MARGIN = 4  # around what is drawn
WIDTH = "300px"  # of a control


# -- drawing ---------------------------------------------------------------------------------------


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
                    text = _short(value)
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

    def png(self) -> bytes:
        """The drawing as a PNG file."""
        return images.encode_png(np.asarray(self.image))


def _short(value: float) -> str:
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


# -- the panel -------------------------------------------------------------------------------------


class Panel(widgets.VBox):
    """Controls beside pictures; a new value redraws before its assignment returns.

    `draw` takes the value of every control by name and returns one `Canvas` or several. `linked`
    maps a control (or button) to a function from its new value to values for other controls.
    `arranged` is the box in which the controls stand, by default one below the other.

    Raises what `draw` raises when the panel opens. Later an error is a sentence in the panel, which
    the next good picture takes away.
    """

    def __init__(
        self,
        name: str,
        controls: Mapping[str, widgets.Widget],
        draw: Callable[..., Canvas | Sequence[Canvas]],
        *,
        linked: Mapping[str, Callable[[Any], Mapping[str, Any]]] | None = None,
        arranged: widgets.Widget | None = None,
    ) -> None:
        super().__init__()
        self.name, self.controls = name, dict(controls)
        self._draw, self._linked, self._paused = draw, dict(linked or {}), False
        with self._pause():
            self._canvases = self._drawn()
        self.pictures = tuple(
            widgets.Image(
                value=canvas.png(),
                layout=widgets.Layout(width=f"{canvas.width}px", max_width="100%", height="auto"),
            )
            for canvas in self._canvases
        )
        self.picture = self.pictures[0]
        self.status = widgets.HTML()
        # ipywidgets 8 knows no alt text, and an Image with a tooltip does not open in JupyterLab.
        self.caption = widgets.HTML(_caption(self.words))
        beside = widgets.VBox(
            [self.status, *self.pictures, self.caption], layout={"flex": "1 1 480px"}
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
        try:
            with self._pause():
                self._canvases = self._drawn()
            for picture, canvas in zip(self.pictures, self._canvases, strict=True):
                picture.value = canvas.png()
            self.caption.value = _caption(self.words)
        except Exception as error:
            self._say(error)
        else:
            self.status.value = ""

    def _drawn(self) -> tuple[Canvas, ...]:
        drawn = self._draw(**self.values)
        return (drawn,) if isinstance(drawn, Canvas) else tuple(drawn)

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
        drawings = [canvas.image for canvas in self._canvases]
        size = (max(d.width for d in drawings), sum(d.height for d in drawings))
        whole, top = Image.new("RGB", size, PAPER), 0
        for drawing in drawings:
            whole.paste(drawing, (0, top))
            top += drawing.height
        # Notebooks keep this picture: 256 colours make it a third as large.
        small, buffer = (
            whole.quantize(method=Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE),
            io.BytesIO(),
        )
        small.save(buffer, "PNG", optimize=True)
        data = super()._repr_mimebundle_(**kwargs)
        data["image/png"] = buffer.getvalue()
        return data, {"image/png": {"alt": self.words, "width": round(whole.width / SHARPNESS)}}


def _caption(words: str) -> str:
    style = f"font-size:12px;line-height:1.4;max-width:900px;color:{MUTED}"
    return f'<div aria-live="polite" style="{style}">{html.escape(words)}</div>'


def _slider(name: str, low: float, high: float, value: float, step: float | None = None) -> Any:
    """A slider: of whole numbers if `low`, `high` and `value` are whole and no step is given."""
    style, layout = {"description_width": "110px"}, widgets.Layout(width=WIDTH)
    kind, step = (widgets.FloatSlider, step) if step else (widgets.IntSlider, 1)
    return kind(
        min=low, max=high, value=value, step=step, description=name, style=style, layout=layout
    )


def _choice(name: str, options: Sequence[Any], value: Any = None) -> widgets.Dropdown:
    return widgets.Dropdown(
        options=options,
        value=options[0] if value is None else value,
        description=name,
        style={"description_width": "110px"},
        layout=widgets.Layout(width=WIDTH),
    )


def _classifier(model: models.Classifier | str | None) -> models.Classifier:
    if model is None or isinstance(model, str):
        return models.load(model)
    if not isinstance(model, models.Classifier):
        raise TypeError(
            f"model must be a Classifier or a model's name, not {type(model).__name__}; "
            "models.load gives one."
        )
    return model


def _pixels(image: Any) -> NDArray[np.uint8]:
    """The picture of a scene or a photo; None is the typical zebra."""
    if image is None or isinstance(image, scenes.SceneSpec):
        image = scenes.render(image or scenes.canonical("zebra"))
    return image.image if isinstance(image, scenes.Scene) else images.load_image(image)


# -- convolution -----------------------------------------------------------------------------------

LEARNED, BY_HAND = "a learned filter", "numbers by hand"
KERNELS: dict[str, list[list[float]]] = {
    "identity": [[0, 0, 0], [0, 1, 0], [0, 0, 0]],
    "blur": [[0.111, 0.111, 0.111], [0.111, 0.111, 0.111], [0.111, 0.111, 0.111]],
    "sharpen": [[0, -1, 0], [-1, 5, -1], [0, -1, 0]],
    "Sobel x (vertical edges)": [[-1, 0, 1], [-2, 0, 2], [-1, 0, 1]],
    "Sobel y (horizontal edges)": [[-1, -2, -1], [0, 0, 0], [1, 2, 1]],
    "Laplacian": [[0, 1, 0], [1, -4, 1], [0, 1, 0]],
}


def convolution(model: Any = None, image: Any = None) -> Panel:
    """One kernel slides over a small patch, number by number, and over the whole picture.

    A 3 × 3 kernel sees the grey picture in [0, 1]. A learned filter of the model's first
    convolution sees the three normalised channels, with its own bias; its products are added up
    over the channels. Size of the output: floor((H + 2p − k) / s) + 1.
    """
    classifier = _classifier(model)
    conv = next(iter(layers.conv_layers(classifier.model).values()), None)
    if conv is None or conv.in_channels != 3:
        raise ValueError(
            f"model: {classifier.name} has no convolution that reads a colour picture."
        )
    weights = conv.weight.detach().cpu().numpy()
    biases = np.zeros(len(weights)) if conv.bias is None else conv.bias.detach().cpu().numpy()
    normalised = classifier.to_input(_pixels(image))[0].cpu()
    picture = classifier.to_image(normalised)
    grey = picture @ np.array([0.299, 0.587, 0.114]) / 255
    side = max(8, conv.kernel_size[0])
    edge, start = classifier.size - side, "Sobel x (vertical edges)"
    cells = {f"w{row}{column}": (row, column) for row in range(3) for column in range(3)}
    controls: dict[str, Any] = {
        "kernel": _choice("kernel", [*KERNELS, LEARNED, BY_HAND], start),
        **{name: _cell(*at, KERNELS[start][at[0]][at[1]]) for name, at in cells.items()},
        "filter": _slider("learned filter", 0, len(weights) - 1, 0),
        "stride": _slider("stride s", 1, 4, 1),
        "padding": _slider("padding p", 0, 3, 1),
        "position": _slider("position", 1, side**2, 29),
        "left": _slider("patch, from left", 0, edge, edge // 2),
        "top": _slider("patch, from top", 0, edge, edge // 2),
    }

    def choose(kernel: str) -> dict[str, Any]:
        if kernel == LEARNED:
            return {"stride": min(conv.stride[0], 4), "padding": min(int(conv.padding[0]), 3)}
        return {n: KERNELS[kernel][y][x] for n, (y, x) in cells.items() if kernel in KERNELS}

    def draw(
        kernel: str,
        filter: int,
        stride: int,
        padding: int,
        position: int,
        left: int,
        top: int,
        **cells: float,
    ) -> Canvas:
        learned = kernel == LEARNED
        controls["filter"].disabled = not learned
        pixels = normalised.numpy() if learned else grey[None]
        weight = weights[filter] if learned else np.reshape([*cells.values()], (1, 3, 3))
        bias = float(biases[filter]) if learned else 0.0
        k = weight.shape[-1]
        rings = ((0, 0), (padding, padding), (padding, padding))
        rest = (slice(padding, padding + side),) * 2
        padded = np.pad(pixels[:, top : top + side, left : left + side], rings)
        windows = sliding_window_view(padded, (k, k), axis=(1, 2))[:, ::stride, ::stride]
        output = np.einsum("cyxij,cij->yx", windows, weight) + bias
        whole = F.conv2d(
            torch.as_tensor(pixels, dtype=torch.float32)[None],
            torch.as_tensor(weight, dtype=torch.float32)[None],
            torch.tensor([bias]),
            stride,
            padding,
        )[0, 0].numpy()
        size = len(output)
        controls["position"].max = size**2
        step = min(position, size**2)
        row, column = divmod(step - 1, size)

        # Weights that add up to 1 keep the brightness: the result is a picture again.
        kind = "gray" if not learned and abs(weight.sum() - 1) < 0.01 else "signed"
        limit = 1.0 if kind == "gray" else float(np.abs(whole).max()) or 1.0
        colors = plotting.colorize(output, kind, limit)
        canvas, cell = Canvas(960, 600), 392 / (side + 6)
        room = (3 - padding) * cell
        view = picture[top : top + side, left : left + side] if learned else _gray(padded[0][rest])
        title = f"input: {side} × {side}" + (" × 3 channels" if learned else "")
        canvas.heading(0, 0, title, f"H = {side}, with p = {padding} rings of zeros around it")
        ring = np.full((*padded.shape[1:], 3), (214, 230, 242), np.uint8)
        ring[rest] = view
        window = (row * stride, column * stride, k)
        canvas.cells(room, 44 + room, cell, ring, None if learned else padded[0], window)

        formula = f"({side} + {2 * padding} − {k}) / {stride}"
        canvas.heading(
            430, 0, f"output: {size} × {size}", f"⌊(H + 2p − k) / s⌋ + 1 = ⌊{formula}⌋ + 1 = {size}"
        )
        filled = np.arange(size**2).reshape(size, size) < step
        values = np.where(filled, output, np.nan)
        canvas.cells(
            430,
            44 + (392 - size * cell) / 2,
            cell,
            np.where(filled[..., None], colors, np.uint8(255)),
            values,
            (row, column, 1),
        )

        canvas.heading(784, 0, "the whole picture", "the patch is marked")
        canvas.picture(784, 44, 176, picture if learned else _gray(grey), smooth=True)
        zoom = 176 / classifier.size
        corner = (784 + left * zoom, 44 + top * zoom)
        canvas.box(*corner, side * zoom, side * zoom, edge=ORANGE, line=2)
        canvas.heading(784, 232, "its feature map", f"{whole.shape[0]} × {whole.shape[1]}")
        canvas.picture(784, 276, 176, plotting.colorize(whole, kind, limit))

        _dot_product(canvas, 448, classifier, windows[:, row, column], weight, bias)
        canvas.alt = (
            f"Convolution with the kernel “{kernel}”: an input of {side} × {side} with padding "
            f"{padding} and stride {stride} gives an output of {size} × {size}; at position {step} "
            f"the products add up to {_number(output[row, column])}."
        )
        return canvas

    numbers = widgets.VBox(
        [widgets.HBox([controls[f"w{row}{column}"] for column in range(3)]) for row in range(3)],
        layout={"margin": "0 0 0 92px"},
    )
    others = [control for name, control in controls.items() if name not in (*cells, "kernel")]
    return Panel(
        "convolution",
        controls,
        draw,
        linked={"kernel": choose} | dict.fromkeys(cells, lambda _: {"kernel": BY_HAND}),
        arranged=widgets.VBox([controls["kernel"], numbers, *others]),
    )


def _cell(row: int, column: int, value: float) -> widgets.FloatText:
    name = f"weight in row {row + 1}, column {column + 1}"
    layout = widgets.Layout(width="66px")
    return widgets.FloatText(value, step=0.5, tooltip=name, layout=layout, continuous_update=True)


def _gray(values: NDArray[np.floating[Any]]) -> NDArray[np.uint8]:
    """Numbers in [0, 1] as a grey picture."""
    return np.repeat(np.rint(np.clip(values, 0, 1) * 255).astype(np.uint8)[..., None], 3, axis=-1)


def _dot_product(
    canvas: Canvas,
    y: float,
    classifier: models.Classifier,
    window: NDArray[np.floating[Any]],
    weight: NDArray[np.floating[Any]],
    bias: float,
) -> None:
    """window × kernel = products, and their sum. Three channels are shown as colours."""
    channels, k, _ = weight.shape
    side = 126 / k
    products = (window * weight).sum(axis=0)
    if channels == 3:
        seen = classifier.to_image(torch.as_tensor(np.ascontiguousarray(window)))
        kernel = plotting.filter_tiles(weight[None])[0]
    else:
        seen, kernel = _gray(window[0]), plotting.colorize(weight[0], "signed", 1.6 * _most(weight))
    tints = plotting.colorize(products, "signed", 1.6 * _most(products))
    canvas.text(0, y, "window", size=14, bold=True)
    canvas.cells(0, y + 24, side, seen, window[0] if channels == 1 else None)
    canvas.text(164, y, "kernel", size=14, bold=True)
    canvas.cells(164, y + 24, side, kernel, weight[0] if channels == 1 else None)
    canvas.text(328, y, "products", size=14, bold=True)
    canvas.cells(328, y + 24, side, tints, products)
    middle = y + 24 + 63
    for x, sign in ((145, "×"), (309, "=")):
        canvas.text(x, middle, sign, size=20, anchor="mm", color=MUTED)
    total = float(products.sum())
    canvas.text(490, middle, f"sum = {_number(total + bias)}", size=24, bold=True, anchor="lm")
    count = f"{k} × {k}" + (" × 3 channels" if channels == 3 else "")
    canvas.text(490, middle + 24, f"{count} = {weight.size} products: a dot product", color=MUTED)
    if bias:
        parts = f"{_number(total)}, and the filter's bias {_number(bias)}"
        canvas.text(490, middle + 44, parts, color=MUTED)


def _most(values: NDArray[np.floating[Any]]) -> float:
    return float(np.abs(values).max()) or 1.0


def _number(value: float) -> str:
    return f"{value:.2f}".replace("-0.00", "0.00").replace("-", "−")


# -- preprocessing ---------------------------------------------------------------------------------

SCALES = ("÷ 255: 0 to 1", "none: 0 to 255")
NORMALS = ("mean and std of training", "none", "min–max of this picture", "twice")
ORDERS = ("red, green, blue", "blue, green, red")
CHANNELS = (ORANGE, "#009e73", BLUE)  # red, green, blue, as far as everybody can tell them apart


def preprocessing(model: Any = None, image: Any = None) -> Panel:
    """A picture for people, the same picture for the model, and what a wrong preparation does.

    The picture's short side is resized, its centre cropped, its numbers scaled and normalised:
    (x − mean) / std in each channel. The answers to this input stand beside the answers to the
    input that the model was trained on.
    """
    classifier = _classifier(model)
    image = scenes.canonical("zebra") if image is None else image
    scene = isinstance(image, scenes.SceneSpec | scenes.Scene)
    photos = {"the scene" if scene else "your picture": image}
    size, short = classifier.size, classifier.resize or classifier.size
    most = 2 * max(size, short)
    controls: dict[str, Any] = {
        "photo": _choice("picture", [*photos, *images.EXAMPLES]),
        "resize": _slider("short side, px", 32, most, short),
        "crop": _slider("centre crop, px", 32, most, size),
        "scale": _choice("scaling", SCALES),
        "normalise": _choice("normalise", NORMALS, "none"),
        "order": _choice("channels", ORDERS),
        "reset": widgets.Button(description="as in training", layout=widgets.Layout(width=WIDTH)),
    }
    right: dict[str, Any] = {
        "resize": short,
        "crop": size,
        "scale": SCALES[0],
        "normalise": NORMALS[0],
        "order": ORDERS[0],
    }
    truth = image.label if scene else ""
    device = next(classifier.model.parameters()).device
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (classifier.mean, classifier.std))

    @cache
    def photo_pixels(photo: str) -> NDArray[np.uint8]:
        if photo not in photos:
            return images.example(photo)
        # A scene is drawn larger than the model wants it, so that there is something to resize.
        drawn = isinstance(image, scenes.SceneSpec)
        return scenes.render(image, 2 * 128).image if drawn else _pixels(image)

    def prepare(
        pixels: NDArray[np.uint8], resize: int, crop: int, scale: str, normalise: str, order: str
    ) -> torch.Tensor:
        x = images.to_tensor(pixels, crop, resize=resize, interpolation=classifier.interpolation)
        x = x * 255 if scale == SCALES[1] else x
        if normalise == "min–max of this picture":
            x = (x - x.min()) / (x.max() - x.min()).clamp_min(1e-6)
        elif normalise != "none":
            for _ in range(2 if normalise == "twice" else 1):
                x = (x - mean) / std
        return x.flip(1) if order == ORDERS[1] else x

    def answers(x: torch.Tensor) -> list[tuple[str, float]]:
        with torch.no_grad():
            values, order = classifier.model(x.to(device)).softmax(1)[0].sort(descending=True)
        names = [classifier.classes[index] for index in order.tolist()]
        return list(zip(names, values.tolist(), strict=True))

    def draw(photo: str, resize: int, crop: int, **steps: str) -> Canvas:
        pixels = photo_pixels(photo)
        label = truth if photo in photos else ""
        x, expected = prepare(pixels, resize, crop, **steps), prepare(pixels, **right)
        people = images.to_image(
            images.to_tensor(pixels, crop, resize=resize, interpolation=classifier.interpolation)
        )
        stretched = images.to_image((x - x.min()) / (x.max() - x.min()).clamp_min(1e-6))
        canvas = Canvas(960, 548)
        height, width = pixels.shape[:2]
        zoom = 216 / max(height, width)
        canvas.heading(0, 0, "1  the photo", f"{height} × {width} × 3, the crop marked")
        canvas.picture(0, 44, width * zoom, pixels, smooth=True)
        half = zoom * crop * min(height, width) / resize / 2
        box = [max(0.0, centre * zoom / 2 - half) for centre in (width, height)]
        canvas.box(
            box[0],
            44 + box[1],
            min(2 * half, width * zoom),
            min(2 * half, height * zoom),
            edge=ORANGE,
            line=3,
        )
        canvas.heading(240, 0, "2  resized and cropped", f"{crop} × {crop} × 3, for people")
        canvas.picture(240, 44, 216, people)
        canvas.heading(480, 0, "3  what the model gets", "smallest black, largest white")
        canvas.picture(480, 44, 216, stretched)
        _histogram(canvas, 740, 0, x[0], expected[0])
        mine, wanted = answers(x), answers(expected)
        canvas.heading(
            0, 312, "prepared as in training", "what the model answers when all is right"
        )
        canvas.bars(0, 362, 460, _with_truth(wanted, label), label)
        same = x.shape == expected.shape and bool(torch.allclose(x, expected))
        canvas.heading(
            500,
            312,
            "prepared as set on the left",
            "the same numbers" if same else "not what the model was trained on",
        )
        canvas.bars(500, 362, 460, _with_truth(mine, label), label)
        canvas.alt = (
            f"A picture of {height} × {width} pixels resized and cropped to {crop} × {crop}; the "
            f"model gets numbers from {_number(x.min().item())} to {_number(x.max().item())} and "
            f"answers {mine[0][0]} ({mine[0][1]:.2f}); prepared as in training it answers "
            f"{wanted[0][0]} ({wanted[0][1]:.2f})."
        )
        return canvas

    return Panel("preprocessing", controls, draw, linked={"reset": lambda _: right})


def _histogram(
    canvas: Canvas, x: float, y: float, mine: torch.Tensor, wanted: torch.Tensor
) -> None:
    """How often each number occurs, a line a channel, over the shade of what training gave."""
    low = min(float(mine.min()), float(wanted.min()))
    high = max(float(mine.max()), float(wanted.max()), low + 1e-3)
    wide, tall, bins = 220, 132, 55

    def heights(values: torch.Tensor) -> NDArray[np.float64]:
        counts = np.histogram(values.numpy(), bins, (low, high))[0]
        return counts / max(counts.max(), 1) * tall

    canvas.heading(x, y, "its numbers", "lines: yours; grey: training")
    base, step = y + 44 + tall, wide / bins
    for column, height in enumerate(heights(wanted)):
        canvas.box(x + column * step, base - height, step, height, fill="#d5dade")
    for color, channel in zip(CHANNELS, mine, strict=True):
        tops = base - heights(channel)
        points = [
            (x + (column + side) * step, top) for column, top in enumerate(tops) for side in (0, 1)
        ]
        canvas.line(points, color)
    canvas.box(x, base, wide, 1, fill=MUTED)
    for value in (low, 0.0, high) if low < 0 else (low, high):
        at = x + (value - low) / (high - low) * wide
        canvas.text(
            at,
            base + 6,
            f"{value:.3g}".replace("-", "−"),
            size=12,
            anchor="la" if value == low else "ra" if value == high else "ma",
        )
    for row, (name, values) in enumerate((("set on the left", mine), ("as in training", wanted))):
        mean, std = _number(float(values.mean())), _number(float(values.std()))
        canvas.text(x, base + 32 + 34 * row, name, size=12, bold=True)
        canvas.text(x, base + 48 + 34 * row, f"mean {mean}, std {std}", size=12, color=MUTED)


# -- scene editor ----------------------------------------------------------------------------------

NAMES = {
    "label": "class",
    "color": "colour",
    "accent": "second colour",
    "texture_scale": "texture size",
    "x": "x (rightwards)",
    "y": "y (downwards)",
    "flip": "facing left",
    "removed": "left out",
    "seed": "chance (seed)",
}
GROUPS = {
    "object": (
        "label",
        "shape",
        "texture",
        "contrast",
        "texture_scale",
        "color",
        "accent",
        "size",
        "x",
        "y",
        "angle",
        "flip",
    ),
    "place": ("background", "horizon", "light", "sun", "haze", "noise", "blur", "seed"),
    "extras": (
        "clutter",
        "clutter_texture",
        "clutter_x",
        "clutter_size",
        "companion",
        "companion_x",
        "companion_size",
        "removed",
    ),
}


def scene_editor(model: Any = None, image: Any = None) -> Panel:
    """A scene of which everything can be changed, beside the model's five best answers.

    Choosing a class gives the object and its place the class's typical look. `image` may be a
    SceneSpec to start from.
    """
    if not isinstance(image, scenes.SceneSpec | None):
        raise TypeError(f"image must be a SceneSpec to start from, not {type(image).__name__}.")
    classifier = _classifier(model)
    start = image or scenes.canonical("zebra")
    generator = np.random.default_rng(0)
    controls: dict[str, Any] = {
        name: _field(name, getattr(start, name)) for group in GROUPS.values() for name in group
    }
    for name, description in (
        ("reset", "start again"),
        ("random", "another scene"),
        ("hard", "a hard scene"),
    ):
        controls[name] = widgets.Button(
            description=description, layout=widgets.Layout(width="auto", flex="1 1 auto")
        )
    removable = controls["removed"]

    def offer(spec: scenes.SceneSpec) -> tuple[str, ...]:
        """The parts that this shape has; those left out that it has not are forgotten."""
        options = (*spec.part_names, *scenes.REMOVABLE)
        if removable.options != options:
            kept = tuple(part for part in removable.value if part in options)
            removable.options = options
            removable.value = kept
        return tuple(removable.value)

    def draw(**values: Any) -> Canvas:
        spec = scenes.SceneSpec(**values)
        spec = replace(spec, removed=offer(spec))
        pixels = scenes.render(spec).image
        answers = _with_truth(classifier.predict(pixels, len(classifier.classes)), spec.label)
        canvas = Canvas(880, 424)
        canvas.heading(0, 0, f"the scene: {spec.label}", f"{spec.shape} shape, {spec.texture}")
        canvas.picture(0, 44, 380, pixels, smooth=True)
        first = answers[0][0]
        verdict = "right" if first == spec.label else f"the truth is {spec.label}"
        canvas.heading(420, 0, f"the model says: {first}", verdict)
        canvas.bars(420, 56, 460, answers, spec.label, row=52)
        canvas.text(570, 52 + 52 * len(answers), "probability", size=12, color=MUTED)
        said = ", ".join(f"{name} {value:.2f}" for name, value in answers)
        canvas.alt = f"A scene with a {spec.label}; the model's answers: {said}."
        return canvas

    def look(spec: scenes.SceneSpec) -> dict[str, Any]:
        offer(spec)
        return {field.name: getattr(spec, field.name) for field in fields(spec)}

    def typical(label: str) -> dict[str, Any]:
        changed = (
            "shape",
            "texture",
            "color",
            "accent",
            "contrast",
            "texture_scale",
            "size",
            "x",
            "y",
            "angle",
            "background",
            "horizon",
            "removed",
        )
        spec = scenes.canonical(label)
        return {name: getattr(spec, name) for name in changed}

    pages = [
        widgets.VBox([controls[name] for name in group], layout={"padding": "8px 0"})
        for group in GROUPS.values()
    ]
    tabs = widgets.Tab(pages, titles=list(GROUPS), selected_index=0)
    buttons = widgets.HBox([controls[name] for name in ("reset", "random", "hard")])
    return Panel(
        "scene editor",
        controls,
        draw,
        linked={
            "label": typical,
            "reset": lambda _: look(start),
            "random": lambda _: look(scenes.random_spec(generator)),
            "hard": lambda _: look(scenes.random_spec(generator, hard=True)),
        },
        arranged=widgets.VBox([buttons, tabs]),
    )


def _field(name: str, value: Any) -> widgets.Widget:
    """The control of one field of a SceneSpec."""
    shown = NAMES.get(name, name.replace("_", " "))
    style, layout = {"description_width": "110px"}, widgets.Layout(width=WIDTH)
    common = {"description": shown, "style": style, "layout": layout}
    if name in scenes.CHOICES:
        return _choice(shown, scenes.CHOICES[name], value)
    if name == "seed":
        low, high = scenes.RANGES[name]
        return widgets.BoundedIntText(value, min=int(low), max=int(high), **common)
    if name in scenes.RANGES:
        low, high = scenes.RANGES[name]
        return _slider(shown, low, high, value, 1 if high - low > 100 else 0.01)
    if name == "flip":
        return widgets.Checkbox(value, **common)
    if name == "removed":
        return widgets.SelectMultiple(options=value, value=value, rows=8, **common)
    return widgets.ColorPicker(value=value, **common)


def _with_truth(
    answers: list[tuple[str, float]], truth: str, k: int = 5
) -> list[tuple[str, float]]:
    """The first k answers, and the truth below them where it is not among them."""
    return answers[:k] + [answer for answer in answers[k:] if answer[0] == truth]
