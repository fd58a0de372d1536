"""Which explanations are true? All that judges an attribution, in one place."""

from course_utils.evaluation.axioms import AXIOMS, Verdict
from course_utils.evaluation.league import league_table
from course_utils.evaluation.metrics import (
    SCORES,
    Curve,
    box_mask,
    deletion,
    faithfulness_correlation,
    insertion,
    iou,
    pointing_game,
)
from course_utils.evaluation.roar import Roar
from course_utils.evaluation.sanity import (
    SIMILARITIES,
    agreement,
    label_randomization,
    max_sensitivity,
    parameter_randomization,
)
from course_utils.evaluation.standings import Table, order_agreement
from course_utils.evaluation.truth import effect_agreement, true_effects

__all__ = [
    "AXIOMS",
    "SCORES",
    "SIMILARITIES",
    "Curve",
    "Roar",
    "Table",
    "Verdict",
    "agreement",
    "box_mask",
    "deletion",
    "effect_agreement",
    "faithfulness_correlation",
    "insertion",
    "iou",
    "label_randomization",
    "league_table",
    "max_sensitivity",
    "order_agreement",
    "parameter_randomization",
    "pointing_game",
    "true_effects",
]
