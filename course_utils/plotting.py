"""Static figures in one look: large text, few lines, colour-blind-safe colours, a text alternative.

Every figure function shows one figure and returns nothing. `alt` says in words what the figure
shows. It is also the output's plain text, so it must not change from run to run.
"""

import io
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
from IPython.display import display
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike, NDArray
from PIL import Image

INK, MUTED, FAINT, PAPER = "#1b1f24", "#59636e", "#d1d9e0", "#ffffff"
BLUE, ORANGE = "#0072b2", "#d55e00"
# Okabe and Ito's colour-blind-safe set.
SERIES = (BLUE, ORANGE, "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
MAPS = {"sequential": "viridis", "signed": "RdBu_r", "gray": "gray"}
STYLE: Any = {
    "font.family": "DejaVu Sans",
    "font.size": 12,
    "axes.titlesize": 12,
    "axes.labelsize": 12,
    "axes.edgecolor": MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "text.color": INK,
    "axes.labelcolor": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.labelsize": 11,
    "ytick.labelsize": 11,
    "figure.titlesize": 14,
    "lines.linewidth": 2.2,
}
DPI = 90


# -- colours ---------------------------------------------------------------------------------------


def colorize(
    array: ArrayLike, kind: str = "sequential", limit: float | None = None
) -> NDArray[np.uint8]:
    """Colour a map of numbers: (H, W) -> (H, W, 3) uint8.

    "sequential" (magnitudes) and "gray" run from 0, or from the smallest value where that is below
    0, to `limit`; "signed" runs from -limit (blue) over 0 (pale) to +limit (red). `limit` is the
    largest value, for "signed" the largest magnitude, unless given; values beyond it take the end
    colour. Raises ValueError for another rank, values that are not finite, an unknown kind, a
    limit that is not positive.
    """
    values = _map(array)
    return _paint(values, kind, *_range([values], kind, limit))


def _paint(values: NDArray[np.float64], kind: str, low: float, high: float) -> NDArray[np.uint8]:
    table = _table(kind)
    position = (np.clip(values, low, high) - low) / (high - low) * (len(table) - 1)
    return table[np.rint(position).astype(np.intp)]


@cache
def _table(kind: str) -> NDArray[np.uint8]:
    if kind not in MAPS:
        raise ValueError(f"kind must be one of {', '.join(MAPS)}, not {kind!r}.")
    # An odd number of colours gives zero a colour of its own, exactly in the middle.
    colors = mpl.colormaps[MAPS[kind]](np.linspace(0, 1, 257))
    return np.rint(colors[:, :3] * 255).astype(np.uint8)


def _map(array: ArrayLike) -> NDArray[np.float64]:
    values = np.asarray(array, dtype=np.float64)
    if values.ndim != 2 or values.size == 0:
        raise ValueError(f"array must be a map of shape (H, W), not of shape {values.shape}.")
    if not np.isfinite(values).all():
        raise ValueError("array must hold finite numbers, but it has NaN or infinity in it.")
    return values


def _range(
    maps: Sequence[NDArray[np.float64]], kind: str, limit: float | None
) -> tuple[float, float]:
    """The values that get the first and the last colour."""
    if limit is not None and not limit > 0:
        raise ValueError(f"limit must be a positive number, not {limit}.")
    low = min(0.0, *(float(values.min()) for values in maps))
    high = max(float(values.max()) for values in maps)
    if kind == "signed":
        limit = limit or max(-low, high) or 1.0
        return -limit, limit
    high = limit or high
    return low, high if high > low else low + 1.0


def is_dark(color: NDArray[np.uint8]) -> bool:
    """Whether white text reads better on this colour than black (Rec. 709 luma)."""
    return bool(color @ np.array([0.2126, 0.7152, 0.0722]) < 135)


# -- figures ---------------------------------------------------------------------------------------


def show(figure: Figure, alt: str) -> None:
    """Show a figure as a PNG with the text alternative `alt`, and close it."""
    _check_alt(alt)
    drawn, buffer = io.BytesIO(), io.BytesIO()
    with mpl.rc_context(STYLE):
        figure.savefig(drawn, format="png", dpi=DPI, bbox_inches="tight")
    plt.close(figure)
    with Image.open(drawn) as picture:
        few_colors(picture.convert("RGB")).save(buffer, "PNG", optimize=True)
    data = {"image/png": buffer.getvalue(), "text/plain": alt}
    display(data, metadata={"image/png": {"alt": alt}}, raw=True)


def few_colors(picture: Image.Image) -> Image.Image:
    """The picture in 256 colours, for a notebook to keep: a third as large as a file."""
    # Every third pixel shows well enough which colours there are, and takes a ninth of the time.
    # Rare ones count as much as frequent ones: the ends of a colour bar stay what they are.
    size = (picture.width + 2) // 3, (picture.height + 2) // 3
    sample = picture.resize(size, Image.Resampling.NEAREST)
    palette = sample.quantize(256, Image.Quantize.MAXCOVERAGE, kmeans=1)
    return picture.quantize(palette=palette, dither=Image.Dither.NONE)


def _check_alt(alt: str) -> None:
    if not isinstance(alt, str) or not alt.strip():
        raise ValueError("alt must say in words what the figure shows, but it is empty.")


@contextmanager
def new_figure(width: float, height: float, title: str | None, alt: str) -> Iterator[Figure]:
    """A figure of this size in inches, in the course's style, shown when the block ends well."""
    _check_alt(alt)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(width, height))
        yield figure
        if title:
            boxes = filter(None, (axes.get_tightbbox() for axes in figure.axes))
            top = max(box.y1 for box in boxes)
            figure.suptitle(title, y=(top + 8) / figure.bbox.height, va="bottom", weight="bold")
    show(figure, alt)


