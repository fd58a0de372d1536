"""A room of the library knows the rooms above it, never those below; no function is long."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

LIBRARY = Path(__file__).resolve().parents[1] / "course_utils"
LONGEST = 50  # lines of code in a function
FOUNDATION = (
    *("files", "images", "layers", "networks", "contract", "progress"),
    *("plotting", "claims"),
)
ROOMS = (
    FOUNDATION,
    ("worlds",),
    ("pretrained", "models", "training"),
    ("methods",),
    ("units",),
    ("evaluation",),
    ("panels",),
    ("homework",),
    ("tools", "__main__"),
)
FLOOR = {name: floor for floor, names in enumerate(ROOMS) for name in names}


def imported(source: str) -> Iterator[str]:
    """The modules and rooms of the library that a source imports anywhere, in functions too."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module == "course_utils":
            yield from (f"course_utils.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "a relative import hides where it leads"
            assert node.module
            yield node.module


def rooms(source: str) -> set[str]:
    """The first part of each: a room, or a module that stands in none."""
    names = [name.split(".") for name in imported(source)]
    return {parts[1] for parts in names if parts[0] == "course_utils" and len(parts) > 1}


def test_what_an_import_is() -> None:
    source = """
from course_utils import models, panels as shown
def late():
    import course_utils.tools.cli
    from course_utils.methods.cam import grad_cam
"""
    assert rooms(source) == {"models", "panels", "tools", "methods"}


def test_every_module_is_in_a_room() -> None:
    there = {path.stem for path in LIBRARY.glob("*.py")} | {
        path.parent.name for path in LIBRARY.glob("*/__init__.py")
    }
    assert there - {"__init__"} == set(FLOOR)


each_module = pytest.mark.parametrize(
    "path",
    [path for path in sorted(LIBRARY.rglob("*.py")) if path != LIBRARY / "__init__.py"],
    ids=lambda path: path.relative_to(LIBRARY).as_posix(),
)


@each_module
def test_no_room_knows_one_below_it(path: Path) -> None:
    own = path.relative_to(LIBRARY).parts[0].removesuffix(".py")
    below = {name for name in rooms(path.read_text(encoding="utf-8")) if FLOOR[name] > FLOOR[own]}
    assert not below


def lengths(source: str) -> Iterator[tuple[str, int]]:
    """(function, its lines of code): docstring, blank lines and comments are none."""
    lines = source.splitlines()
    code = {n for n, line in enumerate(lines, 1) if line.strip() and line.strip()[0] != "#"}
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef):
            own = code & {*range(node.lineno, (node.end_lineno or 0) + 1)}
            if ast.get_docstring(node):
                own -= {*range(node.body[0].lineno, (node.body[0].end_lineno or 0) + 1)}
            yield node.name, len(own)


def test_what_a_line_of_code_is() -> None:
    source = '''
@cache
def outer(
    x: int,
) -> int:
    """One line.

    And more.
    """
    # A comment.
    def inner() -> int:
        return x  # its line counts

    return inner()
'''
    assert list(lengths(source)) == [("outer", 6), ("inner", 2)]


@each_module
def test_no_function_is_long(path: Path) -> None:
    found = lengths(path.read_text(encoding="utf-8"))
    assert not [(name, length) for name, length in found if length > LONGEST]
