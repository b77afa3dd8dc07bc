"""What each way needs, in a process of its own: seconds to load and to the first frame, resident and device memory."""

from __future__ import annotations

import multiprocessing
import tempfile
import time
import warnings
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from gpupipe.bench.registry import way_named
from gpupipe.bench.scene import Scene, SceneOptions
from gpupipe.bench.way import NoTrace
from gpupipe.machine import peak_rss_bytes


def measure_memory(options: SceneOptions, name: str) -> dict[str, Any]:
    """Open one way in a new process, draw its first frame, and render a few batches to a video.

    Returns:
        `preload_seconds`: decoding, caching and opening the model; `first_frame_seconds`: from the same beginning to
        the first finished frame, which need not wait for all of it; `peak_rss_bytes` of the whole process;
        `cache_bytes`: the character's frames; `device_bytes`: what the way holds of a GPU's memory.
    """
    # Not forked: a fork would inherit what this process holds.
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_measure, options, name).result()


def _measure(options: SceneOptions, name: str) -> dict[str, Any]:
    warnings.simplefilter("ignore")  # the parent has shown what is odd about the character
    scene = Scene(options)
    way = way_named(scene, name)
    drawn: list[float] = []
    began = time.perf_counter()
    preload = way.start(lambda frame: drawn.append(time.perf_counter()))
    frame_count = min(scene.frame_count, 3 * scene.batch_size)
    with tempfile.TemporaryDirectory() as folder, way.encoder(Path(folder) / "out.mp4") as save:
        way.render(save, NoTrace(), frame_count)
    found = {
        "preload_seconds": round(preload, 3),
        "first_frame_seconds": round(drawn[0] - began, 3),
        "peak_rss_bytes": peak_rss_bytes(),
        "cache_bytes": way.cache_bytes,
        "device_bytes": way.device_bytes,
    }
    way.close()
    return found
