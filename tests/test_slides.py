"""The plain slide export of every lecture, laid out in a browser: no slide is cut off.

Reveal.js and MathJax come from the network, so neither is here. The export's own style sheet sets
every size that matters, and a displayed equation is given the room that MathJax takes at most.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from nbconvert import SlidesExporter

from tests import execute

pytestmark = pytest.mark.browser

LECTURES = sorted(execute.NOTEBOOKS.glob("[0-9][0-9]_*.ipynb"))

# What reveal.js does to the slide in front, done to all of them, one below the other.
LAYOUT = """
.reveal .slides > section > section {{ display: block; position: static; width: {width}px; }}
.reveal aside.notes {{ display: none; }}
.equation {{ display: block; margin: 1em 0; }}
"""
EQUATIONS = r"""() => {
  for (const paragraph of document.querySelectorAll("section p, section li"))
    paragraph.innerHTML = paragraph.innerHTML.replace(/\$\$(.*?)\$\$/gs, (_, tex) => {
      const rows = tex.split("\\\\").length;
      return `<span class="equation" style="height: ${rows > 1 ? 40 * rows : ROOM}px"></span>`;
    });
}"""
SIDES = ("width", "height")
ROOM = 100  # px, of one displayed line with an underbrace
SLIDES = """() => [...document.querySelectorAll(".slides > section > section")].map(slide => ({
  words: slide.innerText.trim().slice(0, 60),
  height: slide.scrollHeight,
  right: Math.max(...[...slide.querySelectorAll("*")].map(
    element => element.getBoundingClientRect().left + element.scrollWidth)),
  left: slide.getBoundingClientRect().left,
  notes: slide.querySelectorAll("aside.notes").length,
  pictures: [...slide.querySelectorAll("img")].map(image => [image.height, image.alt]),
}))"""


@pytest.fixture(scope="module")
def page(chromium: Any) -> Iterator[Any]:
    page = chromium.new_page()
    page.route("**/*", lambda route: route.abort())  # the page itself is given, not fetched
    yield page
    page.close()


def export(path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """What `jupyter nbconvert --to slides` makes of a lecture, in the folder of the lectures."""
    monkeypatch.chdir(execute.NOTEBOOKS)
    html, _ = SlidesExporter().from_filename(path.name)
    return html


@pytest.mark.parametrize("path", LECTURES, ids=lambda path: path.stem)
def test_no_slide_is_cut_off(path: Path, page: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    html = export(path, monkeypatch)
    (width,), (height,) = (re.findall(rf"^\s+{side}: (\d+),$", html, re.M) for side in SIDES)
    page.set_content(html, wait_until="domcontentloaded")
    page.add_style_tag(content=LAYOUT.format(width=width))
    page.evaluate(EQUATIONS.replace("ROOM", str(ROOM)))
    slides = page.evaluate(SLIDES)
    assert len(slides) > 10
    for slide in slides:
        assert slide["words"] or slide["pictures"], "an empty slide"
        assert 0 < slide["height"] <= int(height), slide["words"]
        assert int(slide["right"] - slide["left"]) <= int(width), slide["words"]
        assert slide["notes"] <= 1, f"only the first note is shown: {slide['words']}"
        for drawn, alternative in slide["pictures"]:
            assert drawn > 60, f"a picture too small to be seen: {alternative}"
            assert len(alternative) > 10


def test_the_measure_sees_a_cell_that_is_cut_off(page: Any) -> None:
    page.set_content(
        '<div class="reveal"><div class="slides"><section><section><p>$$x$$</p>'
        '<div style="height: 900px; width: 1300px">tall</div></section></section></div></div>'
    )
    page.add_style_tag(content=LAYOUT.format(width=1280))
    page.evaluate(EQUATIONS.replace("ROOM", str(ROOM)))
    (slide,) = page.evaluate(SLIDES)
    assert slide["height"] >= 900 + ROOM
    assert slide["right"] - slide["left"] >= 1300
