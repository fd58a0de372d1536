"""Homework 01: the method matrix, and four maps of a photo of one's own."""

from collections.abc import Callable, Iterator, Set
from copy import deepcopy
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from course_utils import images, layers
from course_utils.homework import cases
from course_utils.homework.checks import (
    CHANNEL_LEFT,
    FIRST,
    LOSS,
    SQUEEZED,
    TRAINING,
    Exercise,
    Mistakes,
    compare,
    exercise,
    explain,
    tensor_of,
)
from course_utils.homework.guard import (
    GRADIENTS_LEFT,
    HOOKS_LEFT,
    NEEDS_GRADIENT,
    ON_THE_GRAPH,
    Answer,
    Wrong,
    after_an_error,
)
from course_utils.methods import METHODS, cam, gradients
from course_utils.worlds import scenes

# The method matrix ----------------------------------------------------------------------------

WORDS = ("specific", "agnostic"), ("local", "global")
ATTRIBUTIONS = (
    "occlusion",
    "input_x_gradient",
    "cam",
    "grad_cam",
    "integrated_gradients",
    "xrai",
    "lime_image",
    "shap_image",
    "deep_shap",
)
# Those that are no attribution: what they must look at, and what they are asked about.
OTHERS: dict[str, tuple[Set[str], str]] = {
    "activation_maximization": ({"gradients", "layers"}, "a unit"),
    "top_pictures_of_unit": ({"layers"}, "a unit"),
    "top_pictures_of_class": (set(), "a class"),
}
WHICH_MODEL = {
    "occlusion": "occlusion changes the picture. What else than the new answer must it see?",
    "input_x_gradient": "a backward pass needs more than answers. What would you do with a model "
    "behind a web address, to which you send a picture and get numbers back?",
    "cam": "where does CAM take its weights and its maps from?",
    "grad_cam": "that it runs on every CNN is not the question. What must it hook, and would it "
    "run on a model that is no network at all?",
    "integrated_gradients": "that it gives the same map for two networks with the same answers is "
    "one thing. What it asks of the model at every step of the path is another.",
    "xrai": "regions alone do not decide it: LIME has them, too. How does XRAI rank its regions?",
    "lime_image": "what is LIME's small model fitted to: to what is inside the network, or to "
    "pairs of a picture and an answer?",
    "shap_image": "Kernel SHAP plays a game with segments. Which number does it need to know of "
    "each coalition, and who can tell it?",
    "deep_shap": "two methods have SHAP in their names. How does this one get by with so few "
    "passes, and what does it have to know for that?",
    "activation_maximization": "each step of the ascent follows something. Where is that from?",
    "top_pictures_of_unit": "the pictures are sorted by the activation of a unit. Where is that?",
    "top_pictures_of_class": "the pictures are sorted by one number each. Does one have to look "
    "into the network to get it?",
}
WHICH_SCOPE = {
    "occlusion": "one map comes from covering one picture. Would it be true of another picture?",
    "cam": "the weights are the same for all pictures, but what are they multiplied with?",
    "integrated_gradients": "the baseline is a second picture. Whose answer is divided up?",
    "lime_image": "LIME fits a whole model, but where are its samples, and where is it right?",
    "shap_image": "averages of SHAP over a data set are something else. What is this one asked "
    "about, and whose segments are the players?",
    "activation_maximization": "a picture comes out of it. Does one go in, to be explained?",
    "top_pictures_of_unit": "pictures come out of it. Are they what is explained, or do they "
    "explain something else?",
    "top_pictures_of_class": "many pictures go in. Is it the answer to one of them that one wants "
    "to understand?",
}
ANY_SCOPE = "would what it shows be the same for the next picture? What is it that it explains?"
SWAPPED = "the order is (specific or agnostic, local or global)."


def matrix(wrong: str = "", column: int = 0, swapped: bool = False) -> dict[str, Any]:
    """What each method needs decides; `wrong` in `column` gets the other word."""
    placed = {}
    for name in (*ATTRIBUTIONS, *OTHERS):
        needs, about = OTHERS.get(name, (set(), "a picture"))
        if name in ATTRIBUTIONS:
            needs = METHODS[name].needs
        inside, one = bool({"gradients", "layers"} & needs), about == "a picture"
        row = [not inside, not one]
        row[column] ^= name == wrong
        words = tuple(pair[which] for pair, which in zip(WORDS, row, strict=True))
        placed[name] = words[::-1] if swapped else words
    return placed


