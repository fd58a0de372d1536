"""Every unit of a model looked at once: its top scenes, its concepts, its picture, its inputs."""

import hashlib
import io
import json
import os
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from course_utils import files, models
from course_utils.layers import conv_layers
from course_utils.networks import Classifier, Pictures
from course_utils.progress import counted
from course_utils.units import features
from course_utils.units.concepts import ConceptScores, score_concepts
from course_utils.units.maximize import activation_maximization
from course_utils.worlds.scenes import CLASSES, Scenes

TOP = 9
TILE = 96  # pixels of a synthesised picture as it is kept
BATCH = 16


class Responses(NamedTuple):
    """How the C units of a layer answered to N pictures."""

    mean: Tensor  # (N, C) of the map
    max: Tensor  # (N, C)
    places: Tensor  # (N, C, 2) where the maximum is, as shares of height and width


class Units(NamedTuple):
    """What the C units of a layer answer to, in a world of scenes."""

    world: Scenes
    top: NDArray[np.int64]  # (C, 9) the scenes they answer to most, best first
    places: NDArray[np.int64]  # (C, 9, 2) where in them, row and column in pixels
    best: NDArray[np.float64]  # (C, 9) their mean activation in these scenes
    concepts: ConceptScores


class Survey(NamedTuple):
    """All that is kept of a model; the keys are layers."""

    units: dict[str, Units]  # of every stage
    pictures: dict[str, NDArray[np.uint8]]  # (C, 96, 96, 3) synthesised, of every stage
    inputs: dict[str, NDArray[np.float64]]  # (C, C_before) what the stage before adds
    scenes: dict[str, NDArray[np.float64]]  # (C,) mean activation in the best scene, every layer
    scores: dict[str, NDArray[np.float64]]  # (C,) and in the synthesised picture


def stages(model: nn.Module) -> list[str]:
    """The layers whose units the next ones read: end of the stem, blocks, end of the head, output.

    A block is a member of an `nn.Sequential` that is made of several layers, as in ResNets and
    EfficientNets. Where there are no blocks, all convolutions and the output.
    Raises ValueError for a model without convolutions.
    """
    if not conv_layers(model):
        raise ValueError(f"model: this {type(model).__name__} has no convolution to look into")
    output = [name for name, m in model.named_modules() if isinstance(m, nn.Linear)][-1:]
    parts = [*model.named_children()]
    blocks = {name: _blocks(part, name) for name, part in parts}
    if not any(blocks.values()):
        return [*conv_layers(model), *output]
    names: list[str] = []
    for (name, part), (_, following) in pairwise([*parts, ("", nn.Identity())]):
        ends = _computes(part) and not _computes(following)
        names += [name] if ends else blocks[name]
    return [*names, *output]


def _blocks(part: nn.Module, name: str) -> list[str]:
    """The members of the outermost Sequential in a part that are made of several layers."""
    members = {f"{name}.{key}": member for key, member in part.named_children()}
    blocks = [n for n, m in members.items() if conv_layers(m) and not isinstance(m, nn.Conv2d)]
    if blocks and isinstance(part, nn.Sequential):
        return blocks
    return [block for n, member in members.items() for block in _blocks(member, n)]


def _computes(layer: nn.Module) -> bool:
    """Whether it is a single layer that makes feature maps: no pooling, and no linear layer."""
    kinds = (nn.Conv2d, nn.BatchNorm2d, nn.ReLU, nn.ReLU6, nn.SiLU, nn.GELU, nn.Hardswish)
    return isinstance(layer, kinds)


def look(classifier: Classifier, layers: list[str], pictures: Pictures) -> dict[str, Responses]:
    """What all units of some layers answer to N pictures, in one pass."""
    rows: dict[str, list[Responses]] = {layer: [] for layer in layers}
    for batch in features.batches(classifier.inputs(pictures), BATCH):
        for layer, maps in features.feature_maps(classifier.model, batch, layers).items():
            maps = maps.cpu() if maps.ndim == 4 else maps.cpu()[..., None, None]
            places = features.strongest(maps.flatten(0, 1)).unflatten(0, maps.shape[:2])
            rows[layer].append(Responses(maps.mean((2, 3)), maps.amax((2, 3)), places))
    return {layer: Responses(*map(torch.cat, zip(*r, strict=True))) for layer, r in rows.items()}


def examine(classifier: Classifier, layers: list[str], world: Scenes) -> dict[str, Units]:
    """What the units of some layers answer to in a world of scenes."""
    seen = look(classifier, layers, world)
    return {layer: _units(seen[layer], world) for layer in layers}


def _units(seen: Responses, world: Scenes) -> Units:
    top = seen.mean.argsort(dim=0, descending=True, stable=True)[:TOP].T  # (C, 9)
    places = seen.places[top, torch.arange(len(top))[:, None]] * world.resolution
    specs = [world.spec(index) for index in range(len(world))]
    return Units(
        world,
        top.numpy(),
        places.long().numpy(),
        seen.mean.T.gather(1, top).double().numpy(),
        score_concepts(seen.mean.float().numpy(), specs),
    )


def synthesise(
    classifier: Classifier, layer: str, units: Sequence[int]
) -> tuple[NDArray[np.uint8], NDArray[np.float64]]:
    """The pictures (C, 96, 96, 3) that units want to see, and their mean activation in them (C,).

    The pictures are shrunk to be kept; the activation is that of the whole picture.
    """
    pictures, scores = [], []
    for start in range(0, len(units), BATCH):
        ascent = activation_maximization(classifier, layer, list(units[start : start + BATCH]))
        for image in ascent.images:
            picture = Image.fromarray(classifier.to_image(image))
            pictures.append(np.asarray(picture.resize((TILE, TILE), Image.Resampling.LANCZOS)))
        scores += ascent.scores[-1].tolist()
    return np.stack(pictures), np.array(scores)


