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
from gpupipe.bench.algorithm import composite_bgr24, visual_input
from gpupipe.bench.handover import OpencvNv12
from gpupipe.bench.host_steps import HostSteps
from gpupipe.bench.measure import in_turn, spread
from gpupipe.colour import PixelFormat
from gpupipe.machine import cpu_name
from gpupipe.media.handover import HandOver
from gpupipe.media.video import read_frames
from gpupipe.model.rates import host_rates

BATCH = 8


def gpupipe_steps(character: Character, count: int, pixel_format: PixelFormat) -> dict[str, Callable[[], None]]:
    """Preparing, pasting and handing over `count` frames in batches, one thread."""
    steps = HostSteps(character, pixel_format, count, BATCH)
    hand_over = HandOver(pixel_format, character.body.colour, "libx264")

    def convert(_: int) -> None:
        for frame in steps.finished:
            hand_over(frame)

    name = f"gpupipe {pixel_format}"
    return {
        f"{name}: prepare": lambda: steps.each_batch(steps.prepare),
        f"{name}: paste": lambda: steps.each_batch(steps.paste),
        f"{name}: hand over": lambda: steps.each_batch(convert),
    }


def plain_steps(character: Character, count: int) -> dict[str, Callable[[], None]]:
    """The steps of the plain algorithm, and both conversions to the encoder's format."""
    bodies = list(read_frames(character.body.path, "bgr24", count))
    crops = list(read_frames(character.crops.path, "bgr24", count))
    size, layout = character.layout.model_size, character.layout
    predictions = np.random.default_rng(0).random((BATCH, 3, size, size), np.float32)
    swscale, opencv = HandOver("bgr24", character.body.colour, "libx264"), OpencvNv12()

    def composite() -> None:
        for n in range(count):
            composite_bgr24(predictions[n % BATCH], crops[n], bodies[n], character.rects[n], layout)

    def each(step: Callable[[Any], object], pictures: list[Any]) -> Callable[[], None]:
        def all_of_them() -> None:
            for picture in pictures:
                step(picture)

        return all_of_them

    return {
        "plain: prepare": each(lambda crop: visual_input(crop, layout), crops),
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
