"""What a finished frame is: the contract of compositors, the CPU's, which defines it, and the GPU's, which equals it.

May touch arrays, on the host or on a device; knows nothing of files, sessions or models beyond their shapes.

    protocol       what a compositor is asked, and what a batch is          surface        where a finished frame lies
    decoding       which cached frames are there while others come          cpu            the definition
    frames         a character's cached frames on the host                  gpu            the kernels' compositor
    device_frames  the same on a GPU          device_memory  where they lie, and how they get there
    table          what the kernels are told of each frame                  device_speech  a speech on a GPU
"""

from gpupipe.compose.cpu import CpuCompositor
from gpupipe.compose.frames import FrameSpec, HostFrames
from gpupipe.compose.gpu import GpuCompositor
from gpupipe.compose.protocol import BatchKind, Compositor, Drawing, Slot
from gpupipe.compose.surface import Surface, SurfaceFormat

__all__ = [
    "BatchKind",
    "Compositor",
    "CpuCompositor",
    "Drawing",
    "FrameSpec",
    "GpuCompositor",
    "HostFrames",
    "Slot",
    "Surface",
    "SurfaceFormat",
]
