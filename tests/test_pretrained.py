"""Networks that others trained, with files that the tests make and one real file of weights."""

import hashlib
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from huggingface_hub import constants
from PIL import Image
from safetensors.torch import save
from torch import nn
from torchvision import transforms

from course_utils import models, pretrained
from course_utils.networks import Classifier
from course_utils.worlds import photographs
from tests.servers import Loopback, Quiet, check_sentence

REAL = "efficientnet_lite0"
TINY = "timm/test_resnet"  # timm's network for tests


# The network in a package ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def real() -> Classifier:
    return models.load(REAL, device="cpu")


def test_it_is_ready_to_be_explained(real: Classifier) -> None:
    assert len(real.classes) == 1000
    assert real.classes[282] == "tiger cat"
    assert (real.size, real.resize, real.interpolation) == (224, 256, "bicubic")
    assert real.mean == real.std == (0.5, 0.5, 0.5)
    assert not any(parameter.requires_grad for parameter in real.model.parameters())
    assert not any(module.training for module in real.model.modules())
    assert sum(parameter.numel() for parameter in real.model.parameters()) == 4_652_008


@pytest.mark.parametrize(
    ("name", "logits"),
    [
        ("coffee", [0.6613, 0.3643, 0.3214, 0.5133, -0.4341, 11.4122, 0.4435]),
        ("camera", [-1.5505, -1.5966, -0.1596, 1.7754, 11.285, 0.3172, 0.0663]),
    ],
)
def test_its_logits_of_photographs(real: Classifier, name: str, logits: list[float]) -> None:
    """Those of seven classes, as they were when the lectures were written."""
    x = real.to_input(photographs.load(name).image)
    found = real.model(x)[0, [0, 1, 282, 732, 872, 967, 999]]
    torch.testing.assert_close(found, torch.tensor(logits), rtol=0, atol=2e-3)


@pytest.mark.parametrize(("name", "answer"), [("coffee", "espresso"), ("camera", "tripod")])
def test_its_answers(real: Classifier, name: str, answer: str) -> None:
    ((first, probability),) = real.predict(photographs.load(name).image, 1)
    assert first == answer
    assert probability >= 0.9


@pytest.mark.references
def test_it_answers_as_the_network_its_weights_were_published_for(
    real: Classifier,
) -> None:
    from efficientnet_lite_pytorch import EfficientNet

    origin = EfficientNet.from_name("efficientnet-lite0")
    origin.load_state_dict(torch.load(pretrained.fetch(REAL), weights_only=True))
    x = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(real.model(x), origin.eval()(x), rtol=0, atol=1e-5)


def test_preparation_is_timms(real: Classifier) -> None:
    """The picture is resized, cut and normalised as by timm's own transforms."""
    config = timm.data.resolve_model_data_config(real.model)
    theirs = timm.data.create_transform(**config, is_training=False)
    assert isinstance(theirs, transforms.Compose)
    for size in ((150, 200), (300, 260)):
        image = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
        wanted = theirs(Image.fromarray(image))[None]
        torch.testing.assert_close(real.to_input(image), wanted, rtol=0, atol=1e-6)


def test_without_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pretrained.importlib.util, "find_spec", lambda name: None)
    for function in (models.load, models.fetch):
        with pytest.raises(FileNotFoundError, match=r"run `pip install efficientnet-l") as error:
            function(REAL)
        check_sentence(error.value)
    assert models.load("scenes", device="cpu").classes  # what is drawn still works


@pytest.mark.parametrize("damage", ["cut short", "empty", "changed"])
def test_a_damaged_file(damage: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    whole = pretrained.fetch(REAL)
    content = whole.read_bytes()
    damaged = {"cut short": content[:-1000], "empty": b"", "changed": content[:-1] + b"?"}[damage]
    path = tmp_path / whole.name
    path.write_bytes(damaged)
    monkeypatch.setattr(pretrained, "_file", lambda name: path)
    with pytest.raises(ValueError, match=r"are damaged .*--force-reinstall .*lite0-py") as error:
        models.load(REAL)
    check_sentence(error.value)


def test_no_code_is_run_from_its_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Callable, tuple]:
            return Path.touch, (tmp_path / "trapped",)

    torch.save(Trap(), tmp_path / "trap")
    digits = hashlib.sha256((tmp_path / "trap").read_bytes()).hexdigest()[:8]
    path = (tmp_path / "trap").rename(tmp_path / f"trap-{digits}.pth")
    monkeypatch.setattr(pretrained, "_file", lambda name: path)
    with pytest.raises(pickle.UnpicklingError):
        models.load(REAL)
    assert not (tmp_path / "trapped").exists()


