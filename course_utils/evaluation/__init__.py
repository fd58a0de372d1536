"""Which explanations are true? All that judges an attribution, in one place."""

from course_utils.evaluation.axioms import AXIOMS, Verdict
from course_utils.evaluation.faithfulness import (
    Flipping,
    Sensitivity,
    infidelity,
    infidelity_estimate,
    pixel_flipping,
    sensitivity_n,
)
from course_utils.evaluation.imputation import impute, road
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
from course_utils.evaluation.simulation import Simulatability, simulatability
from course_utils.evaluation.standings import Table, order_agreement
from course_utils.evaluation.truth import effect_agreement, true_effects

__all__ = [
    "AXIOMS",
    "SCORES",
    "SIMILARITIES",
    "Curve",
    "Flipping",
    "Roar",
    "Sensitivity",
    "Simulatability",
    "Table",
    "Verdict",
    "agreement",
    "box_mask",
    "deletion",
    "effect_agreement",
    "faithfulness_correlation",
    "impute",
    "infidelity",
    "infidelity_estimate",
    "insertion",
    "iou",
    "label_randomization",
    "league_table",
    "max_sensitivity",
    "order_agreement",
    "parameter_randomization",
    "pixel_flipping",
    "pointing_game",
    "road",
    "sensitivity_n",
    "simulatability",
    "true_effects",
]