MATRIX: Mistakes = {
    "swapped": ({"swapped": True}, SWAPPED),
    "another scope": ({"wrong": "grad_cam", "column": 1}, ANY_SCOPE),
    **{
        f"{name}: {WORDS[column]}": ({"wrong": name, "column": column}, hint)
        for column, hints in enumerate((WHICH_MODEL, WHICH_SCOPE))
        for name, hint in hints.items()
    },
}


@exercise("hw01.matrix", matrix, MATRIX, forbidden=("course_utils.methods",))
def check_matrix(answer: Answer, known: Exercise) -> Iterator[str]:
    """Two words for each of twelve methods."""
    placed, wanted = answer(), matrix()
    if not isinstance(placed, dict):
        kind = type(placed).__name__
        raise Wrong(f"the matrix is {kind}, wanted is a dict", "name: (…, …), for each method.")
    if set(placed) != set(wanted):
        odd = ", ".join(sorted(map(str, set(placed) ^ set(wanted))))
        raise Wrong("the matrix misses methods or has others", f"look at {odd}.")
    yield f"{len(wanted)} methods have a place"
    for name, place in placed.items():
        words = tuple(place) if isinstance(place, tuple | list) else (place,)
        if len(words) == 2 and words[0] in WORDS[1] and words[1] in WORDS[0]:
            raise Wrong(f"{name}: {place}", SWAPPED)
        if len(words) != 2 or words[0] not in WORDS[0] or words[1] not in WORDS[1]:
            pairs = " and ".join(" or ".join(map(repr, pair)) for pair in WORDS)
            raise Wrong(f"{name}: {place}", f"two words are wanted: {pairs}.")
    for column, (what, hints) in enumerate((("model", WHICH_MODEL), ("scope", WHICH_SCOPE))):
        wrong = [name for name in wanted if placed[name][column] != wanted[name][column]]
        if wrong:
            hint = hints.get(wrong[0], ANY_SCOPE)
            count = f"{len(wrong)} of {len(wanted)} words on the {what}"
            raise Wrong(f"{count} are not right, the first is that of {wrong[0]}", hint)
        yield f"the words on the {what} are right"


# A photo becomes the network's input ----------------------------------------------------------


def prepare(
    picture: NDArray[np.uint8],
    size: int,
    mean: Any,
    std: Any,
    *,
    fit: str = "short",
    whole: Callable[[float], int] = round,
    corner: bool = False,
    mix: bool = False,
    flip: bool = False,
    turn: bool = False,
    scale: float | None = 255.0,
    normal: str = "mean and std",
    fixed: bool = False,
    double: bool = False,
    batch: bool = True,
) -> Tensor:
    """A picture (H, W, 3) in model space, (1, 3, size, size)."""
    from torchvision.transforms.functional import center_crop

    height, width = picture.shape[:2]
    x = torch.tensor(picture).permute(2, 0, 1)[None].float()
    if mix:
        x = torch.tensor(picture).reshape(1, 3, height, width).float()
    x = x.flip(1) if flip else x
    x = x.mT if turn else x
    height, width = x.shape[2:]
    short = min(height, width)
    factor = size / short
    scaled = whole(height * factor), whole(width * factor)
    wide = {
        "short": scaled,
        "short, if there is one": (height, width) if height == width else scaled,
        "stretched": (size, size),
        "cut": (height, width),
    }[fit]
    x = F.interpolate(x, wide, mode="bilinear", align_corners=False, antialias=True)
    x = x / (scale or x.amax().clamp(min=1))
    x = x[:, :, :size, :size] if corner else center_crop(x, [size, size])
    mean, std = (0.5, 0.25) if fixed else (mean, std)
    m, s = (torch.tensor(values).view(1, -1, 1, 1) for values in (mean, std))
    if normal == "mean and std":
        x = (x - m) / s
    elif normal == "min and max":
        x = (x - x.amin()) / (x.amax() - x.amin())
    elif normal == "inverse":
        x = x * s + m
    return (x.double() if double else x)[slice(None) if batch else 0]


