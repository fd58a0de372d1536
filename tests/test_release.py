"""The homework that students get: nothing of a key in it, nothing missing, the same every time."""

import base64
import json
import re
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import pytest
from IPython.core.interactiveshell import InteractiveShell
from IPython.utils.capture import capture_output
from nbformat import NotebookNode
from nbformat.v4 import new_output
from traitlets.config import Config

from course_utils.tools import release
from tests import keys

KEYS = sorted(keys.SOLUTIONS.glob("hw*.ipynb"))
MACHINE = re.compile(r"/(home|root|Users|tmp|private|var)/\S|[A-Z]:\\+Users")
PICTURE = re.compile(r"!\[Expected: [^\]]{20,}\]\(pictures/(hw\d\d_\w+\.png)\)")
RATING = re.compile(r"[Dd]ifficulty [●○]{5}.*importance [●○]{5}.*\d+ minutes.*?(\d+) points")

EITHER = (NotImplementedError, type(None))  # of a cell that uses an answer, or none

each_homework = pytest.mark.parametrize("key", KEYS, ids=lambda key: key.stem)


def stub(key: Path) -> NotebookNode:
    return nbformat.read(keys.RELEASE / key.name, as_version=4)


# What is in the repository --------------------------------------------------------------------


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in files
        if ".ipynb_checkpoints" not in path.parts
    }


def test_releasing_again_changes_nothing(tmp_path: Path) -> None:
    release.make(folder=tmp_path)
    assert contents(tmp_path) == contents(keys.RELEASE)


def regions(key: Path) -> Iterator[list[str]]:
    """The lines of each answer in a key."""
    for cell in nbformat.read(key, as_version=4).cells:
        _, *answers = cell.source.split(release.BEGIN)
        for answer in answers:
            yield [line.strip() for line in answer.split(release.END)[0].splitlines()]


def leaked(answer: list[str], given: set[str], text: str) -> list[str]:
    """The lines of an answer that a text has.

    A short one, such as `return maps`, only where the key itself does not give it away elsewhere.
    """
    long = [line for line in answer if len(line) >= 25 and line in text]
    lines = {line.strip() for line in text.splitlines()}
    return long + [line for line in answer if re.search(r"\w", line) and line in lines - given]


@each_homework
def test_no_line_of_an_answer_is_left(key: Path) -> None:
    text = "\n".join(strings(json.loads((keys.RELEASE / key.name).read_text(encoding="utf-8"))))
    answers = list(regions(key))
    given = {
        line.strip()
        for cell in nbformat.read(key, as_version=4).cells
        for line in re.sub(rf"(?s){release.BEGIN}.*?{release.END}", "", cell.source).splitlines()
    }
    assert len(answers) >= 4
    assert [line for answer in answers for line in leaked(answer, given, text)] == []
    assert "SOLUTION" not in text
    assert "Marking guide" not in text


def strings(tree: Any) -> Iterator[str]:
    """Every text in a notebook: sources whole, keys and values of everything else."""
    if isinstance(tree, dict):
        for name, branch in tree.items():
            yield name
            yield from strings(branch)
    elif isinstance(tree, list) and all(isinstance(branch, str) for branch in tree):
        yield "".join(tree)
    elif isinstance(tree, list):
        for branch in tree:
            yield from strings(branch)
    elif isinstance(tree, str):
        yield tree


def test_a_leak_would_be_found() -> None:
    long = "slopes = torch.autograd.grad(scores.sum(), kept[0])"
    assert leaked(["maps = x", long], set(), f"# Hint: {long}!\n  maps = x") == [long, "maps = x"]
    assert leaked(["return maps", long], {"return maps", long}, f"return maps\n{long}") == [long]
    assert leaked(["maps = x", ")"], set(), "maps = x + 1\n)") == []


@each_homework
def test_nothing_but_text_and_code(key: Path) -> None:
    notebook = stub(key)
    nbformat.validate(notebook)
    assert set(notebook.metadata) == {"kernelspec", "language_info"}
    for cell in notebook.cells:
        assert cell.get("outputs", []) == []
        assert cell.get("execution_count") is None
        assert "attachments" not in cell
        assert "attachment:" not in cell.source
        assert set(cell.metadata) <= {"nbgrader", "deletable", "editable", "tags"}
        assert not any("expected" in tag for tag in cell.metadata.get("tags", []))
        assert not MACHINE.search(cell.source)


def test_every_picture_is_shown_and_there() -> None:
    text = "\n".join(cell.source for key in KEYS for cell in stub(key).cells)
    there = {path.name for path in keys.RELEASE.glob("pictures/*")}
    assert set(PICTURE.findall(text)) == there
    assert text.count("](pictures/") == len(PICTURE.findall(text))
    for path in keys.RELEASE.glob("pictures/*"):
        assert path.read_bytes().startswith(b"\x89PNG")
        assert path.stat().st_size <= 3e5


@each_homework
def test_links_lead_somewhere(key: Path) -> None:
    for cell in stub(key).cells:
        for link in re.findall(r"\]\((?!https?:|#)([^)\s]+)\)", cell.source):
            assert (keys.RELEASE / link.partition("#")[0]).exists(), link


