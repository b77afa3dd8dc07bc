"""One client that talks in real time: it sends sound as it would be spoken, and notes when its frames come."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Final

import grpc
import numpy as np
from google.protobuf.message_factory import GetMessageClass
from numpy.typing import NDArray

from gpupipe.serve.conversation import Conversation
from gpupipe.serve.encoders import PictureOutput, encoder_of
from gpupipe.serve.grpc import avatar_pb2 as pb
from gpupipe.serve.hub import Hub
from gpupipe.serve.order import DELAY_SECONDS, TalkOrder
from gpupipe.serve.refusals import Refused
from gpupipe.speech.mel import SAMPLE_RATE

CHUNK_SECONDS: Final = 0.02

SPEAK: Final = pb.DESCRIPTOR.services_by_name["Avatar"].methods_by_name["Speak"]

OUTPUTS: Final = {"h264": pb.OUTPUT_H264, "hevc": pb.OUTPUT_HEVC, "jpeg": pb.OUTPUT_JPEG, "nv12": pb.OUTPUT_NV12}


@dataclass
class Heard:
    """What a client has got.

    Attributes:
        frames: that came, with those that repeat.
        late: that came after they were due, or repeat one that would have.
        latencies: seconds from a frame's own time to its coming, of those that do not repeat.
        refused: seconds until it was refused; None: it was let in.
        error: what has ended it early, else.
    """

    frames: int = 0
    late: int = 0
    latencies: list[float] = field(default_factory=list)
    refused: float | None = None
    error: str | None = None


@dataclass(frozen=True)
class Said:
    """What a client is to say.

    Attributes:
        character: who says it.
        output: what the pictures become.
        pcm: the speech, float32 at 16 kHz, said again until `seconds` are over.
        seconds: of speech.
        fps: of the character.
        start_frame: of its frames.
    """

    character: str
    output: PictureOutput
    pcm: NDArray[np.float32]
    seconds: float
    fps: float
    start_frame: int = 0

    @property
    def chunks(self) -> int:
        """Pieces of sound in all."""
        return round(self.seconds / CHUNK_SECONDS)

    def chunk(self, number: int) -> NDArray[np.float32]:
        """A piece."""
        size = round(CHUNK_SECONDS * SAMPLE_RATE)
        first = number * size % max(1, len(self.pcm) - size)
        return self.pcm[first : first + size]


Push = Callable[[NDArray[np.float32]], Awaitable[None]]
Opened = tuple[Push, Callable[[], Awaitable[None]], AsyncIterator[tuple[int, bool]]]
"""How a talk is told sound and its end, and its frames: numbers, and whether each repeats."""

Open = Callable[[Said], Any]
"""Opens a talk: an async context manager of `Opened`, which raises `Refused`."""


async def talk(said: Said, opened: Open, begin: float) -> Heard:
    """Talk in real time.

    Args:
        said: what.
        opened: opens the talk.
        begin: when the talk is asked for, seconds of `time.monotonic`; sound follows once it is open.
    """
    heard = Heard()
    await asyncio.sleep(begin - time.monotonic())
    asked = time.monotonic()
    try:
        async with opened(said) as (push, finish, frames):
            start = time.monotonic()
            speaking = asyncio.create_task(_speak(said, push, finish, start))
            try:
                async for index, repeats in frames:
                    latency = time.monotonic() - start - index / said.fps
                    heard.frames += 1
                    heard.late += repeats or latency > DELAY_SECONDS
                    if not repeats:
                        heard.latencies.append(latency)
            finally:
                speaking.cancel()
                with suppress(asyncio.CancelledError):
                    await speaking
    except Refused:
        heard.refused = time.monotonic() - asked
    except Exception as error:  # a client of a crowd: the others go on, and it is told of in the end
        heard.error = f"{type(error).__name__}: {error}"
    return heard


async def _speak(said: Said, push: Push, finish: Callable[[], Awaitable[None]], start: float) -> None:
    for number in range(said.chunks):
        await asyncio.sleep(start + (number + 1) * CHUNK_SECONDS - time.monotonic())
        await push(said.chunk(number))
    await finish()


def of_hub(hub: Hub) -> Open:
    """Talks of a hub in this process: what is served without a network."""

    @asynccontextmanager
    async def opened(said: Said) -> AsyncIterator[Opened]:
        order = TalkOrder(said.character, said.output, start_frame=said.start_frame)
        async with await Conversation.open(hub, order, encoder_of(said.output)) as conversation:

            async def frames() -> AsyncIterator[tuple[int, bool]]:
                async for answer in conversation:
                    yield answer.index, answer.repeats

            yield conversation.push, conversation.finish, frames()

    return opened


def over_grpc(channel: grpc.aio.Channel, token: str | None = None) -> Open:
    """Talks over gRPC."""
    speak = channel.stream_stream(
        f"/{SPEAK.containing_service.full_name}/{SPEAK.name}",
        request_serializer=GetMessageClass(SPEAK.input_type).SerializeToString,
        response_deserializer=GetMessageClass(SPEAK.output_type).FromString,
    )
    metadata = None if token is None else [("authorization", f"Bearer {token}")]

    @asynccontextmanager
    async def opened(said: Said) -> AsyncIterator[Opened]:
        call = speak(metadata=metadata)
        try:
            config = pb.SpeakConfig(
                character=said.character,
                output=OUTPUTS[said.output],
                realtime=True,
                sample_format=pb.SAMPLE_FORMAT_PCM_F32LE,
                start_frame=said.start_frame,
            )
            try:
                await call.write(pb.SpeakRequest(config=config))
                await call.read()  # the header
            except grpc.RpcError as error:
                raise _of_rpc(error) from error

            async def push(pcm: NDArray[np.float32]) -> None:
                await call.write(pb.SpeakRequest(audio=pcm.astype("<f4").tobytes()))

            async def finish() -> None:
                await call.write(pb.SpeakRequest(end=pb.SpeakEnd()))
                await call.done_writing()

            async def frames() -> AsyncIterator[tuple[int, bool]]:
                while (answer := await call.read()) is not grpc.aio.EOF:
                    if answer.WhichOneof("response") == "frame":
                        yield answer.frame.index, answer.frame.repeats

            yield push, finish, frames()
        finally:
            call.cancel()

    return opened


def _of_rpc(error: Any) -> Exception:
    if error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED:
        return Refused(str(error.details()))
    return RuntimeError(f"{error.code().name}: {error.details()}")
