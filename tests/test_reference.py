"""The oracle itself: small cases worked out by hand, and golden frames that must never change.

The golden inputs are made by formulas in integers, the same with every version of NumPy. Whoever changes what a
finished frame is changes these digests, and says why.
"""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import pytest
import reference
from numpy.typing import NDArray

from gpupipe.colour import Colour
from gpupipe.geometry import CropLayout, Rect

Pixels = NDArray[np.uint8]

WIDTH, HEIGHT = 64, 48
LAYOUT = CropLayout(16)  # crops of 24x24
SPEECH = (32, 16, 16)
BT601, BT709_FULL = Colour(matrix=5, range=1), Colour(matrix=1, range=2)


def predicted(blue: float, green: float, red: float) -> NDArray[np.float32]:
    """A prediction of one colour, `[3, 16, 16]`."""
    return np.broadcast_to(np.array([blue, green, red], np.float32)[:, None, None], (3, 16, 16)).copy()


def bgr24(prediction: NDArray[Any], rect: Rect) -> Pixels:
    """The prediction in a crop of 100s over a body of 7s."""
    crop, body = np.full((24, 24, 3), 100, np.uint8), np.full((HEIGHT, WIDTH, 3), 7, np.uint8)
    return reference.composite_bgr24(prediction, crop, body, rect, LAYOUT)


def test_without_resizing() -> None:
    frame = bgr24(predicted(0.5, 1.0, 0.0), Rect(12, 8, 36, 32))
    wanted = np.full((HEIGHT, WIDTH, 3), 7)
    wanted[8:32, 12:36] = 100
    wanted[12:28, 16:32] = (127, 255, 0)  # 0.5 * 255 is 127.5, and cut off
    assert np.array_equal(frame, wanted)


@pytest.mark.parametrize(
    ("value", "level"),
    [(np.nan, 0), (np.inf, 255), (-np.inf, 0), (2.0, 255), (-0.5, 0), (0.999, 254), (1 / 255, 1), (0.9999999, 254)],
)
def test_what_a_prediction_is_drawn_as(value: float, level: int) -> None:
    frame = bgr24(predicted(value, 0.0, value), Rect(12, 8, 36, 32))
    assert frame[20, 20].tolist() == [level, 0, level]


def test_outside_the_body() -> None:
    """Of a crop of 24x24 at (-10, -6) the part from its row 6 and column 10 on is seen."""
    frame = bgr24(predicted(1.0, 1.0, 1.0), Rect(-10, -6, 14, 18))
    wanted = np.full((HEIGHT, WIDTH, 3), 7)
    wanted[:18, :14] = 100
    wanted[:14, :10] = 255  # the model's part ends 4 pixels earlier
    assert np.array_equal(frame, wanted)


def test_halving_is_the_rounded_mean_of_four() -> None:
    prediction = predicted(0.0, 0.0, 0.0)
    prediction[0, 0, 0] = 1  # one of the four pixels blue, three of them green
    prediction[1, :2, :2] = [[1, 1], [1, 0]]
    frame = bgr24(prediction, Rect(20, 10, 32, 22))
    assert frame[12, 22].tolist() == [64, 191, 0]  # (255 + 2) >> 2, (765 + 2) >> 2


def test_doubling_is_bilinear() -> None:
    """3/4 and 1/4 of a pixel's 255 along each axis, in OpenCV's fixed point: 143.4, 47.8 and 15.9."""
    prediction = predicted(0.0, 0.0, 0.0)
    prediction[2, 8, 8] = 1  # pixel 12 of the crop: 24 and 25 of the rectangle
    frame = bgr24(prediction, Rect(0, 0, 48, 48))
    weights = [[16, 48, 48, 16], [48, 143, 143, 48], [48, 143, 143, 48], [16, 48, 48, 16]]
    assert frame[23:27, 23:27, 2].tolist() == weights


