"""What every stored notebook must be; their outputs are compared by `pytest --nbval`."""

import ast
import json
import re
from pathlib import Path
from typing import Any

import nbformat
import pytest

from tests import execute
from tests.keys import SOLUTIONS

pytestmark = pytest.mark.notebooks

LECTURES = sorted(execute.NOTEBOOKS.glob("[0-9][0-9]_*.ipynb"))
SECTION = re.compile(
    r"^## (?P<title>.+)\n\n\*(?:(?P<minutes>\d+) minutes?|after class)\*$", re.MULTILINE
)
MACHINE = re.compile(r"/(home|root|Users|tmp|private|var)/\S|[A-Z]:\\+Users")

RELEASE = execute.NOTEBOOKS / "homework"
EVERY = [*LECTURES, *sorted(RELEASE.glob("hw*.ipynb")), *sorted(SOLUTIONS.glob("hw*.ipynb"))]

each_lecture = pytest.mark.parametrize("path", LECTURES, ids=lambda path: path.stem)


def code_cells(path: Path) -> list[Any]:
    cells = nbformat.read(path, as_version=4).cells
    return [cell for cell in cells if cell.cell_type == "code"]


def test_the_lectures_are_there() -> None:
    names = [path.stem for path in LECTURES]
    assert names[:2] == ["00_start_here", "01_cnn_crash_course"]
    assert [int(name[:2]) for name in names] == list(range(len(names)))


@each_lecture
def test_executed_once_from_top_to_bottom_without_an_error(path: Path) -> None:
    cells = code_cells(path)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    for cell in cells:
        kinds = {output.output_type for output in cell.outputs}
        assert "error" not in kinds or "raises-exception" in cell.metadata.get("tags", [])


@each_lecture
def test_no_output_on_stderr(path: Path) -> None:
    """Warnings and progress bars differ from run to run."""
    for cell in code_cells(path):
        assert [out.text for out in cell.outputs if out.get("name") == "stderr"] == []


@each_lecture
def test_every_claim_can_fail(path: Path) -> None:
    for cell in code_cells(path):
        for node in ast.walk(ast.parse(cell.source)):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "claim":
                assert not isinstance(node.args[-1], ast.Constant), ast.unparse(node)


@each_lecture
def test_small_enough(path: Path) -> None:
    assert path.stat().st_size <= 1.5e6


@each_lecture
def test_cells_fit_on_a_slide(path: Path) -> None:
    lengths = [len(cell.source.splitlines()) for cell in code_cells(path)]
    assert 1 <= lengths[0] <= 5
    assert min(lengths) >= 1
    assert max(lengths) <= 15


@pytest.mark.parametrize(
    "path", [*LECTURES, *sorted(SOLUTIONS.glob("*.ipynb"))], ids=lambda path: path.stem
)
def test_the_course_is_imported_before_torch(path: Path) -> None:
    """It tells OpenMP how its threads wait, which is read when torch is loaded."""
    imports = re.findall(r"^(?:from|import) (\w+)", code_cells(path)[0].source, re.MULTILINE)
    assert imports[0] == "course_utils"


@each_lecture
def test_begins_with_a_title(path: Path) -> None:
    first = nbformat.read(path, as_version=4).cells[0]
    assert first.cell_type == "markdown"
    assert first.source.startswith("# ")


@each_lecture
def test_headings_begin_cells(path: Path) -> None:
    for cell in nbformat.read(path, as_version=4).cells:
        if cell.cell_type == "markdown":
            assert not re.search(r"\n#{1,3} ", cell.source), cell.source


@each_lecture
def test_minutes_of_the_sections_add_up(path: Path) -> None:
    cells = nbformat.read(path, as_version=4).cells
    headings = [cell.source for cell in cells if cell.source.startswith("## ")]
    sections = [match for text in headings if (match := SECTION.match(text))]
    assert len(sections) == len(headings) > 3
    stated = re.search(r"\*\*Time:\*\* (\d+) minutes", cells[0].source + cells[1].source)
    assert stated
    assert sum(int(section["minutes"] or 0) for section in sections) == int(stated[1])
    later = {section["title"].split(",")[0] for section in sections if not section["minutes"]}
    assert later <= {"Try it on ImageNet", "Exercises", "Sources"}


