"""Homework 01: the method matrix, and four maps of a photo of one's own."""

import copy
from collections.abc import Iterator, Set
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from course_utils import cam, gradients, images, layers, models, scenes
from course_utils.homework.checks import (
    GRADIENTS_LEFT,
    HOOKS_LEFT,
    Answer,
    Mistake,
    Wrong,
    compare,
    exercise,
    tensor_of,
    untouched,
)
from course_utils.methods import METHODS

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


def _matrix(wrong: str = "", column: int = 0, swapped: bool = False) -> dict[str, Any]:
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


@exercise(
    "hw01.matrix",
    Mistake("swapped", partial(_matrix, swapped=True), SWAPPED),
    *(
        Mistake(f"{name}: {WORDS[column]}", partial(_matrix, name, column), hint)
        for column, hints in enumerate((WHICH_MODEL, WHICH_SCOPE))
        for name, hint in hints.items()
    ),
    Mistake("another scope", partial(_matrix, "grad_cam", 1), ANY_SCOPE),
    forbidden=("course_utils.methods",),
)
def _check_matrix(answer: Answer) -> Iterator[str]:
    placed, wanted = answer(), _matrix()
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


def _kept(answer: Answer, name: str) -> Answer:
    """The answer, which is refused where it changes what it was given under this name."""

    def kept(**case: Any) -> Any:
        before = copy.deepcopy(case[name])
        result = answer(**case)
        if not np.array_equal(before, case[name]):
            raise Wrong(f"the {name} has changed", "work on a copy: a = a / b, not a /= b.")
        return result

    return kept


# A photo becomes the network's input ----------------------------------------------------------


def _prepare(
    picture: NDArray[np.uint8],
    size: int,
    mean: Any,
    std: Any,
    *,
    fit: str = "short",
    corner: bool = False,
    mix: bool = False,
    flip: bool = False,
    turn: bool = False,
    scale: float = 255.0,
    normal: str = "mean and std",
    fixed: bool = False,
    double: bool = False,
    batch: bool = True,
) -> Tensor:
    """A picture (H, W, 3) in model space, (1, 3, size, size); each option is a mistake."""
    from torchvision.transforms.functional import center_crop

    height, width = picture.shape[:2]
    x = torch.tensor(picture).permute(2, 0, 1)[None].float()
    if mix:
        x = torch.tensor(picture).reshape(1, 3, height, width).float()
    x = x.flip(1) if flip else x
    x = x.mT if turn else x
    height, width = x.shape[2:]
    short = min(height, width)
    wide = {
        "short": (round(height * size / short), round(width * size / short)),
        "stretched": (size, size),
        "cut": (height, width),
    }[fit]
    x = F.interpolate(x, wide, mode="bilinear", align_corners=False, antialias=True) / scale
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


PREPARE = (
    Mistake(
        "stretched",
        partial(_prepare, fit="stretched"),
        "a photo that is wider than high is squeezed: what happens to a ball?",
    ),
    Mistake(
        "only cut",
        partial(_prepare, fit="cut"),
        "the square is cut from the photo as it is; of a large photo that is a small piece. What "
        "comes before the cut?",
    ),
    Mistake("corner", partial(_prepare, corner=True), "the square is cut at the top left."),
    Mistake(
        "reshaped",
        partial(_prepare, mix=True),
        "reshape and view keep the order of the numbers in memory, and so they mix colours and "
        "places; another function puts the axes into another order.",
    ),
    Mistake(
        "turned",
        partial(_prepare, turn=True),
        "rows and columns have changed places: the photo lies on its side.",
    ),
    Mistake(
        "fixed",
        partial(_prepare, fixed=True),
        "mean and std are arguments: other models have others, one for each channel.",
    ),
    Mistake("blue first", partial(_prepare, flip=True), "red and blue have changed places."),
    Mistake(
        "bytes",
        partial(_prepare, scale=1.0),
        "mean and std are of pixels from 0 to 1; which range do yours have?",
    ),
    Mistake(
        "not normalised",
        partial(_prepare, normal="none"),
        "the numbers are still those of pixels; the network was trained on others.",
    ),
    Mistake(
        "min and max",
        partial(_prepare, normal="min and max"),
        "each photo is scaled by its own darkest and brightest pixel, so that a dark photo looks "
        "like a bright one. The network was trained with fixed numbers.",
    ),
    Mistake(
        "inverse",
        partial(_prepare, normal="inverse"),
        "this is the way back, from model space to pixels.",
    ),
    Mistake(
        "no batch",
        partial(_prepare, batch=False),
        "a network takes a batch, of one picture too: which axis is missing?",
    ),
    Mistake(
        "double",
        partial(_prepare, double=True),
        "NumPy's floats are float64 and the network's weights are float32; they do not mix.",
    ),
)


