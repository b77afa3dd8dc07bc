"""The published Go server's service, `monolithic.MonolithicService`, for its clients.

As there, what is wrong with a request is told in its answer (`success`, `error`), with the status OK. Models are
characters, by their names. The GPU of what is on none, as on a CPU, is -1.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from gpupipe.character.folder import Character
from gpupipe.errors import GpupipeError
from gpupipe.geometry import SPEECH_ROWS, SPEECH_WIDTH
from gpupipe.render.engine import Engine
from gpupipe.serve.batches import PIXEL_FORMAT, Batch, Batches, Drawn
from gpupipe.serve.grpc import monolithic_pb2 as pb
from gpupipe.serve.grpc.handlers import log_failure, only
from gpupipe.serve.grpc.statuses import INTERNAL, told
from gpupipe.serve.hub import Hub
from gpupipe.serve.refusals import BadRequest, Refused, Silent, TooLarge
from gpupipe.speech.mel import SAMPLE_RATE

MOST_FRAMES: Final = 32
AT_A_TIME: Final = 8
"""Batches that are read at a time, and that are drawn: each may have a hundred megabytes of inputs."""

HURRIED_SECONDS: Final = 2.0
"""In which a batch must have come, once another has no room to be read: the silent keep nobody out for longer."""

RATES: Final = (4_000, 192_000)
MOST_SECONDS: Final = 60.0
"""Of sound in a batch: 32 frames hear less than two."""


class MonolithicService:
    """Its methods, as `handlers.handler_of` takes them.

    Args:
        hub: of the server.
    """

    def __init__(self, hub: Hub) -> None:
        self._hub, self._batches = hub, Batches(hub)
        self._reading, self._room = asyncio.Semaphore(AT_A_TIME), asyncio.Semaphore(AT_A_TIME)
        self._readers: deque[tuple[asyncio.Timeout, float]] = deque()  # with when they began, the first of them first
        # Not those in which talks are opened: who wants one need not wait for batches.
        self._drawing = ThreadPoolExecutor(AT_A_TIME, "batch")

    async def InferBatchComposite(self, requests: AsyncIterator[Any]) -> Any:
        """Draw a batch of frames."""
        began = time.perf_counter()
        async with AsyncExitStack() as held:
            try:
                self._hurry()
                async with self._place(self._reading):
                    request = await self._read(requests)
                    await held.enter_async_context(self._place(self._room))
                drawn = await asyncio.get_running_loop().run_in_executor(self._drawing, self._drawn, request)
            except GpupipeError as error:
                log_failure("InferBatchComposite", error)
                return pb.CompositeBatchResponse(error=told(error), gpu_id=-1)
            except Exception as error:
                log_failure("InferBatchComposite", error)
                return pb.CompositeBatchResponse(error=INTERNAL, gpu_id=-1)
            return pb.CompositeBatchResponse(
                composited_frames=drawn.images,
                inference_time_ms=drawn.infer_ms,
                composite_time_ms=drawn.composite_ms,
                total_time_ms=(time.perf_counter() - began) * 1e3,
                audio_processing_ms=drawn.audio_ms,
                model_loaded=drawn.loaded,
                model_load_time_ms=drawn.load_ms,
                success=True,
                gpu_id=_gpu(drawn.engine),
            )

    async def ListModels(self, requests: AsyncIterator[Any]) -> Any:
        """Every character."""
        await only(requests)
        found = await self._in_thread(self._all)
        for each in found:
            del each["total_inference_ms"], each["last_used_timestamp"]
        return pb.ListModelsResponse(models=[pb.ModelInfo(**each) for each in found])

    async def LoadModel(self, requests: AsyncIterator[Any]) -> Any:
        """Load a character, on the GPU that is preferred if there is such a one."""
        request, began = await only(requests), time.perf_counter()
        try:
            engine = await asyncio.get_running_loop().run_in_executor(
                self._hub.loading, self._load, request.model_id, request.preferred_gpu
            )
        except GpupipeError as error:
            log_failure("LoadModel", error)
            return pb.LoadModelResponse(error=told(error), gpu_id=-1)
        taken = (time.perf_counter() - began) * 1e3
        return pb.LoadModelResponse(success=True, gpu_id=_gpu(engine), load_time_ms=taken)

    async def UnloadModel(self, requests: AsyncIterator[Any]) -> Any:
        """Release a character; one that is not loaded is an error."""
        request = await only(requests)
        try:
            if await self._in_thread(self._unload, request.model_id):
                return pb.UnloadModelResponse(success=True)
            return pb.UnloadModelResponse(error="model_id: the model is not loaded")
        except GpupipeError as error:
            log_failure("UnloadModel", error)
            return pb.UnloadModelResponse(error=told(error))

    async def GetModelStats(self, requests: AsyncIterator[Any]) -> Any:
        """How every character was used."""
        await only(requests)
        found = await self._in_thread(self._all)
        return pb.GetModelStatsResponse(models=[pb.ModelStats(**each) for each in found])

    async def Health(self, requests: AsyncIterator[Any]) -> Any:
        """How the server is."""
        await only(requests)
        found = await self._in_thread(self._all)
        gpus = [gpu for engine in self._hub.engines if (gpu := engine.backend.gpu) is not None]
        used = [(gpu.total_bytes - gpu.free_bytes) / 1e9 for gpu in gpus]
        return pb.HealthResponse(
            healthy=not self._hub.closing,
            loaded_models=sum(each["loaded"] for each in found),
            max_models=len(found),
            gpu_ids=[gpu.index for gpu in gpus],
            gpu_memory_used_gb=used,
        )

    async def _in_thread(self, work: Any, *given: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._hub.opening, work, *given)

    @asynccontextmanager
    async def _place(self, room: asyncio.Semaphore) -> AsyncIterator[None]:
        """One of `AT_A_TIME`, once there is one."""
        try:
            async with asyncio.timeout(self._hub.limits.idle_seconds):
                await room.acquire()
        except TimeoutError as error:
            raise Refused("other batches have all the room", remedy="ask again later") from error
        try:
            yield
        finally:
            room.release()

    def _hurry(self) -> None:
        """Let the first of those who are read have little time left, if there is no room for another."""
        if self._reading.locked() and self._readers:
            limit, began = self._readers.popleft()
            if not limit.expired():
                limit.reschedule(max(asyncio.get_running_loop().time(), began + HURRIED_SECONDS))

    async def _read(self, requests: AsyncIterator[Any]) -> Any:
        seconds, began = self._hub.limits.idle_seconds, asyncio.get_running_loop().time()
        try:
            async with asyncio.timeout(seconds) as limit:
                self._readers.append((limit, began))
                try:
                    return await only(requests, seconds)
                finally:
                    with suppress(ValueError):  # it was hurried
                        self._readers.remove((limit, began))
        except TimeoutError as error:
            taken = asyncio.get_running_loop().time() - began
            raise Silent(f"no whole request came in {taken:.1f} s", remedy="send it at once") from error

    def _drawn(self, request: Any) -> Drawn:
        return self._batches.draw(request.model_id, batch_of(request, self._hub.characters.get(request.model_id)))

    def _load(self, name: str, preferred: int) -> Engine:
        character = self._hub.characters.get(name)
        wanted = [engine for engine in self._hub.engines if preferred >= 0 and _gpu(engine) == preferred]
        ready = [engine for engine in self._hub.engines if _holds(engine, character)]
        if not (engine := next(iter(wanted or ready), None)):
            with self._hub.guest(name) as (engine, _):
                pass
        engine.load(character, pixel_format=PIXEL_FORMAT, **self._hub.model)
        return engine

    def _unload(self, name: str) -> bool:
        character = self._hub.characters.get(name)
        drawn = [engine.unload(character, pixel_format=PIXEL_FORMAT) for engine in self._hub.engines]
        return self._hub.unload(name) or any(drawn)

    def _all(self) -> list[dict[str, Any]]:
        """The fields of each character's `ModelStats`; those that are broken are left out."""
        found = []
        for name in self._hub.characters.names():
            with suppress(GpupipeError):
                found.append(self._told(name, self._hub.characters.get(name)))
        return found

    def _told(self, name: str, character: Character) -> dict[str, Any]:
        kept = 0
        holders = [engine for engine in self._hub.engines if _holds(engine, character)]
        for engine in holders:
            kept += engine.order(character, pixel_format=PIXEL_FORMAT, **self._hub.model).spec.cache_bytes
        used = self._batches.usage[name]
        return {
            "model_id": name,
            "loaded": bool(holders),
            "gpu_id": _gpu(holders[0]) if holders else -1,
            "memory_mb": round(kept / 1e6),
            "request_count": used.requests,
            "total_inference_ms": round(used.infer_ms),
            "avg_inference_ms": used.infer_ms / used.requests if used.requests else 0.0,
            "last_used_timestamp": int(used.last),
        }


