"""Does everything else hide behind inference? A whole render against the model alone, on the same thread.

    python benchmarks/overlap.py CHARACTER --model M.onnx [--frames 200] [--runs 3] [--trace FILE] [--json FILE]

The model is held to one CPU thread in both. The whole render loads the character, prepares, infers, pastes and
encodes to mp4; the model alone runs as many batches on one prepared slot. Both run in turn; the ratio is the median of
the pairs.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from gpupipe import Character, render
from gpupipe.machine import cpu_count, cpu_name
from gpupipe.model.model import Model
from gpupipe.model.runtime import SessionOptions
from gpupipe.trace import INFER, SAVE, Trace

BATCH = 8


def alone_seconds(path: Path, size: int, frame_count: int) -> float:
    """Seconds that the model takes for `frame_count` frames on one thread, opening it not counted."""
    model = Model(path, SessionOptions(threads=1), batch=BATCH)
    rng = np.random.default_rng(0)
    visual = rng.random((BATCH, 6, size, size), dtype=np.float32).astype(model.dtype)
    audio = rng.random((BATCH, 32, 16, 16), dtype=np.float32).astype(model.dtype)
    prediction = np.zeros((BATCH, 3, size, size), model.dtype)
    bound = model.bind(visual, audio, prediction)
    began = time.perf_counter()
    for _ in range(-(-frame_count // BATCH)):
        model.run(bound, BATCH)
    seconds = time.perf_counter() - began
    model.close()
    return seconds


def whole_seconds(character: Character, model: Path, frame_count: int, trace: Trace) -> float:
    """Seconds of a whole render to mp4."""
    with tempfile.TemporaryDirectory() as work:
        stats = render(
            character,
            Path(work) / "out.mp4",
            model=model,
            frames=frame_count,
            batch=BATCH,
            device="cpu",
            inference_threads=1,
            trace=trace,
        )
    return stats.total_seconds


def hidden_share(trace: Trace) -> float:
    """The share of saving (encoding) time during which the model was running."""
    runs = [span for span in trace.spans if span.stage == INFER]
    saves = [span for span in trace.spans if span.stage == SAVE]
    shared = sum(max(0.0, min(a.end, b.end) - max(a.start, b.start)) for a in runs for b in saves)
    return shared / sum(span.end - span.start for span in saves)


def main() -> None:
    """Measure, print, and write JSON if asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("character", type=Path)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--frames", type=int, default=200)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--trace", type=Path)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    character = Character.load(options.character)
    pairs = []
    for _ in range(options.runs):
        trace = Trace(spans=True)
        whole = whole_seconds(character, options.model, options.frames, trace)
        pairs.append((whole, alone_seconds(options.model, character.layout.model_size, options.frames)))
    result: dict[str, Any] = {
        "cpu": cpu_name(),
        "cores": cpu_count(),
        "character": options.character.name,
        "frames": options.frames,
        "whole_seconds": [round(whole, 2) for whole, _ in pairs],
        "inference_alone_seconds": [round(alone, 2) for _, alone in pairs],
        "ratio_median": round(statistics.median(whole / alone for whole, alone in pairs), 3),
        "encoding_hidden_behind_inference": round(hidden_share(trace), 3),
    }
    print(json.dumps(result, indent=1))
    if options.json is not None:
        options.json.write_text(json.dumps(result, indent=1) + "\n", "utf-8")
    if options.trace is not None:
        trace.save(options.trace)


if __name__ == "__main__":
    main()