def _pictures() -> list[dict[str, Any]]:
    """Smooth pictures: how exactly one resizes does not show in them, where and what does."""
    cases = []
    for seed, (height, width, size) in enumerate([(120, 300, 64), (210, 90, 48), (40, 50, 64)]):
        draw = np.random.default_rng(seed)
        x, y = np.linspace(-1, 1, width)[:, None], np.linspace(-1, 1, height)[:, None, None]
        slopes = draw.uniform(40, 80, (2, 3)) * draw.choice([-1, 1], (2, 3))
        pixels = 128 + slopes[0] * x + slopes[1] * y
        mean, std = draw.uniform(0.3, 0.6, 3).tolist(), draw.uniform(0.2, 0.3, 3).tolist()
        picture = np.rint(pixels.clip(0, 255)).astype(np.uint8)
        cases.append({"picture": picture, "size": size, "mean": mean, "std": std})
    return cases


def _reference(picture: NDArray[np.uint8], size: int, mean: Any, std: Any) -> Tensor:
    m, s = (torch.tensor(values, dtype=torch.float64).view(1, 3, 1, 1) for values in (mean, std))
    return (images.to_tensor(picture, size) - m) / s


@exercise("hw01.prepare", *PREPARE, forbidden=("course_utils.images",))
def _check_prepare(answer: Answer) -> Iterator[str]:
    cases, kept = _pictures(), _kept(answer, "picture")
    compare(
        kept,
        _reference,
        cases,
        PREPARE[:-1],
        what="the input",
        hint="the steps are: short side to size, square from the middle, 0 to 1, (x − mean) / std; "
        "look at shape, min and max after each.",
        tolerance=0.05,
    )
    yield "a wide, a high and a small picture become what the network was trained on"
    if any(kept(**case).dtype != torch.float32 for case in cases):
        raise Wrong("the input is not of type float32", PREPARE[-1].hint)
    yield "the type fits, and the picture is as it was"


# Networks and images --------------------------------------------------------------------------


class _Tiny(nn.Module):
    """Another architecture: other names, other numbers of classes and channels, in-place ReLU."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(inplace=True), nn.MaxPool2d(2))
        self.body = nn.Sequential(nn.Conv2d(6, 9, 3), nn.BatchNorm2d(9), nn.ReLU(inplace=True))
        self.classifier = nn.Linear(9, 7)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.body(self.stem(x)).mean((2, 3)))


def last_linear(model: nn.Module) -> nn.Linear:
    """The linear layer at the end, whatever its name; the notebook has the same function."""
    return [module for module in model.modules() if isinstance(module, nn.Linear)][-1]


def _cases() -> list[dict[str, Any]]:
    """Two networks, new for each check, and images of each; not all targets are the answers.

    The numbers of pixels, 1701 and 5301, make the 0.99 quantile the value of one pixel.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        tiny, noise = _Tiny().eval(), torch.randn(3, 3, 27, 63)
        nn.init.normal_(tiny.classifier.bias)
        nn.init.normal_(tiny.classifier.weight)
    classifier = models.load("scenes", device="cpu")
    shown = [scenes.render(scenes.canonical(name), 93).image for name in ("zebra", "football")]
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (classifier.mean, classifier.std))
    scene = torch.cat([(images.to_tensor(picture[20:77]) - mean) / std for picture in shown])
    return [
        {"model": tiny, "images": noise, "target": torch.tensor([2, 6, 4])},
        {"model": classifier.model, "images": scene, "target": torch.tensor([0, 3])},
    ]


