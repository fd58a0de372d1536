"""The hand-out: all of the course that a class needs, and no answer that can be read."""

import contextlib
import importlib.util
import inspect
import io
import itertools
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import nbformat
import pytest

from course_utils.homework import checks
from course_utils.tools import grading, handout, release
from tests import keys
from tests.test_release import KEYS, regions, strings

LONG = 25  # a shorter line, such as `return maps`, is ordinary Python


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return handout.make(tmp_path_factory.mktemp("class") / "course")


def texts(folder: Path) -> dict[str, str]:
    """Every file in it that holds text, as a reader sees it: a notebook without its JSON."""
    found = {}
    for path in folder.rglob("*"):
        if path.is_file() and path.suffix not in (".png", ".safetensors"):
            text = path.read_text(encoding="utf-8")
            if path.suffix == ".ipynb":
                text = "\n".join(strings(json.loads(text)))
            found[path.relative_to(folder).as_posix()] = text
    return found


def answers() -> list[list[str]]:
    """The lines of every answer: those of the keys, and those that the checks compare with."""
    for name in sorted(path.stem for path in keys.ROOT.glob("course_utils/homework/hw*.py")):
        with contextlib.suppress(ValueError):
            checks.find(f"{name}.")
    own = [inspect.getsource(exercise.answer) for exercise in checks.EXERCISES.values()]
    found = [[line.strip() for line in source.splitlines()] for source in own]
    return [*(region for key in KEYS for region in regions(key)), *found]


def given(key: Path) -> str:
    """What a key has beside its answers."""
    cells = nbformat.read(key, as_version=4).cells
    text = "\n".join(cell.source for cell in cells)
    return re.sub(rf"(?s){release.BEGIN}.*?{release.END}", "", text)


def test_no_answer_can_be_read(made: Path) -> None:
    """A line of an answer stands in the hand-out only where a lecture or the library teaches it.

    These are few, and never two lines of an answer on end. Short lines, imports, heads of functions
    and what a homework itself gives say nothing.
    """
    everywhere = texts(made)
    lines = {line for answer in answers() for line in answer if len(line) >= LONG}
    asked = "\n".join(map(given, KEYS))
    lines = {line for line in lines if not line.startswith(("def ", "from ", "import "))}
    lines = {line for line in lines if line not in asked}
    assert len(lines) > 400
    found = {line: [name for name, text in everywhere.items() if line in text] for line in lines}
    taught = {line: names for line, names in found.items() if names}
    assert len(taught) < 0.05 * len(lines), taught
    for line, names in taught.items():
        for name in names:
            assert re.match(r"notebooks/\d\d_|course_utils/(?!homework)", name), (line, name)
    pairs = {pair for answer in answers() for pair in itertools.pairwise(answer)}
    pairs = {pair for pair in pairs if lines.issuperset(pair)}
    assert len(pairs) > 200
    for text in everywhere.values():
        there = itertools.pairwise(line.strip() for line in text.splitlines())
        assert not pairs.intersection(there)


def test_what_is_not_for_a_class_is_not_there(made: Path) -> None:
    assert {path.name for path in made.iterdir()} == {
        *handout.FILES,
        *("course_utils", "data", "notebooks"),
    }
    assert {path.name for path in made.glob("notebooks/homework/*.ipynb")} == {
        key.name for key in KEYS
    }
    names = [path.name for path in made.rglob("*")]
    assert not [name for name in names if name.startswith(".") or name == "__pycache__"]
    for name, text in texts(made).items():
        if name != "course_utils/tools/release.py":  # which takes them out
            assert not re.search(r"Marking guide|SOLUTION", text), name


def test_what_the_network_of_homework_6_goes_by_stands_nowhere(made: Path) -> None:
    """The part has its name where films are drawn, and among others in a lecture on films."""
    part = checks.find("hw06.verdict").answer()["by"]
    named = {name for name, text in texts(made).items() if part in text}
    assert named == {"course_utils/worlds/radiographs.py", "notebooks/10_case_study.ipynb"}
    for path in made.glob("data/*"):
        assert part.encode() not in path.read_bytes()
        assert b"confound" not in path.read_bytes()
    cheats = [path.name for path in made.rglob("*cheat*")]
    assert cheats == ["scenes-cheating.safetensors"]  # of which lecture 10 tells