PREPARE: Mistakes = {
    "stretched": (
        {"fit": "stretched"},
        "a photo that is wider than high is squeezed: what happens to a ball?",
    ),
    "only cut": (
        {"fit": "cut"},
        "the square is cut from the photo as it is; of a large photo that is a small piece. What "
        "comes before the cut?",
    ),
    "square": (
        {"fit": "short, if there is one"},
        "a square photo is not resized: its sides must become size, too.",
    ),
    "cut down": (
        {"whole": int},
        "for some photos the short side is a pixel too small: int() makes 63 of 63.999; round it.",
    ),
    "corner": ({"corner": True}, "the square is cut at the top left."),
    "reshaped": (
        {"mix": True},
        "reshape and view keep the order of the numbers in memory, and so they mix colours and "
        "places; another function puts the axes into another order.",
    ),
    "turned": ({"turn": True}, "rows and columns have changed places: the photo lies on its side."),
    "fixed": (
        {"fixed": True},
        "mean and std are arguments: other models have others, one for each channel.",
    ),
    "blue first": ({"flip": True}, "red and blue have changed places."),
    "bytes": ({"scale": 1.0}, "mean and std are of pixels from 0 to 1; which range do yours have?"),
    "256": (
        {"scale": 256.0},
        "the numbers are a little too small: the largest byte is 255, and it must become 1.",
    ),
    "own maximum": (
        {"scale": None},
        "each photo is divided by its own brightest pixel, so that a dark photo looks like a "
        "bright one. White is 255, in every photo.",
    ),
    "not normalised": (
        {"normal": "none"},
        "the numbers are still those of pixels; the network was trained on others.",
    ),
    "min and max": (
        {"normal": "min and max"},
        "each photo is scaled by its own darkest and brightest pixel, so that a dark photo looks "
        "like a bright one. The network was trained with fixed numbers.",
    ),
    "inverse": ({"normal": "inverse"}, "this is the way back, from model space to pixels."),
    "no batch": (
        {"batch": False},
        "a network takes a batch, of one picture too: which axis is missing?",
    ),
    "double": (
        {"double": True},
        "NumPy's floats are float64 and the network's weights are float32; they do not mix.",
    ),
}


def _pictures() -> list[dict[str, Any]]:
    """Smooth pictures: how exactly one resizes does not show in them, where and what does.

    The first one's short side times its factor is 63.99… in floats, not 64; the second one is dark,
    the fourth square. In the last one, of one colour, nothing shows but that.
    """
    pictures = []
    shapes = [(98, 300, 64), (210, 90, 48), (40, 50, 64), (80, 80, 48), (30, 50, 40)]
    for seed, (height, width, size) in enumerate(shapes):
        draw = np.random.default_rng(cases.moved(seed))
        x, y = np.linspace(-1, 1, width)[:, None], np.linspace(-1, 1, height)[:, None, None]
        slopes = draw.uniform(40, 80, (2, 3)) * draw.choice([-1, 1], (2, 3))
        pixels = 128 + slopes[0] * x + slopes[1] * y
        pixels = [pixels, pixels / 2, pixels, pixels, draw.uniform(180, 240, 3) + 0 * pixels][seed]
        mean, std = draw.uniform(0.3, 0.6, 3).tolist(), draw.uniform(0.2, 0.3, 3).tolist()
        picture = np.rint(pixels.clip(0, 255)).astype(np.uint8)
        pictures.append({"picture": picture, "size": size, "mean": mean, "std": std})
    return pictures


def _reference(picture: NDArray[np.uint8], size: int, mean: Any, std: Any) -> Tensor:
    m, s = (torch.tensor(values, dtype=torch.float64).view(1, 3, 1, 1) for values in (mean, std))
    return (images.to_tensor(picture, size) - m) / s


@exercise("hw01.prepare", prepare, PREPARE, forbidden=("course_utils.images",))
def check_prepare(answer: Answer, known: Exercise) -> Iterator[str]:
    """Smooth pictures, and a plain one, against the library's own steps."""
    *pictures, plain = _pictures()
    for some, tolerance in ((pictures, 0.05), ([plain], 0.002)):
        compare(
            answer,
            known,
            some,
            reference=_reference,
            what="the input",
            hint="the steps are: short side to size (rounded; int() makes 63 of 63.999), square "
            "from the middle, 0 to 1, (x − mean) / std; look at shape, min and max after each.",
            tolerance=tolerance,
        )
    yield "a wide, a high, a small and a plain picture become what the network was trained on"
    if any(answer(**case).dtype != torch.float32 for case in pictures):
        raise Wrong("the input is not of type float32", known.hint("double"))
    yield "the type fits"


