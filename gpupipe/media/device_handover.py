"""The hand-over of a finished frame in GPU memory to an encoder on that GPU: nothing is copied."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any, Protocol

import av
from av.video.frame import CudaContext

from gpupipe.colour import Colour

NO_WAIT = -1
"""A DLPack stream that nobody is to wait for (DLPack's Python specification, `__dlpack__`): what is handed over is
complete."""


class FrameGpu(Protocol):
    """The GPU whose memory holds the frames: a `gpu.device.Device`."""

    @property
    def index(self) -> int:
        """Its number, as CUDA counts the visible ones."""

    def use(self) -> AbstractContextManager[None]:
        """Make it the calling thread's current one."""


class DeviceHandOver:
    """Makes the encoder's picture of each finished nv12 frame of a stream, in the frame's own memory on the GPU.

    A frame must be complete when it is handed over: no stream is named. Our streams and the null stream, on which
    FFmpeg and NVENC then work, are not ordered, and a stream can be given for GPU 0 only (av/video/frame.py,
    `CudaContext`, PyAV 18.1; https://github.com/PyAV-Org/PyAV/pull/2360).

    Args:
        gpu: whose memory the frames lie in.
        colour: of the stream.
        width: of the frames, pixels, even.
    """

    encoder_format = "cuda"
    """The pixel format of the pictures."""

    def __init__(self, gpu: FrameGpu, colour: Colour, width: int) -> None:
        self._gpu, self._colour, self._width = gpu, colour, width
        # CuPy's context, which FFmpeg would refuse as "primary": it wants that one made with other flags
        # (libavutil/hwcontext_cuda.c, `cuda_context_init`; https://github.com/PyAV-Org/PyAV/pull/2339). PyAV looks for
        # it at the first picture, in the thread that makes it.
        self._context = CudaContext(gpu.index, primary_ctx=False, current_ctx=True)

    def __call__(self, frame: Any) -> av.VideoFrame:
        """The picture of a frame.

        Args:
            frame: `gpu.types.DeviceArray`, uint8 `[H * 3 // 2, pitch]`: luma, then chroma, one allocation; NVENC is
                told where the first begins and no more (libavcodec/nvenc.c, `nvenc_register_frame`). H even.

        Returns:
            A picture that keeps the frame's memory alive. The frame may not be drawn on before its packet is out.

        Raises:
            av.FFmpegError: FFmpeg cannot use the GPU.
        """
        height = frame.shape[0] * 2 // 3
        planes = frame[:height, : self._width], frame[height:, : self._width]
        with self._gpu.use():
            picture = av.VideoFrame.from_dlpack(planes, format="nv12", stream=NO_WAIT, cuda_context=self._context)
        picture.colorspace, picture.color_range = self._colour.matrix, self._colour.range
        return picture
