"""The panels of lecture 01: a kernel slides over a picture, and a picture is prepared."""

from functools import cache
from typing import Any, NamedTuple

import ipywidgets as widgets
import numpy as np
import torch
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from course_utils import images, layers, plotting
from course_utils.networks import Classifier
from course_utils.panels.canvas import Canvas, Plot, decimal
from course_utils.panels.panel import WIDTH, Panel, choice, columns, slider
from course_utils.panels.pictures import classifier_of, pixels_of, typical, with_truth
from course_utils.plotting import BLUE, MUTED, ORANGE
from course_utils.worlds import photographs, scenes

Pixels = NDArray[np.uint8]
Numbers = NDArray[np.floating[Any]]

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
OPENING = "Sobel x (vertical edges)"
CELLS = {f"w{row}{column}": (row, column) for row in range(3) for column in range(3)}


class Kernel(NamedTuple):
    """A kernel of one channel for the grey picture, or of three: a learned filter."""

    name: str
    weight: Numbers  # (C, k, k)
    bias: float
    stride: int
    padding: int

    @property
    def learned(self) -> bool:
        """Whether it reads three channels."""
        return len(self.weight) == 3


class Slid(NamedTuple):
    """What a kernel meets on a patch of a picture, and makes of it."""

    padded: Numbers  # (C, side + 2p, side + 2p)
    windows: Numbers  # (C, size, size, k, k)
    output: Numbers  # (size, size)
    whole: Numbers  # of the whole picture


def convolution(model: Any = None, image: Any = None) -> Panel:
    """One kernel slides over a small patch, number by number, and over the whole picture.

    A 3 × 3 kernel sees the grey picture in [0, 1]. A learned filter of the model's first
    convolution sees the three normalised channels, with its own bias; its products are added up
    over the channels. Size of the output: floor((H + 2p − k) / s) + 1.
    """
    classifier = classifier_of(model)
    conv = _first_convolution(classifier)
    biases = torch.zeros(conv.out_channels) if conv.bias is None else conv.bias.detach()
    x = classifier.to_input(pixels_of(typical(classifier) if image is None else image))[0].cpu()
    picture = classifier.to_image(x)
    grey = picture @ np.array([0.299, 0.587, 0.114]) / 255
    side = max(8, conv.kernel_size[0])
    controls = _convolution_controls(conv.out_channels, side, classifier.size - side)

    def choose(kernel: str) -> dict[str, Any]:
        if kernel == LEARNED:
            return {"stride": min(conv.stride[0], 4), "padding": min(int(conv.padding[0]), 3)}
        return {n: KERNELS[kernel][y][x] for n, (y, x) in CELLS.items() if kernel in KERNELS}

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
        weight, bias = np.reshape([*cells.values()], (1, 3, 3)), 0.0
        if learned:
            weight, bias = conv.weight[filter].detach().cpu().numpy(), float(biases[filter])
        used = Kernel(kernel, weight, bias, stride, padding)
        found = slide(x.numpy() if learned else grey[None], used, left, top, side)
        controls["position"].max = found.output.size
        step, shown = min(position, found.output.size), picture if learned else _gray(grey)
        return _convolution_canvas(classifier, shown, used, found, (left, top), step)

    linked = {"kernel": choose} | dict.fromkeys(CELLS, lambda _: {"kernel": BY_HAND})
    arranged = _around_the_numbers(controls)
    return Panel("convolution", controls, draw, linked=linked, arranged=arranged)


def _first_convolution(classifier: Classifier) -> nn.Conv2d:
    conv = next(iter(layers.conv_layers(classifier.model).values()), None)
    if conv is None or conv.in_channels != 3:
        raise ValueError(
            f"model: {classifier.name} has no convolution that reads a colour picture."
        )
    return conv


