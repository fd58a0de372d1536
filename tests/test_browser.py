"""A panel in a real browser: JupyterLab on loopback, run all cells, move a slider by keyboard."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import pytest

from tests.servers import jupyter_of_its_own

pytestmark = pytest.mark.browser

ROOT = Path(__file__).parents[1]
SECONDS = 90  # a slow machine that does other things at the same time


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a JupyterLab with one notebook, which knows no settings but its own."""
    folder = tmp_path_factory.mktemp("lab")
    notebook = nbformat.v4.new_notebook(
        cells=[
            nbformat.v4.new_code_cell("from course_utils import panels", id="setup"),
            nbformat.v4.new_code_cell("panels.convolution()", id="panel"),
        ]
    )
    notebook.metadata.kernelspec = {"name": "python3", "display_name": "Python 3"}
    nbformat.write(notebook, folder / "panel.ipynb")
    environment = jupyter_of_its_own(folder) | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--ip=127.0.0.1", "--port=0"]
    command += ["--allow-root", f"--ServerApp.root_dir={folder}"]
    with (folder / "log").open("w") as log:
        lab = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    try:
        server = json.loads(_server_file(lab, folder).read_text())
        yield f"{server['url']}lab/tree/panel.ipynb?token={server['token']}"
    finally:
        lab.terminate()
        lab.wait(30)


def _server_file(lab: subprocess.Popen[bytes], folder: Path) -> Path:
    """The file in which a running Jupyter server says where it is."""
    for _ in range(4 * SECONDS):
        files = list((folder / ".jupyter_runtime").glob("jpserver-*.json"))
        if files and files[0].stat().st_size:
            return files[0]
        if lab.poll() is not None:
            break
        time.sleep(0.25)
    raise RuntimeError(f"JupyterLab did not start:\n{(folder / 'log').read_text()}")


@pytest.fixture
def page(chromium: Any) -> Iterator[Any]:
    page = chromium.new_page(viewport={"width": 1500, "height": 1000})
    page.set_default_timeout(1000 * SECONDS)
    yield page
    page.close()


def test_a_slider_moved_by_keyboard_changes_the_picture_in_the_page(
    page: Any, address: str
) -> None:
    page.goto(address)
    page.locator(".jp-Notebook .jp-CodeCell").last.wait_for()
    page.get_by_text("Python 3 (ipykernel) | Idle").wait_for()  # before, Lab asks for a kernel
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_text("Run All Cells", exact=True).click()

    picture = page.locator("img.widget-image")
    picture.wait_for()
    page.get_by_text("stride 1 gives an output of 8 × 8").wait_for()
    assert picture.evaluate("image => image.naturalWidth") > 500
    before = picture.screenshot()

    stride = page.locator(".widget-slider", has_text="stride").locator(".noUi-handle")
    stride.focus()
    stride.press("ArrowRight")
    page.get_by_text("stride 2 gives an output of 4 × 4").wait_for()
    page.wait_for_timeout(500)  # the words may come a moment before the pixels
    assert picture.screenshot() != before
    if folder := os.environ.get("SCREENSHOTS"):
        page.screenshot(path=Path(folder, "convolution.png"))
