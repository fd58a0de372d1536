"""The panel of LRP: its composites are a table that can be changed."""

from functools import partial
from typing import Any

import numpy as np
import pytest

from course_utils import panels
from course_utils.methods import relevance
from course_utils.methods.propagation import lrp
from course_utils.methods.relevance import COMPOSITES
from course_utils.panels import relevance as module
from course_utils.panels.pictures import pixels_of, summed
from tests.networks import small_classifier

pytestmark = pytest.mark.slow


def test_a_composite_sets_the_rules_and_a_rule_makes_a_table_of_its_own() -> None:
    panel = panels.lrp_composites(small_classifier())
    places = [*relevance.Composite._fields]
    for name, composite in COMPOSITES.items():
        panel.controls["composite"].value = name
        assert [panel.values[place] for place in places] == [module.NAMES[r] for r in composite]
    panel.controls["composite"].value = "epsilon-plus-flat"
    panel.controls["middle"].value = "γ"
    assert panel.values["composite"] == module.OWN
    assert [panel.values[place] for place in places] == ["flat", "z⁺", "γ", "z⁺", "ε"]
    assert "flat, z⁺, γ, z⁺, ε" in panel.words
    panel.controls["composite"].value = module.OWN  # changes nothing
    assert panel.values["middle"] == "γ"


def test_the_map_is_that_of_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    classifier, real = small_classifier(), module.relevance_of
    made: list[module.Relevance] = []

    def noted(*given: Any) -> module.Relevance:
        made.append(real(*given))
        return made[-1]

    monkeypatch.setattr(module, "relevance_of", noted)
    panel = panels.lrp_composites(classifier)
    panel.update(first="flat", lower="z⁺", middle="z⁺", upper="γ", dense="ε", gamma=0.5)
    x = classifier.to_input(pixels_of(module.SCENES["zebra"]))
    gamma, plus = partial(relevance.gamma, gamma=0.5), relevance.z_plus
    composite = relevance.Composite(relevance.flat, plus, plus, gamma, relevance.epsilon)
    expected = summed(lrp(classifier.model, x, composite=composite))
    assert np.allclose(made[-1].map_, expected, atol=1e-6)
    assert f"sums to {expected.sum():.2g}".replace("-", "−") in panel.words
