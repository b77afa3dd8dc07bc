"""Frames of a character to calibrate a model with and to judge it by: the inputs that a render would give it, and the
frames that it would finish."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from gpupipe.character.folder import Character
from gpupipe.compose.cpu import CpuCompositor, CpuSlot, HostDrawing
from gpupipe.compose.frames import FrameSpec, HostFrames
from gpupipe.compose.protocol import BatchKind, Drawing
from gpupipe.compose.surface import Surface
from gpupipe.geometry import frame_at, speech_position
from gpupipe.media.video import VideoInfo, read_frames
from gpupipe.model.samples import Samples, SampleSet
from gpupipe.speech.rows import SpeechRows
from gpupipe.speech.speech import load_features
from gpupipe.speech.windows import frames_of_rows

FRAMES: Final = 16
"""Frames to calibrate with, and as many to judge by."""

BODY: Final = 2
"""Sides of a body that stands in where only the model's inputs are wanted."""


class Scenes:
    """Some output frames of a character with its own speech.

    Args:
        character: whom.
        outputs: which output frames.
        with_body: whether finished frames are wanted too.
    """

    def __init__(self, character: Character, outputs: tuple[int, ...], *, with_body: bool = False) -> None:
        sources = sorted({frame_at(output, character.count) for output in outputs})
        body = character.body
        spec = FrameSpec(
            layout=character.layout,
            pixel_format="bgr24",
            width=body.width if with_body else BODY,
            height=body.height if with_body else BODY,
            rects=tuple(character.rects[source] for source in sources),
            colour=body.colour,
        )
        nothing = np.zeros(spec.format.shape, np.uint8)
        self._frames = HostFrames.load(
            spec,
            _picked(body, sources) if with_body else (nothing for _ in sources),
            _picked(character.crops, sources),
        )
        self._speech = SpeechRows(load_features(character, None))
        self._compositor = CpuCompositor(BatchKind(character.layout, "bgr24", np.dtype(np.float32), len(outputs)))
        self._compositor.admit(self._frames)
        self._drawings = [
            self._drawing(sources.index(frame_at(output, character.count)), *speech_position(output, body.fps))
            for output in outputs
        ]

    @cached_property
    def samples(self) -> Samples:
        """The model's inputs."""
        slot = self._prepared()
        return Samples(slot.visual, slot.audio)

    def finished(self, predictions: NDArray[np.float32]) -> list[NDArray[np.uint8]]:
        """The finished frames, uint8 `[H, W, 3]` in BGR, of predictions float32 `[n, 3, S, S]`."""
        slot = self._prepared()
        slot.prediction[...] = predictions
        self._compositor.paste(slot)
        return [drawing.surface.host.copy() for drawing in slot.frames if drawing.surface.host is not None]

    def _prepared(self) -> CpuSlot:
        slot = self._compositor.new_slot()
        self._compositor.prepare(slot, self._drawings)
        return slot

    def _drawing(self, source: int, row: int, fraction: int) -> HostDrawing:
        format = self._frames.spec.format
        return Drawing(
            self._frames, source, self._speech, row, fraction, Surface(format, np.zeros(format.shape, np.uint8))
        )


def sample_set(character: Character, count: int = FRAMES) -> SampleSet:
    """What a model is calibrated with and judged by, of a character.

    Raises:
        PackageError: its speech features are missing or wrong.
    """
    calibration, judging = chosen(character, count)
    told = hashlib.sha256(f"{calibration} {judging} {character.layout} {character.body.fps}".encode())
    for path in (character.crops.path, character.features_path):
        told.update(_digest(path))
    return SampleSet(
        told.hexdigest(),
        f"{len(judging)} frames of {character.path.name}",
        lambda: Scenes(character, calibration).samples,
        lambda: Scenes(character, judging).samples,
    )


def chosen(character: Character, count: int = FRAMES) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Output frames to calibrate with and to judge by, `count` of each if there are as many, spread over the speech.

    No filmed frame is in both: stretches of them belong to the ones and to the others in turn.
    """
    period = character.count
    total = frames_of_rows(len(load_features(character, None)), character.body.fps)
    stretch = max(1, period // (2 * count))
    sides: tuple[list[int], list[int]] = ([], [])
    for output in range(total):
        sides[frame_at(output, period) // stretch % 2].append(output)
    ones, others = sides
    return _spread(ones, count), _spread(others or ones, count)  # a character of one frame has no other


def _spread(outputs: list[int], count: int) -> tuple[int, ...]:
    places = np.unique(np.linspace(0, len(outputs) - 1, min(count, len(outputs))).round().astype(int))
    return tuple(outputs[place] for place in places)


def _picked(video: VideoInfo, sources: list[int]) -> Iterator[NDArray[np.uint8]]:
    """Some frames of a video, in order."""
    wanted, count = set(sources), sources[-1] + 1
    for number, frame in enumerate(islice(read_frames(video.path, "bgr24", count, video.limits), count)):
        if number in wanted:
            yield frame


def _digest(path: Path) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()