# Networks and images --------------------------------------------------------------------------


def last_linear(model: nn.Module) -> nn.Linear:
    """The linear layer at the end, whatever its name; the notebook has the same function."""
    return [module for module in model.modules() if isinstance(module, nn.Linear)][-1]


def _networks() -> list[dict[str, Any]]:
    """Two networks, and images of each; not all targets are the answers.

    The numbers of pixels, 1701 and 5301, make the 0.99 quantile the value of one pixel.
    """
    shipped = cases.shipped()
    names = cases.chosen(("zebra", "football"), ("crow", "umbrella"), ("tiger", "ladybird"))
    shown = [scenes.render(scenes.standard(name), 93).image for name in names]
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (shipped.mean, shipped.std))
    scene = torch.cat([(images.to_tensor(picture[20:77]) - mean) / std for picture in shown])
    return [
        {
            "model": cases.pooled(),
            "images": cases.noise(3, 3, 27, 63),
            "target": torch.tensor([2, 6, 4]),
        },
        {"model": shipped.model, "images": scene, "target": torch.tensor([0, 3])},
    ]


def _alone(case: dict[str, Any]) -> dict[str, Any]:
    """The case with its first image only."""
    return {key: v[:1] if isinstance(v, Tensor) else v for key, v in case.items()}


def _at_layers() -> list[dict[str, Any]]:
    """Those, each with the layer that enters its pooling."""
    return [{**case, "layer": name} for case, name in zip(_networks(), LAST, strict=True)]


LAST = "body", "layer4"


# Gradient × Input -----------------------------------------------------------------------------


def input_x_gradient(
    model: nn.Module,
    images: Tensor,
    target: Tensor,
    *,
    of: str = "target",
    times: str = "input",
    clean: bool = True,
    training: bool = False,
    own: bool = True,
) -> Tensor:
    """x · ∂f_c / ∂x, (N, 3, H, W)."""
    model = deepcopy(model).train() if training else model
    x = (images.detach().clone() if own else images).requires_grad_()
    logits = model(x)
    rows = torch.arange(len(x))
    score = {
        "target": lambda: logits[rows, target].sum(),
        "probability": lambda: logits.softmax(1)[rows, target].sum(),
        "answer": lambda: logits.amax(1).sum(),
        "all targets": lambda: logits[:, target].sum(),
        "mean": lambda: logits[rows, target].mean(),
        "all classes": lambda: logits.sum(),
        "first": lambda: logits[:, target[0]].sum(),
        "loss": lambda: F.cross_entropy(logits, target),
    }[of]()
    if clean:
        (slope,) = torch.autograd.grad(score, x)
    else:
        score.backward()
        assert x.grad is not None
        slope = x.grad
    return {
        "input": lambda: images.detach() * slope,
        "copy": lambda: x * slope,
        "nothing": lambda: slope,
        "magnitude": lambda: (images * slope).abs(),
        "channels": lambda: (images * slope).sum(1),
    }[times]()


INPUT_X_GRADIENT: Mistakes = {
    "gradient": ({"times": "nothing"}, "this is sensitivity; the method's name has two parts."),
    "magnitude": (
        {"times": "magnitude"},
        "contributions have a sign: what speaks against the class must stay negative.",
    ),
    "channels": (
        {"times": "channels"},
        "keep the three channels here; the next exercise makes one number a pixel of them.",
    ),
    "probability": (
        {"of": "probability"},
        "this is of the probability, which is flat where the network is sure; explain the logit.",
    ),
    "answer": (
        {"of": "answer"},
        "this explains what each image's answer is, whatever target says.",
    ),
    "all targets": (
        {"of": "all targets"},
        "logits[:, target] takes all targets of every image: a table. Of each row one number is "
        "wanted, that image's own.",
    ),
    "all classes": ({"of": "all classes"}, "all logits went into the sum; where is the target?"),
    "mean": (
        {"of": "mean"},
        "with more images in the batch the map gets weaker. Which number do you differentiate?",
    ),
    "first": ({"of": "first"}, FIRST),
    "loss": ({"of": "loss"}, LOSS),
    "training": ({"training": True}, TRAINING),
    "backward": ({"clean": False}, GRADIENTS_LEFT),
    "on the graph": ({"times": "copy"}, ON_THE_GRAPH),
    "on the images": ({"own": False}, NEEDS_GRADIENT),
}


