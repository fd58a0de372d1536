import io
import struct
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from course_utils import images
from course_utils.images import load_image

RED, WHITE = (200, 30, 10), (255, 255, 255)


def picture(height: int = 6, width: int = 8) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


PNG = encoded(Image.fromarray(picture()))


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(width: int, height: int, depth: int, color: int, rows: bytes) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


# What can be read ------------------------------------------------------------------------------


def test_every_kind_of_source(tmp_path: Path) -> None:
    path = tmp_path / "photo.png"
    path.write_bytes(PNG)
    with path.open("rb") as file:
        sources: list[Any] = [path, str(path), PNG, bytearray(PNG), memoryview(PNG), file]
        for source in [*sources, picture()]:
            result = load_image(source)
            assert result.dtype == np.uint8
            assert np.array_equal(result, picture())
    with Image.open(path) as image:
        assert np.array_equal(load_image(image), picture())


HEIC = Path(__file__).parent / "pictures"


@pytest.mark.parametrize("name", ["portrait", "landscape"])
def test_an_iphones_heic(name: str) -> None:
    """A white edge above red and blue, held as the phone was: turned by a quarter, or not."""
    for source in (HEIC / f"{name}.heic", (HEIC / f"{name}.heic").read_bytes()):
        image = load_image(source)
        if name == "portrait":
            assert image.shape == (64, 48, 3)
            image = np.rot90(image)  # the phone's own way back
        assert image.shape == (48, 64, 3)
        for place, color in (((4, 32), WHITE), ((40, 8), (220, 30, 30)), ((40, 56), (30, 30, 220))):
            assert np.abs(image[place].astype(int) - color).max() < 20


def test_a_heic_cut_short_is_a_sentence() -> None:
    whole = (HEIC / "portrait.heic").read_bytes()
    for short in (whole[:300], whole[:-60]):
        with pytest.raises(ValueError, match="^source: what was given") as error:
            load_image(short)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("kind", ["WEBP", "AVIF", "MPO"])
def test_what_phones_store(kind: str) -> None:
    """Turned by a quarter as the EXIF block says; a motion photo has a film behind its picture."""
    pixels = np.zeros((48, 64, 3), np.uint8)
    pixels[:, :32], pixels[:, 32:] = RED, WHITE
    exif = Image.Exif()
    exif[0x0112] = 6  # the first row is the right edge
    content = encoded(Image.fromarray(pixels), kind, exif=exif, quality=90)
    film = b"\0\0\0\x18ftypmp42" + bytes(1000)
    for source in (content, content + film if kind == "MPO" else content):
        image = load_image(source)
        assert image.shape == (64, 48, 3)
        assert np.abs(image[8, 24].astype(int) - RED).max() < 30
        assert np.abs(image[56, 24].astype(int) - WHITE).max() < 30


@pytest.mark.slow
def test_fifty_megapixels() -> None:
    content = encoded(Image.new("RGB", (8160, 6120), RED), "JPEG", quality=50)
    image = load_image(content)
    assert image.shape == (6120, 8160, 3)
    assert np.abs(image[::500, ::500].astype(int) - RED).max() < 10


def test_the_array_given_is_not_shared() -> None:
    original = picture()
    load_image(original)[:] = 0
    assert np.array_equal(original, picture())


@pytest.mark.parametrize("orientation", range(1, 9))
def test_upright(orientation: int) -> None:
    upright = Image.fromarray(picture())
    # The stored pixels are those that the orientation turns upright.
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    stored = upright.transpose(undo[orientation]) if orientation > 1 else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert np.array_equal(load_image(encoded(stored, exif=exif)), picture())
    assert load_image(encoded(stored, "JPEG", exif=exif)).shape == (6, 8, 3)


