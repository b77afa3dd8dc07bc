"""geometry: frame order, crop layout and resize taps, against OpenCV and definitions written out."""

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpupipe.geometry import CropLayout, Rect, frame_order, resize_taps


def walk(frames: int, sources: int, start: int) -> list[int]:
    """Ping-pong, by walking."""
    order, place, step = [], 0, 1
    for _ in range(frames + start):
        order.append(place)
        if not 0 <= place + step < sources:
            step = -step
        place += step if sources > 1 else 0
    return order[start:]


@given(st.integers(0, 200), st.integers(1, 12), st.integers(0, 11))
def test_frame_order_is_ping_pong_with_end_frames_once(frames: int, sources: int, start: int) -> None:
    start = min(start, sources - 1)
    assert frame_order(frames, sources, start).tolist() == walk(frames, sources, start)


def test_frame_order_needs_a_source() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        frame_order(1, 0)


@pytest.mark.parametrize(
    ("model_size", "crop_size", "mask"), [(320, 328, (5, 5, 310, 305)), (160, 168, (5, 5, 150, 145))]
)
def test_layout_of_both_families(model_size: int, crop_size: int, mask: tuple[int, int, int, int]) -> None:
    layout = CropLayout.of_crop(crop_size)
    assert layout.model_size == model_size
    assert layout.crop_size == crop_size
    x, y, width, height = mask
    assert layout.mask == Rect(x, y, x + width, y + height)
    # The published mask is cv2.rectangle's, which fills up to and including x + width - 1.
    drawn = np.full((model_size, model_size), 255, np.uint8)
    cv2.rectangle(drawn, (x, y, width, height), 0, -1)
    ours = np.full_like(drawn, 255)
    ours[layout.mask.y1 : layout.mask.y2, layout.mask.x1 : layout.mask.x2] = 0
    assert np.array_equal(drawn, ours)


def test_rect_within() -> None:
    assert Rect(-3, 5, 10, 100).within(8, 50) == Rect(0, 5, 8, 50)
    assert Rect(20, 5, 30, 9).within(8, 50).empty
    assert Rect(5, 5, 4, 9).empty


@given(
    st.sampled_from([168, 328]),
    st.integers(1, 700),
    st.integers(1, 700),
    st.integers(1, 3),
    st.integers(0, 2**32 - 1),
)
def test_resizing_by_taps_is_opencv_bit_for_bit(source: int, width: int, height: int, planes: int, seed: int) -> None:
    image = np.random.default_rng(seed).integers(0, 256, (source, source, planes), dtype=np.uint8)
    assert np.array_equal(by_taps(image, width, height), cv2_resize(image, width, height))


@pytest.mark.parametrize("source", [168, 328])
@pytest.mark.parametrize("halve_x", [False, True])
@pytest.mark.parametrize("halve_y", [False, True])
def test_exactly_half_is_no_special_case(source: int, halve_x: bool, halve_y: bool) -> None:
    image = np.random.default_rng(source).integers(0, 256, (source, source, 3), dtype=np.uint8)
    width, height = (source // 2 if half else source for half in (halve_x, halve_y))
    assert np.array_equal(by_taps(image, width, height), cv2_resize(image, width, height))


def cv2_resize(image: np.ndarray, width: int, height: int) -> np.ndarray:
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR).reshape(height, width, -1)


def by_taps(image: np.ndarray, width: int, height: int) -> np.ndarray:
    """The arithmetic that the kernels do."""
    x = resize_taps(image.shape[1], width, clamp_weights=True)
    y = resize_taps(image.shape[0], height, clamp_weights=False)
    pixels = image.astype(np.int32)
    row = pixels[:, x.i0] * x.w0[:, None] + pixels[:, x.i1] * x.w1[:, None]
    above, below = (row[y.i0] >> 4) * y.w0[:, None, None], (row[y.i1] >> 4) * y.w1[:, None, None]
    return (((above >> 16) + (below >> 16) + 2) >> 2).astype(np.uint8)
