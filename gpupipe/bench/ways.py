"""The ways to render that are compared, each a plain function from a scene to finished frames.

Each takes `infer`, which runs the model on arrays, and `save`, which takes one finished frame and is done with it when
it returns. What they are decides what is measured: fixed predictions and a conversion to the encoder's format for
compositing alone; the model and the encoder for a whole render; a comparison for the check before either.

The model of these families ends in a sigmoid, so that the plain ways have nothing to clip, and do not.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from gpupipe.bench.reference import speech_window
from gpupipe.bench.scene import Scene
from gpupipe.engine.job import Job
from gpupipe.engine.pipeline import Stage
from gpupipe.geometry import CropLayout, Rect
from gpupipe.render.plan import Batch
from gpupipe.trace import Trace

Pixels = NDArray[np.uint8]
Floats = NDArray[np.float32]
Infer = Callable[[Floats, Floats], Floats]
Save = Callable[[Pixels], object]


def sequential(scene: Scene, infer: Infer, save: Save, trace: Trace) -> None:
    """One frame after the other, one thread, one stage after the other."""
    for output, source in enumerate(scene.order):
        with trace.span("prepare", 1):
            visual = plain_inputs(scene.crops[source], scene.layout)[None]
            audio = speech_window(scene.features, output)[None]
        with trace.span("infer", 1):
            prediction = infer(visual, audio)[0]
        with trace.span("paste", 1):
            frame = plain_composite(
                prediction, scene.crops[source], scene.body[source], scene.rects[source], scene.layout
            )
        with trace.span("save", 1):
            save(frame)


def parallel(scene: Scene, infer: Infer, save: Save, trace: Trace) -> None:
    """Batches, composited by a pool of threads made for each, one stage after the other."""
    for start in range(0, scene.frames, scene.batch):
        outputs = range(start, min(start + scene.batch, scene.frames))
        sources = scene.order[start : outputs.stop]
        with trace.span("prepare", len(outputs)):
            visual = np.stack([plain_inputs(scene.crops[source], scene.layout) for source in sources])
            audio = np.stack([speech_window(scene.features, output) for output in outputs])
        with trace.span("infer", len(outputs)):
            predictions = infer(visual, audio)
        with trace.span("paste", len(outputs)), ThreadPoolExecutor(scene.workers) as pool:
            frames = list(
                pool.map(
                    lambda prediction, source: plain_composite(
                        prediction, scene.crops[source], scene.body[source], scene.rects[source], scene.layout
                    ),
                    predictions,
                    sources,
                )
            )
        with trace.span("save", len(outputs)):
            for frame in frames:
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
        with trace.span("prepare", 1):
            cv2.split(np.ascontiguousarray(crop[inside, inside]), list(planes))
            np.divide(planes, np.float32(255), out=roi)
            masked[:, : mask.y1] = roi[:, : mask.y1]
            masked[:, mask.y2 :] = roi[:, mask.y2 :]
            masked[:, mask.y1 : mask.y2, : mask.x1] = roi[:, mask.y1 : mask.y2, : mask.x1]
            masked[:, mask.y1 : mask.y2, mask.x2 :] = roi[:, mask.y1 : mask.y2, mask.x2 :]
            audio = speech_window(scene.features, output)[None]
        with trace.span("infer", 1):
            prediction = infer(visual, audio)[0]
        with trace.span("paste", 1):
            np.multiply(prediction, np.float32(255), out=planes, casting="unsafe")
            cv2.merge(list(planes), dst=drawn)
            np.copyto(placed, crop)
            placed[inside, inside] = drawn
            patch, seen = _resized(placed, rect, body)
            shown = body[seen.y1 : seen.y2, seen.x1 : seen.x2]
            kept = shown.copy()
            shown[...] = patch
        try:
            with trace.span("save", 1):
                save(body)
        finally:
            with trace.span("paste"):
                shown[...] = kept


def plain_inputs(crop: Pixels, layout: CropLayout) -> Floats:
    """`[6, S, S]`: copy the roi, mask a copy of it, put both together, scale."""
    roi = crop[layout.roi, layout.roi].copy()
    masked = roi.copy()
    mask = layout.mask
    cv2.rectangle(masked, (mask.x1, mask.y1, mask.width, mask.height), (0, 0, 0), -1)
    both = np.concatenate([roi, masked], axis=2).transpose(2, 0, 1)
    return np.ascontiguousarray(both.astype(np.float32) / np.float32(255))


def plain_composite(prediction: Floats, crop: Pixels, body: Pixels, rect: Rect, layout: CropLayout) -> Pixels:
    """Copy crop, place, resize, copy body, paste."""
    placed = crop.copy()
    placed[layout.roi, layout.roi] = (prediction.transpose(1, 2, 0) * np.float32(255)).astype(np.uint8)
    frame = body.copy()
    patch, seen = _resized(placed, rect, body)
    frame[seen.y1 : seen.y2, seen.x1 : seen.x2] = patch
    return frame


def _resized(placed: Pixels, rect: Rect, body: Pixels) -> tuple[Any, Rect]:
    """The crop in the rectangle's size, cut to the frame, and the part of the frame that it covers."""
    seen = rect.within(body.shape[1], body.shape[0])
    patch = cv2.resize(placed, (rect.width, rect.height), interpolation=cv2.INTER_LINEAR)
    return patch[seen.y1 - rect.y1 : seen.y2 - rect.y1, seen.x1 - rect.x1 : seen.x2 - rect.x1], seen


def gpupipe_composite(
    job: Job, compositor: Any, slot: Any, predict: Callable[[Any, Batch], None], save: Save
) -> float | None:
    """gpupipe's compositor alone, batch by batch, on predictions that `predict` puts into the slot.

    Returns:
        On a GPU, seconds from the begin of each batch's first kernel to the end of its copy to the host; else None.
    """
    gpu = job.backend.gpu
    events = None if gpu is None else (gpu.event(timing=True), gpu.event(timing=True))
    seconds = 0.0
    for batch in job.plan.batches(job.backend.batch):
        predict(slot, batch)
        if gpu is not None and events is not None:
            gpu.record(events[0], gpu.compute_stream)
        compositor.prepare(slot, batch.source, batch.speech)
        compositor.ready(slot)
        compositor.paste(slot)
        if gpu is not None and events is not None:
            gpu.record(events[1], gpu.copy_stream)
        compositor.finish(slot)
        for frame in slot.frames[: batch.frames]:
            save(frame)
        if gpu is not None and events is not None:
            gpu.wait(events[1])
            seconds += gpu.elapsed_seconds(*events)
    return None if gpu is None else seconds


def gpupipe_render(job: Job, save: Save, trace: Trace, frames: int) -> None:
    """gpupipe as `gpupipe render` runs it: every stage in its own thread, batches in flight."""

    def write(slot: Any, batch: Batch) -> None:
        ready = job.finish(slot, batch)
        with trace.span("save", batch.frames):
            for frame in ready:
                save(frame)

    with closing(job.run(Stage("save", write))) as batches:
        for _, batch in batches:
            if batch.start + batch.frames >= frames:
                return