# timm's networks -------------------------------------------------------------------------------


class Hub(Loopback):
    """A hub on a loopback address that has one file of weights."""

    def __init__(self) -> None:
        self.content, self.cut, self.requests = b"", 0, 0
        hub = self

        class Handler(Quiet):
            def do_HEAD(self) -> None:
                hub.requests += 1
                if not hub.content or not self.path.endswith("/model.safetensors"):
                    self.send_error(404)
                    return
                self.send_response(200)
                self.send_header("Content-Length", str(len(hub.content)))
                self.send_header("X-Repo-Commit", "0" * 40)
                self.send_header("ETag", f'"{hashlib.sha256(hub.content).hexdigest()}"')
                self.end_headers()

            def do_GET(self) -> None:
                self.do_HEAD()
                self.wfile.write(hub.content[: len(hub.content) - hub.cut])

        super().__init__(Handler)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    hub = Hub()
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, hub.address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "ENDPOINT", hub.address)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    yield hub
    hub.stop()


def offer(hub: Hub) -> nn.Module:
    model = timm.create_model("test_resnet")
    state = {name: value.contiguous() for name, value in model.state_dict().items()}
    hub.content = save(state)
    return model.eval()


def test_download_once_then_offline(hub: Hub) -> None:
    original = offer(hub)
    path = models.fetch(TINY)
    assert path.read_bytes() == hub.content
    hub.stop()
    assert models.fetch(TINY) == path
    loaded = models.load(TINY, device="cpu")
    for key, value in original.state_dict().items():
        assert torch.equal(loaded.model.state_dict()[key], value)
    assert loaded.name == TINY
    assert loaded.classes[340] == "zebra"
    assert (loaded.size, loaded.interpolation) == (160, "bilinear")
    assert loaded.resize == 168  # floor(160 / 0.95)
    assert not any(parameter.requires_grad for parameter in loaded.model.parameters())
    image = np.random.default_rng(0).integers(0, 256, (200, 220, 3), dtype=np.uint8)
    assert loaded.model(loaded.to_input(image)).shape == (1, 1000)


def test_no_network(hub: Hub) -> None:
    hub.stop()
    for function in (models.load, models.fetch):
        with pytest.raises(ConnectionError, match="`course fetch timm/test_resnet` once") as error:
            function(TINY)
        check_sentence(error.value)


def test_not_there(hub: Hub) -> None:
    with pytest.raises(ConnectionError, match=r"404.*`course fetch timm/test_resnet`") as error:
        models.load(TINY)
    check_sentence(error.value)


def test_a_damaged_file_in_the_cache(hub: Hub) -> None:
    offer(hub)
    path = models.fetch(TINY)
    path.resolve().write_bytes(hub.content[:-1000])
    with pytest.raises(ValueError, match=r"are damaged .*`course fetch timm/test_r") as error:
        models.load(TINY)
    check_sentence(error.value)
    assert models.fetch(TINY).read_bytes() == hub.content
    assert models.load(TINY, device="cpu").classes


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("timm/resnet1o", "there is no 'timm/resnet1o'; did you mean 'timm/resnet"),
        ("timm/", "there is no 'timm/'; "),
        ("timm/vit_base_patch14_dinov2", "has no weights of a classifier"),
    ],
)
def test_what_cannot_be_loaded(name: str, says: str) -> None:
    with pytest.raises(ValueError, match="^name: ") as error:
        models.load(name)
    assert says in str(error.value)
    check_sentence(error.value)


@pytest.mark.parametrize(
    ("number", "first"), [(1000, "tench"), (21841, "organism, being"), (3, "class 0")]
)
def test_classes_have_names(number: int, first: str) -> None:
    network = timm.create_model("test_resnet", num_classes=number)
    found = pretrained._as_timm_prepares(network)
    assert len(found.classes) == number
    assert found.classes[0] == first
    assert all(isinstance(name, str) and name for name in found.classes)
