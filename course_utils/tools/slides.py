"""A lecture as slides, in one file that a browser opens without a network."""

from importlib import resources
from pathlib import Path

from course_utils.files import whole

TEMPLATE = Path(__file__).with_suffix(".html.j2")


def write(lecture: Path, folder: Path) -> Path:
    """Write the slides of a lecture into a folder, where older ones are replaced; their path."""
    from nbconvert import SlidesExporter

    html, _ = SlidesExporter(template_file=str(TEMPLATE)).from_filename(
        str(lecture), resources={"files": _files()}
    )
    path = folder / f"{lecture.stem}.html"
    folder.mkdir(parents=True, exist_ok=True)
    with whole(path) as unfinished:
        unfinished.write_text(html, encoding="utf-8")
    return path


def _files() -> dict[str, str | list[str]]:
    """reveal.js and MathJax, from packages that bring them for other uses."""
    reveal = resources.files("pyreveal") / "revealjs/dist"
    mathjax = resources.files("mathjax") / "static/mathjax/es5"
    scripts = (reveal / "reveal.js", reveal / "plugin/notes.js", mathjax / "tex-svg.js")
    return {
        "style": (reveal / "reveal.css").read_text(encoding="utf-8"),
        "scripts": [script.read_text(encoding="utf-8") for script in scripts],
    }
