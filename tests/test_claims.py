import numpy as np
import pytest
import torch

from course_utils.claims import claim


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0.8712, "0.87"),
        (0.00123, "0.0012"),
        (97.344, "97.34"),
        (1234.5, "1234.5"),
        (2.0, "2"),
        (0.0, "0"),
        (-0.5, "-0.5"),
        (float("nan"), "nan"),
        (12_000, "12000"),
        ("zebra", "zebra"),
        (torch.tensor(0.8712), "0.87"),
        (np.float32(0.8712), "0.87"),
        (np.int64(3), "3"),
    ],
)
def test_prints_the_rounded_value(
    value: object, shown: str, capsys: pytest.CaptureFixture[str]
) -> None:
    claim("mass inside the mask", value, True)
    assert capsys.readouterr().out == f"✓ mass inside the mask: {shown}\n"


def test_a_fact_without_a_number(capsys: pytest.CaptureFixture[str]) -> None:
    claim("they are equal", torch.equal(torch.ones(2), torch.ones(2)))
    with pytest.raises(AssertionError, match=r"does not hold .* they are equal\.$"):
        claim("they are equal", torch.tensor(False))
    assert capsys.readouterr().out == "✓ they are equal\n✗ they are equal\n"


def test_that_something_is_true_is_no_measurement() -> None:
    with pytest.raises(TypeError, match=r"^value is True, which measures nothing; write claim\("):
        claim("they are equal", True, 1 == 1)


@pytest.mark.parametrize("model", [None, "", "scenes"])
def test_stops_on_the_shipped_model(
    model: str | None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if model is None:
        monkeypatch.delenv("COURSE_MODEL", raising=False)
    else:
        monkeypatch.setenv("COURSE_MODEL", model)
    with pytest.raises(AssertionError, match=r"does not hold .* mass: 0\.3"):
        claim("mass", 0.3, torch.tensor(False))
    assert capsys.readouterr().out == "✗ mass: 0.3\n"


def test_goes_on_with_another_model(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COURSE_MODEL", "resnet18")
    claim("mass", 0.3, False)
    assert capsys.readouterr().out == "✗ mass: 0.3\n"