@exercise(
    "hw01.input_x_gradient",
    input_x_gradient,
    INPUT_X_GRADIENT,
    forbidden=("course_utils.methods.gradients", "captum"),
)
def check_input_x_gradient(answer: Answer, known: Exercise) -> Iterator[str]:
    """The library's, on two networks."""
    networks = _networks()
    compare(
        answer,
        known,
        networks,
        reference=gradients.input_x_gradient,
        what="the attribution",
        hint="check each part alone: the logit of each image's target, its gradient with respect "
        "to the images, the product.",
    )
    yield "x · ∂f_c/∂x for every image and its own target, on two networks"
    after_an_error(answer, networks[0])
    yield "nothing is left on the model and the images"


# One number a pixel ---------------------------------------------------------------------------


def to_map(
    attribution: Tensor,
    quantile: float = 0.99,
    *,
    first: str = "sum",
    limit: str = "quantile",
    clip: bool = True,
    safe: bool = True,
    add: float = 0.0,
    detach: bool = True,
    finish: Callable[[Tensor], Tensor] = lambda m: m,
) -> Tensor:
    """The signed sum over the channels, to −1 … 1 with 0 at 0."""
    a = attribution.detach() if detach else attribution
    if first == "scale":
        low, high = a.amin((1, 2, 3), keepdim=True), a.amax((1, 2, 3), keepdim=True)
        a = (a - low) / (high - low)
    a = a.abs() if first in ("abs", "max") else a
    m = a.amax(1) if first == "max" else a.sum(1)
    if limit == "min and max":
        low, high = m.amin((1, 2), keepdim=True), m.amax((1, 2), keepdim=True)
        return (m - low) / (high - low)
    rows = (m if limit == "signed" else m.abs()).flatten(1)
    rows = rows.flatten()[None] if limit == "batch" else rows
    q = {"largest": 1.0, "fixed": 0.99}.get(limit, quantile)
    top = rows.quantile(q, dim=1)[:, None, None] + add
    m = m / (torch.where(top > 0, top, 1) if safe else top)
    return finish(m.clamp(-1, 1) if clip else m)


EPSILON = (
    "a number is added to the limit, or the limit has a least value, so that an attribution of "
    "small numbers gets a pale map. Only a limit of exactly 0 is to be replaced."
)
OTHERS_ZERO = (
    "each map has a limit of its own, also where the limit of another one in the batch is 0."
)

TO_MAP: Mistakes = {
    "scale first": (
        {"first": "scale"},
        "after min–max scaling zero is no longer zero and nothing is negative: aggregate first.",
    ),
    "abs first": (
        {"first": "abs"},
        "with magnitudes, what speaks against the class looks like what speaks for it.",
    ),
    "maximum": (
        {"first": "max"},
        "the strongest channel is not the sum of what the three contribute.",
    ),
    "min and max": (
        {"limit": "min and max"},
        "where is zero in your map? It must stay at 0, or the colours lie about the sign.",
    ),
    "largest": (
        {"limit": "largest"},
        "a single extreme pixel sets the scale; what is the quantile for?",
    ),
    "signed": (
        {"limit": "signed"},
        "a quantile of signed numbers looks at one end only. Of what should it be taken, if the "
        "most negative pixels count as much as the most positive?",
    ),
    "batch": (
        {"limit": "batch"},
        "one limit for the whole batch: so a map depends on the other images. Each has its own.",
    ),
    "fixed": (
        {"limit": "fixed"},
        "quantile is an argument; another value than 0.99 must have an effect.",
    ),
    "not clipped": ({"clip": False}, "some values are still beyond −1 or 1."),
    "channel left": ({"finish": lambda m: m[:, None]}, CHANNEL_LEFT),
    "squeezed": ({"finish": torch.squeeze}, SQUEEZED),
    "zero": ({"safe": False}, "a map may be zero everywhere, and then its limit is zero: 0 / 0."),
    "epsilon": ({"add": 1e-3}, EPSILON),
    "zero for all": (
        {"finish": lambda m: m * m.flatten(1).any(1).all()},
        OTHERS_ZERO,
    ),
    "on the graph": ({"detach": False}, ON_THE_GRAPH),
}


