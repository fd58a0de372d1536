"""Controls: maps that know nothing of the model, called as methods are. What is good beats them.

None asks for the class, so that their maps are the same for all. Noise agrees with the truth about
a scene's parts by chance alone: 0 on average, once the parts' areas do not count. Edges and centre
may agree by more, or by less, without any knowledge of the model: small parts have many edges for
each pixel, and a small part that matters as much as a large one matters more for each pixel;
objects stand in the middle, and their parts matter more than the clutter at the side.
"""

import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor


def noise(
    model: Any, images: Tensor, target: Any = None, *, generator: torch.Generator | None = None
) -> Tensor:
    """Random numbers (N, H, W) from 0 to 1, others for each image: what chance alone achieves."""
    seed = 0 if generator is None else int(torch.randint(2**31, (), generator=generator))
    return torch.stack([_noise(image, seed) for image in images])


def _noise(image: Tensor, seed: int) -> Tensor:
    content = zlib.crc32(image.detach().cpu().contiguous().numpy().tobytes())
    generator = torch.Generator().manual_seed(content + seed)
    return torch.rand(image.shape[1:], generator=generator).to(image)


def edges(model: Any, images: Tensor, target: Any = None) -> Tensor:
    """How strong the picture's own edges are (N, H, W): the slopes of all channels, added."""
    channels = images.detach().cpu().double().numpy()
    found = [sum(slope(channel) for channel in image) for image in channels]
    return torch.from_numpy(np.stack(found)).to(images)


def centre(model: Any, images: Tensor, target: Any = None) -> Tensor:
    """A round blob in the middle (N, H, W), where photographers put what they mean."""
    y, x = (torch.linspace(-2, 2, side).to(images) for side in images.shape[2:])
    blob = (-(y[:, None] ** 2 + x**2) / 2).exp()
    return blob.expand(len(images), -1, -1).clone()


def constant(model: Any, images: Tensor, target: Any = None) -> Tensor:
    """Zeros (N, H, W): all pixels are equal, so that a ranking of them has nothing but ties."""
    return torch.zeros_like(images[:, 0], dtype=torch.float32)


def grey_edges(model: Any, images: Tensor, target: Any = None) -> Tensor:
    """The edges of the grey picture (N, H, W): the slope of the mean over channels."""
    found = [slope(image.detach().cpu().double().mean(0).numpy()) for image in images]
    return torch.from_numpy(np.stack(found)).float()


def slope(plane: NDArray[np.float64]) -> NDArray[np.float64]:
    """The slope's size at each pixel (H, W): √(Sx² + Sy²) by Sobel's filters.

    >>> controls.slope(np.array([[0.0, 0.0, 1.0, 1.0]]))
    array([[0., 4., 4., 0.]])
    """
    return np.hypot(ndimage.sobel(plane, 0), ndimage.sobel(plane, 1))


# The rows of the league's table, and the rankings of ROAR's stored results. Each keeps the edges
# that it was measured with: those of all channels, or those of the grey picture.
Controls = dict[str, Callable[..., Tensor]]
LEAGUE_CONTROLS: Controls = {"noise": noise, "edges": edges, "centre": centre}
ROAR_CONTROLS: Controls = {"random": constant, "sobel": grey_edges}
