"""One speech of one client: sound in, pictures out, each in its time."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Final

import numpy as np
from numpy.typing import NDArray

from gpupipe.character.folder import Character
from gpupipe.compose.surface import Surface, SurfaceFormat
from gpupipe.errors import Cancelled, GpupipeError
from gpupipe.log import Log
from gpupipe.media.resample import Resampler
from gpupipe.options import ModelKeywords
from gpupipe.render.engine import Engine
from gpupipe.serve.limits import ServeLimits
from gpupipe.serve.order import TalkOrder
from gpupipe.serve.refusals import BadRequest, Silent, TooLarge
from gpupipe.speech.mel import SAMPLE_RATE

GUARD_SECONDS: Final = 0.06
"""By how much earlier than promised the engine is told that a frame is due: a batch that waits for company is begun as
late as its measured time allows, and other programs may hold it up."""

REALTIME_DEPTH: Final = 6
"""Surfaces of a realtime talk: frames come 40 ms apart, and each is taken as soon as it is finished."""

_log = Log(__name__)


@dataclass(frozen=True)
class Picture:
    """A finished frame of a talk.

    Attributes:
        index: from 0; its time is `index / fps` of the speech.
        pixels: uint8 nv12 `[H * 3 // 2, W]`, good until the next picture is asked for.
        repeats: whether it stands for one that was passed over as it would have been late; the pixels are then those of
            the picture before (of the next one, if there is none before).
    """

    index: int
    pixels: NDArray[np.uint8]
    repeats: bool


class Talk:
    """A speech under way. One thread pushes sound while another takes pictures. A context manager.

    Made by `Hub.open`. Its clock starts with the first sound: frame k is due at start + k / fps + `delay`. Sound
    that comes late, as from a microphone behind a slow network, moves the start: the client's own frames come later, as
    if it had begun later, and nobody else's.

    Args:
        engine: that draws.
        character: who speaks.
        order: what was asked for.
        limits: of the server.
        model: the server's options of the model.
        number: by which logs and metrics call it.
        ended: told once, when it is closed.

    Attributes:
        delay: the order's; another may be set before the first sound, by who has heard the speech begin earlier.
        late: pictures that were finished after they were due, so far.
        pictures_given: pictures taken so far, with those that repeat.
        behind: of them, those that were late or passed over by the server's own fault.
        excused: set by who takes the pictures, while his client holds him up: what is late then is the client's fault.
    """

    def __init__(
        self,
        engine: Engine,
        character: Character,
        order: TalkOrder,
        limits: ServeLimits,
        model: ModelKeywords,
        *,
        number: int,
        ended: Callable[[Talk], None],
    ) -> None:
        self.character, self.order, self.number, self.engine = character, order, number, engine
        self.fps: Fraction = character.body.fps
        self._frame_seconds = float(1 / self.fps)
        self.late = self.pictures_given = self.behind = 0
        self.excused = False
        self.delay = order.delay
        self._limits, self._ended = limits, ended
        self._lock, self._pushing = threading.Lock(), threading.Lock()
        self._resampler = None if order.rate == SAMPLE_RATE else Resampler(order.rate, SAMPLE_RATE)
        self._start: float | None = None
        self._samples = 0
        self._heard = self._taken = time.monotonic()
        self._waits_for_taker = self._finished = self._closed = False
        self._error: GpupipeError | None = None
        self._live = engine.live(
            character,
            due=self._due if order.realtime else None,
            drop_late=order.realtime,
            depth=REALTIME_DEPTH if order.realtime else None,
            pixel_format="nv12",
            start_frame=order.start_frame,
            **model,
        )

    @property
    def format(self) -> SurfaceFormat:
        """What its pictures look like."""
        return self._live.format

    @property
    def seconds(self) -> float:
        """Of speech that were pushed so far."""
        return self._samples / self.order.rate

    @property
    def total(self) -> int | None:
        """Pictures in all; None before `finish`."""
        return self._live.total

    @property
    def dropped(self) -> int:
        """Frames that were passed over so far."""
        return self._live.dropped

    @property
    def device_seconds(self) -> float:
        """What a frame takes of the device, as measured lately, in batches as full as they were."""
        return self._live.frame_seconds

    @property
    def open(self) -> bool:
        """Whether it has not ended."""
        return not self._closed

    @property
    def has_room(self) -> bool:
        """Whether more sound may be pushed now; what is drawn already makes room."""
        drawn = self.pictures_given * self._frame_seconds
        return self.seconds - drawn <= self._limits.ahead_seconds

    def only_holds(self, samples: int) -> bool:
        """Whether so many more samples complete nothing, so that pushing them takes no time."""
        return self._resampler is None and samples < self._live.missing

    def promised(self, index: int) -> float:
        """When a picture is due, seconds of `time.monotonic`; infinity before the first sound."""
        start = self._start
        return float("inf") if start is None else start + index * self._frame_seconds + self.delay

    def push(self, pcm: NDArray[np.float32]) -> None:
        """Take the next samples of the speech. Computes their features: not for the event loop, unless it `only_holds`
        them.

        Args:
            pcm: float32 `[n]`, mono, full scale ±1, at the order's rate.

        Raises:
            BadRequest: they hold NaN or infinity, or the speech was finished.
            TooLarge: the speech is longer than is taken.
            GpupipeError: what has ended the talk.
        """
        self._raise_if_over()
        now = time.monotonic()
        if self.seconds + len(pcm) / self.order.rate > self._limits.seconds:
            raise TooLarge(
                f"the speech is longer than {self._limits.seconds:.0f} s", field="audio", remedy="send it in parts"
            )
        if not np.isfinite(pcm).all():
            raise BadRequest("the sound holds NaN or infinity", field="audio", remedy="send finite samples")
        self._heard = now
        begun = now - self.seconds
        self._start = begun if self._start is None else max(self._start, begun)
        self._samples += len(pcm)
        with self._pushing:
            self._raise_if_over()
            self._live.push(pcm if self._resampler is None else self._resampler.push(pcm))

    def finish(self) -> None:
        """End the speech: what is left of it is drawn.

        Raises:
            BadRequest: it was finished before, or is too short to be heard.
            GpupipeError: what has ended the talk.
        """
        self._raise_if_over()
        with self._pushing:
            self._raise_if_over()
            self._finished = True
            if self._resampler is not None:
                self._live.push(self._resampler.finish())
            self._live.finish()

    def __iter__(self) -> Iterator[Picture]:
        """Pictures in order, without gaps. Not for the event loop.

        Raises:
            GpupipeError: what has ended the talk early.
        """
        before: Surface | None = None
        expected = 0
        try:
            while True:
                self._waits_for_taker = False
                asked = time.monotonic()
                surface = self._live.take()
                self._taken, self._waits_for_taker = time.monotonic(), True
                end = self._live.total if surface is None else surface.index
                shown, first = before or surface, expected
                while end is not None and expected < end and shown is not None:
                    yield self._picture(expected, shown, repeats=True)
                    expected += 1
                if surface is None:
                    return
                if before is not None:
                    before.release()
                before = surface
                self._judge(surface, expected - first, asked)
                yield self._picture(surface.index, surface, repeats=False)
                expected = surface.index + 1
        except Cancelled as error:
            raise self._error or error from error
        finally:
            if before is not None:
                before.release()

    def check(self, now: float) -> None:
        """End it if its client has sent, or taken, nothing for too long. A peer's pictures are taken once what is said
        before them has ended, however long that is; who no longer takes any is seen by `webrtc.peer.Peer.look`."""
        longest = self._limits.idle_seconds
        if not self.has_room:  # it is the client who waits
            self._heard = now
        if not self._finished and now - self._heard > longest:
            self.fail(Silent(f"no sound came for {longest:.0f} s", remedy="send sound, or end the speech"))
        elif self.order.output != "webrtc" and self._waits_for_taker and now - self._taken > longest:
            self.fail(Silent(f"no picture was taken for {longest:.0f} s", remedy="read the answers"))

    def fail(self, error: GpupipeError) -> None:
        """End it with an error, which `push` and the pictures' taker are told."""
        with self._lock:
            if self._error is None and not self._closed:
                self._error = error
        self.close()

    def close(self) -> None:
        """End it, whatever is still to be drawn. More than once is allowed."""
        with self._lock:
            closed, self._closed = self._closed, True
        if not closed:
            with self._pushing:  # the encoder is another's once the session is closed
                self._live.close()
            error = None if self._error is None else str(self._error)
            _log.event("talk ended", talk=self.number, pictures=self.pictures_given, late=self.late, error=error)
            self._ended(self)

    def __enter__(self) -> Talk:
        """Begin a with block, which ends it."""
        return self

    def __exit__(self, *_: object) -> None:
        """End it."""
        self.close()

    def _judge(self, surface: Surface, passed_over: int, asked: float) -> None:
        """Count what is late, and whose fault it is: not the client's any more, once a picture comes in time that was
        waited for."""
        late = self.order.realtime and surface.finished > self.promised(surface.index)
        self.late += late
        if not self.excused:
            self.behind += late + passed_over
        elif not late and not passed_over and surface.finished > asked:
            self.excused = False

    def _due(self, index: int) -> float:
        return self.promised(index) - GUARD_SECONDS

    def _picture(self, index: int, surface: Surface, *, repeats: bool) -> Picture:
        assert surface.host is not None
        self.pictures_given += 1
        self._taken = time.monotonic()
        return Picture(index, surface.host, repeats)

    def _raise_if_over(self) -> None:
        if self._error is not None:
            raise self._error
        if self._closed:
            raise Cancelled("the talk was closed")
        if self._finished:
            raise BadRequest("the speech was finished before", remedy="open another")
