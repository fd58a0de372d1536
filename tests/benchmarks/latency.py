"""How long a panel's reader waits, in a real browser: from a key to the picture in the page.

python tests/benchmarks/latency.py [PANEL ...]      # prints a table; every panel by default

Twenty moves by keyboard, over all controls in turn, each after the last one's picture is complete;
then fifty moves of one slider, a key every 30 ms. Times in ms, with the machine's load beside them:
they mean nothing without it.
"""

import os
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from playwright.sync_api import sync_playwright

from course_utils import panels
from tests import pages
from tests.servers import jupyterlab

MODELS = ("scenes", "efficientnet_lite0")
ONLY = {"neighbourhood": (), "photo": (), "scene_editor": ("scenes",)}  # the models they can take
MOVES, FAST = 20, 50
QUIET = 700  # ms without a change, after which a picture is the last one
PATIENCE = 180_000  # ms until a picture that does not come is an error
SLOW_KINDS = ("widget-upload", "widget-button")  # a dialogue, or no value that moves
HEAD = (
    "| panel | model | first picture, median | 95 % | final picture, median | 95 % | "
    "first picture after fifty fast moves | final | load |\n|---|---|---|---|---|---|---|---|---|"
)


def main(names: list[str]) -> None:
    """Print the table, a row as soon as it is measured."""
    names = names or [name for name in panels.__all__ if name not in ("Canvas", "Panel")]
    print(HEAD)
    with (
        tempfile.TemporaryDirectory() as folder,
        sync_playwright() as playwright,
        jupyterlab(Path(folder)) as address,
    ):
        browser = pages.launch(playwright)
        for name in names:
            for model in ONLY.get(name, MODELS) or ("",):
                given = f'models.load("{model}")' if model else ""
                cells = "from course_utils import models, panels", f"panels.{name}({given})"
                pages.write(Path(folder) / "panel.ipynb", *cells)
                page = browser.new_page(viewport={"width": 1366, "height": 1400})
                pages.open_and_run(page, address("lab/tree/panel.ipynb").replace("?", "?reset&"))
                page.set_default_timeout(PATIENCE)
                page.locator(".course-panel img").first.wait_for()
                pages.settled(page, QUIET)
                print(row(page, name, model), flush=True)
                page.close()


def row(page: Any, name: str, model: str) -> str:
    """Measure one panel: its line of the table."""
    controls = [
        control
        for control in page.locator(pages.CONTROL).filter(visible=True).all()
        if not any(kind in control.get_attribute("class") for kind in SLOW_KINDS)
        and not control.locator(":disabled, [disabled]").count()
    ]
    waits = [wait(page, controls[i % len(controls)]) for i in range(MOVES)]
    first, last = zip(*[found for found in waits if found], strict=True)
    numbers = [median_and_high(first), median_and_high(last), fast(page)]
    load = os.getloadavg()[0]
    return f"| {name} | {model or 'none'} | {' | '.join(numbers)} | {load:.1f} |"


def wait(page: Any, control: Any) -> tuple[float, float] | None:
    """From the key to the first and to the last picture; None where the picture stays."""
    page.evaluate("seen.shown = []")
    pages.by_keyboard(control)
    moved = page.evaluate("seen.moved")
    pages.settled(page, QUIET)
    shown = page.evaluate("seen.shown")
    return (shown[0] - moved, shown[-1] - moved) if shown else None


def fast(page: Any) -> str:
    """From the last of fifty keys to the next picture and to the last; of a slider, if any.

    While the kernel is busy the page keeps the newest value alone, so that the next picture is that
    of the last key or of one shortly before it.
    """
    sliders = page.locator(".course-panel .noUi-handle").filter(visible=True)
    if not sliders.count():
        return "– | –"
    page.evaluate("seen.shown = []")
    for number in range(FAST):
        sliders.first.press("ArrowRight" if number // 5 % 2 else "ArrowLeft")
        page.wait_for_timeout(30)
    moved = page.evaluate("seen.moved")
    pages.settled(page, QUIET)
    shown = [time - moved for time in page.evaluate("seen.shown") if time > moved]
    return f"{shown[0]:.0f} | {shown[-1]:.0f}" if shown else "– | –"


def median_and_high(times: Any) -> str:
    """The two cells of a table."""
    ranked = sorted(times)
    return f"{statistics.median(ranked):.0f} | {ranked[round(0.95 * (len(ranked) - 1))]:.0f}"


if __name__ == "__main__":
    main(sys.argv[1:])
