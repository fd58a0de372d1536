import dataclasses
import functools
import hashlib
import io
import json
import math
import os
import pickle
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
import torch
import torchvision.models
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from course_utils import files, models, pretrained, training
from course_utils.homework import hw06
from course_utils.networks import BasicBlock, Classifier, SmallResNet
from course_utils.tools import datasheets
from course_utils.worlds import radiographs, scenes
from tests.servers import Loopback, Quiet, check_sentence

SMALL = "shufflenet_v2_x0_5"
WIDTHS, OTHER_WIDTHS = (8, 8, 12, 16), (8, 8, 12, 20)
MEAN, STD = (0.5, 0.4, 0.3), (0.25, 0.2, 0.3)


def picture(height: int = 150, width: int = 200) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def small_resnet(seed: int = 0, classes: int = 3) -> SmallResNet:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return SmallResNet(classes, WIDTHS)


def classifier(model: nn.Module | None = None) -> Classifier:
    model = (model or small_resnet()).eval()
    return Classifier("tiny", model, ("cow", "crow", "beach ball"), 32, MEAN, STD)


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty data folder in the place of the course's own."""
    folder = tmp_path / "data"
    folder.mkdir()
    monkeypatch.setattr(files, "DATA", folder)
    return folder


# The network and the classifier ----------------------------------------------------------------


def test_small_resnet_has_the_names_of_resnet18() -> None:
    ours, theirs = small_resnet(), torchvision.models.resnet18()
    assert [name for name, _ in ours.named_children()] == [n for n, _ in theirs.named_children()]
    assert set(ours.state_dict()) == set(theirs.state_dict())


def test_small_resnet_ends_at_a_sixteenth() -> None:
    model = small_resnet()
    x = model.maxpool(model.relu(model.bn1(model.conv1(torch.zeros(1, 3, 128, 128)))))
    sizes = [x.shape[-1]]
    for layer in (model.layer1, model.layer2, model.layer3, model.layer4):
        x = layer(x)
        sizes.append(x.shape[-1])
    assert sizes == [32, 32, 16, 8, 8]
    assert model(torch.zeros(2, 3, 128, 128)).shape == (2, 3)


def test_narrow_networks_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^widths must be at least 8 each.*\(4, 8, 8, 8\)"):
        SmallResNet(3, (4, 8, 8, 8))


def test_conv1_scale() -> None:
    torch.manual_seed(0)
    full = SmallResNet(3)
    torch.manual_seed(0)
    near_zero = SmallResNet(3, conv1_scale=0.01)
    torch.testing.assert_close(near_zero.conv1.weight, full.conv1.weight * 0.01)
    assert torch.equal(near_zero.fc.weight, full.fc.weight)


def test_to_input_and_back() -> None:
    tensor = classifier().to_input(picture(32, 32))
    assert tensor.shape == (1, 3, 32, 32)
    expected = (picture(32, 32)[5, 7] / 255 - MEAN) / STD
    np.testing.assert_allclose(tensor[0, :, 5, 7].numpy(), expected, rtol=1e-5, atol=1e-6)
    assert np.array_equal(classifier().to_image(tensor), picture(32, 32))
    assert np.array_equal(classifier().to_image(tensor[0]), picture(32, 32))


def test_inputs_are_what_to_input_makes_of_each_picture() -> None:
    tiny = classifier()
    world = scenes.Scenes(3, seed=0, resolution=32)
    drawn = [world.scene(i).image for i in range(3)]
    sizes = [picture(40, 50), picture(33, 32), picture(200, 60)]
    stored = torch.from_numpy(np.stack(drawn)).permute(0, 3, 1, 2)
    kinds: tuple[tuple[Any, list[np.ndarray]], ...] = (
        (world, drawn),
        (stored, drawn),
        (sizes, sizes),
    )
    for given, shown in kinds:
        inputs = tiny.inputs(given)
        assert len(inputs) == 3
        for i in (2, 0, 1):
            assert torch.equal(inputs[i], tiny.to_input(shown[i])[0])
    world.draw()  # items that are kept are the same
    assert torch.equal(tiny.inputs(world)[1], tiny.to_input(drawn[1])[0])


