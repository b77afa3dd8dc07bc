"""The engine as people use it: characters in; videos, folders of images, or frames out."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Unpack

import numpy as np
from numpy.typing import NDArray

from gpupipe.character.folder import Character
from gpupipe.colour import PixelFormat
from gpupipe.engine.cache_bound import CacheBound
from gpupipe.engine.core import EngineCore
from gpupipe.engine.feature_store import feature_budget
from gpupipe.engine.opening import open_backend, workers
from gpupipe.engine.order import SessionOrder
from gpupipe.engine.residents import ResidentKey
from gpupipe.errors import EngineClosed
from gpupipe.log import Log
from gpupipe.machine import cpu_count
from gpupipe.media.limits import Limits
from gpupipe.options import (
    EngineKeywords,
    JobFramesKeywords,
    JobKeywords,
    LiveKeywords,
    ModelKeywords,
    ModelOptions,
    OutputOptions,
    documented,
    split,
)
from gpupipe.render.job import Job
from gpupipe.render.live import Live
from gpupipe.render.output import is_video
from gpupipe.render.plan import Plan, whole
from gpupipe.render.sink import copied
from gpupipe.render.stats import OnProgress, RenderStats
from gpupipe.render.tuned import Tuned, tuned
from gpupipe.render.write import opened_session, write
from gpupipe.threads import yield_to_others
from gpupipe.trace import Trace

_log = Log(__name__)

AnyCharacter = Character | Path | str

PARALLEL = 2
"""Jobs at a time where no number is asked for: while one loads, or joins its parts, the other keeps the device busy."""


class Engine(EngineCore):
    """A device that lives, and renders for as many as ask.

        with Engine(device="cuda:0") as engine:
            anna = engine.load("anna/")
            engine.render(anna, "a.mp4", audio="a.wav")
            for frame in engine.frames(anna, audio="c.wav"): ...
            engine.submit(anna, "b.mp4", audio="b.wav").result()

    Characters, models and encoders stay open for the next who needs them. Every method may be called from any thread.
    Leaving the with block waits for submitted jobs; an error cancels them, and so does `close`.

    Args:
        parallel: submitted jobs under way at a time; None for 2. Their frames share batches.
        yields: whether submitted jobs encode only while nobody else wants the cores (`threads.yield_to_others`).

    Attributes:
        limits: what is taken of files; those of a character that was loaded elsewhere are replaced by them.

    Raises:
        DeviceError: the GPU that was asked for cannot be used.
    """

    @documented(EngineKeywords)
    def __init__(self, *, parallel: int | None = None, yields: bool = False, **options: Unpack[EngineKeywords]) -> None:
        chosen, *_ = split(options, EngineKeywords, by="Engine()")
        picked = open_backend(chosen)
        self.limits = Limits.of(chosen)
        self.notes = picked.notes + self.limits.notes
        self._asked, self._workers = chosen, workers(chosen)
        self._share = cpu_count() if yields else parallel or PARALLEL  # jobs for which the cores must do, at least
        self._executor = ThreadPoolExecutor(parallel or PARALLEL, "job", yield_to_others if yields else None)
        self._jobs: set[Job] = set()
        self._takes_jobs, self._jobs_lock = True, threading.Lock()
        cache = CacheBound.of(chosen.cache, picked.backend)
        super().__init__(picked.backend, cache=cache, features=feature_budget(chosen, picked.backend.gpu))
        _log.event("engine opened", device=self.device, workers=self._workers, cache=cache, notes=self.notes)

    @property
    def device(self) -> str:
        """Where frames are composited: "cpu", or "cuda:0" and the name of the GPU."""
        return self.backend.name

    @documented(ModelKeywords)
    def load(
        self,
        character: AnyCharacter,
        *,
        pixel_format: PixelFormat = "nv12",
        masked_video: bool = False,
        **options: Unpack[ModelKeywords],
    ) -> Character:
        """Load a character ahead of its first render, and give it: decode all its frames, open its model if it has one.

        Args:
            character: the character, or its folder.
            pixel_format: "nv12" as videos need them, "bgr24" as images do.
            masked_video: take the model's inputs from the recorded videos.
        """
        order = self.order(character, pixel_format=pixel_format, masked_video=masked_video, **options)
        self.hold(order)
        return order.character

    def order(
        self,
        character: AnyCharacter,
        *,
        pixel_format: PixelFormat = "nv12",
        masked_video: bool = False,
        **options: Unpack[ModelKeywords],
    ) -> SessionOrder:
        """What draws all frames of a character, with what is tuned for it, for `open_session`; see `load`."""
        _, model, *_ = split(options, ModelKeywords, by="Engine.load()")
        loaded = self._loaded(character)
        found = self._tuned(loaded, model)
        return found.ordered(whole(loaded, pixel_format, found.model, masked_video=masked_video))

    def holds(self, character: AnyCharacter, *, pixel_format: PixelFormat = "nv12") -> bool:
        """Whether all of a character's frames are kept, or being loaded; not if its files are gone."""
        order = whole(self._loaded(character), pixel_format, ModelOptions())
        return self.holdings.residents.holds(ResidentKey.found(order), order.spec.numbers)

    def unload(self, character: AnyCharacter, *, pixel_format: PixelFormat = "nv12") -> bool:
        """Release a character's frames, once nobody uses them; whether any were kept."""
        order = whole(self._loaded(character), pixel_format, ModelOptions())
        return self.holdings.residents.drop(ResidentKey.found(order))

    @documented(JobKeywords)
    def render(
        self,
        character: AnyCharacter,
        output: Path | str,
        *,
        trace: Trace | None = None,
        progress: OnProgress | None = None,
        beside: Sequence[EngineCore] = (),
        **options: Unpack[JobKeywords],
    ) -> RenderStats:
        """Render a character speaking, in the calling thread, into a video or a folder of images; see `gpupipe.render`.

        Args:
            character: the character, or its folder.
            output: a video (`.mp4`, `.mkv`), or a folder (existing, or ending in `/`) for images.
            trace: collects the times of every stage.
            progress: called after each frame is written.
            beside: other engines, which take segments of the video too as they become free.
        """
        _, *chosen = split(options, JobKeywords, by="Engine.render()")
        return self._write(character, output, tuple(chosen), beside=beside, trace=trace, progress=progress)

    @documented(JobKeywords)
    def submit(
        self,
        character: AnyCharacter,
        output: Path | str,
        *,
        progress: OnProgress | None = None,
        **options: Unpack[JobKeywords],
    ) -> Job:
        """Render like `render`, in another thread, beside other jobs.

        Raises:
            OptionError, TypeError: an option is wrong. All else is told by `Job.result`.
        """
        _, *chosen = split(options, JobKeywords, by="Engine.submit()")
        self._raise_if_closed()
        with self._jobs_lock:
            if not self._takes_jobs:
                raise EngineClosed("the engine is being closed")
            job = Job(
                output,
                self._executor,
                lambda told, opened: self._write(character, output, tuple(chosen), progress=told, opened=opened),
                progress,
            )
            self._jobs.add(job)
        job.when_done(self._forget)
        return job

    @documented(JobFramesKeywords)
    def frames(
        self, character: AnyCharacter, *, trace: Trace | None = None, **options: Unpack[JobFramesKeywords]
    ) -> Iterator[NDArray[np.uint8]]:
        """Render a character speaking, frame by frame; see `gpupipe.frames`."""
        _, model, said, output = split(options, JobFramesKeywords, by="Engine.frames()")
        return self._frames(character, output.pixel_format or "nv12", (model, said), trace)

    @documented(LiveKeywords)
    def live(
        self,
        character: AnyCharacter,
        *,
        due: Callable[[int], float] | None = None,
        drop_late: bool = False,
        depth: int | None = None,
        trace: Trace | None = None,
        **options: Unpack[LiveKeywords],
    ) -> Live:
        """Have a character speak while its speech still comes: push sound, take frames.

            with engine.live(anna) as speech:
                ...  # in one thread: speech.push(samples), at the end speech.finish()
                for frame in speech:  # in another
                    ...

        Args:
            character: the character, or its folder.
            due: when each output frame must be finished, seconds of `time.monotonic`: what is due earliest is drawn
                first, before all that has no such time; None: as soon as it can be.
            drop_late: pass over frames that would be late whatever is done, instead of drawing them.
            depth: finished frames that may wait to be taken, or be under way; None: as many as keep the device busy.
            trace: collects the times of every stage.
        """
        _, model, said, output = split(options, LiveKeywords, by="Engine.live()")
        loaded = self._loaded(character)
        found = self._tuned(loaded, model)
        order = whole(loaded, output.pixel_format or "nv12", found.model, masked_video=said.masked_video)
        encoder = loaded.audio_encoder_path if said.audio_encoder is None else Path(said.audio_encoder)
        order = replace(found.ordered(order), start=said.start_frame, depth=depth)
        return Live(self, order, encoder, due=due, drop_late=drop_late, trace=trace)

    def close(self) -> None:
        """Cancel what is under way, and release everything."""
        for job in self._last_jobs():
            job.cancel()
        self._executor.shutdown(cancel_futures=True)
        super().close()

    def __enter__(self) -> Engine:
        """Begin a with block."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Wait for the jobs, unless the block failed, and close."""
        if kind is None:
            self._last_jobs()
            self._executor.shutdown()
        self.close()

    def _frames(
        self, character: AnyCharacter, pixel_format: PixelFormat, options: Any, trace: Trace | None
    ) -> Iterator[NDArray[np.uint8]]:
        loaded, (model, said) = self._loaded(character), options
        found = self._tuned(loaded, model)
        plan = Plan.make(loaded, pixel_format, found.model, said, sound=False)
        with opened_session(self, replace(plan, order=found.ordered(plan.order)), trace or Trace()) as session:
            yield from copied(session)

    def _write(
        self,
        character: AnyCharacter,
        output: Path | str,
        options: Any,
        *,
        beside: Sequence[EngineCore] = (),
        **more: Any,
    ) -> RenderStats:
        loaded, (model, said, form) = self._loaded(character), options
        found = self._tuned(loaded, model, form if is_video(output) else None, 1 + len(beside))
        return write(
            [self, *beside], loaded, output, (found, said, form), workers=self._workers, notes=self.notes, **more
        )

    def _tuned(self, who: Character, model: ModelOptions, form: OutputOptions | None = None, on: int = 1) -> Tuned:
        self.backend.check(model)
        return tuned(self, self._asked, who, model, form, jobs=self._share * on)

    def _loaded(self, character: AnyCharacter) -> Character:
        return (
            character.under(self.limits) if isinstance(character, Character) else Character.load(character, self.limits)
        )

    def _last_jobs(self) -> list[Job]:
        """The jobs that are not done; no more are taken."""
        with self._jobs_lock:
            self._takes_jobs = False
            return list(self._jobs)

    def _forget(self, job: Job) -> None:
        with self._jobs_lock:
            self._jobs.discard(job)
