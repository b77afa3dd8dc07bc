"""The steps of compositing on one CPU core, one by one: gpupipe's beside the plain ones.

    python benchmarks/cpu_parts.py CHARACTER [--frames 48] [--runs 9] [--json FILE]

Each step goes over the same frames in turn with the others; a time is the median of the runs.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from gpupipe import Character
from gpupipe.bench.floor import host_rates
from gpupipe.bench.handover import OpencvNv12
from gpupipe.bench.measure import in_turn, spread
from gpupipe.bench.ways import plain_composite, plain_inputs
from gpupipe.colour import PixelFormat
from gpupipe.compose.cpu import CpuCompositor
from gpupipe.compose.frames import FrameSpec, HostFrames
from gpupipe.machine import cpu_name
from gpupipe.media.handover import HandOver
from gpupipe.media.video import read_frames

BATCH = 8


def gpupipe_steps(character: Character, count: int, pixel_format: PixelFormat) -> dict[str, Callable[[], None]]:
    """Preparing and pasting `count` frames in batches, one thread."""
    body = character.body
    spec = FrameSpec(character.layout, pixel_format, body.width, body.height, character.rects[:count], body.colour)
    readers = read_frames(body.path, pixel_format, count), read_frames(character.crops.path, "bgr24", count)
    features = np.zeros((count, 512), np.float32)
    compositor = CpuCompositor(HostFrames.load(spec, *readers), features, batch=BATCH)
    slot = compositor.new_slot()
    slot.prediction[:] = np.random.default_rng(0).random(slot.prediction.shape, np.float32)
    hand_over = HandOver(pixel_format, body.colour, "libx264")
    batches = [np.arange(start, start + BATCH, dtype=np.int32) % count for start in range(0, count, BATCH)]

    def prepare() -> None:
        for batch in batches:
            compositor.prepare(slot, batch, batch)

    def paste() -> None:
        for batch in batches:
            slot.source[:] = batch
            compositor.paste(slot)

    def convert() -> None:
        for _ in batches:
            for frame in slot.frames:
                hand_over(frame)

    name = f"gpupipe {pixel_format}"
    return {f"{name}: prepare": prepare, f"{name}: paste": paste, f"{name}: hand over": convert}


def plain_steps(character: Character, count: int) -> dict[str, Callable[[], None]]:
    """The steps of the plain algorithm, and both conversions to the encoder's format."""
    bodies = list(read_frames(character.body.path, "bgr24", count))
    crops = list(read_frames(character.crops.path, "bgr24", count))
    size, layout = character.layout.model_size, character.layout
    predictions = np.random.default_rng(0).random((BATCH, 3, size, size), np.float32)
    swscale, opencv = HandOver("bgr24", character.body.colour, "libx264"), OpencvNv12()

    def composite() -> None:
        for n in range(count):
            plain_composite(predictions[n % BATCH], crops[n], bodies[n], character.rects[n], layout)

    def each(step: Callable[[Any], object], frames: list[Any]) -> Callable[[], None]:
        def all_of_them() -> None:
            for frame in frames:
                step(frame)

        return all_of_them

    return {
        "plain: prepare": each(lambda crop: plain_inputs(crop, layout), crops),
        "plain: paste": composite,
        "plain: convert with libswscale": each(swscale, bodies),
        "plain: convert with OpenCV": each(opencv, bodies),
        "copy a bgr24 frame": each(np.ndarray.copy, bodies),
    }


def main() -> None:
    """Measure, print, and write JSON if asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("character", type=Path)
    parser.add_argument("--frames", type=int, default=48, help="frames to time, made a multiple of the batch")
    parser.add_argument("--runs", type=int, default=9)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    cv2.setNumThreads(1)
    character = Character.load(options.character)
    count = max(BATCH, min(options.frames, character.count) // BATCH * BATCH)
    steps = plain_steps(character, count)
    for pixel_format in ("nv12", "bgr24"):
        steps |= gpupipe_steps(character, count, pixel_format)
    result: dict[str, Any] = {
        "cpu": cpu_name(),
        "character": options.character.name,
        "frames": count,
        "runs": options.runs,
        "copy_bytes_per_second": round(host_rates(1)["copy_bytes_per_second"]),
        "ms_a_frame": {
            name: spread([seconds / count * 1e3 for seconds in times.seconds])
            for name, times in in_turn(steps, options.runs).items()
        },
    }
    for name, found in result["ms_a_frame"].items():
        print(f"{name:32} {found['median']:7.3f} ms   {found['q1']:.3f} to {found['q3']:.3f}")
    if options.json is not None:
        options.json.write_text(json.dumps(result, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
