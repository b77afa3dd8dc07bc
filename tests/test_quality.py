"""Measures of quality, against other implementations of their formulas."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage

from gpupipe.geometry import CropLayout, Rect
from gpupipe.model import quality
from gpupipe.model.quality import Quality, compare, drawn, frames_quality, mouth_region, psnr, ssim


def pictures(seed: int, height: int = 70, width: int = 90) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    random = np.random.default_rng(seed)
    smooth = ndimage.gaussian_filter(random.uniform(0, 255, (height, width, 3)), (3, 3, 0)) * 4 % 256
    noisy = smooth + random.normal(0, 8, smooth.shape)
    return smooth.astype(np.uint8), noisy.clip(0, 255).astype(np.uint8)


def ssim_reference(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> float:
    """SSIM as scikit-image computes it with `gaussian_weights`, but over the whole picture: SciPy's Gaussian, 11 wide,
    of edges repeated."""
    luma = [picture.astype(np.float64) @ np.array([0.114, 0.587, 0.299]) for picture in (one, other)]

    def mean(values: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.asarray(ndimage.gaussian_filter(values, 1.5, mode="nearest", truncate=3.5))

    a, b = luma
    ma, mb = mean(a), mean(b)
    va, vb, vab = mean(a * a) - ma * ma, mean(b * b) - mb * mb, mean(a * b) - ma * mb
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    return float((((2 * ma * mb + c1) * (2 * vab + c2)) / ((ma**2 + mb**2 + c1) * (va + vb + c2))).mean())


@pytest.mark.parametrize("seed", range(3))
def test_ssim_is_the_papers(seed: int) -> None:
    one, other = pictures(seed)
    assert ssim(one, other) == pytest.approx(ssim_reference(one, other), abs=1e-10)
    assert ssim(one, one) == 1


def test_ssim_of_a_small_difference_is_computed_where_it_is() -> None:
    one, _ = pictures(3)
    for box in (np.s_[30:40, 50:52], np.s_[:4, :7], np.s_[66:, 80:], np.s_[:, 45:46]):
        other = one.copy()
        other[box] ^= 85
        assert ssim(one, other) == pytest.approx(ssim_reference(one, other), abs=1e-10)


def test_psnr() -> None:
    one, other = pictures(4)
    error = np.mean((one.astype(np.float64) - other.astype(np.float64)) ** 2)
    assert psnr(one, other) == pytest.approx(20 * np.log10(255 / np.sqrt(error)))
    assert psnr(one, one) == 100
    assert psnr(np.zeros((2, 2), np.uint8), np.full((2, 2), 255, np.uint8)) == 0


def test_what_is_drawn_is_what_is_pasted() -> None:
    values = np.array([-1, 0, 0.5, 0.999999, 1, 2, np.nan, np.inf, -np.inf, 127.6 / 255], np.float32)
    assert drawn(values).tolist() == [0, 0, 127, 254, 255, 255, 0, 255, 0, 127]


def test_the_mouth_is_where_the_speech_changes_the_picture() -> None:
    layout = CropLayout(160)
    random = np.random.default_rng(5)
    wanted = random.random((4, 3, 160, 160), np.float32)
    other = wanted.copy()
    other[:, :, 90:120, 40:101] += random.random((4, 3, 30, 61), np.float32) + 0.5
    found = mouth_region(layout, wanted, other)
    assert 88 <= found.y1 <= 92
    assert 118 <= found.y2 <= 121
    assert 38 <= found.x1 <= 42
    assert 98 <= found.x2 <= 102
    assert mouth_region(layout, wanted, wanted) == layout.mask
    other = wanted.copy()
    other[0, 0, 159, 3] = 3  # at the edge: the region stays inside, and is large enough to look at
    found = mouth_region(layout, wanted, other)
    assert (found.width, found.height) == (quality.LEAST_SIDE, quality.LEAST_SIDE)
    assert found == found.within(160, 160)
    assert found.x1 <= 3 < found.x2
    assert found.y1 <= 159 < found.y2


def test_predictions_are_compared_in_the_region_and_as_a_whole() -> None:
    wanted = np.full((3, 3, 64, 64), 0.5, np.float32)
    found = wanted.copy()
    found[1, :, 20:40, 20:40] += 10 / 255  # ten levels in a quarter of the region
    found[2, 0, 0, 0] = 1
    result = compare(wanted, found, Rect(10, 10, 50, 50))
    assert result.mouth_psnr_worst == pytest.approx(10 * np.log10(255**2 / 25))
    assert result.mouth_psnr_mean == pytest.approx((200 + result.mouth_psnr_worst) / 3)
    assert (result.worst, result.largest, result.frames) == (1, 128, 3)
    assert result.changed == pytest.approx((400 + 1) / 3 / 64**2)
    assert not result.passes or result.mouth_psnr_worst >= 32
    assert Quality.from_dict(result.as_dict()) == result


@pytest.mark.parametrize(("mean", "worst", "passes"), [(35, 32, True), (34.9, 34, False), (50, 31.9, False)])
def test_the_floor(mean: float, worst: float, passes: bool) -> None:
    found = compare(np.zeros((1, 3, 32, 32), np.float32), np.zeros((1, 3, 32, 32), np.float32), Rect(0, 0, 32, 32))
    values = found.as_dict() | {"mouth_psnr_mean": mean, "mouth_psnr_worst": worst}
    assert Quality.from_dict(values).passes is passes


def test_finished_frames_are_compared() -> None:
    one, other = pictures(6)
    result = frames_quality([one, one], [one, other])
    assert result["psnr_worst"] == psnr(one, other)
    assert result["ssim_mean"] == pytest.approx((1 + ssim(one, other)) / 2)
    assert (result["worst"], result["frames"]) == (1, 2)
