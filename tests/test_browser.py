"""Panels and lectures in a real browser: JupyterLab on loopback, keys, the mouse, what is shown.

A sample runs with all tests; `course test --browser` also runs those marked `thorough`: every
control of every panel, and every lecture. SCREENSHOTS names a folder for what they look like.
"""

import io
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nbformat
import pytest
from PIL import Image

from course_utils import panels
from tests import pages
from tests.servers import ROOT, jupyterlab

pytestmark = pytest.mark.browser

NAMES = [name for name in panels.__all__ if name not in ("Canvas", "Panel")]
LECTURES = sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb"))
SIZES = {"1366": {"width": 1366, "height": 768}, "1920": {"width": 1920, "height": 1080}}
LOOKS = [(size, theme) for size in SIZES for theme in ("Light", "Dark")]
# What a panel opens with, so that every control has something to change.
OPEN = {
    "convolution": 'kernel="a learned filter"',
    "activation_maximization": "steps=16",
    "scene_editor": 'clutter="lamp", companion="crow"',
    "shapley": 'picture="zebra"',
}


# What of a panel is wider than its place, smaller than 0.9 of its own size, or has no words; and
# how much the caption stands out from what is behind it, as WCAG 2 counts.
LOOK = """() => {
  const panel = document.querySelector(".course-panel");
  const parts = [panel, ...panel.querySelectorAll("*")].filter((part) => part.clientWidth);
  const scrolls = (part) => getComputedStyle(part).overflowX !== "visible";
  const numbers = (color) => color.match(/[\\d.]+/g).map(Number);
  const light = (rgb) => rgb.slice(0, 3).map((v) => v / 255)
    .map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4))
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const words = panel.querySelector(".course-caption p");
  let behind = words;
  while (numbers(getComputedStyle(behind).backgroundColor)[3] === 0) behind = behind.parentElement;
  const back = numbers(getComputedStyle(behind).backgroundColor);
  const [r, g, b, alpha = 1] = numbers(getComputedStyle(words).color);
  const mixed = [r, g, b].map((v, i) => alpha * v + (1 - alpha) * back[i]);
  const [low, high] = [light(mixed), light(back)].sort((x, y) => x - y);
  const pictures = [...panel.querySelectorAll("img")];
  return {
    wide: parts.filter((part) => scrolls(part) && part.scrollWidth > part.clientWidth)
      .map((part) => part.className),
    small: pictures.filter((one) => one.width < (0.9 * one.naturalWidth) / 1.5).length,
    wordless: pictures.filter((one) => one.alt.length < 20).length,
    nameless: [...panel.querySelectorAll(".noUi-handle, select, input:not([type=file])")]
      .filter((one) => !(one.ariaLabel || one.title || one.labels?.[0]?.innerText)).length,
    contrast: (high + 0.05) / (low + 0.05),
  };
}"""
thorough = pytest.mark.thorough


class Lab:
    """A JupyterLab with the lectures, and a notebook of panels."""

    def __init__(self, folder: Path, address: Callable[[str], str], chromium: Any) -> None:
        self.folder, self.address, self.chromium = folder, address, chromium

    def page(self, notebook: str, app: str = "lab/tree") -> Any:
        """A page with a notebook that has been run; `complaints` is its console."""
        page = self.chromium.new_page(viewport=SIZES["1366"])
        page.complaints = []
        page.on("console", lambda said: page.complaints.append(said) if is_bad(said) else None)
        page.on("pageerror", lambda error: page.complaints.append(error))
        pages.open_and_run(page, self.address(f"{app}/{notebook}").replace("?", "?reset&"))
        return page

    def panel(self, name: str, app: str = "lab/tree") -> Any:
        """A page with a panel, whose picture is there."""
        opening = f"panel = panels.{name}()\npanel.update({OPEN.get(name, '')})\npanel"
        listed = "sum(control.layout.display != 'none' for control in panel.controls.values())"
        cells = "from course_utils import panels", opening, listed
        pages.write(self.folder / "panel.ipynb", *cells)
        page = self.page("panel.ipynb", app)
        page.locator(".course-panel img").first.wait_for()
        pages.settled(page)
        return page


