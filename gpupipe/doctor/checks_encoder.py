"""Checks of video encoders: those of the GPU, and libx264, for which the same must hold."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpupipe.compose.surface import SurfaceFormat
from gpupipe.compose.table import device_shape
from gpupipe.doctor.check import Check, Found, NotPossible, Subject
from gpupipe.doctor.scenes import put
from gpupipe.errors import OptionError, reason
from gpupipe.gpu.types import DeviceArray
from gpupipe.machine import megabytes
from gpupipe.media.encode import VideoWriter
from gpupipe.media.encoders import NVENC_DELAY, QUALITY_OPTION, EncoderOptions
from gpupipe.media.join import join
from gpupipe.media.packets import video_packets
from gpupipe.media.video import read_frames
from gpupipe.render.engine import PARALLEL

NVENC = tuple(QUALITY_OPTION)
ENCODERS = ("libx264", NVENC[0])
"""Those that are tried out; the others of NVENC only have to open."""

WIDTH, HEIGHT = 480, 272
FPS = Fraction(25)
MOST_SESSIONS = 16
QUALITIES = (1, 20, 40)
SEGMENTS = (20, 1, 13)
OWN_BYTES = 1_000_000
"""The least that an encoder takes of its GPU's memory."""

SAME = 1.0
"""The mean square by which a decoded frame may differ where the encoder was given the same pixels in another way."""

Frame = NDArray[np.uint8]


def writer(subject: Subject, encoder: str, name: str, *, crf: int | None = None, **more: Any) -> VideoWriter:
    """An opened encoder, on the subject's GPU if it is one of NVENC's.

    Raises:
        NotPossible: it does not open here.
    """
    options = EncoderOptions(encoder, crf=crf, gpu=subject.gpu.index)
    path = subject.folder / f"{name}-{encoder}.mp4"
    try:
        return VideoWriter(path, width=WIDTH, height=HEIGHT, fps=FPS, pixel_format="nv12", options=options, **more)
    except OptionError as error:
        raise NotPossible(f"{encoder} does not open: {reason(error.__cause__ or error)}") from error


