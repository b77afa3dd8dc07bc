"""What a model is calibrated with and judged by: its own inputs, as a render would give them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpupipe.errors import InferenceError, reason
from gpupipe.geometry import CropLayout
from gpupipe.model.runtime import failures
from gpupipe.model.signature import Signature, model_shapes


@dataclass(frozen=True)
class Samples:
    """Inputs of some frames.

    Attributes:
        visual: float32 `[n, 6, S, S]`.
        audio: float32 `[n, 32, 16, 16]`.
    """

    visual: NDArray[np.float32]
    audio: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.visual)

    def take(self, count: int) -> Samples:
        """So many of them, evenly spread; all where there are no more."""
        places = np.unique(np.linspace(0, len(self) - 1, min(count, len(self))).round().astype(int))
        return Samples(self.visual[places], self.audio[places])

    def with_other_speech(self) -> Samples:
        """The same pictures, each with the speech of another of them."""
        return Samples(self.visual, np.roll(self.audio, max(1, len(self) // 2), axis=0))


@dataclass(frozen=True)
class SampleSet:
    """What a model is calibrated with, and what it is judged by; no frame is in both.

    Attributes:
        key: what tells the frames and the speech: where it is another, the model is made again.
        about: for people: whose frames they are.
        calibration: makes the ones, which takes as long as decoding a video.
        judging: makes the others.
        filmed: whether they are frames of a character, not noise.
    """

    key: str
    about: str
    calibration: Callable[[], Samples]
    judging: Callable[[], Samples]
    filmed: bool = True


def noise(layout: CropLayout, count: int, seed: int) -> Samples:
    """Random inputs: coarse pictures, masked as filmed ones are, and speech."""
    random = np.random.default_rng(seed)
    visual, audio, _ = model_shapes(layout, count)
    size, cell = layout.model_size, 8
    coarse = random.random((count, 3, -(-size // cell), -(-size // cell)), np.float32)
    roi = coarse.repeat(cell, axis=2).repeat(cell, axis=3)[:, :, :size, :size]
    roi = (0.8 * roi + 0.2 * random.random(roi.shape, np.float32)).astype(np.float32)
    made = np.concatenate([roi, roi], axis=1)
    made[:, 3:, layout.mask.y1 : layout.mask.y2, layout.mask.x1 : layout.mask.x2] = 0
    assert made.shape == visual
    return Samples(made, random.random(audio, np.float32))


def noise_set(layout: CropLayout, count: int) -> SampleSet:
    """Random inputs, for a model without a character."""
    return SampleSet(
        f"noise {count}",
        "random pictures",
        lambda: noise(layout, count, 1),
        lambda: noise(layout, count, 2),
        filmed=False,
    )


def runs(session: Any, signature: Signature, samples: Samples, names: list[str] | None = None) -> Iterator[Any]:
    """What a session gives for samples: a list for each run, of a frame, or of as many as the model takes at a time.

    Raises:
        InferenceError: the model failed.
    """
    chunk = signature.batch or 1
    for start in range(0, len(samples), chunk):
        places = np.minimum(np.arange(start, start + chunk), len(samples) - 1)  # the last is repeated to fill a run
        feed = {
            signature.visual: samples.visual[places].astype(signature.dtype),
            signature.audio: samples.audio[places].astype(signature.dtype),
        }
        try:
            yield session.run(names, feed)
        except failures() as error:
            raise InferenceError(
                f"the model failed: {reason(error)}", file=signature.path, remedy="export it again"
            ) from error


def predict(session: Any, signature: Signature, samples: Samples) -> NDArray[np.float32]:
    """Predictions for samples, float32 `[n, 3, S, S]`.

    Raises:
        InferenceError: the model failed.
    """
    found = [made[0] for made in runs(session, signature, samples, [signature.prediction])]
    return np.concatenate(found)[: len(samples)].astype(np.float32)
