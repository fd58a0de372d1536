"""The homework as students get it, made from the keys, and the nbgrader course that marks it.

A key in solutions/ has question, answer, check and interpretation. nbgrader's own steps take the
answers out of it; what a picture should look like is kept, as a file beside the notebook.
"""

import base64
import copy
import re
import secrets
from pathlib import Path

import nbformat
from nbformat import NotebookNode

from course_utils.files import whole

ROOT = Path(__file__).resolve().parents[2]
SOLUTIONS = ROOT / "solutions"
RELEASE = ROOT / "notebooks" / "homework"

CODE_STUB = "# Write your answer in place of the next line.\nraise NotImplementedError()"
TEXT_STUB = "*Write your answer here.*"
BEGIN, END = "### BEGIN SOLUTION", "### END SOLUTION"
EXPECTED = "expected:"  # the tag of a cell whose picture a student is shown
LINK = re.compile(r"\]\(\.\./notebooks/homework/pictures/([^)]+)\.png\)")

CONFIG = '''"""How nbgrader marks the homework; written once by `course release`, then yours."""

from pathlib import Path

c = get_config()  # noqa: F821
c.CourseDirectory.course_id = "explaining-cnns"
c.CourseDirectory.root = str(Path(__file__).resolve().parent)

# source/ has what students get, without answers: nothing of the key lies in this folder.
c.ClearSolutions.enabled = False

# A cell that takes longer is stopped, and the next one runs. No check of the key takes 5 seconds.
c.Execute.timeout = 120
c.Execute.interrupt_on_timeout = True
c.Execute.iopub_timeout = 30  # a long step of torch notices an interrupt only when it is done
c.Execute.store_widget_state = False

# What students do not have: their answers are tried on other random numbers than they saw.
c.Run.seed = SEED
c.Run.memory = 4_000_000_000  # bytes
c.Run.characters = 100_000  # that a cell may put out

# A warning costs no marks: nbgrader gives 0 for anything on stderr.
c.IgnorePattern.enabled = True
c.IgnorePattern.pattern = "(?s)."

c.Autograde.pre_convert_hook = "course_utils.tools.grading.name_as_released"
c.Autograde.exporter_class = "course_utils.tools.grading.Submission"
c.ExportApp.plugin_class = "course_utils.tools.grading.Export"
c.Autograde.sanitize_preprocessors = [
    "course_utils.tools.grading.Restore",
    "nbgrader.preprocessors.ClearOutput",
    "nbgrader.preprocessors.DeduplicateIds",
    "nbgrader.preprocessors.OverwriteKernelspec",
    "nbgrader.preprocessors.OverwriteCells",
    "nbgrader.preprocessors.CheckCellMetadata",
]
c.Autograde.autograde_preprocessors = [
    "course_utils.tools.grading.Run",
    "nbgrader.preprocessors.IgnorePattern",
    "nbgrader.preprocessors.LimitOutput",
    "course_utils.tools.grading.Save",
    "nbgrader.preprocessors.AssignLatePenalties",
    "nbgrader.preprocessors.CheckCellMetadata",
]
'''


def make(keys: Path = SOLUTIONS, folder: Path = RELEASE) -> list[Path]:
    """Write the release of every key and its pictures; returns what is there now.

    Making it again changes no byte. A release whose key is gone is removed. Raises ValueError for
    a key that cannot be released, before anything is written.
    """
    files = {folder / name: content for name, content in _released(keys).items()}
    for path, content in files.items():
        _write(path, content)
    for path in [*folder.glob("hw*.ipynb"), *folder.glob("pictures/hw*.png")]:
        if path not in files:
            path.unlink()
    return list(files)


def course(folder: Path, keys: Path = SOLUTIONS) -> list[Path]:
    """Make a folder an nbgrader course, or bring its source/ up to date; returns what is there.

    Its nbgrader_config.py is written once. Raises what `make` raises.
    """
    files = {
        folder / "source" / Path(name).name[:4] / name: content
        for name, content in _released(keys).items()
    }
    config = folder / "nbgrader_config.py"
    if not config.exists():
        files[config] = CONFIG.replace("SEED", f"{secrets.randbelow(10**9) + 1}").encode()
    for path, content in files.items():
        _write(path, content)
    return list(files)


