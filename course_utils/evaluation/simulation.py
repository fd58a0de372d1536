"""Do maps help people? Whether those who see a map guess better what the model will answer."""

from collections.abc import Sequence
from typing import NamedTuple

from course_utils.contract import check_choice


class Rate(NamedTuple):
    """How many guesses were right, and the share with its 95 % interval."""

    right: int
    total: int
    share: float
    low: float
    high: float


class Gain(NamedTuple):
    """How much larger one share is than another, with its 95 % interval."""

    difference: float
    low: float
    high: float
    p: float  # how often chance alone makes a difference this large, if maps do not help


class Simulatability(NamedTuple):
    """How well people guessed the model's answers."""

    rates: dict[str, Rate]  # what was shown → right guesses
    gains: dict[str, Gain]  # what was shown → its share less that of the control


def simulatability(
    guesses: Sequence[str], answers: Sequence[str], shown: Sequence[str], *, control: str
) -> Simulatability:
    """How often people guess the model's answer, with a map and with a control in its place.

        share = right guesses / pictures,    gain = share with the map − share with the control

    A guess is right if it is what the model answers, whether that is the truth or not: forward
    simulation. A picture is shown with one of the two, drawn at random, so that what makes a
    picture easy is shared out by chance. The interval of a share is Wilson's, of a gain Newcombe's,
    made of the two Wilson intervals. p is Fisher's exact test, two-sided: the share of all ways to
    deal the right guesses to the pictures that give a table at most as likely as this one. It takes
    each guess for one independent draw: of a class that votes, the vote is one guess, not one a
    head.

    guesses, answers: what people said, and the model, of each picture. shown: what each picture
    came with, such as "grad_cam" or "no map". control: the one of them that the others are compared
    with.
    Returns what was shown → Rate, and → Gain for all but the control.

    Raises ValueError or TypeError naming the argument.
    Source: Doshi-Velez, Kim, Towards a Rigorous Science of Interpretable Machine Learning, 2017;
    intervals: Newcombe, Interval Estimation for the Difference between Independent Proportions,
    1998.

    >>> said, answers = "cat cat dog dog".split(), "cat dog dog dog".split()
    >>> found = simulation.simulatability(said, answers, ["map", "none"] * 2, control="none")
    >>> {shown: rate.share for shown, rate in found.rates.items()}
    {'map': 1.0, 'none': 0.5}
    """
    _check(guesses, answers, shown)
    check_choice("control", control, dict.fromkeys(shown))
    right: dict[str, list[bool]] = {name: [] for name in shown}
    for guess, answer, name in zip(guesses, answers, shown, strict=True):
        right[name].append(guess == answer)
    rates = {name: rate(sum(each), len(each)) for name, each in right.items()}
    others = [name for name in rates if name != control]
    return Simulatability(rates, {name: gain(rates[name], rates[control]) for name in others})


def rate(right: int, total: int) -> Rate:
    """A share with its 95 % interval: the values that a test at 5 % does not refuse (Wilson, 1927).

    >>> [round(value, 3) for value in simulation.rate(6, 12)]
    [6, 12, 0.5, 0.254, 0.746]
    """
    from scipy.stats import binomtest  # takes half a second to import

    low, high = binomtest(right, total).proportion_ci(0.95, method="wilson")
    return Rate(right, total, right / total, float(low), float(high))


def gain(one: Rate, other: Rate) -> Gain:
    """One share less another, with its 95 % interval and its p (see `simulatability`).

    >>> [round(value, 3) for value in simulation.gain(simulation.rate(9, 9), simulation.rate(4, 9))]
    [0.556, 0.14, 0.811, 0.029]
    """
    from scipy.stats import fisher_exact

    difference = one.share - other.share
    below = ((one.share - one.low) ** 2 + (other.high - other.share) ** 2) ** 0.5
    above = ((one.high - one.share) ** 2 + (other.share - other.low) ** 2) ** 0.5
    table = [[each.right, each.total - each.right] for each in (one, other)]
    p = float(fisher_exact(table).pvalue)
    return Gain(difference, difference - below, difference + above, p)


def _check(guesses: Sequence[str], answers: Sequence[str], shown: Sequence[str]) -> None:
    for name, value in (("guesses", guesses), ("answers", answers), ("shown", shown)):
        if isinstance(value, str) or not isinstance(value, Sequence):
            raise TypeError(f"{name} must be a list with one word a picture, not {value!r}")
        if len(value) != len(guesses) or not value:
            raise ValueError(
                f"{name} must hold one word for each picture, as guesses, which hold "
                f"{len(guesses)}, at least one; but they hold {len(value)}"
            )
