"""The examples in the library's docstrings print what stands below them."""

import doctest
import importlib
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

LIBRARY = Path(__file__).resolve().parents[1] / "course_utils"
MODULES = [
    ".".join(path.relative_to(LIBRARY.parent).with_suffix("").parts)
    for path in sorted(LIBRARY.rglob("*.py"))
    if ">>> " in path.read_text(encoding="utf-8")
]


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_of(name: str) -> None:
    module = importlib.import_module(name)
    # What a lecture has imported: nothing else of the module than its public functions.
    given = {"np": np, "nn": nn, "torch": torch, name.rpartition(".")[2]: module}
    with torch.random.fork_rng(devices=[]):
        result = doctest.testmod(module, globs=given)
    assert result.attempted
    assert not result.failed