def test_broken_exif_is_ignored() -> None:
    data = encoded(Image.fromarray(picture()), "JPEG", exif=b"Exif\0\0MM\0*\0\0\xff\xff broken")
    assert load_image(data).shape == (6, 8, 3)


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (Image.new("L", (4, 3), 77), (77, 77, 77)),
        (Image.new("1", (4, 3), 1), WHITE),
        (Image.new("P", (4, 3)), (0, 0, 0)),
        (Image.new("RGB", (4, 3), RED).quantize(4), RED),
        (Image.new("LA", (4, 3), (77, 255)), (77, 77, 77)),
        (Image.new("LA", (4, 3), (77, 0)), WHITE),
        (Image.new("RGBA", (4, 3), (*RED, 255)), RED),
        (Image.new("RGBA", (4, 3), (*RED, 0)), WHITE),
        (Image.new("RGBA", (4, 3), (0, 0, 0, 51)), (204, 204, 204)),
        (Image.new("CMYK", (4, 3), (0, 255, 255, 0)), (255, 0, 0)),
        (Image.new("HSV", (4, 3), (0, 255, 255)), (255, 0, 0)),
        (Image.new("I;16", (4, 3), 257 * 77), (77, 77, 77)),
        (Image.new("I", (4, 3), 65535), WHITE),
        (Image.new("I", (4, 3), 77), (77, 77, 77)),
        (Image.new("L", (4, 3), 77).convert("I"), (77, 77, 77)),
        (Image.new("F", (4, 3), 1.0), WHITE),
    ],
    ids=lambda value: value.mode if isinstance(value, Image.Image) else "",
)
def test_every_mode(image: Image.Image, expected: tuple[int, int, int]) -> None:
    assert (load_image(image) == np.broadcast_to(expected, (3, 4, 3))).all()
    if image.mode not in ("HSV", "F"):
        kind = "TIFF" if image.mode in ("CMYK", "I") else "PNG"
        assert (load_image(encoded(image, kind)) == np.broadcast_to(expected, (3, 4, 3))).all()


def test_cmyk_jpeg() -> None:
    data = encoded(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG", quality=100)
    assert np.abs(load_image(data).astype(int) - (255, 0, 0)).max() <= 2


def test_palette_with_a_transparent_colour() -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([*RED, 0, 0, 255])
    image.putpixel((1, 0), 1)
    assert load_image(encoded(image, transparency=1)).tolist() == [[list(RED), list(WHITE)]]
    as_bytes = encoded(image, transparency=bytes([255, 0]))
    assert load_image(as_bytes).tolist() == [[list(RED), list(WHITE)]]


@pytest.mark.parametrize(("color", "channels"), [(0, 1), (2, 3), (4, 2), (6, 4)])
def test_16_bit_png(color: int, channels: int) -> None:
    values = [257 * 200] * channels
    if channels in (2, 4):
        values[-1] = 65535
    row = b"\0" + struct.pack(f">{3 * channels}H", *values * 3)
    result = load_image(png(3, 2, 16, color, row * 2))
    assert result.shape == (2, 3, 3)
    assert (result == 200).all()


@pytest.mark.parametrize(
    ("color", "clear", "near"),
    [(0, (30_000,), (30_001,)), (0, (77,), (78,)), (2, (30_000, 5, 6), (30_000, 5, 600))],
)
def test_16_bit_png_with_a_transparent_colour(
    color: int, clear: tuple[int, ...], near: tuple[int, ...]
) -> None:
    values = (*clear, *near, *[0] * len(clear))
    row = struct.pack(f">{len(values)}H", *values)
    content = png(3, 1, 16, color, b"\0" + row)
    at = content.index(b"IDAT") - 4
    content = content[:at] + chunk(b"tRNS", struct.pack(f">{len(clear)}H", *clear)) + content[at:]
    white, opaque, black = load_image(content)[0].tolist()
    assert white == list(WHITE)
    assert opaque[0] == round(near[0] / 257)
    assert black == [0, 0, 0]


def test_32_bit_integers_are_8_or_16_bits_deep() -> None:
    for values, expected in (([0, 79, 255], [0, 79, 255]), ([0, 257 * 79, 65535], [0, 79, 255])):
        image = Image.fromarray(np.array([values], np.int32))
        for source in (image, encoded(image, "TIFF")):
            assert load_image(source)[0, :, 0].tolist() == expected


def test_16_bits_use_the_whole_range() -> None:
    ramp = np.linspace(0, 65535, 256).round().astype(np.uint16)[None]
    result = load_image(encoded(Image.fromarray(ramp)))
    assert np.array_equal(result[0, :, 0], np.arange(256))
    assert np.array_equal(load_image(ramp), result)


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF"])
def test_animation_gives_its_first_frame(kind: str) -> None:
    frames = [Image.new("RGB", (4, 3), color) for color in (RED, "blue", "green")]
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    assert (load_image(data) == RED).all()


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 3000), (3000, 1)])
def test_never_resized(height: int, width: int) -> None:
    image = picture(height, width)
    assert np.array_equal(load_image(encoded(Image.fromarray(image))), image)


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (np.full((3, 4), 77, np.uint8), 77),
        (np.full((3, 4, 1), 77, np.uint8), 77),
        (np.full((3, 4), True), 255),
        (np.full((3, 4, 3), 257 * 77, np.uint16), 77),
        (np.full((3, 4, 3), 0.2), 51),
        (np.full((3, 4, 3), 1, np.float32), 255),
        (np.full((3, 4, 4), (0.0, 0.0, 0.0, 0.2)), 204),
        (np.full((6, 4, 3), 77, np.uint8)[::2], 77),
        (np.full((3, 4), 257 * 77, ">u2"), 77),
        (np.full((3, 4, 3), 0.2, ">f4"), 51),
        (np.full((3, 4, 3), 1.0000001, np.float32), 255),  # rounding errors
        (np.full((3, 4), -1e-9), 0),
    ],
)
def test_arrays(array: np.ndarray, expected: int) -> None:
    result = load_image(array)
    assert result.shape == (3, 4, 3)
    assert result.dtype == np.uint8
    assert (result == expected).all()