def _with_layers(cases: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [case | {"layer": name} for case, name in zip(cases, ("body", "layer4"), strict=True)]


def _guarded(answer: Answer) -> Answer:
    """The answer, which is refused where it leaves something on the model or the images."""

    def guarded(model: nn.Module, images: Tensor, **options: Any) -> Any:
        with untouched(model, images):
            return answer(model=model, images=images, **options)

    return guarded


# Gradient × Input -----------------------------------------------------------------------------


def _gradient_x_input(
    model: nn.Module,
    images: Tensor,
    target: Tensor,
    *,
    of: str = "target",
    times: str = "input",
    clean: bool = True,
) -> Tensor:
    """x · ∂f_c / ∂x, (N, 3, H, W); each option is a mistake."""
    x = images.detach().clone().requires_grad_()
    logits = model(x)
    rows = torch.arange(len(x))
    score = {
        "target": lambda: logits[rows, target].sum(),
        "probability": lambda: logits.softmax(1)[rows, target].sum(),
        "answer": lambda: logits.amax(1).sum(),
        "all targets": lambda: logits[:, target].sum(),
        "mean": lambda: logits[rows, target].mean(),
        "all classes": lambda: logits.sum(),
    }[of]()
    if clean:
        (slope,) = torch.autograd.grad(score, x)
    else:
        score.backward()
        assert x.grad is not None
        slope = x.grad
    return {
        "input": lambda: images * slope,
        "nothing": lambda: slope,
        "magnitude": lambda: (images * slope).abs(),
        "channels": lambda: (images * slope).sum(1),
    }[times]()


GRADIENT_X_INPUT = (
    Mistake(
        "gradient",
        partial(_gradient_x_input, times="nothing"),
        "this is sensitivity; the method's name has two parts.",
    ),
    Mistake(
        "magnitude",
        partial(_gradient_x_input, times="magnitude"),
        "contributions have a sign: what speaks against the class must stay negative.",
    ),
    Mistake(
        "channels",
        partial(_gradient_x_input, times="channels"),
        "keep the three channels here; the next exercise makes one number a pixel of them.",
    ),
    Mistake(
        "probability",
        partial(_gradient_x_input, of="probability"),
        "this is of the probability, which is flat where the network is sure; explain the logit.",
    ),
    Mistake(
        "answer",
        partial(_gradient_x_input, of="answer"),
        "this explains what each image's answer is, whatever target says.",
    ),
    Mistake(
        "all targets",
        partial(_gradient_x_input, of="all targets"),
        "logits[:, target] takes all targets of every image: a table. Of each row one number is "
        "wanted, that image's own.",
    ),
    Mistake(
        "all classes",
        partial(_gradient_x_input, of="all classes"),
        "all logits went into the sum; where is the target?",
    ),
    Mistake(
        "mean",
        partial(_gradient_x_input, of="mean"),
        "with more images in the batch the map gets weaker. Which number do you differentiate?",
    ),
    Mistake("backward", partial(_gradient_x_input, clean=False), GRADIENTS_LEFT),
)


@exercise(
    "hw01.gradient_x_input", *GRADIENT_X_INPUT, forbidden=("course_utils.gradients", "captum")
)
def _check_gradient_x_input(answer: Answer) -> Iterator[str]:
    compare(
        _guarded(answer),
        gradients.input_x_gradient,
        _cases(),
        GRADIENT_X_INPUT,
        what="the attribution",
        hint="check each part alone: the logit of each image's target, its gradient with respect "
        "to the images, the product.",
    )
    yield "x · ∂f_c/∂x for every image and its own target, on two networks"
    yield "nothing is left on the model and the images"


# One number a pixel ---------------------------------------------------------------------------


def _to_map(
    attribution: Tensor,
    quantile: float = 0.99,
    *,
    first: str = "sum",
    limit: str = "quantile",
    clip: bool = True,
    safe: bool = True,
) -> Tensor:
    """The signed sum over the channels, to −1 … 1 with 0 at 0; each option is a mistake."""
    a = attribution
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
    top = rows.quantile(q, dim=1)[:, None, None]
    m = m / (torch.where(top > 0, top, 1) if safe else top)
    return m.clamp(-1, 1) if clip else m


TO_MAP = (
    Mistake(
        "scale first",
        partial(_to_map, first="scale"),
        "after min–max scaling zero is no longer zero and nothing is negative: aggregate first.",
    ),
    Mistake(
        "abs first",
        partial(_to_map, first="abs"),
        "with magnitudes, what speaks against the class looks like what speaks for it.",
    ),
    Mistake(
        "maximum",
        partial(_to_map, first="max"),
        "the strongest channel is not the sum of what the three contribute.",
    ),
    Mistake(
        "min and max",
        partial(_to_map, limit="min and max"),
        "where is zero in your map? It must stay at 0, or the colours lie about the sign.",
    ),
    Mistake(
        "largest",
        partial(_to_map, limit="largest"),
        "a single extreme pixel sets the scale; what is the quantile for?",
    ),
    Mistake(
        "signed",
        partial(_to_map, limit="signed"),
        "a quantile of signed numbers looks at one end only. Of what should it be taken, if the "
        "most negative pixels count as much as the most positive?",
    ),
    Mistake(
        "batch",
        partial(_to_map, limit="batch"),
        "one limit for the whole batch: so a map depends on the other images. Each has its own.",
    ),
    Mistake(
        "fixed",
        partial(_to_map, limit="fixed"),
        "quantile is an argument; another value than 0.99 must have an effect.",
    ),
    Mistake(
        "not clipped",
        partial(_to_map, clip=False),
        "some values are still beyond −1 or 1.",
    ),
    Mistake(
        "zero",
        partial(_to_map, safe=False),
        "a map may be zero everywhere, and then its limit is zero: 0 / 0.",
    ),
)


@exercise("hw01.to_map", *TO_MAP, forbidden=("course_utils.panels", "course_utils.plotting"))
def _check_to_map(answer: Answer) -> Iterator[str]:
    # 73 · 137 = 10,001 pixels: these quantiles are pixels' values, not between two of them.
    noise = torch.randn(3, 3, 73, 137, generator=torch.Generator().manual_seed(0))
    heavy = noise**3 * torch.tensor([1.0, 100.0, 0.01]).view(3, 1, 1, 1) + 0.1 * noise[:1] ** 2
    one = noise[:2, :1] - 0.5
    cases = [{"attribution": heavy, "quantile": q} for q in (0.99, 0.9)]
    cases.append({"attribution": one, "quantile": 0.99})
    kept = _kept(answer, "attribution")
    compare(
        kept,
        _to_map,
        cases,
        TO_MAP,
        what="the map",
        hint="in this order: sum over the channels; for each image the quantile of the magnitudes; "
        "divide; cut at −1 and 1.",
        tolerance=0.01,
    )
    yield "the signed sum over the channels, each image on its own scale"
    blank = torch.zeros(1, 3, 5, 7)
    if not torch.equal(tensor_of(kept(attribution=blank), "the map"), blank[:, 0].double()):
        raise Wrong("a map of zeros does not stay a map of zeros", TO_MAP[-1].hint)
    yield "zero stays zero, and the attribution is as it was"


# CAM ------------------------------------------------------------------------------------------


def _cam(
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
    """Σ_k w_ck · A_k, (N, h, w); each option is a mistake."""
    if not clean:
        layers.find(model, layer).register_forward_hook(lambda *_: None)
    with layers.capture(model, layer) as kept, torch.no_grad():
        logits = model(images)
    maps, classes = kept[layer], logits.argmax(1) if weights == "answer" else target
    w = last_linear(model).weight.detach()[classes][:, :, None, None]
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
    }[then]()


def _last_conv(model: Any, images: Tensor, target: Tensor, layer: str) -> Tensor:
    return _cam(model, images, target, layers.last_conv(model))


CAM = (
    Mistake(
        "ReLU inside",
        partial(_cam, relu="inside"),
        "a ReLU inside the sum throws away what speaks against the class, place by place.",
    ),
    Mistake(
        "ReLU after",
        partial(_cam, relu="after"),
        "CAM has no ReLU; without its negative parts the mean is not the logit.",
    ),
    Mistake(
        "no weights",
        partial(_cam, weights="none"),
        "this is the same map for every class: where do the classes' weights come in?",
    ),
    Mistake(
        "answer",
        partial(_cam, weights="answer"),
        "this takes the weights of each image's answer, whatever target says.",
    ),
    Mistake(
        "mean",
        partial(_cam, then="mean"),
        "the map is too small by the number of its places. The mean over the places comes "
        "afterwards, when one wants the logit.",
    ),
    Mistake(
        "bias",
        partial(_cam, then="bias"),
        "the bias belongs to no place. It is not in the map; it is added to the map's mean.",
    ),
    Mistake(
        "scaled",
        partial(_cam, then="scaled"),
        "the map is scaled for looks and has lost its unit, the logit.",
    ),
    Mistake(
        "large",
        partial(_cam, then="large"),
        "the map has been enlarged; here the places of the feature maps are wanted.",
    ),
    Mistake(
        "last convolution",
        _last_conv,
        "these are the maps of the last convolution. What comes after it in its block? Take what "
        "enters the pooling: the layer that is named.",
    ),
    Mistake("hook", partial(_cam, clean=False), HOOKS_LEFT),
)


def _reference_cam(model: nn.Module, images: Tensor, target: Tensor, layer: str) -> Tensor:
    return cam.cam(model, images, target, upsample=False)


@exercise(
    "hw01.class_activation_map", *CAM, forbidden=("course_utils.cam", "captum", "pytorch_grad_cam")
)
def _check_cam(answer: Answer) -> Iterator[str]:
    cases, guarded = _with_layers(_cases()), _guarded(answer)
    compare(
        guarded,
        _reference_cam,
        cases,
        CAM,
        what="the map",
        hint="print the shapes: maps (N, K, h, w), the target's weights (N, K), their products "
        "added up over k.",
    )
    yield "Σ_k w_ck · A_k for every image and its own target, on two networks"
    for case in cases:
        model, x, target, _ = case.values()
        with torch.no_grad():
            logit = model(x).gather(1, target[:, None])[:, 0].double()
        mean = tensor_of(guarded(**case), "the map").mean((1, 2))
        if not torch.allclose(mean + last_linear(model).bias[target], logit, atol=1e-3):
            raise Wrong(
                "mean(CAM) + b is not the logit", "what is missing, or too much, everywhere?"
            )
    yield "mean(CAM) + b is the logit, to 0.001"
    yield "nothing is left on the model and the images"


# The four maps --------------------------------------------------------------------------------

NAMES = ("gradient_x_input", "cam", "grad_cam", "integrated_gradients")


def _four_maps(
    model: nn.Module,
    images: Tensor,
    target: Tensor,
    baseline: Any,
    layer: str,
    *,
    own: tuple[str, ...] = (),
    grey: bool = False,
    relu: bool = True,
    steps: int = 32,
    raw: bool = False,
    magnitude: bool = False,
    large: bool = True,
) -> dict[str, Tensor]:
    """Four methods, one class, one way to show; each option is a mistake."""
    of = {name: None if name in own else target for name in NAMES}
    baseline = 0.0 if grey else baseline
    attributions = (
        gradients.input_x_gradient(model, images, of["gradient_x_input"]),
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
            progress=False,
        ),
    )
    if magnitude:
        attributions = tuple(a.abs() for a in attributions)  # type: ignore[assignment]
    maps = [a.sum(1) if raw else _to_map(a) for a in attributions]
    return dict(zip(NAMES, maps, strict=True))


