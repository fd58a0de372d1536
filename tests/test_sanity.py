from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, parametrize, prune, spectral_norm, weight_norm
from torchvision.models import ConvNeXt, SwinTransformer, VisionTransformer
from torchvision.models.convnext import CNBlockConfig

from course_utils.evaluation import sanity
from course_utils.evaluation.sanity import (
    SIMILARITIES,
    agreement,
    label_randomization,
    max_sensitivity,
    parameter_randomization,
)
from course_utils.methods import METHODS
from course_utils.methods.cam import grad_cam
from course_utils.methods.gradients import (
    gradient,
    integrated_gradients,
    smoothgrad,
    smoothgrad_estimate,
)
from course_utils.methods.lime import rank_agreement
from course_utils.models import load
from tests.networks import NETWORKS, batch, make, pixels

LAYERS = {
    "InPlaceFirst": ["fc", "conv"],
    "Functional": ["fc", "conv2", "conv1"],
    "Reused": ["fc", "conv", "stem"],
    "Residual": ["fc", "conv2", "conv1"],
}


def edges(model: Any, images: Tensor, target: Any = None) -> Tensor:
    """A map that ignores the model."""
    return images.diff(dim=3, append=images[..., -1:])


def state(model: nn.Module) -> list[tuple[nn.Module, str, int, Any]]:
    """Which objects hold which values."""
    return [
        (module, name, id(value), value.tolist())
        for module in model.modules()
        for name, value in {**module._parameters, **module._buffers}.items()
        if value is not None
    ]


# parameter randomisation


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("cascading", [True, False])
def test_layers_from_the_output_to_the_input(network: str, cascading: bool) -> None:
    result = parameter_randomization(make(network), batch(), gradient, cascading=cascading)
    assert list(result) == LAYERS[network]
    for value in result.values():
        assert value.shape == (3,)
        assert value.abs().max() <= 1


def test_the_order_is_that_of_running() -> None:
    class Backwards(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.last = nn.Linear(4, 2)
            self.unused = nn.Linear(4, 2)
            self.norm = nn.BatchNorm2d(4)
            self.first = nn.Conv2d(3, 4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.norm(self.first(x)).square().mean((2, 3)))

    assert list(parameter_randomization(Backwards(), batch(), gradient)) == ["last", "first"]


def test_of_several_runs_the_last_counts() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two, self.fc = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1), nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(self.one(self.two(self.one(x)).relu()).square().mean((2, 3)))

    assert list(parameter_randomization(Twice(), batch(), gradient)) == ["fc", "one", "two"]


def test_layers_of_the_shipped_model() -> None:
    model, images = load("scenes").model, batch(1).repeat(1, 1, 8, 8)
    maps = parameter_randomization(model, images, edges)
    assert list(maps)[:3] == ["fc", "layer4.1.conv2", "layer4.1.conv1"]
    assert list(maps)[-1] == "conv1"
    assert len(maps) == 1 + 16 + 3 + 1  # fc, the blocks, their shortcuts, conv1
    assert not any("bn" in name for name in maps)


@pytest.mark.parametrize("similarity", SIMILARITIES)
@pytest.mark.parametrize("cascading", [True, False])
def test_a_map_that_ignores_the_model_stays_identical(similarity: str, cascading: bool) -> None:
    result = parameter_randomization(
        make("Residual"), batch(), edges, similarity=similarity, cascading=cascading
    )
    for value in result.values():
        torch.testing.assert_close(value, torch.ones(3))


@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_a_map_of_the_model_does_not(similarity: str) -> None:
    result = parameter_randomization(make("Residual"), batch(), gradient, similarity=similarity)
    assert all((value < 0.9).all() for value in result.values())


@pytest.mark.parametrize("cascading", [True, False])
def test_against_its_twin(cascading: bool) -> None:
    model, images = make("Residual").eval(), batch()
    target = torch.tensor([1, 4, 0])
    result = parameter_randomization(
        model,
        images,
        gradient,
        target=target,
        cascading=cascading,
        similarity="spearman of abs",
        generator=torch.Generator().manual_seed(3),
    )
    seeds = torch.randint(2**62, (3,), generator=torch.Generator().manual_seed(3)).tolist()
    original = gradient(model, images, target).abs().sum(1)
    twin = make("Residual").eval()
    groups = [["fc"], ["conv2", "bn2"], ["conv1", "bn1"]]
    for (layer, value), names, seed in zip(result.items(), groups, seeds, strict=True):
        if not cascading:
            twin = make("Residual").eval()
        assert layer == names[0]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            twin.get_submodule(names[0]).reset_parameters()  # type: ignore[operator]
        for name in names[1:]:
            nn.init.ones_(twin.get_submodule(name).weight)  # type: ignore[arg-type]
            nn.init.zeros_(twin.get_submodule(name).bias)  # type: ignore[arg-type]
        maps = gradient(twin, images, target).abs().sum(1)
        slow = [
            stats.spearmanr(a.flatten(), b.flatten()).statistic
            for a, b in zip(original, maps, strict=True)
        ]
        torch.testing.assert_close(value.double(), torch.tensor(slow), rtol=0, atol=1e-6)