def release(name: str, key: NotebookNode) -> tuple[NotebookNode, dict[str, bytes]]:
    """A key without answers, and the pictures that students are shown: name -> PNG.

    name: of the file, for errors. Raises ValueError for a key that cannot be released.
    """
    _check(name, key)
    pictures = _pictures(name, key)
    notebook = copy.deepcopy(key)
    notebook.metadata.pop("widgets", None)
    for cell in notebook.cells:
        cell.pop("attachments", None)
        tags = [tag for tag in cell.metadata.pop("tags", []) if not tag.startswith(EXPECTED)]
        if cell.cell_type == "code":  # Run All goes on past an exercise that is not written yet
            tags.append("raises-exception")
        if tags:
            cell.metadata.tags = tags
        if cell.cell_type == "markdown":  # links lead from where the release lies
            text = cell.source.replace("](../notebooks/homework/", "](")
            cell.source = text.replace("](../notebooks/", "](../")
    return _without_answers(name, notebook), pictures


def _released(keys: Path) -> dict[str, bytes]:
    """Every file of the release: its path within the folder -> content."""
    paths = sorted(keys.glob("hw[0-9][0-9]_*.ipynb"))
    if not paths:
        raise FileNotFoundError(f"there are no keys in {keys}; `git checkout solutions`")
    files: dict[str, bytes] = {}
    for path in paths:
        notebook, pictures = release(path.name, nbformat.read(path, as_version=4))
        files[path.name] = (nbformat.writes(notebook) + "\n").encode()
        files |= {f"pictures/{picture}.png": png for picture, png in pictures.items()}
    return files


def _check(name: str, key: NotebookNode) -> None:
    """Raise ValueError where nbgrader would release an answer, or marks would not add up."""
    for cell in key.cells:
        grader = cell.metadata.get("nbgrader", {})
        where = f"{name}: the cell {grader.get('grade_id', cell.source[:40])!r}"
        marks = [line.strip() for line in cell.source.split("\n") if line.strip() in (BEGIN, END)]
        if marks != [BEGIN, END] * (len(marks) // 2):
            raise ValueError(
                f"{where} has {BEGIN} and {END} that do not pair; each needs its other"
            )
        if len(marks) // 2 != int(grader.get("solution", False)):
            raise ValueError(
                f"{where} has {len(marks) // 2} answers between {BEGIN} and {END}, "
                f"but an answer cell needs one, and no other cell has any"
            )
    points = sum(cell.metadata.get("nbgrader", {}).get("points", 0) for cell in key.cells)
    if points != 100:
        raise ValueError(f"{name}: the points of its cells add to {points}, wanted are 100")


def _pictures(name: str, key: NotebookNode) -> dict[str, bytes]:
    """The pictures of the tagged cells; each is linked, and nothing else is."""
    pictures: dict[str, bytes] = {}
    for cell in key.cells:
        for tag in cell.metadata.get("tags", []):
            if tag.startswith(EXPECTED):
                found = [
                    out.data["image/png"] for out in _displays(cell) if "image/png" in out.data
                ]
                if len(found) != 1:
                    raise ValueError(
                        f"{name}: the cell tagged {tag} has {len(found)} pictures, wanted is one; "
                        f"`python tests/execute.py solutions/{name}` executes it"
                    )
                pictures[tag.removeprefix(EXPECTED)] = base64.b64decode(found[0])
    linked = {
        link
        for cell in key.cells
        if cell.cell_type == "markdown"
        for link in LINK.findall(cell.source)
    }
    if linked != set(pictures):
        raise ValueError(
            f"{name}: text shows the pictures {sorted(linked)} and cells are tagged to make "
            f"{sorted(pictures)}; each picture needs both"
        )
    return pictures


def _displays(cell: NotebookNode) -> list[NotebookNode]:
    return [output for output in cell.get("outputs", []) if "data" in output]


def _without_answers(name: str, notebook: NotebookNode) -> NotebookNode:
    """What `nbgrader generate_assignment` makes of a key, without its database."""
    try:
        from nbgrader import preprocessors as steps
    except ImportError:
        raise ImportError(
            "homework is released by nbgrader, which is not installed: "
            "`pip install -e '.[nbgrader]'` in the folder of the README"
        ) from None
    resources = {"metadata": {"name": name}}
    for step in (
        steps.LockCells(),
        steps.ClearSolutions(code_stub={"python": CODE_STUB}, text_stub=TEXT_STUB),
        steps.ClearOutput(),
        steps.CheckCellMetadata(),
        steps.ClearHiddenTests(),
        steps.ClearMarkScheme(),
        steps.ComputeChecksums(),
        steps.CheckCellMetadata(),
    ):
        try:
            notebook, resources = step(notebook, resources)
        except Exception as error:  # of as many kinds as there are steps
            first = error.__context__ or error
            said = " ".join(getattr(first, "message", str(first)).split())
            raise ValueError(f"{name}: nbgrader cannot release it: {said}") from error
    return notebook


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole(path) as unfinished:
        unfinished.write_bytes(content)