FOUR_MAPS = (
    Mistake(
        "no target",
        partial(_four_maps, own=NAMES),
        "each map explains its image's own answer. What is the argument target for?",
    ),
    Mistake(
        "two classes",
        partial(_four_maps, own=NAMES[2:]),
        "the maps do not explain the same class. A method that is told no target takes the answer.",
    ),
    Mistake(
        "grey",
        partial(_four_maps, grey=True),
        "Integrated Gradients starts from grey, its default, and not from the baseline.",
    ),
    Mistake(
        "one step",
        partial(_four_maps, steps=1),
        "one gradient is not a path: how many steps does Integrated Gradients take?",
    ),
    Mistake(
        "no ReLU",
        partial(_four_maps, relu=False),
        "Grad-CAM, as its paper has it, is never negative.",
    ),
    Mistake(
        "raw",
        partial(_four_maps, raw=True),
        "the maps are in four different units; to_map makes them comparable to look at.",
    ),
    Mistake(
        "magnitude",
        partial(_four_maps, magnitude=True),
        "the sign is gone: what speaks against the class looks like what speaks for it.",
    ),
    Mistake(
        "small",
        partial(_four_maps, large=False),
        "CAM and Grad-CAM are as small as the feature maps; enlarge them to the image's height "
        "and width.",
    ),
)


