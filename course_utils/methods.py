"""Every attribution method of the course, with what is known about it.

A new method joins by one line in METHODS and appears in every comparison.
"""

import difflib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

from course_utils import gradients
from course_utils.contract import Target


@dataclass(frozen=True, eq=False)
class Method:
    """A method and what is known about it; call it as `method(model, images, target, **options)`.

    cost: passes through the network, F a forward, B a forward and backward to the input.
    needs: for each option that the method cannot do without, how it is made of the model and of a
    batch of ordinary images (see `bind`).
    """

    function: Callable[..., torch.Tensor]
    paper: str
    year: int
    family: str
    cost: str
    traits: frozenset[str] = frozenset()
    needs: Mapping[str, Callable[[nn.Module, torch.Tensor], Any]] = field(default_factory=dict)
    data: torch.Tensor | None = field(default=None, repr=False)

    @property
    def name(self) -> str:
        """The function's name, which is also the key in METHODS."""
        return self.function.__name__

    def bind(self, data: torch.Tensor) -> "Method":
        """The method with ordinary images (M, C, H, W) at hand, of which it makes what it needs."""
        return replace(self, data=data)

    def __call__(
        self, model: nn.Module, images: torch.Tensor, target: Target = None, **options: Any
    ) -> torch.Tensor:
        """The attribution of images (N, C, H, W); TypeError for an option it does not know."""
        known = list(inspect.signature(self.function).parameters)[3:]
        for option in options:
            if option not in known:
                near = difflib.get_close_matches(option, known, n=1)
                hint = (
                    f"did you mean {near[0]}?" if near else f"it has {', '.join(known) or 'none'}"
                )
                raise TypeError(f"{self.name} has no option {option!r}; {hint}")
        for option, make in self.needs.items():
            if option not in options:
                if self.data is None:
                    raise TypeError(f"{self.name} needs {option}; give it, or bind(data) first")
                options[option] = make(model, self.data)
        return self.function(model, images, target, **options)


METHODS: dict[str, Method] = {
    method.name: method
    for method in [
        Method(
            gradients.gradient,
            paper="Simonyan, Vedaldi, Zisserman: Deep Inside Convolutional Networks",
            year=2013,
            family="gradient",
            cost="1 B",
            traits=frozenset({"model-specific", "local", "signed", "per channel"}),
        ),
    ]
}