PYTHON = {"PYTHONPATH": "", "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}


def python(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env=os.environ | PYTHON,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.slow
def test_commands_work_in_it(made: Path) -> None:
    tested = python(made, "-m", "course_utils", "test", "--fast")
    assert (tested.returncode, tested.stderr) == (
        1,
        "course: there are no tests here; the course is handed out without them\n",
    )
    again = python(made, "-m", "course_utils", "handout", "elsewhere")
    assert again.returncode == 1
    assert "this course is a hand-out itself" in again.stderr
    found = python(made, "-c", "from course_utils.tools import cli; print(cli.problems())")
    assert found.stdout == "[]\n", found.stderr


@pytest.mark.notebooks
def test_a_homework_is_done_in_it(made: Path, tmp_path: Path, monkeypatch: Any) -> None:
    """Homework 2 from top to bottom, with the answers of its key, in the library handed out."""
    name = "hw02_grad_cam_and_ig.ipynb"
    notebook = nbformat.read(made / "notebooks" / "homework" / name, as_version=4)
    key = nbformat.read(keys.SOLUTIONS / name, as_version=4)
    given = {c.metadata.nbgrader.grade_id: c for c in key.cells if "nbgrader" in c.metadata}
    for cell in notebook.cells:
        if cell.metadata.get("nbgrader", {}).get("solution"):
            cell.source = given[cell.metadata.nbgrader.grade_id].source
    monkeypatch.setenv("PYTHONPATH", str(made))
    import nbclient

    nbclient.NotebookClient(
        notebook, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    ).execute()
    said = "".join(o.get("text", "") for c in notebook.cells for o in c.get("outputs", []))
    assert said.count(grading.HOLDS) == 5


# The packed module ----------------------------------------------------------------------------


SOURCE = '''"""What it is."""

KNOWN = {"a": 1}


def twice(x: float) -> float:
    """Two of them."""
    return x + secret(x)


def secret(x: float) -> float:
    return x / 0 if x == 7 else x
'''


@pytest.fixture
def module(tmp_path: Path) -> Any:
    path = tmp_path / "packed.py"
    path.write_text(handout.packed("hw99", SOURCE), encoding="utf-8")
    spec = importlib.util.spec_from_file_location("packed_for_test", path)
    assert spec
    assert spec.loader
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


def test_a_packed_module_is_the_module(module: Any) -> None:
    assert module.twice(3) == 6
    assert (module.__doc__, module.KNOWN) == ("What it is.", {"a": 1})
    assert module.twice.__module__ == "packed_for_test"


def test_a_packed_module_says_what_it_is_and_shows_nothing(module: Any) -> None:
    text = Path(module.__file__).read_text(encoding="utf-8")
    assert "packed" in text.partition("\n")[0]
    assert "secret" not in text
    assert max(map(len, text.splitlines())) < 120
    with pytest.raises(OSError, match="source"):
        inspect.getsource(module.secret)


def test_an_error_in_a_packed_module_shows_no_line_of_it(module: Any) -> None:
    import traceback

    from IPython.core.ultratb import VerboseTB

    try:
        module.twice(7)
    except ZeroDivisionError:
        shown = "".join(VerboseTB("nocolor").text(*sys.exc_info()))
        shown += traceback.format_exc()
    assert "<hw99, packed>" in shown
    assert "x / 0" not in shown
    assert "x + secret" not in shown


# Where it is written --------------------------------------------------------------------------


def test_a_folder_with_something_in_it_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="is there and is no hand-out; name a new or empty"):
        handout.make(tmp_path)
    with pytest.raises(FileExistsError, match=r"mine.txt is there and is no hand-out"):
        handout.make(tmp_path / "mine.txt")
    with pytest.raises(FileExistsError):
        handout.make(keys.ROOT)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_an_older_handout_is_replaced_and_an_empty_folder_filled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "class"
    folder.mkdir()
    handout.make(folder)
    (folder / "data" / "old.txt").write_text("old")
    handout.make(folder)
    assert not (folder / "data" / "old.txt").exists()

    def fails(**_: Any) -> None:
        raise ValueError("hw02: nbgrader cannot release it")

    before = sorted(folder.rglob("*"))
    monkeypatch.setattr(release, "make", fails)
    with pytest.raises(ValueError, match="cannot release"):
        handout.make(folder)
    assert sorted(folder.rglob("*")) == before
    assert list(tmp_path.iterdir()) == [folder]


def test_the_folder_is_given_on_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    from course_utils.tools import cli

    with contextlib.redirect_stderr(io.StringIO()) as error:
        assert cli.main(["handout", str(keys.ROOT)]) == 1
    assert "is no hand-out" in error.getvalue()
