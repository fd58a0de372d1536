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
NO_PROGRAM = "no other program is started while homework is marked"


def install(memory: int) -> None:
    """Refuse from now on, in this process, and limit its memory (in bytes)."""
    sys.addaudithook(refuse)
    try:
        import resource
    except ImportError:  # Windows knows no such limit
        return
    _, most = resource.getrlimit(resource.RLIMIT_DATA)
    if most == resource.RLIM_INFINITY or memory < most:
        resource.setrlimit(resource.RLIMIT_DATA, (memory, memory))


def refuse(event: str, arguments: tuple[Any, ...]) -> None:
    """Raise PermissionError where a notebook, the gradebook or a program would be opened."""
    if event in PROGRAMS:
        raise PermissionError(NO_PROGRAM)
    if event in FILES and isinstance(arguments[0], str | bytes):
        path = os.fsdecode(arguments[0])
        if path.endswith(SECRET) or os.path.realpath(path).endswith(SECRET):
            raise PermissionError(f"{os.path.basename(path)} is not read while homework is marked")


def pass_over(shell: Any) -> None:
    """In IPython `!pip install …` and its like say that nothing is run, and the cell goes on."""

    def say(command: str, *_: Any, **__: Any) -> list[str]:
        print(f"{command.split()[0] if command.split() else '!'}: {NO_PROGRAM}")
        return []

    shell.system = shell.getoutput = say
