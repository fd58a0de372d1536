"""What a class gets: the course without keys, tests and history, its reference answers packed."""

import base64
import shutil
import tempfile
import zlib
from pathlib import Path

from course_utils.tools import release

ROOT = Path(__file__).resolve().parents[2]
FILES = (
    *("README.md", "LICENSE", "environment.yml", "pyproject.toml"),
    *("requirements.lock", "requirements-tests.lock"),
)
LEFT_OUT = shutil.ignore_patterns("__pycache__", ".*", "hw[0-9][0-9].py")

MARK = "# The checks of this homework compare with right answers, which stand here packed, so that"
PACKED = '''\
{mark}
# nobody reads one by accident. This is no lock: Python unpacks it, and so can you.
import base64
import zlib

PACKED = """
{lines}
"""
SOURCE = zlib.decompress(base64.b85decode("".join(PACKED.split())))
exec(compile(SOURCE, "<{name}, packed>", "exec"))
'''


def make(folder: Path) -> Path:
    """Write the hand-out into a folder; returns where. An older hand-out there is replaced.

    Homework is made from the keys, so nothing that was worked on gets in. Raises FileExistsError
    for a folder that holds anything else, and what `release.make` raises. Whatever happens, the
    folder is there whole or as it was.
    """
    folder = folder.absolute()
    old = folder.exists()
    if old and not (folder.is_dir() and (not any(folder.iterdir()) or is_handout(folder))):
        raise FileExistsError(f"{folder} is there and is no hand-out; name a new or empty folder")
    if is_handout(ROOT):
        raise ValueError("this course is a hand-out itself; make others where its keys are")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, ignore_cleanup_errors=True) as place:
        fresh = Path(place, "new")
        _fill(fresh)
        if old:
            folder.rename(Path(place, "old"))
        fresh.rename(folder)
    return folder


def is_handout(folder: Path) -> bool:
    """Whether a folder holds the course with its reference answers packed."""
    modules = sorted(folder.glob("course_utils/homework/hw*.py"))
    return bool(modules) and modules[0].read_text(encoding="utf-8").startswith(MARK)


def packed(name: str, source: str) -> str:
    """A module in Python that runs the source of another, which cannot be read in it."""
    text = base64.b85encode(zlib.compress(source.encode(), 9)).decode()
    lines = "\n".join(text[start : start + 99] for start in range(0, len(text), 99))
    return PACKED.format(mark=MARK, lines=lines, name=name)


def _fill(fresh: Path) -> None:
    beside = [path for path in ROOT.glob("notebooks/[!.]*") if path.is_dir()]  # what lectures show
    for path in (ROOT / "course_utils", ROOT / "data", *beside):
        if path.name != "homework":
            shutil.copytree(path, fresh / path.relative_to(ROOT), ignore=LEFT_OUT)
    for path in (*map(ROOT.joinpath, FILES), *ROOT.glob("notebooks/[0-9][0-9]_*.ipynb")):
        shutil.copy(path, fresh / path.relative_to(ROOT))
    for path in ROOT.glob("course_utils/homework/hw[0-9][0-9].py"):
        text = packed(path.stem, path.read_text(encoding="utf-8"))
        (fresh / path.relative_to(ROOT)).write_text(text, encoding="utf-8")
    release.make(folder=fresh / "notebooks" / "homework")
