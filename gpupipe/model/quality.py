"""How far what one model draws is from what another draws, and how far it may be."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from gpupipe.geometry import CropLayout, Rect

Pictures = NDArray[np.uint8]

FLOOR_DB: Final = 35.0
"""The least mean PSNR in the mouth region."""
WORST_FLOOR_DB: Final = 32.0
"""The least PSNR in the mouth region of any frame."""

EQUAL_DB: Final = 100.0
"""The PSNR that is told of equal pictures, which have none. One level of one pixel of four million is 114 dB."""

SHARE: Final = 0.99
"""How much of what the speech changes lies in the mouth region, along each axis."""
LEAST_SIDE: Final = 16
"""Pixels that the mouth region has at least along each axis."""

_RADIUS, _SIGMA = 5, 1.5
_K1, _K2 = 0.01, 0.03
_LUMA: Final = (0.114, 0.587, 0.299)
"""Of B, G and R in the luma that SSIM compares (Rec. ITU-R BT.601-7, 2.5.1)."""


@dataclass(frozen=True)
class Quality:
    """How one model's pictures compare with another's, over frames.

    PSNR in dB, SSIM up to 1; of frames that are equal, 100 and 1.

    Attributes:
        frames: how many were compared.
        region: the mouth region, in pixels of the roi: x1, y1, x2, y2.
        mouth_psnr_mean, mouth_psnr_worst, mouth_ssim_mean, mouth_ssim_worst: in the mouth region.
        roi_psnr_mean: of all that the model draws.
        changed: the share of pixels of the roi that differ at all.
        largest: the largest difference, levels of 255.
        worst: which frame has the lowest PSNR in the mouth region.
    """

    frames: int
    region: tuple[int, int, int, int]
    mouth_psnr_mean: float
    mouth_psnr_worst: float
    mouth_ssim_mean: float
    mouth_ssim_worst: float
    roi_psnr_mean: float
    changed: float
    largest: int
    worst: int

    @property
    def passes(self) -> bool:
        """Whether it is above the floor."""
        return self.mouth_psnr_mean >= FLOOR_DB and self.mouth_psnr_worst >= WORST_FLOOR_DB

    def as_dict(self) -> dict[str, Any]:
        """The same as JSON values."""
        return asdict(self) | {"region": list(self.region), "passes": self.passes}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Quality:
        """From what `as_dict` gives."""
        kept = {name: value for name, value in values.items() if name != "passes"}
        return cls(**kept | {"region": tuple(kept["region"])})

    def summary(self) -> str:
        """For people, in part of a line."""
        return (
            f"{self.mouth_psnr_mean:.1f} dB in the mouth region, worst of {self.frames} frames "
            f"{self.mouth_psnr_worst:.1f} dB"
        )


def drawn(prediction: NDArray[np.float32]) -> Pictures:
    """The pixels that are pasted for predictions `[..., 3, S, S]`: `u8(trunc(clip(p, 0, 1)·255))`, NaN as 0."""
    clipped = np.fmin(np.fmax(prediction, np.float32(0)), np.float32(1))
    return (clipped * np.float32(255)).astype(np.uint8)


def compare(wanted: NDArray[np.float32], found: NDArray[np.float32], region: Rect) -> Quality:
    """Compare predictions.

    Args:
        wanted: float32 `[n, 3, S, S]`.
        found: likewise, of the model that is judged.
        region: the mouth region; see `mouth_region`.
    """
    inside = np.s_[:, region.y1 : region.y2, region.x1 : region.x2]
    pairs = list(zip(drawn(wanted), drawn(found), strict=True))
    mouths = [psnr(one[inside], other[inside]) for one, other in pairs]
    likeness = [ssim(one[inside].transpose(1, 2, 0), other[inside].transpose(1, 2, 0)) for one, other in pairs]
    return Quality(
        frames=len(pairs),
        region=(region.x1, region.y1, region.x2, region.y2),
        mouth_psnr_mean=float(np.mean(mouths)),
        mouth_psnr_worst=min(mouths),
        mouth_ssim_mean=float(np.mean(likeness)),
        mouth_ssim_worst=min(likeness),
        roi_psnr_mean=float(np.mean([psnr(one, other) for one, other in pairs])),
        changed=float(np.mean([(one != other).any(axis=0).mean() for one, other in pairs])),
        largest=max(largest_difference(one, other) for one, other in pairs),
        worst=int(np.argmin(mouths)),
    )


def mouth_region(layout: CropLayout, wanted: NDArray[np.float32], other: NDArray[np.float32]) -> Rect:
    """Where a model draws what it hears: the rectangle that holds 99 % of the squared change, along each axis, when
    each picture gets another's speech. Where the speech changes nothing, all that the model must draw: the mask.

    Args:
        layout: of the crops.
        wanted: predictions, float32 `[n, 3, S, S]`.
        other: with the same pictures, and other speech.
    """
    change = np.square(wanted.astype(np.float64) - other).sum(axis=(0, 1))
    if not change.any():
        return layout.mask
    (x1, x2), (y1, y2) = (_span(change.sum(axis=axis)) for axis in (0, 1))
    return Rect(x1, y1, x2, y2)


def _span(weights: NDArray[np.float64]) -> tuple[int, int]:
    """The places that hold `SHARE` of a weight, as many left out on one side as on the other."""
    below = np.cumsum(weights) / weights.sum()
    first, last = (int(np.searchsorted(below, bound)) for bound in ((1 - SHARE) / 2, (1 + SHARE) / 2))
    grow = max(0, LEAST_SIDE - (last + 1 - first))
    first = max(0, min(first - grow // 2, len(weights) - LEAST_SIDE))
    return first, min(len(weights), max(last + 1, first + LEAST_SIDE))


def psnr(one: Pictures, other: Pictures) -> float:
    """Peak signal-to-noise ratio, dB: `10 log10(255² / mean((a - b)²))` over all pixels and colours (ISO/IEC 29170-2,
    annex B); `EQUAL_DB` for equal pictures."""
    error = float(np.square(one.astype(np.int32) - other).mean())
    return min(EQUAL_DB, 10 * float(np.log10(255**2 / error))) if error else EQUAL_DB


def largest_difference(one: Pictures, other: Pictures) -> int:
    """The largest difference of any value."""
    return int(np.abs(one.astype(np.int16) - other).max(initial=0))


def ssim(one: Pictures, other: Pictures) -> float:
    """Structural similarity of luma, its mean over the picture: 1 for equal ones.

    Z. Wang, A. C. Bovik, H. R. Sheikh and E. P. Simoncelli, "Image quality assessment: from error visibility to
    structural similarity", IEEE Trans. Image Processing 13(4), 2004, equations 13 to 16: an 11 by 11 Gaussian window of
    standard deviation 1.5, K1 = 0.01, K2 = 0.03, L = 255. Where a window would leave the picture, its edge is repeated.
    Only windows that hold a difference are computed: elsewhere it is 1.

    Args:
        one, other: uint8 `[H, W, 3]` in BGR.
    """
    differs = (one != other).any(axis=2)
    if not differs.any():
        return 1.0
    reach = 2 * _RADIUS  # of what is needed around a difference: a window's pixels, and the windows that hold it
    spans = []
    for axis in (1, 0):
        seen = np.flatnonzero(differs.any(axis=axis))
        spans.append((max(0, seen[0] - reach), min(differs.shape[1 - axis], seen[-1] + reach + 1)))
    part = tuple(slice(*span) for span in spans)
    luma = np.array(_LUMA)
    a, b = (picture[part] @ luma for picture in (one, other))
    mean_a, mean_b = _blurred(a), _blurred(b)
    var_a, var_b = _blurred(a * a) - mean_a**2, _blurred(b * b) - mean_b**2
    covariance = _blurred(a * b) - mean_a * mean_b
    c1, c2 = (_K1 * 255) ** 2, (_K2 * 255) ** 2
    likeness = ((2 * mean_a * mean_b + c1) * (2 * covariance + c2)) / (
        (mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2)
    )
    # Beside the part's own borders, which only cut off equal pixels, windows are whole or the picture's own edge ones.
    return float((likeness.sum() + differs.size - likeness.size) / differs.size)


def _blurred(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """The Gaussian mean around each value, edges repeated."""
    taps = np.exp(-0.5 * (np.arange(-_RADIUS, _RADIUS + 1) / _SIGMA) ** 2)
    taps /= taps.sum()
    for axis in (0, 1):
        around = np.pad(values, [(_RADIUS, _RADIUS) if each == axis else (0, 0) for each in (0, 1)], "edge")
        count = values.shape[axis]
        values = sum(tap * around.take(range(place, place + count), axis=axis) for place, tap in enumerate(taps))
    return values


def frames_quality(wanted: Sequence[Pictures], found: Sequence[Pictures]) -> dict[str, Any]:
    """How finished frames compare: JSON values.

    Args:
        wanted, found: uint8 `[H, W, 3]` each, BGR.
    """
    pairs = list(zip(wanted, found, strict=True))
    ratios, likeness = [psnr(*pair) for pair in pairs], [ssim(*pair) for pair in pairs]
    return {
        "frames": len(pairs),
        "psnr_mean": float(np.mean(ratios)),
        "psnr_worst": min(ratios),
        "ssim_mean": float(np.mean(likeness)),
        "ssim_worst": min(likeness),
        "changed": float(np.mean([(one != other).any(axis=2).mean() for one, other in pairs])),
        "largest": max(largest_difference(*pair) for pair in pairs),
        "worst": int(np.argmin(ratios)),
    }
