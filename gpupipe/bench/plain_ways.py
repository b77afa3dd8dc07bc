"""The ways that people render today, each a plain function from a scene to finished frames, and what times them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np

from gpupipe.bench.algorithm import composite_bgr24, resized, visual_input
from gpupipe.bench.handover import OpencvNv12
from gpupipe.bench.scene import Runner, Scene
from gpupipe.bench.way import SWSCALE, Floats, Infer, NoTrace, Save, Way, encoding
from gpupipe.geometry import SPEECH_SHAPE
from gpupipe.media.handover import HandOver
from gpupipe.trace import INFER, PASTE, PREPARE, SAVE, Trace

OPENCV = "OpenCV, in one thread, with the chroma of one pixel of four"

Render = Callable[[Scene, Infer, Save, Trace], None]


def sequential(scene: Scene, infer: Infer, save: Save, trace: Trace) -> None:
    """One frame after the other, one thread, one stage after the other."""
    for output, source in enumerate(scene.order):
        with trace.span(PREPARE, 1):
            visual = visual_input(scene.crops[source], scene.layout)[None]
            audio = scene.window(output)[None]
        with trace.span(INFER, 1):
            prediction = infer(visual, audio)[0]
        with trace.span(PASTE, 1):
            frame = composite_bgr24(
                prediction, scene.crops[source], scene.body[source], scene.rects[source], scene.layout
            )
        with trace.span(SAVE, 1):
            save(frame)


def parallel(scene: Scene, infer: Infer, save: Save, trace: Trace) -> None:
    """Batches, composited by a pool of threads made for each, one stage after the other."""
    for start in range(0, scene.frame_count, scene.batch_size):
        outputs = range(start, min(start + scene.batch_size, scene.frame_count))
        sources = scene.order[start : outputs.stop]
        with trace.span(PREPARE, len(outputs)):
            visual = np.stack([visual_input(scene.crops[source], scene.layout) for source in sources])
            audio = np.stack([scene.window(output) for output in outputs])
        with trace.span(INFER, len(outputs)):
            predictions = infer(visual, audio)
        with trace.span(PASTE, len(outputs)), ThreadPoolExecutor(scene.workers) as pool:
            finished = list(
                pool.map(
                    lambda prediction, source: composite_bgr24(
                        prediction, scene.crops[source], scene.body[source], scene.rects[source], scene.layout
                    ),
                    predictions,
                    sources,
                )
            )
        with trace.span(SAVE, len(outputs)):
            for frame in finished:
                save(frame)


def tuned_cpu(scene: Scene, infer: Infer, save: Save, trace: Trace) -> None:
    """One thread of the fastest OpenCV that stays plain: no buffer is made twice, and no body frame is copied."""
    size, crop_size, mask = scene.layout.model_size, scene.layout.crop_size, scene.layout.mask
    inside = scene.layout.roi
    visual = np.zeros((1, 6, size, size), np.float32)
    roi, masked = visual[0, :3], visual[0, 3:]  # the masked planes stay 0 under the mask
    planes = np.empty((3, size, size), np.uint8)
    drawn = np.empty((size, size, 3), np.uint8)
    placed = np.empty((crop_size, crop_size, 3), np.uint8)
    for output, source in enumerate(scene.order):
        crop, body, rect = scene.crops[source], scene.body[source], scene.rects[source]
        with trace.span(PREPARE, 1):
            cv2.split(np.ascontiguousarray(crop[inside, inside]), list(planes))
            np.divide(planes, np.float32(255), out=roi)
            masked[:, : mask.y1] = roi[:, : mask.y1]
            masked[:, mask.y2 :] = roi[:, mask.y2 :]
            masked[:, mask.y1 : mask.y2, : mask.x1] = roi[:, mask.y1 : mask.y2, : mask.x1]
            masked[:, mask.y1 : mask.y2, mask.x2 :] = roi[:, mask.y1 : mask.y2, mask.x2 :]
            audio = scene.window(output)[None]
        with trace.span(INFER, 1):
            prediction = infer(visual, audio)[0]
        with trace.span(PASTE, 1):
            np.multiply(prediction, np.float32(255), out=planes, casting="unsafe")
            cv2.merge(list(planes), dst=drawn)
            np.copyto(placed, crop)
            placed[inside, inside] = drawn
            patch, seen = resized(placed, rect, body.shape[1], body.shape[0])
            shown = body[seen.y1 : seen.y2, seen.x1 : seen.x2]
            kept = shown.copy()
            shown[...] = patch
        try:
            with trace.span(SAVE, 1):
                save(body)
        finally:
            with trace.span(PASTE):
                shown[...] = kept


class PlainWay(Way):
    """A plain function, with ONNX Runtime as most tools run it.

    Args:
        function: from a scene to finished frames.
        batch_size: frames that it gives the model at a time.
        threads: its compositing threads.
        opencv: convert finished frames with OpenCV where its colours are the stream's, else as `HandOver` does.
    """

    def __init__(
        self,
        name: str,
        about: str,
        scene: Scene,
        function: Render,
        *,
        batch_size: int = 1,
        threads: int = 1,
        opencv: bool = False,
    ) -> None:
        super().__init__(name, about, scene)
        self._function = function
        self.batch_size = min(batch_size, scene.frame_count)
        # A pool makes no more threads than there are frames for.
        self.threads = dict.fromkeys(("compose", "render"), min(threads, self.batch_size))
        info = scene.body_info
        self._opencv = opencv and OpencvNv12.fits(info.colour, info.width, info.height)
        self.notes = (f"frames converted for the encoder by {OPENCV if self._opencv else SWSCALE}",)
        self._runner: Infer | None = None

    @property
    def runner(self) -> Infer:
        """The opened model."""
        assert self._runner is not None
        return self._runner

    def open(self) -> None:
        """Decode into lists of bgr24 frames, and open the model."""
        scene = self.scene
        self.cache_bytes = sum(frame.nbytes for frame in (*scene.body, *scene.crops))
        self._runner = runner = Runner(scene.options.model, scene.threads)
        self.dtype, self.frames_a_run = runner.signature.dtype, runner.signature.batch or self.batch_size
        self.closing.callback(setattr, self, "_runner", None)

    def compose(self, save: Save) -> None:
        """See `Way`."""
        done, predictions = 0, self.scene.predictions

        def fixed(visual: Floats, _: Floats) -> Floats:
            nonlocal done
            first, done = done % len(predictions), done + len(visual)
            return predictions[first : first + len(visual)]

        self._function(self.scene, fixed, save, NoTrace())

    def infer(self) -> None:
        """See `Way`."""
        size = self.scene.layout.model_size
        visual = np.zeros((self.batch_size, 6, size, size), np.float32)
        audio = np.zeros((self.batch_size, *SPEECH_SHAPE), np.float32)
        for start in range(0, self.scene.frame_count, self.batch_size):
            left = self.scene.frame_count - start
            self.runner(visual[:left], audio[:left])

    def predicted(self) -> Floats:
        """See `Way`."""
        visual, audio = self.scene.inputs
        parts = [slice(start, start + self.batch_size) for start in range(0, len(visual), self.batch_size)]
        return np.concatenate([self.runner(visual[part], audio[part]) for part in parts])

    def render(self, save: Save, trace: Trace, frame_count: int) -> None:
        """See `Way`."""
        self._function(self.scene.first(frame_count), self.runner, save, trace)

    def hand_over(self) -> Save:
        """See `Way`."""
        if not self._opencv:
            return super().hand_over()
        convert, wrap = OpencvNv12(), HandOver("nv12", self.scene.body_info.colour, self.scene.output.encoder)
        return lambda frame: wrap(convert(frame))

    @contextmanager
    def encoder(self, path: Path) -> Iterator[Save]:
        """See `Way`."""
        convert = OpencvNv12()
        with encoding(self.scene, path, "nv12" if self._opencv else self.pixel_format) as save:
            yield (lambda frame: save(convert(frame))) if self._opencv else save
