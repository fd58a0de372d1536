"""What panels draw on: a canvas, a plot on it, and the pieces that many pictures share."""

import io
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import matplotlib as mpl
import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image, ImageDraw, ImageFont

from course_utils import plotting
from course_utils.plotting import BLUE, FAINT, INK, MUTED, ORANGE, PAPER

SHARPNESS = 1.5  # pixels drawn per pixel of the page: sharp text, yet quick to encode
MARGIN = 4  # around what is drawn
PALE = "#eef1f4"  # where something will be
Point = tuple[float, float]


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


def decimal(value: float) -> str:
    """A number with two decimals: −0.25."""
    return f"{value:.2f}".replace("-0.00", "0.00").replace("-", "−")


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

    def line(self, points: Sequence[Point], color: str, width: float = 1.5) -> None:
        """A line through points."""
        dots = [self._dots(x, y) for x, y in points]
        self._pen.line(dots, color, round(width * SHARPNESS))

    def dot(self, x: float, y: float, half: float, color: str) -> None:
        """A square dot around (x, y), twice `half` wide."""
        self.box(x - half, y - half, 2 * half, 2 * half, fill=color)

    def lines(
        self,
        x: float,
        y: float,
        lines: Sequence[str],
        step: float = 20,
        *,
        size: float = 13,
        color: str = INK,
        bold: Sequence[int] = (),
    ) -> None:
        """Lines of text below each other; `bold` are the numbers of those that stand out."""
        for row, line in enumerate(lines):
            self.text(x, y + step * row, line, size=size, color=color, bold=row in bold)

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

    def figure(
        self,
        x: float,
        y: float,
        width: float,
        pixels: NDArray[np.uint8] | None,
        title: str,
        below: str = "",
        *,
        height: float | None = None,
        smooth: bool = False,
    ) -> None:
        """A picture under its heading, 44 pixels below it; None holds a square place for it."""
        self.heading(x, y, title, below)
        if pixels is None:
            self.box(x, y + 44, width, width, fill=PALE)
            half = width / 2
            self.text(x + half, y + 44 + half, "coming …", color=MUTED, anchor="mm")
        else:
            self.picture(x, y + 44, width, pixels, height=height, smooth=smooth)

    def color_bar(
        self,
        x: float,
        y: float,
        height: float,
        kind: str,
        limit: float,
        write: Callable[[float], str] = decimal,
    ) -> None:
        """The colours of a map that ends at `limit`, and the numbers at its ends and at zero."""
        low = -limit if kind == "signed" else 0.0
        ramp = np.linspace(limit, low, 129)[:, None]
        self.picture(x, y, 18, plotting.colorize(ramp, kind, limit), height=height)
        for value in {limit, low, 0.0}:
            at = y + height * (limit - value) / (limit - low)
            self.text(x + 26, at, write(value), anchor="lm")

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
            self.box(left, top, room, high, fill=PALE)
            self.box(left, top, room * value, high, fill=ORANGE if right else BLUE)
            self.text(left + room + 8, middle, f"{value:.2f}", size=14, anchor="lm")

    def jpeg(self) -> bytes:
        """The drawing as a JPEG file: a PNG would take ten times as long, and a slider waits."""
        buffer = io.BytesIO()
        self.image.save(buffer, "JPEG", quality=92, subsampling=0)
        return buffer.getvalue()


class Plot:
    """A rectangle of a canvas with coordinates of its own: x to the right, y upwards."""

    def __init__(
        self,
        canvas: Canvas,
        box: tuple[float, float, float, float],
        *,
        across: tuple[float, float] = (0.0, 1.0),
        up: tuple[float, float] = (0.0, 1.0),
    ) -> None:
        """box: left, top, width and height on the page; across, up: the ends of x and of y."""
        self.canvas, self.box, self.across, self.up = canvas, box, across, up

    def at(self, x: float, y: float) -> Point:
        """Where a point lies on the page."""
        left, top, width, height = self.box
        (first, last), (low, high) = self.across, self.up
        right, up = (x - first) / (last - first), (y - low) / (high - low)
        return left + width * right, top + height * (1 - up)

    def line(self, points: Sequence[Point], color: str = BLUE, width: float = 2) -> None:
        """A line through points; of a single one there is none."""
        if len(points) > 1:
            self.canvas.line([self.at(*point) for point in points], color, width)

    def level(self, y: float, color: str = FAINT, width: float = 1.5) -> None:
        """A line across the whole plot, at y."""
        self.line([(x, y) for x in self.across], color, width)

    def label(self, y: float, text: str, *, size: float = 13, color: str = MUTED) -> None:
        """A number at the left of the plot, at y."""
        x, down = self.at(self.across[0], y)
        self.canvas.text(x - 8, down, text, size=size, color=color, anchor="rm")

    def mark(self, x: float, width: float = 1, beyond: float = 0) -> None:
        """An orange line from the top of the plot to its bottom, at x, a little beyond both."""
        _, top, _, height = self.box
        right, _ = self.at(x, self.up[0])
        ends = [(right, top - beyond), (right, top + height + beyond)]
        self.canvas.line(ends, ORANGE, width)

    def dot(self, x: float, y: float, half: float, color: str = ORANGE) -> None:
        """A dot on a point, twice `half` pixels wide."""
        self.canvas.dot(*self.at(x, y), half, color)


def colored(map_: NDArray[np.float64], limit: float | None = None) -> NDArray[np.uint8]:
    """A signed map in colours; without a limit the strongest hundredth takes the end colours."""
    return plotting.colorize(map_, "signed", limit or float(np.quantile(np.abs(map_), 0.99)) or 1.0)


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
        canvas.dot(at(area), top + 24, 3, color)
    below = y + 48 + 36 * len(told)
    canvas.text(x, below, "0.5: knows nothing", size=11, color=MUTED)
    canvas.text(x + width, below, "1", size=11, color=MUTED, anchor="ra")