def test_similarities_by_hand() -> None:
    a = pixels(1, -2, 3, -4)[0].numpy()
    b = pixels(4, -3, 2, -1)[0].numpy()
    # Ranks 3, 2, 4, 1 and 4, 1, 3, 2: the differences 1, 1, 1, 1 give 1 − 6 · 4 / (4 · 15).
    assert SIMILARITIES["spearman"](a, b) == pytest.approx(0.6)
    assert SIMILARITIES["spearman of abs"](a, b) == pytest.approx(-1)
    assert SIMILARITIES["spearman"](a, -a) == pytest.approx(-1)
    assert SIMILARITIES["spearman of abs"](a, -2 * a) == pytest.approx(1)
    picture = batch()[0].double().numpy()
    for name in ("ssim", "hog"):
        assert SIMILARITIES[name](picture, -3 * picture) == pytest.approx(1)
        assert SIMILARITIES[name](picture, picture[:, ::-1]) < 0.9


def test_ssim_by_its_formula() -> None:
    """Of maps of 7 × 7 pixels there is one window; K₁ 0.01, K₂ 0.03, values from 0 to 1."""
    a, b = np.random.default_rng(0).random((2, 1, 7, 7))
    x, y = ((m - m.min()) / np.ptp(m) for m in (a, b))
    (xx, xy), (_, yy) = np.cov(x.ravel(), y.ravel())
    light = (2 * x.mean() * y.mean() + 0.01**2) / (x.mean() ** 2 + y.mean() ** 2 + 0.01**2)
    wanted = light * (2 * xy + 0.03**2) / (xx + yy + 0.03**2)
    assert SIMILARITIES["ssim"](a, b) == pytest.approx(wanted, abs=1e-12)


@pytest.mark.parametrize("name", SIMILARITIES)
def test_a_constant_map_is_like_no_other(name: str) -> None:
    some, flat = np.random.default_rng(0).random((1, 32, 32)), np.ones((1, 32, 32))
    for pair in ((some, flat), (flat, some), (flat, flat)):
        assert np.isnan(SIMILARITIES[name](*pair))


def test_a_map_without_contrast() -> None:
    def flat(model: nn.Module, images: Tensor, target: Any) -> Tensor:
        return torch.zeros_like(images[:, 0])

    for similarity in SIMILARITIES:
        result = parameter_randomization(make("Reused"), batch(), flat, similarity=similarity)
        assert all(value.isnan().all() for value in result.values())


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("cascading", [True, False])
@pytest.mark.parametrize("fails", [False, True])
def test_the_model_is_given_back(network: str, cascading: bool, fails: bool) -> None:
    model = make(network)
    next(iter(model.children())).eval()
    next(iter(model.parameters())).requires_grad_(False)
    modes = [module.training for module in model.modules()]
    wanted = [parameter.requires_grad for parameter in model.parameters()]
    before, rng, calls = state(model), torch.get_rng_state(), []

    def method(model: nn.Module, images: Tensor, target: Any) -> Tensor:
        calls.append(state(model))
        if fails and len(calls) == 3:
            raise RuntimeError("broken")
        return gradient(model, images, target)

    try:
        parameter_randomization(model, batch(), method, cascading=cascading)
    except RuntimeError:
        assert fails
    assert calls[0] == before
    assert calls[1] != before
    assert state(model) == before
    assert torch.equal(torch.get_rng_state(), rng)
    assert [module.training for module in model.modules()] == modes
    assert [parameter.requires_grad for parameter in model.parameters()] == wanted
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_a_layer_that_makes_new_parameters_gets_the_old_ones_back() -> None:
    class Fresh(nn.Linear):
        def reset_parameters(self) -> None:
            self.weight = nn.Parameter(torch.rand(self.out_features, self.in_features))

    model = nn.Sequential(nn.Flatten(), Fresh(192, 5))
    before = state(model)
    for cascading in (True, False):
        parameter_randomization(model, batch(), gradient, cascading=cascading)
        assert state(model) == before


def test_running_statistics_stay() -> None:
    model = make("Residual")
    seen = []

    def method(model: nn.Module, images: Tensor, target: Any) -> Tensor:
        seen.append([buffer.tolist() for buffer in model.buffers()])
        return gradient(model, images, target)

    parameter_randomization(model, batch(), method)
    assert seen == [seen[0]] * 4


def test_cascading_goes_on_and_independent_starts_again() -> None:
    for cascading in (True, False):
        model = make("Functional")
        changed: list[set[str]] = []
        values = {name: value.clone() for name, value in model.named_parameters()}

        def method(
            model: nn.Module,
            images: Tensor,
            target: Any,
            values: Any = values,
            changed: Any = changed,
        ) -> Tensor:
            names = model.named_parameters()
            changed.append({n.split(".")[0] for n, p in names if not torch.equal(p, values[n])})
            return gradient(model, images, target)

        parameter_randomization(model, batch(), method, cascading=cascading)
        expected = [set(), {"fc"}, {"conv2"}, {"conv1"}]
        if cascading:
            expected = [set(), {"fc"}, {"fc", "conv2"}, {"fc", "conv2", "conv1"}]
        assert changed == expected