@exercise("hw01.to_map", to_map, TO_MAP, forbidden=("course_utils.panels", "course_utils.plotting"))
def check_to_map(answer: Answer, known: Exercise) -> Iterator[str]:
    """Noise with heavy tails, of one and of three channels, small numbers, and maps of zeros."""
    # 73 · 137 = 10,001 pixels: these quantiles are pixels' values, not between two of them.
    noise = cases.noise(3, 3, 73, 137)
    heavy = noise**3 * torch.tensor([1.0, 100.0, 0.01]).view(3, 1, 1, 1) + 0.1 * noise[:1] ** 2
    compare(
        answer,
        known,
        [
            {"attribution": heavy, "quantile": 0.99},
            {"attribution": heavy, "quantile": 0.9},
            {"attribution": noise[:2, :1] - 0.5, "quantile": 0.99},
            {"attribution": heavy[1:2], "quantile": 0.95},
        ],
        what="the map",
        hint="in this order: sum over the channels; for each image the quantile of the magnitudes; "
        "divide; cut at −1 and 1.",
        tolerance=0.01,
    )
    small = [tensor_of(answer(attribution=scale * heavy), "the map") for scale in (1e-5, 1.0)]
    if (small[0] - small[1]).abs().max() > 0.01:
        raise Wrong("the same attribution times 0.00001 has another map", EPSILON)
    answer(attribution=noise.clone().requires_grad_())  # the guard looks what hangs on a graph
    yield "the signed sum over the channels, each image on its own scale"
    _check_zeros(answer, known)
    yield "zero stays zero"


def _check_zeros(answer: Answer, known: Exercise) -> None:
    """A map of zeros stays one, alone and beside another map, which stays as it is alone."""
    blank = torch.zeros(1, 3, 5, 7)
    if not torch.equal(tensor_of(answer(attribution=blank), "the map"), blank[:, 0].double()):
        raise Wrong("a map of zeros does not stay a map of zeros", known.hint("zero"))
    other = cases.noise(1, 3, 5, 7, seed=1)
    beside = tensor_of(answer(attribution=torch.cat([blank, other])), "the map")
    if not beside.isfinite().all():
        raise Wrong("a map of zeros beside another one gets NaN", known.hint("zero"))
    alone = tensor_of(answer(attribution=other), "the map")
    if beside[0].any() or (beside[1] - alone[0]).abs().max() > 0.01:
        raise Wrong("a map and a map of zeros are not in one batch what each is alone", OTHERS_ZERO)


# CAM ------------------------------------------------------------------------------------------


def class_activation_map(
    model: Any,
    images: Tensor,
    target: Tensor,
    layer: str,
    *,
    relu: str = "",
    weights: str = "target",
    then: str = "",
    clean: bool = True,
) -> Tensor:
    """Σ_k w_ck · A_k, (N, h, w)."""
    if not clean:
        layers.find(model, layer).register_forward_hook(lambda *_: None)
    with layers.capture(model, layer) as activations, torch.no_grad():
        logits = model(images)
    maps, classes = activations[layer], logits.argmax(1) if weights == "answer" else target
    classes = target[:1].expand_as(target) if weights == "first" else classes
    head = _first_linear(model) if weights == "first layer" else last_linear(model)
    w = head.weight.detach()[classes][:, :, None, None]
    w = torch.ones_like(w) if weights == "none" else w
    terms = w * maps
    m = (terms.relu() if relu == "inside" else terms).sum(1)
    m = m.relu() if relu == "after" else m
    return {
        "": lambda: m,
        "mean": lambda: m / m[0].numel(),
        "bias": lambda: m + last_linear(model).bias.detach()[classes][:, None, None],
        "scaled": lambda: m / m.abs().amax((1, 2), keepdim=True),
        "large": lambda: F.interpolate(m[:, None], images.shape[2:], mode="bilinear")[:, 0],
        "channel": lambda: m[:, None],
        "squeezed": lambda: m.squeeze(),
    }[then]()


def _first_linear(model: nn.Module) -> nn.Linear:
    return next(module for module in model.modules() if isinstance(module, nn.Linear))


