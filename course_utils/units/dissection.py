"""Network dissection: what a unit's map covers, compared with the known mask of every concept."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from course_utils.contract import (
    check_count,
    check_generator,
    check_number,
    check_unit,
    check_whole,
)
from course_utils.networks import Classifier
from course_utils.units.features import batches, feature_maps, units_of
from course_utils.units.labels import Mask, concept_masks
from course_utils.worlds.photographs import Photograph, as_prepared
from course_utils.worlds.scenes import Scene, Scenes

DETECTOR = 0.04  # the paper calls a unit with an IoU above it a detector
RESAMPLES = 1000  # for the interval
FEWEST = 2  # pictures that must show a concept

Labelled = Scenes | Sequence[Scene | Photograph]
Numbers = NDArray[np.float64]


class Dissection(NamedTuple):
    """How well each of C units covers each of K concepts, with a 95 % confidence interval."""

    concepts: tuple[str, ...]
    iou: Numbers  # (C, K)
    low: Numbers  # (C, K)
    high: Numbers  # (C, K)
    thresholds: Numbers  # (C,) where each unit's map is cut
    areas: Numbers  # (K,) the share of all pixels that show the concept

    def of(self, unit: int, k: int = 5) -> list[tuple[str, float, float, float]]:
        """The k concepts that a unit covers best: (name, IoU, low, high)."""
        check_whole("unit", unit)
        if not 0 <= unit < len(self.iou):
            raise ValueError(f"unit: there is no unit {unit}; choose 0 to {len(self.iou) - 1}")
        check_count("k", k)
        best = np.argsort(-self.iou[unit], kind="stable")[:k]
        rows = ((self.concepts[c], *(a[unit, c] for a in self[1:4])) for c in best)
        return [(name, float(a), float(low), float(high)) for name, a, low, high in rows]

    def detectors(self, least: float = DETECTOR) -> dict[int, str]:
        """Unit → its best concept, for those units whose IoU with it is above `least`.

        0.04 is the paper's choice, for its pictures and its concepts. What chance gives depends on
        the quantile and on the concepts' areas; a control (`shuffled`, or a network that nobody
        has trained) says how many units pass without knowing anything.
        """
        check_number("least", least)
        best = np.nan_to_num(self.iou, nan=-1).argmax(1)
        return {c: self.concepts[k] for c, k in enumerate(best) if self.iou[c, k] > least}


def dissect(
    classifier: Classifier,
    layer: str,
    pictures: Labelled,
    *,
    quantile: float = 0.005,
    shuffled: bool = False,
    batch_size: int = 16,
    generator: torch.Generator | None = None,
) -> Dissection:
    """Which concept each unit of a layer covers, and how well: IoU of its map and a known mask.

        IoU_kc = Σ_x |A_k(x) ∩ C_c(x)| / Σ_x |A_k(x) ∪ C_c(x)|

    A_k(x): the pixels where unit k's map, upsampled to picture x, exceeds T_k. In a share
    `quantile` of all places of all pictures the unit's own small map exceeds T_k. C_c(x): the
    pixels that show concept c (`concept_masks`). Both sums run over all pictures.

    A covers about the share q = `quantile` of all pixels, and C the share a (`areas`). So the IoU
    is at most min(q, a) / max(q, a), and about q·a / (q + a − q·a) where both are independent.

    classifier: see `models.load`. layer: one that gives maps (N, C, h, w).
    pictures: a `Scenes`, which is drawn twice, or a sequence of drawn scenes, or of photographs.
    shuffled: a control; each picture gets the masks of another one, drawn at random.
    generator: draws that, and the interval: a bootstrap's, of 1,000 sets of as many pictures, drawn
    with replacement; T_k stays. It is for a concept chosen beforehand: the best of many is also the
    luckiest. A concept that fewer than two pictures show gets NaN.
    Memory: pictures × units × concepts numbers, and the maps of one picture in full size.

    Raises ValueError or TypeError naming the argument.
    Source: Bau, Zhou, Khosla, Oliva, Torralba, Network Dissection: Quantifying Interpretability of
    Deep Visual Representations, 2017. There A is where the map is at least T_k: of a ReLU that is
    silent in more than 1 − q of all places, so that T_k = 0, A would be everything.
    """
    _check(classifier, pictures, quantile)
    seed = int(torch.randint(2**31, (), generator=check_generator(generator)))
    draws = np.random.default_rng(seed)
    order = draws.permutation(len(pictures)) if shuffled else np.arange(len(pictures))
    thresholds = _thresholds(classifier, layer, pictures, quantile, batch_size)
    covered = np.zeros((len(pictures), len(thresholds)), np.float32)  # pixels of each unit
    shown: list[dict[str, int]] = []  # of each concept
    common: list[dict[str, NDArray[np.float32]]] = []  # of both
    for number, (image, maps) in enumerate(_maps(classifier, layer, pictures, batch_size)):
        masks = _masks(_picture(pictures, int(order[number])), classifier, image)
        shown.append({name: int(mask.sum()) for name, mask in masks.items()})
        # Between places that do not exceed T nothing does; few maps are left to be upsampled.
        some = maps.flatten(1).amax(1) > thresholds
        above = _above(maps[some], thresholds[some], image)
        covered[number, some] = above.sum(1).numpy()
        overlaps = np.zeros((len(masks), len(maps)), np.float32)
        stack = torch.from_numpy(np.stack([*masks.values()])).flatten(1)
        overlaps[:, some] = (stack.float() @ above.T).numpy()
        common.append(dict(zip(masks, overlaps, strict=True)))
    names = tuple(sorted(frozenset().union(*shown)))
    nothing = np.zeros(len(thresholds), np.float32)
    areas = np.array([[row.get(name, 0) for name in names] for row in shown], np.float32)
    both = np.array([[row.get(name, nothing) for name in names] for row in common])  # (N, K, C)
    iou, low, high = _iou(both, covered, areas, draws)
    share = areas.mean(0) / image[0].numel()
    return Dissection(names, iou, low, high, thresholds.double().numpy(), share.astype(float))


def covers(
    classifier: Classifier, layer: str, unit: int, picture: Scene | Photograph, threshold: float
) -> Mask:
    """The pixels (H, W) where a unit's upsampled map exceeds a threshold: A_k(x) of `dissect`.

    (H, W) is what the model gets of the picture. Arguments and errors as `dissect`.
    """
    _check(classifier, [picture], 0.5)
    check_number("threshold", threshold, -np.inf)
    image, maps = next(_maps(classifier, layer, [picture], 1))
    check_unit(layer, unit, len(maps))
    above = _above(maps[unit, None], torch.tensor([threshold], dtype=maps.dtype), image)
    return above.view(image.shape[1:]).bool().numpy()


def _check(classifier: Any, pictures: Any, quantile: Any) -> None:
    if not isinstance(classifier, Classifier):
        raise TypeError(f"classifier must be a Classifier, not {type(classifier).__name__}")
    if not isinstance(pictures, Scenes):
        if not isinstance(pictures, Sequence) or isinstance(pictures, Scene | Photograph | str):
            raise TypeError(
                "pictures must be a Scenes, or a sequence of drawn scenes or of photographs, not "
                f"{type(pictures).__name__}"
            )
        if not pictures:
            raise ValueError("pictures must not be empty")
        for number, one in enumerate(pictures):
            if not isinstance(one, Scene | Photograph):
                raise TypeError(
                    f"pictures[{number}] must be a drawn scene or a photograph, whose masks are "
                    f"known, not {type(one).__name__}"
                )
    check_number("quantile", quantile)
    if not 0 < quantile < 1:
        raise ValueError(f"quantile is {quantile}; it must lie between 0 and 1")


def _picture(pictures: Labelled, number: int) -> Scene | Photograph:
    return pictures.scene(number) if isinstance(pictures, Scenes) else pictures[number]


def _maps(
    classifier: Classifier, layer: str, pictures: Labelled, batch_size: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Picture by picture: what the model gets (3, H, W), and a layer's maps (C, h, w) of it."""
    images = pictures if isinstance(pictures, Scenes) else [one.image for one in pictures]
    for batch in batches(classifier.inputs(images), batch_size):
        maps = units_of(layer, feature_maps(classifier.model, batch, [layer]))
        if maps.ndim != 4:
            raise ValueError(
                f"layer: maps (N, C, h, w) are needed, but {layer!r} gives {tuple(maps.shape)}; "
                "choose a convolutional layer"
            )
        exact = torch.promote_types(maps.dtype, torch.float32)  # half numbers are too coarse
        yield from zip(batch.cpu(), maps.cpu().to(exact), strict=True)


