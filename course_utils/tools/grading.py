"""What nbgrader does with a submission in place of its own steps, so that an odd one is marked too.

`Restore` puts the answers into the notebook that was released, whatever became of its other cells.
`Run` runs it where neither the key nor anybody else's work lies. Neither is a sandbox: a program
that wants to find the key on this computer can. nbgrader_config.py names both (`course release`).
"""

import ast
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


# In place of an answer that was not found while something was written: it waits for a person.
ELSEWHERE = "*Nothing stands here, but text was added elsewhere in this notebook. Is it an answer?*"


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
    one that is there. Text that stands where a written answer is missing is that answer; a question
    without any gets a note, and so no marks by itself, if text was added anywhere.
    """
    given = {c.metadata.nbgrader.grade_id: c for c in released.cells if "nbgrader" in c.metadata}
    known = {cell.source for cell in released.cells}
    names = _placed([_name(cell, given) for cell in submitted.cells], submitted.cells, given, known)
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
    if any(not name and _is_text(cell, known) for name, cell in order):
        order = [(name, _asking(cell) if cell == given.get(name) else cell) for name, cell in order]
    return NotebookNode({**released, "cells": [cell for _, cell in order]})


def _placed(
    names: list[str], cells: list[NotebookNode], given: dict[str, NotebookNode], known: set[str]
) -> list[str]:
    """The names of cells, and those of written answers that lost theirs: text between the same two.

    Only where one answer is missing between the two known cells around the text.
    """
    here = zip(names, cells, strict=True)
    written = {name for name, cell in here if _source(cell).strip() not in ("", *known)}
    missing = {name for name, cell in given.items() if _is_written(cell)} - written
    order, placed = list(given), list(names)
    for place, (name, cell) in enumerate(zip(names, cells, strict=True)):
        if not name and cell.get("cell_type") != "code" and _is_text(cell, known):
            before = next((order.index(n) for n in reversed(names[:place]) if n), 0)
            after = next((order.index(n) for n in names[place:] if n), len(order))
            between = missing.intersection(order[before : after + 1])
            placed[place] = between.pop() if len(between) == 1 else ""
    return placed


def _name(cell: NotebookNode, given: dict[str, NotebookNode]) -> str:
    """The released cell that this one is: by its metadata, its function, or its text.

    A text to read that now says something else is none of them: an answer may stand in it.
    """
    source = _source(cell)
    metadata = cell.get("metadata")
    grader = metadata.get("nbgrader") if isinstance(metadata, dict) else None
    name = grader.get("grade_id") if isinstance(grader, dict) else None
    if isinstance(name, str) and name in given:
        reading = given[name].cell_type == "markdown" and not utils.is_solution(given[name])
        return "" if reading and source.split() != given[name].source.split() else name
    first = source.partition("\n")[0]
    for name, released in given.items():
        if utils.is_solution(released):
            same = first.startswith("def ") and first == released.source.partition("\n")[0]
        else:
            same = source == released.source and released.cell_type == "markdown"
        if same:
            return name
    return ""


def _is_written(cell: NotebookNode) -> bool:
    """Whether a released cell is for an answer in words."""
    return bool(utils.is_solution(cell)) and cell.cell_type == "markdown"


def _is_text(cell: NotebookNode, known: set[str]) -> bool:
    """Whether a student wrote words here: nothing that was released, and no program."""
    source = _source(cell)
    if not source.strip() or source in known:
        return False
    if cell.get("cell_type") != "code":
        return True
    try:
        return not ast.parse(source).body  # comments alone
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return True


def _source(cell: NotebookNode) -> str:
    source = cell.get("source", "")
    return source if isinstance(source, str) else "".join(map(str, source))


def _filled(released: NotebookNode, cell: NotebookNode) -> NotebookNode:
    """A released cell; where it is for an answer, with the submission's."""
    if utils.is_solution(released):
        extra = {"attachments": cell.attachments} if "attachments" in cell else {}
        return NotebookNode({**released, "source": _source(cell), **extra})
    return released


def _asking(released: NotebookNode) -> NotebookNode:
    """A released cell; where it is for an answer in words, with a note to look elsewhere."""
    if _is_written(released):
        return NotebookNode({**released, "source": f"{released.source}\n\n{ELSEWHERE}"})
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