def _gpu(engine: Engine) -> int:
    gpu = engine.backend.gpu
    return -1 if gpu is None else gpu.index


def _holds(engine: Engine, character: Character) -> bool:
    return engine.holds(character, pixel_format=PIXEL_FORMAT)


def batch_of(request: Any, character: Character) -> Batch:
    """What a request asks for.

    Raises:
        BadRequest: a field has a value that it cannot have.
    """
    frames, start = request.batch_size, request.start_frame_idx
    if not 1 <= frames <= MOST_FRAMES:
        raise BadRequest("out of range", field="batch_size", value=frames, remedy=f"give 1 to {MOST_FRAMES}")
    if start < 0:
        raise BadRequest("out of range", field="start_frame_idx", value=start, remedy="give 0 or more")
    if bool(request.raw_audio) == bool(request.audio_features):
        raise BadRequest("one of both must be there", field="raw_audio, audio_features", remedy="send one of them")
    rate = request.sample_rate or SAMPLE_RATE
    if not RATES[0] <= rate <= RATES[1]:
        raise BadRequest("out of range", field="sample_rate", value=rate, remedy=f"give {RATES[0]} to {RATES[1]}")
    sound = window = visual = None
    if request.raw_audio:
        sound = _floats("raw_audio", request.raw_audio, (-1,))
        if len(sound) > MOST_SECONDS * rate:
            raise TooLarge(f"is longer than {MOST_SECONDS:.0f} s", field="raw_audio", remedy="send what frames hear")
    else:
        window = _floats("audio_features", request.audio_features, (SPEECH_ROWS, SPEECH_WIDTH))
    if request.visual_frames:
        size = character.layout.model_size
        visual = _floats("visual_frames", request.visual_frames, (frames, 6, size, size))
    return Batch(frames, start, sound, rate, window, visual)


def _floats(field: str, data: bytes, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Little-endian float32 numbers; they are not copied.

    Raises:
        BadRequest: there are other than that many, or one is not finite.
    """
    wanted = int(np.prod(shape)) * 4
    if len(data) % 4 or (wanted > 0 and len(data) != wanted):
        much = "whole float32 numbers" if wanted < 0 else f"{wanted} bytes, float32 {list(shape)}"
        raise BadRequest("has another size", field=field, value=f"{len(data)} bytes", remedy=f"send {much}")
    numbers = np.frombuffer(data, "<f4").reshape(shape).astype(np.float32, copy=False)
    if not np.isfinite(numbers).all():
        raise BadRequest("holds NaN or infinity", field=field, remedy="send finite numbers")
    return numbers
