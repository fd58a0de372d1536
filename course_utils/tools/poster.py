"""A picture of all methods: what each makes of a scene, of a hard scene and of a photograph."""

import io
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from course_utils import files, models, plotting
from course_utils.evaluation import field, league
from course_utils.evaluation.sanity import maps_of
from course_utils.methods import METHODS
from course_utils.networks import Classifier
from course_utils.worlds import photographs
from course_utils.worlds.scenes import Scenes

COLUMNS = 4  # methods beside each other
SCENE, HARD, PHOTOGRAPH = 2, 3, "chelsea"  # numbers of a world's scenes, and a name


class Shown(NamedTuple):
    """A picture as people see it, as the model gets it, and what is ordinary there."""

    classifier: Classifier
    picture: NDArray[np.uint8]
    image: Tensor
    data: Tensor | None


def draw(path: Path) -> None:
    """Write the poster, a PNG; it takes about two minutes on two cores.

    Each method explains the model's own answer, with its quick options. Red speaks for it and blue
    against it; a method that shows magnitudes goes from dark to bright. Each map has a scale of its
    own, which ends at the 99th percentile of its magnitudes.
    """
    shown = _pictures()
    cells = [("the pictures", [one.picture for one in shown])]
    cells += [(METHODS[name].label, [_map(name, one) for one in shown]) for name in METHODS]
    rows = -(-len(cells) // COLUMNS)
    figure = Figure(figsize=(3.3 * COLUMNS, 1.32 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subfigures(rows, COLUMNS, squeeze=False).flatten()
    for place, (title, tiles) in zip(grid, cells, strict=False):
        place.suptitle(title, fontsize=11)
        for axes, tile in zip(place.subplots(1, len(tiles)), tiles, strict=True):
            axes.imshow(tile)
            axes.set_axis_off()
    figure.savefig(buffer := io.BytesIO(), dpi=80)
    with files.whole(path) as unfinished:
        plotting.few_colors(Image.open(buffer).convert("RGB")).save(
            unfinished, "PNG", optimize=True
        )


def _pictures() -> list[Shown]:
    drawn, real = (models.load(name, device="cpu") for name in ("scenes", field.NETWORK))
    scenes = [
        Scenes(8, seed=11, missing="nothing", hard=hard, resolution=drawn.size).scene(number).image
        for hard, number in ((False, SCENE), (True, HARD))
    ]
    photo = photographs.picture(PHOTOGRAPH)
    images = real.to_input(photo)
    shown = [Shown(drawn, scene, drawn.to_input(scene), None) for scene in scenes]
    return [*shown, Shown(real, real.to_image(images[0]), images, field.ordinary(real))]


def _map(name: str, shown: Shown) -> NDArray[np.uint8]:
    """A method's map, coloured: its channels summed, or their magnitudes where it shows these."""
    model, method = shown.classifier.model, METHODS[name]
    run = league.methods_by_name(shown.classifier, [name], shown.data)[name]
    with torch.no_grad():
        target = model(shown.image).argmax(1)
    values = maps_of(run, model, shown.image, target, batch_size=16)[0]
    values = values.abs().sum(0) if method.magnitudes else values.sum(0)
    limit = float(values.abs().flatten().quantile(0.99)) or 1.0
    kind = "sequential" if values.min() >= 0 else "signed"
    return plotting.colorize(values.numpy(), kind, limit)
