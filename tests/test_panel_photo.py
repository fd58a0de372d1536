import io
import zlib
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from course_utils import panels
from course_utils.panels.upload import Photo
from course_utils.worlds import photographs, scenes


def png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def upload(panel: Photo, content: bytes, name: str = "mine.png") -> None:
    """What a click in the browser does."""
    file: dict[str, Any] = {
        "name": name,
        "type": "",
        "size": len(content),
        "content": memoryview(content),
        "last_modified": datetime(2024, 1, 1, tzinfo=UTC),
    }
    panel.controls["upload"].set_trait("value", (file,))


@pytest.fixture
def panel() -> Photo:
    return panels.photo()


MINE = np.random.default_rng(0).integers(0, 256, (30, 50, 3), np.uint8)


def test_opens_on_a_photograph(capsys: pytest.CaptureFixture[str]) -> None:
    panel = panels.photo()
    assert repr(panel) == "panel: photo"
    assert panel.status.value == ""
    assert np.array_equal(panel.image, photographs.load(photographs.NAMES[0]).image)
    assert panel.words.startswith("chelsea, 300 × 451 pixels.")
    assert "square of 300 × 300 pixels" in panel.words
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("name", photographs.NAMES)
def test_every_photograph_can_be_chosen(panel: Photo, name: str) -> None:
    panel.controls["picture"].value = name
    assert np.array_equal(panel.image, photographs.load(name).image)
    assert panel.words.startswith(f"{name}, ")


def test_an_uploaded_photo_is_the_image(panel: Photo) -> None:
    before = panel.picture.value
    upload(panel, png(MINE))
    assert np.array_equal(panel.image, MINE)
    assert panel.status.value == ""
    assert panel.controls["picture"].value == "mine.png"
    assert panel.words.startswith("mine.png, 30 × 50 pixels.")
    assert panel.picture.value != before
    upload(panel, png(MINE[:, ::-1]), "other.png")  # the second one comes beside the first
    assert np.array_equal(panel.image, MINE[:, ::-1])
    panel.controls["picture"].value = "mine.png"
    assert np.array_equal(panel.image, MINE)


def test_a_photo_of_the_same_name_takes_the_place_of_the_first(panel: Photo) -> None:
    upload(panel, png(MINE))
    upload(panel, png(MINE[::-1]))
    assert np.array_equal(panel.image, MINE[::-1])
    assert panel.controls["picture"].options.count("mine.png") == 1


JPEG = io.BytesIO()
Image.fromarray(np.tile(MINE, (9, 9, 1))).save(JPEG, "JPEG")
HEADER = b"IHDR" + (20_000).to_bytes(4, "big") * 2 + bytes([8, 2, 0, 0, 0])
HUGE = png(MINE)[:12] + HEADER + zlib.crc32(HEADER).to_bytes(4, "big") + png(MINE)[33:]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("notes.txt", b"not a picture\n", "upload: notes.txt (14 bytes) is not a picture"),
        ("empty.jpg", b"", "upload: empty.jpg (0 bytes) is not a picture"),
        ("half.jpg", JPEG.getvalue()[: len(JPEG.getvalue()) // 2], "half.jpg"),
        ("huge.png", HUGE, "more than 120 megapixels"),
    ],
)
def test_what_is_no_photo_is_said_and_changes_nothing(
    panel: Photo, name: str, content: bytes, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    upload(panel, png(MINE))
    shown = panel.picture.value
    upload(panel, content, name)
    assert said in panel.status.value
    assert "Traceback" not in panel.status.value
    assert "\n" not in panel.status.value
    assert np.array_equal(panel.image, MINE)
    assert panel.picture.value == shown
    assert name not in panel.controls["picture"].options
    upload(panel, png(MINE[::-1]), "good.png")  # the next good one takes the sentence away
    assert panel.status.value == ""
    assert np.array_equal(panel.image, MINE[::-1])
    assert capsys.readouterr() == ("", "")


def test_an_upload_taken_back_keeps_the_picture(panel: Photo) -> None:
    upload(panel, png(MINE))
    panel.controls["upload"].set_trait("value", ())
    assert panel.status.value == ""
    assert np.array_equal(panel.image, MINE)


def test_an_error_in_the_browser_is_said(panel: Photo) -> None:
    panel.controls["upload"].error = "no disk"
    assert "could not send the file (no disk)" in panel.status.value


@pytest.mark.parametrize("shape", [(1, 1), (1, 4000), (4000, 1), (7, 2000)])
def test_odd_shapes_have_a_preview(panel: Photo, shape: tuple[int, int]) -> None:
    pixels = np.full((*shape, 3), 77, np.uint8)
    upload(panel, png(pixels))
    assert panel.status.value == ""
    assert np.array_equal(panel.image, pixels)


def test_a_name_is_not_markup(panel: Photo) -> None:
    upload(panel, png(MINE), "<b>" + 80 * "x" + ".png")
    assert "<b>" not in panel.caption.value
    upload(panel, b"", "<b>.png")
    assert "<b>" not in panel.status.value


@pytest.mark.parametrize("kind", ["array", "path", "bytes", "scene"])
def test_a_picture_given_to_the_panel_comes_first(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "mine.png"
    path.write_bytes(png(MINE))
    spec = scenes.standard("cow")
    given = {"array": MINE, "path": path, "bytes": png(MINE), "scene": spec}[kind]
    panel = panels.photo(given)
    wanted = scenes.render(spec).image if kind == "scene" else MINE
    assert np.array_equal(panel.image, wanted)
    assert panel.words.startswith("your picture, ")


def test_a_file_that_is_not_there_is_an_error() -> None:
    with pytest.raises(FileNotFoundError, match=r"there is no file 'photo\.jpg'"):
        panels.photo("photo.jpg")
