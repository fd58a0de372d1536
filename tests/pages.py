"""A notebook in a browser's page, for tests and benchmarks: open it, run it, move its controls."""

import shutil
from pathlib import Path
from typing import Any

import nbformat

from tests.servers import ROOT, SECONDS

PICTURES = ROOT / "notebooks" / "pictures"

# Everything that a panel's controls are made of, as it stands in the page.
CONTROL = (
    ".widget-dropdown, .widget-slider, .widget-checkbox, .widget-text, .widget-colorpicker, "
    ".widget-select-multiple, .widget-upload, .widget-button"
)
# Notes when a key or the mouse moved something, when the kernel was last busy, when pictures were
# shown (all in ms), and how often anything in a panel changed.
RECORDER = """
window.seen = {moved: 0, busy: 0, shown: [], changes: 0};
for (const kind of ["keydown", "pointerdown", "change"])
  window.addEventListener(kind, () => (seen.moved = performance.now()), true);
document.addEventListener("load", (event) => {
  if (event.target.closest?.(".course-panel")) seen.shown.push(performance.now());
}, true);
new MutationObserver((records) => {
  if (document.querySelector("[data-status=busy]")) seen.busy = performance.now();
  if (records.some((record) => record.target.parentElement?.closest(".course-panel")))
    seen.changes += 1;
}).observe(document, {subtree: true, childList: true, attributeFilter: ["src", "data-status"]});
"""


def launch(playwright: Any) -> Any:
    """A headless Chromium that asks nobody for anything: the system's, or Playwright's own."""
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    system = next(filter(None, map(shutil.which, names)), None)
    quiet = ("background-networking", "component-update", "gpu", "quic", "sync")
    arguments = ["--no-sandbox", "--no-first-run", *(f"--disable-{name}" for name in quiet)]
    return playwright.chromium.launch(executable_path=system, args=arguments)


def write(path: Path, *cells: str) -> None:
    """A notebook with these cells."""
    code = [nbformat.v4.new_code_cell(cell, id=f"cell-{i}") for i, cell in enumerate(cells)]
    notebook = nbformat.v4.new_notebook(cells=code)
    notebook.metadata.kernelspec = {"name": "python3", "display_name": "Python 3"}
    nbformat.write(notebook, path)


def open_and_run(page: Any, address: str) -> None:
    """Open a notebook, which JupyterLab may have open already, and run all its cells."""
    page.set_default_timeout(1000 * SECONDS)
    page.add_init_script(RECORDER)
    page.goto(address)
    # Before its kernel has a name, JupyterLab would ask for one.
    page.locator(".jp-Toolbar-kernelName", has_text="Python 3").wait_for()
    page.locator('.jp-Notebook-ExecutionIndicator[data-status="idle"]').wait_for()
    choose(page, "Run", "Run All Cells")
    page.wait_for_function(
        """() => {
          const prompts = [...document.querySelectorAll(".jp-CodeCell .jp-InputPrompt")];
          return prompts.length && prompts.every((prompt) => /\\d/.test(prompt.textContent));
        }""",
        timeout=20_000 * SECONDS,
    )


def choose(page: Any, menu: str, *items: str) -> None:
    """Choose from a menu of JupyterLab's and its submenus."""
    page.get_by_role("menuitem", name=menu, exact=True).click()
    for item in items:
        page.locator(".lm-Menu-itemLabel").get_by_text(item, exact=True).click()


def settled(page: Any, quiet: int = 400) -> None:
    """Wait until the kernel has rested for `quiet` ms, and no panel changes or announces that."""
    page.wait_for_function(
        """(quiet) => {
          const words = [...document.querySelectorAll(".course-caption")].map((x) => x.innerText);
          const kernel = document.querySelector(".jp-Notebook-ExecutionIndicator");
          const now = performance.now();
          const unheard = seen.busy < seen.moved && now - seen.moved < 2000;
          const busy = kernel.dataset.status !== "idle" || /coming|coarse/i.test(words.join());
          if (seen.count !== seen.changes || busy || unheard)
            [seen.count, seen.since] = [seen.changes, now];
          return now - seen.since > quiet;
        }""",
        arg=quiet,
        polling=50,
    )


def by_keyboard(control: Any) -> None:
    """Move a control by the keys that its kind understands."""
    kinds = control.get_attribute("class")
    if "widget-slider" in kinds:
        handle = control.locator(".noUi-handle")
        last = handle.get_attribute("aria-valuenow") == handle.get_attribute("aria-valuemax")
        handle.press("ArrowLeft" if last else "ArrowRight")
    elif "widget-dropdown" in kinds:
        menu = control.locator("select")
        last = menu.evaluate("menu => menu.selectedIndex === menu.options.length - 1")
        menu.press("ArrowUp" if last else "ArrowDown")
    elif "widget-select-multiple" in kinds:
        control.locator("select").press("ArrowDown")
    elif "widget-checkbox" in kinds:
        control.locator("input").press("Space")
    elif "widget-upload" in kinds:
        with control.page.expect_file_chooser() as chooser:
            control.press("Enter")
        chooser.value.set_files(PICTURES / "00.png")
    elif "widget-button" in kinds:
        control.press("Enter")
    elif "widget-colorpicker" in kinds:
        control.locator("input[type=text]").fill("#2060a0")
        control.locator("input[type=text]").press("Enter")
    else:
        control.locator("input").press("ArrowUp")


def by_mouse(control: Any) -> None:
    """Move a control by clicks; what opens a window of the system's own gets its answer at once."""
    kinds = control.get_attribute("class")
    if "widget-slider" in kinds:
        track = control.locator(".noUi-base").bounding_box()
        control.page.mouse.click(
            track["x"] + 0.3 * track["width"], track["y"] + track["height"] / 2
        )
    elif "widget-dropdown" in kinds:
        menu = control.locator("select")
        first, last = menu.evaluate(
            "menu => [menu.selectedIndex === 0, menu.selectedIndex === menu.options.length - 1]"
        )
        menu.click()
        menu.press("ArrowDown" if first and not last else "ArrowUp")
        menu.press("Enter")
    elif "widget-select-multiple" in kinds:
        control.locator("option").first.click()
    elif "widget-checkbox" in kinds:
        control.locator("input").click()
    elif "widget-upload" in kinds:
        with control.page.expect_file_chooser() as chooser:
            control.click()
        chooser.value.set_files(PICTURES / "01.png")
    elif "widget-button" in kinds:
        control.click()
    elif "widget-colorpicker" in kinds:
        control.locator("input[type=color]").fill("#d55e00")
    else:
        control.locator("input").click()
        control.locator("input").fill("2")
        control.locator("input").press("Tab")
