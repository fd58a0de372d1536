import io
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from course_utils import plotting

Shown = list[tuple[dict[str, Any], dict[str, Any]]]


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> Shown:
    """What was displayed: a list of (data, metadata)."""
    outputs: Shown = []

    def display(data: dict[str, Any], *, metadata: dict[str, Any], raw: bool) -> None:
        assert raw
        outputs.append((data, metadata))

    monkeypatch.setattr(plotting, "display", display)
    return outputs


def picture(output: Any) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(output[0]["image/png"])).convert("RGB"))


# -- colorize ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", plotting.MAPS)
def test_colorize_gives_a_picture_of_the_same_size(kind: str) -> None:
    colors = plotting.colorize(np.linspace(-1, 2, 12).reshape(3, 4), kind)
    assert colors.shape == (3, 4, 3)
    assert colors.dtype == np.uint8


def test_signed_is_centred_on_zero_and_symmetric() -> None:
    blue, zero, red = plotting.colorize(np.array([[-1.0, 0.0, 1.0]]), "signed", limit=1)[0]
    assert blue[2] > blue[0]
    assert red[0] > red[2]
    assert zero.min() > 240
    half = plotting.colorize(np.array([[-1.0, 0.0, 4.0]]), "signed")[0]
    assert half[1].tolist() == zero.tolist()  # zero keeps its colour when the values are lopsided
    assert half[2].tolist() == red.tolist()


def test_sequential_starts_at_zero_and_grows_lighter() -> None:
    light = plotting.colorize(np.array([[0.0, 1.0, 2.0, 3.0]])).sum(axis=-1)[0]
    assert (np.diff(light.astype(int)) > 0).all()
    floor = plotting.colorize(np.array([[0.0]]))[0, 0]
    assert plotting.colorize(np.array([[5.0, 0.0]]))[0, 1].tolist() == floor.tolist()
    assert plotting.colorize(np.array([[5.0, 5.0]]))[0, 0].tolist() != floor.tolist()


def test_values_beyond_the_limit_take_the_end_colour() -> None:
    colors = plotting.colorize(np.array([[1.0, 9.0]]), limit=1)
    assert colors[0, 0].tolist() == colors[0, 1].tolist()


@pytest.mark.parametrize("kind", plotting.MAPS)
def test_a_map_of_zeros_has_one_colour(kind: str) -> None:
    assert len(np.unique(plotting.colorize(np.zeros((4, 4)), kind).reshape(-1, 3), axis=0)) == 1


@pytest.mark.parametrize(
    ("array", "kind", "limit", "says"),
    [
        (np.zeros((2, 2, 3)), "signed", None, r"array .*\(2, 2, 3\)"),
        (np.zeros(4), "signed", None, r"array .*\(4,\)"),
        (np.zeros((0, 4)), "signed", None, "array"),
        (np.full((2, 2), np.nan), "signed", None, "array .*NaN"),
        (np.full((2, 2), np.inf), "sequential", None, "array .*infinity"),
        (np.zeros((2, 2)), "rainbow", None, "kind .*'rainbow'"),
        (np.zeros((2, 2)), "signed", 0, "limit"),
        (np.zeros((2, 2)), "signed", float("nan"), "limit"),
    ],
)
def test_colorize_says_in_a_sentence_what_is_wrong(
    array: Any, kind: str, limit: Any, says: str
) -> None:
    with pytest.raises(ValueError, match=says):
        plotting.colorize(array, kind, limit)


# -- figures -----------------------------------------------------------------------------------

GREY = np.arange(64, dtype=float).reshape(8, 8)
PHOTO = np.zeros((8, 8, 3), np.uint8)
FIGURES: dict[str, Callable[..., None]] = {
    "grid of both": lambda **k: plotting.grid([PHOTO, GREY], ["photo", "map"], title="t", **k),
    "grid, each scale": lambda **k: plotting.grid([GREY, -GREY], kind="signed", scale="each", **k),
    "grid of grey": lambda **k: plotting.grid([GREY] * 5, kind="gray", columns=3, **k),
    "large photo": lambda **k: plotting.grid([np.zeros((500, 700, 3), np.uint8)], **k),
    "filters": lambda **k: plotting.filters(
        np.random.default_rng(0).normal(size=(9, 3, 7, 7)), **k
    ),
    "common filters": lambda **k: plotting.filters(np.ones((2, 1, 3, 3)), scale="common", **k),
    "numbers": lambda **k: plotting.numbers(
        GREY, [[1, np.nan]], titles=["a", "b"], signs=["×"], windows={0: (1, 2, 3, 3)}, **k
    ),
    "bars": lambda **k: plotting.bars([("zebra", 0.9), ("horse", 0.1)], truth="zebra", **k),
    "signed bars": lambda **k: plotting.bars([("a", -2.0), ("b", 3.0)], limit=None, **k),
    "curve": lambda **k: plotting.curve(np.linspace(3, 0, 50), smooth=5, ylabel="loss", **k),
    "curves": lambda **k: plotting.curve({"a": [1, 2], "b": [3, 4]}, x=[0.5, 1], log=True, **k),
    "intervals": lambda **k: plotting.intervals([("a", 0.7, 0.6, 0.8), ("b", 0.4, 0.2, 0.6)], **k),
    "matrix": lambda **k: plotting.matrix(np.eye(3, dtype=int) * 9 + 1, ["a", "b", "c"], **k),
}