@each_lecture
def test_every_cell_has_a_slide_mark(path: Path) -> None:
    """The marks that JupyterLab's property inspector shows; test_slides.py looks at the result."""
    cells = nbformat.read(path, as_version=4).cells
    marks = [cell.metadata.get("slideshow", {}).get("slide_type") for cell in cells]
    assert set(marks) <= {"slide", "subslide", "fragment", "notes", "skip", "-"}
    assert marks[0] == "slide"
    assert len(marks) > marks.count("skip") + marks.count("notes") > 0
    for cell, mark in zip(cells, marks, strict=True):
        if cell.source.startswith("## "):
            assert mark in ("slide", "skip")
        if cell.source.startswith("**Predict"):
            assert mark == "subslide"  # asked before the code that answers
        assert cell.cell_type == "code" or "\n\n**Predict" not in cell.source


@each_lecture
def test_every_picture_has_a_text_alternative(path: Path) -> None:
    for cell in code_cells(path):
        for output in cell.outputs:
            if "image/png" in output.get("data", {}):
                alternative = output.data.get("text/plain", "")
                assert len(alternative) > 10, cell.source
                assert not re.match(r"<.* object at 0x|<Figure size|<IPython", alternative)


@each_lecture
def test_stored_as_the_execution_leaves_it(path: Path) -> None:
    """No widget views, no widget state, no times, the same kernel for everybody."""
    notebook = nbformat.read(path, as_version=4)
    assert execute.clean(nbformat.from_dict(json.loads(json.dumps(notebook)))) == notebook


@pytest.mark.parametrize("path", EVERY, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_stored_as_jupyterlab_leaves_it(path: Path) -> None:
    """Opened and saved, it is the same file; tests/test_cli.py tries that on two."""
    notebook = nbformat.read(path, as_version=4)
    assert notebook.metadata == execute.METADATA
    assert path.read_text(encoding="utf-8") == nbformat.writes(notebook) + "\n"


@each_lecture
def test_names_no_machine(path: Path) -> None:
    for cell in nbformat.read(path, as_version=4).cells:
        texts = [cell.source]
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            texts += [output.get("text", ""), *(v for k, v in data.items() if "image" not in k)]
        for text in texts:
            assert not MACHINE.search(str(text))


def notebook(path: Path, *sources: str) -> Path:
    cells = [nbformat.v4.new_code_cell(source) for source in sources]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), path)
    return path


def test_execute_stores_the_picture_and_not_the_widget(tmp_path: Path) -> None:
    path = notebook(
        tmp_path / "panel.ipynb",
        "from IPython.display import display; from pathlib import Path",
        "bundle = {'text/plain': 'a panel', 'image/png': 'aGVsbG8='}\n"
        f"display({{**bundle, {execute.WIDGET_VIEW!r}: {{'model_id': 'x'}}}}, raw=True)",
        "Path.cwd().name",
    )
    assert execute.main([str(path)]) == 0
    _, panel, folder = code_cells(path)
    assert panel.outputs[0].data == {"text/plain": "a panel", "image/png": "aGVsbG8="}
    assert folder.outputs[0].data["text/plain"] == "'notebooks'"
    stored = nbformat.read(path, as_version=4)
    assert stored.metadata == execute.METADATA
    assert [cell.metadata for cell in stored.cells] == [{}, {}, {}]


def test_a_notebook_that_fails_is_left_as_it_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = notebook(tmp_path / "broken.ipynb", "1 + 1", "1 / 0")
    before = path.read_bytes()
    assert execute.main([str(path)]) == 1
    assert "ZeroDivisionError" in capsys.readouterr().err
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["broken.ipynb"]
