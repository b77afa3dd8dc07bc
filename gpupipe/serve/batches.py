"""Frames of a short speech that comes as a whole: which cached frames, with which inputs, is said by who asks.

This is what the published Go server's clients want (`grpc.monolithic`); a talk is what others want.
"""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from fractions import Fraction
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from gpupipe.character.folder import Character
from gpupipe.colour import PixelFormat
from gpupipe.engine.order import SessionOrder
from gpupipe.errors import MediaError
from gpupipe.geometry import SPEECH_BEFORE, SPEECH_RATE, SPEECH_ROWS
from gpupipe.media.images import jpeg
from gpupipe.media.resample import Resampler
from gpupipe.options import OutputOptions
from gpupipe.render.engine import Engine
from gpupipe.serve.hub import Hub
from gpupipe.serve.refusals import BadRequest
from gpupipe.speech.encoder import ENCODER_BATCH
from gpupipe.speech.mel import SAMPLE_RATE
from gpupipe.speech.rows import SpeechRows
from gpupipe.speech.speech import OpenEncoder
from gpupipe.speech.stream import features_from_pcm
from gpupipe.trace import INFER, PASTE, PREPARE, Trace

PIXEL_FORMAT: Final[PixelFormat] = "bgr24"
"""What images are drawn in, by `gpupipe render` too."""

JPEG_QUALITY: Final = OutputOptions().jpeg_quality


@dataclass(frozen=True)
class BatchOrder(SessionOrder):
    """What a session draws of a batch: output frame `apart * i + first` is frame i, and hears the row of that number.

    Attributes:
        apart: rows of speech from one frame's to the next one's.
        first: the row of the first frame.
    """

    apart: int = 1
    first: int = 0

    @property
    def fps(self) -> Fraction:
        """A row of speech a frame, whatever the film's rate."""
        return Fraction(SPEECH_RATE)

    def source(self, output: int) -> int:
        """The cached frame: modulo, not back and forth."""
        return (self.start + self.number(output)) % self.period

    def number(self, output: int) -> int:
        """Which frame of the batch an output frame is."""
        return (output - self.first) // self.apart


@dataclass(frozen=True)
class Batch:
    """What is asked for.

    Attributes:
        frames: how many.
        start: the first frame's cached frame; those of the others follow, modulo.
        sound: float32 `[n]`, mono, at `rate`: frame i hears its feature rows i-8 … i+7, zeros outside; or None.
        rate: samples a second.
        window: float32 `[16, 512]`, what every frame hears instead.
        visual: float32 `[frames, 6, S, S]`, what the model sees; None: the cached crops.
    """

    frames: int
    start: int
    sound: NDArray[np.float32] | None = None
    rate: int = SAMPLE_RATE
    window: NDArray[np.float32] | None = None
    visual: NDArray[np.float32] | None = None


@dataclass(frozen=True)
class Drawn:
    """What came of it.

    Attributes:
        images: JPEG files.
        engine: that drew them.
        loaded: whether the character had to be loaded.
        load_ms, audio_ms, infer_ms, composite_ms: milliseconds: until that was done, until features were there, in the
            model, and around it, images with it.
    """

    images: list[bytes]
    engine: Engine
    loaded: bool
    load_ms: float
    audio_ms: float
    infer_ms: float
    composite_ms: float


@dataclass
class Usage:
    """How a character was used.

    Attributes:
        requests: batches that were drawn.
        infer_ms: in the model, in all.
        last: when it was used last, seconds since 1970; 0: never.
    """

    requests: int = 0
    infer_ms: float = 0.0
    last: float = 0.0


@dataclass
class Batches:
    """Draws batches; any thread may ask.

    Attributes:
        hub: of the server.
        usage: of each character, by name.
    """

    hub: Hub
    usage: dict[str, Usage] = field(default_factory=lambda: defaultdict(Usage))
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def draw(self, name: str, batch: Batch) -> Drawn:
        """Draw a batch.

        Raises:
            NotFound: there is no such character.
            Refused: there is no room for it now.
            GpupipeError: it cannot be drawn.
        """
        with self.hub.guest(name) as (engine, character):
            began = time.perf_counter()
            loaded = not engine.holds(character, pixel_format=PIXEL_FORMAT)
            if loaded:
                engine.load(character, pixel_format=PIXEL_FORMAT, **self.hub.model)
            load_ms = _since(began)
            trace, heard = Trace(), _Heard(character, batch)
            whole = engine.order(character, pixel_format=PIXEL_FORMAT, **self.hub.model)
            order = _order(whole, batch)
            images, encoding = [], 0.0
            with engine.open_session(order, heard, trace=trace) as session:
                for surface in session:
                    assert surface.host is not None
                    began = time.perf_counter()
                    images.append(jpeg(surface.host, JPEG_QUALITY))
                    surface.release()
                    encoding += _since(began)
        infer_ms = trace.times(INFER).total_seconds * 1e3
        composite_ms = trace.times(PREPARE, PASTE).total_seconds * 1e3 + encoding
        with self._lock:
            used = self.usage[name]
            used.requests, used.infer_ms, used.last = used.requests + 1, used.infer_ms + infer_ms, time.time()
        return Drawn(images, engine, loaded, load_ms if loaded else 0.0, heard.milliseconds, infer_ms, composite_ms)


class _Heard:
    """Makes the feature rows of a batch, once its session is being opened."""

    def __init__(self, character: Character, batch: Batch) -> None:
        self._character, self._batch = character, batch
        self.milliseconds = 0.0

    def __call__(self, open_encoder: OpenEncoder) -> SpeechRows:
        batch = self._batch
        if batch.window is not None:
            return SpeechRows(np.tile(batch.window, (batch.frames, 1)))
        assert batch.sound is not None
        began = time.perf_counter()
        encoder = open_encoder(self._character.audio_encoder_path, ENCODER_BATCH)
        try:
            rows = features_from_pcm(_resampled(batch.sound, batch.rate), encoder, encoder.batch)
        except MediaError as error:  # too short to be heard
            raise BadRequest(**error.parts) from error
        self.milliseconds = _since(began)
        return SpeechRows(rows)


def _order(whole: SessionOrder, batch: Batch) -> BatchOrder:
    # Windows that are given lie one behind the other, each frame's row in the middle of its own.
    apart, first = (SPEECH_ROWS, SPEECH_BEFORE) if batch.window is not None else (1, 0)
    outputs = [range(output, output + 1) for output in range(first, first + apart * batch.frames, apart)]
    waiting = iter(outputs)
    seen: Callable[[int], Any] | None = None
    if (visual := batch.visual) is not None:

        def seen(output: int) -> NDArray[np.float32]:
            found: NDArray[np.float32] = visual[(output - first) // apart]
            return found

    known: dict[str, Any] = {each.name: getattr(whole, each.name) for each in fields(whole)}
    known |= {"start": batch.start, "segments": lambda: next(waiting, None), "visual": seen}
    return BatchOrder(**known, apart=apart, first=first)


def _resampled(sound: NDArray[np.float32], rate: int) -> list[NDArray[np.float32]]:
    if rate == SAMPLE_RATE:
        return [sound]
    resampler = Resampler(rate, SAMPLE_RATE)
    return [resampler.push(sound), resampler.finish()]


def _since(began: float) -> float:
    return (time.perf_counter() - began) * 1e3
