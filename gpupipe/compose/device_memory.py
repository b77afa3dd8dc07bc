"""Places for a character's frames in device memory, and how decoded frames get there: through page-locked memory, on
the upload stream, each waited for by the thread that has decoded it.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

import numpy as np

from gpupipe.compose.decoding import Frame
from gpupipe.compose.frames import FrameSpec
from gpupipe.compose.table import device_shape
from gpupipe.errors import DeviceError
from gpupipe.gpu.device import Device
from gpupipe.gpu.types import DeviceArray, PitchedRows


class FrameMemory:
    """Device memory for so many frames of a character, not initialised.

    Args:
        device: where.
        spec: of the frames.
        count: places.

    Raises:
        DeviceMemoryError: it does not fit.
    """

    def __init__(self, device: Device, spec: FrameSpec, count: int) -> None:
        self.device, self.spec, self.count = device, spec, count
        self._arrays: list[DeviceArray] = []
        if count:
            self._arrays.append(device.empty((count, *device_shape(spec.format)), np.uint8, "body frames"))
            self._arrays.append(device.empty((count, crop_bytes(spec)), np.uint8, "crops"))

    @property
    def body(self) -> DeviceArray:
        """uint8 `[count, *device_shape(format)]`."""
        return self._arrays[0]

    @property
    def crops(self) -> DeviceArray:
        """uint8 `[count, crop_bytes(spec)]`."""
        return self._arrays[1]

    @property
    def addresses(self) -> tuple[int, int]:
        """Of the first body frame and the first crop; 0 where there are no places."""
        return (self.body.data.ptr, self.crops.data.ptr) if self.count else (0, 0)

    def close(self) -> None:
        """Release it, once what has been queued with it is done. More than once is allowed."""
        # A GPU that has failed has said so where its result was waited for: that error is the one to show.
        with suppress(DeviceError):
            self.device.wait_for_queued(self.device.compute_stream)
        self._arrays.clear()


class Uploads:
    """Brings decoded frames to their places, one at a time. Used by one thread.

    Args:
        memory: where to.
        body: whether bodies are brought.
        crops: whether crops, with their recorded inputs, are.

    Raises:
        DeviceMemoryError: the host has not so much memory that can be locked.
    """

    def __init__(self, memory: FrameMemory, *, body: bool, crops: bool) -> None:
        device, spec = memory.device, memory.spec
        rows, pitch = device_shape(spec.format)
        width = spec.format.row_bytes
        self._memory, self._arrived = memory, device.event()
        self._rows = PitchedRows(rows=rows, width=width, source_pitch=width, target_pitch=pitch)
        self._body: Frame = device.pinned(spec.format.shape if body else (0,), np.uint8, "uploading")
        self._crop: Frame = device.pinned((crop_bytes(spec) if crops else 0,), np.uint8, "uploading")

    def put_body(self, place: int, decoded: Sequence[Frame]) -> None:
        """Bring a body frame to a place: it is there when this returns.

        Raises:
            DeviceError: the device has failed.
        """
        self._queue_body(place, decoded[0])
        self._wait()

    def put_crops(self, place: int, decoded: Sequence[Frame]) -> None:
        """Bring a crop, and its recorded inputs if they are kept, likewise."""
        self._queue_crops(place, decoded)
        self._wait()

    def put(self, place: int, decoded: Sequence[Frame]) -> None:
        """Bring a body frame, its crop, and its recorded inputs if they are kept, likewise."""
        self._queue_body(place, decoded[0])
        self._queue_crops(place, decoded[1:])
        self._wait()

    def _queue_body(self, place: int, frame: Frame) -> None:
        device = self._memory.device
        np.copyto(self._body, frame)
        device.copy(self._memory.body[place], self._body, device.upload_stream, rows=self._rows)

    def _queue_crops(self, place: int, decoded: Sequence[Frame]) -> None:
        """The crop's planes, and right behind them those of the recorded inputs."""
        device, begin = self._memory.device, 0
        for frame in decoded:
            planes = frame.transpose(2, 0, 1)
            np.copyto(self._crop[begin : begin + planes.size].reshape(planes.shape), planes)
            begin += planes.size
        device.copy(self._memory.crops[place], self._crop, device.upload_stream)

    def _wait(self) -> None:
        """For the copies: the staging is free again then, and the frame is there for every stream."""
        device = self._memory.device
        device.record(self._arrived, device.upload_stream)
        device.wait(self._arrived)


def crop_bytes(spec: FrameSpec) -> int:
    """Bytes of one crop with its recorded inputs, if they are kept, right behind it; both are multiples of 16."""
    return int(np.prod(spec.crop_shape)) + (int(np.prod(spec.recorded_shape)) if spec.recorded else 0)


def place_bytes(spec: FrameSpec) -> int:
    """Bytes of device memory that one frame takes."""
    return int(np.prod(device_shape(spec.format))) + crop_bytes(spec)
