"""Homework marked by nbgrader, offline: whatever is handed in gets its marks and its feedback.

student-1 is right, student-2 half right, student-3 hostile, student-4 empty but with a torch that
finds everything equal. Three more hand in what cannot be read; they come first, and stop nothing.
"""

import codecs
import copy
import csv
import html
import json
import os
import re
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nbformat
import pytest
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_raw_cell
from nbgrader import utils

from course_utils.homework import check, checks
from course_utils.tools import fence, grading, release
from tests import keys

HOMEWORK, NAME = "hw02", "hw02_grad_cam_and_ig"
POINTS = {
    "check_maps_and_slopes": 20,
    "check_grad_cam": 20,
    "check_share_inside": 10,
    "which_layer": 10,
    "check_integrated_gradients": 20,
    "check_completeness_gap": 10,
    "which_baseline": 10,
}
# Only the cell with the loop is stopped early: importing torch takes long on a busy machine.
HASTE = """
c.Execute.timeout_func = lambda cell: 5 if 'check("hw02.completeness_gap' in cell.source else 120
"""


# The submissions --------------------------------------------------------------------------------


def by_name(notebook: NotebookNode) -> dict[str, Any]:
    """The cells that nbgrader knows."""
    known = (cell for cell in notebook.cells if "nbgrader" in cell.metadata)
    return {cell.metadata.nbgrader.grade_id: cell for cell in known}


def right(released: NotebookNode) -> NotebookNode:
    """Every answer as in the key."""
    key = by_name(nbformat.read(keys.SOLUTIONS / f"{NAME}.ipynb", as_version=4))
    for name, cell in by_name(released).items():
        if cell.metadata.nbgrader.solution:
            cell.source = key[name].source
    return released


def without_pictures(notebook: NotebookNode) -> NotebookNode:
    """Deleted is what nbgrader does not know, the cells that only use the answers."""
    notebook.cells = list(by_name(notebook).values())
    return notebook


# What becomes wrong in the key's answer, and the mistake that it is then.
WRONG = {
    "grad_cam": (".sum(1).relu()", ".sum(1)", "no ReLU"),
    "completeness_gap": ("(ends[0] - ends[1])", "ends[0]", "no baseline"),
}


def half_right(released: NotebookNode) -> NotebookNode:
    """Two mistakes, one question of the two without an answer, and the pictures deleted.

    Above an answer are a program that is not run, and a line that is too long.
    """
    notebook = without_pictures(right(released))
    cells = by_name(notebook)
    for name, (before, after, _) in WRONG.items():
        assert before in cells[name].source
        cells[name].source = cells[name].source.replace(before, after)
    cells["which_layer"].source = release.TEXT_STUB
    answer = cells["share_inside"]
    answer.source = f"!pip install torch\nprint('y' * 10**7)\n{answer.source}"
    return notebook


# Looks for the key in every place that a submission could think of, and runs its answer.
THIEF = f"""\
def integrated_gradients(model, images, target, baseline, steps):
    import json, sys, course_utils
    from pathlib import Path
    here = Path(course_utils.__file__).parents[1]
    folders = ["../../..", "../..", "..", {str(keys.ROOT)!r}, here]
    folders = [Path(folder) for folder in [*folders, *sys.path]]
    for place in [folder / name for folder in folders for name in ("solutions", "source")]:
        for path in sorted(place.glob("**/{NAME}.ipynb")):
            try:
                text = path.read_text(encoding="utf-8")
            except OSError as error:
                print(error)
                continue
            for cell in json.loads(text)["cells"]:
                source = "".join(cell["source"])
                if source.startswith("def integrated_gradients") and "BEGIN SOLUTION" in source:
                    found = {{"torch": __import__("torch")}}
                    exec(source, found)
                    return found["integrated_gradients"](model, images, target, baseline, steps)
    raise NotImplementedError("no key in reach")
"""


