"""The slides of every lecture in a browser without a network: complete, and none is cut off."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbconvert import HTMLExporter
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from course_utils.tools import slides
from tests import execute

LECTURES = sorted(execute.NOTEBOOKS.glob("[0-9][0-9]_*.ipynb"))
WIDTH, HEIGHT = 1280, 720

# Every slide is brought to the front and measured; what MathJax adds for screen readers is not
# seen, and code may have a dollar.
MEASURE = r"""() => Reveal.getSlides().map(slide => {
  const {h, v} = Reveal.getIndices(slide);
  Reveal.slide(h, v);
  const left = slide.getBoundingClientRect().left, scale = Reveal.getScale();
  const seen = [...slide.querySelectorAll("*:not(aside *, svg *, mjx-assistive-mml *)")];
  const prose = slide.cloneNode(true);
  prose.querySelectorAll("aside, pre, code, mjx-container").forEach(part => part.remove());
  return {
    words: slide.innerText.trim().slice(0, 60),
    height: slide.scrollHeight,
    width: Math.max(...seen.map(element =>
      (element.getBoundingClientRect().left - left) / scale + element.scrollWidth)),
    notes: [...slide.querySelectorAll("aside")].map(note => getComputedStyle(note).display),
    formulas: slide.querySelectorAll("mjx-container svg").length,
    wrong: slide.querySelectorAll("mjx-container:has([data-mjx-error], [fill=red])").length,
    raw: prose.textContent.includes("$"),
    pictures: [...slide.querySelectorAll("img")].map(image => [image.height, image.alt]),
  };
})"""


@pytest.fixture(scope="module")
def page(chromium: Any) -> Iterator[Any]:
    """A page that is refused whatever it asks for, but files."""
    page = chromium.new_page(viewport={"width": WIDTH, "height": HEIGHT})
    page.route(lambda url: not url.startswith("file:"), lambda route: route.abort())
    yield page
    page.close()


def opened(page: Any, path: Path) -> None:
    """Open a deck, which asks for nothing but itself."""
    asked: list[str] = []

    def note(request: Any) -> None:
        if not request.url.startswith("data:"):
            asked.append(request.url)

    page.on("request", note)
    page.goto(path.as_uri())
    page.wait_for_function("window.Reveal && Reveal.isReady()")
    page.remove_listener("request", note)
    assert asked == [path.as_uri()]


@pytest.mark.browser
@pytest.mark.parametrize("lecture", LECTURES, ids=lambda path: path.stem)
def test_no_slide_is_cut_off(lecture: Path, page: Any, tmp_path: Path) -> None:
    opened(page, slides.write(lecture, tmp_path))
    measured = page.evaluate(MEASURE)
    assert len(measured) > 10
    for slide in measured:
        assert slide["words"] or slide["pictures"], "an empty slide"
        assert 0 < slide["height"] <= HEIGHT, slide["words"]
        assert int(slide["width"]) <= WIDTH, slide["words"]
        assert slide["notes"] in ([], ["none"]), f"only the first note is shown: {slide['words']}"
        assert not slide["raw"], f"a formula as it is written: {slide['words']}"
        assert not slide["wrong"], f"a formula that MathJax cannot read: {slide['words']}"
        for drawn, alternative in slide["pictures"]:
            assert drawn > 60, f"a picture too small to be seen: {alternative}"
            assert len(alternative) > 10
    source = nbformat.read(lecture, as_version=4).cells
    formulas = sum(slide["formulas"] for slide in measured)
    assert bool(formulas) == any("$" in c.source for c in source if c.cell_type == "markdown")


def deck(folder: Path, *cells: tuple[str, Any]) -> Path:
    """The slides of a small notebook, of (mark, cell)."""
    for mark, cell in cells:
        cell.metadata.slideshow = {"slide_type": mark}
    path = folder / "small.ipynb"
    nbformat.write(new_notebook(cells=[cell for _, cell in cells]), path)
    return slides.write(path, folder / "slides")


@pytest.mark.browser
def test_the_measure_sees_what_is_wrong(page: Any, tmp_path: Path) -> None:
    lines = "\n".join(f"a = {number}" for number in range(40))
    wide = new_output("display_data", {"text/plain": "-", "text/html": "<hr style='width:1300px'>"})
    path = deck(
        tmp_path,
        ("slide", new_code_cell(lines)),
        ("slide", new_code_cell("a", outputs=[wide])),
        ("slide", new_markdown_cell(r"$\nosuch{x}$, $\frac$ and 5 $")),
    )
    opened(page, path)
    tall, broad, formula = page.evaluate(MEASURE)
    assert tall["height"] > HEIGHT
    assert broad["width"] >= 1300
    assert formula["formulas"] == formula["wrong"] == 2
    assert formula["raw"]


@pytest.mark.browser
def test_space_leads_through_the_slides(page: Any, tmp_path: Path) -> None:
    path = deck(
        tmp_path,
        ("slide", new_markdown_cell("# 99 · Small & plain")),
        ("notes", new_markdown_cell("Only for me.")),
        ("subslide", new_markdown_cell("Second: $x^2$")),
        ("skip", new_code_cell("1 / 0")),
        ("slide", new_markdown_cell("Third")),
    )
    assert path == tmp_path / "slides" / "small.html"
    opened(page, path)
    assert page.title() == "99 · Small & plain"
    for words in ("99 · Small", "Second", "Third"):
        assert page.locator("section.present section.present").inner_text().startswith(words)
        assert not page.get_by_text("Only for me.").is_visible()
        page.keyboard.press("Space")
    assert page.locator("mjx-container svg").count() == 1
    assert page.get_by_text("1 / 0").count() == 0


@pytest.mark.slow
def test_a_page_has_the_alternative_texts() -> None:
    template = slides.TEMPLATE.with_name("page.html.j2")
    html, _ = HTMLExporter(template_file=str(template)).from_filename(str(LECTURES[0]))
    alternatives = re.findall(r'<img alt="([^"]*)"', html)
    assert len(alternatives) == html.count("<img ") > 3
    assert min(map(len, alternatives)) > 10


@pytest.mark.slow
def test_a_deck_is_written_anew(tmp_path: Path) -> None:
    path = deck(tmp_path, ("slide", new_markdown_cell("# Old")))
    assert deck(tmp_path, ("slide", new_markdown_cell("# New"))) == path
    assert "<title>New</title>" in path.read_text(encoding="utf-8")
    assert [file.name for file in path.parent.iterdir()] == ["small.html"]