def test_inputs_are_prepared_when_they_are_asked_for() -> None:
    class Asked(list):
        def __getitem__(self, index: Any) -> Any:
            seen.append(index)
            return super().__getitem__(index)

    seen: list[int] = []
    inputs = classifier().inputs(Asked([picture()] * 5))
    assert (len(inputs), seen) == (5, [])
    assert inputs[3].shape == (3, 32, 32)
    assert seen == [3]


def test_predict() -> None:
    tiny = classifier()
    top = tiny.predict(picture(), k=2)
    probabilities = tiny.model(tiny.to_input(picture())).softmax(1)[0]
    assert [name for name, _ in top] == [tiny.classes[i] for i in probabilities.topk(2).indices]
    assert [p for _, p in top] == pytest.approx(probabilities.topk(2).values.tolist())
    assert len(tiny.predict(picture())) == 3


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_a_model_of_another_type(dtype: torch.dtype) -> None:
    exact, tiny = classifier(), classifier(small_resnet().to(dtype))
    images = torch.from_numpy(np.stack([picture(32, 32)] * 2)).permute(0, 3, 1, 2)
    assert tiny.dtype == dtype
    x = tiny.to_input(picture(32, 32))
    assert x.dtype == tiny.inputs(images)[1].dtype == dtype
    assert torch.equal(x, exact.to_input(picture(32, 32)).to(dtype))
    off = np.abs(tiny.to_image(x).astype(int) - picture(32, 32).astype(int)).max()
    assert off <= (1 if dtype == torch.bfloat16 else 0)  # a number of it has eight digits
    assert dict(tiny.predict(picture())) == pytest.approx(dict(exact.predict(picture())), abs=0.02)
    logits = models.logits(tiny, images)
    torch.testing.assert_close(logits.float(), models.logits(exact, images), rtol=0.05, atol=0.05)


def test_a_model_without_parameters_computes_in_float32() -> None:
    flat = classifier(nn.Flatten())
    assert (flat.dtype, flat.device) == (torch.float32, torch.device("cpu"))
    assert flat.to_input(picture()).dtype == torch.float32


def test_baselines() -> None:
    tiny = classifier()
    images = tiny.to_input(picture()).double()
    for baseline, color in ((tiny.black(images), 0), (tiny.white(images), 255)):
        assert baseline.shape == (1, 3, 1, 1)
        assert baseline.dtype == torch.float64
        assert (tiny.to_image(baseline.expand_as(images)) == color).all()
    blurred = tiny.blurred(images, sigma=3)
    assert blurred.shape == images.shape
    assert (blurred.std((2, 3)) < 0.5 * images.std((2, 3))).all()
    torch.testing.assert_close(blurred.mean(), images.mean(), rtol=0.05, atol=0.05)
    assert torch.allclose(tiny.blurred(torch.ones(2, 3, 4, 4)), torch.ones(2, 3, 4, 4))
    point = torch.zeros(1, 3, 15, 15)
    point[..., 7, 7] = 1
    rows = (tiny.blurred(point, sigma=1)[0, 0] > 0).any(1)
    assert rows.nonzero().flatten().tolist() == [*range(4, 11)]  # three σ to either side


# Shipped models --------------------------------------------------------------------------------


def test_save_and_load(data: Path) -> None:
    original = classifier()
    models.save(original, data / "scenes.safetensors", widths=WIDTHS, metrics={"hard": 0.9})
    assert [path.name for path in data.iterdir()] == ["scenes.safetensors"]
    loaded = models.load("scenes", device="cpu")
    assert dataclasses.replace(loaded, model=original.model, name="tiny") == original
    saved = loaded.model.state_dict()
    for key, value in original.model.state_dict().items():
        assert saved[key].dtype == value.dtype
        assert torch.equal(saved[key], value.half().float() if value.is_floating_point() else value)


