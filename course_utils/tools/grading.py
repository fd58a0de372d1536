"""What nbgrader does with a submission in place of its own steps, so that an odd one is marked too.

`Submission` reads it, whatever its encoding. `Restore` puts the answers into the notebook that was
released, whatever became of its other cells. `Run` runs it where neither the key nor anybody else's
work lies, on other random numbers than students see, and tries whether the checks still work.
`Save` enters the marks, and `Export` says which are missing. None of this is a sandbox: a program
that wants to find the key on this computer can. nbgrader_config.py names them (`course release`).
"""

import ast
import codecs
import csv
import io
import re
import secrets
import shutil
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import nbformat
from nbclient.exceptions import CellTimeoutError, DeadKernelError
from nbconvert.exporters import NotebookExporter
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell, new_output, new_raw_cell
from nbgrader import utils
from nbgrader.api import Gradebook
from nbgrader.plugins import CsvExportPlugin
from nbgrader.preprocessors import Execute, NbGraderPreprocessor, SaveAutoGrades
from traitlets import Integer

ROOT = Path(__file__).resolve().parents[2]


# Reading --------------------------------------------------------------------------------------


def name_as_released(assignment: str, notebooks: list[str], **_: Any) -> None:
    """Rename "hw02 (1).ipynb" as the notebook that was released, where there is only one of each.

    notebooks: the paths that nbgrader goes on with, which it calls this for.
    """
    released = [path.name for path in Path("release", assignment).glob("*.ipynb")]
    if len(released) == len(notebooks) == 1 and assignment in Path(notebooks[0]).name:
        notebooks[:] = [str(Path(notebooks[0]).rename(Path(notebooks[0]).with_name(released[0])))]


class Submission(NotebookExporter):
    """A notebook in UTF-8, with or without a byte-order mark, or in UTF-16."""

    def from_file(self, file_stream: Any, resources: Any = None, **options: Any) -> Any:
        """Read what nbgrader opened."""
        content = file_stream.buffer.read()
        wide = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        text = content.decode("utf-16" if wide else "utf-8-sig")
        return super().from_file(io.StringIO(text), resources, **options)


# Restoring ------------------------------------------------------------------------------------


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


# Running --------------------------------------------------------------------------------------


# Python runs this file before the kernel starts, and IPython the second one when it has.
FENCE = "from course_utils.tools import fence\n\nfence.install(memory={memory})\n"
PASS_OVER = "__import__('course_utils.tools.fence').tools.fence.pass_over(get_ipython())\n"

PROBE = (ROOT / "course_utils/tools/probe.py").read_text(encoding="utf-8")
EXERCISE = re.compile(r'^check\("([\w.]+)", \w+\)$', re.MULTILINE)
HOLDS = "all of it holds."  # the last words of a check

SAID = ("stream", "display_data", "execute_result", "update_display_data")
CUT = "\n… (the rest of what this cell put out is left out)\n"
PICTURE = 20  # a character of text weighs as much as so many of a picture

WAITS = "This waits for a person, and has no marks yet. The check is not to be trusted here: {}.\n"


class Run(Execute):
    """Runs a submission in a folder of its own, and goes on where its kernel ends."""

    seed = Integer(0, help="moves what the checks draw; 0 is what students see").tag(config=True)
    memory = Integer(4_000_000_000, help="bytes that a kernel may use").tag(config=True)
    characters = Integer(100_000, help="of output that a cell may make").tag(config=True)

    def preprocess(self, nb: NotebookNode, resources: Any, km: Any = None) -> Any:
        """Execute all cells; those that a lost kernel left get an error, and so no marks.

        resources["doubts"] says of each cell whose check is not to be trusted why: {name: why}.
        """
        submission = resources["metadata"]["path"]
        self.reached, self.said = 0, Counter[int]()
        resources["doubts"] = {}
        with TemporaryDirectory(ignore_cleanup_errors=True) as place:
            self.place = Path(place)
            furnish(self.place, Path(submission), self.memory)
            self.library = library(self.place)
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
        """Execute a cell; where it gives marks, its check is tried before and after."""
        self.reached = index
        found = EXERCISE.search(cell.source) if utils.is_grade(cell) else None
        if not found:
            return super().preprocess_cell(cell, resources, index)
        doubt = self.doubt(found[1], index, "forget() or ")
        self.nb.cells[index] = cell  # which that replaced
        cell, resources = super().preprocess_cell(cell, resources, index)
        if not doubt and not utils.has_failed(cell):  # the answer ran, and could change something
            silent = not any(HOLDS in output.get("text", "") for output in cell.outputs)
            doubt = "it said nothing" if silent else self.doubt(found[1], index)
            self.nb.cells[index] = cell
        if doubt:
            resources["doubts"][cell.metadata.nbgrader.grade_id] = doubt
            text = WAITS.format(doubt)
            cell.outputs.append(new_output("stream", name="stdout", text=text))
        return cell, resources

    def doubt(self, name: str, index: int, first: str = "") -> str:
        """Why the check of an exercise is not to be trusted in this kernel; "" where it is."""
        token = secrets.token_hex(8)
        probe = f"{PROBE}\nprint({token!r}, {first}doubt({name!r}, {self.seed}), sep='')"
        # In names of its own: the notebook may have a `print` that is none.
        code = f"__import__('builtins').exec({probe!r}, {{'__name__': 'probe'}})"
        cell = self.execute_cell(new_code_cell(code), index, store_history=False)
        said = "".join(output.get("text", "") for output in cell.outputs)
        if token not in said:
            return "it could not be tried"
        now = library(self.place)
        names = sorted(now.keys() | self.library.keys())
        changed = [name for name in names if now.get(name) != self.library.get(name)]
        return f"{changed[0]} was changed" if changed else said.split(token)[1].strip()

    def process_message(self, msg: Any, cell: NotebookNode, cell_index: int) -> Any:
        """Take what the kernel sends, until its cell has put out too much; errors are kept."""
        content, left = msg["content"], self.characters - self.said[cell_index]
        if msg["msg_type"] == "error":
            content["evalue"] = content["evalue"][: self.characters]
            content["traceback"] = [line[: self.characters] for line in content["traceback"]]
        elif msg["msg_type"] in SAID:
            self.said[cell_index] += weight(content)
            if left < 0:
                return None
            if self.said[cell_index] > self.characters:
                text = content.get("text", "")[:left] + CUT
                stream = {"name": content.get("name", "stdout"), "text": text}
                msg = {**msg, "msg_type": "stream", "content": stream}
        return super().process_message(msg, cell, cell_index)


