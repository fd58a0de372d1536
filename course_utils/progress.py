"""What takes long: in batches, and counted. A bar shows how far it is, or a listener hears it."""

import os
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from time import perf_counter
from typing import Any, TypeVar

import torch
from torch import Tensor
from tqdm.auto import tqdm

T = TypeVar("T")

DELAY = 2  # seconds until a bar shows


def in_batches(total: int, batch_size: int) -> Iterator[Tensor]:
    """Passes numbered from 0 to total − 1, in tensors of `batch_size` numbers; the last has fewer.

    With S samples of each of N images, total = N · S; pass i is of image i // S and sample i % S.
    So every call of the model has `batch_size` images, however few N or S are. `counting` counts
    the passes.

    >>> [numbers.tolist() for numbers in progress.in_batches(5, 2)]
    [[0, 1], [2, 3], [4]]
    """
    with counting(total, "pass") as advance:
        for numbers in torch.arange(total).split(batch_size):
            yield numbers
            advance(len(numbers))


def counted(items: Collection[T], unit: str) -> Iterator[T]:
    """The items, one by one, as `counting` counts them."""
    with counting(len(items), unit) as advance:
        for item in items:
            yield item
            advance(1)


Listener = Callable[[int, int], None]
_listener: ContextVar[Listener | None] = ContextVar("listener", default=None)


@contextmanager
def counting(total: int, unit: str) -> Iterator[Callable[[int], None]]:
    """Count up to a total by the function that this gives: a bar shows it, or a listener hears it.

    The bar waits for DELAY seconds; with TQDM_DISABLE=1 in the environment there is none. What is
    counted inside one of these steps is neither shown nor heard: there is one bar at most.
    """
    listener, done, start = _listener.get(), 0, perf_counter()
    hidden = bool(os.environ.get("TQDM_DISABLE"))  # which tqdm itself does not read in a notebook
    bar: Any = None

    def advance(steps: int) -> None:
        nonlocal done, bar
        done += steps
        if listener:
            listener(done, total)
        elif bar:
            bar.update(steps)
        elif not hidden and perf_counter() - start > DELAY:
            # Not made before: a notebook's bar is several widgets, and few would ever be seen.
            bar = tqdm(total=total, initial=done, unit=unit, leave=False)

    _listener.set(_unheard)
    try:
        yield advance
    finally:
        _listener.set(listener)
        if bar:
            bar.close()


def _unheard(done: int, total: int) -> None:
    """What is counted inside a step: for no bar and no listener."""


@contextmanager
def hearing(listener: Listener) -> Iterator[None]:
    """In here `listener(done, total)` hears of each step of what takes long.

    >>> with progress.hearing(lambda done, total: print(done, "of", total)):
    ...     letters = list(progress.counted("ab", "letter"))
    1 of 2
    2 of 2
    """
    outer = _listener.get()
    _listener.set(listener)
    try:
        yield
    finally:
        _listener.set(outer)