def _convolution_controls(filters: int, side: int, edge: int) -> dict[str, Any]:
    return {
        "kernel": choice("kernel", [*KERNELS, LEARNED, BY_HAND], OPENING),
        **{name: _cell(row, column) for name, (row, column) in CELLS.items()},
        "filter": slider("learned filter", 0, filters - 1, 0),
        "stride": slider("stride s", 1, 4, 1),
        "padding": slider("padding p", 0, 3, 1),
        "position": slider("position", 1, side**2, 29),
        "left": slider("patch, from left", 0, edge, edge // 2),
        "top": slider("patch, from top", 0, edge, edge // 2),
    }


def _cell(row: int, column: int) -> widgets.FloatText:
    name, layout = f"weight in row {row + 1}, column {column + 1}", widgets.Layout(width="56px")
    value = KERNELS[OPENING][row][column]
    return widgets.FloatText(value, step=0.5, tooltip=name, layout=layout, continuous_update=True)


def _around_the_numbers(controls: dict[str, Any]) -> widgets.GridBox:
    """The controls below each other, the kernel's numbers as a square."""
    numbers = widgets.VBox(
        [widgets.HBox([controls[f"w{row}{column}"] for column in range(3)]) for row in range(3)],
        layout={"margin": "0 0 0 112px", "grid_row": "span 3"},
    )
    others = [control for name, control in controls.items() if name not in (*CELLS, "kernel")]
    return columns([controls["kernel"], numbers, *others])


def slide(pixels: Numbers, kernel: Kernel, left: int, top: int, side: int) -> Slid:
    """Convolve a patch of a picture (C, H, W) by hand, and the whole of it by PyTorch."""
    p, s, k = kernel.padding, kernel.stride, kernel.weight.shape[-1]
    padded = np.pad(pixels[:, top : top + side, left : left + side], ((0, 0), (p, p), (p, p)))
    windows = sliding_window_view(padded, (k, k), axis=(1, 2))[:, ::s, ::s]
    output = np.einsum("cyxij,cij->yx", windows, kernel.weight) + kernel.bias
    given, weight = (
        torch.as_tensor(values, dtype=torch.float32)[None] for values in (pixels, kernel.weight)
    )
    whole = F.conv2d(given, weight, torch.tensor([kernel.bias]), s, p)[0, 0].numpy()
    return Slid(padded, windows, output, whole)


def _convolution_canvas(
    classifier: Classifier,
    picture: Pixels,
    kernel: Kernel,
    found: Slid,
    corner: tuple[int, int],
    step: int,
) -> Canvas:
    size, (left, top) = len(found.output), corner
    row, column = divmod(step - 1, size)
    side = found.padded.shape[-1] - 2 * kernel.padding
    # Weights that add up to 1 keep the brightness: the result is a picture again.
    kind = "gray" if not kernel.learned and abs(kernel.weight.sum() - 1) < 0.01 else "signed"
    limit = 1.0 if kind == "gray" else _most(found.whole)
    canvas, cell = Canvas(960, 600), 392 / (side + 6)
    view = picture[top : top + side, left : left + side]
    _input(canvas, cell, view, kernel, found, (row, column))
    colors = plotting.colorize(found.output, kind, limit)
    _output(canvas, cell, side, kernel, found.output, step, colors)

    canvas.figure(784, 0, 176, picture, "the whole picture", "the patch is marked", smooth=True)
    zoom = 176 / classifier.size
    canvas.box(784 + left * zoom, 44 + top * zoom, side * zoom, side * zoom, edge=ORANGE, line=2)
    colors, (height, width) = plotting.colorize(found.whole, kind, limit), found.whole.shape
    canvas.figure(784, 232, 176, colors, "its feature map", f"{height} × {width}")
    _dot_product(canvas, 448, classifier, found.windows[:, row, column], kernel)
    canvas.alt = (
        f"Convolution with the kernel “{kernel.name}”: an input of {side} × {side} with padding "
        f"{kernel.padding} and stride {kernel.stride} gives an output of {size} × {size}; at "
        f"position {step} the products add up to {decimal(found.output[row, column])}."
    )
    return canvas


def _input(
    canvas: Canvas, cell: float, view: Pixels, kernel: Kernel, found: Slid, at: tuple[int, int]
) -> None:
    """The patch with its numbers, rings of zeros around it, and the window at a place."""
    p, s, side = kernel.padding, kernel.stride, len(view)
    title = f"input: {side} × {side}" + (" × 3 channels" if kernel.learned else "")
    canvas.heading(0, 0, title, f"H = {side}, with p = {p} rings of zeros around it")
    ring = np.full((*found.padded.shape[1:], 3), (214, 230, 242), np.uint8)
    ring[p : p + side, p : p + side] = view
    numbers = None if kernel.learned else found.padded[0]
    window, room = (at[0] * s, at[1] * s, kernel.weight.shape[-1]), (3 - p) * cell
    canvas.cells(room, 44 + room, cell, ring, numbers, window)


def _output(
    canvas: Canvas,
    cell: float,
    side: int,
    kernel: Kernel,
    output: Numbers,
    step: int,
    colors: Pixels,
) -> None:
    """The numbers of the output as far as the window has come."""
    size, k = len(output), kernel.weight.shape[-1]
    formula = f"({side} + {2 * kernel.padding} − {k}) / {kernel.stride}"
    below = f"⌊(H + 2p − k) / s⌋ + 1 = ⌊{formula}⌋ + 1 = {size}"
    canvas.heading(430, 0, f"output: {size} × {size}", below)
    filled = np.arange(size**2).reshape(size, size) < step
    shown = np.where(filled[..., None], colors, np.uint8(255))
    row, column = divmod(step - 1, size)
    middle = 44 + (392 - size * cell) / 2
    canvas.cells(430, middle, cell, shown, np.where(filled, output, np.nan), (row, column, 1))


def _gray(values: Numbers) -> Pixels:
    """Numbers in [0, 1] as a grey picture."""
    return np.repeat(np.rint(np.clip(values, 0, 1) * 255).astype(np.uint8)[..., None], 3, axis=-1)


def _dot_product(
    canvas: Canvas, y: float, classifier: Classifier, window: Numbers, kernel: Kernel
) -> None:
    """window × kernel = products, and their sum. Three channels are shown as colours."""
    weight, k = kernel.weight, kernel.weight.shape[-1]
    side = 126 / k
    products = (window * weight).sum(axis=0)
    if kernel.learned:
        seen = classifier.to_image(torch.as_tensor(np.ascontiguousarray(window)))
        tile = plotting.filter_tiles(weight[None])[0]
    else:
        seen, tile = _gray(window[0]), plotting.colorize(weight[0], "signed", 1.6 * _most(weight))
    tints = plotting.colorize(products, "signed", 1.6 * _most(products))
    canvas.text(0, y, "window", size=14, bold=True)
    canvas.cells(0, y + 24, side, seen, None if kernel.learned else window[0])
    canvas.text(164, y, "kernel", size=14, bold=True)
    canvas.cells(164, y + 24, side, tile, None if kernel.learned else weight[0])
    canvas.text(328, y, "products", size=14, bold=True)
    canvas.cells(328, y + 24, side, tints, products)
    middle = y + 24 + 63
    for x, sign in ((145, "×"), (309, "=")):
        canvas.text(x, middle, sign, size=20, anchor="mm", color=MUTED)
    total, bias = float(products.sum()), kernel.bias
    canvas.text(490, middle, f"sum = {decimal(total + bias)}", size=24, bold=True, anchor="lm")
    count = f"{k} × {k}" + (" × 3 channels" if kernel.learned else "")
    canvas.text(490, middle + 24, f"{count} = {weight.size} products: a dot product", color=MUTED)
    if bias:
        parts = f"{decimal(total)}, and the filter's bias {decimal(bias)}"
        canvas.text(490, middle + 44, parts, color=MUTED)


def _most(values: Numbers) -> float:
    return float(np.abs(values).max()) or 1.0


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
    classifier = classifier_of(model)
    image = typical(classifier) if image is None else image
    is_scene = isinstance(image, scenes.SceneSpec | scenes.Scene)
    own = "the scene" if is_scene else "your picture"
    size, short = classifier.size, classifier.resize or classifier.size
    right: dict[str, Any] = {"resize": short, "crop": size}
    right |= {"scale": SCALES[0], "normalise": NORMALS[0], "order": ORDERS[0]}
    most = 2 * max(size, short)
    controls: dict[str, Any] = {
        "photo": choice("picture", [own, *photographs.NAMES]),
        "resize": slider("short side, px", 32, most, short),
        "crop": slider("centre crop, px", 32, most, size),
        "scale": choice("scaling", SCALES),
        "normalise": choice("normalise", NORMALS, "none"),
        "order": choice("channels", ORDERS),
        "reset": widgets.Button(description="as in training", layout={"width": WIDTH}),
    }

    @cache
    def pixels_named(photo: str) -> Pixels:
        if photo != own:
            return photographs.picture(photo)
        # A scene is drawn larger than the model wants it, so that there is something to resize.
        drawn = isinstance(image, scenes.SceneSpec)
        return scenes.render(image, 2 * 128).image if drawn else pixels_of(image)

    def draw(photo: str, **steps: Any) -> Canvas:
        pixels, label = pixels_named(photo), image.label if is_scene and photo == own else ""
        mine, wanted = (prepare(classifier, pixels, **chosen) for chosen in (steps, right))
        return _prepared_canvas(
            classifier, pixels, steps["resize"], steps["crop"], mine, wanted, label
        )

    return Panel("preprocessing", controls, draw, linked={"reset": lambda _: right})


def prepare(
    classifier: Classifier,
    pixels: Pixels,
    *,
    resize: int,
    crop: int,
    scale: str,
    normalise: str,
    order: str,
) -> Tensor:
    """A picture (H, W, 3) as a model's input (1, 3, crop, crop), by the steps that were chosen."""
    x = images.to_tensor(pixels, crop, resize=resize, interpolation=classifier.interpolation)
    x = x * 255 if scale == SCALES[1] else x
    if normalise == "min–max of this picture":
        x = _stretched(x)
    elif normalise != "none":
        for _ in range(2 if normalise == "twice" else 1):
            x = images.normalize(x, classifier.mean, classifier.std)
    return x.flip(1) if order == ORDERS[1] else x


def _stretched(x: Tensor) -> Tensor:
    """Its smallest number 0, its largest 1."""
    return (x - x.min()) / (x.max() - x.min()).clamp_min(1e-6)


def _answers(classifier: Classifier, x: Tensor) -> list[tuple[str, float]]:
    """The classes with their probabilities, the most probable first."""
    with torch.no_grad():
        x = x.to(classifier.device, classifier.dtype)
        values, order = classifier.model(x).softmax(1)[0].sort(descending=True)
    names = [classifier.classes[index] for index in order.tolist()]
    return list(zip(names, values.tolist(), strict=True))


def _prepared_canvas(
    classifier: Classifier,
    pixels: Pixels,
    resize: int,
    crop: int,
    x: Tensor,
    expected: Tensor,
    label: str,
) -> Canvas:
    canvas, (height, width) = Canvas(960, 548), pixels.shape[:2]
    _marked_crop(canvas, pixels, resize, crop)
    people = images.to_image(
        images.to_tensor(pixels, crop, resize=resize, interpolation=classifier.interpolation)
    )
    below = f"{crop} × {crop} × 3, for people"
    canvas.figure(240, 0, 216, people, "2  resized and cropped", below)
    below, seen = "smallest black, largest white", images.to_image(_stretched(x))
    canvas.figure(480, 0, 216, seen, "3  what the model gets", below)
    _histogram(canvas, 740, 0, x[0], expected[0])
    mine, wanted = _answers(classifier, x), _answers(classifier, expected)
    below = "what the model answers when all is right"
    canvas.heading(0, 312, "prepared as in training", below)
    canvas.bars(0, 362, 460, with_truth(wanted, label), label)
    same = x.shape == expected.shape and bool(torch.allclose(x, expected))
    below = "the same numbers" if same else "not what the model was trained on"
    canvas.heading(500, 312, "prepared as set on the left", below)
    canvas.bars(500, 362, 460, with_truth(mine, label), label)
    canvas.alt = (
        f"A picture of {height} × {width} pixels resized and cropped to {crop} × {crop}; the "
        f"model gets numbers from {decimal(x.min().item())} to {decimal(x.max().item())} and "
        f"answers {mine[0][0]} ({mine[0][1]:.2f}); prepared as in training it answers "
        f"{wanted[0][0]} ({wanted[0][1]:.2f})."
    )
    return canvas


def _marked_crop(canvas: Canvas, pixels: Pixels, resize: int, crop: int) -> None:
    """The photo, and on it what the crop will keep."""
    height, width = pixels.shape[:2]
    zoom = 216 / max(height, width)
    below = f"{height} × {width} × 3, the crop marked"
    canvas.figure(0, 0, width * zoom, pixels, "1  the photo", below, smooth=True)
    half = zoom * crop * min(height, width) / resize / 2
    left, top = (max(0.0, side * zoom / 2 - half) for side in (width, height))
    wide, tall = (min(2 * half, side * zoom) for side in (width, height))
    canvas.box(left, 44 + top, wide, tall, edge=ORANGE, line=3)


def _histogram(canvas: Canvas, x: float, y: float, mine: Tensor, wanted: Tensor) -> None:
    """How often each number occurs, a line a channel, over the shade of what training gave."""
    low = min(float(mine.min()), float(wanted.min()))
    high = max(float(mine.max()), float(wanted.max()), low + 1e-3)
    bins = 55

    def heights(values: Tensor) -> Numbers:
        counts = np.histogram(values.numpy(), bins, (low, high))[0]
        return counts / max(counts.max(), 1)

    canvas.heading(x, y, "its numbers", "lines: yours; grey: training")
    plot = Plot(canvas, (x, y + 44, 220, 132), across=(0, bins))
    for column, height in enumerate(heights(wanted)):
        left, top = plot.at(column, height)
        canvas.box(left, top, 220 / bins, 132 * height, fill="#d5dade")
    for color, channel in zip(CHANNELS, mine, strict=True):
        tops = enumerate(heights(channel))
        plot.line([(column + end, top) for column, top in tops for end in (0, 1)], color, 1.5)
    base = y + 44 + 132
    canvas.box(x, base, 220, 1, fill=MUTED)
    apart = 0.25 < -low / (high - low) < 0.75  # else 0 is written over an end
    for value in (low, 0.0, high) if apart else (low, high):
        at = x + (value - low) / (high - low) * 220
        anchor = "la" if value == low else "ra" if value == high else "ma"
        canvas.text(at, base + 6, f"{value:.3g}".replace("-", "−"), size=12, anchor=anchor)
    for row, (name, values) in enumerate((("set on the left", mine), ("as in training", wanted))):
        mean, std = decimal(float(values.mean())), decimal(float(values.std()))
        canvas.text(x, base + 32 + 34 * row, name, size=12, bold=True)
        canvas.text(x, base + 48 + 34 * row, f"mean {mean}, std {std}", size=12, color=MUTED)