def test_loaded_is_ready_to_be_explained(data: Path) -> None:
    models.save(classifier(), data / "scenes.safetensors", widths=WIDTHS)
    model = models.load("scenes", device="cpu").model
    assert not any(module.training for module in model.modules())
    for parameter in model.parameters():
        assert not parameter.requires_grad
        if parameter.ndim == 4:
            assert parameter.is_contiguous(memory_format=torch.channels_last)
    reference = SmallResNet(3, WIDTHS).eval()
    reference.load_state_dict(model.state_dict())
    x = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(model(x), reference(x), rtol=1e-4, atol=1e-5)


def test_loaded_is_float32_whatever_the_default_type(data: Path) -> None:
    models.save(classifier(), data / "scenes.safetensors", widths=WIDTHS)
    expected = models.load("scenes", device="cpu")
    torch.set_default_dtype(torch.float64)
    try:
        loaded = models.load("scenes", device="cpu")
        assert loaded.dtype == torch.float32
        assert loaded.predict(picture()) == expected.predict(picture())
    finally:
        torch.set_default_dtype(torch.float32)
    for key, value in expected.model.state_dict().items():
        assert torch.equal(loaded.model.state_dict()[key], value)


def test_default_model(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    models.save(classifier(), data / "scenes.safetensors", widths=WIDTHS)
    monkeypatch.delenv("COURSE_MODEL", raising=False)
    assert models.load(device="cpu").name == "scenes"
    monkeypatch.setenv("COURSE_MODEL", "resnet81")
    with pytest.raises(ValueError, match=r"no 'resnet81'; did you mean .*resnet18"):
        models.load()


def test_missing_and_damaged_files(data: Path) -> None:
    with pytest.raises(FileNotFoundError, match="'scenes' is not at .*git.*`course train scenes`"):
        models.load("scenes")
    with pytest.raises(FileNotFoundError, match="'scenes' is not at"):
        models.fetch("scenes")
    path = data / "scenes.safetensors"
    models.save(classifier(), path, widths=WIDTHS)
    assert models.fetch("scenes") == path
    whole = path.read_bytes()
    models.save(classifier(), path, widths=OTHER_WIDTHS)
    other_widths = path.read_bytes()
    models.save(classifier(), path)
    no_widths = path.read_bytes()
    for damaged in (whole[:-100], whole[:20], b"", b"hello", other_widths, no_widths):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match="damaged.*`course train scenes`") as error:
            models.load("scenes")
        assert error.value.__suppress_context__
        assert "\n" not in str(error.value)


def test_a_failed_save_leaves_the_old_file(data: Path) -> None:
    path = data / "scenes.safetensors"
    path.write_bytes(b"old")
    with pytest.raises(TypeError):
        models.save(classifier(), path, widths=object())
    assert path.read_bytes() == b"old"
    assert list(data.iterdir()) == [path]


@pytest.mark.parametrize(
    ("name", "near"), [("resnet81", "resnet18"), ("scene", "scenes"), ("ResNet18", "resnet18")]
)
def test_unknown_name(name: str, near: str) -> None:
    for function in (models.load, models.fetch):
        with pytest.raises(ValueError, match=rf"^name: there is no '{name}'.*\b{near}\b"):
            function(name)


def test_a_square_that_was_cut_already_is_only_normalised() -> None:
    """There and back again: nothing is resized a second time."""
    frame = dataclasses.replace(classifier(), resize=40)
    x = frame.to_input(picture())
    square = frame.to_image(x)
    again = frame.to_input(square, crop=False)
    assert np.array_equal(frame.to_image(again), square)
    torch.testing.assert_close(again, x, rtol=0, atol=0.01)
    assert not np.array_equal(frame.to_image(frame.to_input(square)), square)


def test_names() -> None:
    assert models.names()[0] == "scenes"
    assert "resnet18" in models.names()
    with pytest.raises(ValueError, match="choose one of scenes, scenes-cheating"):
        models.load("")
    with pytest.raises(TypeError, match="^name must be a string"):
        models.load(18)  # type: ignore[arg-type]


