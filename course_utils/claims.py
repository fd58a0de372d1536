"""Claims: what a figure is said to show, checked by the notebook that says it."""

import os


def claim(text: str, value: object, holds: object = None) -> None:
    """Print `✓ text: value`, or `✗ …` where it does not hold; with two arguments `✓ text`.

    value: what was measured; or, alone, whether the claim holds. Floats are rounded to two
    decimals, below 1 to two significant digits. A claim that does not hold raises AssertionError on
    the shipped model; where COURSE_MODEL names another one it is printed, and the notebook goes on.
    """
    measured = holds is not None
    if measured and isinstance(value, bool):
        raise TypeError(f"value is {value}, which measures nothing; write claim(text, holds)")
    line, holds = (f"{text}: {_rounded(value)}", holds) if measured else (text, value)
    print("✓" if holds else "✗", line)
    if not holds and os.environ.get("COURSE_MODEL", "scenes") in ("", "scenes"):
        raise AssertionError(f"This claim does not hold on the shipped model — {line}.")


def _rounded(value: object) -> str:
    if hasattr(value, "item"):  # a tensor or an array with one element
        value = value.item()
    if not isinstance(value, float):
        return str(value)
    if abs(value) < 1:
        return f"{value:.2g}"
    return f"{value:.2f}".rstrip("0").rstrip(".")