def _thresholds(
    classifier: Classifier, layer: str, pictures: Labelled, quantile: float, batch_size: int
) -> Tensor:
    """T_k (C,): exactly a share `quantile` of a unit's activations is above it, but for ties."""
    highest: Tensor | None = None
    for _, maps in _maps(classifier, layer, pictures, batch_size):
        values = maps.flatten(1)
        kept = int(quantile * len(pictures) * values.shape[1]) + 1
        # Of all that was seen only what may still be above the threshold is kept.
        highest = values if highest is None else torch.cat([highest, values], 1)
        highest = highest.topk(min(kept, highest.shape[1]), sorted=True).values
    assert highest is not None  # there are pictures
    return highest[:, -1]


def _above(maps: Tensor, thresholds: Tensor, image: Tensor) -> Tensor:
    """Where maps (C, h, w), upsampled to the image, exceed their thresholds: (C, H · W), 0 or 1."""
    wide = F.interpolate(maps[:, None], image.shape[1:], mode="bilinear", align_corners=False)
    return (wide.flatten(1) > thresholds[:, None]).float()


def _masks(picture: Scene | Photograph, classifier: Classifier, image: Tensor) -> dict[str, Mask]:
    """The concepts' masks, resized and cut as the picture is for the model."""
    masks = concept_masks(picture)
    if picture.image.shape[:2] == image.shape[1:] and classifier.resize in (None, classifier.size):
        return masks
    return {name: as_prepared(mask, classifier) for name, mask in masks.items()}


def _iou(
    both: NDArray[np.float32],
    covered: NDArray[np.float32],
    areas: NDArray[np.float32],
    generator: np.random.Generator,
) -> tuple[Numbers, Numbers, Numbers]:
    """IoU (C, K) and its interval, from the pixels (N, K, C), (N, C), (N, K) of each picture."""
    n, k, c = both.shape
    # How often each picture is in each set; the first set is the pictures themselves.
    times = generator.multinomial(n, [1 / n] * n, size=RESAMPLES)
    times = np.concatenate([np.ones((1, n)), times]).astype(np.float32)
    iou, low, high = np.full((3, c, k), np.nan)
    shown = (areas > 0).sum(0) >= FEWEST
    for unit in range(c):  # one by one: all at once would be 1,000 tables
        inside = times @ both[:, shown, unit]
        union = times @ (covered[:, unit, None] + areas[:, shown]) - inside
        found = inside / np.maximum(union, 1)  # a set without the concept has an IoU of 0
        iou[unit, shown] = found[0]
        low[unit, shown], high[unit, shown] = np.quantile(found[1:], (0.025, 0.975), axis=0)
    return iou, low, high
