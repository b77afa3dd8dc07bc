"""A character that speaks while its speech still comes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from gpupipe.compose.surface import Surface, SurfaceFormat
from gpupipe.engine.core import EngineCore
from gpupipe.engine.order import SessionOrder
from gpupipe.engine.session import Session
from gpupipe.render.sink import copied
from gpupipe.speech.mel import SAMPLE_RATE
from gpupipe.speech.rows import SpeechRows
from gpupipe.speech.speech import OpenEncoder
from gpupipe.speech.stream import LIVE_BATCH, FeatureStream
from gpupipe.speech.windows import frame_count
from gpupipe.trace import Trace


class Live:
    """A speech under way: sound goes in, finished frames come out, each as soon as what it hears has come.

    A frame hears 0.28 s ahead; `FeatureStream` says how long after a frame's time the last of it is there. The frames
    are those of `Engine.frames` with the same sound from a file. One thread pushes while another takes frames. A
    context manager, made by `Engine.live`.

    Args:
        engine: that draws.
        order: whom, and how.
        encoder: the audio encoder's ONNX file.
        due: when each output frame must be finished, seconds of `time.monotonic`; None: as soon as it can be.
        drop_late: pass over frames that would be late whatever is done, instead of drawing them.
        trace: collects the times of every stage.

    Raises:
        GpupipeError: something cannot be opened, or does not fit in memory.
    """

    def __init__(
        self,
        engine: EngineCore,
        order: SessionOrder,
        encoder: Path,
        *,
        due: Callable[[int], float] | None = None,
        drop_late: bool = False,
        trace: Trace | None = None,
    ) -> None:
        rows, self._samples = SpeechRows(), 0
        streams: list[FeatureStream] = []

        def speech(open_encoder: OpenEncoder) -> SpeechRows:
            # The CPU's answer for a window is the same alone, so nothing is padded there.
            opened = open_encoder(encoder, 1 if engine.backend.gpu is None else LIVE_BATCH)
            streams.append(FeatureStream(opened, rows, batch=opened.batch))
            return rows

        self._session: Session = engine.open_session(
            replace(order, total=None), speech, trace=trace, due=due, drop_late=drop_late
        )
        (self._stream,) = streams

    @property
    def finished(self) -> int:
        """Frames that are finished so far."""
        return self._session.finished

    @property
    def total(self) -> int | None:
        """Frames in all, with those that are passed over; None before `finish`."""
        return self._session.total

    @property
    def dropped(self) -> int:
        """Frames that were passed over so far, as they would have been late."""
        return self._session.dropped

    @property
    def format(self) -> SurfaceFormat:
        """What finished frames look like."""
        return self._session.format

    @property
    def frame_seconds(self) -> float:
        """What a frame takes of the device, as measured lately: of a batch's time, divided by the frames in it."""
        pace = self._session.lane.pace
        return pace.seconds / pace.fill

    @property
    def missing(self) -> int:
        """Samples that complete the next row of features: who pushes fewer has them held, and waits for nothing."""
        return self._stream.missing

    def push(self, pcm: NDArray[np.float32]) -> None:
        """Take the next samples of the speech.

        Args:
            pcm: float32 `[n]`, mono, 16 kHz, full scale ±1.

        Raises:
            ValueError: `pcm` has another shape or type, or the speech was finished before.
            GpupipeError: the sound holds NaN, or the encoder fails.
        """
        self._stream.push(pcm)
        self._samples += len(pcm)

    def finish(self) -> None:
        """End the speech: the frames that remain are drawn, as many as the sound lasts.

        Raises:
            ValueError: it was finished before.
            MediaError: the speech is shorter than one window, 0.1875 s.
        """
        self._session.total = frame_count(Fraction(self._samples, SAMPLE_RATE), self._session.fps)
        self._stream.finish()

    def __iter__(self) -> Iterator[NDArray[np.uint8]]:
        """Finished frames in order, uint8: nv12 `[H * 3 // 2, W]` or bgr24 `[H, W, 3]`. Each is the caller's to keep.

        Raises:
            GpupipeError: what ended the speech early.
        """
        yield from copied(self._session)

    def take(self) -> Surface | None:
        """The next finished frame without a copy, with its number; None after the last. It must be released."""
        return self._session.next()

    def close(self) -> None:
        """End it, whatever is still to be drawn."""
        self._session.close()

    def __enter__(self) -> Live:
        """Begin a with block, which ends it."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End it."""
        self.close()
