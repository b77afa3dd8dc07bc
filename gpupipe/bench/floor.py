"""The least time that each stage can take here: bytes that must move over the measured bandwidth, and operations over
the measured rate of matrix products."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import DTypeLike

from gpupipe.bench.scene import Scene
from gpupipe.bench.way import Way
from gpupipe.colour import PixelFormat
from gpupipe.compose.frames import FrameSpec
from gpupipe.compose.surface import SurfaceFormat
from gpupipe.compose.traffic import least_bytes
from gpupipe.gpu.device import open_device
from gpupipe.model.cost import ModelFloor, moved_bytes
from gpupipe.model.rates import Arithmetic, device_matrix_rate, device_rates, host_matrix_rate, host_rates

Rates = dict[str, float | None]


class MachineRates:
    """What this machine and its GPU can do.

    Args:
        threads: of the model on the CPU.
        gpu_provider: what runs the model where the GPU composites; None: none does.

    Attributes:
        host, device: what `model.rates` has measured, by name; of the device None if there is none.
    """

    def __init__(self, threads: int, gpu_provider: str | None) -> None:
        self._threads, self._gpu = threads, None if gpu_provider is None else open_device()
        self.host: Rates = dict(host_rates(threads))
        self.device: Rates | None = None
        if self._gpu is not None and gpu_provider is not None:
            self.device = device_rates(self._gpu, gpu_provider)

    def side(self, *, on_gpu: bool) -> Rates:
        """The device's or the host's."""
        assert self.device is not None or not on_gpu
        return self.device if on_gpu and self.device is not None else self.host

    def operations(self, arithmetic: Arithmetic, *, on_gpu: bool) -> float | None:
        """Operations a second of matrix products; measured when they are first asked for."""
        if arithmetic == "float32":
            return self.side(on_gpu=on_gpu)["flops_per_second"]
        rates, name = self.side(on_gpu=on_gpu), f"{arithmetic}_operations_per_second"
        if name not in rates:
            rates[name] = (
                device_matrix_rate(self._gpu, arithmetic)
                if on_gpu and self._gpu is not None
                else host_matrix_rate(self._threads, arithmetic)
            )
        return rates[name]


def frame_bytes(scene: Scene, pixel_format: PixelFormat, dtype: DTypeLike = np.float32) -> dict[str, int]:
    """Bytes a frame that must be read and written in each stage, whoever does it, in the scene's first batch.

    prepare, paste: what gpupipe's kernels must move, but that the finished frame is written in the format that the
    encoder takes; encode: that frame read; to_host: the frame as it is composited.
    """
    info = scene.body_info
    spec = FrameSpec(scene.layout, pixel_format, info.width, info.height, scene.rects, info.colour)
    sources = scene.order[: scene.batch_size].tolist()
    finished, encoded = spec.format.nbytes, SurfaceFormat("nv12", info.width, info.height).nbytes
    prepare, paste = (least_bytes(name, spec, dtype, sources) for name in ("prepare", f"paste_{pixel_format}"))
    return {
        "prepare": round(prepare),
        "paste": round(paste) - finished + encoded,
        "encode": encoded,
        "to_host": finished,
    }


def model_floor(way: Way, cost: Mapping[str, int], rates: MachineRates) -> ModelFloor:
    """The least that a way's model takes, by the arithmetic and the file that it runs.

    Not known where features are kept: what is left to do for a frame is another graph.

    Args:
        way: opened.
        cost: of the scene's model, what `model_cost` gives.
        rates: of this machine.
    """
    if way.keeps_features:
        return ModelFloor()
    scene, on_gpu = way.scene, way.gpu_provider not in (None, "cpu")
    quantised = "int8" in (way.precision, scene.kept_precision)
    made = scene.made.get(way.precision)
    weights = cost["weight_bytes"] if made is None else made.path.stat().st_size
    moved = moved_bytes({**cost, "weight_bytes": weights}, 1 if quantised else way.dtype.itemsize, way.frames_a_run)
    arithmetic: Arithmetic = "float32"  # in which the CPU computes float16 models too
    if on_gpu:
        arithmetic = "tf32" if way.precision == "tf32" else "float16" if way.dtype == np.float16 else "float32"
    elif quantised:
        arithmetic = "int8"
    bandwidth = rates.side(on_gpu=on_gpu)["copy_bytes_per_second" if on_gpu else "threads_copy_bytes_per_second"]
    assert bandwidth is not None
    return ModelFloor.of(cost["macs"], moved, rates.operations(arithmetic, on_gpu=on_gpu), bandwidth)


def floors(way: Way, rates: MachineRates, model: ModelFloor) -> dict[str, float | None]:
    """The least milliseconds a frame of each stage; None where that is not known.

    On the host stages share the cores, so that a whole render takes their sum; on a GPU they run side by side, and the
    longest decides.

    Args:
        way: opened.
        rates: of this machine.
        model: the model's.
    """
    moved, on_gpu = frame_bytes(way.scene, way.pixel_format, way.dtype), way.gpu_provider is not None

    def taken(*stages: str, rate: str = "copy_bytes_per_second", on_gpu: bool = False) -> float:
        speed = rates.side(on_gpu=on_gpu)[rate]
        assert speed is not None
        return sum(moved[stage] for stage in stages) / speed * 1e3

    encode, compose = taken("encode"), taken("prepare", "paste", on_gpu=on_gpu)
    if on_gpu:
        compose += taken("to_host", rate="to_host_bytes_per_second", on_gpu=True)
    together = max if on_gpu else lambda *parts: sum(parts)
    render = None if model.ms is None else together(compose, model.ms, encode)
    found = {"compose": compose, "infer": model.ms, "encode": encode, "render": render}
    return {name: None if value is None else round(value, 4) for name, value in found.items()}
