"""A student's copies of the notebooks, and what an update of the course does to them."""

from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from course_utils.tools import work
from tests import execute


def write(path: Path, *sources: str) -> Path:
    """A notebook of code cells that were run."""
    cells: list[Any] = [new_markdown_cell("# Ä title", id="title")]
    for number, source in enumerate(sources):
        output = new_output("stream", text="1\n")
        cells.append(new_code_cell(source, id=f"c{number}", outputs=[output], execution_count=1))
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(new_notebook(cells=cells, metadata=execute.METADATA), path)
    return path


def sources(path: Path) -> list[str]:
    cells = nbformat.read(path, as_version=4).cells
    return [cell.source for cell in cells if cell.cell_type == "code"]


@pytest.fixture
def course(tmp_path: Path) -> Path:
    """A course of one lecture and one homework with a picture."""
    folder = tmp_path / "notebooks"
    write(folder / "05_gradients.ipynb", "1 + 1")
    write(folder / "homework" / "hw01_photo.ipynb", "answer = ...")
    (folder / "homework" / "pictures").mkdir()
    (folder / "homework" / "pictures" / "hw01.png").write_bytes(b"old")
    write(folder / "homework" / ".ipynb_checkpoints" / "hw01_photo-checkpoint.ipynb", "")
    write(folder / "Untitled.ipynb", "")
    return folder


@pytest.fixture
def mine(course: Path, tmp_path: Path) -> Path:
    """The folder of the copies, just made."""
    assert work.make(course, tmp_path / "work") == []
    return tmp_path / "work"


def test_the_copies_have_everything_but_outputs(course: Path, mine: Path) -> None:
    names = {path.relative_to(mine).as_posix() for path in mine.rglob("*") if path.is_file()}
    assert names == {
        ".made.json",
        "05_gradients.ipynb",
        "homework/hw01_photo.ipynb",
        "homework/pictures/hw01.png",
    }
    wanted = nbformat.read(course / "05_gradients.ipynb", as_version=4)
    wanted.cells[1] |= {"outputs": [], "execution_count": None}
    assert nbformat.read(mine / "05_gradients.ipynb", as_version=4) == wanted
    text = (mine / "05_gradients.ipynb").read_text(encoding="utf-8")
    assert text == nbformat.writes(wanted) + "\n"  # as JupyterLab would save it


def test_a_copy_that_nobody_edited_follows_the_course(course: Path, mine: Path) -> None:
    write(mine / "05_gradients.ipynb", "1 + 1")  # it was run
    write(course / "05_gradients.ipynb", "2 + 2")
    (course / "homework" / "pictures" / "hw01.png").write_bytes(b"new")
    for _ in range(2):
        assert work.make(course, mine) == []
        assert sources(mine / "05_gradients.ipynb") == ["2 + 2"]
    assert (mine / "homework" / "pictures" / "hw01.png").read_bytes() == b"new"


def test_a_copy_that_was_run_keeps_its_outputs(course: Path, mine: Path) -> None:
    before = write(mine / "05_gradients.ipynb", "1 + 1").read_bytes()
    assert work.make(course, mine) == []
    assert (mine / "05_gradients.ipynb").read_bytes() == before


def test_an_edited_copy_stays_and_is_named_once_the_course_changes(
    course: Path, mine: Path
) -> None:
    copy = write(mine / "homework" / "hw01_photo.ipynb", "answer = 42")
    before = copy.read_bytes()
    assert work.make(course, mine) == []
    write(course / "homework" / "hw01_photo.ipynb", "answer = 'better asked'")
    for _ in range(2):
        assert work.make(course, mine) == [copy]
    assert copy.read_bytes() == before
    copy.rename(copy.with_name("mine.ipynb"))
    assert work.make(course, mine) == []
    assert sources(copy) == ["answer = 'better asked'"]
    assert copy.with_name("mine.ipynb").read_bytes() == before


@pytest.mark.parametrize("content", ["", "no JSON", "[]", '{"cells": [1]}', '{"cells": [{}]}'])
def test_a_copy_that_cannot_be_read_stays(course: Path, mine: Path, content: str) -> None:
    copy = mine / "05_gradients.ipynb"
    copy.write_text(content)
    write(course / "05_gradients.ipynb", "2 + 2")
    assert work.make(course, mine) == [copy]
    assert copy.read_text() == content


def test_a_damaged_original_is_named(course: Path, mine: Path) -> None:
    (course / "05_gradients.ipynb").write_text("<<<<<<< HEAD")
    with pytest.raises(ValueError, match="05_gradients.ipynb is damaged; `git checkout "):
        work.make(course, mine)
    assert sources(mine / "05_gradients.ipynb") == ["1 + 1"]


@pytest.mark.parametrize("record", [None, "", "{"])
def test_without_a_record_what_differs_counts_as_edited(
    course: Path, mine: Path, record: str | None
) -> None:
    edited = write(mine / "05_gradients.ipynb", "my = 1")
    (mine / work.MADE).unlink()
    if record is not None:
        (mine / work.MADE).write_text(record)
    assert work.make(course, mine) == [edited]
    assert sources(edited) == ["my = 1"]
    write(course / "homework" / "hw01_photo.ipynb", "2")  # the other copy is known again
    assert work.make(course, mine) == [edited]
    assert sources(mine / "homework" / "hw01_photo.ipynb") == ["2"]