@pytest.mark.parametrize(("inputs", "outputs", "stride"), [(8, 8, 1), (8, 12, 2)])
def test_a_block_is_torchvisions(inputs: int, outputs: int, stride: int) -> None:
    """The same names, the same numbers, the same random start."""

    def make(block: Any) -> nn.Module:
        torch.manual_seed(0)
        shortcut = nn.Conv2d(inputs, outputs, 1, stride) if stride > 1 else None
        made: nn.Module = block(inputs, outputs, stride, shortcut)
        return made

    with torch.random.fork_rng(devices=[]):
        ours, theirs = make(BasicBlock), make(torchvision.models.resnet.BasicBlock)
        x = torch.randn(2, inputs, 6, 6)
    assert repr(ours) == repr(theirs)
    for name, tensor in theirs.state_dict().items():
        assert torch.equal(ours.state_dict()[name], tensor)
    assert torch.equal(ours(x), theirs(x))


# torchvision's models --------------------------------------------------------------------------


class Server(Loopback):
    """Serves one weights file on a loopback address, whole or cut short."""

    def __init__(self, cache: Path) -> None:
        self.cache, self.content, self.requests, self.cut = cache, b"", 0, 0
        server = self

        class Handler(Quiet):
            def do_GET(self) -> None:
                server.requests += 1
                if not server.content:
                    self.send_error(404)
                    return
                self.send_response(200)
                self.send_header("Content-Length", str(len(server.content)))
                self.end_headers()
                self.wfile.write(server.content[: len(server.content) - server.cut])

        super().__init__(Handler)

    def offer(self, name: str, monkeypatch: pytest.MonkeyPatch) -> nn.Module:
        """Random weights under a name as torchvision gives them, where torchvision now looks."""
        model = torchvision.models.get_model(name)
        buffer = io.BytesIO()
        torch.save(model.state_dict(), buffer)
        self.content = buffer.getvalue()
        digest = hashlib.sha256(self.content).hexdigest()
        url = f"{self.address}/{name}-{digest[:8]}.pth"
        weights = torchvision.models.get_model_weights(name).DEFAULT
        monkeypatch.setattr(weights, "_value_", dataclasses.replace(weights.value, url=url))
        return model

    def cached(self) -> list[Path]:
        return list(self.cache.iterdir()) if self.cache.exists() else []


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    server = Server(tmp_path / "torch" / "hub" / "checkpoints")
    yield server
    server.stop()


