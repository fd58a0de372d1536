"""The instructor's copy of a lecture, and its timing sheet."""

import ast
import re
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from course_utils.tools import live
from tests import execute

LECTURES = sorted(execute.NOTEBOOKS.glob("[0-9][0-9]_*.ipynb"))
FRAGMENT = {"slideshow": {"slide_type": "fragment"}}

SHEET = """\
# 03 · Maps: timing

Before 0:00: run the setup cell. Behind the clock: run a collapsed cell, do not type it.

| clock | section | minutes | cells to type | questions | panels |
|:--|:--|--:|--:|--:|:--|
| 0:00 – 0:50 | 1 · Of $\\|x\\|$ | 50 | 3 | 2 | lime, shapley |
| 0:50 – 1:05 | 2 · Pictures | 15 | 1 | 0 |  |
| 1:05 – 1:06 | Recap | 1 | 0 | 0 |  |
| | **total** | **66** | **4** | **2** | |

After class: Your own photo; Sources.
"""


def made(source: str, **metadata: Any) -> NotebookNode:
    """A code cell as an execution leaves it."""
    output = nbformat.v4.new_output("stream", text="1\n")
    return new_code_cell(source, execution_count=1, outputs=[output], metadata=metadata)


@pytest.fixture
def lecture(tmp_path: Path) -> Path:
    """A small lecture with everything that a copy has to keep, or to leave out."""
    cells = [
        new_markdown_cell("# 03 · Maps\n\n**Predict.** Not in a section.", metadata=FRAGMENT),
        made("from course_utils import panels"),
        new_markdown_cell("## 1 · Of $|x|$\n\n*50 minutes*\n\n**Predict.** One?"),
        made("# Two comments,\n# then code.\nx = 1", **FRAGMENT),
        new_markdown_cell("### A part\n\n| **Predict.** | is a row |\n\nAnd: **Predict.** Two?"),
        made("panels.lime(x)\npanels.shapley(x)", tags=["raises-exception"]),
        made("panels.lime()"),
        new_markdown_cell("## 2 · Pictures\n\n*15 minutes*\n\n![A map](pictures/a.png)"),
        made("for y in [x]:\n    print(y)"),
        new_markdown_cell("## Recap\n\n*1 minute*\n\n## Your own photo\n\n*after class*"),
        made("x"),
        new_markdown_cell("## Sources\n\n*after class*"),
    ]
    path = tmp_path / "notebooks" / "03_maps.ipynb"
    (path.parent / "pictures").mkdir(parents=True)
    (path.parent / "pictures" / "a.png").touch()
    nbformat.write(new_notebook(cells=cells, metadata=execute.METADATA), path)
    return path


def is_catch_up(cell: NotebookNode) -> bool:
    return "catch-up" in cell.metadata.get("tags", [])


