import re
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from course_utils.evaluation import axioms as module
from course_utils.evaluation.axioms import AXIOMS, Network, Verdict, axioms
from course_utils.layers import capture
from course_utils.methods import METHODS
from course_utils.methods.gradients import gradient, integrated_gradients
from course_utils.methods.propagation import pattern_net


def obeyed(verdicts: dict[str, Verdict]) -> set[str]:
    return {axiom for axiom, verdict in verdicts.items() if verdict.holds}


@pytest.mark.parametrize("name", METHODS)
def test_every_method(name: str) -> None:
    before = torch.get_rng_state()
    verdicts = axioms(METHODS[name])
    assert torch.equal(torch.get_rng_state(), before)
    assert tuple(verdicts) == AXIOMS
    assert obeyed(verdicts) == METHODS[name].claims
    for axiom, (holds, gap, example) in verdicts.items():
        assert holds == (example is None)
        # What fails fails by far, so that nothing depends on the tolerance.
        assert (gap < 0.03) if holds else (gap > 0.15), axiom
        if example is None:
            continue
        assert str(example) == example.sentence
        assert "\n" not in example.sentence
        assert all(network.formula in example.sentence for network in example.networks)
        assert example.image.shape[3] <= 3
        # Once more, from what the counterexample holds alone.
        again = [
            module._explain(METHODS[name], {}, network, example.image)
            for network in example.networks
        ]
        if axiom == "completeness":
            assert float(again[0].sum()) == pytest.approx(example.found)
        elif axiom != "linearity":
            values = torch.cat(again)
            assert (values - example.found).abs().min() < 1e-9


def test_the_papers_own_examples() -> None:
    verdict = axioms(gradient)["sensitivity"]
    assert verdict.counterexample is not None
    assert verdict.counterexample.sentence == (
        "f(x) = 1 − relu(1 − x₁) at x = (2, 0): x₁ alone makes f(x) differ from f(0), by 1, but "
        "gets 0"
    )
    verdict = axioms(METHODS["deeplift"])["implementation invariance"]
    assert verdict.counterexample is not None
    assert verdict.counterexample.sentence == (
        "f(x) = relu(relu(x₁) − 1 − relu(x₂)) and g(x) = relu(relu(x₁ − 1) − relu(x₂)) are equal "
        "for all x, but at x = (3, 1) x₁ gets 1.5 in f and 2 in g"
    )
    assert verdict.gap == pytest.approx(0.25)


def test_lime_blames_a_segment_that_does_nothing() -> None:
    """By the kernel's weights of the eight coalitions, without any draw."""
    import numpy as np

    z = np.array([[i >> k & 1 for k in range(3)] for i in range(8)], float)
    weights = np.exp(-(((1 - np.sqrt(z.mean(1))) / 0.25) ** 2))
    scores = z[:, :2].max(1)  # 1 − relu(1 − x₁ − x₂) at (2, 2, 1), where hidden is 0
    design = np.c_[np.ones(8), z] * np.sqrt(weights)[:, None]
    exact = np.linalg.lstsq(design, np.sqrt(weights) * scores, rcond=None)[0][1:]
    example = axioms(METHODS["lime_image"])["dummy"].counterexample
    assert example is not None
    assert exact[2] == pytest.approx(0.019, abs=5e-4)
    assert example.found == pytest.approx(exact[2], abs=0.005)
    assert example.expected == 0


# The networks' truth


def cases(axiom: str) -> list[partial]:
    return [case for same_size in module._cases(axiom) for case in same_size]


