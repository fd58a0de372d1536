"""Pictures for people (height, width, 3) in uint8, and the way to tensors and back."""

import io
import os
import warnings
from collections.abc import Sequence
from functools import cache
from typing import Any, BinaryIO

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

MEGAPIXELS = 120  # a larger photo could fill the memory of a small machine
# No format that Pillow hands to another program (EPS to Ghostscript).
FORMATS = (
    "JPEG", "MPO", "HEIF", "PNG", "GIF", "TIFF", "BMP", "WEBP", "AVIF", "PPM", "ICO", "JPEG2000",
)  # fmt: skip

Source = (
    str | os.PathLike[str] | bytes | bytearray | memoryview | BinaryIO | Image.Image | np.ndarray
)


def load_image(source: Source) -> np.ndarray:
    """Any photo as a (height, width, 3) uint8 array: upright, its size unchanged, on white.

    source: a path, the bytes of a file, an open file, a PIL image, or an array (H, W), (H, W, 3) or
    (H, W, 4) in uint8, uint16 or floats from 0 to 1. The first frame of an animation is taken. A
    picture of 32-bit integers is 8 bits deep if none is above 255, else 16.

    Raises ValueError (not a picture, damaged, above 120 megapixels), TypeError (none of the kinds
    above) or FileNotFoundError, each with one sentence.

    >>> images.load_image(np.zeros((2, 5))).shape  # grey, 2 high and 5 wide
    (2, 5, 3)
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns about odd files that it reads well
        if isinstance(source, np.ndarray):
            return _on_white(_from_array(source))
        if isinstance(source, Image.Image):
            return _decode(source, "this PIL image")
        file, name = _file(source)
        try:
            _know_all_formats()  # and so fills Image.OPEN: not every build of Pillow has each
            image = Image.open(file, formats=[kind for kind in FORMATS if kind in Image.OPEN])
        except Image.DecompressionBombError:
            raise _too_large(name) from None
        except Exception:
            raise ValueError(
                f"source: {name} is not a picture that can be read; JPEG, HEIC, PNG, GIF, "
                "TIFF, BMP and WebP files are"
            ) from None
        with image:
            return _decode(image, name)


@cache
def _know_all_formats() -> None:
    """Pillow's own formats, and HEIF, in which iPhones store photos."""
    import pi_heif

    Image.init()
    pi_heif.register_heif_opener()


def _file(source: object) -> tuple[Any, str]:
    """What Pillow opens, and the name it has in an error."""
    if isinstance(source, (str, os.PathLike)):
        path = os.fspath(source)
        if os.path.isdir(path):
            raise ValueError(f"source: {path!r} is a folder; give the path of a picture")
        if not os.path.exists(path):
            raise FileNotFoundError(f"source: there is no file {path!r}")
        return path, repr(path)
    if isinstance(source, (bytes, bytearray, memoryview)):
        return io.BytesIO(source), f"what was given ({len(source)} bytes)"
    if hasattr(source, "read") and not isinstance(source, io.TextIOBase):
        return source, "the open file"
    kind = "a file opened as text" if isinstance(source, io.TextIOBase) else type(source).__name__
    raise TypeError(
        "source must be a path, bytes, a file opened in mode 'rb', a PIL image or a NumPy array, "
        f"not {kind}"
    )


def _decode(image: Image.Image, name: str) -> np.ndarray:
    if image.width * image.height > MEGAPIXELS * 1_000_000:
        raise _too_large(name, f" ({image.width} × {image.height})")
    if not image.width * image.height:
        raise ValueError(f"source: {name} is empty ({image.width} × {image.height} pixels)")
    try:
        image.load()
        return _on_white(_upright(image))
    except Exception as error:
        raise ValueError(
            f"source: {name} is damaged or of an unusual kind and cannot be decoded ({error})"
        ) from None


def _too_large(name: str, size: str = "") -> ValueError:
    return ValueError(
        f"source: {name} has more than {MEGAPIXELS} megapixels{size}; make it smaller first"
    )


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # a broken EXIF block says nothing about the pixels
        return image


def _on_white(image: Image.Image) -> np.ndarray:
    """RGB pixels: wide values scaled to 8 bits, transparent ones on white."""
    if image.mode.startswith("I") or image.mode == "F":
        image = _narrow(image)
    clear = image.info.get("transparency")
    if image.mode == "RGB" and isinstance(clear, tuple) and max(clear) > 255:
        # Of 16-bit colours Pillow keeps the upper 8 bits, but all of the transparent one.
        image = image.copy()
        image.info["transparency"] = tuple(value >> 8 for value in clear)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return np.array(image.convert("RGB"))


def _narrow(image: Image.Image) -> Image.Image:
    """Pillow's 16-bit, 32-bit and float modes in 8 bits; the value that is transparent stays so."""
    pixels = np.asarray(image)
    clear = pixels == image.info.get("transparency")
    if pixels.dtype.kind != "f":
        if pixels.min() < 0 or pixels.max() > 65535:
            raise ValueError(f"values from {pixels.min()} to {pixels.max()} do not fit 16 bits")
        # Nothing says how deep 32-bit integers are; `Image.convert` leaves grey from 0 to 255.
        eight = image.mode == "I" and pixels.max() <= 255
        pixels = pixels.astype(np.uint8 if eight else np.uint16)
    narrow = _from_array(pixels)
    if clear.any():
        narrow.putalpha(Image.fromarray(np.where(clear, 0, 255).astype(np.uint8)))
    return narrow


