"""A lecture to type in front of a class: a copy with emptied code cells, and a timing sheet."""

import dis
import os
import re
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from types import CodeType
from typing import Any

import nbformat
from nbformat import NotebookNode

from course_utils.files import whole

_MARK = re.compile(r"## (?P<title>.+)\n\n\*(?:(?P<minutes>\d+) minutes?|after class)\*$", re.M)
_LINK = re.compile(r'(?P<before>\]\(|(?:src|href)=")(?P<target>[^)"#\s]+)')
_PREDICT = re.compile(r"\*\*Predict\.\*\*(?! \|)")  # "| **Predict.** |" explains the word
_PANEL = re.compile(r"\bpanels\.(\w+)\(")


def make(lecture: Path, folder: Path) -> tuple[Path, Path]:
    """Write the copy of a lecture and its timing sheet NN_timing.md; returns their paths.

    What is there already is left as it is, with a FileExistsError. A section of the lecture that
    does not say its minutes is a ValueError.
    """
    copy, sheet = folder / lecture.name, folder / f"{lecture.name[:2]}_timing.md"
    for path in (copy, sheet):
        if path.exists():
            raise FileExistsError(f"{path} is there already; rename or delete it to get a new one")
    notebook = nbformat.read(lecture, as_version=4)
    emptied, table = live(notebook, lecture.parent, folder), timing(notebook)
    folder.mkdir(parents=True, exist_ok=True)
    with whole(copy) as unfinished_copy, whole(sheet) as unfinished_sheet:
        unfinished_sheet.write_text(table, encoding="utf-8")
        unfinished_copy.write_text(nbformat.writes(emptied) + "\n", encoding="utf-8")
    return copy, sheet


# The copy ------------------------------------------------------------------------------------


def live(notebook: NotebookNode, home: Path, folder: Path) -> NotebookNode:
    """The copy, for a folder, of a lecture whose home is another: prose and setup cell as they are.

    Of every other code cell a comment is left. The cell after it, collapsed and with the tag
    "catch-up", has the code, for an instructor who falls behind.
    """
    setup, *to_type = (cell for cell in notebook.cells if cell.cell_type == "code")
    comments = iter(_comments([cell.source for cell in to_type]))
    unrun: dict[str, Any] = {"outputs": [], "execution_count": None}
    cells = []
    for number, cell in enumerate(notebook.cells):
        if cell.cell_type != "code":
            cells.append(cell | {"source": _relinked(cell.source, home, folder)})
        elif cell is setup:
            cells.append(cell | unrun)
        else:
            hidden = {
                "jupyter": {"source_hidden": True, "outputs_hidden": False},
                "slideshow": {"slide_type": "skip"},
                "tags": [*cell.metadata.get("tags", []), "catch-up"],
            }
            code = {"id": f"catch-up-{number}", "metadata": cell.metadata | hidden}
            cells += [cell | unrun | {"source": next(comments)}, cell | unrun | code]
    copy = nbformat.from_dict(notebook | {"cells": cells})
    nbformat.validate(copy)
    return copy


def _comments(sources: list[str]) -> Iterator[str]:
    """What is left of each cell: the comment it begins with, or the names that later cells need."""
    names = [_names(compile(source, "cell", "exec")) for source in sources]
    for number, (source, (_, made)) in enumerate(zip(sources, names, strict=True)):
        needed, alive = set(), set(made)
        for reads, writes in names[number + 1 :]:
            needed |= alive & set(reads)
            alive -= set(writes)
        if comment := re.match(r"(#.*(\n|$))+", source):
            yield comment[0].rstrip()
        elif needed:
            text = f"# later cells need {', '.join(name for name in made if name in needed)}"
            yield textwrap.fill(text, 99, subsequent_indent="# ")
        else:
            yield "# …"


def _names(code: CodeType) -> tuple[dict[str, None], dict[str, None]]:
    """The names that code reads from outside, and those it writes, both in their order."""
    reads: dict[str, None] = {}
    writes: dict[str, None] = {}
    for step in dis.get_instructions(code):
        if isinstance(step.argval, CodeType):  # a function of the cell
            reads |= {name: None for name in _names(step.argval)[0] if name not in writes}
        elif step.opname == "STORE_NAME":
            writes[step.argval] = None
        elif step.opname in ("LOAD_NAME", "LOAD_GLOBAL") and step.argval not in writes:
            reads[step.argval] = None
    return reads, writes


def _relinked(text: str, home: Path, folder: Path) -> str:
    """Prose whose links to files beside the lecture lead there from another folder."""

    def relinked(link: re.Match[str]) -> str:
        target = home / link["target"]
        if not os.path.exists(target):  # an address, or no link at all but code or an equation
            return link[0]
        return link["before"] + Path(os.path.relpath(target, folder)).as_posix()

    return _LINK.sub(relinked, text)


# The timing sheet ----------------------------------------------------------------------------


@dataclass
class Section:
    """A section of a lecture; after class it has 0 minutes."""

    title: str
    minutes: int
    cells: int = 0
    predicts: int = 0
    panels: list[str] = field(default_factory=list)


def sections(notebook: NotebookNode) -> list[Section]:
    """The sections of a lecture, in their order; what stands before the first is in none."""
    found = [Section("", 0)]
    for cell in notebook.cells:
        if cell.cell_type == "code":
            found[-1].cells += 1
            found[-1].panels += _PANEL.findall(cell.source)
            continue
        for part in re.split(r"^(?=## )", cell.source, flags=re.M):
            if part.startswith("## "):
                found.append(_begun(part))
            found[-1].predicts += len(_PREDICT.findall(part))
    return found[1:]


def _begun(text: str) -> Section:
    mark = _MARK.match(text)
    if mark is None:
        raise ValueError(
            f"the section {text.splitlines()[0][3:]!r} does not say its minutes; write *5 minutes*"
            " or *after class* on a line of its own, one blank line below the heading"
        )
    return Section(mark["title"], int(mark["minutes"] or 0))


def timing(notebook: NotebookNode) -> str:
    """The timing sheet of a lecture, in Markdown: what is to be done by when, on one page."""
    name = notebook.cells[0].source.splitlines()[0]
    every = sections(notebook)
    taught = [section for section in every if section.minutes]
    ends = accumulate(section.minutes for section in taught)
    lines = [
        f"{name}: timing",
        "",
        "Before 0:00: run the setup cell. Behind the clock: run a collapsed cell, do not type it.",
        "",
        "| clock | section | minutes | cells to type | questions | panels |",
        "|:--|:--|--:|--:|--:|:--|",
    ]
    for section, end in zip(taught, ends, strict=True):
        clock = f"{_clock(end - section.minutes)} – {_clock(end)}"
        title = section.title.replace("|", "\\|")
        panels = ", ".join(dict.fromkeys(section.panels))
        counts = f"{section.minutes} | {section.cells} | {section.predicts}"
        lines.append(f"| {clock} | {title} | {counts} | {panels} |")
    minutes = sum(section.minutes for section in taught)
    cells = sum(section.cells for section in taught)
    predicts = sum(section.predicts for section in taught)
    lines.append(f"| | **total** | **{minutes}** | **{cells}** | **{predicts}** | |")
    if after := [section.title for section in every if not section.minutes]:
        lines += ["", f"After class: {'; '.join(after)}."]
    return "\n".join(lines) + "\n"


def _clock(minutes: int) -> str:
    return f"{minutes // 60}:{minutes % 60:02}"