@pytest.mark.parametrize("draw", FIGURES.values(), ids=FIGURES)
def test_a_figure_is_shown_once_as_png_with_its_alternative(
    shown: Shown, draw: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    draw(alt="what it shows")
    ((data, metadata),) = shown
    assert data["text/plain"] == "what it shows"
    assert metadata == {"image/png": {"alt": "what it shows"}}
    pixels = picture(shown[0])
    assert min(pixels.shape[:2]) > 60
    assert pixels.std() > 5  # something was drawn
    assert len(data["image/png"]) < 120_000
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("alt", ["", "  ", None])
@pytest.mark.parametrize("draw", FIGURES.values(), ids=FIGURES)
def test_a_figure_without_alternative_is_refused(
    shown: Shown, draw: Callable[..., None], alt: Any
) -> None:
    with pytest.raises(ValueError, match="alt"):
        draw(alt=alt)
    assert not shown


def test_show_closes_a_pyplot_figure(shown: Shown) -> None:
    import matplotlib.pyplot as plt

    figure = plt.figure()
    plotting.show(figure, "empty")
    assert not plt.fignum_exists(figure.number)
    plotting.show(Figure(), "made without pyplot")
    assert len(shown) == 2


def test_small_pictures_keep_their_pixels(shown: Shown) -> None:
    board = np.zeros((2, 2, 3), np.uint8)
    board[0, 0] = board[1, 1] = (255, 0, 0)
    plotting.grid([board], alt="a board")
    pixels = picture(shown[0])
    red, black = ((pixels == color).all(axis=-1).sum() for color in ((255, 0, 0), (0, 0, 0)))
    assert red + black > 0.95 * 180 * 180  # no mixtures of the two between them
    assert red == pytest.approx(black, rel=0.05)


def test_filter_tiles_have_grey_at_zero_and_are_never_shifted() -> None:
    weights = np.zeros((2, 3, 3, 3))
    weights[0, 0, 1, 1], weights[1, 2, 1, 1] = 4, -1
    each, common = (plotting.filter_tiles(weights, scale) for scale in ("each", "common"))
    assert each[0, 0, 0].tolist() == common[1, 0, 0].tolist() == [128, 128, 128]
    assert each[0, 1, 1].tolist() == [255, 128, 128]
    assert each[1, 1, 1].tolist() == [128, 128, 0]
    assert common[1, 1, 1].tolist() == [128, 128, 96]


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: plotting.grid([], alt="a"), "images .*empty"),
        (lambda: plotting.grid([GREY], ["a", "b"], alt="a"), "titles .*2"),
        (lambda: plotting.grid([GREY], scale="own", alt="a"), "scale .*'own'"),
        (lambda: plotting.grid([PHOTO / 255], alt="a"), "images .*float64"),
        (lambda: plotting.filters(np.zeros((3, 7, 7)), alt="a"), r"weights .*\(3, 7, 7\)"),
        (lambda: plotting.numbers(np.zeros(3), alt="a"), r"arrays .*\(3,\)"),
        (lambda: plotting.bars([], alt="a"), "pairs .*empty"),
        (lambda: plotting.intervals([], alt="a"), "rows .*empty"),
        (lambda: plotting.matrix(np.eye(3), ["a"], alt="a"), r"counts .*\(3, 3\)"),
    ],
)
def test_figures_say_in_a_sentence_what_is_wrong(shown: Shown, call: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        call()
    assert not shown


@pytest.mark.parametrize(
    ("value", "text"),
    [(3, "3"), (-0.25, "−0.25"), (-0.001, "0.00"), (0.5, "0.50"), (12.34, "12.3"), (255.4, "255")],
)
def test_number_is_short(value: Any, text: str) -> None:
    assert plotting.number(value) == text


def test_few_colors_keeps_the_ends_of_a_color_bar_beside_a_photo() -> None:
    photo = np.random.default_rng(0).integers(
        90, 160, (120, 300, 3)
    )  # takes all colours it can get
    bar = plotting.colorize(np.linspace(-1, 1, 300)[None].repeat(12, 0), kind="signed")
    picture = np.concatenate([photo, bar]).astype(np.uint8)
    kept = plotting.few_colors(Image.fromarray(picture))
    assert len(kept.getcolors() or []) in range(1, 257)
    off = np.abs(np.asarray(kept.convert("RGB")).astype(int) - picture)[120:, [0, -1]]
    assert off.max() <= 24