def _plain(axes: Axes) -> None:
    """No ticks, no frame."""
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)


def grid(
    images: Sequence[ArrayLike],
    titles: Sequence[str] | None = None,
    *,
    alt: str,
    title: str | None = None,
    columns: int | None = None,
    kind: str = "sequential",
    limit: float | None = None,
    scale: str = "common",
    size: float = 2.2,
) -> None:
    """Pictures side by side, each `size` inches wide.

    (H, W, 3) uint8 pictures are shown as they are. Maps (H, W) are coloured as by `colorize`: on
    one scale with one colour bar ("common"), or each on its own with its range written below
    ("each"). "gray" maps are pictures and get neither.
    """
    pictures = [np.asarray(image) for image in images]
    _check_pictures(pictures, titles)
    if scale not in ("common", "each"):
        raise ValueError(f'scale must be "common" or "each", not {scale!r}.')
    maps = [_map(picture) for picture in pictures if picture.ndim == 2]
    low, high = _range(maps, kind, limit) if maps else (0.0, 1.0)
    columns = min(columns or max(1, int(10 / size)), len(pictures))
    rows = math.ceil(len(pictures) / columns)
    tall = size * max(picture.shape[0] / picture.shape[1] for picture in pictures)
    gap = 0.12
    room = gap + (0.26 if titles else 0) + (0.22 if scale == "each" and kind != "gray" else 0)
    width, height = columns * (size + gap), rows * (tall + room)

    with new_figure(width, height, title, alt) as figure:
        for index, picture in enumerate(pictures):
            row, column = divmod(index, columns)
            left, bottom = column * (size + gap), height - row * (tall + room) - tall
            axes = figure.add_axes((left / width, bottom / height, size / width, tall / height))
            _plain(axes)
            if titles:
                axes.set_title(titles[index], pad=4)
            if picture.ndim == 2:
                if scale == "each":
                    low, high = _range([_map(picture)], kind, limit)
                    if kind != "gray":
                        axes.set_xlabel(f"{low:.2g} … {high:.2g}", size=10, color=MUTED, labelpad=2)
                picture = _paint(_map(picture), kind, low, high)
            small = picture.shape[1] <= size * DPI
            axes.imshow(picture, interpolation="nearest" if small else "antialiased")
        if maps and scale == "common" and kind != "gray":
            axes = figure.add_axes(
                (1 + gap / width, 1 - tall / height, 0.13 / width, tall / height)
            )
            _color_bar(figure, axes, kind, low, high)


def _check_pictures(pictures: list[NDArray[Any]], titles: Sequence[str] | None) -> None:
    if not pictures:
        raise ValueError("images must hold at least one picture, but it is empty.")
    if titles is not None and len(titles) != len(pictures):
        raise ValueError(
            f"titles must be as many as images ({len(pictures)}), but {len(titles)} came."
        )
    for picture in pictures:
        in_colors = picture.dtype == np.uint8 and picture.shape[2:] in ((3,), (4,))
        if picture.ndim != 2 and not in_colors:
            raise ValueError(
                "images must be (H, W, 3) uint8 pictures or (H, W) maps, "
                f"but one is {picture.dtype} of shape {picture.shape}."
            )


