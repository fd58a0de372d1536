"""Panels: controls beside a picture that is computed again at every move.

A panel is a function `NAME(model=None, image=None)`. It makes the controls, says in `draw` how
their values become a picture, and gives both to `Panel`, which does the rest. A panel's module is
imported when the panel is first used, since a lecture uses a few of them.
"""

from importlib import import_module
from typing import Any

MODULES = {
    "Canvas": "canvas",
    "Panel": "panel",
    "activation_maximization": "maximization",
    "cam_family": "cams",
    "cascading_randomization": "judges",
    "convolution": "crash_course",
    "deletion_insertion": "judges",
    "dictionary": "dictionaries",
    "dissection": "concepts",
    "feature_maps": "maps",
    "grad_cam": "cams",
    "gradient": "gradients",
    "integrated_gradients": "paths",
    "lime": "surrogates",
    "lrp_composites": "relevance",
    "microscope": "maximization",
    "neighbourhood": "surrogates",
    "occlusion": "perturbation",
    "photo": "upload",
    "preprocessing": "crash_course",
    "prototypes": "examples",
    "rise": "perturbation",
    "scene_editor": "editor",
    "shapley": "coalitions",
    "side_by_side": "judges",
    "simulatability": "studies",
    "smoothgrad": "paths",
    "xrai": "paths",
}
__all__ = list(MODULES)


def __getattr__(name: str) -> Any:
    if name not in MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{MODULES[name]}"), name)


def __dir__() -> list[str]:
    return __all__  # what the Tab key offers