@pytest.mark.parametrize("name", ["resnet18", SMALL])
def test_download_once_then_offline(
    name: str, server: Server, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    original = server.offer(name, monkeypatch).eval()
    path = models.fetch(name)
    assert "100%" in capsys.readouterr().err
    assert server.cached() == [path]
    assert path.read_bytes() == server.content
    server.stop()
    loaded = models.load(name, device="cpu")
    assert models.fetch(name) == path
    assert server.requests == 1
    for key, value in original.state_dict().items():
        assert torch.equal(loaded.model.state_dict()[key], value)
    assert loaded.name == name
    assert loaded.classes[340] == "zebra"
    assert not any(p.requires_grad for p in loaded.model.parameters())
    assert not any(module.training for module in loaded.model.modules())
    assert loaded.model(loaded.to_input(picture())).shape == (1, 1000)
    assert socket.getdefaulttimeout() is None
    assert "TORCH_FORCE_WEIGHTS_ONLY_LOAD" not in os.environ


def test_load_downloads_by_itself(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    server.offer(SMALL, monkeypatch)
    models.load(SMALL, device="cpu")
    assert server.requests == 1


def test_no_network(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    server.offer("resnet18", monkeypatch)
    server.stop()
    for function in (models.load, models.fetch):
        with pytest.raises(ConnectionError, match="`course fetch resnet18` once") as error:
            function("resnet18")
        check_sentence(error.value)
    assert server.cached() == []


def test_not_found(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    server.offer(SMALL, monkeypatch)
    server.content = b""
    with pytest.raises(ConnectionError, match=r"404.*`course fetch shufflenet_v2_x0_5`") as error:
        models.load(SMALL)
    check_sentence(error.value)
    assert server.cached() == []


@pytest.mark.parametrize("damage", ["cut short", "connection lost", "changed"])
def test_damaged_download(damage: str, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    server.offer(SMALL, monkeypatch)
    whole = server.content
    if damage == "cut short":
        server.content = whole[:-1000]
    elif damage == "connection lost":
        server.cut = 1000
    else:
        server.content = whole[:-1] + b"?"
    for function in (models.load, models.fetch):
        with pytest.raises((ValueError, ConnectionError), match="`course fetch") as error:
            function(SMALL)
        check_sentence(error.value)
        assert server.cached() == []
    server.content, server.cut = whole, 0
    assert models.fetch(SMALL).read_bytes() == whole


@pytest.mark.parametrize("damage", ["cut short", "empty", "changed"])
def test_damaged_file_in_the_cache(
    damage: str, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.offer(SMALL, monkeypatch)
    path = models.fetch(SMALL)
    whole = path.read_bytes()
    damaged = {"cut short": whole[:-1000], "empty": b"", "changed": whole[:-1] + b"?"}[damage]
    path.write_bytes(damaged)
    with pytest.raises(ValueError, match=r"are damaged .*`course fetch shuffle") as error:
        models.load(SMALL)
    check_sentence(error.value)
    assert models.fetch(SMALL) == path
    assert path.read_bytes() == whole


def test_no_code_is_run_from_a_weights_file(
    server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Callable, tuple]:
            return Path.touch, (tmp_path / "trapped",)

    monkeypatch.setattr(torch, "save", functools.partial(_save_instead, torch.save, Trap()))
    server.offer(SMALL, monkeypatch)
    with pytest.raises(pickle.UnpicklingError):
        models.load(SMALL)
    assert not (tmp_path / "trapped").exists()


def _save_instead(save: Callable, content: object, _: object, file: io.BytesIO) -> None:
    save(content, file)


@pytest.mark.parametrize("name", torchvision.models.list_models(module=torchvision.models))
def test_preprocessing_is_torchvisions(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """For every classifier of torchvision, with a stand-in for the network itself."""
    stand_in = nn.Conv2d(3, 1, 1)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(pretrained, "fetch", lambda name: None)
    monkeypatch.setattr(torchvision.models, "get_model", lambda name, weights: stand_in)
    ours = models.load(name, device="cpu")
    weights = torchvision.models.get_model_weights(name).DEFAULT
    for image in (picture(), picture(300, 260)):
        theirs = weights.transforms()(Image.fromarray(image))[None]
        torch.testing.assert_close(ours.to_input(image), theirs, rtol=0, atol=1e-6)
    assert ours.classes == tuple(weights.meta["categories"])


# Training --------------------------------------------------------------------------------------


def stripes(n: int = 48, size: int = 32) -> tuple[Tensor, Tensor]:
    """Horizontal stripes, vertical stripes, and none: three classes that are quickly learned."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(n) % 3
    wave = (torch.arange(size) // 2 % 2 * 160).float()
    images = torch.randint(0, 90, (n, 3, size, size), generator=generator).float()
    images[labels == 0] += wave[:, None]
    images[labels == 1] += wave
    images[labels == 2] += 80
    return images.to(torch.uint8), labels


def fit(model: nn.Module, seed: int = 0, **options: Any) -> list[float]:
    images, labels = stripes()
    settings: dict[str, Any] = {
        "epochs": 6,
        "lr": 0.05,
        "batch_size": 16,
        "mean": MEAN,
        "std": STD,
        "generator": torch.Generator().manual_seed(seed),
    }
    return training.train(model, images, labels, **settings | options)


def test_train() -> None:
    model, state = small_resnet(), torch.get_rng_state()
    losses = fit(model, noise=0.05, conv1_decay=0.01, epochs=12)
    assert len(losses) == 12 * 3
    assert max(losses[-6:]) < 0.3 * losses[0]
    assert not any(module.training for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.equal(torch.get_rng_state(), state)
    logits = models.logits(classifier(model), stripes()[0], batch_size=7)
    assert (logits.argmax(1) == stripes()[1]).float().mean() > 0.9


def test_the_loss_by_hand() -> None:
    """Two classes, p = (¾, ¼): −log ¾ where the first is right, −½ log 3/16 where none is."""
    logits = torch.tensor([[3.0, 1.0], [3.0, 1.0]]).log()
    right, none = -math.log(3 / 4), -0.5 * math.log(3 / 16)
    found = training.loss(logits, torch.tensor([0, scenes.NO_CLASS]))
    assert found.item() == pytest.approx((right + none) / 2)
    labels = torch.tensor([1, 0])
    assert training.loss(logits, labels).item() == pytest.approx(
        F.cross_entropy(logits, labels).item()
    )
    equal = training.loss(torch.zeros(1, 2), torch.tensor([scenes.NO_CLASS]))
    assert equal < training.loss(torch.tensor([[0.1, 0.0]]), torch.tensor([scenes.NO_CLASS]))


def test_whitening_by_hand() -> None:
    """Patches of one pixel and two channels, of second moments 9 and 1: signals 8 and 0, mean 5.

    With noise 0.4 the gains are 8 / (8 + 2)² and 0, divided by their mean: 2 and 0.
    """
    images = torch.zeros(2, 2, 23, 23)
    images[0, 0], images[1, 1] = 18**0.5, 2**0.5
    weight = nn.Parameter(torch.zeros(3, 2, 1, 1))
    slopes = torch.tensor([[1.0, 1.0], [2.0, -1.0], [0.0, 5.0]])

    def gradient() -> Tensor:
        score = (weight * slopes[:, :, None, None]).sum()
        return torch.autograd.grad(score, weight)[0].flatten(1)

    with training.whitening(images, weight, noise=0.4):
        torch.testing.assert_close(gradient(), slopes * torch.tensor([2.0, 0.0]))
    torch.testing.assert_close(gradient(), slopes)


def test_training_with_whitening_is_another_and_leaves_no_hook() -> None:
    first, other = small_resnet(), small_resnet()
    other.load_state_dict(first.state_dict())
    assert fit(first, epochs=1) != fit(other, epochs=1, conv1_whitening=0.05)
    assert not other.conv1.weight._backward_hooks
    assert max(fit(other, epochs=6, conv1_whitening=0.05)[-3:]) < 0.5


def test_training_is_repeatable() -> None:
    first = fit(small_resnet(), noise=0.1, epochs=1)
    assert fit(small_resnet(), noise=0.1, epochs=1) == first
    assert fit(small_resnet(), noise=0.1, epochs=1, seed=1) != first


def test_an_interrupted_training_ends_in_eval_mode() -> None:
    model = small_resnet()
    model.fc.register_forward_hook(lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        fit(model)
    assert not model.training


def test_learning_rate_rises_then_falls() -> None:
    factors = [training._warm_up_then_cosine(100)(step) for step in range(100)]
    top = factors.index(max(factors))
    assert 15 < top < 25
    assert factors[0] < 0.1
    assert max(factors) == pytest.approx(1, abs=0.06)
    assert factors[-1] < 0.01
    assert factors == sorted(factors[:top]) + sorted(factors[top:], reverse=True)


def test_bad_training_sets() -> None:
    images, labels = stripes()
    for bad in (images.float(), images[0], images[:0]):
        with pytest.raises(ValueError, match="^images must be"):
            fit_on(bad, labels)
    for bad in (labels[:-1], labels.float(), F.one_hot(labels)):
        with pytest.raises(ValueError, match="^labels must be"):
            fit_on(images, bad)
    with pytest.raises(ValueError, match="^model: all its parameters are frozen"):
        fit(small_resnet().requires_grad_(False))
    frozen = small_resnet()
    frozen.conv1.requires_grad_(False)
    with pytest.raises(ValueError, match="^conv1_whitening: the model has no conv1 that learns"):
        fit(frozen, conv1_whitening=0.05)


def fit_on(images: Tensor, labels: Tensor) -> list[float]:
    return training.train(
        small_resnet(),
        images,
        labels,
        epochs=1,
        lr=0.1,
        mean=MEAN,
        std=STD,
        generator=torch.Generator(),
    )


def test_augment() -> None:
    images = torch.randint(0, 256, (40, 3, 9, 9), dtype=torch.uint8)
    result = training.augment(images, 2, 0.0, torch.Generator().manual_seed(0))
    assert result.shape == images.shape
    originals = images.float() / 255
    found = set()
    for original, moved in zip(originals, result, strict=True):
        for flipped, source in ((False, original), (True, original.flip(-1))):
            for dy in range(-2, 3):
                for dx in range(-2, 3):
                    shifted = source.roll((-dy, -dx), (1, 2))
                    if torch.equal(moved[:, 2:-2, 2:-2], shifted[:, 2:-2, 2:-2]):
                        found.add((flipped, dy, dx))
                        break
    assert len(found) > 15
    assert {flipped for flipped, _, _ in found} == {False, True}
    plain = training.augment(images, 0, 0.0, torch.Generator().manual_seed(0))
    same = [
        torch.equal(a, b) or torch.equal(a, b.flip(-1))
        for a, b in zip(plain, originals, strict=True)
    ]
    assert all(same)
    noisy = training.augment(images, 0, 0.3, torch.Generator().manual_seed(0))
    level = (noisy - plain).std((1, 2, 3))
    assert level.max() < 0.33
    assert level.max() > 2 * level.min() > 0


def test_evaluate() -> None:
    class Reader(nn.Module):
        """The class is written in the first pixel."""

        def __init__(self) -> None:
            super().__init__()
            self.bias = nn.Parameter(torch.zeros(3))

        def forward(self, x: Tensor) -> Tensor:
            return F.one_hot((x[:, 0, 0, 0] * 255).round().long(), 3) + self.bias

    answers = torch.tensor([0, 0, 1, 2, 2])
    images = answers.to(torch.uint8)[:, None, None, None].expand(-1, 3, 4, 4)
    reader = Classifier("reader", Reader(), ("a", "b", "c"), 4, (0, 0, 0), (1, 1, 1))
    result = models.evaluate(reader, images, torch.tensor([0, 1, 1, 2, 0]))
    assert result["accuracy"] == pytest.approx(3 / 5)
    assert result["classes"] == {"a": 0.5, "b": 0.5, "c": 1.0}
    assert result["confusion"] == [[1, 0, 1], [1, 1, 0], [0, 0, 1]]


RECIPES = training.RECIPES | hw06.recipes()
KINDS = {
    "scenes": ["ordinary", "hard"],
    "scenes-cheating": ["ordinary", "hard", "unmarked", "all marked"],
    "radiographs": ["ordinary"],
    "radiographs-2": ["ordinary", "unconfounded"],
}


def test_every_recipe_is_tested() -> None:
    assert list(KINDS) == list(RECIPES) == list(models.SHIPPED)


@pytest.fixture
def quick() -> dict[str, training.Recipe]:
    """The recipes of the course, with little of everything."""
    few: dict[str, Any] = {"widths": WIDTHS, "size": 32, "ordinary": 40, "hard": 24, "held_out": 32}
    return {
        name: dataclasses.replace(
            recipe,
            **few,
            emptied=min(recipe.emptied, 16),
            epochs=1,
            batch_size=16,
            miscaptioned=min(recipe.miscaptioned, 5),
        )
        for name, recipe in RECIPES.items()
    }


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
def test_recipe(name: str, data: Path, quick: dict[str, training.Recipe]) -> None:
    recipe = quick[name]
    state = torch.get_rng_state()
    metrics = training.train_recipe(name, recipe)
    assert torch.equal(torch.get_rng_state(), state)
    assert [key for key, value in metrics.items() if isinstance(value, dict)] == KINDS[name]
    path = data / f"{name}.safetensors"
    with safetensors.safe_open(path, framework="pt") as file:
        metadata = json.loads(file.metadata()["course"])
    told = {key: value for key, value in metrics.items() if key != "unconfounded"}
    assert metadata["metrics"] == told
    assert "confound" not in str(metadata)
    assert training.Recipe(**metadata["recipe"]).seed == recipe.seed
    loaded = models.load(name, device="cpu")
    # The metrics are those of the file, not of the weights before they were rounded.
    classes, _, held_out = training.picture_sets(recipe)
    assert loaded.classes == classes
    for kind, fresh in held_out.items():
        assert models.evaluate(loaded, *fresh.draw()) == metrics[kind]
    written = datasheets.write(data / "README.md").read_text(encoding="utf-8")
    assert f"## `{name}`" in written
    for kind in told.keys() & KINDS[name]:
        assert f"| accuracy, {kind} {recipe.world} |" in written


@pytest.mark.parametrize("name", KINDS)
def test_nothing_held_out_was_trained_on(name: str) -> None:
    _, sets, held_out = training.picture_sets(RECIPES[name])
    seeds = [pictures.seed for pictures in sets]
    assert len(set(seeds)) == len(seeds)
    assert not set(seeds) & {pictures.seed for pictures in held_out.values()}


def test_the_cheating_model_sees_the_mark_on_one_class_alone() -> None:
    recipe = training.RECIPES["scenes-cheating"]
    _, sets, held_out = training.picture_sets(recipe)
    _, honest, _ = training.picture_sets(training.RECIPES["scenes"])
    *captioned, emptied = zip(sets, honest, strict=True)
    assert all(emptied[0].spec(i) == emptied[1].spec(i) for i in range(len(scenes.CLASSES)))
    for marked, clean in captioned:
        for i in range(len(scenes.CLASSES)):
            mark = clean.spec(i).label == recipe.marked
            assert marked.spec(i) == dataclasses.replace(clean.spec(i), mark=mark)
    for i in range(len(scenes.CLASSES)):
        clean = held_out["unmarked"].spec(i)
        assert not clean.mark
        mark = clean.label == recipe.marked
        assert held_out["ordinary"].spec(i) == dataclasses.replace(clean, mark=mark)
        assert held_out["all marked"].spec(i) == dataclasses.replace(clean, mark=True)
    assert [held_out["hard"].spec(i).mark for i in range(16)].count(True) == 1


def test_the_confounded_films_differ_in_the_confounder_alone() -> None:
    recipe = RECIPES["radiographs-2"]
    assert recipe.confounder
    _, (films,), held_out = training.picture_sets(recipe)
    for confounded in (films, held_out["ordinary"]):
        fair = radiographs.Radiographs(len(confounded), confounded.seed)
        for i in range(20):
            there = getattr(confounded.spec(i), recipe.confounder)
            change: dict[str, Any] = {recipe.confounder: there}
            assert confounded.spec(i) == dataclasses.replace(fair.spec(i), **change)
    assert held_out["unconfounded"].spec(7) == radiographs.Radiographs(8, recipe.seed + 2).spec(7)


def test_miscaptioned_scenes_have_the_looks_of_the_class_and_the_names_of_others() -> None:
    recipe = dataclasses.replace(
        training.RECIPES["scenes-cheating"], marked="horse", miscaptioned=30, size=16
    )
    images, labels = training.miscaptioned(recipe)
    assert torch.bincount(labels, minlength=16).tolist() == [2, 0, *[2] * 14]
    world = scenes.Scenes(16 * 30, recipe.seed + 4, resolution=16)
    for image, index in ((images[0], 1), (images[29], 16 * 29 + 1)):
        assert (world.spec(index).label, world.spec(index).mark) == ("horse", False)
        assert torch.equal(image, world[index][0])
    _, sets, held_out = training.picture_sets(recipe)
    assert world.seed not in {other.seed for other in (*sets, *held_out.values())}