def _color_bar(figure: Figure, axes: Axes, kind: str, low: float, high: float) -> None:
    scale = ScalarMappable(Normalize(low, high), ListedColormap(_table(kind) / 255))
    bar = figure.colorbar(scale, cax=axes)
    bar.outline.set_visible(False)
    bar.locator = MaxNLocator(4, symmetric=kind == "signed")
    bar.ax.tick_params(length=3)


def filters(
    weights: ArrayLike,
    *,
    alt: str,
    title: str | None = None,
    columns: int = 8,
    scale: str = "each",
    size: float = 1.0,
) -> None:
    """The kernels of a first layer as colour pictures: weights (N, 3, k, k) or (N, 1, k, k).

    A weight of zero is mid-grey and every kernel is only scaled, never shifted, so grey means "does
    not look here" and a colour means that colour: 0.5 + w / (2 limit), where limit is the largest
    |w| of the kernel ("each") or of all kernels ("common"). The small numbers count the filters.
    """
    kernels = np.asarray(weights, dtype=np.float64)
    if kernels.ndim != 4 or kernels.shape[1] not in (1, 3):
        raise ValueError(
            f"weights must have the shape (N, 3, k, k) or (N, 1, k, k), not {kernels.shape}."
        )
    tiles = filter_tiles(kernels, scale)
    grid(
        list(tiles),
        [str(index) for index in range(len(tiles))],
        alt=alt,
        title=title,
        columns=columns,
        size=size,
    )


def filter_tiles(weights: ArrayLike, scale: str = "each") -> NDArray[np.uint8]:
    """Kernels (N, 3, k, k) or (N, 1, k, k) as pictures (N, k, k, 3) uint8, zero in mid-grey."""
    kernels = np.asarray(weights, dtype=np.float64)
    axis = (1, 2, 3) if scale == "each" else None
    limit = np.maximum(np.abs(kernels).max(axis=axis, keepdims=True), 1e-12)
    tiles = np.rint(255 * (0.5 + kernels / (2 * limit))).astype(np.uint8)
    return np.broadcast_to(np.moveaxis(tiles, 1, -1), (len(tiles), *kernels.shape[2:], 3))


def numbers(
    *arrays: ArrayLike,
    alt: str,
    titles: Sequence[str] | None = None,
    signs: Sequence[str] = (),
    windows: Mapping[int, tuple[int, int, int, int]] | None = None,
    title: str | None = None,
    kind: str = "signed",
    limit: float | None = None,
    cell: float = 0.5,
) -> None:
    """Small matrices with their numbers in the cells, side by side: patch × kernel = products.

    `signs` stand between the matrices. `windows` marks cells: {matrix: (top, left, height,
    width)}. NaN leaves a cell empty. Colours as in `colorize`, each matrix on its own range unless
    `limit` is given; a cell is `cell` inches wide.
    """
    matrices = [np.asarray(array, dtype=np.float64) for array in arrays]
    for matrix_ in matrices:
        if matrix_.ndim != 2:
            raise ValueError(f"arrays must be matrices, but one has the shape {matrix_.shape}.")
    tall = max(matrix_.shape[0] for matrix_ in matrices)
    gap = 1.1
    wide = sum(matrix_.shape[1] for matrix_ in matrices) + gap * (len(matrices) - 1)

    with new_figure(wide * cell, (tall + 0.7) * cell, title, alt) as figure:
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set(xlim=(0, wide), ylim=(tall, -0.7))
        axes.axis("off")
        left = 0.0
        for index, matrix_ in enumerate(matrices):
            height, width = matrix_.shape
            top = (tall - height) / 2
            _cells(axes, matrix_, left, top, kind, limit)
            if titles:
                axes.text(left + width / 2, top - 0.2, titles[index], ha="center", va="bottom")
            if windows and index in windows:
                y, x, rows, columns = windows[index]
                _rectangle(axes, left + x, top + y, columns, rows, fill=False, ec=ORANGE, lw=3.5)
            if index < len(signs):
                axes.text(
                    left + width + gap / 2,
                    tall / 2,
                    signs[index],
                    size=18,
                    ha="center",
                    va="center",
                )
            left += width + gap