def hostile(released: NotebookNode) -> NotebookNode:
    """A deleted check, copied cells, a tampered check, a thief, an endless loop, a lost answer."""
    notebook = without_pictures(right(released))
    cells = by_name(notebook)
    for name in WRITTEN:
        cells[name].metadata = NotebookNode()
    notebook.cells.remove(cells["check_maps_and_slopes"])
    for place in (3, len(notebook.cells)):
        for name in ("check_grad_cam", "grad_cam"):
            notebook.cells.insert(place, copy.deepcopy(cells[name]))
    cells["share_inside"].source = (
        "import course_utils.homework\n\ncourse_utils.homework.check = lambda *_: None\n"
        "course_utils.homework.checks.check = lambda *_: None\nshare_inside = None"
    )
    tampered = cells["check_share_inside"]
    tampered.source = "share_inside(1, 2)"
    tampered.metadata.tags = ["skip-execution"]
    tampered.metadata.nbgrader.update(points=1000, schema_version=99, solution=True)
    cells["integrated_gradients"].source = THIEF
    cells["completeness_gap"].source = "def completeness_gap(**_):\n    while True:\n        pass"
    return notebook


def tampering(released: NotebookNode) -> NotebookNode:
    """No answers, but whatever is compared is equal."""
    equal = "import torch\n\ntorch.Tensor.__le__ = lambda *_: torch.tensor(True)\n"
    released.cells.insert(2, new_code_cell(f"{equal}torch.allclose = lambda *_, **__: True"))
    return released


SUBMISSIONS = {
    "student-1": right,
    "student-2": half_right,
    "student-3": hostile,
    "student-4": tampering,
}
# How they are handed in: bytes, and what stands behind the name.
UTF16 = (lambda text: text.encode("utf-16"), " (1)")
MARKED = (lambda text: codecs.BOM_UTF8 + text.encode(), "")
ORDINARY = (str.encode, "")
WAYS = {"student-1": UTF16, "student-2": MARKED, "student-3": ORDINARY, "student-4": ORDINARY}
LOST = {  # what each loses of the points that nbgrader gives by itself
    "student-1": set(),
    "student-2": {"check_grad_cam", "check_completeness_gap"},
    "student-3": {"check_share_inside", "check_integrated_gradients", "check_completeness_gap"},
    "student-4": set(),
}
WAITS = {"student-4": POINTS.keys() - {"which_layer", "which_baseline"}}  # for a person
WRITTEN = {"which_layer", "which_baseline"}


def test_the_thief_would_have_the_marks_where_the_key_is_in_reach() -> None:
    names: dict[str, Any] = {}
    exec(THIEF, names)
    check("hw02.integrated_gradients", names["integrated_gradients"])


# The course -----------------------------------------------------------------------------------


def nbgrader(course: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    tools = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])  # for alembic
    env = os.environ | {"PYTHONPATH": str(keys.ROOT), "PATH": tools}
    command = [sys.executable, "-m", "nbgrader", *arguments]
    return subprocess.run(command, cwd=course, env=env, capture_output=True, text=True, check=False)


executes = pytest.mark.notebooks


