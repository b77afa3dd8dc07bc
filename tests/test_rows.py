"""`rows`: what a frame hears at any rate, and rows that grow while others read them."""

from __future__ import annotations

import threading
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import reference
import small
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from gpupipe.geometry import SPEECH_BEFORE, SPEECH_WIDTH, speech_position
from gpupipe.speech.rows import KEPT, SpeechRows

RATES = [Fraction(24), Fraction(30_000, 1001), Fraction(30), Fraction(50), Fraction(25), Fraction(25, 2)]
TOLERANCE = 3e-5
"""Rows are from 0 to 1: 1/65536 for the rest of a row in 16 bits, and float32's roundings."""


def window(rows: SpeechRows, frame: int, fps: Fraction, dtype: type = np.float32) -> NDArray[np.float32]:
    out: NDArray[Any] = np.full((16, 512), -1, dtype)
    rows.window(*speech_position(frame, fps), out)
    return out


def reference_window(features: NDArray[np.float32], frame: int, fps: Fraction) -> NDArray[np.float64]:
    """Features are lines between rows that are 1/25 s apart, and zeros outside; 16 points of them, 1/25 s apart."""
    padded = np.pad(features.astype(np.float64), ((1000, 1000), (0, 0)))
    points = []
    for k in range(16):
        time = frame / fps + Fraction(k - 8, 25)
        position = time * 25 + 1000
        before = position.numerator // position.denominator
        rest = float(position - before)
        points.append((1 - rest) * padded[before] + rest * padded[before + 1])
    return np.stack(points)


@pytest.mark.parametrize("fps", RATES)
@pytest.mark.parametrize("count", [1, 2, 23, 400])
def test_windows_are_a_25th_of_a_second_apart_at_any_rate(fps: Fraction, count: int) -> None:
    features = small.features(count)
    rows = SpeechRows(features)
    for frame in {*range(40), *range(int(count * fps / 25) - 12, int(count * fps / 25) + 30)}:
        if frame >= 0:
            got = window(rows, frame, fps)
            np.testing.assert_allclose(got, reference_window(features, frame, fps), atol=TOLERANCE, rtol=0)


def test_at_25_frames_a_second_the_rows_themselves() -> None:
    features = small.features(30)
    for frame in range(60):
        wanted = reference.speech_window(features, frame).reshape(16, 512)
        np.testing.assert_array_equal(window(SpeechRows(features), frame, Fraction(25)), wanted)
        half = window(SpeechRows(features), frame, Fraction(25), np.float16)
        np.testing.assert_array_equal(half, wanted.astype(np.float16))
    # At 50 every other frame is one of 25, exactly, however far along.
    long = SpeechRows(small.features(3000))
    for frame in (0, 1, 777, 2999, 3003):
        np.testing.assert_array_equal(
            window(long, 2 * frame, Fraction(50)), reference.speech_window(long.view(0, 3000), frame).reshape(16, 512)
        )


def test_a_float16_window_is_the_float32_one_rounded() -> None:
    rows = SpeechRows(small.features(30))
    for frame in range(40):
        wanted = window(rows, frame, Fraction(30)).astype(np.float16)
        np.testing.assert_array_equal(window(rows, frame, Fraction(30), np.float16), wanted)


@settings(max_examples=40, deadline=None)
@given(
    sizes=st.lists(st.integers(0, 300), max_size=6),
    fps=st.sampled_from(RATES),
)
def test_growing_rows_give_the_windows_of_the_whole(sizes: list[int], fps: Fraction) -> None:
    """A window is ready as soon as its rows are there, and the same then as at the end."""
    total = sum(sizes)
    features = small.features(max(1, total))[:total]
    whole, grown, at, frame = SpeechRows(features), SpeechRows(), 0, 0
    for size in sizes:
        grown.append(features[at : at + size])
        at += size
        assert (grown.count, grown.finished) == (at, False)
        while grown.ready(*speech_position(frame, fps)):
            np.testing.assert_array_equal(window(grown, frame, fps), window(whole, frame, fps))
            frame += 1
        last = frame * Fraction(25) / fps + 7  # the last row that the next frame hears, or part of the one after
        assert last > at - 1
    grown.finish()
    for later in range(frame, frame + 30):
        assert grown.ready(*speech_position(later, fps))
        np.testing.assert_array_equal(window(grown, later, fps), window(whole, later, fps))
    np.testing.assert_array_equal(grown.view(0, total), features)


def test_who_listens_hears_of_every_change() -> None:
    rows, heard = SpeechRows(), list[tuple[int, bool]]()
    rows.listen(lambda: heard.append((rows.count, rows.finished)))
    rows.append(small.features(3))
    rows.append(small.features(2))
    rows.finish()
    assert heard == [(3, False), (5, False), (5, True)]
    with pytest.raises(ValueError, match="finished"):
        rows.append(small.features(1))


def test_rows_of_another_kind_are_refused() -> None:
    rows = SpeechRows()
    for wrong in (np.zeros((2, 511), np.float32), np.zeros(512, np.float32), np.zeros((2, 512))):
        with pytest.raises(ValueError, match=r"rows must be float32 \[n, 512\] \(got "):
            rows.append(wrong)  # type: ignore[arg-type]
    assert rows.count == 0


def test_one_thread_appends_while_another_reads() -> None:
    features, rows = small.features(4000), SpeechRows()

    def append() -> None:
        for at in range(0, len(features), 7):
            rows.append(features[at : at + 7])
        rows.finish()

    thread = threading.Thread(target=append)
    thread.start()
    frame = 0
    while frame < len(features):
        if rows.ready(frame, 0):
            wanted = reference.speech_window(features, frame).reshape(16, 512)
            np.testing.assert_array_equal(window(rows, frame, Fraction(25)), wanted)
            frame += 1
    thread.join()


def test_a_speech_without_end_forgets_what_has_been_drawn() -> None:
    """And what is still to be drawn of it reads the same."""
    said = np.arange(4000, dtype=np.float32)[:, None] + np.zeros(SPEECH_WIDTH, np.float32)
    kept, growing = SpeechRows(said), SpeechRows()
    out, other = np.empty((16, SPEECH_WIDTH), np.float32), np.empty((16, SPEECH_WIDTH), np.float32)
    for start in range(0, len(said), 50):
        growing.append(said[start : start + 50])
        row = max(0, start - KEPT)
        for each in (row, max(0, row - KEPT - 50 + SPEECH_BEFORE)):
            growing.window(each, 7, out)
            kept.window(each, 7, other)
            assert np.array_equal(out, other)
        growing.drawn(row)
    assert growing.count == len(said)
    assert len(growing._kept[1]) < 1000
