"""Files of the course: where they are, and how one is written whole or not at all."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

DATA = Path(__file__).resolve().parents[1] / "data"


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """The name of an unfinished file, which takes the place of `path` once all went well."""
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        unfinished = Path(folder, path.name)
        yield unfinished
        unfinished.chmod(0o644)  # some libraries write files that only their owner can read
        unfinished.replace(path)
