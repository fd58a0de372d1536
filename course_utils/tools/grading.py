"""What nbgrader does with a submission in place of its own steps, so that an odd one is marked too.

`Restore` puts the answers into the notebook that was released, whatever became of its other cells.
`Run` runs it where neither the key nor anybody else's work lies. Neither is a sandbox: a program
that wants to find the key on this computer can. nbgrader_config.py names both (`course release`).
"""

import shutil
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import nbformat
from nbclient.exceptions import CellTimeoutError, DeadKernelError
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell, new_output, new_raw_cell
from nbgrader import utils
from nbgrader.preprocessors import Execute, NbGraderPreprocessor

ROOT = Path(__file__).resolve().parents[2]

# Python runs this file before the kernel starts.
FENCE = "from course_utils.tools import fence\n\nfence.install()\n"

# What a notebook did to the checks does not count when they give marks.
ANEW = """\
import sys
for _name in [name for name in sys.modules if name.startswith("course_utils.homework")]:
    del sys.modules[_name]
"""


class Restore(NbGraderPreprocessor):
    """A submission's answers in the notebook that was released."""

    def preprocess(self, nb: NotebookNode, resources: Any) -> tuple[NotebookNode, Any]:
        """Replace the notebook; nbgrader calls it in the folder of the course."""
        names = resources["nbgrader"]
        path = Path("release", names["assignment"], f"{names['notebook']}.ipynb")
        return restored(nb, nbformat.read(path, as_version=4)), resources


def restored(submitted: NotebookNode, released: NotebookNode) -> NotebookNode:
    """The cells of a submission in their order, with each released cell in it once, as it was.

    Answers are the submission's, and so is every cell that was added. Of a copied answer the last
    copy that was written in counts; all copies run. A cell that is missing comes before the next
    one that is there.
    """
    given = {c.metadata.nbgrader.grade_id: c for c in released.cells if "nbgrader" in c.metadata}
    names = [_name(cell, given) for cell in submitted.cells]
    places: dict[str, int] = {}
    for place, (name, cell) in enumerate(zip(names, submitted.cells, strict=True)):
        untouched = name in places and _source(cell) == given[name].source
        if name and not (untouched and utils.is_solution(given[name])):
            places[name] = place
    order: list[tuple[str, NotebookNode]] = []
    for place, (name, cell) in enumerate(zip(names, submitted.cells, strict=True)):
        if name and places[name] == place:
            order.append((name, _filled(given[name], cell)))
        elif not name or utils.is_solution(given[name]):
            order.append(("", _added(cell, place)))
    following = len(order)
    for name in reversed(given):
        if name in places:
            following = [named for named, _ in order].index(name)
        else:
            order.insert(following, (name, given[name]))
    return NotebookNode({**released, "cells": [cell for _, cell in order]})


def _name(cell: NotebookNode, given: dict[str, NotebookNode]) -> str:
    """The released cell that this one is: by its metadata, or by the function that it defines."""
    metadata = cell.get("metadata")
    grader = metadata.get("nbgrader") if isinstance(metadata, dict) else None
    name = grader.get("grade_id") if isinstance(grader, dict) else None
    if isinstance(name, str) and name in given:
        return name
    first = _source(cell).partition("\n")[0]
    for name, released in given.items():
        signature = released.source.partition("\n")[0]
        if utils.is_solution(released) and signature.startswith("def ") and signature == first:
            return name
    return ""


def _source(cell: NotebookNode) -> str:
    source = cell.get("source", "")
    return source if isinstance(source, str) else "".join(map(str, source))


def _filled(released: NotebookNode, cell: NotebookNode) -> NotebookNode:
    """A released cell; where it is for an answer, with the submission's."""
    if utils.is_solution(released):
        extra = {"attachments": cell.attachments} if "attachments" in cell else {}
        return NotebookNode({**released, "source": _source(cell), **extra})
    return released


def _added(cell: NotebookNode, place: int) -> NotebookNode:
    """A cell that is the student's own, without metadata (a tag can keep a cell from running)."""
    kinds = {"code": new_code_cell, "markdown": new_markdown_cell}
    made: NotebookNode = kinds.get(str(cell.get("cell_type")), new_raw_cell)(
        _source(cell), id=f"added-{place}"
    )
    return made


class Run(Execute):
    """Runs a submission in a folder of its own, and goes on where its kernel ends."""

    def preprocess(self, nb: NotebookNode, resources: Any, km: Any = None) -> Any:
        """Execute all cells; those that a lost kernel left get an error, and so no marks."""
        submission = resources["metadata"]["path"]
        self.reached = 0
        with TemporaryDirectory(ignore_cleanup_errors=True) as place:
            furnish(Path(place), Path(submission))
            resources["metadata"]["path"] = place
            try:
                with utils.setenv(PYTHONPATH=place, IPYTHONDIR=f"{place}/.ipython", PWD=place):
                    super().preprocess(nb, resources, km)
            except (DeadKernelError, CellTimeoutError) as error:
                lost(nb, self.reached, "died" if isinstance(error, DeadKernelError) else "hung")
            finally:
                resources["metadata"]["path"] = submission
        return nb, resources

    def preprocess_cell(self, cell: NotebookNode, resources: Any, index: int) -> Any:
        """Execute a cell; before one that gives marks, forget what became of the checks."""
        self.reached = index
        if utils.is_grade(cell) and cell.cell_type == "code":
            self.execute_cell(new_code_cell(ANEW), index, store_history=False)
            self.nb.cells[index] = cell  # which that replaced
        return super().preprocess_cell(cell, resources, index)


def furnish(place: Path, submission: Path) -> None:
    """Put a submission's files into a folder, and the library over them; no key is beside it."""
    shutil.copytree(submission, place, dirs_exist_ok=True, ignore=shutil.ignore_patterns("*.ipynb"))
    for name in ("course_utils", "data"):
        shutil.rmtree(place / name, ignore_errors=True)
        shutil.copytree(ROOT / name, place / name, ignore=shutil.ignore_patterns("__pycache__"))
    (place / "sitecustomize.py").write_text(FENCE, encoding="utf-8")


def lost(notebook: NotebookNode, reached: int, how: str) -> None:
    """Say why no marks are given, where the kernel was lost and in all code after it."""
    said = f"The kernel {how} in this cell; nothing after it was run."
    for cell in notebook.cells[reached:]:
        if cell.cell_type == "code":
            error = {"ename": "KernelLost", "evalue": said, "traceback": [f"KernelLost: {said}"]}
            cell.outputs = [*cell.get("outputs", []), new_output("error", **error)]
            said = "The kernel was lost in a cell above, so this one was not run."