@pytest.mark.parametrize(
    ("colour", "bgr", "luma", "cb", "cr"),
    [
        (BT601, (1, 1, 1), 235, 128, 128),
        (BT601, (0, 0, 0), 16, 128, 128),
        (BT601, (1, 0, 0), 41, 240, 110),  # 16 + 0.114 * 219; 128 - 112 * 0.114 / 0.701
        (Colour(), (1, 0, 0), 41, 240, 110),  # unspecified is BT.601
        (BT709_FULL, (1, 1, 1), 255, 128, 128),
        (BT709_FULL, (0, 0, 1), 54, 99, 255),  # 0.2126 * 255; 128 - 127.5 * 0.2126 / 0.9278; 255.5 is held to 255
    ],
)
def test_nv12_by_hand(colour: Colour, bgr: tuple[float, float, float], luma: int, cb: int, cr: int) -> None:
    """One pixel, at the right of a 2×2 block, over a body of luma 30, Cb 100 and Cr 50."""
    body = np.full((HEIGHT * 3 // 2, WIDTH), 30, np.uint8)
    body[HEIGHT:, 0::2], body[HEIGHT:, 1::2] = 100, 50
    crop = np.full((24, 24, 3), 100, np.uint8)
    frame = reference.composite_nv12(predicted(*bgr), crop, body, Rect(33, 16, 34, 17), LAYOUT, colour)
    wanted = body.copy()
    wanted[16, 33] = luma
    wanted[HEIGHT + 8, 32:34] = (cb + 300 + 2) >> 2, (cr + 150 + 2) >> 2
    assert np.array_equal(frame, wanted)


def test_a_whole_block_of_nv12_takes_the_crops_chroma() -> None:
    body, crop = np.zeros((HEIGHT * 3 // 2, WIDTH), np.uint8), np.zeros((24, 24, 3), np.uint8)
    frame = reference.composite_nv12(predicted(1, 0, 0), crop, body, Rect(32, 16, 56, 40), LAYOUT, BT601)
    assert set(frame[20:36, 36:52].reshape(-1).tolist()) == {41}
    assert set(map(tuple, frame[HEIGHT + 10 : HEIGHT + 18, 36:52].reshape(-1, 2).tolist())) == {(240, 110)}


@pytest.mark.parametrize(("size", "width", "height"), [(320, 310, 305), (160, 150, 145)])
def test_the_models_inputs_by_hand(size: int, width: int, height: int) -> None:
    """The published masks: x 5, y 5, and these sizes."""
    layout = CropLayout(size)
    visual = reference.visual_input(np.full((size + 8, size + 8, 3), (51, 102, 255), np.uint8), layout)
    assert visual.shape == (6, size, size)
    assert visual.dtype == np.float32
    for plane, level in enumerate((0.2, 0.4, 1.0)):
        assert np.all(visual[plane] == np.float32(level))
        masked = np.full((size, size), level, np.float32)
        masked[5 : 5 + height, 5 : 5 + width] = 0
        assert np.array_equal(visual[3 + plane], masked)


def test_the_window_of_speech_by_hand() -> None:
    features = np.arange(1, 13, dtype=np.float32)[:, None].repeat(512, axis=1)
    windows = [reference.speech_window(features, frame) for frame in (0, 8, 10)]
    assert all(window.shape == SPEECH and window.dtype == np.float32 for window in windows)
    rows = [window.reshape(16, 512)[:, 0].tolist() for window in windows]
    assert rows[0] == [0, 0, 0, 0, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8]
    assert rows[1] == [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 0, 0, 0, 0]
    assert rows[2] == [3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 0, 0, 0, 0, 0, 0]


GOLDEN_INPUTS = {
    "visual": "3666c5cf78260d54d47b99673277a1b674b0ea9a358aabbb08a48b97a6bf1209",
    "speech": "23734b67dab2b9e5d3a9a8735a6fb967cae1a7952c0c1c84c79cb4be61112ed6",
    "prediction": "67593cd9087c993c32ca12c2d83dbbb8653c223be0240832c4f2f0d09aef0b1e",
}
GOLDEN = {
    Rect(12, 8, 36, 32): (  # as large as the crop
        "c3fa0e4806671f19e5192b8477cc89b104547eadb76fa09a16a97ef6ba7bfc51",
        "3f40aca5905df83bb511b082dbe56d396529466cbb80165b19869dd6ca8252e2",
    ),
    Rect(20, 10, 32, 22): (  # half as large
        "f5b6d6cab19ec44c82a7150f9293033078f9e92a7f20723510306c517aa66290",
        "0f7663ab88fe76ede6b55e0ecf7a55ba0cddc7d5df1b47c5676f3e97532e7e01",
    ),
    Rect(7, 5, 54, 44): (  # larger, at odd places, of odd size
        "2d819ae2ac3535e1139e8d19a9dac5454054dd4324720a4f9f77ca67e5ab8f0e",
        "55c8fae0238c2385be908e5f77ec294fc2b0b477c8d368ca0e2e6b2d2a64ee05",
    ),
    Rect(-9, -7, 21, 18): (  # over the left and upper edge
        "f2ebf6e9a5761b58802caeb51c6126929614edbe38ad104485c7eb05c85ec016",
        "36f5968db6aef8abeae98df977fdebe892f67c743fa59436a686c2013a78c160",
    ),
    Rect(45, 31, 75, 60): (  # over the right and lower edge
        "ed57f1b213812eddc14ff3b966452a2d5430db89b79721c636eeebc29b4f8e16",
        "8b3daa3a2e5f1ce9d63170eb45c2481fac2f2978c684c2419aba1267028b596a",
    ),
    Rect(-5, -6, 70, 61): (  # larger than the body
        "3e44c02610944ced92f15699a45b1eeb300c7cb31362267200d79462f429f0a0",
        "078d686c83f7ec1369efacc276e1888e56d632bec533838140763c6c3df59726",
    ),
    Rect(33, 17, 34, 18): (  # one pixel
        "ff6502c7943dec147fce6492bf1f1ce95c0519fa53af773b92579977ab944bd1",
        "1e7e8c859c74cd8819bae6dab357f93a7644041877fa7d30bf7f330728f5c6fe",
    ),
    Rect(11, 3, 12, 40): (  # one column
        "1d3ca47a48d6184cd1b04f984c9d2e16a5abb7d866977335a048f6d68a3735e7",
        "89277d09fbf3b5808b0744e9c96ccf026efaa969c25200a049cdc9ba6dce1b3d",
    ),
    Rect(41, 22, 43, 23): (  # pixels of two blocks
        "4aca50c8fd57b59a0cf38b144b6693de73d77523b70859eb9191c61aba33ace2",
        "c2f7ac41bef217ad7a263aeda1c5d56622f303e7d04f7b1b34f43ba720ac1c99",
    ),
    Rect(70, 10, 90, 30): (  # wholly outside
        "2c14bbd7d191dc611f42bc7f442068f891bdbc42f18c24155f70e0775a29b873",
        "cd23996e86294aac927277914a9b1c6a4229486a0c423e9f7ce986c3c7494e0f",
    ),
}
"""Of each rectangle: SHA-256 of the frame in bgr24, and of those in nv12, one colour of `COLOURS` after the other."""

COLOURS = (Colour(), BT709_FULL, Colour(matrix=9, range=1))


def noise(*shape: int, seed: int) -> Pixels:
    """Bytes without a pattern: the upper bits of a multiplicative hash of each position."""
    position = np.arange(int(np.prod(shape)), dtype=np.uint64) + np.uint64(1 + 1_000_003 * seed)
    mixed = position * np.uint64(2_654_435_761) & np.uint64(0xFFFFFFFF)
    mixed ^= mixed >> np.uint64(15)
    mixed = mixed * np.uint64(2_246_822_519) & np.uint64(0xFFFFFFFF)
    return (mixed >> np.uint64(24)).astype(np.uint8).reshape(shape)


def golden_prediction() -> NDArray[np.float32]:
    """`[3, 16, 16]`: -0.125 to 1.125 in steps of 2^-10, each multiple of 1/255, and what is no number."""
    steps = noise(3, 16, 16, seed=3).astype(np.int64) * 5 + noise(3, 16, 16, seed=4) % 6
    drawn = (steps.astype(np.float32) - np.float32(128)) / np.float32(1024)
    flat = drawn.reshape(-1)
    flat[:256] = np.arange(256, dtype=np.float32) / np.float32(255)
    flat[300:307] = np.nan, np.inf, -np.inf, -0.0, 1.0, 3e38, -1e-30
    return drawn


def digest(*arrays: NDArray[Any]) -> str:
    return hashlib.sha256(b"".join(np.ascontiguousarray(array).tobytes() for array in arrays)).hexdigest()


def golden_frames(rect: Rect) -> tuple[Pixels, list[Pixels]]:
    """The golden frame of a rectangle in bgr24, and those in nv12."""
    prediction, crop = golden_prediction(), noise(24, 24, 3, seed=1)
    body, planes = noise(HEIGHT, WIDTH, 3, seed=2), noise(HEIGHT * 3 // 2, WIDTH, seed=2)
    return reference.composite_bgr24(prediction, crop, body, rect, LAYOUT), [
        reference.composite_nv12(prediction, crop, planes, rect, LAYOUT, colour) for colour in COLOURS
    ]


@pytest.mark.parametrize("rect", GOLDEN)
def test_golden_frames(rect: Rect) -> None:
    frame, planes = golden_frames(rect)
    assert frame.shape == (HEIGHT, WIDTH, 3)
    assert all(each.shape == (HEIGHT * 3 // 2, WIDTH) for each in planes)
    assert {each.dtype for each in (frame, *planes)} == {np.dtype(np.uint8)}
    assert (digest(frame), digest(*planes)) == GOLDEN[rect]


def test_golden_inputs() -> None:
    features = noise(20, 512, seed=6).astype(np.float32) / np.float32(64)
    windows = [reference.speech_window(features, frame) for frame in (0, 7, 15, 25, 40)]
    assert digest(golden_prediction()) == GOLDEN_INPUTS["prediction"]
    assert digest(reference.visual_input(noise(24, 24, 3, seed=5), LAYOUT)) == GOLDEN_INPUTS["visual"]
    assert digest(*windows) == GOLDEN_INPUTS["speech"]
