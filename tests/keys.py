"""The functions that a homework's notebook defines, and what a check says of a wrong one."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import nbformat
import pytest

from course_utils.homework import Wrong, check, checks

ROOT = Path(__file__).resolve().parents[1]
SOLUTIONS = ROOT / "solutions"
RELEASE = ROOT / "notebooks" / "homework"


def functions(path: Path) -> dict[str, Any]:
    """Run the setup cell, then the answer cells; the names they leave."""
    code = [c for c in nbformat.read(path, as_version=4).cells if c.cell_type == "code"]
    names: dict[str, Any] = {}
    for cell in (code[0], *(c for c in code if c.metadata.get("nbgrader", {}).get("solution"))):
        exec(compile(cell.source, path.name, "exec"), names)
    return names


def refused(name: str, answer: Callable[..., Any], *, seed: int = 0) -> Wrong:
    """What the check of an exercise raises for a wrong answer."""
    with pytest.raises(Wrong) as wrong:
        check(name, answer, seed=seed)
    return wrong.value


def hint(name: str, mistake: str) -> str:
    """The hint that an exercise has for a mistake."""
    return checks.find(name).hint(mistake)
