"""The poster of all methods, with two of them."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from course_utils.methods import METHODS
from course_utils.tools import poster


@pytest.mark.slow
def test_a_cell_for_the_pictures_and_for_each_method(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = {name: METHODS[name] for name in ("gradient", "hires_cam", "input_x_gradient", "cam")}
    monkeypatch.setattr(poster, "METHODS", few)
    poster.draw(tmp_path / "poster.png")
    picture = np.asarray(Image.open(tmp_path / "poster.png").convert("RGB"))
    height, width = (int(80 * inches) for inches in (1.32 * 2, 3.3 * 4))  # five cells: two rows
    assert picture.shape == (height, width, 3)
    top, below = picture[: height // 2], picture[height // 2 :]
    for row in (top[:, :250], below[:, :250]):
        assert len(np.unique(row.reshape(-1, 3), axis=0)) > 20
    assert (below[:, 300:] == 255).all()