def _last_conv(model: Any, images: Tensor, target: Tensor, layer: str) -> Tensor:
    return class_activation_map(model, images, target, layers.last_conv(model))


CLASS_ACTIVATION_MAP: Mistakes = {
    "ReLU inside": (
        {"relu": "inside"},
        "a ReLU inside the sum throws away what speaks against the class, place by place.",
    ),
    "ReLU after": (
        {"relu": "after"},
        "CAM has no ReLU; without its negative parts the mean is not the logit.",
    ),
    "no weights": (
        {"weights": "none"},
        "this is the same map for every class: where do the classes' weights come in?",
    ),
    "answer": (
        {"weights": "answer"},
        "this takes the weights of each image's answer, whatever target says.",
    ),
    "mean": (
        {"then": "mean"},
        "the map is too small by the number of its places. The mean over the places comes "
        "afterwards, when one wants the logit.",
    ),
    "bias": (
        {"then": "bias"},
        "the bias belongs to no place. It is not in the map; it is added to the map's mean.",
    ),
    "scaled": ({"then": "scaled"}, "the map is scaled for looks and has lost its unit, the logit."),
    "large": (
        {"then": "large"},
        "the map has been enlarged; here the places of the feature maps are wanted.",
    ),
    "last convolution": (
        _last_conv,
        "these are the maps of the last convolution. What comes after it in its block? Take what "
        "enters the pooling: the layer that is named.",
    ),
    "first": ({"weights": "first"}, FIRST),
    "first linear layer": (
        {"weights": "first layer"},
        "a network may have linear layers inside, too. The weights are those of the last one, "
        "which makes the logits: last_linear finds it.",
    ),
    "channel left": ({"then": "channel"}, CHANNEL_LEFT),
    "squeezed": ({"then": "squeezed"}, SQUEEZED),
    "hook": ({"clean": False}, HOOKS_LEFT),
}


def _reference_cam(model: nn.Module, images: Tensor, target: Tensor, layer: str) -> Tensor:
    return cam.cam(model, images, target, upsample=False)


@exercise(
    "hw01.class_activation_map",
    class_activation_map,
    CLASS_ACTIVATION_MAP,
    forbidden=("course_utils.methods.cam", "captum", "pytorch_grad_cam"),
)
def check_class_activation_map(answer: Answer, known: Exercise) -> Iterator[str]:
    """The library's, and mean(CAM) + b."""
    networks = _at_layers()
    compare(
        answer,
        known,
        [*networks, _alone(networks[0])],
        reference=_reference_cam,
        what="the map",
        hint="print the shapes: maps (N, K, h, w), the target's weights (N, K), their products "
        "added up over k.",
    )
    yield "Σ_k w_ck · A_k for every image and its own target, on two networks, and for one image"
    for case in networks:
        model, x, target, _ = case.values()
        with torch.no_grad():
            logit = model(x).gather(1, target[:, None])[:, 0].double()
        mean = tensor_of(answer(**case), "the map").mean((1, 2))
        if not torch.allclose(mean + last_linear(model).bias[target], logit, atol=1e-3):
            raise Wrong(
                "mean(CAM) + b is not the logit", "what is missing, or too much, everywhere?"
            )
    yield "mean(CAM) + b is the logit, to 0.001"
    after_an_error(answer, networks[0])
    yield "nothing is left on the model and the images"


# The four maps --------------------------------------------------------------------------------

NAMES = ("input_x_gradient", "cam", "grad_cam", "integrated_gradients")


def four_maps(
    model: nn.Module,
    images: Tensor,
    target: Tensor,
    baseline: Any,
    layer: str,
    *,
    own: tuple[str, ...] = (),
    one: bool = False,
    grey: bool = False,
    relu: bool = True,
    steps: int = 32,
    raw: bool = False,
    magnitude: bool = False,
    large: bool = True,
) -> dict[str, Tensor]:
    """Four methods, one class, one way to show."""
    target = target[:1].expand_as(target) if one else target
    of = {name: None if name in own else target for name in NAMES}
    baseline = 0.0 if grey else baseline
    attributions = (
        gradients.input_x_gradient(model, images, of["input_x_gradient"]),
        cam.cam(model, images, of["cam"], upsample=large)[:, None],
        cam.grad_cam(model, images, of["grad_cam"], layer=layer, relu=relu, upsample=large)[
            :, None
        ],
        gradients.integrated_gradients(
            model,
            images,
            of["integrated_gradients"],
            baseline=baseline,
            steps=steps,
        ),
    )
    if magnitude:
        attributions = tuple(a.abs() for a in attributions)  # type: ignore[assignment]
    maps = [a.sum(1) if raw else to_map(a) for a in attributions]
    return dict(zip(NAMES, maps, strict=True))