def test_the_class_is_that_of_the_model_as_it_is() -> None:
    model, images = make("Residual").eval(), batch()
    answers = model(images).argmax(1)
    seen = []

    def method(model: nn.Module, images: Tensor, target: Tensor) -> Tensor:
        seen.append(target)
        return gradient(model, images, target)

    parameter_randomization(model, images, method)
    assert len(seen) == 4
    assert all(torch.equal(target, answers) for target in seen)


@pytest.mark.parametrize("similarity", ["spearman", "ssim"])
def test_batches_and_kinds(similarity: str) -> None:
    model, images = make("Residual").double(), batch(dtype=torch.float64)
    randomize = partial(parameter_randomization, model, method=gradient, similarity=similarity)
    together = randomize(images=images)
    sizes = []

    def method(model: nn.Module, images: Tensor, target: Tensor) -> Tensor:
        sizes.append(len(images))
        return gradient(model, images, target)

    for result in (
        randomize(images=images, batch_size=2, method=method),
        {
            name: torch.cat([randomize(images=image[None])[name] for image in images])
            for name in together
        },
    ):
        for name, value in together.items():
            assert value.dtype == torch.float64
            torch.testing.assert_close(result[name], value, rtol=0, atol=1e-10)
    assert sizes == [2, 1] * 4
    with torch.inference_mode():
        again = randomize(images=images)
    assert all(torch.equal(again[name], value) for name, value in together.items())


@pytest.mark.parametrize(
    "method",
    [
        METHODS["gradient"],
        partial(smoothgrad, samples=2),
        grad_cam,
        METHODS["integrated_gradients"],
    ],
    ids=["Method", "partial", "(N, H, W)", "batched"],
)
def test_every_kind_of_method(method: Callable) -> None:
    model, images = make("Residual"), batch()
    assert len(parameter_randomization(model, images, method)) == 3
    assert max_sensitivity(model, images, method, samples=2).shape == (3,)


def test_the_generator() -> None:
    model, images = make("Residual"), batch()
    for measure in (
        lambda **options: torch.cat(
            [*parameter_randomization(model, images, gradient, **options).values()]
        ),
        lambda **options: max_sensitivity(model, images, gradient, **options),
    ):
        before = torch.get_rng_state()
        first = measure()
        assert torch.equal(torch.get_rng_state(), before)
        generator = torch.Generator().manual_seed(0)
        assert torch.equal(first, measure(generator=generator))
        assert not torch.equal(first, measure(generator=generator))


# weights that are computed, and parameters that no layer draws


class Doubled(nn.Module):
    """A parametrization without an inverse."""

    def forward(self, original: Tensor) -> Tensor:
        return 2 * original


def pruned(layer: nn.Module, amount: float = 0.3) -> nn.Module:
    return prune.l1_unstructured(layer, "weight", amount)


def pruned_twice(layer: nn.Module) -> nn.Module:
    return prune.ln_structured(pruned(layer), "weight", 0.3, n=2, dim=1)


def norm_of_pruned(layer: nn.Module) -> nn.Module:
    return prune.l1_unstructured(weight_norm(layer), "weight_v", 0.3)