def many(image: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    shape = (200, *image.shape[1:])
    return 3 * torch.randn(shape, generator=generator, dtype=image.dtype)


def networks() -> list[tuple[Network, Tensor]]:
    found = []
    for axiom in AXIOMS:
        for case in cases(axiom):
            (image,) = (a for a in case.args if isinstance(a, Tensor))
            found += [(a, image) for a in case.args if isinstance(a, Network)]
    return found


def value(formula: str, images: Tensor) -> Tensor:
    """A formula's value (N,), computed as it is written."""
    names = {f"{a}{s}": images[:, c, 0, p] for c, a in enumerate("xy"[: images.shape[1]])
             for p, s in enumerate("₁₂₃"[: images.shape[3]])}  # fmt: skip
    code = formula.replace("−", "-").replace("½", "0.5")
    code = re.sub(r"([\d.]+) (?=[a-zσ])", r"\1 * ", code)
    for number, name in enumerate(names):
        code = code.replace(name, f"v[{number}]")
    known = {"v": list(names.values()), "relu": torch.relu, "σ": torch.sigmoid, "tanh": torch.tanh}
    return eval(code, known)


def test_formulas_say_what_the_networks_do() -> None:
    told = 0
    for network, image in networks():
        formula = re.sub(r" \[.*?\]", "", network.formula)  # how it is built
        images = many(image)
        torch.testing.assert_close(
            network(images)[:, 0], value(formula, images) + 0 * images[:, 0, 0, 0]
        )
        told += 1
    assert told > 25


def test_networks_that_should_be_equal_are() -> None:
    for case in cases("implementation invariance"):
        f, g, image = case.args
        torch.testing.assert_close(f(many(image)), g(many(image)))
        assert f is not g


def test_dummies_do_nothing() -> None:
    for case in cases("dummy"):
        f, image, pixel = case.args
        images, other = many(image), many(image)
        other[..., pixel] = 7.0
        other[..., [p for p in range(image.shape[3]) if p != pixel]] = images[
            ..., [p for p in range(image.shape[3]) if p != pixel]
        ]
        torch.testing.assert_close(f(images), f(other))


def test_symmetric_networks_are() -> None:
    for case in cases("symmetry"):
        f, image = case.args
        swapped = [1, 0, *range(2, image.shape[3])]
        torch.testing.assert_close(f(many(image)), f(many(image)[..., swapped]))
        assert image[0, 0, 0, 0] == image[0, 0, 0, 1]


def test_one_pixel_differs_and_nothing_at_zero() -> None:
    for case in cases("sensitivity"):
        f, image = case.args
        assert (image != 0).sum() == 1
        assert f(image) != f(0 * image)
    for case in cases("completeness"):
        f, image = case.args
        assert f(0 * image) == 0  # so that f(x) and f(x) − f(0) are the same


def test_no_input_lies_on_a_kink() -> None:
    for network, image in networks():
        relus = [name for name, layer in network.named_modules() if isinstance(layer, nn.ReLU)]
        with capture(network, [name.rpartition(".")[0] + ".0" for name in relus]) as inputs:
            network(image)
        kinks = [float(x.abs().min()) for x in inputs.values()]
        # A unit that sees nothing but dummies or the edge's zeros has no slope to be wrong about.
        assert all(kink > 0.4 or kink == 0 for kink in kinks)


@pytest.mark.parametrize("axiom", AXIOMS)
def test_every_network_meets_several_inputs(axiom: str) -> None:
    first = list(module._CASES[axiom]())
    every = cases(axiom)
    assert len(every) == len(module.FACTORS) * len(first)
    for number in range(len(first)):
        images = [
            a for case in every[number :: len(first)] for a in case.args if torch.is_tensor(a)
        ]
        assert (
            len(images) == len(module.FACTORS) == len({tuple(x.flatten().tolist()) for x in images})
        )


def test_what_holds_at_one_input_by_accident_does_not_count() -> None:
    """Grad-CAM++ treats two equal pixels of one network alike where both are 2, and only there."""
    example = axioms(METHODS["grad_cam_plus_plus"])["symmetry"].counterexample
    assert example is not None
    assert example.sentence.startswith(
        "f(x) = relu(x₁ + x₂ − 1) + relu(x₁ − 1) + relu(x₂ − 1) at x = (3, 3): "
    )


# Methods of one's own, options, refusals


def test_a_method_of_ones_own() -> None:
    def half(model: nn.Module, images: Tensor, target: Any = None) -> Tensor:
        return integrated_gradients(model, images, target) / 2

    verdicts = axioms(half)
    assert obeyed(verdicts) == set(AXIOMS) - {"completeness"}
    assert verdicts["completeness"].gap == pytest.approx(0.5)
    example = verdicts["completeness"].counterexample
    assert example is not None
    assert (example.expected, example.found) == (7, 3.5)
    assert example.sentence == (
        "f(x) = 2 x₁ + x₂ at x = (3, 1): the map sums to 3.5, but f(x) − f(0) is 7"
    )

    def brightness(model: nn.Module, images: Tensor, target: Any = None) -> Tensor:
        return images[:, 0]

    assert obeyed(axioms(brightness)) == {"sensitivity", "implementation invariance", "symmetry"}

    def nothing(model: nn.Module, images: Tensor, target: Any = None) -> Tensor:
        return torch.zeros_like(images)

    assert obeyed(axioms(nothing)) == METHODS["gradient"].claims


def test_options_and_spellings() -> None:
    entry = METHODS["integrated_gradients"]
    wrong = axioms(entry, baseline=1.0)
    assert not wrong["completeness"].holds
    assert not wrong["sensitivity"].holds or wrong["completeness"].gap > 0.05
    again = axioms(partial(integrated_gradients, baseline=1.0))
    assert [v.gap for v in again.values()] == [v.gap for v in wrong.values()]
    coarse = axioms(entry, steps=1)["completeness"]
    assert coarse.gap > axioms(entry)["completeness"].gap
    assert axioms(entry, steps=1, tolerance=2)["completeness"].holds
    assert obeyed(axioms(pattern_net)) == set()  # its patterns are made as METHODS says
    bound = METHODS["deep_shap"].bind(torch.zeros(4, 3, 8, 8))  # of no use here
    assert obeyed(axioms(bound)) == METHODS["deep_shap"].claims
    with pytest.raises(TypeError, match="^gradient has no option 'sharpness'"):
        axioms(METHODS["gradient"], sharpness=1)


def test_draws_are_the_same_for_two_networks() -> None:
    generator = torch.Generator().manual_seed(5)
    before = generator.get_state()
    verdicts = axioms(METHODS["smoothgrad"], samples=3, generator=generator)
    assert verdicts["implementation invariance"].gap < 1e-12
    assert verdicts["linearity"].gap < 1e-12
    assert torch.equal(generator.get_state(), before)


def test_a_network_that_is_refused_tells_nothing() -> None:
    def picky(model: Any, images: Tensor, target: Any = None) -> Tensor:
        if not model.formula.startswith("1 −"):
            raise ValueError("model must be a saturating one")
        return gradient(model, images, target)

    verdicts = axioms(picky)
    assert verdicts["sensitivity"].holds is False
    holds, gap, example = verdicts["symmetry"]
    assert holds is None
    assert gap != gap
    assert example is not None
    assert "refuses every network" in example.sentence
    assert "model must be a saturating one" in example.sentence

    def refuses(model: Any, images: Tensor, target: Any = None) -> Tensor:
        raise ValueError("images must be 224 pixels wide")

    with pytest.raises(ValueError, match="^images must be 224 pixels wide"):
        axioms(refuses)
    with pytest.raises(ValueError, match="^window is 2, but must not be larger"):
        axioms(METHODS["occlusion"], window=2)


def test_bad_input() -> None:
    with pytest.raises(TypeError, match="^method must be an attribution method, not str"):
        axioms("gradient")  # type: ignore[arg-type]
    for bad in (-1, "0.1", True, float("nan")):
        with pytest.raises((ValueError, TypeError), match="^tolerance "):
            axioms(gradient, tolerance=bad)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="^method: what it returned must be "):
        axioms(lambda model, images, target: images[..., :1])
