"""What the bench asks of a way to render: to be opened once, then timed stage by stage, over and over."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from itertools import count
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from gpupipe.bench.scene import Scene
from gpupipe.colour import PixelFormat
from gpupipe.compose.surface import Surface, SurfaceFormat
from gpupipe.media.handover import HandOver
from gpupipe.options import Precision
from gpupipe.render.manifest import Manifest
from gpupipe.render.output import open_output
from gpupipe.render.segments import Segments
from gpupipe.trace import Span, Trace

Pixels = NDArray[np.uint8]
Floats = NDArray[np.float32]

BenchStage = Literal["compose", "infer", "encode", "render"]
"""What is timed: compositing, the model and the encoder on their own, and a whole render."""
BENCH_STAGES: tuple[BenchStage, ...] = ("compose", "infer", "encode", "render")

SWSCALE = "libswscale, in as many threads as it likes"

Infer = Callable[[Floats, Floats], Floats]
"""Runs the model: `[B, 6, S, S]` and `[B, 32, 16, 16]` to `[B, 3, S, S]`."""

Save = Callable[[Pixels], object]
"""Takes a finished frame, and is done with it when it returns.

What it is decides what is measured: a conversion to the encoder's format for compositing alone; the encoder for a whole
render; a comparison for the check before either.
"""


class NoTrace(Trace):
    """A trace that keeps nothing, where its own time would count."""

    def span(self, *_: object) -> AbstractContextManager[None]:  # type: ignore[override]
        """A with block that is not timed."""
        return nullcontext()

    def add(self, span: Span, shares: Sequence[tuple[Trace, int]] = ()) -> None:
        """Nothing is added."""


class Way(ABC):
    """One way to render; the base of those that the registry has.

    Args:
        name: in tables.
        about: what it does, for people.
        scene: what it renders.

    Attributes:
        pixel_format: of the frames that it draws.
        stages: those that it takes part in.
        optional: whether the others are compared without it where it cannot be opened, unless it was asked for.
        threads: its compositing threads, by stage; what it really runs once it is open.
        batch_size: frames of a batch; likewise.
        frames_a_run: frames that the model takes in one run; likewise.
        precision: in which the model is run.
        keeps_features: whether what the model makes of each cached frame alone is kept with the frame.
        dtype: of the model's numbers.
        gpu_provider: what runs the model where a GPU composites; None on the CPU.
        meaningless: why its times say nothing, or None.
        device_bytes: device memory that it holds once open.
        cache_bytes: the character's frames that it holds once open.
        notes: what it picked on its own.
    """

    pixel_format: PixelFormat = "bgr24"
    stages: tuple[BenchStage, ...] = BENCH_STAGES
    optional = False
    precision: Precision = "fp32"
    keeps_features = False

    def __init__(self, name: str, about: str, scene: Scene) -> None:
        self.name, self.about, self.scene = name, about, scene
        self.threads = {"compose": 1, "render": 1}
        self.batch_size = self.frames_a_run = 1
        self.dtype: np.dtype[Any] = np.dtype(np.float32)
        self.meaningless: str | None = None
        self.gpu_provider: str | None = None
        self.device_bytes = self.cache_bytes = 0
        self.notes: tuple[str, ...] = ()
        self.closing = ExitStack()

    @abstractmethod
    def open(self) -> None:
        """Decode, cache, open the model: what is done once, before the first frame."""

    def start(self, save: Save) -> float:
        """Open, and draw the first batch as soon as it can be, as a render does that finds nothing open.

        Returns:
            Seconds until everything was open, decoded and cached.
        """
        began = time.perf_counter()
        self.open()
        loading = time.perf_counter() - began
        self.render(save, NoTrace(), self.batch_size)
        return loading

    @abstractmethod
    def compose(self, save: Save) -> float | None:
        """Composite all frames on fixed predictions; seconds by the GPU's clock, or None to take the host's."""

    @abstractmethod
    def infer(self) -> float | None:
        """Run the model for all frames on inputs that are ready; seconds as for `compose`."""

    @abstractmethod
    def predicted(self) -> Floats:
        """The model's output for the first batch of the scene, `[B, 3, S, S]`."""

    @abstractmethod
    def render(self, save: Save, trace: Trace, frame_count: int) -> None:
        """Every stage, for the first `frame_count` frames at least."""

    def renew(self) -> None:  # noqa: B027
        """Forget what earlier passes have made of the frames, which each pass is to make itself; not timed."""

    def hand_over(self) -> Save:
        """What makes the encoder's picture of a finished frame."""
        return HandOver(self.pixel_format, self.scene.body_info.colour, self.scene.output.encoder)

    @contextmanager
    def encoder(self, path: Path) -> Iterator[Save]:
        """What encodes a finished frame, into a video that is finished when the block ends."""
        with encoding(self.scene, path, self.pixel_format) as save:
            yield save

    def encode(self, path: Path) -> None:
        """Encode as many frames as are rendered: the body's own, which are there already."""
        body = self.scene.body_nv12 if self.pixel_format == "nv12" else self.scene.body
        with self.encoder(path) as save:
            for source in self.scene.order:
                save(body[source])

    def close(self) -> None:
        """Release everything."""
        self.closing.close()


@contextmanager
def encoding(scene: Scene, path: Path, pixel_format: PixelFormat) -> Iterator[Save]:
    """What encodes a frame of that format, into a video that is finished when the block ends."""
    format = SurfaceFormat(pixel_format, scene.body_info.width, scene.body_info.height)
    segments = Segments(scene.frame_count, scene.output.segment_frames)
    manifest = Manifest({}, segments.total, segments.frames)
    sink = open_output(path, scene.body_info, pixel_format, scene.output, segments=segments, manifest=manifest)
    writer, numbers = sink.writer(), count()
    try:
        yield lambda frame: writer.write(Surface(format, frame, index=next(numbers)))
        writer.close()
        sink.commit()
    except BaseException:
        writer.abort()
        sink.leave()
        raise