def is_bad(said: Any) -> bool:
    """An error in the console, but for a page that has gone and whose kernel lives on."""
    return bool(said.type == "error" and "Comm not found" not in said.text)


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory, chromium: Any) -> Iterator[Lab]:
    folder = tmp_path_factory.mktemp("lab")
    for lecture in LECTURES:
        notebook = nbformat.read(lecture, as_version=4)
        for cell in notebook.cells:
            if cell.cell_type == "code":  # so that one sees when it has run
                cell.outputs, cell.execution_count = [], None
        nbformat.write(notebook, folder / lecture.name)
    shutil.copytree(ROOT / "notebooks" / "pictures", folder / "pictures")
    with jupyterlab(folder, OMP_NUM_THREADS="1") as address:
        yield Lab(folder, address, chromium)


@pytest.fixture(autouse=True)
def _pages_end(chromium: Any) -> Iterator[None]:
    """A page whose test has ended is closed, after a last look."""
    yield
    for context in chromium.contexts:
        keep(context.pages[-1], "last")
        context.close()


def keep(page: Any, name: str) -> None:
    """Store a screenshot in the folder SCREENSHOTS, if there is one."""
    if folder := os.environ.get("SCREENSHOTS"):
        page.screenshot(path=Path(folder, f"{name}.png"))


def dress(page: Any, size: str, theme: str) -> None:
    """Give JupyterLab's page a size, and a theme by its menu."""
    page.set_viewport_size(SIZES[size])
    pages.choose(page, "Settings", "Theme", f"JupyterLab {theme}")
    page.wait_for_function("name => document.body.dataset.jpThemeName.endsWith(name)", arg=theme)
    page.wait_for_timeout(300)  # colours fade


def shown(page: Any) -> tuple[str, ...]:
    """What a page's panels show: addresses that are new with each picture, and the captions."""
    looks = page.locator(".course-panel img").evaluate_all("all => all.map((one) => one.src)")
    return (*looks, *page.locator(".course-caption").all_inner_texts())


def look_at(page: Any) -> None:
    """Nothing of a panel is cut off, shrunk, without words, or too pale."""
    look = page.evaluate(LOOK)
    assert look.pop("contrast") >= 4.5
    assert look == {"wide": [], "small": 0, "wordless": 0, "nameless": 0}


def png() -> bytes:
    """A small picture, as a file."""
    file = io.BytesIO()
    Image.new("RGB", (80, 60), "#d55e00").save(file, "PNG")
    return file.getvalue()


def panels_in(lecture: Path) -> int:
    """How many panels the stored notebook shows."""
    cells = nbformat.read(lecture, as_version=4).cells
    outputs = [output for cell in cells for output in cell.get("outputs", [])]
    return sum(out.get("data", {}).get("text/plain", "").startswith("panel:") for out in outputs)


def cells(page: Any) -> int:
    """How many cells the notebook has."""
    return int(page.locator(".jp-Notebook .jp-Cell").count())


# -- a sample --------------------------------------------------------------------------------------


@pytest.mark.parametrize("app", ["lab/tree", "notebooks"])
def test_keys_in_a_panel_move_its_controls_and_leave_the_notebook_alone(lab: Lab, app: str) -> None:
    page = lab.panel("gradient", app=app)
    before, methods = cells(page), page.get_by_role("combobox", name="method")
    methods.focus()
    methods.press("ArrowDown")
    page.get_by_text("Gradient × Input of the logit").first.wait_for()
    for key in "add":  # insert a cell above, delete the cell
        page.keyboard.press(key)
    page.wait_for_timeout(1000)  # JupyterLab waits for the rest of a shortcut
    page.keyboard.type("guid")
    page.get_by_text("Guided Backprop of the logit").first.wait_for()
    box = page.get_by_role("checkbox", name="over the picture")
    for place in (box, page.get_by_role("slider", name="quantile")):
        place.focus()
        for key in "abdd":
            page.keyboard.press(key)
    page.wait_for_timeout(1000)
    assert cells(page) == before
    assert methods.input_value() == "Guided Backprop"
    box.focus()
    page.keyboard.press("Shift+Enter")  # the notebook gets this one still
    page.locator(".jp-Cell.jp-mod-active").filter(has_text="panel.controls").wait_for()


