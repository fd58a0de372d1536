"""Executes notebooks in place and stores the outputs that nbval compares.

python tests/execute.py [NOTEBOOK ...]      # all lectures by default
"""

import os
import sys
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from nbformat import NotebookNode

from course_utils import files

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = ROOT / "notebooks"
WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"
METADATA: dict[str, Any] = {  # what JupyterLab writes as soon as it opens a notebook
    "kernelspec": {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"},
    "language_info": {
        "codemirror_mode": {"name": "ipython", "version": 3},
        "file_extension": ".py",
        "mimetype": "text/x-python",
        "name": "python",
        "nbconvert_exporter": "python",
        "pygments_lexer": "ipython3",
        "version": "3.11.7",
    },
}


def execute(path: Path) -> None:
    """Run a notebook top to bottom, in the folder of the lectures, and replace it as a whole."""
    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(
        notebook,
        timeout=120,
        kernel_name="python3",
        coalesce_streams=True,
        resources={"metadata": {"path": str(NOTEBOOKS)}},
    )
    client.execute()
    write(clean(notebook), path)


def clean(notebook: NotebookNode) -> NotebookNode:
    """A notebook without anything that differs from run to run or from machine to machine."""
    notebook.metadata = nbformat.from_dict(METADATA)
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)  # when each cell ran
        if cell.cell_type == "code":
            for output in cell.outputs:
                # A view without its model shows an error in JupyterLab; the panel's picture stays.
                output.get("data", {}).pop(WIDGET_VIEW, None)
            cell.outputs = [out for out in cell.outputs if "data" not in out or out.data]
    nbformat.validate(notebook)
    return notebook


def write(notebook: NotebookNode, path: Path) -> None:
    """Store a notebook, whole or not at all."""
    with files.whole(path) as unfinished:
        nbformat.write(notebook, unfinished)


def main(arguments: list[str]) -> int:
    """Execute the notebooks named, or every lecture; 1 at the first that fails."""
    os.environ["PYTHONPATH"] = str(ROOT)  # the kernel finds the library of this checkout
    os.environ["TQDM_DISABLE"] = "1"  # a bar would be stored where a cell took long
    for path in map(Path, arguments) if arguments else sorted(NOTEBOOKS.glob("*.ipynb")):
        print(path, flush=True)
        try:
            execute(path)
        except CellExecutionError as error:
            print(f"{path} stopped and was left as it is:\n{error}", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
