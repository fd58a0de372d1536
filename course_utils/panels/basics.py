"""Panels of the first lectures: convolution, preprocessing, the scene editor."""

from dataclasses import fields, replace
from functools import cache
from typing import Any

import ipywidgets as widgets
import numpy as np
import torch
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from torch.nn import functional as F

from course_utils import images, layers, models, photographs, plotting, scenes
from course_utils.panels.base import (
    WIDTH,
    Canvas,
    Panel,
    choice,
    classifier_of,
    decimal,
    pixels_of,
    slider,
    typical,
    with_truth,
)
from course_utils.plotting import BLUE, MUTED, ORANGE

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
    classifier = classifier_of(model)
    conv = next(iter(layers.conv_layers(classifier.model).values()), None)
    if conv is None or conv.in_channels != 3:
        raise ValueError(
            f"model: {classifier.name} has no convolution that reads a colour picture."
        )
    weights = conv.weight.detach().cpu().numpy()
    biases = np.zeros(len(weights)) if conv.bias is None else conv.bias.detach().cpu().numpy()
    shown = typical(classifier) if image is None else image
    normalised = classifier.to_input(pixels_of(shown))[0].cpu()
    picture = classifier.to_image(normalised)
    grey = picture @ np.array([0.299, 0.587, 0.114]) / 255
    side = max(8, conv.kernel_size[0])
    edge, start = classifier.size - side, "Sobel x (vertical edges)"
    cells = {f"w{row}{column}": (row, column) for row in range(3) for column in range(3)}
    controls: dict[str, Any] = {
        "kernel": choice("kernel", [*KERNELS, LEARNED, BY_HAND], start),
        **{name: _cell(*at, KERNELS[start][at[0]][at[1]]) for name, at in cells.items()},
        "filter": slider("learned filter", 0, len(weights) - 1, 0),
        "stride": slider("stride s", 1, 4, 1),
        "padding": slider("padding p", 0, 3, 1),
        "position": slider("position", 1, side**2, 29),
        "left": slider("patch, from left", 0, edge, edge // 2),
        "top": slider("patch, from top", 0, edge, edge // 2),
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
            f"the products add up to {decimal(output[row, column])}."
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
    canvas.text(490, middle, f"sum = {decimal(total + bias)}", size=24, bold=True, anchor="lm")
    count = f"{k} × {k}" + (" × 3 channels" if channels == 3 else "")
    canvas.text(490, middle + 24, f"{count} = {weight.size} products: a dot product", color=MUTED)
    if bias:
        parts = f"{decimal(total)}, and the filter's bias {decimal(bias)}"
        canvas.text(490, middle + 44, parts, color=MUTED)


def _most(values: NDArray[np.floating[Any]]) -> float:
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
    scene = isinstance(image, scenes.SceneSpec | scenes.Scene)
    photos = {"the scene" if scene else "your picture": image}
    size, short = classifier.size, classifier.resize or classifier.size
    most = 2 * max(size, short)
    controls: dict[str, Any] = {
        "photo": choice("picture", [*photos, *photographs.NAMES]),
        "resize": slider("short side, px", 32, most, short),
        "crop": slider("centre crop, px", 32, most, size),
        "scale": choice("scaling", SCALES),
        "normalise": choice("normalise", NORMALS, "none"),
        "order": choice("channels", ORDERS),
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
            return photographs.picture(photo)
        # A scene is drawn larger than the model wants it, so that there is something to resize.
        drawn = isinstance(image, scenes.SceneSpec)
        return scenes.render(image, 2 * 128).image if drawn else pixels_of(image)

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
        canvas.bars(0, 362, 460, with_truth(wanted, label), label)
        same = x.shape == expected.shape and bool(torch.allclose(x, expected))
        canvas.heading(
            500,
            312,
            "prepared as set on the left",
            "the same numbers" if same else "not what the model was trained on",
        )
        canvas.bars(500, 362, 460, with_truth(mine, label), label)
        canvas.alt = (
            f"A picture of {height} × {width} pixels resized and cropped to {crop} × {crop}; the "
            f"model gets numbers from {decimal(x.min().item())} to {decimal(x.max().item())} and "
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
        mean, std = decimal(float(values.mean())), decimal(float(values.std()))
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
    "mark": "photographer's mark",
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
        "mark",
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
    classifier = classifier_of(model)
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
        answers = with_truth(classifier.predict(pixels, len(classifier.classes)), spec.label)
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
        return choice(shown, scenes.CHOICES[name], value)
    if name == "seed":
        low, high = scenes.RANGES[name]
        return widgets.BoundedIntText(value, min=int(low), max=int(high), **common)
    if name in scenes.RANGES:
        low, high = scenes.RANGES[name]
        return slider(shown, low, high, value, 1 if high - low > 100 else 0.01)
    if name in ("flip", "mark"):
        return widgets.Checkbox(value, **common)
    if name == "removed":
        return widgets.SelectMultiple(options=value, value=value, rows=8, **common)
    return widgets.ColorPicker(value=value, **common)
