"""The functions that a homework's notebook defines: the key's answers, or the release's stubs."""

from pathlib import Path
from typing import Any

import nbformat

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
