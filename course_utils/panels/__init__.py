"""Panels: controls beside a picture that is computed again at every move.

A panel is a function `NAME(model=None, image=None)`. It makes the controls, says in `draw` how
their values become a picture, and gives both to `Panel`, which does the rest.
"""

from course_utils.panels.base import Canvas, Panel
from course_utils.panels.basics import convolution, preprocessing, scene_editor
from course_utils.panels.maps import feature_maps
from course_utils.panels.maximization import activation_maximization
from course_utils.panels.microscope import microscope
from course_utils.panels.prototypes import prototypes

__all__ = [
    "Canvas",
    "Panel",
    "activation_maximization",
    "convolution",
    "feature_maps",
    "microscope",
    "preprocessing",
    "prototypes",
    "scene_editor",
]
