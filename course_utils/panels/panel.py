"""`Panel`, which joins controls and pictures, and what its controls are made of."""

import asyncio
import html
import io
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from time import perf_counter
from typing import Any, TypeVar

import ipywidgets as widgets
from PIL import Image

from course_utils import plotting
from course_utils.panels.canvas import SHARPNESS, Canvas
from course_utils.plotting import INK, ORANGE, PAPER
from course_utils.progress import hearing

WIDTH, COLUMN = "290px", "294px"  # of a control, without and with its margins
PATIENCE = 0.5  # seconds until a bar shows how far a picture is
# Seconds without a move, or as long as the first picture took, until a better one begins: a machine
# on which that is slow is slow to hear of the next move, and nothing interrupts the better one.
REST = 0.1
Key = TypeVar("Key")
Made = TypeVar("Made")

Drawing = Canvas | Sequence[Canvas]


class Panel(widgets.VBox):
    """Controls beside pictures; a new value redraws before its assignment returns.

    `draw` takes the value of every control by name and returns one `Canvas` or several. It may also
    yield them, a coarse picture within 100 ms and better ones after it, each soon after the one
    before; in a notebook the better ones come while the controls can be moved on. `linked` maps a
    control (or button) to a function from its new value to values for other controls. `arranged`
    is the box in which the controls stand, by default `columns`. Where the page is too narrow for
    the picture beside them, they stand above it.

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
                layout=widgets.Layout(
                    width=f"{canvas.width}px", max_width="100%", height="auto", margin="0"
                ),
            )
            for canvas in self._canvases
        )
        self.picture = self.pictures[0]
        self.status = widgets.HTML()
        self.bar = widgets.FloatProgress(max=1, layout={"width": WIDTH, "display": "none"})
        # An Image with a tooltip, the only words it could have, does not open in JupyterLab.
        self.caption = widgets.HTML(self._caption())
        beside = widgets.VBox([self.status, self.bar, *self.pictures, self.caption, _page()])
        width = max(canvas.width for canvas in self._canvases)
        beside.layout = {"flex": f"1000 1 {width}px", "min_width": "0"}
        arranged = arranged or columns(self.controls.values())
        arranged.layout.flex = "1 0 auto"
        self.children = [
            widgets.HBox(
                [arranged, beside], layout={"flex_flow": "row wrap", "grid_gap": "8px 16px"}
            )
        ]
        self.add_class("course-panel")
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
            took = perf_counter() - self._began
            self._refinement = loop.create_task(self._refine(max(REST, took)))

    async def _refine(self, rest: float) -> None:
        await asyncio.sleep(rest)
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
            self.caption.value = self._caption()
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

    def _caption(self) -> str:
        """The words, a paragraph a picture."""
        said = "".join(f"<p>{html.escape(canvas.alt)}</p>" for canvas in self._canvases)
        return f'<div class="course-caption" aria-live="polite">{said}</div>'

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


STYLE = f"""
.course-caption {{ font-size: 12px; line-height: 1.4; max-width: 900px; }}
.course-caption p {{ margin: 0 0 4px; color: var(--jp-ui-font-color1, {INK}); }}
"""
SCRIPT = Path(__file__).with_name("page.js").read_text(encoding="utf-8")


def _page() -> widgets.HTML:
    """How a panel looks and behaves in the page, where ipywidgets has no setting for it.

    A script would not run in an HTML widget; a style sheet says when it has been read.
    """
    sheet = f'<style onload="{html.escape(SCRIPT)}">{STYLE}</style>'
    return widgets.HTML(sheet, layout={"display": "none"})


# -- controls --------------------------------------------------------------------------------------


def named(name: str) -> dict[str, Any]:
    """What all controls have in common: a name in words beside them, and their width."""
    style, layout = {"description_width": "110px"}, widgets.Layout(width=WIDTH)
    return {"description": name, "style": style, "layout": layout}


def slider(name: str, low: float, high: float, value: float, step: float | None = None) -> Any:
    """A slider: of whole numbers if `low`, `high` and `value` are whole and no step is given."""
    kind, step = (widgets.FloatSlider, step) if step else (widgets.IntSlider, 1)
    return kind(min=low, max=high, value=value, step=step, **named(name))


def choice(name: str, options: Sequence[Any], value: Any = None) -> widgets.Dropdown:
    """A list to choose from."""
    value = options[0] if value is None else value
    return widgets.Dropdown(options=options, value=value, **named(name))


def switch(name: str, value: bool = True) -> widgets.Checkbox:
    """A box to tick."""
    return widgets.Checkbox(value, **named(name))


def columns(controls: Iterable[widgets.Widget]) -> widgets.GridBox:
    """Controls below each other beside a picture; above it, in as many columns as there is room."""
    tracks = f"repeat(auto-fill, {COLUMN})"
    return widgets.GridBox(
        list(controls), layout={"grid_template_columns": tracks, "align_content": "flex-start"}
    )


# -- coarse pictures first -------------------------------------------------------------------------


def coarse_to_fine(kept: dict[Key, Made], key: Key, *makers: Callable[[], Made]) -> Iterator[Made]:
    """What each maker makes, the coarsest first; the last one's is kept.

    `key` holds the values that it is made of: as long as they stay, other controls move along what
    is kept, and nothing is made again.
    """
    if key not in kept:
        kept.clear()
        for make in makers[:-1]:
            yield make()
        kept[key] = makers[-1]()
    yield kept[key]