def pictures(count: int) -> list[Frame]:
    """Frames of nv12 that move."""
    rng = np.random.default_rng(8)
    noise = rng.integers(0, 256, (HEIGHT * 3 // 2 // 8 + count, WIDTH // 8), np.uint8)
    large = noise.repeat(8, axis=0).repeat(8, axis=1)
    return [np.ascontiguousarray(large[2 * i : 2 * i + HEIGHT * 3 // 2]) for i in range(count)]


def decoded(path: Path, count: int) -> list[Frame]:
    """The frames of a file."""
    return list(read_frames(path, "nv12", count))


def opens(encoder: str) -> Callable[[Subject], Found]:
    """A check that an encoder opens, and on the GPU that composites."""

    def check(subject: Subject) -> Found:
        gpu = subject.gpu
        before, began = gpu.free_bytes, time.perf_counter()
        opened = writer(subject, encoder, "opens")
        seconds, taken = time.perf_counter() - began, before - gpu.free_bytes
        opened.abort()
        left = before - gpu.free_bytes
        measured = f"opened in {seconds:.2f} s; takes {megabytes(taken)} of GPU {gpu.index}, leaves {megabytes(left)}"
        return Found(taken >= OWN_BYTES, measured, {"seconds": seconds, "taken_bytes": taken, "left_bytes": left})

    return check


def sessions(subject: Subject) -> Found:
    """How many encoders may be open at a time."""
    opened = 0
    with ExitStack() as stack:
        try:
            for number in range(MOST_SESSIONS):
                stack.callback(writer(subject, NVENC[0], f"session{number}").abort)
                opened += 1
        except NotPossible:
            if not opened:
                raise
    more = " or more" if opened == MOST_SESSIONS else ""
    return Found(opened >= PARALLEL, f"{opened}{more} at a time", {"sessions": opened})


def input_copied(encoder: str) -> Callable[[Subject], Found]:
    """A check that an encoder has copied a frame when `encode` returns."""

    def check(subject: Subject) -> Found:
        given = pictures(30)
        found = []
        for name, spoil in (("kept", False), ("spoilt", True)):
            buffer = np.zeros_like(given[0])
            with writer(subject, encoder, name, copies_input=True) as opened:
                for frame in given:
                    if not spoil:
                        buffer = np.zeros_like(frame)
                    buffer[...] = frame
                    opened.write(buffer)
                    if spoil:
                        buffer[...] = 255 - frame
            found.append(decoded(opened.path, len(given)))
        kept, spoilt = found
        wrong = sum(not np.array_equal(one, other) for one, other in zip(kept, spoilt, strict=True))
        measured = f"{wrong} of {len(kept)} frames differ when each is overwritten after `encode`"
        return Found(not wrong and len(kept) == len(given), measured, {"differing": wrong})

    return check


def from_gpu_memory(encoder: str) -> Callable[[Subject], Found]:
    """A check that an encoder reads frames in the GPU's memory, each before it is given back."""

    def check(subject: Subject) -> Found:
        gpu, given = subject.gpu, pictures(60)
        with writer(subject, encoder, "from-host") as opened:
            for frame in given:
                opened.write(frame)
        wanted = decoded(opened.path, len(given))
        format = SurfaceFormat("nv12", WIDTH, HEIGHT)
        free: list[DeviceArray] = []
        held = most = 0

        def encode(frame: Frame) -> None:
            nonlocal held, most
            memory = free.pop() if free else gpu.empty(device_shape(format), np.uint8)
            put(gpu, memory, frame)
            held += 1

            def read() -> None:
                nonlocal held
                held -= 1
                put(gpu, memory, 255 - frame)
                free.append(memory)

            opened.write(memory, read)
            most = max(most, held)

        with writer(subject, encoder, "from-gpu", gpu=gpu) as opened:
            for frame in given:
                encode(frame)
        found = decoded(opened.path, len(given))
        worst = max(
            float(np.square(one.astype(np.float64) - other).mean()) for one, other in zip(found, wanted, strict=True)
        )
        measured = (
            f"{len(found)} of {len(given)} frames; mean square difference at most {worst:.3f}; {most} held at most"
        )
        return Found(
            len(found) == len(given) and worst < SAME and most <= NVENC_DELAY,
            measured,
            {"frames": len(found), "mean_square_difference": worst, "held": most},
        )

    return check


def segments(encoder: str) -> Callable[[Subject], Found]:
    """A check that segments of an encoder can be joined."""

    def check(subject: Subject) -> Found:
        given, parts, alone = iter(pictures(sum(SEGMENTS))), [], []
        for number, length in enumerate(SEGMENTS):
            with writer(subject, encoder, f"part{number}") as opened:
                for _ in range(length):
                    opened.write(next(given))
            parts.append(opened.path)
            alone += decoded(opened.path, length)
        joined = subject.folder / f"joined-{encoder}.mp4"
        join(parts, joined, FPS)
        packets = video_packets(joined)
        times = [packet.decoded for packet in packets]
        rising = all(one < other for one, other in pairwise(times))
        # An MP4's first time may lie after 0; what counts is the spacing.
        shown = sorted(packet.shown for packet in packets)
        even = [time - shown[0] for time in shown] == [number / FPS for number in range(sum(SEGMENTS))]
        seams = [sum(SEGMENTS[:number]) for number in range(len(SEGMENTS))]
        keys = all(packets[seam].keyframe for seam in seams) if len(packets) == sum(SEGMENTS) else False
        same = all(np.array_equal(*pair) for pair in zip(decoded(joined, sum(SEGMENTS)), alone, strict=True))
        measured = f"{len(packets)} of {sum(SEGMENTS)} frames; decoding times " + ("rise" if rising else "do NOT rise")
        for good, what in ((even, "shown evenly"), (keys, "keyframes at the seams"), (same, "pixels as in the parts")):
            measured += f", {'' if good else 'NOT '}{what}"
        return Found(len(packets) == sum(SEGMENTS) and rising and even and keys and same, measured)

    return check


def quality(encoder: str) -> Callable[[Subject], Found]:
    """A check that quality numbers do what they say."""

    def check(subject: Subject) -> Found:
        given = pictures(30)
        sizes, errors = [], []
        for number in QUALITIES:
            with writer(subject, encoder, f"quality{number}", crf=number) as opened:
                for frame in given:
                    opened.write(frame)
            sizes.append(opened.path.stat().st_size)
            pairs = zip(given, decoded(opened.path, len(given)), strict=True)
            errors.append(float(np.mean([np.square(a.astype(np.float64) - b).mean() for a, b in pairs])))
        passed = sizes == sorted(sizes, reverse=True) and errors == sorted(errors) and len(set(sizes)) == len(sizes)
        measured = "; ".join(
            f"at {number} {size / 1e3:.0f} kB, mean square error {error:.2f}"
            for number, size, error in zip(QUALITIES, sizes, errors, strict=True)
        )
        return Found(passed, measured, {"sizes": sizes, "mean_square_errors": errors})

    return check


CHECKS = (
    *(
        Check(f"nvenc opens: {name}", "on the GPU that composites, whose memory it takes", opens(name))
        for name in NVENC
    ),
    Check(
        f"nvenc from GPU memory: {NVENC[0]}",
        f"the frames that it makes of the host's, each overwritten when given back; {NVENC_DELAY} held at most",
        from_gpu_memory(NVENC[0]),
    ),
    Check("nvenc sessions", f"at least {PARALLEL}, as many as jobs run at a time", sessions),
    *(
        check
        for name in ENCODERS
        for check in (
            Check(
                f"input copied: {name}", "the same frames when each is overwritten after `encode`", input_copied(name)
            ),
            Check(f"segments join: {name}", "all frames, in order, a keyframe at each seam", segments(name)),
            Check(f"quality: {name}", "the file shrinks and the error grows with the number", quality(name)),
        )
    ),
)
"""In the order in which they are made."""
