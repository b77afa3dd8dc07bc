"""The service `gpupipe.v1.Avatar`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any, Final

from gpupipe import __version__
from gpupipe.errors import GpupipeError, MediaError
from gpupipe.serve.conversation import Conversation
from gpupipe.serve.delivery import Answer
from gpupipe.serve.encoders import encoder_of
from gpupipe.serve.grpc import avatar_pb2 as pb
from gpupipe.serve.grpc.handlers import SMALL_BYTES, only
from gpupipe.serve.grpc.hearing import OUTPUTS, Samples, SoundOfFrames, Wish, wish_of
from gpupipe.serve.grpc.statuses import INTERNAL
from gpupipe.serve.hub import Hub
from gpupipe.serve.refusals import BadRequest, Silent, TooLarge

_IN_DATA: Final = {
    "nv12": ("nv12", "rawvideo"),
    "jpeg": ("yuv420p", "mjpeg"),
    "h264": ("yuv420p", "h264"),
    "hevc": ("yuv420p", "hevc"),
}
"""Pixel format and codec of what frames come as, by FFmpeg's names."""

_TYPES: Final = {output: number for number, output in OUTPUTS.items()}


class AvatarService:
    """Its methods, as `handlers.handler_of` takes them.

    Args:
        hub: of the server.
    """

    def __init__(self, hub: Hub) -> None:
        self._hub = hub

    async def Speak(self, requests: AsyncIterator[Any]) -> AsyncIterator[Any]:
        """A speech: a header, frames with their sound, a summary."""
        wish = wish_of(await self._first(requests))
        encoder = encoder_of(wish.output, jpeg_quality=wish.jpeg_quality)
        async with await Conversation.open(self._hub, wish.order, encoder) as conversation:
            talk = conversation.talk
            sound = SoundOfFrames(wish.dtype.itemsize, wish.order.rate, talk.fps)
            yield pb.SpeakResponse(header=_header(conversation, wish))
            hearing = asyncio.create_task(_hear(requests, conversation, wish, sound))
            try:
                frames = repeated = 0
                async for answer in conversation:
                    frames, repeated = frames + 1, repeated + answer.repeats
                    yield pb.SpeakResponse(frame=_frame(answer, sound, wish, answer.index / float(talk.fps)))
                yield pb.SpeakResponse(
                    summary=pb.SpeakSummary(frames=frames, late=talk.late, repeated=repeated, audio=sound.rest())
                )
            finally:
                hearing.cancel()
                with suppress(asyncio.CancelledError):
                    await hearing

    async def ListCharacters(self, requests: AsyncIterator[Any]) -> Any:
        """The characters that are served; those that are broken are left out."""
        await only(requests)
        found = await asyncio.get_running_loop().run_in_executor(self._hub.opening, self._listed)
        return pb.ListCharactersResponse(characters=found)

    async def GetStatus(self, requests: AsyncIterator[Any]) -> Any:
        """How the server is."""
        await only(requests)
        return pb.GetStatusResponse(
            version=__version__,
            sessions=len(self._hub.talks),
            most_sessions=self._hub.limits.sessions,
            load=self._hub.load_share(),
            closing=self._hub.closing,
        )

    async def _first(self, requests: AsyncIterator[Any]) -> Any:
        seconds = self._hub.limits.idle_seconds
        try:
            async with asyncio.timeout(seconds):
                async for request in requests:
                    if request.HasField("config") and request.ByteSize() > SMALL_BYTES:
                        raise TooLarge(
                            f"has {request.ByteSize()} bytes", field="config", remedy=f"send {SMALL_BYTES} at most"
                        )
                    return request
        except TimeoutError as error:
            raise Silent(f"no config came for {seconds:.0f} s", remedy="send it at once") from error
        raise BadRequest("must come first", field="config", remedy="send the config, then sound")

    def _listed(self) -> list[Any]:
        found = []
        for name in self._hub.characters.names():
            with suppress(GpupipeError):
                each = self._hub.characters.listed(name)
                loaded = bool(self._hub.holders(name))
                found.append(
                    pb.Character(
                        name=name, width=each.width, height=each.height, fps=each.fps, frames=each.frames, loaded=loaded
                    )
                )
        return found


async def _hear(requests: AsyncIterator[Any], conversation: Conversation, wish: Wish, sound: SoundOfFrames) -> None:
    """Give a talk its sound, until it ends; what is wrong with that ends the talk, whose taker is told."""
    samples = Samples(wish.dtype, wish.order.rate)
    try:
        async for request in requests:
            what = request.WhichOneof("request")
            if what == "end":
                break
            if what != "audio":
                raise (
                    BadRequest("is sent once", field="config", remedy="send sound")
                    if what
                    else BadRequest("a message holds nothing", remedy="send sound, or the end")
                )
            for piece in samples.pieces(request.audio):
                sound.add(piece)
                await conversation.push(samples.pcm(piece))
        samples.finish()
        await conversation.finish()
    except GpupipeError as error:
        await asyncio.to_thread(conversation.talk.fail, _of_the_sound(error))
    except Exception:
        await asyncio.to_thread(conversation.talk.fail, GpupipeError(INTERNAL))
        raise


def _of_the_sound(error: GpupipeError) -> GpupipeError:
    """What is wrong with a client's sound, as a client's error: that it is too short is told by who hears it."""
    return BadRequest(**error.parts | {"field": "audio"}) if isinstance(error, MediaError) else error


def _header(conversation: Conversation, wish: Wish) -> Any:
    talk = conversation.talk
    colour = talk.character.body.colour
    pixel_format, codec = _IN_DATA[wish.output]
    return pb.SpeakHeader(
        width=talk.format.width,
        height=talk.format.height,
        fps_numerator=talk.fps.numerator,
        fps_denominator=talk.fps.denominator,
        output=_TYPES[wish.output],
        pixel_format=pixel_format,
        codec=codec,
        delay_seconds=wish.order.delay if wish.order.realtime else 0.0,
        colour_matrix=colour.matrix,
        full_range=colour.full_range,
        session=talk.number,
    )


def _frame(answer: Answer, sound: SoundOfFrames, wish: Wish, seconds: float) -> Any:
    return pb.Frame(
        index=answer.index,
        timestamp_seconds=seconds,
        type=_TYPES[wish.output],
        keyframe=answer.keyframe,
        repeats=answer.repeats,
        data=bytes(answer.data),
        audio=sound.of(answer.index),
    )
