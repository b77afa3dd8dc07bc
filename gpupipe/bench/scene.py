"""What all ways are given alike: the character's frames, the speech, the model, and the reference to be equal to."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpupipe.bench import reference
from gpupipe.character.features import read_features
from gpupipe.character.folder import Character
from gpupipe.colour import PixelFormat
from gpupipe.errors import OptionError
from gpupipe.geometry import Rect, frame_order
from gpupipe.machine import cpu_count
from gpupipe.media.encoders import EncoderOptions
from gpupipe.media.video import read_frames
from gpupipe.model.runtime import SessionOptions, open_session
from gpupipe.model.signature import Signature
from gpupipe.render.output import OutputOptions

Pixels = NDArray[np.uint8]
Floats = NDArray[np.float32]

OPENCV_THREADS = 1
"""Every way composites with threads of its own, or with none; OpenCV's would count twice."""


@dataclass(frozen=True)
class SceneOptions:
    """What to render. Everything that a process of its own needs to set the same scene.

    Attributes:
        character: the folder.
        model: the ONNX file.
        frames: output frames.
        batch: frames in a batch, for the ways that have batches.
        workers: compositing threads, for the ways that have them.
    """

    character: Path
    model: Path
    frames: int
    batch: int
    workers: int


class Scene:
    """One character speaking, for `frames` output frames.

    Args:
        options: what to render.

    Attributes:
        order: the source frame of each output frame, int32 `[frames]`.
        features: speech features, float32 `[N, 512]`.
        threads: CPU threads for the model, the same for every way.
        output: how every way writes its video.

    Raises:
        OptionError: there is not so much speech.
    """

    def __init__(self, options: SceneOptions) -> None:
        self.options = options
        self.frames, self.batch, self.workers = options.frames, options.batch, options.workers
        self.character = Character.load(options.character)
        self.layout, self.body_info = self.character.layout, self.character.body
        self.features = read_features(self.character.features_path)
        if self.frames > len(self.features):
            raise OptionError(
                f"the character speaks for {len(self.features)} frames only",
                field="--frames",
                value=self.frames,
                remedy=f"give at most {len(self.features)}",
            )
        self.order = frame_order(self.frames, self.character.count)
        self._sources = int(self.order.max()) + 1
        self._predicted: dict[int, Floats] = {}
        self.threads = cpu_count()
        self.output = OutputOptions(encoder=EncoderOptions(), overwrite=True)

    def first(self, frames: int) -> Scene:
        """The same scene, over after `frames` frames."""
        short = copy.copy(self)
        short.frames, short.order = frames, self.order[:frames]
        return short

    def varied(self, *, frames: int, batch: int, workers: int) -> Scene:
        """The same character in another number of frames, batches of another size, and with other threads."""
        other = copy.copy(self)
        other.__dict__.pop("predictions", None)
        other.__dict__.pop("inputs", None)
        other.frames, other.batch, other.workers = frames, batch, workers
        other.order = self.order[:frames]
        return other

    @cached_property
    def body(self) -> list[Pixels]:
        """Body frames, uint8 `[H, W, 3]`."""
        return list(read_frames(self.body_info.path, "bgr24", self._sources))

    @cached_property
    def body_nv12(self) -> list[Pixels]:
        """Body frames, uint8 `[H * 3 // 2, W]`."""
        return list(read_frames(self.body_info.path, "nv12", self._sources))

    @cached_property
    def crops(self) -> list[Pixels]:
        """Crops, uint8 `[C, C, 3]`."""
        return list(read_frames(self.character.crops.path, "bgr24", self._sources))

    @cached_property
    def rects(self) -> tuple[Rect, ...]:
        """Where each crop belongs."""
        return self.character.rects[: self._sources]

    @cached_property
    def inputs(self) -> tuple[Floats, Floats]:
        """The model's inputs for the first batch of frames, `[B, 6, S, S]` and `[B, 32, 16, 16]`."""
        outputs = range(min(self.batch, self.frames))
        visual = [reference.visual_input(self.crops[self.order[output]], self.layout) for output in outputs]
        return np.stack(visual), np.stack([reference.speech_window(self.features, output) for output in outputs])

    @cached_property
    def predictions(self) -> Floats:
        """What the model says for the first batch of frames, `[B, 3, S, S]`: given to all when compositing is timed."""
        return np.concatenate([self.predicted(output) for output in range(min(self.batch, self.frames))])

    def predicted(self, output: int) -> Floats:
        """The reference prediction of an output frame, `[1, 3, S, S]`: the model run on that frame alone."""
        if output not in self._predicted:
            self._predicted[output] = self._runner(
                reference.visual_input(self.crops[self.order[output]], self.layout)[None],
                reference.speech_window(self.features, output)[None],
            )
        return self._predicted[output]

    def expected(self, output: int, prediction: Floats, pixel_format: PixelFormat) -> Pixels:
        """The frame that every way must draw."""
        source = int(self.order[output])
        crop, rect = self.crops[source], self.rects[source]
        if pixel_format == "bgr24":
            return reference.composite_bgr24(prediction, crop, self.body[source], rect, self.layout)
        body, colour = self.body_nv12[source], self.body_info.colour
        return reference.composite_nv12(prediction, crop, body, rect, self.layout, colour)

    @cached_property
    def _runner(self) -> Runner:
        return Runner(self.options.model, self.threads)


class Runner:
    """The model as most tools run it: arrays in, arrays out.

    Args:
        path: the ONNX file.
        threads: CPU threads of one run.
    """

    def __init__(self, path: Path, threads: int) -> None:
        self._session: Any = open_session(path, SessionOptions("cpu", threads=threads))
        self.signature = Signature(path, self._session)

    def __call__(self, visual: Floats, audio: Floats) -> Floats:
        """Run a batch: `[B, 6, S, S]` and `[B, 32, 16, 16]` to `[B, 3, S, S]`, all float32."""
        signature, step = self.signature, self.signature.batch or len(visual)
        done = []
        for start in range(0, len(visual), step):
            feed = {
                name: array[start : start + step].astype(signature.dtype, copy=False)
                for name, array in ((signature.visual, visual), (signature.audio, audio))
            }
            done.append(self._session.run([signature.prediction], feed)[0])
        whole = done[0] if len(done) == 1 else np.concatenate(done)
        return np.asarray(whole, np.float32)