def _from_array(array: np.ndarray) -> Image.Image:
    """An array in uint8, bool, uint16 (scaled) or float (0 to 1) as a PIL image."""
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (3, 4)):
        raise ValueError(
            f"source: the array has shape {array.shape}; a picture is (height, width), "
            "(height, width, 3) or (height, width, 4)"
        )
    if not array.size:
        raise ValueError(f"source: the array is empty, its shape is {array.shape}")
    if array.shape[0] * array.shape[1] > MEGAPIXELS * 1_000_000:
        raise _too_large("the array", f" (its shape is {array.shape})")
    array = array.astype(array.dtype.newbyteorder("="), copy=False)  # files may be big-endian
    if array.dtype == np.uint16:
        array = array / 65535
    elif array.dtype == bool:
        array = array.astype(float)
    if array.dtype.kind == "f":
        levels = np.rint(array * 255)  # and so forgives what lies outside by a rounding error
        if not (levels.min() >= 0 and levels.max() <= 255):  # false for NaN too
            raise ValueError(
                f"source: floats must lie in [0, 1] but reach from {array.min():.4g} to "
                f"{array.max():.4g}; to_image turns a model's tensor into a picture"
            )
        array = levels.astype(np.uint8)
    if array.dtype != np.uint8:
        raise ValueError(
            f"source: the array holds {array.dtype}; use uint8, uint16, or floats from 0 to 1"
        )
    return Image.fromarray(np.ascontiguousarray(array))


def to_tensor(
    image: np.ndarray,
    size: int | None = None,
    *,
    resize: int | None = None,
    interpolation: str = "bilinear",
) -> Tensor:
    """A picture (H, W, 3) uint8 as a (1, 3, H, W) float32 tensor from 0 to 1.

    size: the short side is resized to `resize` (None: to `size`), then the centre size × size is
    cut out.

    >>> images.to_tensor(np.array([[[255, 51, 0]]], np.uint8)).flatten()
    tensor([1.0000, 0.2000, 0.0000])
    """
    _check_picture("image", image)
    picture = Image.fromarray(np.ascontiguousarray(image))
    if size is not None:
        # A very long panorama, resized whole, could fill the memory; only its centre is used.
        reach = 8 * min(picture.size)
        if max(picture.size) > reach:
            picture = _centre(picture, min(reach, picture.width), min(reach, picture.height))
        short, long = resize or size, int((resize or size) * max(picture.size) / min(picture.size))
        shape = (short, long) if picture.width <= picture.height else (long, short)
        if picture.size != shape:
            picture = picture.resize(shape, Image.Resampling[interpolation.upper()])
        picture = _centre(picture, size, size)
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1).unsqueeze(0).float() / 255


def _centre(picture: Image.Image, width: int, height: int) -> Image.Image:
    """The middle of a picture; black where it reaches beyond."""
    left, top = (
        round((have - want) / 2) if have > want else -((want - have) // 2)
        for have, want in ((picture.width, width), (picture.height, height))
    )
    return picture.crop((left, top, left + width, top + height))


def normalize(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """(images − mean) / std, for each channel of (N, C, H, W).

    >>> black = torch.zeros(1, 3, 1, 1)
    >>> images.normalize(black, mean=[0.5, 0.5, 0.5], std=[0.25, 0.25, 0.25]).flatten()
    tensor([-2., -2., -2.])
    """
    shift, scale = (
        torch.tensor(values, dtype=images.dtype, device=images.device).view(-1, 1, 1)
        for values in (mean, std)
    )
    return (images - shift) / scale


def to_image(tensor: Tensor) -> np.ndarray:
    """A tensor (3, H, W) or (1, 3, H, W) from 0 to 1, clipped, as a (H, W, 3) uint8 picture.

    >>> images.to_image(torch.tensor([0.0, 0.2, 1.7]).view(3, 1, 1))
    array([[[  0,  51, 255]]], dtype=uint8)
    """
    if not isinstance(tensor, Tensor):
        raise TypeError(f"tensor must be a Tensor, not {type(tensor).__name__}")
    shape = tuple(tensor.shape)
    if len(shape) == 4 and shape[0] == 1:
        tensor = tensor[0]
    if tensor.ndim != 3 or tensor.shape[0] != 3:
        raise ValueError(f"tensor must be (3, H, W) or (1, 3, H, W), but its shape is {shape}")
    pixels = tensor.detach().float().clamp(0, 1).mul(255).round()
    return pixels.permute(1, 2, 0).to("cpu", torch.uint8).contiguous().numpy()


def overlay(image: np.ndarray, heat: np.ndarray, alpha: float = 0.5) -> np.ndarray:
    """The blend (1 − alpha)·image + alpha·heat of two (H, W, 3) uint8 pictures.

    >>> black, white = np.zeros((1, 1, 3), np.uint8), np.full((1, 1, 3), 255, np.uint8)
    >>> images.overlay(black, white, alpha=0.2)
    array([[[51, 51, 51]]], dtype=uint8)
    """
    _check_picture("image", image)
    _check_picture("heat", heat)
    if image.shape != heat.shape:
        raise ValueError(f"heat has shape {heat.shape} but must match image, {image.shape}")
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha must lie in [0, 1], but is {alpha}")
    return np.rint((1 - alpha) * image + alpha * heat).astype(np.uint8)


def _check_picture(argument: str, image: object) -> None:
    if not isinstance(image, np.ndarray):
        raise TypeError(
            f"{argument} must be a NumPy array (H, W, 3) in uint8, not {type(image).__name__}; "
            "load_image reads files, to_image turns tensors into pictures"
        )
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
        raise ValueError(
            f"{argument} must be (H, W, 3) in uint8, but is {image.shape} in {image.dtype}; "
            "load_image makes one of any array or file"
        )