FOUR_MAPS: Mistakes = {
    "no target": (
        {"own": NAMES},
        "each map explains its image's own answer. What is the argument target for?",
    ),
    "first": ({"one": True}, FIRST),
    "two classes": (
        {"own": NAMES[2:]},
        "the maps do not explain the same class. A method that is told no target takes the answer.",
    ),
    "grey": (
        {"grey": True},
        "Integrated Gradients starts from grey, its default, and not from the baseline.",
    ),
    "one step": (
        {"steps": 1},
        "one gradient is not a path: how many steps does Integrated Gradients take?",
    ),
    "more steps": (
        {"steps": 50},
        "Integrated Gradients has taken another number of steps; the text asks for the library's "
        "usual one, which it takes when it is told none.",
    ),
    "no ReLU": ({"relu": False}, "Grad-CAM, as its paper has it, is never negative."),
    "raw": (
        {"raw": True},
        "the maps are in four different units; to_map makes them comparable to look at.",
    ),
    "magnitude": (
        {"magnitude": True},
        "the sign is gone: what speaks against the class looks like what speaks for it.",
    ),
    "small": (
        {"large": False},
        "CAM and Grad-CAM are as small as the feature maps; enlarge them to the image's height "
        "and width.",
    ),
}


def _maps_of(result: object, case: dict[str, Any], known: Exercise) -> dict[str, Tensor]:
    """What came, if it is four maps of the right shape."""
    if not isinstance(result, dict) or set(result) != set(NAMES):
        came = ", ".join(map(str, result)) if isinstance(result, dict) else type(result).__name__
        hint = f"wanted is a dict with the names {', '.join(NAMES)}."
        raise Wrong(f"the result is {came}", hint)
    n, _, height, width = case["images"].shape
    for name, m in result.items():
        shape = tuple(tensor_of(m, name).shape)
        if shape != (n, height, width):
            small = len(shape) == 3 and shape[0] == n and shape[1] < height
            hint = known.hint("small") if small else "one map (H, W) an image."
            raise Wrong(f"{name} is {shape}, wanted is {(n, height, width)}", hint)
    return {name: tensor_of(result[name], name) for name in NAMES}


def _near(one: dict[str, Tensor], other: dict[str, Tensor], name: str) -> bool:
    """Whether two maps are one; two ways to take a quantile, or to enlarge, differ a little."""
    if one[name].shape != other[name].shape:
        return False
    off, size = (one[name] - other[name]).abs().mean(), other[name].abs().mean()
    return bool(off <= 0.01 * size)


def _all_near(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return all(_near(one, other, name) for name in NAMES)


@cases.once
def _asked() -> tuple[list[dict[str, Any]], list[dict[str, Tensor]]]:
    """The networks from a baseline that is not 0, and the four maps of each."""
    starts = torch.full((1, 3, 1, 1), 2.0), torch.full((1, 3, 1, 1), -2.0)  # the latter is black
    asked = [{**case, "baseline": b} for case, b in zip(_at_layers(), starts, strict=True)]
    return asked, [four_maps(**case) for case in asked]


@exercise("hw01.four_maps", four_maps, FOUR_MAPS)
def check_four_maps(answer: Answer, known: Exercise) -> Iterator[str]:
    """Four maps of two networks, from a baseline that is not 0."""
    asked, wanted = _asked()
    got = [_maps_of(answer(**case), case, known) for case in asked]
    yield "four maps as large as the images"
    wrong = [name for name in NAMES if not all(map(_near, got, wanted, (name, name)))]
    if wrong:
        hint = f"look at {wrong[0]} alone, and at what its function is told."
        raise Wrong(
            f"these maps are not as wanted: {', '.join(wrong)}",
            explain(got, known, asked, same=_all_near, hint=hint),
        )
    after_an_error(answer, asked[0])
    yield "each explains the target, shown in the same way; the path starts at the baseline"
