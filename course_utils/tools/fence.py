"""Keeps a submission from opening keys, the gradebook and other programs while it is marked.

Python tells an audit hook what is about to happen, and the hook may refuse. It cannot be taken
down again. It sees Python's own calls, not those of libraries in C: no sandbox.
"""

import os
import sys
from typing import Any

PROGRAMS = ("os.exec", "os.posix_spawn", "os.startfile", "os.system", "subprocess.Popen")
FILES = ("open", "os.link", "os.rename", "os.symlink", "sqlite3.connect")
SECRET = (".ipynb", "gradebook.db")


def install() -> None:
    """Refuse from now on, in this process."""
    sys.addaudithook(refuse)


def refuse(event: str, arguments: tuple[Any, ...]) -> None:
    """Raise PermissionError where a notebook, the gradebook or a program would be opened."""
    if event in PROGRAMS:
        raise PermissionError("no other program is started while homework is marked")
    if event in FILES and isinstance(arguments[0], str | bytes):
        path = os.fsdecode(arguments[0])
        if path.endswith(SECRET) or os.path.realpath(path).endswith(SECRET):
            raise PermissionError(f"{os.path.basename(path)} is not read while homework is marked")