@each_homework
def test_points_and_ratings(key: Path) -> None:
    """Each exercise is rated where it stands, as in the table at the head; points add to 100."""
    text = "\n".join(cell.source for cell in stub(key).cells)
    rows = re.findall(r"^\|.*[●○]{5} *\| *[●○]{5} *\| *\d+ *\| *(\d+) *\|$", text, re.MULTILINE)
    rated: list[int] = []
    given: list[int] = []
    for cell in stub(key).cells:
        for points in RATING.findall(cell.source):
            rated.append(int(points))
            given.append(0)
        if cell.metadata.get("nbgrader", {}).get("grade"):
            given[-1] += cell.metadata.nbgrader.points
    assert list(map(int, rows)) == rated == given
    assert sum(given) == 100


@each_homework
def test_each_answer_has_hints_before_it_and_a_check_behind(key: Path) -> None:
    homework = key.name[:4]
    before = ""
    waiting = ""  # the answer whose check comes next
    for cell in stub(key).cells:
        grader = cell.metadata.get("nbgrader", {})
        if grader.get("solution") and cell.cell_type == "code":
            name = waiting = grader["grade_id"]
            assert re.match(rf"def {name}\(", cell.source)
            assert '"""' in cell.source
            hints = re.findall(
                r"<details>\s*<summary>(.+?)</summary>\n\n.+?\n\n</details>", before, re.S
            )
            assert hints == ["Hint 1", "Hint 2"], name
            before = ""
        elif grader.get("grade") and cell.cell_type == "code":
            assert grader["grade_id"] == f"check_{waiting}"
            assert "from course_utils.homework import check" in cell.source
            assert cell.source.endswith(f'check("{homework}.{waiting}", {waiting})')
            waiting = ""
        elif grader.get("grade"):
            assert cell.source == release.TEXT_STUB
        before += cell.source
    assert not waiting


@pytest.mark.slow
@each_homework
def test_runs_to_the_end_with_nothing_but_answers_missing(
    key: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cell by cell in a shell of its own; a kernel would import torch again for each homework."""
    monkeypatch.chdir(keys.RELEASE)
    monkeypatch.setitem(sys.modules, "__main__", sys.modules["__main__"])  # the shell replaces it
    shell = InteractiveShell(config=Config(HistoryManager={"enabled": False}))
    for cell in (cell for cell in stub(key).cells if cell.cell_type == "code"):
        with warnings.catch_warnings(), capture_output() as printed:
            warnings.simplefilter("default")  # as in a kernel, where they reach stderr
            result = shell.run_cell(cell.source)
        error = result.error_before_exec or result.error_in_exec
        grader = cell.metadata.get("nbgrader", {})
        missing = grader.get("grade", False) and not grader["solution"]
        assert type(error) in ((NotImplementedError,) if missing else EITHER), cell.source
        assert printed.stderr == "", cell.source


# How it is made -------------------------------------------------------------------------------


def cell(name: str, source: str, **grader: Any) -> NotebookNode:
    """A cell of a key; `points` make it give marks, `solution` take an answer."""
    make = nbformat.v4.new_markdown_cell if grader.pop("text", False) else nbformat.v4.new_code_cell
    known = {"grade": "points" in grader, "solution": False, "locked": True, "task": False}
    metadata = {"nbgrader": {"schema_version": 3, "grade_id": name, **known, **grader}}
    made: NotebookNode = make(source, id=name.replace("_", "-"), metadata=metadata)
    return made


ANSWER = """\
def square(x):
    \"\"\"x times x.\"\"\"
    ### BEGIN SOLUTION
    return x * x
    ### END SOLUTION"""


def tiny() -> NotebookNode:
    """A key with everything that a key may have."""
    notebook = nbformat.v4.new_notebook(metadata={"widgets": {"state": {}}})
    data = {"image/png": base64.b64encode(b"\x89PNG").decode(), "text/plain": "a square"}
    link = "![Expected: a square](../notebooks/homework/pictures/hw00_area.png)"
    notebook.cells = [
        cell("task", f"Square it, [so](../notebooks/01_x.ipynb).\n{link}", text=True),
        cell("square", ANSWER, solution=True, locked=False),
        cell("check_square", "assert square(3) == 9", points=60),
        nbformat.v4.new_code_cell("draw(square(2))", id="area"),
        cell("why", f"{release.BEGIN}\nSo.\n{release.END}", text=True, solution=True, points=40),
    ]
    notebook.cells[3].metadata.tags = ["expected:hw00_area", "kept"]
    notebook.cells[3].outputs = [new_output("stream", text="4"), new_output("display_data", data)]
    notebook.cells[3].execution_count = 7
    notebook.cells[4].attachments = {"so.png": {"image/png": "aGVsbG8="}}
    return notebook


def test_release_of_a_key() -> None:
    key = tiny()
    notebook, pictures = release.release("hw00_tiny.ipynb", key)
    task, square, _, area, why = notebook.cells
    assert pictures == {"hw00_area": b"\x89PNG"}
    assert (
        task.source
        == "Square it, [so](../01_x.ipynb).\n![Expected: a square](pictures/hw00_area.png)"
    )
    assert square.source == ANSWER.split("    ###")[0] + (
        "    # Write your answer in place of the next line.\n    raise NotImplementedError()"
    )
    assert area == {
        "cell_type": "code",
        "id": "area",
        "source": "draw(square(2))",
        "metadata": {"tags": ["kept", "raises-exception"]},
        "outputs": [],
        "execution_count": None,
    }
    assert why.source == release.TEXT_STUB
    assert "attachments" not in why
    assert "widgets" not in notebook.metadata
    assert key == tiny()


def sourced(index: int, source: str) -> Any:
    return lambda key: key.cells[index].update(source=source)


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (sourced(1, ANSWER.replace("    ### END SOLUTION", "")), "'square' has ### BEGIN SOLUTION"),
        (sourced(1, ANSWER.replace("    ### BEGIN SOLUTION\n", "")), "do not pair"),
        (sourced(1, "def square(x): ..."), "'square' has 0 answers"),
        (sourced(1, f"{ANSWER}\n{ANSWER}"), "'square' has 2 answers"),
        (sourced(0, "### BEGIN SOLUTION\n### END SOLUTION"), "'task' has 1 answers"),
        (sourced(3, "### BEGIN SOLUTION\n### END SOLUTION"), "no other cell has any"),
        (lambda key: key.cells[2].metadata.nbgrader.update(points=50), "add to 90, wanted are 100"),
        (lambda key: key.cells[3].update(outputs=[]), "expected:hw00_area has 0 pictures"),
        (lambda key: key.cells[3].outputs.append(key.cells[3].outputs[1]), "has 2 pictures"),
        (lambda key: key.cells[3].metadata.update(tags=[]), "tagged to make []; each picture"),
        (sourced(0, "Square it."), "text shows the pictures []"),
        (lambda key: key.cells[2].metadata.nbgrader.update(grade_id="task"), "Duplicate grade id"),
    ],
)
def test_a_key_that_cannot_be_released(tmp_path: Path, spoil: Any, says: str) -> None:
    """One sentence, and what was there stays as it was."""
    store(tmp_path / "keys", "hw00_tiny", tiny())
    release.make(tmp_path / "keys", tmp_path / "out")
    before = contents(tmp_path / "out")
    key = tiny()
    spoil(key)
    store(tmp_path / "keys", "hw01_spoilt", key)
    with pytest.raises(ValueError, match=re.escape(says)) as raised:
        release.make(tmp_path / "keys", tmp_path / "out")
    assert str(raised.value).startswith("hw01_spoilt.ipynb: ")
    assert "\n" not in str(raised.value)
    assert contents(tmp_path / "out") == before


