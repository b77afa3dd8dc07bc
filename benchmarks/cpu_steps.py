"""Compositing on one CPU core: gpupipe's steps against the plain algorithm, and the memory that each format takes.

    python benchmarks/cpu_steps.py CHARACTER [--model M.onnx] [--frames 100] [--json FILE]

Time: prepare the model's inputs, paste the prediction, and hand the frame over in the encoder's pixel format; no
inference, no encoding, one thread. Both ways run in turn on the same frames; the ratio is the median of the pairs.
Memory: peak resident memory of a whole render in nv12, and of the same render in bgr24 (with --model only).
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from gpupipe import Character
from gpupipe.bench.algorithm import composite_bgr24, visual_input
from gpupipe.bench.host_steps import HostSteps
from gpupipe.machine import cpu_name
from gpupipe.media.handover import HandOver
from gpupipe.media.video import read_frames

BATCH = 8


def plain_way(character: Character, count: int, predictions: NDArray[np.float32]) -> Callable[[int], None]:
    """The plain algorithm on bgr24 frames, one frame at a time, converted for the encoder."""
    bodies = list(read_frames(character.body.path, "bgr24", count))
    crops = list(read_frames(character.crops.path, "bgr24", count))
    layout, hand_over = character.layout, HandOver("bgr24", character.body.colour, "libx264")

    def frame(number: int) -> None:
        visual_input(crops[number], layout)
        prediction, rect = predictions[number % BATCH], character.rects[number]
        hand_over(composite_bgr24(prediction, crops[number], bodies[number], rect, layout))

    return frame


def gpupipe_way(character: Character, count: int) -> Callable[[int], None]:
    """gpupipe's compositor in nv12, a batch at a time; the frame is handed over as it is."""
    steps, hand_over = HostSteps(character, "nv12", count, BATCH), HandOver("nv12", character.body.colour, "libx264")

    def batch(number: int) -> None:
        steps.prepare(number)
        steps.paste(number)
        for frame in steps.finished:
            hand_over(frame)

    return batch


def measure_time(character: Character, count: int) -> dict[str, Any]:
    """Milliseconds a frame of both ways, batches in turn, and the median of the paired ratios."""
    cv2.setNumThreads(1)
    count = max(BATCH, count // BATCH * BATCH)
    predictions = np.random.default_rng(0).random((BATCH, 3, *[character.layout.model_size] * 2), dtype=np.float32)
    plain, ours = plain_way(character, count, predictions), gpupipe_way(character, count)
    times: list[tuple[float, float]] = []
    for start in range(0, 5 * count, BATCH):
        began = time.perf_counter()
        for number in range(start, start + BATCH):
            plain(number % count)
        between = time.perf_counter()
        ours(start % count // BATCH)
        times.append((between - began, time.perf_counter() - between))
    times = times[3:]  # the first ones warm caches up
    plain_ms, ours_ms = (statistics.median(column) / BATCH * 1e3 for column in zip(*times, strict=True))
    ratios = [a / b for a, b in times]
    return {
        "plain_ms": round(plain_ms, 3),
        "gpupipe_nv12_ms": round(ours_ms, 3),
        "speedup_median": round(statistics.median(ratios), 2),
        "speedup_quartiles": [round(q, 2) for q in statistics.quantiles(ratios, n=4)[::2]],
    }


def measure_memory(folder: Path, model: Path, frame_count: int | None) -> dict[str, Any]:
    """Peak resident bytes of whole renders, each in a process of its own."""
    found: dict[str, Any] = {}
    for pixel_format in ("nv12", "bgr24"):
        with tempfile.TemporaryDirectory() as work:
            stats = Path(work) / "stats.json"
            command = [sys.executable, "-m", "gpupipe", "render", str(folder), "-o", f"{work}/out.mp4", "--quiet"]
            command += ["--model", str(model), "--device", "cpu", "--pixel-format", pixel_format, "--stats", str(stats)]
            command += [] if frame_count is None else ["--frames", str(frame_count)]
            subprocess.run(command, check=True)
            read = json.loads(stats.read_text("utf-8"))
        found[pixel_format] = {name: read[name] for name in ("frames", "peak_rss_bytes", "cache_bytes")}
    found["ratio"] = round(found["nv12"]["peak_rss_bytes"] / found["bgr24"]["peak_rss_bytes"], 3)
    return found


def main() -> None:
    """Measure, print, and write JSON if asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("character", type=Path)
    parser.add_argument("--model", type=Path, help="measure memory too, with this model")
    parser.add_argument("--frames", type=int, default=100, help="frames to time")
    parser.add_argument("--memory-frames", type=int, help="frames of the renders whose memory is measured [all]")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    character = Character.load(options.character)
    result: dict[str, Any] = {"cpu": cpu_name(), "character": options.character.name}
    result["compose"] = measure_time(character, min(options.frames, character.count))
    if options.model is not None:
        result["memory"] = measure_memory(options.character, options.model, options.memory_frames)
    print(json.dumps(result, indent=1))
    if options.json is not None:
        options.json.write_text(json.dumps(result, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