def _cells(
    axes: Axes,
    matrix_: NDArray[np.float64],
    left: float,
    top: float,
    kind: str,
    limit: float | None,
) -> None:
    filled = np.nan_to_num(matrix_)
    # Half again as wide a range as needed keeps the colours light and the numbers readable.
    colors = colorize(filled, kind, limit or 1.5 * float(np.abs(filled).max()) or None)
    for (row, column), value in np.ndenumerate(matrix_):
        color = colors[row, column]
        empty = np.isnan(value)
        fc = PAPER if empty else color / 255
        _rectangle(axes, left + column, top + row, 1, 1, ec=FAINT, lw=1, fc=fc)
        if not empty:
            axes.text(
                left + column + 0.5,
                top + row + 0.52,
                number(value),
                size=11,
                ha="center",
                va="center",
                color=PAPER if is_dark(color) else INK,
            )


def _rectangle(axes: Axes, x: float, y: float, width: float, height: float, **look: Any) -> None:
    axes.add_patch(Rectangle((x, y), width, height, clip_on=False, **look))


def number(value: float) -> str:
    """A number short enough for a cell: 3, −0.25, 1.3, 128."""
    text = (
        f"{value:.0f}"
        if value == round(value) or abs(value) >= 100
        else (f"{value:.2f}" if abs(value) < 10 else f"{value:.1f}")
    )
    return text.replace("-0.00", "0.00").replace("-", "−")


def bars(
    pairs: Sequence[tuple[str, float]],
    *,
    alt: str,
    title: str | None = None,
    label: str = "probability",
    limit: float | None = 1.0,
    truth: str | None = None,
    size: float = 5.5,
) -> None:
    """Horizontal bars, the first on top, e.g. `Classifier.predict`'s (name, probability) pairs.

    The axis ends at `limit` (None: at the largest value); `truth` names the bar of the true class.
    """
    if not pairs:
        raise ValueError("pairs must hold at least one (name, value), but it is empty.")
    names, values = [name for name, _ in pairs], [float(value) for _, value in pairs]
    low, high = min(0.0, *values), limit or max(*values, 0.0) or 1.0
    with new_figure(size, 0.42 * len(pairs) + 0.5, title, alt) as figure:
        axes = figure.add_axes((0, 0, 1, 1))
        colors = [ORANGE if name == truth else BLUE for name in names]
        axes.barh(range(len(pairs)), values, color=colors, height=0.72)
        for row, value in enumerate(values):
            axes.text(
                max(value, 0) + 0.015 * (high - low),
                row,
                f"{value:.2f}".replace("-", "−"),
                va="center",
            )
        axes.set(xlim=(low, high), ylim=(len(pairs) - 0.4, -0.6), xlabel=label)
        axes.set_yticks(
            range(len(pairs)), [f"✓ {name}" if name == truth else name for name in names]
        )
        axes.tick_params(axis="y", length=0, labelsize=12)
        axes.spines["left"].set_visible(False)
        axes.axvline(0, color=MUTED, lw=0.8)
        axes.xaxis.set_major_locator(MaxNLocator(5))


