"""The ways as entrants of the comparison: each opened once, then timed stage by stage, over and over."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from gpupipe.bench.handover import OpencvNv12
from gpupipe.bench.scene import Runner, Scene
from gpupipe.bench.ways import Floats, Infer, Save
from gpupipe.colour import PixelFormat
from gpupipe.geometry import SPEECH_SHAPE
from gpupipe.media.handover import HandOver
from gpupipe.render.output import open_output
from gpupipe.trace import Trace

Pixels = NDArray[np.uint8]
StageName = Literal["compose", "infer", "encode", "render"]
STAGES: tuple[StageName, ...] = ("compose", "infer", "encode", "render")

SWSCALE = "libswscale, in as many threads as it likes"
OPENCV = "OpenCV, in one thread, with the chroma of one pixel of four"

PlainWay = Callable[[Scene, Infer, Save, Trace], None]


class NoTrace(Trace):
    """A trace that keeps nothing, where its own time would count."""

    def span(self, stage: str, frames: int = 0) -> Any:
        """A with block that is not timed."""
        return nullcontext()


class Entrant:
    """One way; the base of those below.

    Args:
        name: in tables.
        about: what it does, for people.
        scene: what it renders.

    Attributes:
        pixel_format: of the frames that it draws.
        stages: those that it takes part in.
        threads: its compositing threads, by stage.
        batch: frames in a batch.
        meaningless: why its times say nothing, or None.
        device_bytes: device memory that it holds once open.
        cache_bytes: the character's frames that it holds once open.
        notes: what it picked on its own.
    """

    pixel_format: PixelFormat = "bgr24"
    stages: tuple[StageName, ...] = STAGES

    def __init__(self, name: str, about: str, scene: Scene) -> None:
        self.name, self.about, self.scene = name, about, scene
        self.threads = {"compose": 1, "render": 1}
        self.batch = 1
        self.meaningless: str | None = None
        self.device_bytes = self.cache_bytes = 0
        self.notes: tuple[str, ...] = ()
        self.closing = ExitStack()

    def open(self) -> None:
        """Decode, cache, open the model: what is done once, before the first frame."""

    def compose(self, save: Save) -> float | None:
        """Composite all frames on fixed predictions; seconds by the GPU's clock, or None to take the host's."""
        raise NotImplementedError

    def hand_over(self) -> Save:
        """What makes the encoder's picture of a finished frame."""
        return HandOver(self.pixel_format, self.scene.body_info.colour, self.scene.output.encoder.encoder)

    def infer(self) -> float | None:
        """Run the model for all frames on inputs that are ready; seconds as for `compose`."""
        raise NotImplementedError

    def predicted(self) -> Floats:
        """The model's output for the first batch of the scene, `[B, 3, S, S]`."""
        raise NotImplementedError

    def render(self, save: Save, trace: Trace, frames: int) -> None:
        """Every stage, for the first `frames` frames at least."""
        raise NotImplementedError

    @contextmanager
    def encoder(self, path: Path) -> Iterator[Save]:
        """What encodes a finished frame, into a video that is finished when the block ends."""
        sink = open_output(path, self.scene.body_info, self.pixel_format, self.scene.output)
        try:
            yield lambda frame: sink.write(frame[None])
            sink.commit()
        except BaseException:
            sink.abort()
            raise

    def encode(self, path: Path) -> None:
        """Encode as many frames as are rendered: the body's own, which are there already."""
        frames = self.scene.body_nv12 if self.pixel_format == "nv12" else self.scene.body
        with self.encoder(path) as save:
            for source in self.scene.order:
                save(frames[source])

    def close(self) -> None:
        """Release everything."""
        self.closing.close()


class PlainEntrant(Entrant):
    """A plain function of `bench_ways`, with ONNX Runtime as most tools run it.

    Args:
        way: the function.
        batch: frames that it gives the model at a time.
        threads: its compositing threads.
        opencv: convert finished frames with OpenCV where its colours are the stream's, else as `HandOver` does.
    """

    def __init__(
        self, name: str, about: str, scene: Scene, way: PlainWay, *, batch: int = 1, threads: int = 1, opencv: bool
    ) -> None:
        super().__init__(name, about, scene)
        self._way, self.batch = way, batch
        self.threads = {"compose": threads, "render": threads}
        info = scene.body_info
        self._opencv = opencv and OpencvNv12.fits(info.colour, info.width, info.height)
        self.notes = (f"frames converted for the encoder by {OPENCV if self._opencv else SWSCALE}",)
        self._runner: Infer | None = None

    def open(self) -> None:
        """Decode into lists of bgr24 frames, and open the model."""
        scene = self.scene
        self.cache_bytes = sum(frame.nbytes for frame in (*scene.body, *scene.crops))
        self._runner = Runner(scene.options.model, scene.threads)
        self.closing.callback(setattr, self, "_runner", None)

    def compose(self, save: Save) -> None:
        """See `Entrant`."""
        done, predictions = 0, self.scene.predictions

        def fixed(visual: Floats, _: Floats) -> Floats:
            nonlocal done
            first, done = done % len(predictions), done + len(visual)
            return predictions[first : first + len(visual)]

        self._way(self.scene, fixed, save, NoTrace())

    def hand_over(self) -> Save:
        """See `Entrant`."""
        if not self._opencv:
            return super().hand_over()
        convert, wrap = OpencvNv12(), HandOver("nv12", self.scene.body_info.colour, self.scene.output.encoder.encoder)
        return lambda frame: wrap(convert(frame))

    def infer(self) -> None:
        """See `Entrant`."""
        assert self._runner is not None
        size = self.scene.layout.model_size
        visual = np.zeros((self.batch, 6, size, size), np.float32)
        audio = np.zeros((self.batch, *SPEECH_SHAPE), np.float32)
        for start in range(0, self.scene.frames, self.batch):
            left = self.scene.frames - start
            self._runner(visual[:left], audio[:left])

    def predicted(self) -> Floats:
        """See `Entrant`."""
        assert self._runner is not None
        visual, audio = self.scene.inputs
        parts = range(0, len(visual), self.batch)
        return np.concatenate([self._runner(visual[p : p + self.batch], audio[p : p + self.batch]) for p in parts])

    def render(self, save: Save, trace: Trace, frames: int) -> None:
        """See `Entrant`."""
        assert self._runner is not None
        self._way(self.scene.first(frames), self._runner, save, trace)

    @contextmanager
    def encoder(self, path: Path) -> Iterator[Save]:
        """See `Entrant`."""
        if not self._opencv:
            with super().encoder(path) as save:
                yield save
            return
        convert = OpencvNv12()
        sink = open_output(path, self.scene.body_info, "nv12", self.scene.output)
        try:
            yield lambda frame: sink.write(convert(frame)[None])
            sink.commit()
        except BaseException:
            sink.abort()
            raise


class TorchEntrant(PlainEntrant):
    """The model by PyTorch, converted from the ONNX file; it takes part in the inference only."""

    stages = ("infer",)

    def open(self) -> None:
        """Convert the model."""
        from gpupipe.bench.torch_way import TorchRunner

        self._runner = TorchRunner(self.scene.options.model, self.scene.threads)
        self.notes = ()