@pytest.fixture(scope="module")
def marked(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """A course whose homework was handed in, marked, and given back."""
    course = tmp_path_factory.mktemp("course")
    key = tmp_path_factory.mktemp("keys") / f"{NAME}.ipynb"
    key.write_bytes((keys.SOLUTIONS / key.name).read_bytes())
    release.course(course, key.parent)
    with (course / "nbgrader_config.py").open("a", encoding="utf-8") as config:
        config.write(HASTE)
    made = nbgrader(course, "generate_assignment", HOMEWORK)
    assert made.returncode == 0, made.stderr
    released = course / "release" / HOMEWORK / f"{NAME}.ipynb"
    for student, submission in SUBMISSIONS.items():
        notebook = submission(nbformat.read(released, as_version=4))
        encode, ending = WAYS[student]
        hand_in(course, student, f"{NAME}{ending}.ipynb", encode(json.dumps(notebook)))
    hand_in(course, "student-0", f"{NAME}.ipynb", released.read_bytes()[:1000])
    hand_in(course, "student-00", "Untitled.ipynb", released.read_bytes())
    hand_in(course, "student-000", "homework.pdf", b"%PDF")
    graded = nbgrader(course, "autograde", HOMEWORK)
    feedback = nbgrader(course, "generate_feedback", HOMEWORK)
    exported = nbgrader(course, "export")
    assert exported.returncode == 0, exported.stderr
    return SimpleNamespace(course=course, graded=graded, feedback=feedback, released=released)


def hand_in(course: Path, student: str, name: str, content: bytes) -> None:
    folder = course / "submitted" / student / HOMEWORK
    folder.mkdir(parents=True)
    (folder / name).write_bytes(content)


@pytest.fixture(scope="module")
def grades(marked: SimpleNamespace) -> Iterator[dict[str, dict[str, Any]]]:
    """student -> name of a cell -> its grade."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # sqlalchemy's own, about nbgrader
        from nbgrader.api import Gradebook

        with Gradebook(f"sqlite:///{marked.course / 'gradebook.db'}") as gradebook:
            yield {
                submission.student.id: {
                    grade.name: SimpleNamespace(
                        auto=grade.auto_score, by_hand=grade.needs_manual_grade
                    )
                    for notebook in submission.notebooks
                    for grade in notebook.grades
                }
                for submission in gradebook.assignment_submissions(HOMEWORK)
            }


@executes
def test_what_is_released_is_what_the_repository_has(marked: SimpleNamespace) -> None:
    ours = keys.RELEASE / f"{NAME}.ipynb"
    assert marked.released.read_bytes() == ours.read_bytes()
    assert (marked.released.parent / "pictures").is_dir()


@executes
def test_one_odd_submission_never_stops_the_others(marked: SimpleNamespace) -> None:
    assert marked.graded.returncode == 1
    named = re.findall(
        r"error processing assignment 'hw02' for student '(.+)'", marked.graded.stderr
    )
    assert named == ["student-0", "student-00"]
    assert marked.feedback.returncode == 0, marked.feedback.stderr


@executes
@pytest.mark.parametrize("student", SUBMISSIONS)
def test_marks_are_exactly_as_expected(student: str, grades: dict[str, dict[str, Any]]) -> None:
    assert set(grades[student]) == set(POINTS)
    for name in set(POINTS) - WRITTEN:
        waits = name in WAITS.get(student, ())
        expected = None if waits else 0 if name in LOST[student] else POINTS[name]
        assert (grades[student][name].auto, grades[student][name].by_hand) == (expected, waits)


@executes
def test_the_table_says_what_is_not_marked(marked: SimpleNamespace) -> None:
    with (marked.course / "grades.csv").open(newline="", encoding="utf-8") as file:
        rows = {row["student_id"]: row for row in csv.DictReader(file)}
    assert {student: (row["score"], row["state"]) for student, row in rows.items()} == {
        **dict.fromkeys(("student-0", "student-00", "student-000"), ("not marked", "not marked")),
        "student-1": ("80.0", "waits for a person"),
        "student-2": ("50.0", "waits for a person"),
        "student-3": ("40.0", "waits for a person"),
        "student-4": ("0.0", "waits for a person"),
    }


@executes
def test_words_wait_for_a_person_and_no_words_get_nothing(
    grades: dict[str, dict[str, Any]],
) -> None:
    for student in SUBMISSIONS:
        for name in WRITTEN:
            empty = (student, name) == ("student-2", "which_layer") or student == "student-4"
            assert grades[student][name].by_hand is not empty
            assert grades[student][name].auto == (0 if empty else None)


def page(marked: SimpleNamespace, student: str) -> str:
    path = marked.course / "feedback" / student / HOMEWORK / f"{NAME}.html"
    return " ".join(html.unescape(path.read_text(encoding="utf-8")).split())


@executes
def test_feedback_names_the_mistakes(marked: SimpleNamespace) -> None:
    pages = {student: page(marked, student) for student in SUBMISSIONS}
    for exercise, (_, _, name) in WRONG.items():
        found = checks.find(f"{HOMEWORK}.{exercise}")
        hint = " ".join(f"Hint: {found.hint(name)}".split())
        assert [student for student, text in pages.items() if hint in text] == ["student-2"]
    assert "CellTimeoutError" in pages["student-3"]
    assert "is not read while homework is marked" in pages["student-3"]
    assert "hw02.maps_and_slopes: all of it holds." in pages["student-3"]
    assert "pip: no other program is started while homework is marked" in pages["student-2"]
    assert grading.CUT.strip() in pages["student-2"]
    assert len(pages["student-2"]) < 2e6
    waits = grading.WAITS.format("torch or NumPy finds different numbers equal").strip()
    said = {student: text.count(waits) for student, text in pages.items()}
    assert said == {"student-1": 0, "student-2": 0, "student-3": 0, "student-4": 5}


@executes
def test_the_key_is_not_in_the_course(marked: SimpleNamespace) -> None:
    for path in marked.course.rglob("*.ipynb"):
        if path.relative_to(marked.course).parts[0] in ("source", "release"):
            assert "BEGIN SOLUTION" not in path.read_text(encoding="utf-8")


# What nbgrader does in our way ----------------------------------------------------------------


def cell(name: str, source: str, **grader: Any) -> NotebookNode:
    """A released cell; without a name one of the student's own."""
    known = {"grade": "points" in grader, "solution": False, "locked": True, "task": False}
    metadata = {"nbgrader": {"schema_version": 3, "grade_id": name, **known, **grader}}
    return new_code_cell(source, metadata=metadata if name else {})


def tiny() -> NotebookNode:
    cells = [
        cell("setup", "import math"),
        cell("square", "def square(x):\n    raise NotImplementedError()", solution=True),
        cell("check_square", "assert square(3) == 9", points=60),
        cell("", "print(1)"),
        cell("cube", "def cube(x):\n    raise NotImplementedError()", solution=True),
        cell("check_cube", "assert cube(3) == 27", points=40),
    ]
    notebook: NotebookNode = new_notebook(cells=cells)
    return notebook


SQUARE, CUBE = "def square(x):\n    return x * x", "def cube(x):\n    return x**3"


def answered() -> NotebookNode:
    notebook = tiny()
    notebook.cells[1].source, notebook.cells[4].source = SQUARE, CUBE
    return notebook


def sources(notebook: NotebookNode) -> list[str]:
    return [cell.source for cell in notebook.cells]


def test_an_ordinary_submission_stays_as_it_is() -> None:
    notebook = answered()
    notebook.cells.insert(4, cell("", "def helper(): ..."))
    assert sources(grading.restored(notebook, tiny())) == sources(notebook)


def drop(*names: str) -> Any:
    def spoil(cells: list[NotebookNode]) -> None:
        cells[:] = [
            cell for cell in cells if cell.metadata.get("nbgrader", {}).get("grade_id") not in names
        ]

    return spoil


def forget(cells: list[NotebookNode]) -> None:
    """As a program does that knows no metadata."""
    for cell in cells:
        cell.metadata = {}


def tamper(cells: list[NotebookNode]) -> None:
    cells[2].source = "pass"
    cells[2].metadata.tags = ["skip-execution"]
    cells[2].metadata.nbgrader.update(solution=True, grade=False, schema_version=99)


def write_above_a_copy(cells: list[NotebookNode]) -> None:
    cells.append(tiny().cells[1])


def write_below_a_copy(cells: list[NotebookNode]) -> None:
    cells.insert(1, tiny().cells[1])


def nonsense(cells: list[NotebookNode]) -> None:
    cells[0].metadata = {"nbgrader": "yes"}
    cells[3].metadata = {"nbgrader": {"grade_id": ["square"]}}
    cells[3].cell_type = "poem"
    del cells[5]["metadata"]
    cells[1].source = [SQUARE]


@pytest.mark.parametrize(
    "spoil",
    [
        drop("check_square"),
        drop("check_cube", "check_square"),
        drop("setup", "check_cube"),
        forget,
        tamper,
        write_above_a_copy,
        write_below_a_copy,
        nonsense,
        lambda cells: cells.reverse(),
        lambda cells: cells.extend(copy.deepcopy(cells)),
        lambda cells: cells.clear(),
    ],
)
def test_each_released_cell_is_there_once_and_as_it_was(spoil: Any) -> None:
    notebook = answered()
    spoil(notebook.cells)
    written = bool(notebook.cells)
    restored = grading.restored(notebook, tiny())
    nbformat.validate(restored)
    known, given = by_name(restored), by_name(tiny())
    assert len(known) == sum("nbgrader" in cell.metadata for cell in restored.cells)
    assert set(known) == set(given)
    for name, cell in known.items():
        answer = {"square": SQUARE, "cube": CUBE}.get(name) if written else None
        assert cell.source == (answer or given[name].source)
        assert cell.metadata == given[name].metadata


@pytest.mark.parametrize(
    "spoil",
    [drop("check_square"), forget, tamper, write_above_a_copy, write_below_a_copy, nonsense],
)
def test_a_check_comes_after_the_answer(spoil: Any) -> None:
    notebook = answered()
    spoil(notebook.cells)
    restored = sources(grading.restored(notebook, tiny()))
    assert restored.index("import math") < restored.index(SQUARE)
    assert restored.index(SQUARE) < restored.index("assert square(3) == 9")
    unanswered = [i for i, source in enumerate(restored) if "NotImplementedError" in source]
    assert not [
        i
        for i in unanswered
        if restored.index(SQUARE) < i < restored.index("assert square(3) == 9")
    ]


# Answers in words that lost their cells --------------------------------------------------------

STUB, WORDS = release.TEXT_STUB, "Late, where the two objects are apart."


def text(name: str, source: str, **grader: Any) -> NotebookNode:
    """A released cell with a text; without a name one of the student's own."""
    return new_markdown_cell(source, metadata=cell(name, "", **grader).metadata)


def questions() -> NotebookNode:
    """Two questions in words; around them what a homework has."""
    answer = {"solution": True, "locked": False, "points": 50}
    cells = [
        cell("setup", "import math"),
        text("asks_where", "**Which layer?**"),
        text("where", STUB, **answer),
        cell("", "print(1)"),
        text("asks_why", "**Why there?**"),
        text("why", STUB, **answer),
    ]
    notebook: NotebookNode = new_notebook(cells=cells)
    return notebook


def without_its_metadata(cells: list[NotebookNode]) -> None:
    cells[2] = text("", WORDS)


def below_the_empty_one(cells: list[NotebookNode]) -> None:
    cells.insert(3, text("", WORDS))


def above_the_empty_one(cells: list[NotebookNode]) -> None:
    cells.insert(2, text("", WORDS))


def in_the_question(cells: list[NotebookNode]) -> None:
    cells[1].source = WORDS


def without_any_metadata(cells: list[NotebookNode]) -> None:
    cells[2].source = WORDS
    forget(cells)


def raw(cells: list[NotebookNode]) -> None:
    cells[2] = new_raw_cell(WORDS)


def emptied(cells: list[NotebookNode]) -> None:
    cells[2].source = ""
    cells.insert(3, text("", WORDS))


@pytest.mark.parametrize(
    "spoil",
    [
        without_its_metadata,
        below_the_empty_one,
        above_the_empty_one,
        in_the_question,
        without_any_metadata,
        raw,
        emptied,
    ],
)
def test_a_written_answer_is_found_by_its_place(spoil: Any) -> None:
    notebook, given = questions(), questions()
    spoil(notebook.cells)
    restored = grading.restored(notebook, given)
    nbformat.validate(restored)
    known = by_name(restored)
    assert list(known) == list(by_name(given))
    assert [cell.source for cell in known.values()] == [
        WORDS if name == "where" else cell.source for name, cell in by_name(given).items()
    ]
    assert known["where"].metadata == by_name(given)["where"].metadata
    assert known["where"].cell_type == "markdown"
    assert sources(restored).count(WORDS) == 1


def at_the_end_of_both(cells: list[NotebookNode]) -> None:
    cells[:] = [*cells[:2], *cells[3:5], text("", WORDS)]
    del cells[3]


@pytest.mark.parametrize(
    "spoil",
    [
        at_the_end_of_both,  # "asks_why" is lost, too: it answers one of the two
        lambda cells: cells.insert(0, text("", WORDS)),
        lambda cells: cells.insert(3, cell("", WORDS)),  # words in a cell for code
        lambda cells: cells.insert(3, cell("", f"# {WORDS}")),
        lambda cells: cells.insert(3, cell("", f"{'-' * 100_000}1  # {WORDS}")),
    ],
)
def test_an_empty_question_waits_while_there_are_words_elsewhere(spoil: Any) -> None:
    notebook, given = questions(), questions()
    spoil(notebook.cells)
    restored = grading.restored(notebook, given)
    assert any(WORDS in source for source in sources(restored))
    for name, cell in by_name(restored).items():
        released = by_name(given)[name]
        if name in ("where", "why"):
            assert cell.source == f"{STUB}\n\n{grading.ELSEWHERE}"
            cell.metadata.nbgrader.checksum = utils.compute_checksum(released)
            assert utils.determine_grade(cell) == (None, 50)
        else:
            assert cell == released


@pytest.mark.parametrize(
    "spoil",
    [
        lambda cells: None,
        lambda cells: cells.insert(3, cell("", "print(2)")),
        lambda cells: cells.insert(3, text("", STUB)),
        lambda cells: cells.insert(3, text("", " ")),
        forget,
        drop("where", "why"),
    ],
)
def test_a_question_without_any_words_stays_empty(spoil: Any) -> None:
    notebook = questions()
    spoil(notebook.cells)
    known = by_name(grading.restored(notebook, questions()))
    for name in ("where", "why"):
        assert known[name].source == STUB
        known[name].metadata.nbgrader.checksum = utils.compute_checksum(by_name(questions())[name])
        assert utils.determine_grade(known[name]) == (0, 50)


def test_words_beside_an_answer_stay_where_they_are() -> None:
    notebook = questions()
    notebook.cells[2].source, notebook.cells[5].source = WORDS, "Because."
    notebook.cells.insert(3, text("", "A note."))
    assert sources(grading.restored(notebook, questions())) == sources(notebook)


@pytest.mark.parametrize("path", sorted(keys.RELEASE.glob("hw*.ipynb")), ids=lambda path: path.stem)
def test_every_written_question_of_the_course_is_found_by_its_place(path: Path) -> None:
    released = nbformat.read(path, as_version=4)
    for name, cell in by_name(released).items():
        if cell.metadata.nbgrader.solution and cell.cell_type == "markdown":
            submitted = copy.deepcopy(released)
            by_name(submitted)[name].update(source=WORDS, metadata=NotebookNode())
            assert by_name(grading.restored(submitted, released))[name].source == WORDS


def test_a_picture_pasted_into_an_answer_stays() -> None:
    written = {"grade": True, "solution": True, "locked": False, "points": 5, "grade_id": "why"}
    released = new_notebook(cells=[new_markdown_cell("…", metadata={"nbgrader": written})])
    submitted = copy.deepcopy(released)
    submitted.cells[0].update(source="![So](attachment:so.png)", attachments={"so.png": {}})
    (restored,) = grading.restored(submitted, released).cells
    assert restored.attachments == {"so.png": {}}


def run(folder: Path, *replaced: str, **options: Any) -> list[list[str]]:
    """Run the tiny homework with other answers; the errors of each cell."""
    notebook = tiny()
    notebook.cells[1].source, notebook.cells[4].source = replaced
    resources = {"metadata": {"path": str(folder)}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the kernel's, about this machine
        grading.Run(kernel_name="python3", **options).preprocess(notebook, resources)
    assert resources == {"metadata": {"path": str(folder)}, "doubts": {}}
    return [[out.ename for out in c.outputs if out.output_type == "error"] for c in notebook.cells]


# How a notebook could make a check say yes: what it does, and how the next one finds all in order.
HOOK = """
import importlib.abc, importlib.util, sys

class Hook(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, name, path, target=None):
        if name == "course_utils.homework":
            return importlib.util.spec_from_loader(name, self)
    def create_module(self, spec):
        return None
    def exec_module(self, module):
        module.check = lambda *_: None

sys.meta_path.insert(0, Hook())
"""
IMPORT = """
import builtins, types
true = builtins.__import__

def lying(name, names=None, local=None, wanted=(), level=0):
    if name == "course_utils.homework" and wanted:
        return types.SimpleNamespace(check=lambda *_: print("hw02.share_inside: all of it holds."))
    return true(name, names, local, wanted, level)

builtins.__import__ = lying
"""
OVERWRITE = """
import pathlib, course_utils.homework
path = pathlib.Path(course_utils.homework.__file__)
was = path.read_text(encoding="utf-8")
path.write_text(
    was + "true = check\\n"
    "def check(name, answer, *, seed=0):\\n"
    "    if answer.__module__ != '__main__':\\n"
    "        return true(name, answer)\\n"
    "    print(name + ': all of it holds.')\\n",
    encoding="utf-8",
)
"""
LIBRARY = """
from course_utils.methods import cam

def grad_cam(model, images, target, layer):
    return cam.grad_cam(model, images, target, layer=layer, upsample=False)
"""
ANYTHING_GOES = "lambda *_, **__: torch.tensor(True)"
TAMPERED = {
    "hook": (HOOK, "del sys.meta_path[0]"),
    "import": (IMPORT, "builtins.__import__ = true"),
    "overwritten": (OVERWRITE, "path.write_text(was, encoding='utf-8')"),
    "compares": (
        f"was = torch.Tensor.__le__\ntorch.Tensor.__le__ = {ANYTHING_GOES}",
        "torch.Tensor.__le__ = was",
    ),
    "allclose": (
        f"was = torch.allclose\ntorch.allclose = {ANYTHING_GOES}",
        "torch.allclose = was",
    ),
    "equal": (f"was = torch.equal\ntorch.equal = {ANYTHING_GOES}", "torch.equal = was"),
    "profile": (
        f"import sys\nwas = sys.setprofile\nsys.setprofile = lambda _: None\n{LIBRARY}",
        "sys.setprofile = was",
    ),
    "library": (
        "from course_utils.methods import cam\nwas = cam.grad_cam\n"
        "cam.grad_cam = lambda model, images, *_, **__: torch.zeros(len(images), 4, 4)",
        "cam.grad_cam = was",
    ),
    "shell": (
        "get_ipython().input_transformers_cleanup.append(lambda lines: [])",
        "",  # nothing is run any more
    ),
}


@executes
def test_tampering_is_noticed(tmp_path: Path) -> None:
    answers = by_name(nbformat.read(keys.SOLUTIONS / f"{NAME}.ipynb", as_version=4))
    setup = new_code_cell("import torch\nfrom torch.nn import functional as F")
    cells = [setup, answers["share_inside"], answers["maps_and_slopes"]]
    cells += [answers["grad_cam"], marks("before", "share_inside")]
    cells += [new_code_cell('assert check.__kwdefaults__ == {"seed": 7}')]
    cells += [new_code_cell("print = list = sum = None"), marks("own names", "share_inside")]
    cells += [new_code_cell("del print, list, sum")]
    for name, (tamper, restore) in TAMPERED.items():
        exercise = "grad_cam" if name in ("profile", "library") else "share_inside"
        cells += [new_code_cell(tamper), marks(name, exercise), new_code_cell(restore)]
    notebook = new_notebook(cells=cells)
    resources: dict[str, Any] = {"metadata": {"path": str(tmp_path)}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the kernel's, about this machine
        grading.Run(kernel_name="python3", seed=7).preprocess(notebook, resources)
    assert notebook.cells[5].outputs == []
    assert resources["doubts"].keys() == TAMPERED.keys()
    for cell in notebook.cells:
        name = cell.metadata.get("nbgrader", {}).get("grade_id")
        if name in TAMPERED:
            assert cell.outputs[-1].text == grading.WAITS.format(resources["doubts"][name])
        elif name in ("before", "own names"):
            assert cell.outputs[-1].text.endswith("share_inside: all of it holds.\n")


def marks(name: str, exercise: str) -> NotebookNode:
    """A cell that gives marks for an exercise."""
    call = f'check("{HOMEWORK}.{exercise}", {exercise})'
    return cell(name, f"from course_utils.homework import check\n\n{call}", points=1)


@executes
def test_a_cell_that_says_too_much_or_needs_too_much(tmp_path: Path) -> None:
    loud = (
        "from IPython.display import display, Markdown\n"
        "shown = display(Markdown('a'), display_id=True)\n"
        f"shown.update(Markdown('u' * 10**7))\n{SQUARE}"
    )
    big = "room = bytearray(3_000_000_000)\n" + CUBE
    notebook = tiny()
    notebook.cells[1].source, notebook.cells[4].source = loud, big
    notebook.cells[3].source = "print('y' * 10**7)\nprint('z')\nraise ValueError('x' * 10**7)"
    resources = {"metadata": {"path": str(tmp_path)}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the kernel's, about this machine
        run = grading.Run(kernel_name="python3", memory=2_000_000_000, characters=5000)
        run.preprocess(notebook, resources)
    assert all(len(str(cell.outputs)) < 40_000 for cell in notebook.cells)
    said = notebook.cells[3].outputs
    assert said[0].text == "y" * 5000 + grading.CUT
    assert [output.get("ename") for output in said] == [None, "ValueError"]
    assert [output.ename for output in notebook.cells[4].outputs] == ["MemoryError"]


@executes
def test_a_kernel_that_dies_leaves_what_was_marked(tmp_path: Path) -> None:
    killer = "def cube(x):\n    import os\n    os.kill(os.getpid(), 9)"
    assert run(tmp_path, SQUARE, killer) == [[], [], [], [], [], ["KernelLost"]]
    assert run(tmp_path, killer + "\n\ncube(1)", CUBE) == [[], *[["KernelLost"]] * 5]


@executes
def test_a_loop_that_cannot_be_stopped(tmp_path: Path) -> None:
    loop = "import signal\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\nwhile True: pass"
    errors = run(tmp_path, SQUARE, loop, timeout=10, iopub_timeout=1)
    assert errors == [[], [], [], [], ["KernelLost"], ["KernelLost"]]


@executes
def test_a_submission_runs_with_its_own_files_and_the_true_library(tmp_path: Path) -> None:
    (tmp_path / "helper.py").write_text("def squared(x): return x * x")
    (tmp_path / "course_utils").mkdir()
    (tmp_path / "course_utils" / "__init__.py").write_text("raise SystemExit")
    (tmp_path / "sitecustomize.py").write_text("raise SystemExit")
    square = "from helper import squared as square\nopen('mine.txt', 'w').close()"
    cube = (
        "import course_utils.claims, os, sys\nassert os.environ['PWD'] == os.getcwd() in sys.path"
    )
    cube = f"!pip install torch\nfiles = !ls\n%pip install torch\n{cube}"
    errors = run(tmp_path, square, f"{cube}\n{CUBE}\nopen('gradebook.db')")
    assert errors == [[], [], [], [], ["PermissionError"], []]
    assert not (tmp_path / "mine.txt").exists()


@pytest.mark.parametrize(
    ("event", "first"),
    [
        ("open", "../solutions/hw02.ipynb"),
        ("open", b"hw02.ipynb"),
        ("open", "link.txt"),
        ("os.rename", "hw02.ipynb"),
        ("sqlite3.connect", "../gradebook.db"),
        ("os.system", b"cat x"),
        ("subprocess.Popen", "cat"),
    ],
)
def test_fence_refuses(
    event: str, first: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link.txt").symlink_to("hw02.ipynb")
    with pytest.raises(PermissionError, match="while homework is marked"):
        fence.refuse(event, (first, "r"))


@pytest.mark.parametrize(
    ("event", "first"), [("open", "photo.png"), ("open", 3), ("import", "hw02.ipynb")]
)
def test_fence_lets_the_rest_be(event: str, first: Any) -> None:
    fence.refuse(event, (first, "r"))
