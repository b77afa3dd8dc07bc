"""The client over gRPC."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Final, Literal

import grpc
import numpy as np
from google.protobuf.message_factory import GetMessageClass
from numpy.typing import NDArray

from gpupipe.errors import GpupipeError, reason
from gpupipe.serve.grpc import avatar_pb2 as pb

SERVICE: Final = pb.DESCRIPTOR.services_by_name["Avatar"]

RpcOutput = Literal["h264", "hevc", "jpeg", "nv12"]

OUTPUTS: Final[dict[RpcOutput, Any]] = {
    "h264": pb.OUTPUT_H264,
    "hevc": pb.OUTPUT_HEVC,
    "jpeg": pb.OUTPUT_JPEG,
    "nv12": pb.OUTPUT_NV12,
}

_OPTIONS: Final = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
"""A frame of 4K has 12 MB; gRPC's own limit is 4."""


class Rpc:
    """Asks a server over gRPC. A context manager.

    Args:
        address: HOST:PORT.
        token: one of its tokens, if it wants any.

    Raises:
        GpupipeError: from every method: the server cannot be reached, or says no.
    """

    def __init__(self, address: str, token: str | None = None) -> None:
        self.address = address
        self._metadata = None if token is None else [("authorization", f"Bearer {token}")]
        self._channel: Any = grpc.insecure_channel(address, options=_OPTIONS)

    def characters(self) -> list[Any]:
        """The characters that are served, each a `Character` of avatar.proto."""
        with self._told():
            answer = self._method("ListCharacters")(pb.ListCharactersRequest(), metadata=self._metadata, timeout=60)
        return list(answer.characters)

    def speak(
        self,
        character: str,
        sound: Iterable[NDArray[np.float32]],
        output: RpcOutput = "h264",
        *,
        rate: int = 16_000,
        realtime: bool = False,
        delay: float | None = None,
        start_frame: int = 0,
        jpeg_quality: int = 0,
    ) -> Spoken:
        """Have a character speak.

        Args:
            character: its name.
            sound: chunks of samples, float32 `[n]`, mono, full scale ±1; taken in another thread, as the server takes
                them.
            output: what frames come as.
            rate: samples a second.
            realtime: whether each frame comes in its time, or not at all.
            delay: seconds, in real time, from a frame's time to when it is due; None: the server's own.
            start_frame: position in the ping-pong order at which it starts.
            jpeg_quality: 1 to 100; 0: the server's own.
        """
        config = pb.SpeakConfig(
            character=character,
            output=OUTPUTS[output],
            realtime=realtime,
            delay_seconds=delay or 0.0,
            sample_rate=rate,
            sample_format=pb.SAMPLE_FORMAT_PCM_F32LE,
            start_frame=start_frame,
            jpeg_quality=jpeg_quality,
        )

        failed: list[GpupipeError] = []

        def requests() -> Iterator[Any]:
            yield pb.SpeakRequest(config=config)
            try:
                for chunk in sound:
                    yield pb.SpeakRequest(audio=chunk.astype("<f4").tobytes())
            except GpupipeError as error:  # gRPC has a thread of its own for this, and knows only that it has failed
                failed.append(error)
                raise
            yield pb.SpeakRequest(end=pb.SpeakEnd())

        return Spoken(self, self._method("Speak")(requests(), metadata=self._metadata), failed)

    def close(self) -> None:
        """Close the connection."""
        self._channel.close()

    def __enter__(self) -> Rpc:
        """Begin a with block, which closes it."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close it."""
        self.close()

    def _method(self, name: str) -> Any:
        of = SERVICE.methods_by_name[name]
        make = self._channel.stream_stream if of.client_streaming else self._channel.unary_unary
        return make(
            f"/{SERVICE.full_name}/{name}",
            request_serializer=GetMessageClass(of.input_type).SerializeToString,
            response_deserializer=GetMessageClass(of.output_type).FromString,
        )

    @contextmanager
    def _told(self, failed: Sequence[GpupipeError] = ()) -> Iterator[None]:
        try:
            yield
        except grpc.RpcError as error:
            if failed:
                raise failed[0] from error
            said: Any = error
            raise GpupipeError(f"{reason(said.details())} ({said.code().name})", field=self.address) from error


class Spoken:
    """Answers to a speech: iterating over it gives each frame, a `Frame` of avatar.proto.

    Attributes:
        header: what came first, once iteration has begun.
        summary: what came last, once it has ended.
    """

    def __init__(self, rpc: Rpc, call: Any, failed: Sequence[GpupipeError]) -> None:
        self._rpc, self._call, self._failed = rpc, call, failed
        self.header: Any = None
        self.summary: Any = None

    def __iter__(self) -> Iterator[Any]:
        """Frames in order.

        Raises:
            GpupipeError: the server says no, or the sound cannot be had.
        """
        with self._rpc._told(self._failed):
            for answer in self._call:
                if (kind := answer.WhichOneof("response")) == "frame":
                    yield answer.frame
                elif kind == "header":
                    self.header = answer.header
                else:
                    self.summary = answer.summary

    def cancel(self) -> None:
        """Have no more of it."""
        self._call.cancel()
