"""colour: the fixed-point matrices against the standard's equations in float64, and against FFmpeg."""

import av
import numpy as np
import pytest
from reference import ycbcr

from gpupipe.colour import Colour

# (Kr, Kb) of ITU-R BT.709, BT.601 and BT.2020, by FFmpeg's number.
WEIGHTS = {1: (0.2126, 0.0722), 5: (0.299, 0.114), 6: (0.299, 0.114), 9: (0.2627, 0.0593), 2: (0.299, 0.114)}


def exact(bgr: np.ndarray, matrix: int, full: bool) -> np.ndarray:
    """ITU-T H.273's equations, unrounded."""
    kr, kb = WEIGHTS[matrix]
    b, g, r = (bgr[..., plane] / 255.0 for plane in range(3))
    y = kr * r + (1 - kr - kb) * g + kb * b
    cb, cr = (b - y) / (2 * (1 - kb)), (r - y) / (2 * (1 - kr))
    if full:
        return np.stack([255 * y, 255 * cb + 128, 255 * cr + 128], axis=-1)
    return np.stack([219 * y + 16, 224 * cb + 128, 224 * cr + 128], axis=-1)


@pytest.mark.parametrize("matrix", WEIGHTS)
@pytest.mark.parametrize("full", [False, True])
def test_fixed_point_is_within_rounding_of_the_equations(matrix: int, full: bool) -> None:
    bgr = np.random.default_rng(0).integers(0, 256, (200_000, 3), dtype=np.uint8)
    bgr[:8] = np.array(np.meshgrid([0, 255], [0, 255], [0, 255])).T.reshape(-1, 3)
    wanted = np.clip(exact(bgr.astype(np.float64), matrix, full), 0, 255)
    assert np.abs(ycbcr(bgr, Colour(matrix, 2 if full else 1)) - wanted).max() <= 0.52


@pytest.mark.parametrize("matrix", WEIGHTS)
@pytest.mark.parametrize(("range_", "black", "white"), [(0, 16, 235), (1, 16, 235), (2, 0, 255)])
def test_grey_is_exact(matrix: int, range_: int, black: int, white: int) -> None:
    grey = np.arange(256, dtype=np.uint8)
    converted = ycbcr(np.stack([grey] * 3, axis=-1), Colour(matrix, range_))
    assert (converted[0, 0], converted[-1, 0]) == (black, white)
    assert (converted[:, 1:] == 128).all()


@pytest.mark.parametrize("matrix", [1, 5])
def test_it_undoes_what_ffmpeg_does_to_show_a_frame(matrix: int) -> None:
    """A flat nv12 colour, through PyAV to bgr24 and back by our matrix, is the same colour within rounding."""
    rng = np.random.default_rng(1)
    for _ in range(30):
        bgr = rng.integers(30, 225, 3)
        sample = ycbcr(bgr.astype(np.uint8)[None], Colour(matrix, 1))[0]
        frame = np.empty((24, 16), np.uint8)
        frame[:16] = sample[0]
        frame[16:].reshape(-1, 2)[:] = sample[1:]
        picture = av.VideoFrame.from_ndarray(frame, format="nv12")
        picture.colorspace, picture.color_range = matrix, 1
        shown = picture.to_ndarray(format="bgr24")[8, 8]
        back = ycbcr(shown[None], Colour(matrix, 1))[0]
        assert np.abs(back.astype(int) - sample).max() <= 2
