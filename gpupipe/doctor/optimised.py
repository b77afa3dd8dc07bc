"""What an optimised model is worth: the frames that it finishes, how long it takes, and its worst frame to look at."""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from gpupipe.character.folder import Character
from gpupipe.geometry import Rect, frame_at
from gpupipe.machine import cpu_count, cpu_name
from gpupipe.model.graph import write_graph
from gpupipe.model.model import Model
from gpupipe.model.optimise import Optimised, Precision
from gpupipe.model.quality import FLOOR_DB, WORST_FLOOR_DB, drawn, frames_quality
from gpupipe.model.runtime import SessionOptions
from gpupipe.render.samples import Scenes, chosen

Picture = NDArray[np.uint8]

ROUNDS: Final = 15
"""Runs of each model that are timed, in turn."""
AROUND: Final = 16
"""Pixels shown around the rectangle."""
AMPLIFIED: Final = 8
"""How much stronger differences are shown."""


@dataclass(frozen=True)
class Report:
    """What is told of an optimised model.

    Attributes:
        values: all of it as JSON values.
        pictures: of the worst frame, by what they show: the original and the new one side by side, uint8 `[H, W, 3]`.
    """

    values: dict[str, Any]
    pictures: dict[str, tuple[Picture, Picture, Picture]]


def report(made: Optimised, path: Path, precision: Precision, character: Character | None) -> Report:
    """Judge an optimised model by finished frames and by time, beside the model that it was made of.

    Args:
        made: the model.
        path: the file that it was made of.
        precision: its own.
        character: whose frames it was judged by; None: noise.
    """
    quality, worst = made.quality, made.quality.worst
    region = Rect(*quality.region)
    pair = drawn(made.wanted[worst]).transpose(1, 2, 0), drawn(made.found[worst]).transpose(1, 2, 0)
    pictures = {"the mouth region of the worst frame": _beside(*(_enlarged(_cut(each, region, 8)) for each in pair))}
    values: dict[str, Any] = {
        "model": str(path),
        "precision": precision,
        "floor": {"mean_db": FLOOR_DB, "worst_db": WORST_FLOOR_DB},
        "quality": quality.as_dict(),
        "bytes": {"original": path.stat().st_size, "optimised": made.model.ByteSize()},
        "about": made.about,
        "ms_a_frame": times(made, path),
        "cpu": cpu_name(),
        "threads": cpu_count(),
    }
    if character is None:
        pictures["all that the model draws of it"] = _beside(*pair)
        return Report(values, pictures)
    outputs = chosen(character)[1]
    scenes = Scenes(character, outputs, with_body=True)
    finished = [scenes.finished(each) for each in (made.wanted, made.found)]
    values["finished"] = frames_quality(*finished)
    values["quality"]["worst_output_frame"] = outputs[worst]
    rect = character.rects[frame_at(outputs[worst], character.count)]
    pictures["the finished frame around it"] = _beside(*(_cut(frames[worst], rect, AROUND) for frames in finished))
    return Report(values, pictures)


def times(made: Optimised, path: Path) -> dict[str, float]:
    """Milliseconds a frame of both models on this machine's CPU, run in turn: medians, and the median of the ratios."""
    taken: tuple[list[float], list[float]] = ([], [])
    with tempfile.TemporaryDirectory(prefix="gpupipe-") as folder:
        new = Path(folder) / "model.onnx"
        write_graph(made.model, new)
        runs = [_Run(each, made) for each in (path, new)]
        for round in range(ROUNDS + 1):
            for run, found in zip(runs, taken, strict=True):
                began = time.perf_counter()
                run.once()
                if round:  # the first allocates
                    found.append((time.perf_counter() - began) * 1000 / run.frames)
        for run in runs:
            run.model.close()
    one, other = (np.array(each) for each in taken)
    return {
        "original": float(np.median(one)),
        "optimised": float(np.median(other)),
        "ratio": float(np.median(one / other)),
    }


class _Run:
    """A model with buffers that hold the first samples."""

    def __init__(self, path: Path, made: Optimised) -> None:
        probe = Model(path, SessionOptions(), batch=1 << 9)  # a multiple of any batch that is likely
        self.frames = probe.signature.batch or 1
        probe.close()
        self.model = Model(path, SessionOptions("cpu", threads=cpu_count()), batch=self.frames, runs=1)
        places = np.arange(self.frames) % len(made.samples)
        dtype = self.model.dtype
        self._visual = made.samples.visual[places].astype(dtype)
        self._audio = made.samples.audio[places].astype(dtype)
        self._prediction = np.zeros(made.wanted[places].shape, dtype)
        self._bound = self.model.bind(self._visual, self._audio, self._prediction)

    def once(self) -> None:
        """One run."""
        self.model.run(self._bound, self.frames)


def _cut(picture: Picture, rect: Rect, around: int) -> Picture:
    """A rectangle of a picture, and what is around it."""
    height, width = picture.shape[:2]
    seen = Rect(rect.x1 - around, rect.y1 - around, rect.x2 + around, rect.y2 + around).within(width, height)
    return picture[seen.y1 : seen.y2, seen.x1 : seen.x2]


def _enlarged(picture: Picture) -> Picture:
    """A small picture, each of its pixels a square."""
    factor = max(1, 240 // max(picture.shape[:2]))
    return picture.repeat(factor, axis=0).repeat(factor, axis=1)


def _beside(one: Picture, other: Picture) -> tuple[Picture, Picture, Picture]:
    """Two pictures and their difference, amplified."""
    difference = np.abs(one.astype(np.int16) - other) * AMPLIFIED
    return one, other, np.minimum(difference, 255).astype(np.uint8)