def test_a_large_photo_loads_without_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 40)  # Pillow warns above, refuses above twice it
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.array_equal(load_image(PNG), picture())


# What cannot -----------------------------------------------------------------------------------

BAD_FILES: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "not a picture"),
    "text": (b"Dear diary,\nthis is not a picture.\n", "not a picture"),
    "svg": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not a picture"),
    "postscript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 4 4\n", "not a picture"),
    "random": (bytes(range(256)) * 4, "not a picture"),
    "header alone": (PNG[:8], "not a picture"),
    "truncated PNG": (PNG[: len(PNG) // 2], "damaged"),
    "truncated JPEG": (encoded(Image.fromarray(picture(64, 64)), "JPEG")[:2000], "damaged"),
    "truncated TIFF": (encoded(Image.fromarray(picture(64, 64)), "TIFF")[:2000], "damaged"),
    "corrupt PNG": (PNG.replace(b"IDAT", b"IDAT\xff", 1), "damaged"),
    "20,000 × 20,000": (png(20_000, 20_000, 1, 0, b""), "more than 120 megapixels"),
    "12,000 × 12,000": (png(12_000, 12_000, 1, 0, b""), "megapixels .12000 × 12000."),
    "32-bit": (encoded(Image.new("I", (2, 2), 100_000), "TIFF"), "do not fit 16 bits"),
    "floats": (encoded(Image.new("F", (2, 2), 3.0), "TIFF"), r"floats must lie in \[0, 1\]"),
}


@pytest.mark.parametrize("case", BAD_FILES)
@pytest.mark.parametrize("opened", ["path", "bytes", "file"])
def test_bad_files(case: str, opened: str, tmp_path: Path) -> None:
    data, sentence = BAD_FILES[case]
    path = tmp_path / "photo.jpg"
    path.write_bytes(data)
    source = {"path": path, "bytes": data, "file": io.BytesIO(data)}[opened]
    with pytest.raises(ValueError, match="^source: ") as error:
        load_image(source)  # type: ignore[arg-type]
    error.match(sentence)
    assert "\n" not in str(error.value)
    assert error.value.__context__ is None or error.value.__suppress_context__


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((3, 8, 8), np.uint8),
        np.zeros(5, np.uint8),
        np.zeros((2, 2, 2, 3), np.uint8),
        np.zeros((0, 4, 3), np.uint8),
        np.zeros((4, 4), np.int64),
        np.full((4, 4), 1.5),
        np.full((4, 4), 1.003),
        np.full((4, 4), -0.1),
        np.full((4, 4), np.nan),
        np.full((4, 4), "a"),
        np.full((4, 4), None),
        np.broadcast_to(np.uint8(0), (20_000, 20_000, 3)),
    ],
)
def test_bad_arrays(array: np.ndarray) -> None:
    with pytest.raises(ValueError, match="^source: ") as error:
        load_image(array)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("source", [None, 7, ["photo.jpg"], torch.zeros(3, 4, 4), io.StringIO("a")])
def test_wrong_type(source: object) -> None:
    with pytest.raises(TypeError, match="^source must be a path") as error:
        load_image(source)  # type: ignore[arg-type]
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["nowhere.jpg", "a" * 5000, "", "null\0byte.png"])
def test_missing(name: str) -> None:
    with pytest.raises(FileNotFoundError, match="^source: there is no file"):
        load_image(name)


