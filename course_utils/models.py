"""The networks the course explains: load one, ask it, save one."""

import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from course_utils import files, pretrained
from course_utils import images as pictures
from course_utils.contract import batched_logits, check_choice
from course_utils.networks import Classifier, SmallResNet

SHIPPED = ("scenes", "scenes-cheating", "radiographs", "radiographs-2")


def names() -> list[str]:
    """The models that `load` knows: the course's own, one in a package, torchvision's classifiers.

    Beside these are timm's: "timm/" and a name of timm.list_pretrained().
    """
    return [*SHIPPED, *pretrained.names()]


def load(name: str | None = None, *, device: str | torch.device | None = None) -> Classifier:
    """A model, ready to be explained: float32, in eval mode, parameters frozen.

    name: one of `names()`, or "timm/" and one of timm.list_pretrained(); None: the environment's
    COURSE_MODEL, or "scenes".
    device: None takes the first of cuda, mps, cpu that there is.

    Raises ValueError (unknown name, damaged file), FileNotFoundError (a model of the course or a
    package that is not there) or ConnectionError (weights could not be downloaded).

    >>> classifier = models.load("scenes", device="cpu")
    >>> classifier.size, len(classifier.classes), classifier.model.training
    (128, 16, False)
    """
    if name is None:
        name = os.environ.get("COURSE_MODEL") or "scenes"
    _check_name(name)
    classifier = (
        _load_shipped(name) if name in SHIPPED else Classifier(name, *pretrained.load(name))
    )
    classifier.model.eval().requires_grad_(False)
    # A network is made in torch's default type, whatever the type of its weights in the file.
    classifier.model.to(device or _best_device(), torch.float32)
    # Convolutions are faster on pixels whose channels lie side by side; the numbers are the same.
    classifier.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return classifier


def _check_name(name: object) -> None:
    if not isinstance(name, str):
        raise TypeError(f"name must be a string such as 'scenes', not {type(name).__name__}")
    if name in SHIPPED or name in pretrained.PACKED or pretrained.is_of_timm(name):
        return
    check_choice("name", name, names())


def _best_device() -> str:
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def _load_shipped(name: str) -> Classifier:
    sheet = datasheet(name)
    try:
        model = SmallResNet(len(sheet["classes"]), tuple(sheet["widths"]))
        model.load_state_dict(load_file(_shipped_file(name)))  # half on disk, float32 in memory
    except (SafetensorError, RuntimeError):
        raise _damaged(name) from None
    classes, mean, std = (tuple(sheet[key]) for key in ("classes", "mean", "std"))
    return Classifier(name, model, classes, sheet["size"], mean, std)


def datasheet(name: str = "scenes") -> dict[str, Any]:
    """What the file of a shipped model says about it: classes, preprocessing, recipe, metrics.

    Raises FileNotFoundError where the file is missing, ValueError where it is damaged.

    >>> models.datasheet("scenes")["size"]
    128
    """
    check_choice("name", name, SHIPPED)
    try:
        with safe_open(_shipped_file(name), framework="pt") as file:
            sheet = dict(json.loads(file.metadata()["course"]))
    except (SafetensorError, KeyError, TypeError, ValueError):
        raise _damaged(name) from None
    if missing := {"classes", "size", "mean", "std", "widths"} - set(sheet):
        raise _damaged(name, f"its datasheet lacks {', '.join(sorted(missing))}") from None
    return sheet


def _damaged(name: str, how: str = "it cannot be read") -> ValueError:
    return ValueError(
        f"name: data/{name}.safetensors is damaged ({how}); "
        f"run `git checkout data/{name}.safetensors` or `course train {name}`"
    )


def _shipped_file(name: str) -> Path:
    path = files.DATA / f"{name}.safetensors"
    if not path.exists():
        raise FileNotFoundError(
            f"name: the model {name!r} is not at {path}; "
            f"run `git checkout data/{name}.safetensors` or `course train {name}`"
        )
    return path


def fetch(name: str) -> Path:
    """The file of a model's weights, downloaded unless it is here undamaged.

    Raises ValueError (unknown name, damaged download), FileNotFoundError (a model or a package that
    is not there) or ConnectionError. Nothing is left half-written.
    """
    _check_name(name)
    return _shipped_file(name) if name in SHIPPED else pretrained.fetch(name)


def logits(classifier: Classifier, images: Tensor, batch_size: int = 64) -> Tensor:
    """The logits (N, K), on the CPU, of images (N, 3, H, W) in uint8 that have the model's size."""

    def model(batch: Tensor) -> Tensor:
        values = batch.to(classifier.device).float() / 255
        inputs = pictures.normalize(values, classifier.mean, classifier.std).to(classifier.dtype)
        return classifier.model(inputs.contiguous(memory_format=torch.channels_last))

    with torch.no_grad():
        return batched_logits(model, images, batch_size).cpu()


def evaluate(classifier: Classifier, images: Tensor, labels: Tensor) -> dict[str, Any]:
    """The accuracy, that of each class, and the confusion matrix [truth][answer], as numbers."""
    answers = logits(classifier, images).argmax(1)
    n = len(classifier.classes)
    confusion = torch.bincount(labels * n + answers, minlength=n * n).view(n, n)
    recall = confusion.diag() / confusion.sum(1)
    return {
        "accuracy": (answers == labels).float().mean().item(),
        "classes": dict(zip(classifier.classes, recall.tolist(), strict=True)),
        "confusion": confusion.tolist(),
    }


def save(classifier: Classifier, path: str | os.PathLike[str], **metadata: Any) -> None:
    """Write the weights in half precision, with the classes, preprocessing and metadata (JSON).

    `load` needs the metadata `widths`. The file is there whole or not at all.
    """
    state = {
        key: (value.half() if value.is_floating_point() else value).cpu().contiguous()
        for key, value in classifier.model.state_dict().items()
    }
    description = {
        "classes": classifier.classes,
        "size": classifier.size,
        "mean": classifier.mean,
        "std": classifier.std,
        **metadata,
    }
    write_tensors(Path(path), state, description)


def write_tensors(path: Path, tensors: dict[str, Tensor], description: dict[str, Any]) -> None:
    """A safetensors file with a description in JSON, there whole or not at all."""
    with files.whole(path) as unfinished:
        save_file(tensors, unfinished, {"course": json.dumps(description)})