WRAPS: dict[str, Callable[[Any], nn.Module]] = {
    "weight_norm": weight_norm,
    "weight_norm of all": partial(weight_norm, dim=None),  # type: ignore[arg-type]
    "spectral_norm": spectral_norm,
    "pruned": pruned,
    "pruned twice": pruned_twice,
    "weight_norm of pruned": norm_of_pruned,
    "parametrizations.weight_norm": parametrizations.weight_norm,
    "parametrizations.spectral_norm": parametrizations.spectral_norm,
    "orthogonal": parametrizations.orthogonal,
    "householder": partial(
        parametrizations.orthogonal, orthogonal_map="householder", use_trivialization=False
    ),
    "cayley": partial(
        parametrizations.orthogonal, orthogonal_map="cayley", use_trivialization=False
    ),
    "doubled": lambda layer: parametrize.register_parametrization(layer, "weight", Doubled()),
    "two": lambda layer: parametrizations.spectral_norm(parametrizations.weight_norm(layer)),
}
every_wrap = pytest.mark.parametrize("wrap", WRAPS)
old_norms = pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm`:FutureWarning")


def wrapped(wrap: str) -> nn.Module:
    model = make("Functional")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        for layer in (model.conv1, model.conv2, model.fc):
            WRAPS[wrap](layer)
        with torch.no_grad():
            model(batch())
    return model


@old_norms
@every_wrap
@pytest.mark.parametrize("cascading", [True, False])
def test_layers_whose_weights_are_computed(wrap: str, cascading: bool) -> None:
    model = wrapped(wrap).eval()
    result = parameter_randomization(model, batch(), gradient, target=0, cascading=cascading)
    assert list(result) == LAYERS["Functional"]
    # Cayley's map of small numbers is near the identity, drawn anew as well.
    assert all((value < (1 if wrap == "cayley" else 0.95)).all() for value in result.values())


@old_norms
@pytest.mark.parametrize("wrap", ["weight_norm", "parametrizations.weight_norm"])
def test_a_weight_norm_is_as_no_norm(wrap: str) -> None:
    """g and v become those of the weight that the plain layer draws."""
    plain = parameter_randomization(make("Functional"), batch(), gradient, target=0)
    result = parameter_randomization(wrapped(wrap), batch(), gradient, target=0)
    for name, value in plain.items():
        torch.testing.assert_close(result[name], value, atol=2e-3, rtol=0)


@old_norms
@every_wrap
def test_a_computed_weight_is_drawn_as_the_layer_draws_it(wrap: str) -> None:
    torch.manual_seed(0)
    layer: Any = nn.Linear(6, 4)
    plain = nn.Linear(6, 4)
    WRAPS[wrap](layer)
    layer.eval()(torch.zeros(1, 6))
    before = layer.weight.detach().clone()
    for one in (layer, plain):
        torch.manual_seed(3)
        sanity.draw(one)
    layer(torch.zeros(1, 6))
    weight, drawn = layer.weight.detach(), plain.weight.detach()
    assert torch.equal(layer.bias, plain.bias)
    if "pruned" in wrap:
        mask = layer.weight_v_mask if "norm" in wrap else layer.weight_mask
        assert 0 < (mask == 0).sum() < mask.numel()
        assert torch.equal(weight == 0, mask == 0)
        if "norm" not in wrap:
            assert torch.equal(weight, mask * drawn)
    elif "spectral" in wrap or wrap == "two":
        norm = torch.linalg.matrix_norm(drawn, 2)
        torch.testing.assert_close(weight, drawn / norm, atol=0.02, rtol=0)
    elif "weight_norm" in wrap:
        torch.testing.assert_close(weight, drawn)
    elif wrap != "doubled":
        torch.testing.assert_close(weight @ weight.mT, torch.eye(4), atol=1e-5, rtol=0)
    assert (weight - before).abs().max() > 0.1


@old_norms
@every_wrap
@pytest.mark.parametrize("cascading", [True, False])
@pytest.mark.parametrize("fails", [False, True])
def test_computed_weights_are_given_back(wrap: str, cascading: bool, fails: bool) -> None:
    model = wrapped(wrap)
    before, flags = state(model), [module.training for module in model.modules()]
    hooks = [dict(module._forward_pre_hooks) for module in model.modules()]
    logits = model.eval()(batch())
    model.train()
    plain = [(module, "weight", id(w), w.tolist()) for module, w in weights_beside(model)]
    calls: list[None] = []

    def method(model: nn.Module, images: Tensor, target: Any) -> Tensor:
        calls.append(None)
        assert not any(module.training for module in model.modules())
        if fails and len(calls) == 3:
            raise RuntimeError("broken")
        return gradient(model, images, target)

    try:
        parameter_randomization(model, batch(), method, cascading=cascading)
    except RuntimeError:
        assert fails
    assert state(model) == before
    assert [(module, "weight", id(w), w.tolist()) for module, w in weights_beside(model)] == plain
    assert [module.training for module in model.modules()] == flags
    assert [dict(module._forward_pre_hooks) for module in model.modules()] == hooks
    assert torch.equal(model.eval()(batch()), logits)


def weights_beside(model: nn.Module) -> list[tuple[nn.Module, Tensor]]:
    """Weights that hooks left as attributes."""
    return [
        (module, vars(module)["weight"]) for module in model.modules() if "weight" in vars(module)
    ]


def transformers() -> dict[str, nn.Module]:
    swin = {"patch_size": [4, 4], "embed_dim": 8, "depths": [1, 1], "num_heads": [2, 2]}
    blocks = [CNBlockConfig(8, 16, 1), CNBlockConfig(16, None, 1)]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = {
            "vit": VisionTransformer(32, 8, 1, 2, 16, 32, num_classes=5),
            "swin": SwinTransformer(**swin, window_size=[4, 4], num_classes=5),
            "convnext": ConvNeXt(blocks, layer_scale=0.1, num_classes=5),
        }
        nn.init.normal_(made["vit"].heads.head.weight)
    return made


OF_TRANSFORMERS = {
    "vit": [
        *("heads.head", *(f"encoder.layers.encoder_layer_0.mlp.{n}" for n in (3, 0))),
        *(
            f"encoder.layers.encoder_layer_0.self_attention.{n}"
            for n in ("out_proj", "in_proj_weight")
        ),
        *("encoder.pos_embedding", "class_token", "conv_proj"),
    ],
    "swin": [
        "head",
        *(f"features.3.0.{n}" for n in ("mlp.3", "mlp.0", "attn.proj", "attn.qkv")),
        *("features.3.0.attn.relative_position_bias_table", "features.2.reduction"),
        *(f"features.1.0.{n}" for n in ("mlp.3", "mlp.0", "attn.proj", "attn.qkv")),
        *("features.1.0.attn.relative_position_bias_table", "features.0.0"),
    ],
    "convnext": [
        "classifier.2",
        *(f"features.3.0.{n}" for n in ("layer_scale", "block.5", "block.3", "block.0")),
        "features.2.1",
        *(f"features.1.0.{n}" for n in ("layer_scale", "block.5", "block.3", "block.0")),
        "features.0.0",
    ],
}


@pytest.mark.parametrize("name", OF_TRANSFORMERS)
@pytest.mark.parametrize("cascading", [True, False])
def test_networks_with_parameters_of_their_own(name: str, cascading: bool) -> None:
    model = transformers()[name]
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    values = {name: value.clone() for name, value in model.named_parameters()}
    before, changed = state(model), []

    def method(model: nn.Module, images: Tensor, target: Any) -> Tensor:
        named = model.named_parameters()
        changed.append({n for n, p in named if not torch.equal(p, values[n])})
        return gradient(model, images, target)

    result = parameter_randomization(model, images, method, cascading=cascading)
    assert list(result) == OF_TRANSFORMERS[name]
    assert all((value < 1).all() for value in result.values())
    assert state(model) == before
    for layer, names in zip(result, changed[1:], strict=True):
        assert layer in names or f"{layer}.weight" in names
    if cascading:
        kept = {n for n, v in values.items() if v.ndim == 1 and v.unique().numel() == 1}
        assert changed[-1] >= values.keys() - kept  # a norm of 1 and 0 is new already


def test_a_copy_forgets_the_parameters_of_no_layer() -> None:
    model = transformers()["vit"]
    other = dict(sanity.randomized_copy(model).named_parameters())
    for name in ("class_token", "encoder.pos_embedding", "conv_proj.weight"):
        assert not torch.equal(other[name], model.get_parameter(name))
    attention = "encoder.layers.encoder_layer_0.self_attention.in_proj_"
    for name in ("weight", "bias"):
        assert not torch.equal(other[attention + name], model.get_parameter(attention + name))


def test_a_parameter_of_no_layer_by_hand() -> None:
    """Root mean square 5 of 3, 4 and √50; 0.02 where all are 0."""
    for parameter, size in ((torch.tensor([3.0, 4.0, 50**0.5]), 5.0), (torch.zeros(2, 2), 0.02)):
        parameter = nn.Parameter(parameter)
        torch.manual_seed(0)
        sanity.draw(parameter)
        torch.manual_seed(0)
        torch.testing.assert_close(parameter.detach(), size * torch.randn(parameter.shape))


def test_what_runs_without_its_module() -> None:
    class Bare(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Parameter(torch.randn(5, 6, generator=torch.Generator().manual_seed(0)))
            self.scale = nn.Parameter(torch.tensor(2.0))
            self.conv = nn.Conv2d(3, 6, 3)
            self.unread = nn.Linear(2, 2)

        def forward(self, x: Tensor) -> Tensor:
            x = F.conv2d(x, self.conv.weight, self.conv.bias).relu() * self.scale
            return F.linear(x.mean((2, 3)), self.head)

    model = Bare()
    assert list(parameter_randomization(model, batch(), gradient)) == ["head", "conv"]
    (head, conv) = sanity._layers(model, sanity._members(model), batch(1)).values()
    assert list(head) == ["head"]
    assert list(conv) == ["conv", "scale"]


def test_parameters_that_a_layer_does_not_draw() -> None:
    class Adapted(nn.Linear):
        def __init__(self) -> None:
            super().__init__(4, 3)
            self.gain = nn.Parameter(torch.ones(3))

        def reset_parameters(self) -> None:
            self.weight.data.fill_(7)  # as old code does, which leaves the version as it was
            nn.init.zeros_(self.bias)

    layer = Adapted()
    nn.init.ones_(layer.weight)
    sanity.draw(layer)
    assert torch.equal(layer.weight, torch.full((3, 4), 7.0))
    assert torch.equal(layer.bias, torch.zeros(3))
    assert not torch.equal(layer.gain, torch.ones(3))


@pytest.mark.parametrize("cascading", [True, False])
def test_a_layer_that_stays_as_it_is_is_an_error(cascading: bool) -> None:
    for name, first, last in (
        ("0", nn.LayerNorm([3, 8, 8]), nn.Linear(192, 5)),  # new
        ("2", nn.Conv2d(3, 3, 7), pruned(nn.Linear(12, 5, bias=False), 1.0)),
    ):
        model = nn.Sequential(first, nn.Flatten(), last)
        before = state(model)
        with pytest.raises(ValueError, match=f"^model .* its layer '{name}' anew changes nothing"):
            parameter_randomization(model, batch(), edges, cascading=cascading)
        assert state(model) == before


# sensitivity


def test_sensitivity_by_hand() -> None:
    generator = torch.Generator().manual_seed(1)
    (seed,) = torch.randint(2**62, (1,), generator=generator).tolist()
    draws = torch.rand(1, 1, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    image = pixels(3, 0, 4)
    result = max_sensitivity(
        lambda x: x.flatten(1),
        image,
        lambda model, images, target: 2 * images,
        radius=0.5,
        samples=1,
        generator=generator.manual_seed(1),
    )
    # The map is linear, so that it moves as the image does: ‖ε‖ / ‖x‖.
    noise = 0.5 * (2 * draws - 1)
    assert noise.abs().max() <= 0.5
    assert result.item() == pytest.approx(float(noise.norm() / 5))


def test_sensitivity_grows_with_samples_and_radius() -> None:
    model, images = make("Residual"), batch()
    measure = partial(max_sensitivity, model, images, gradient)
    assert (measure(samples=20) >= measure(samples=5)).all()
    assert (measure(samples=20, radius=0.1) > measure(samples=20, radius=0.001)).all()
    assert torch.equal(measure(radius=0), torch.zeros(3))


def test_sensitivity_tells_a_steady_method_from_a_jumpy_one() -> None:
    def jumpy(model: Any, images: Tensor, target: Any) -> Tensor:
        return (1000 * images).sin()

    def steady(model: Any, images: Tensor, target: Any) -> Tensor:
        return images.sign()

    def constant(model: Any, images: Tensor, target: Any) -> Tensor:
        return torch.ones_like(images[:, 0])

    def zero(model: Any, images: Tensor, target: Any) -> Tensor:
        return torch.zeros_like(images)

    model, images = make("Residual"), batch()
    assert (max_sensitivity(model, images, constant) == 0).all()
    assert (max_sensitivity(model, images, steady) < 0.5).all()
    assert (max_sensitivity(model, images, jumpy) > 1).all()
    assert max_sensitivity(model, images, zero).isnan().all()


@pytest.mark.parametrize("network", NETWORKS)
def test_sensitivity_in_batches(network: str) -> None:
    model, images = make(network).double(), batch(dtype=torch.float64)
    measure = partial(max_sensitivity, model, method=gradient, samples=4)
    together = measure(images=images)
    alone = torch.cat([measure(images=image[None], batch_size=1) for image in images])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-10)
    assert together.dtype == torch.float64
    with torch.inference_mode():
        assert torch.equal(measure(images=images.clone()), together)


def test_sensitivity_runs_the_method_once_for_each_sample() -> None:
    images, seen = batch(), []

    def method(model: Any, images: Tensor, target: Tensor) -> Tensor:
        seen.append((len(images), target.tolist()))
        return images

    model = make("Residual").eval()
    answers = model(images).argmax(1).tolist()
    max_sensitivity(model, images, method, samples=5, batch_size=4)
    assert [size for size, _ in seen] == [3, 4, 4, 4, 3]
    classes = [target for _, targets in seen for target in targets]
    assert classes == answers * 6  # of the image without noise


@pytest.mark.references
def test_sensitivity_equals_captum() -> None:
    from captum.metrics import sensitivity_max

    model, images = make("Residual").eval(), batch()
    target = torch.tensor([1, 4, 0])
    seeds = torch.randint(2**62, (10,), generator=torch.Generator().manual_seed(0)).tolist()
    draws = iter(
        [torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    )

    def explain(inputs: Any) -> Any:
        if isinstance(inputs, tuple):  # the images as they are; it wants a tuple back
            return (gradient(model, inputs[0], target),)
        return gradient(model, inputs, target)

    def perturb(inputs: Tensor) -> Tensor:
        return inputs + 0.02 * (2 * next(draws) - 1)

    reference = torch.stack(
        [
            sensitivity_max(
                explain,
                images,
                perturb_func=perturb,
                n_perturb_samples=1,
            )
            for _ in seeds
        ]
    ).amax(0)
    result = max_sensitivity(model, images, gradient, target)
    torch.testing.assert_close(result, reference, rtol=1e-4, atol=1e-6)


@pytest.mark.references
def test_captum_mixes_images_up_where_a_method_returns_a_tensor() -> None:
    from captum.metrics import sensitivity_max

    images = batch()

    def explain(inputs: Any) -> Tensor:
        return inputs[0] if isinstance(inputs, tuple) else inputs

    reference = sensitivity_max(explain, images, perturb_func=lambda x: x, n_perturb_samples=1)
    assert (reference > 0.5).any()  # nothing was changed: it compares images with one another
    still = max_sensitivity(make("Residual"), images, lambda *arguments: arguments[1], radius=0)
    assert torch.equal(still, torch.zeros(3))


# label randomisation


def trained(images: Tensor, labels: Tensor, seed: int, epochs: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(),
            nn.MaxPool2d(2), nn.Flatten(), nn.Linear(512, 64), nn.ReLU(), nn.Linear(64, 10),
        )  # fmt: skip
        optimizer = torch.optim.Adam(model.parameters(), 2e-3)
        for _ in range(epochs):
            for rows in torch.randperm(len(images)).split(75):
                optimizer.zero_grad()
                nn.functional.cross_entropy(model(images[rows]), labels[rows]).backward()
                optimizer.step()
    return model.eval()


@pytest.mark.slow
def test_labels_of_digits_permuted() -> None:
    digits = load_digits()
    images = torch.tensor(digits.images[:300, None] / 16 - 0.3, dtype=torch.float32)
    labels = torch.tensor(digits.target[:300])
    permuted = labels[torch.randperm(300, generator=torch.Generator().manual_seed(3))]
    model, twin = trained(images, labels, 0, 15), trained(images, labels, 1, 15)
    shuffled = trained(images, permuted, 0, 80)
    for one, known in ((model, labels), (twin, labels), (shuffled, permuted)):
        assert (one(images).argmax(1) == known).float().mean() > 0.9
    compare = partial(label_randomization, model, images[:50])

    def gap(method: Callable, similarity: str = "spearman") -> tuple[float, float]:
        values = [
            compare(method, shuffled=other, similarity=similarity) for other in (shuffled, twin)
        ]
        return float(values[0].mean()), float(values[1].mean())

    for method in (gradient, METHODS["input_x_gradient"], METHODS["deeplift"]):
        memorised, again = gap(method)
        assert memorised < 0.25
        assert again > 0.5
        for similarity in ("spearman of abs", "ssim"):
            memorised, again = gap(method, similarity)
            assert memorised < again - 0.05
    # Guided Backprop's map is as much like itself where nothing of the classes was learnt.
    memorised, again = gap(METHODS["guided_backprop"])
    assert memorised > 0.5
    assert again - memorised < 0.25


def test_label_randomization_by_hand() -> None:
    model, shuffled, images = make("Residual").eval(), make("Residual", 1).eval(), batch()
    answers = model(images).argmax(1)
    seen: list[Any] = []

    def method(model: nn.Module, images: Tensor, target: Tensor) -> Tensor:
        seen.append((model, target.tolist()))
        return gradient(model, images, target)

    result = label_randomization(model, images, method, shuffled=shuffled, batch_size=2)
    for model_seen, classes in ((model, answers), (shuffled, answers)):
        rows = [target for one, target in seen if one is model_seen]
        assert rows == [classes[:2].tolist(), classes[2:].tolist()]
    maps = [gradient(one, images, answers).sum(1).flatten(1) for one in (model, shuffled)]
    expected = [stats.spearmanr(a, b).statistic for a, b in zip(maps[0], maps[1], strict=True)]
    torch.testing.assert_close(result.double(), torch.tensor(expected), atol=1e-6, rtol=0)
    same = label_randomization(model, images, gradient, shuffled=model, similarity="ssim")
    assert torch.equal(same, torch.ones(3))
    constant = label_randomization(model, images, lambda m, x, t: 0 * x, shuffled=shuffled)
    assert constant.isnan().all()
    assert torch.equal(label_randomization(model, images, edges, shuffled=shuffled), torch.ones(3))


# agreement


def dice(
    model: Any, images: Tensor, target: Any, *, generator: torch.Generator | None = None
) -> Tensor:
    """The same draws for every image, as the contract wants it, plus something of the image."""
    generator = generator or torch.Generator().manual_seed(0)
    return images + 0.5 * torch.randn(images.shape[1:], generator=generator, dtype=images.dtype)


def test_agreement_by_hand() -> None:
    images = batch(dtype=torch.float64)
    result = agreement(make("Residual").double(), images, dice, runs=3)
    seeds = torch.randint(2**62, (3,), generator=torch.Generator().manual_seed(0)).tolist()
    maps = [
        dice(None, images, None, generator=torch.Generator().manual_seed(seed)).sum(1)
        for seed in seeds
    ]
    for number, value in enumerate(result):
        a, b, c = (one[number].flatten() for one in maps)
        pairs = [stats.spearmanr(*pair).statistic for pair in ((a, b), (a, c), (b, c))]
        assert value.item() == pytest.approx(sum(pairs) / 3)
        assert value.item() == pytest.approx(rank_agreement(torch.stack([a, b, c])))
        assert 0.5 < value < 0.95


def test_agreement_grows_with_samples() -> None:
    model, images = make("Residual"), batch()
    few, many = (agreement(model, images, smoothgrad, samples=n, noise=1.0) for n in (2, 60))
    assert (few < many).all()
    assert (many < 1).all()
    entry = METHODS["smoothgrad"]
    for method in (entry, partial(smoothgrad), partial(entry), partial(partial(entry))):
        assert torch.equal(agreement(model, images, method, samples=2, noise=1.0), few)
    chosen = agreement(model, images, partial(entry, samples=2, noise=1.0))
    assert torch.equal(chosen, few)


def test_agreement_of_methods_that_draw_elsewhere_or_nothing() -> None:
    def careless(model: Any, images: Tensor, target: Any) -> Tensor:
        return torch.rand(images.shape)

    before = torch.get_rng_state()
    for model in (make("Residual"), make("Residual").eval().forward):
        result = agreement(model, batch(), careless)
        assert result.abs().max() < 0.5
        assert torch.equal(agreement(model, batch(), careless), result)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(agreement(make("Residual"), batch(), gradient), torch.ones(3))
    assert agreement(make("Residual"), batch(), lambda m, x, t: 0 * x).isnan().all()


def test_agreement_of_an_image_alone_and_in_a_batch() -> None:
    model, images = make("Residual").double(), batch(dtype=torch.float64)
    measure = partial(agreement, model, method=smoothgrad, samples=2, noise=1.0, runs=3)
    together = measure(images)
    torch.testing.assert_close(measure(images, batch_size=2), together)
    torch.testing.assert_close(torch.cat([measure(image[None]) for image in images]), together)
    generator = torch.Generator().manual_seed(0)
    assert torch.equal(measure(images, generator=generator), together)
    assert not torch.equal(measure(images, generator=generator), together)


@pytest.mark.parametrize(
    ("argument", "bad"),
    [
        ("model", "resnet18"),
        ("images", batch()[0]),
        ("target", 1.5),
        ("method", "gradient"),
        ("batch_size", 0),
    ],
)
def test_bad_label_randomization_and_agreement(argument: str, bad: Any) -> None:
    model = make("Residual")
    model.register_forward_pre_hook(lambda *_: uncallable())
    arguments = {"model": model, "images": batch(), "method": uncallable, argument: bad}
    for measure in (partial(label_randomization, shuffled=model), agreement):
        with pytest.raises((ValueError, TypeError), match=f"^{argument} ") as error:
            measure(**arguments)
        assert "\n" not in str(error.value)


def test_bad_options_of_the_two() -> None:
    model = make("Residual")
    with pytest.raises(TypeError, match="^shuffled must be a model .* permuted labels, not str"):
        label_randomization(model, batch(), uncallable, shuffled="other")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="^similarity: there is no 'pearson'"):
        label_randomization(model, batch(), uncallable, shuffled=model, similarity="pearson")
    for bad in (1, 2.5):
        with pytest.raises((ValueError, TypeError), match="^runs "):
            agreement(model, batch(), uncallable, runs=bad)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="^generator must be"):
        agreement(model, batch(), uncallable, generator=3)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="^gradient has no option 'samples'"):
        agreement(model, batch(), METHODS["gradient"], samples=3)


# bad input


def uncallable(*arguments: Any) -> Tensor:
    raise AssertionError("checks come before any work")


@pytest.mark.parametrize("measure", [parameter_randomization, max_sensitivity])
@pytest.mark.parametrize(
    ("argument", "bad"),
    [
        ("model", "resnet18"),
        ("images", batch()[0]),
        ("images", batch().long()),
        ("target", 1.5),
        ("method", "gradient"),
        ("batch_size", 0),
        ("generator", 3),
    ],
)
def test_bad_input(measure: Callable, argument: str, bad: Any) -> None:
    model = make("Residual")
    model.register_forward_pre_hook(lambda *_: uncallable())
    arguments = {"model": model, "images": batch(), "method": uncallable, argument: bad}
    with pytest.raises((ValueError, TypeError), match=f"^{argument} ") as error:
        measure(**arguments)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("argument", "bad"), [("radius", -1), ("radius", "0.1"), ("samples", 0), ("samples", 1.5)]
)
def test_bad_sensitivity(argument: str, bad: Any) -> None:
    with pytest.raises((ValueError, TypeError), match=f"^{argument} "):
        max_sensitivity(make("Residual"), batch(), uncallable, **{argument: bad})


def test_bad_randomization() -> None:
    randomize = partial(parameter_randomization, method=uncallable)
    model = make("Residual")
    with pytest.raises(
        ValueError, match="^similarity: there is no 'Spearman abs'; did you mean 's"
    ):
        randomize(model, batch(), similarity="Spearman abs")
    for similarity in ("ssim", "hog"):
        with pytest.raises(
            ValueError, match="^similarity .* at least 7 × 7 pixels, but they are 6"
        ):
            randomize(model, batch()[:, :, :6], similarity=similarity)
    with pytest.raises(ValueError, match="^model has no parameters"):
        randomize(nn.Flatten(), batch())
    constant = nn.Flatten()
    constant.unread = nn.Parameter(torch.ones(1))
    with pytest.raises(ValueError, match="^model reads none of its parameters"):
        parameter_randomization(constant, batch(), edges)


@pytest.mark.parametrize("measure", [parameter_randomization, max_sensitivity])
def test_methods_that_return_no_map(measure: Callable) -> None:
    model = make("Residual")
    for method in (
        partial(smoothgrad_estimate, samples=2),
        lambda model, images, target: images[:1],
        lambda model, images, target: images[..., :4],
        lambda model, images, target: images / 0,
    ):
        with pytest.raises((ValueError, TypeError), match="^method: what it returned must be "):
            measure(model, batch(), method)
    with pytest.raises(ValueError, match="^target: there is no class 7"):
        measure(model, batch(), integrated_gradients, target=7)


def test_ranks_are_those_of_scipy() -> None:
    values = np.random.default_rng(0).integers(0, 20, (6, 7)) / 7
    np.testing.assert_array_equal(sanity._ranks(values).ravel(), stats.rankdata(values))