def strongest_inputs(
    classifier: Classifier, layer: str, before: str, units: Units, which: Sequence[int]
) -> NDArray[np.float64]:
    """What each unit of the layer before adds to some units, on their own top scenes."""
    inputs = classifier.inputs(units.world)
    rows = []
    for unit in which:
        images = torch.stack([inputs[int(index)] for index in units.top[unit]])
        added = features.activation_x_gradient(classifier.model, layer, unit, before, images)
        rows.append(added.mean(0).cpu().double().numpy())
    return np.stack(rows)


# The file ------------------------------------------------------------------------------------


def survey(name: str = "scenes", path: str | os.PathLike[str] | None = None) -> Path:
    """Look at every unit of a shipped model and write what was seen to a file; returns where.

    Of every stage all of it, of every convolution how its synthesised pictures compare with 5,000
    scenes. Takes about ten minutes on two cores. path: None is data/NAME-units.safetensors.

    Raises ValueError for a model that reads no scenes.
    """
    classifier = models.load(name, device="cpu")
    if classifier.classes != CLASSES:
        raise ValueError(f"name: the microscope shows scenes, which {name!r} does not read")
    world = Scenes(5000, seed=10)
    world.draw()
    inside = stages(classifier.model)
    layers = [*conv_layers(classifier.model), *inside]
    seen = look(classifier, layers, world)
    tensors: dict[str, Tensor] = {}
    concepts: tuple[str, ...] = ()

    def keep(layer: str, **arrays: NDArray[Any]) -> None:
        tensors.update(
            {f"{layer}/{key}": torch.from_numpy(a).contiguous() for key, a in arrays.items()}
        )

    for layer in counted(layers, "layer"):
        best = seen[layer].mean.amax(0)
        pictures, scores = synthesise(classifier, layer, range(len(best)))
        keep(layer, scenes=best.double().numpy(), scores=scores)
        if layer not in inside:
            continue
        units = _units(seen[layer], world)
        concepts = units.concepts.concepts
        keep(layer, top=units.top.astype(np.int16), places=units.places.astype(np.int16))
        keep(layer, best=units.best.astype(np.float16), pictures=_encoded(pictures))
        keep(layer, concepts=np.stack(units.concepts[1:]).astype(np.float16))
        if layer != inside[0]:
            before = inside[inside.index(layer) - 1]
            added = strongest_inputs(classifier, layer, before, units, range(len(units.top)))
            keep(layer, inputs=added.astype(np.float16))
    path = Path(path or _file(name))
    facts = {
        "model": _fingerprint(name),
        "world": {"length": len(world), "seed": world.seed},
        "concepts": concepts,
    }
    models.write_tensors(path, tensors, facts)
    return path


def surveyed(name: str) -> bool:
    """Whether there is a survey of this model, made of the weights that it has now."""
    if name not in models.SHIPPED or not _file(name).exists():
        return False
    try:
        with safe_open(_file(name), framework="numpy") as file:
            return bool(json.loads(file.metadata()["course"])["model"] == _fingerprint(name))
    except (SafetensorError, KeyError, TypeError, ValueError):
        return False


def load(name: str = "scenes") -> Survey:
    """What `survey` kept of a shipped model.

    Raises FileNotFoundError where there is no file, ValueError where it is damaged or was made of
    other weights.
    """
    path, again = _file(name), f"run `course microscope {name}`"
    if not path.exists():
        raise FileNotFoundError(f"name: the units of {name!r} were not looked at yet; {again}")
    try:
        with safe_open(path, framework="numpy") as file:
            facts = json.loads(file.metadata()["course"])
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, KeyError, TypeError, ValueError):
        raise ValueError(f"name: {path.name} is damaged; {again}") from None
    if facts["model"] != _fingerprint(name):
        raise ValueError(f"name: {path.name} is of other weights of {name!r}; {again}")
    world = Scenes(**facts["world"])

    order = [layer for layer, _ in models.load(name, device="cpu").model.named_modules()]

    def of(key: str) -> dict[str, Any]:
        """What is kept under that name, layer by layer in the model's order."""
        names = {layer: f"{layer}/{key}" for layer in order}
        return {layer: tensors[name] for layer, name in names.items() if name in tensors}

    units = {
        layer: Units(
            world,
            top.astype(np.int64),
            tensors[f"{layer}/places"].astype(np.int64),
            tensors[f"{layer}/best"].astype(np.float64),
            ConceptScores(
                tuple(facts["concepts"]), *tensors[f"{layer}/concepts"].astype(np.float64)
            ),
        )
        for layer, top in of("top").items()
    }
    pictures = {layer: _decoded(data) for layer, data in of("pictures").items()}
    inputs = {layer: added.astype(np.float64) for layer, added in of("inputs").items()}
    return Survey(units, pictures, inputs, of("scenes"), of("scores"))


def _file(name: str) -> Path:
    return files.DATA / f"{name}-units.safetensors"


def _fingerprint(name: str) -> str:
    return hashlib.sha256(models.fetch(name).read_bytes()).hexdigest()[:16]


def _encoded(pictures: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Pictures (C, h, w, 3), one above the other, as the bytes of a WebP file."""
    buffer = io.BytesIO()
    Image.fromarray(np.concatenate(pictures)).save(buffer, "WEBP", quality=75, method=6)
    return np.frombuffer(buffer.getvalue(), np.uint8).copy()


def _decoded(data: NDArray[np.uint8]) -> NDArray[np.uint8]:
    strip = np.asarray(Image.open(io.BytesIO(data.tobytes())).convert("RGB"))
    return strip.reshape(-1, strip.shape[1], strip.shape[1], 3)
