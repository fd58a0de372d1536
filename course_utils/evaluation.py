"""Which explanations are true? All that judges an attribution, from six modules, in one place."""

from course_utils.axioms import AXIOMS, Verdict, axioms
from course_utils.league import Table, league_table, verdict
from course_utils.metrics import (
    SCORES,
    Curve,
    box_mask,
    deletion,
    faithfulness_correlation,
    insertion,
    iou,
    pointing_game,
)
from course_utils.roar import Roar, roar
from course_utils.sanity import (
    SIMILARITIES,
    agreement,
    label_randomization,
    max_sensitivity,
    parameter_randomization,
)
from course_utils.truth import effect_agreement, true_effects

__all__ = [
    "AXIOMS",
    "SCORES",
    "SIMILARITIES",
    "Curve",
    "Roar",
    "Table",
    "Verdict",
    "agreement",
    "axioms",
    "box_mask",
    "deletion",
    "effect_agreement",
    "faithfulness_correlation",
    "insertion",
    "iou",
    "label_randomization",
    "league_table",
    "max_sensitivity",
    "parameter_randomization",
    "pointing_game",
    "roar",
    "true_effects",
    "verdict",
]
