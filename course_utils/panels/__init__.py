"""Panels: controls beside a picture that is computed again at every move.

A panel is a function `NAME(model=None, image=None)`. It makes the controls, says in `draw` how
their values become a picture, and gives both to `Panel`, which does the rest.
"""

from course_utils.panels.attribution import gradient
from course_utils.panels.base import Canvas, Panel
from course_utils.panels.basics import convolution, preprocessing, scene_editor
from course_utils.panels.cams import grad_cam
from course_utils.panels.judges import cascading_randomization, deletion_insertion, side_by_side
from course_utils.panels.maps import feature_maps
from course_utils.panels.maximization import activation_maximization
from course_utils.panels.microscope import microscope
from course_utils.panels.paths import integrated_gradients, smoothgrad, xrai
from course_utils.panels.photo import photo
from course_utils.panels.prototypes import prototypes
from course_utils.panels.surrogates import lime, neighbourhood, shapley

__all__ = [
    "Canvas",
    "Panel",
    "activation_maximization",
    "cascading_randomization",
    "convolution",
    "deletion_insertion",
    "feature_maps",
    "grad_cam",
    "gradient",
    "integrated_gradients",
    "lime",
    "microscope",
    "neighbourhood",
    "photo",
    "preprocessing",
    "prototypes",
    "scene_editor",
    "shapley",
    "side_by_side",
    "smoothgrad",
    "xrai",
]