def _maps_of(result: object, case: dict[str, Any]) -> dict[str, Tensor]:
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
            hint = FOUR_MAPS[-1].hint if small else "one map (H, W) an image."
            raise Wrong(f"{name} is {shape}, wanted is {(n, height, width)}", hint)
    return {name: tensor_of(result[name], name) for name in NAMES}


def _near(one: dict[str, Tensor], other: dict[str, Tensor], name: str) -> bool:
    """Whether two maps are one; Integrated Gradients may have taken some steps more or fewer."""
    off, size = (one[name] - other[name]).abs().mean(), other[name].abs().mean()
    return bool(off <= size * (0.15 if name == "integrated_gradients" else 0.03))


@exercise("hw01.four_maps", *FOUR_MAPS)
def _check_four_maps(answer: Answer) -> Iterator[str]:
    starts = torch.full((1, 3, 1, 1), 2.0), torch.full((1, 3, 1, 1), -2.0)  # the latter is black
    cases = [c | {"baseline": b} for c, b in zip(_with_layers(_cases()), starts, strict=True)]
    guarded = _guarded(answer)
    got = [_maps_of(guarded(**case), case) for case in cases]
    wanted = [_four_maps(**case) for case in cases]
    yield "four maps as large as the images"
    wrong = [n for n in NAMES if not all(map(_near, got, wanted, (n, n)))]
    if wrong:
        hint = f"look at {wrong[0]} alone, and at what its function is told."
        for mistake in FOUR_MAPS[:-1]:
            pairs = ((g, mistake.answer(**case)) for g, case in zip(got, cases, strict=True))
            if all(_near(g, same, name) for g, same in pairs for name in NAMES):
                hint = mistake.hint
                break
        raise Wrong(f"these maps are not as wanted: {', '.join(wrong)}", hint)
    yield "each explains the target, shown in the same way; the path starts at the baseline"