def test_a_slider_moved_by_keyboard_changes_the_picture_in_the_page(lab: Lab) -> None:
    page = lab.panel("convolution")
    picture = page.locator(".course-panel img")
    assert picture.evaluate("image => image.naturalWidth") > 500
    before = picture.screenshot()
    page.get_by_role("slider", name="stride").press("ArrowRight")
    page.get_by_text("and stride 2 gives an output").wait_for()
    pages.settled(page)
    assert picture.screenshot() != before
    words = page.locator(".course-caption").inner_text()
    assert page.get_by_role("img", name=words).count() == 1


def test_a_photo_that_cannot_be_read_does_not_count(lab: Lab) -> None:
    page = lab.panel("photo")
    button, file = page.locator(".widget-upload"), {"name": "a.png", "mimeType": "image/png"}
    for content, count in ((b"no picture", 0), (png(), 1)):
        with page.expect_file_chooser() as chooser:
            button.click()
        chooser.value.set_files([file | {"buffer": content}])
        refused, taken = page.get_by_text("is not a picture"), page.locator("option >> text=a.png")
        (taken if count else refused).wait_for(state="attached")
        pages.settled(page)
        assert page.get_by_role("alert").count() == 1 - count
        assert button.inner_text().endswith(f"({count})")


def test_a_panel_fits_the_page_in_every_size_and_theme(lab: Lab) -> None:
    page = lab.panel("gradient")
    for size, theme in LOOKS:
        dress(page, size, theme)
        look_at(page)
        control, picture = (
            page.locator(f".course-panel {part}").first.bounding_box() for part in ("select", "img")
        )
        above = control["y"] + control["height"] <= picture["y"]
        assert above == (size == "1366")


# -- everything ------------------------------------------------------------------------------------


@thorough
@pytest.mark.parametrize("name", NAMES)
def test_every_control_by_keyboard_and_by_mouse(lab: Lab, name: str) -> None:
    page = lab.panel(name)
    look_at(page)
    tabs = page.locator(".course-panel .lm-TabBar-tab")
    for tab in range(max(1, tabs.count())):
        if tabs.count():
            tabs.nth(tab).click()
        for control in page.locator(pages.CONTROL).filter(visible=True).all():
            move(page, control)
    expected = page.locator(".jp-Cell").last.locator(".jp-OutputArea-output").inner_text()
    assert page.locator(".course-panel [data-moved]").count() == int(expected)
    assert page.complaints == []
    for size, theme in LOOKS:
        dress(page, size, theme)
        look_at(page)
        keep(page, f"{name}-{size}-{theme}")


def move(page: Any, control: Any) -> None:
    """Move a control in both ways: one of them changes the picture, or the panel says why not."""
    control.evaluate("control => (control.dataset.moved = true)")
    if control.locator(":disabled, [disabled]").count():
        return
    states = [shown(page)]
    for way in (pages.by_mouse, pages.by_keyboard):
        way(control)
        pages.settled(page)
        states.append(shown(page) + tuple(page.get_by_role("alert").all_inner_texts()))
    assert len({*states}) > 1, f"{control.inner_text()} changes nothing"


@thorough
@pytest.mark.parametrize("lecture", [path.name for path in LECTURES])
def test_every_lecture_runs(lab: Lab, lecture: str) -> None:
    page = lab.page(lecture)
    pages.settled(page)
    found = page.locator(".course-panel").all()
    assert len(found) == panels_in(ROOT / "notebooks" / lecture)
    for size, theme in LOOKS[::3]:
        dress(page, size, theme)
        for number, panel in enumerate(found):
            panel.scroll_into_view_if_needed()
            panel.locator("img").first.wait_for()
            keep(page, f"{lecture[:2]}-{number}-{size}-{theme}")
    warnings = page.locator("[data-mime-type='application/vnd.jupyter.stderr']")
    assert warnings.all_inner_texts() == []
    assert page.complaints == []
    pages.choose(page, "Kernel", "Shut Down Kernel")  # it has a GB of memory
