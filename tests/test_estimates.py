"""What holds for every function NAME and its sister, NAME_estimate or NAME_fit."""

import inspect
import pickle
from collections.abc import Callable
from typing import Any, get_args

import numpy as np
import pytest
import torch
from torch import Tensor

from course_utils.contract import Estimate, mean_and_variance, value_of
from course_utils.methods import gradients, lime, perturbation, shapley
from tests.networks import batch, make

SEGMENTS = torch.arange(64).view(8, 8) // 16
PICTURES: dict[str, Any] = {"model": make("Residual"), "images": batch(), "samples": 10}
CALLS: dict[str, dict[str, Any]] = {
    "smoothgrad": PICTURES,
    "expected_gradients": PICTURES | {"background": batch(2, seed=7)},
    "prediction_difference": PICTURES | {"window": 4, "stride": 4, "background": batch(2, seed=7)},
    "rise": PICTURES,
    "lime_image": PICTURES | {"segments": SEGMENTS},
    "lime_text": {"predict": lambda texts: np.array([[len(t)] for t in texts]), "text": "A test"},
    "lime_tabular": {"predict": lambda rows: rows**2, "row": np.ones(3), "data": np.eye(3)},
    "kernel_shap": {"value": lambda coalitions: coalitions.sum(1) ** 2, "players": 3},
    "shap_image": PICTURES | {"segments": SEGMENTS},
}
PAIRS: dict[str, tuple[Callable, Callable]] = {
    (name := sister.rpartition("_")[0]): (getattr(module, name), function)
    for module in (gradients, lime, perturbation, shapley)
    for sister, function in vars(module).items()
    if sister.endswith(("_estimate", "_fit")) and not sister.startswith("_")
}
every_pair = pytest.mark.parametrize("name", PAIRS)


def test_all_are_called_here() -> None:
    assert set(PAIRS) == set(CALLS)


@every_pair
def test_the_value_is_the_estimates(name: str) -> None:
    plain, estimate = PAIRS[name]
    result = estimate(**CALLS[name])
    assert isinstance(result, Estimate)
    value = plain(**CALLS[name])
    assert type(value) is type(result.value)
    np.testing.assert_array_equal(value, result.value)


@every_pair
def test_one_signature_and_one_docstring(name: str) -> None:
    plain, estimate = PAIRS[name]
    short, long = inspect.signature(plain), inspect.signature(estimate)
    assert short.parameters == long.parameters
    assert get_args(long.return_annotation) == (short.return_annotation,)
    assert plain.__name__ == name
    assert plain.__doc__ == estimate.__doc__
    assert f"Returns an Estimate, of which `{name}` returns the value alone" in (
        plain.__doc__ or ""
    )
    assert pickle.loads(pickle.dumps(plain)) is plain


def test_value_of_a_function_of_ones_own() -> None:
    def half_estimate(x: Tensor, *, of: float = 1.0) -> Estimate[Tensor]:
        return Estimate(of * x / 2)

    half = value_of(half_estimate)
    assert half(torch.tensor(6.0), of=3.0) == 9
    assert (half.__name__, half.__qualname__) == ("half", "half")
    with pytest.raises(TypeError, match="unexpected keyword argument 'off'"):
        half(torch.tensor(6.0), off=3.0)  # type: ignore[call-arg]


def test_mean_and_variance() -> None:
    samples = torch.tensor([[1.0, 5, 9], [2, 2, 2]]).T
    mean, variance = mean_and_variance(samples.sum(0), (samples**2).sum(0), 3)
    assert mean.tolist() == [5, 2]
    torch.testing.assert_close(variance, torch.tensor([16.0, 0]))
    mean, variance = mean_and_variance(samples[0], samples[0] ** 2, 1)
    assert mean.tolist() == [1, 2]
    assert variance.isnan().all()
