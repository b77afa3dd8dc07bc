"""What all ways are given alike: the character's frames, the speech, the model, and the reference to be equal to."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpupipe.bench import algorithm
from gpupipe.character.features import read_features
from gpupipe.character.folder import Character
from gpupipe.colour import PixelFormat
from gpupipe.geometry import Rect, frame_order, speech_position
from gpupipe.machine import cpu_count
from gpupipe.media.limits import DEFAULT, Limits
from gpupipe.media.video import read_frames
from gpupipe.model.cache import Cached
from gpupipe.model.quality import mouth_region
from gpupipe.model.runtime import SessionOptions, open_session
from gpupipe.model.samples import Samples
from gpupipe.model.signature import Signature, precision_of
from gpupipe.options import OutputOptions, Precision
from gpupipe.speech.windows import frames_of_rows

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
        frame_count: output frames.
        batch_size: frames in a batch, for the ways that have batches.
        workers: compositing threads, for the ways that have them.
        precisions: of the model, for the ways that have several.
        feature_cache: `EngineOptions.feature_cache`, for the ways that keep features.
        limits: what is taken of the character's files.
    """

    character: Path
    model: Path
    frame_count: int
    batch_size: int
    workers: int
    precisions: tuple[Precision, ...] = ("fp32",)
    feature_cache: str = "off"
    limits: Limits = DEFAULT


