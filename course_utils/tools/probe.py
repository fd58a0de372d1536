"""Can the checks in the kernel of a submission still tell right from wrong?

Marking sends this text into the kernel, before a cell that gives marks and after it, rather than
import it there: so nothing of it lies where a notebook could change it.
"""

import contextlib
import io
import sys
import types
from typing import Any

MISTAKES = 2  # of an exercise, spread over all it has: some checks take seconds


def forget() -> None:
    """Forget the checks, and so what a notebook did to them; they are imported anew."""
    for name in [name for name in sys.modules if name.startswith("course_utils.homework")]:
        del sys.modules[name]


def doubt(name: str, seed: int) -> str:
    """Why the check of an exercise cannot be trusted here, in a sentence; "" where it can.

    It must accept the right answer, and refuse wrong ones and the right one where that is copied.
    seed: moves all that is drawn, from now on.
    """
    from course_utils.homework import Wrong, checks
    from course_utils.homework import check  # isort: skip - on its own, as in the notebook

    check.__kwdefaults__ = {"seed": seed}
    if not compares():
        return "torch or NumPy finds different numbers equal"
    exercise = checks.find(name)
    wrong = [mistake.answer for mistake in exercise.mistakes.values()]
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        try:
            check(name, rewritten(exercise.answer))
        except Exception:
            return "it refuses the right answer"
        for answer in (*wrong[:: max(1, len(wrong) // MISTAKES)][:MISTAKES], exercise.answer):
            try:
                check(name, answer)
            except Wrong:
                continue
            return "it accepts a wrong answer"
    return ""


def compares() -> bool:
    """Whether the functions that tell numbers apart still do."""
    import numpy as np
    import torch

    one, two = torch.tensor([1.0]), torch.tensor([2.0])
    alike = [torch.equal(one, two), torch.allclose(one, two), torch.isclose(one, two)]
    alike += [one == two, one > two, one >= two, two < one, two <= one]
    alike += [np.array_equal(one.numpy(), two.numpy()), np.allclose(one.numpy(), two.numpy())]
    return not any(map(bool, alike))


def rewritten(function: Any) -> types.FunctionType:
    """The function, as if someone else had written the same."""
    code, names = function.__code__.replace(co_name="rewritten"), function.__globals__
    same = types.FunctionType(code, names, None, function.__defaults__, function.__closure__)
    same.__kwdefaults__ = function.__kwdefaults__
    return same