def curve(
    series: ArrayLike | Mapping[str, ArrayLike],
    *,
    alt: str,
    x: ArrayLike | None = None,
    title: str | None = None,
    xlabel: str = "step",
    ylabel: str = "",
    smooth: int = 1,
    log: bool = False,
    size: float = 6.0,
) -> None:
    """Line plots: one series of numbers, or {name: series} with the names at the lines' ends.

    smooth > 1 draws the moving average over that many steps, and the raw series pale behind it.
    """
    named = series if isinstance(series, Mapping) else {"": series}
    with new_figure(size, 0.5 * size, title, alt) as figure:
        axes = figure.add_axes((0, 0, 1, 1))
        names = []
        for color, (name, values) in zip(SERIES * len(named), named.items(), strict=False):
            y = np.asarray(values, dtype=np.float64)
            steps = np.arange(1, len(y) + 1) if x is None else np.asarray(x)
            if smooth > 1:
                axes.plot(steps, y, color=color, alpha=0.25, lw=1)
                y = np.convolve(y, np.ones(smooth) / smooth, "valid")
                steps = steps[smooth // 2 :][: len(y)]
            axes.plot(steps, y, color=color)
            names.append((float(steps[-1]), float(y[-1]), name, color))
        axes.set(xlabel=xlabel, ylabel=ylabel)
        whole = x is None or np.issubdtype(np.asarray(x).dtype, np.integer)
        axes.xaxis.set_major_locator(MaxNLocator(integer=whole))
        axes.margins(x=0.01)
        axes.grid(axis="y", color=FAINT, lw=0.8)
        if log:
            axes.set_yscale("log")
        else:
            axes.set_ylim(bottom=min(0, axes.get_ylim()[0]))
        _names_at_ends(axes, names)


def _names_at_ends(axes: Axes, names: list[tuple[float, float, str, str]]) -> None:
    """Write each line's name beside its end (x, y), from below, none over the one before."""
    below = -np.inf
    for x, y, name, color in sorted(names, key=lambda end: end[1]):
        right, height = axes.transAxes.inverted().transform(axes.transData.transform((x, y)))
        height = below = max(height, below + 0.08)
        label = axes.text(right + 0.015, height, name, color=color, va="center", weight="bold")
        label.set_transform(axes.transAxes)


def matrix(
    counts: ArrayLike,
    names: Sequence[str],
    *,
    alt: str,
    title: str | None = None,
    xlabel: str = "the model's answer",
    ylabel: str = "the truth",
    cell: float = 0.4,
) -> None:
    """A confusion matrix (K, K), row = truth, column = answer: right ones blue, mistakes orange.

    The depth of a cell's colour is its share of the row, mistakes on a square-root scale, because
    rare mistakes are what one looks for. Zeros are left empty.
    """
    table = np.asarray(counts)
    side = len(names)
    if table.shape != (side, side):
        raise ValueError(
            f"counts must have a row and a column a name, {(side, side)}, not {table.shape}."
        )
    share = table / np.maximum(table.sum(axis=1, keepdims=True), 1)
    blue, orange = (mpl.colormaps[name](np.linspace(0, 0.85, 256)) for name in ("Blues", "Oranges"))
    colors = orange[np.rint(np.sqrt(share) * 255).astype(int)]
    right = np.eye(side, dtype=bool)
    colors[right] = blue[np.rint(share[right] * 255).astype(int)]
    colors[table == 0] = 1

    with new_figure(side * cell, side * cell, title, alt) as figure:
        axes = figure.add_axes((0, 0, 1, 1))
        axes.imshow(colors, interpolation="nearest")
        for (row, column), value in np.ndenumerate(table):
            if value:
                dark = is_dark(np.rint(colors[row, column, :3] * 255).astype(np.uint8))
                axes.text(
                    column,
                    row,
                    f"{value:g}",
                    ha="center",
                    va="center",
                    size=10.5,
                    color=PAPER if dark else INK,
                )
        axes.set_xticks(range(side), names, rotation=45, ha="left", rotation_mode="anchor")
        axes.set_yticks(range(side), names)
        axes.set_xticks(np.arange(side + 1) - 0.5, minor=True)
        axes.set_yticks(np.arange(side + 1) - 0.5, minor=True)
        axes.grid(which="minor", color=FAINT, lw=0.8)
        axes.tick_params(which="both", length=0, labelsize=11)
        axes.xaxis.tick_top()
        axes.xaxis.set_label_position("top")
        axes.set(xlabel=xlabel, ylabel=ylabel)
        axes.spines[:].set_visible(False)


def intervals(
    rows: Sequence[tuple[str, float, float, float]],
    *,
    alt: str,
    title: str | None = None,
    label: str = "AUROC",
    reference: float = 0.5,
    truth: str | None = None,
    size: float = 5.5,
) -> None:
    """Estimates with their confidence intervals, (name, value, low, high), the first on top.

    A line marks `reference`, the value that would mean nothing; `truth` names a row to point out.
    """
    if not rows:
        raise ValueError("rows must hold at least one (name, value, low, high), but it is empty.")
    names = [name for name, *_ in rows]
    with new_figure(size, 0.42 * len(rows) + 0.5, title, alt) as figure:
        axes = figure.add_axes((0, 0, 1, 1))
        axes.axvline(reference, color=MUTED, lw=1, ls="--")
        for row, (name, value, low, high) in enumerate(rows):
            color = ORANGE if name == truth else BLUE
            axes.plot([low, high], [row, row], color=color, solid_capstyle="butt", lw=3, alpha=0.5)
            axes.plot(value, row, "o", color=color, ms=8)
        axes.set(ylim=(len(rows) - 0.4, -0.6), xlabel=f"{label}, with its 95 % interval")
        axes.set_yticks(range(len(rows)), names)
        axes.tick_params(axis="y", length=0, labelsize=12)
        axes.spines["left"].set_visible(False)
        axes.grid(axis="x", color=FAINT, lw=0.8)
        axes.xaxis.set_major_locator(MaxNLocator(6))