def test_folder(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is a folder"):
        load_image(tmp_path)


def test_empty_pil_image() -> None:
    with pytest.raises(ValueError, match=r"is empty \(0 × 4 pixels\)"):
        load_image(Image.new("RGB", (0, 4)))


# Tensors, blending -----------------------------------------------------------------------------


def test_to_tensor_and_back() -> None:
    tensor = images.to_tensor(picture())
    assert tensor.shape == (1, 3, 6, 8)
    assert tensor.dtype == torch.float32
    assert tensor[0, 2, 4, 1] == picture()[4, 1, 2] / 255
    assert np.array_equal(images.to_image(tensor), picture())
    assert np.array_equal(images.to_image(tensor[0]), picture())


@pytest.mark.parametrize("shape", [(5, 9), (9, 5), (8, 8), (7, 50), (40, 33), (64, 91)])
@pytest.mark.parametrize(("size", "resize"), [(8, None), (8, 11), (9, 6), (6, 6)])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_to_tensor_equals_torchvision(
    shape: tuple[int, int], size: int, resize: int | None, interpolation: str
) -> None:
    """To the bit, also where the crop is larger than the picture."""
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms import functional as F

    image = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    kind = InterpolationMode(interpolation)
    wanted = F.resize(Image.fromarray(image), [resize or size], kind)
    wanted = F.pil_to_tensor(F.center_crop(wanted, [size, size]))[None].float() / 255
    found = images.to_tensor(image, size, resize=resize, interpolation=interpolation)
    assert torch.equal(found, wanted)
    assert found.stride() == wanted.stride()


def test_normalize() -> None:
    x = torch.tensor([1.0, 2.0, 4.0]).view(1, 3, 1, 1)
    assert images.normalize(x, (1, 0, 2), (1, 2, 4)).flatten().tolist() == [0, 1, 0.5]


def test_to_tensor_resizes_the_short_side_and_crops_the_centre() -> None:
    image = np.zeros((40, 120, 3), np.uint8)
    image[:, 40:80] = 255
    assert torch.equal(images.to_tensor(image, 40), torch.ones(1, 3, 40, 40))
    wide = images.to_tensor(image, 40, resize=20)
    assert wide.shape == (1, 3, 40, 40)  # padded: the resized picture is smaller than the cut
    tall = images.to_tensor(image.transpose(1, 0, 2), 20)
    assert tall.shape == (1, 3, 20, 20)
    assert (tall[:, :, 2:-2] == 1).all()
    assert images.to_tensor(picture(1, 1), 224).shape == (1, 3, 224, 224)


@pytest.mark.parametrize("shape", [(1, 20_000), (20_000, 1), (2, 9_000)])
def test_a_long_panorama_stays_small(shape: tuple[int, int]) -> None:
    image = np.full((*shape, 3), 200, np.uint8)
    assert torch.equal(images.to_tensor(image, 224), torch.full((1, 3, 224, 224), 200 / 255))


def test_to_image_clips() -> None:
    tensor = torch.tensor([-1.0, 0.5, 2.0]).view(3, 1, 1).requires_grad_()
    assert images.to_image(tensor).flatten().tolist() == [0, 128, 255]


def test_overlay() -> None:
    black, white = np.zeros((2, 2, 3), np.uint8), np.full((2, 2, 3), 255, np.uint8)
    assert (images.overlay(black, white, 0.2) == 51).all()
    assert np.array_equal(images.overlay(picture(), picture()), picture())
    with pytest.raises(ValueError, match=r"^heat has shape \(2, 2, 3\)"):
        images.overlay(picture(), white)
    with pytest.raises(ValueError, match="^alpha must lie"):
        images.overlay(black, white, 1.5)


@pytest.mark.parametrize(
    "image",
    [torch.zeros(4, 4, 3), np.zeros((4, 4, 3)), np.zeros((4, 4), np.uint8), "photo.jpg"],
)
def test_what_is_no_picture(image: object) -> None:
    with pytest.raises((ValueError, TypeError), match="^image must be"):
        images.to_tensor(image)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "tensor",
    [np.zeros((3, 4, 4)), torch.zeros(4, 4), torch.zeros(2, 3, 4, 4), torch.zeros(4, 4, 3)],
)
def test_what_is_no_tensor_of_a_picture(tensor: object) -> None:
    with pytest.raises((ValueError, TypeError), match="^tensor must be"):
        images.to_image(tensor)  # type: ignore[arg-type]