class Scene:
    """One character speaking, for `frame_count` output frames; what it says is said again until they are full.

    Args:
        options: what to render.

    Attributes:
        order: the source frame of each output frame, int32 `[frame_count]`.
        features: speech features, float32 `[N, 512]`.
        speech_frames: output frames that the character's speech lasts, said once.
        speech_repeats: how often it is said.
        threads: CPU threads for the model, the same for every way.
        output: how every way writes its video.
        made: models made of the scene's own, by precision.
    """

    def __init__(self, options: SceneOptions) -> None:
        self.options = options
        self.frame_count, self.batch_size = options.frame_count, options.batch_size
        self.workers = options.workers
        self.character = Character.load(options.character, options.limits)
        self.layout, self.body_info = self.character.layout, self.character.body
        rows, fps = read_features(self.character.features_path), self.body_info.fps
        self.speech_frames = frames_of_rows(len(rows), fps)
        self.speech_repeats = -(-self.frame_count // self.speech_frames)
        while frames_of_rows(self.speech_repeats * len(rows), fps) < self.frame_count:  # the last row was not whole
            self.speech_repeats += 1
        self.features = np.tile(rows, (self.speech_repeats, 1)) if self.speech_repeats > 1 else rows
        self.order = frame_order(self.frame_count, self.character.count)
        self._sources = int(self.order.max()) + 1
        self._predicted: dict[int, Floats] = {}
        self.threads = cpu_count()
        self.output = OutputOptions(overwrite=True)
        self.made: Mapping[str, Cached] = {}

    def first(self, frame_count: int) -> Scene:
        """The same scene, over after `frame_count` frames."""
        short = copy.copy(self)
        short.frame_count, short.order = frame_count, self.order[:frame_count]
        return short

    def varied(self, *, frame_count: int, batch_size: int, workers: int) -> Scene:
        """The same character in another number of frames, batches of another size, and with other threads."""
        other = copy.copy(self)
        for name in ("predictions", "inputs", "mouth"):
            other.__dict__.pop(name, None)
        other.frame_count, other.batch_size, other.workers = frame_count, batch_size, workers
        other.order = self.order[:frame_count]
        return other

    def window(self, output: int) -> Floats:
        """The speech that an output frame hears, `[32, 16, 16]`, made anew."""
        return algorithm.speech_window(self.features, *speech_position(output, self.body_info.fps))

    @cached_property
    def body(self) -> list[Pixels]:
        """Body frames, uint8 `[H, W, 3]`."""
        return list(read_frames(self.body_info.path, "bgr24", self._sources, self.options.limits))

    @cached_property
    def body_nv12(self) -> list[Pixels]:
        """Body frames, uint8 `[H * 3 // 2, W]`."""
        return list(read_frames(self.body_info.path, "nv12", self._sources, self.options.limits))

    @cached_property
    def crops(self) -> list[Pixels]:
        """Crops, uint8 `[C, C, 3]`."""
        return list(read_frames(self.character.crops.path, "bgr24", self._sources, self.options.limits))

    @cached_property
    def rects(self) -> tuple[Rect, ...]:
        """Where each crop belongs."""
        return self.character.rects[: self._sources]

    @cached_property
    def inputs(self) -> tuple[Floats, Floats]:
        """The model's inputs for the first batch of frames, `[B, 6, S, S]` and `[B, 32, 16, 16]`."""
        outputs = range(min(self.batch_size, self.frame_count))
        visual = [algorithm.visual_input(self.crops[self.order[output]], self.layout) for output in outputs]
        return np.stack(visual), np.stack([self.window(output) for output in outputs])

    @cached_property
    def predictions(self) -> Floats:
        """What the model says for the first batch of frames, `[B, 3, S, S]`: given to all when compositing is timed."""
        return np.concatenate([self.predicted(output) for output in range(min(self.batch_size, self.frame_count))])

    def predicted(self, output: int) -> Floats:
        """The reference prediction of an output frame, `[1, 3, S, S]`: the model run on that frame alone."""
        if output not in self._predicted:
            self._predicted[output] = self._runner(
                algorithm.visual_input(self.crops[self.order[output]], self.layout)[None],
                self.window(output)[None],
            )
        return self._predicted[output]

    @cached_property
    def mouth(self) -> Rect:
        """Where the model draws what it hears, in roi pixels, by the first batch; see `quality.mouth_region`."""
        samples = Samples(*self.inputs).with_other_speech()
        return mouth_region(self.layout, self.predictions, self._runner(samples.visual, samples.audio))

    @property
    def kept_precision(self) -> str | None:
        """What gpupipe has made the model in; None of any other model."""
        return precision_of(self._runner.session)

    def expected(self, output: int, prediction: Floats, pixel_format: PixelFormat) -> Pixels:
        """The frame that every way must draw."""
        source, prediction = int(self.order[output]), algorithm.in_range(prediction)
        crop, rect = self.crops[source], self.rects[source]
        if pixel_format == "bgr24":
            return algorithm.composite_bgr24(prediction, crop, self.body[source], rect, self.layout)
        body, colour = self.body_nv12[source], self.body_info.colour
        return algorithm.composite_nv12(prediction, crop, body, rect, self.layout, colour)

    @cached_property
    def _runner(self) -> Runner:
        return Runner(self.options.model, self.threads)


class Runner:
    """The model as most tools run it: arrays in, arrays out.

    Args:
        path: the ONNX file.
        threads: CPU threads of one run.

    Attributes:
        session: ONNX Runtime's.
        signature: of the model.
    """

    def __init__(self, path: Path, threads: int) -> None:
        self.session: Any = open_session(path, SessionOptions("cpu", threads=threads))
        self.signature = Signature(path, self.session)

    def __call__(self, visual: Floats, audio: Floats) -> Floats:
        """Run a batch: `[B, 6, S, S]` and `[B, 32, 16, 16]` to `[B, 3, S, S]`, all float32.

        A model that takes batches of one size only gets them, the last one filled up with its last frame.
        """
        count, step = len(visual), self.signature.batch or len(visual)
        done = []
        for start in range(0, count, step):
            inputs = [array[start : start + step].astype(self.signature.dtype, copy=False) for array in (visual, audio)]
            missing = step - len(inputs[0])
            if missing:
                inputs = [np.concatenate([array, array[-1:].repeat(missing, axis=0)]) for array in inputs]
            done.append(self.run(*inputs))
        whole = done[0] if len(done) == 1 else np.concatenate(done)
        return np.asarray(whole[:count], np.float32)

    def run(self, visual: NDArray[Any], audio: NDArray[Any]) -> NDArray[Any]:
        """Run the model once, on arrays of its own type."""
        signature = self.signature
        feed = {signature.visual: visual, signature.audio: audio}
        prediction: NDArray[Any] = self.session.run([signature.prediction], feed)[0]
        return prediction