def weight(content: Any) -> int:
    """How much a message of the kernel says, in characters of text."""
    return len(content.get("text", "")) + sum(
        len(str(value)) // (PICTURE if mime.startswith("image/") else 1)
        for mime, value in content.get("data", {}).items()
    )


def furnish(place: Path, submission: Path, memory: int) -> None:
    """Put a submission's files into a folder, and the library over them; no key is beside it."""
    shutil.copytree(submission, place, dirs_exist_ok=True, ignore=shutil.ignore_patterns("*.ipynb"))
    for name in ("course_utils", "data"):
        shutil.rmtree(place / name, ignore_errors=True)
        shutil.copytree(ROOT / name, place / name, ignore=shutil.ignore_patterns("__pycache__"))
    (place / "sitecustomize.py").write_text(FENCE.format(memory=memory), encoding="utf-8")
    startup = place / ".ipython" / "profile_default" / "startup"
    shutil.rmtree(place / ".ipython", ignore_errors=True)
    startup.mkdir(parents=True)
    (startup / "pass_over.py").write_text(PASS_OVER, encoding="utf-8")


def library(place: Path) -> dict[str, bytes]:
    """What the files of the library say in a run's folder; no submission has a reason to change it.

    A file that was added counts, too: Python could find it first.
    """
    paths = place.glob("course_utils/**/*.py")
    return {path.relative_to(place).as_posix(): path.read_bytes() for path in paths}


def lost(notebook: NotebookNode, reached: int, how: str) -> None:
    """Say why no marks are given, where the kernel was lost and in all code after it."""
    said = f"The kernel {how} in this cell; nothing after it was run."
    for cell in notebook.cells[reached:]:
        if cell.cell_type == "code":
            error = {"ename": "KernelLost", "evalue": said, "traceback": [f"KernelLost: {said}"]}
            cell.outputs = [*cell.get("outputs", []), new_output("error", **error)]
            said = "The kernel was lost in a cell above, so this one was not run."


# Marks ----------------------------------------------------------------------------------------


class Save(SaveAutoGrades):
    """Enters the marks; none where a check is not to be trusted, which then waits for a person."""

    def _add_score(self, cell: NotebookNode, resources: Any) -> None:
        super()._add_score(cell, resources)
        name = cell.metadata.nbgrader.grade_id
        if name in resources["doubts"]:
            place = (self.notebook_id, self.assignment_id, self.student_id)
            grade = self.gradebook.find_grade(name, *place)
            grade.auto_score, grade.needs_manual_grade = None, True
            self.gradebook.db.commit()


class Export(CsvExportPlugin):
    """nbgrader's table of marks, and what is still to be done in a column of its own."""

    def export(self, gradebook: Gradebook) -> None:
        """Write the table; a submission that could not be read has no marks, rather than 0."""
        super().export(gradebook)
        path = Path(self.to or "grades.csv")
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        rows += unread(rows, gradebook)
        for row in rows:
            row["state"] = state(row["assignment"], row["student_id"], gradebook)
            if row["state"] == NOT_MARKED:
                row["raw_score"] = row["score"] = NOT_MARKED
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]) if rows else [])
            writer.writeheader()
            writer.writerows(rows)


NOT_MARKED = "not marked"


def state(assignment: str, student: str, gradebook: Gradebook) -> str:
    """How far the marking of a submission is."""
    if not Path("submitted", student, assignment).exists():
        return "not handed in"
    if not Path("autograded", student, assignment).exists():  # nbgrader removes what failed
        return NOT_MARKED
    submission = gradebook.find_submission(assignment, student)
    grades = [grade for notebook in submission.notebooks for grade in notebook.grades]
    waits = any(grade.needs_manual_grade for grade in grades)
    return "waits for a person" if waits else "marked"


def unread(rows: list[dict[str, str]], gradebook: Gradebook) -> list[dict[str, str]]:
    """A row for each submission whose student nbgrader does not know: it found no notebook."""
    known = {(row["assignment"], row["student_id"]) for row in rows}
    found = {
        (assignment.name, path.parent.name): assignment.max_score
        for assignment in gradebook.assignments
        for path in sorted(Path("submitted").glob(f"*/{assignment.name}"))
    }
    return [
        {"assignment": name, "student_id": student, "max_score": str(score)}
        for (name, student), score in found.items()
        if (name, student) not in known
    ]