def code(notebook: NotebookNode) -> list[NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def prose(notebook: NotebookNode) -> list[NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type != "code"]


def test_the_copy_has_prose_setup_comments_and_the_code_collapsed(
    lecture: Path, tmp_path: Path
) -> None:
    path, _ = live.make(lecture, tmp_path / "live")
    assert path == tmp_path / "live" / "03_maps.ipynb"
    copy = nbformat.read(path, as_version=4)
    nbformat.validate(copy)
    assert copy.metadata == execute.METADATA
    assert [cell.source for cell in code(copy) if not is_catch_up(cell)] == [
        "from course_utils import panels",
        "# Two comments,\n# then code.",
        "# …",
        "# …",
        "# …",
        "# …",
    ]
    assert [cell.outputs for cell in code(copy)] == [[]] * 11
    assert [cell.execution_count for cell in code(copy)] == [None] * 11
    comment, caught = copy.cells[3:5]
    assert comment.metadata == FRAGMENT
    assert caught.metadata == {
        "jupyter": {"source_hidden": True, "outputs_hidden": False},
        "slideshow": {"slide_type": "skip"},
        "tags": ["catch-up"],
    }
    assert copy.cells[7].metadata.tags == ["raises-exception", "catch-up"]
    assert copy.cells[0].metadata == FRAGMENT


@pytest.mark.parametrize(
    ("sources", "comments"),
    [
        (["x = 1"], ["# …"]),
        (["x = 1", "x"], ["# later cells need x", "# …"]),
        (["b, a = 1, 2\nc = 3", "a + b"], ["# later cells need b, a", "# …"]),
        (["# Two.\nx = 2", "x"], ["# Two.", "# …"]),
        (["x = 2  # two", "x"], ["# later cells need x", "# …"]),
        (["x = 1", "x = 2", "x"], ["# …", "# later cells need x", "# …"]),
        (["x = 1", "x += 1", "x"], ["# later cells need x", "# later cells need x", "# …"]),
        (["x = 1", "for x in (1, 2):\n    print(x)"], ["# …", "# …"]),
        (["x = 1", "[x for x in (1, 2)]"], ["# …", "# …"]),
        (["x = 1", "[y + x for y in (1, 2)]"], ["# later cells need x", "# …"]),
        (["x = 1", "def f():\n    return x"], ["# later cells need x", "# …"]),
        (["x = 1", "x = 2\ndef f():\n    return x"], ["# …", "# …"]),
        (["x = 1", "def f(x):\n    return x"], ["# …", "# …"]),
        (["def f():\n    y = 1\n    return y", "f()\ny = 2"], ["# later cells need f", "# …"]),
        (["import a.b as c\nfrom d import e", "c(e)"], ["# later cells need c, e", "# …"]),
    ],
)
def test_what_is_left_of_a_cell(sources: list[str], comments: list[str]) -> None:
    assert list(live._comments(sources)) == comments


def test_a_long_comment_is_broken() -> None:
    names = [f"name_{number:02}" for number in range(30)]
    first, _ = live._comments([" = ".join([*names, "0"]), "; ".join(names)])
    assert max(map(len, first.splitlines())) <= 99
    assert ast.parse(first).body == []
    assert first.replace("\n# ", " ") == f"# later cells need {', '.join(names)}"


@pytest.mark.parametrize(
    ("text", "in_the_copy"),
    [
        ("![A map](pictures/a.png)", "![A map](../notebooks/pictures/a.png)"),
        ("[03](03_maps.ipynb#Recap), [3]", "[03](../notebooks/03_maps.ipynb#Recap), [3]"),
        ('<img src="pictures/a.png">', '<img src="../notebooks/pictures/a.png">'),
        ("[a paper](https://example.org/a.png)", "[a paper](https://example.org/a.png)"),
        ("[below](#Recap) and $f[a](x)$", "[below](#Recap) and $f[a](x)$"),
    ],
)
def test_links_lead_to_the_files_of_the_lecture(
    lecture: Path, tmp_path: Path, text: str, in_the_copy: str
) -> None:
    assert live._relinked(text, lecture.parent, tmp_path / "live") == in_the_copy


@pytest.mark.parametrize("there", ["03_maps.ipynb", "03_timing.md"])
def test_what_is_there_is_never_overwritten(lecture: Path, tmp_path: Path, there: str) -> None:
    path = tmp_path / "live" / there
    path.parent.mkdir()
    path.write_text("typed in class")
    with pytest.raises(FileExistsError, match=f"{there} is there already; rename or delete it"):
        live.make(lecture, path.parent)
    assert [file.name for file in path.parent.iterdir()] == [there]
    assert path.read_text() == "typed in class"


def test_both_files_or_none(lecture: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = Path.write_text

    def full(path: Path, text: str, encoding: str) -> int:
        if path.suffix == ".ipynb":
            raise OSError("no space left")
        return write(path, text, encoding)

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match="no space left"):
        live.make(lecture, tmp_path / "live")
    assert list((tmp_path / "live").iterdir()) == []
    monkeypatch.undo()
    live.make(lecture, tmp_path / "live")
    names = {file.name for file in (tmp_path / "live").iterdir()}
    assert names == {"03_maps.ipynb", "03_timing.md"}


# The timing sheet ----------------------------------------------------------------------------


def test_the_timing_sheet(lecture: Path, tmp_path: Path) -> None:
    _, path = live.make(lecture, tmp_path / "live")
    assert path == tmp_path / "live" / "03_timing.md"
    assert path.read_text(encoding="utf-8") == SHEET


@pytest.mark.parametrize("mark", ["", "\n\n*5 min*", "\n*5 minutes*", "\n\n*5 minutes* or so"])
def test_a_section_without_its_minutes_is_named(lecture: Path, tmp_path: Path, mark: str) -> None:
    notebook = nbformat.read(lecture, as_version=4)
    notebook.cells.append(new_markdown_cell(f"## 7 · Late{mark}\n\nText."))
    nbformat.write(notebook, lecture)
    with pytest.raises(ValueError, match="the section '7 · Late' does not say its minutes"):
        live.make(lecture, tmp_path / "live")
    assert not (tmp_path / "live").exists()


# The lectures --------------------------------------------------------------------------------


each_lecture = pytest.mark.parametrize("path", LECTURES, ids=lambda path: path.stem)


@pytest.mark.notebooks
@each_lecture
def test_the_clock_ends_at_the_minutes_of_the_lecture(path: Path) -> None:
    lecture = nbformat.read(path, as_version=4)
    (minutes,) = re.findall(r"\*\*Time:\*\* (\d+) minutes", str(prose(lecture)))
    sheet = live.timing(lecture)
    assert f"| | **total** | **{minutes}** |" in sheet
    assert f" – {int(minutes) // 60}:{int(minutes) % 60:02} |" in sheet
    assert len(sheet.splitlines()) <= 32  # one page


@pytest.mark.notebooks
@each_lecture
def test_with_all_catch_up_cells_the_copy_is_the_lecture(path: Path) -> None:
    lecture = nbformat.read(path, as_version=4)
    copy = live.live(lecture, path.parent, path.parents[1] / "live")
    assert len({cell.id for cell in copy.cells}) == len(copy.cells)

    restored: list[NotebookNode] = []
    for cell in copy.cells:
        if is_catch_up(cell):
            assert ast.parse(restored[-1].source).body == []  # harmless when it is run
            restored[-1].source = cell.source
        else:
            restored.append(cell)
    assert len(restored) == len(lecture.cells)
    for now, was in zip(restored, lecture.cells, strict=True):
        assert now.id == was.id
        assert now.metadata == was.metadata
        assert now.source.replace("../notebooks/", "") == was.source
    setup, *others = code(copy)
    assert setup.source == code(lecture)[0].source
    assert [is_catch_up(cell) for cell in others] == [False, True] * (len(others) // 2)


@pytest.mark.notebooks
def test_running_the_copy_gives_the_outputs_of_the_lecture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a folder of its own, as the copies are. The other lectures need longer."""
    monkeypatch.setenv("PYTHONPATH", str(execute.ROOT))
    lecture = nbformat.read(LECTURES[0], as_version=4)
    copy = live.live(lecture, execute.NOTEBOOKS, tmp_path)
    resources = {"metadata": {"path": str(tmp_path)}}
    NotebookClient(copy, timeout=120, coalesce_streams=True, resources=resources).execute()
    setup, *others = code(execute.clean(copy))
    assert [cell.outputs for cell in others[::2]] == [[]] * (len(others) // 2)
    ran = [seen(cell) for cell in (setup, *others[1::2])]
    assert ran == [seen(cell) for cell in code(lecture)]
    assert any("image/png" in output for cell in ran for output in cell)
    assert list(tmp_path.iterdir()) == []


def seen(cell: NotebookNode) -> list[dict[str, Any]]:
    """The outputs of a cell: what the text is, and which other kinds there are."""
    return [
        {"text": output.text}
        if output.output_type == "stream"
        else {kind: kind.startswith("text/") and data for kind, data in output.data.items()}
        for output in cell.outputs
    ]
