"""A student's own copies of the notebooks: no answer below a question, no conflict with an update.

Lectures and homework are copied without their outputs. What the copies were made of is written
down beside them, so that a copy nobody has edited follows the course, and an edited one stays.
"""

import hashlib
import json
import shutil
from pathlib import Path

from course_utils.files import whole

NOTEBOOKS = ("[0-9][0-9]_*.ipynb", "homework/hw*.ipynb")
PICTURES = "homework/pictures/*.png"
MADE = ".made.json"  # {name of a copy: fingerprint of the cells it was made with}
UNREADABLE = "no notebook"  # the fingerprint of what no copy was ever made with


def make(course: Path, folder: Path) -> list[Path]:
    """Copy what is missing or was never edited; returns edited copies whose original is another.

    course: the folder of the notebooks. Raises PermissionError where the copies cannot be written,
    and ValueError where an original is no notebook.
    """
    made, outdated = _record(folder), []
    for original in sorted(path for pattern in NOTEBOOKS for path in course.glob(pattern)):
        name = original.relative_to(course).as_posix()
        copy, new = folder / name, fingerprint(original)
        if new == UNREADABLE:
            raise ValueError(f"{original} is damaged; `git checkout {original}` brings it back")
        now = fingerprint(copy) if copy.exists() else None
        if now in (None, made.get(name)) and now != new:
            copy.parent.mkdir(parents=True, exist_ok=True)
            with whole(copy) as unfinished:
                unfinished.write_text(without_outputs(original), encoding="utf-8")
            now = new
        if now == new:
            made[name] = new
        elif made.get(name) != new:
            outdated.append(copy)
    for picture in course.glob(PICTURES):
        copy = folder / picture.relative_to(course)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(picture, copy)
    with whole(folder / MADE) as unfinished:
        unfinished.write_text(json.dumps(made, indent=1), encoding="utf-8")
    return outdated


def _record(folder: Path) -> dict[str, str]:
    """What earlier copies were made of; of one that is not in it nobody knows, so it stays."""
    try:
        return dict(json.loads((folder / MADE).read_text(encoding="utf-8")))
    except (FileNotFoundError, ValueError):
        return {}


def fingerprint(path: Path) -> str:
    """The same for two notebooks with the same cells, whatever these have put out."""
    try:
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        texts = [(cell["cell_type"], "".join(cell["source"])) for cell in cells]
    except (KeyError, TypeError, ValueError):
        return UNREADABLE
    return hashlib.sha256(json.dumps(texts).encode()).hexdigest()


def without_outputs(path: Path) -> str:
    """A notebook as it is before it is run."""
    notebook = json.loads(path.read_text(encoding="utf-8"))
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            cell |= {"outputs": [], "execution_count": None}
    return json.dumps(notebook, indent=1, ensure_ascii=False) + "\n"