def store(folder: Path, name: str, key: NotebookNode) -> None:
    folder.mkdir(exist_ok=True)
    nbformat.write(key, folder / f"{name}.ipynb")


def test_a_homework_that_is_gone_goes_and_other_files_stay(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    store(tmp_path / "keys", "hw00_tiny", tiny())
    store(tmp_path / "keys", "hw01_tiny", tiny())
    assert len(release.make(tmp_path / "keys", folder)) == 3  # they share a picture
    (folder / "mine.ipynb").write_text("mine")
    (tmp_path / "keys" / "hw01_tiny.ipynb").unlink()
    release.make(tmp_path / "keys", folder)
    assert set(contents(folder)) == {"hw00_tiny.ipynb", "mine.ipynb", "pictures/hw00_area.png"}


def test_no_keys(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="there are no keys in"):
        release.make(tmp_path, tmp_path / "out")


def test_without_nbgrader(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nbgrader", None)
    with pytest.raises(ImportError, match=r"pip install -e '\.\[nbgrader\]'") as raised:
        release.release("hw00_tiny.ipynb", tiny())
    assert raised.value.name is None  # the command prints the sentence as it is


def test_a_course_for_nbgrader_without_any_answer(tmp_path: Path) -> None:
    store(tmp_path / "keys", "hw00_tiny", tiny())
    made = release.course(tmp_path / "course", tmp_path / "keys")
    config = tmp_path / "course" / "nbgrader_config.py"
    assert set(contents(tmp_path / "course")) == {
        "nbgrader_config.py",
        "source/hw00/hw00_tiny.ipynb",
        "source/hw00/pictures/hw00_area.png",
    }
    assert config in made
    assert b"x * x" not in b"".join(contents(tmp_path / "course").values())
    (seed,) = re.findall(r"^c\.Run\.seed = ([1-9]\d*)$", config.read_text(), re.MULTILINE)
    release.course(tmp_path / "another", tmp_path / "keys")
    assert seed not in (tmp_path / "another" / "nbgrader_config.py").read_text()
    config.write_text("c.Execute.timeout = 7")
    assert config not in release.course(tmp_path / "course", tmp_path / "keys")
    assert config.read_text() == "c.Execute.timeout = 7"
