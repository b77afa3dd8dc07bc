"""`gpupipe.v1.Avatar` over the loopback: the frames of a render with their sound, and a status for what is wrong."""

from __future__ import annotations

import asyncio
import os
import queue
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import grpc
import numpy as np
import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorProto, FileDescriptorSet
from grpc import StatusCode
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2
from grpc_scene import Counted, method, served
from grpc_tools import protoc
from numpy.typing import NDArray

from gpupipe.errors import GpupipeError, OptionError
from gpupipe.media.images import FromNv12
from gpupipe.serve.grpc import avatar_pb2 as pb
from gpupipe.serve.grpc import health, monolithic_pb2
from gpupipe.serve.grpc.hearing import Samples, SoundOfFrames
from gpupipe.serve.grpc.server import AVATAR, grpc_server
from gpupipe.serve.hub import Hub
from gpupipe.serve.limits import ServeLimits
from gpupipe.serve.refusals import Refused
from gpupipe.serve.tokens import Tokens

HEALTH = health_pb2.DESCRIPTOR.services_by_name["Health"]
REFLECTION = reflection_pb2.DESCRIPTOR.services_by_name["ServerReflection"]
TOKEN = "0123456789abcdef"


@pytest.fixture(scope="module")
def hub(folder: Path) -> Iterator[Hub]:
    with Hub(folder, ["cpu"], {}, {}, limits=ServeLimits(seconds=20, message_bytes=1_000_000)) as hub:
        yield hub


@pytest.fixture(scope="module")
def counted() -> Counted:
    return Counted()


@pytest.fixture(scope="module")
def channel(hub: Hub, counted: Counted) -> Iterator[grpc.Channel]:
    with served(hub, counted=counted) as channel:
        yield channel


@pytest.fixture(scope="module")
def frames(hub: Hub, folder: Path) -> list[NDArray[np.uint8]]:
    """Of a render of the same speech."""
    return list(hub.engines[0].frames(folder / "anna", audio=folder / "anna" / "aud.wav", start_frame=4))


def config(output: Any = pb.OUTPUT_NV12, character: str = "anna", **more: Any) -> pb.SpeakRequest:
    return pb.SpeakRequest(config=pb.SpeakConfig(character=character, output=output, **more))


def audio(data: bytes, seed: int = 0) -> Iterator[pb.SpeakRequest]:
    """A sound in messages that end anywhere."""
    sizes, at = np.random.default_rng(seed), 0
    while at < len(data):
        size = int(sizes.integers(0, 9000))
        yield pb.SpeakRequest(audio=data[at : at + size])
        at += size


END = pb.SpeakRequest(end=pb.SpeakEnd())


class Answers:
    """What a server says to a speech."""

    def __init__(self, channel: grpc.Channel, requests: Iterable[Any]) -> None:
        header, *frames, summary = method(channel, AVATAR, "Speak")(iter(requests), timeout=60)
        assert (header.WhichOneof("response"), summary.WhichOneof("response")) == ("header", "summary")
        self.header, self.summary = header.header, summary.summary
        self.frames = [each.frame for each in frames]
        self.sound = b"".join(each.audio for each in self.frames) + self.summary.audio


@pytest.mark.parametrize(("sent", "dtype"), [(pb.SAMPLE_FORMAT_PCM_S16LE, "<i2"), (pb.SAMPLE_FORMAT_PCM_F32LE, "<f4")])
def test_the_frames_are_those_of_a_render(
    channel: grpc.Channel, hub: Hub, pcm: NDArray[np.float32], frames: list[NDArray[np.uint8]], sent: Any, dtype: str
) -> None:
    data = (pcm * 32768).astype(dtype).tobytes() if dtype == "<i2" else pcm.astype(dtype).tobytes()
    said = Answers(channel, [config(sample_format=sent, start_frame=4), *audio(data), END])
    head = said.header
    assert (head.width, head.height, head.fps_numerator, head.fps_denominator) == (320, 192, 25, 1)
    assert (head.output, head.pixel_format, head.codec, head.delay_seconds) == (pb.OUTPUT_NV12, "nv12", "rawvideo", 0)
    assert [each.index for each in said.frames] == list(range(len(frames)))
    assert all(each.data == frame.tobytes() for each, frame in zip(said.frames, frames, strict=True))
    assert [each.timestamp_seconds for each in said.frames] == [number / 25 for number in range(len(frames))]
    assert all(each.keyframe and not each.repeats and each.type == pb.OUTPUT_NV12 for each in said.frames)
    assert (said.summary.frames, said.summary.late, said.summary.repeated) == (len(frames), 0, 0)
    # Each frame's own sound: 640 samples, and all of it together.
    assert [len(each.audio) // np.dtype(dtype).itemsize for each in said.frames[:-1]] == [640] * (len(frames) - 1)
    assert said.sound == data
    assert hub.talks == []


def test_two_clients_at_once_who_close_their_side_instead_of_an_end(
    channel: grpc.Channel, pcm: NDArray[np.float32], frames: list[NDArray[np.uint8]]
) -> None:
    said: dict[int, Answers] = {}

    def speak(number: int) -> None:
        realtime = number == 1
        messages = [config(sample_format=pb.SAMPLE_FORMAT_PCM_F32LE, start_frame=4, realtime=realtime)]
        said[number] = Answers(channel, [*messages, *audio(pcm.astype("<f4").tobytes(), number)])

    clients = [threading.Thread(target=speak, args=(number,)) for number in range(2)]
    for client in clients:
        client.start()
    for client in clients:
        client.join(60)
    assert all(each.data == frame.tobytes() for each, frame in zip(said[0].frames, frames, strict=True))
    # In real time a frame may be late on a busy machine, and is then repeated; the others are the same.
    assert [each.index for each in said[1].frames] == list(range(len(frames)))
    assert all(each.repeats or each.data == frames[each.index].tobytes() for each in said[1].frames)
    assert said[1].header.delay_seconds == 0.6
    assert said[1].summary.repeated == sum(each.repeats for each in said[1].frames)


@pytest.mark.parametrize(("output", "codec"), [(pb.OUTPUT_H264, "h264"), (pb.OUTPUT_HEVC, "hevc")])
def test_packets_decode_to_the_frames(
    channel: grpc.Channel, pcm: NDArray[np.float32], frames: list[NDArray[np.uint8]], output: Any, codec: str
) -> None:
    said = Answers(
        channel,
        [config(output, start_frame=4, sample_rate=16_000), *audio((pcm * 32768).astype("<i2").tobytes()), END],
    )
    assert said.header.codec == codec
    decoder = av.CodecContext.create(codec, "r")
    shown = [each for packet in said.frames for each in decoder.decode(av.Packet(packet.data))]  # type: ignore[attr-defined]
    shown += decoder.decode(None)  # type: ignore[attr-defined]
    assert len(shown) == len(frames)
    assert said.frames[0].keyframe
    for picture, frame in zip(shown, frames, strict=True):
        luma = picture.to_ndarray()[:192].astype(float)
        assert np.mean((luma - frame[:192]) ** 2) < 20  # more than 35 dB


def test_images_decode_to_the_frames(
    channel: grpc.Channel, hub: Hub, pcm: NDArray[np.float32], frames: list[NDArray[np.uint8]]
) -> None:
    import cv2

    messages = [config(pb.OUTPUT_JPEG, start_frame=4, jpeg_quality=95), *audio((pcm * 32768).astype("<i2").tobytes())]
    said = Answers(channel, messages)
    to_bgr = FromNv12(hub.characters.get("anna").body.colour)
    for each, frame in zip(said.frames, frames, strict=True):
        image = cv2.imdecode(np.frombuffer(each.data, np.uint8), cv2.IMREAD_COLOR)
        assert image is not None
        assert np.mean((image.astype(float) - to_bgr(frame)) ** 2) < 20


def sound(seconds: float = 0.5) -> pb.SpeakRequest:
    return pb.SpeakRequest(audio=bytes(2 * round(16_000 * seconds)))


WRONG: dict[str, tuple[list[Any], StatusCode, str]] = {
    "nothing": ([], StatusCode.INVALID_ARGUMENT, "config: must come first"),
    "sound first": ([sound()], StatusCode.INVALID_ARGUMENT, "config: must come first"),
    "end first": ([END], StatusCode.INVALID_ARGUMENT, "config: must come first"),
    "empty first": ([b""], StatusCode.INVALID_ARGUMENT, "config: must come first"),
    "malformed first": ([b"\x0a\xff\xff"], StatusCode.INVALID_ARGUMENT, "malformed"),
    "malformed": ([config(), sound(), b"\x0a\xff\xff"], StatusCode.INVALID_ARGUMENT, "malformed"),
    "empty": ([config(), b""], StatusCode.INVALID_ARGUMENT, "holds nothing"),
    "config twice": ([config(), sound(), config()], StatusCode.INVALID_ARGUMENT, "config: is sent once"),
    "nobody": ([config(character="nobody")], StatusCode.NOT_FOUND, "no such character"),
    "a path": ([config(character="../anna")], StatusCode.NOT_FOUND, "no such character"),
    "no output": ([config(0)], StatusCode.INVALID_ARGUMENT, "output: no such output"),
    "an output to come": ([config(77)], StatusCode.INVALID_ARGUMENT, "output: no such output (got 77)"),
    "a format to come": ([config(sample_format=9)], StatusCode.INVALID_ARGUMENT, "sample_format: no such format"),
    "rate": ([config(sample_rate=-1)], StatusCode.INVALID_ARGUMENT, "sample_rate: out of range (got -1)"),
    "delay": ([config(delay_seconds=float("nan"))], StatusCode.INVALID_ARGUMENT, "delay_seconds: out of range"),
    "quality": ([config(jpeg_quality=101)], StatusCode.INVALID_ARGUMENT, "jpeg_quality: out of range"),
    "start": ([config(start_frame=-1)], StatusCode.INVALID_ARGUMENT, "start_frame: out of range"),
    "no sound": ([config(), END], StatusCode.INVALID_ARGUMENT, "shorter than one window"),
    "too short": ([config(), sound(0.1)], StatusCode.INVALID_ARGUMENT, "shorter than one window"),
    "half a sample": (
        [config(), sound(), pb.SpeakRequest(audio=b"\0"), END],
        StatusCode.INVALID_ARGUMENT,
        "ends within a sample",
    ),
    "NaN": (
        [config(sample_format=2), pb.SpeakRequest(audio=np.full(9, np.nan, "<f4").tobytes())],
        StatusCode.INVALID_ARGUMENT,
        "NaN",
    ),
    "too long": ([config(sample_rate=4000), *[sound(10)] * 5], StatusCode.RESOURCE_EXHAUSTED, "longer than 20 s"),
    "a config too large": ([config(character="x" * 20_000)], StatusCode.RESOURCE_EXHAUSTED, "config: has 20"),
    "a message too large": ([config(), sound(40)], StatusCode.RESOURCE_EXHAUSTED, "larger than max"),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_is_wrong_has_its_status(channel: grpc.Channel, hub: Hub, counted: Counted, what: str) -> None:
    requests, status, words = WRONG[what]
    with pytest.raises(grpc.RpcError) as told:
        list(method(channel, AVATAR, "Speak")(iter(requests), timeout=60))
    assert told.value.code() == status
    assert words in told.value.details()
    until(lambda: not hub.talks)
    if what != "a message too large":  # which gRPC itself refuses
        until(lambda: counted.seen[-1] == ("grpc", "Speak", status.name))


def test_spoiled_messages_harm_nobody(
    channel: grpc.Channel, hub: Hub, frames: list[NDArray[np.uint8]], pcm: NDArray[np.float32]
) -> None:
    """Bytes changed, cut or added anywhere: the answer is frames, or a status that says that the client is wrong."""
    many = "GPUPIPE_FUZZ" in os.environ
    rng = np.random.default_rng(None if many else 7)
    right = [config(pb.OUTPUT_JPEG, start_frame=2, sample_rate=8000), sound(0.4), END]
    allowed = {StatusCode.INVALID_ARGUMENT, StatusCode.NOT_FOUND, StatusCode.RESOURCE_EXHAUSTED}
    ended: Counter[Any] = Counter()
    for _ in range(2000 if many else 60):
        messages = [bytearray(each.SerializeToString()) for each in right]
        for _ in range(int(rng.integers(1, 4))):
            message = messages[int(rng.integers(len(messages)))]
            at = int(rng.integers(min(len(message), 40) + 1))
            message[at : at + int(rng.integers(3))] = rng.bytes(int(rng.integers(3)))
        try:
            list(method(channel, AVATAR, "Speak")(iter(map(bytes, messages)), timeout=60))
            ended["frames"] += 1
        except grpc.RpcError as error:
            ended[error.code()] += 1
    assert set(ended) <= {"frames", *allowed}
    assert ended["frames"] > 0
    assert ended[StatusCode.INVALID_ARGUMENT] > 0
    said = Answers(channel, [config(start_frame=4), *audio((pcm * 32768).astype("<i2").tobytes())])
    assert all(each.data == frame.tobytes() for each, frame in zip(said.frames, frames, strict=True))
    assert hub.talks == []


def until(happens: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not happens():
        assert time.monotonic() < end
        time.sleep(0.01)


class Open:
    """A speech that is under way: sound is sent when it is put there."""

    def __init__(self, channel: grpc.Channel, *messages: Any, **more: Any) -> None:
        self.messages: queue.SimpleQueue[Any] = queue.SimpleQueue()
        for each in messages:
            self.messages.put(each)
        self.call = method(channel, AVATAR, "Speak")(iter(self.messages.get, None), **more)

    def close(self) -> None:
        self.call.cancel()
        self.messages.put(None)


def test_who_leaves_or_does_not_read_costs_only_himself(
    channel: grpc.Channel, hub: Hub, frames: list[NDArray[np.uint8]], pcm: NDArray[np.float32]
) -> None:
    lazy = Open(channel, config(), *audio((pcm * 32768).astype("<i2").tobytes()))
    gone = Open(channel, config(realtime=True), sound(1))
    next(iter(gone.call))
    until(lambda: len(hub.talks) == 2)
    gone.close()
    until(lambda: len(hub.talks) == 1)
    said = Answers(channel, [config(start_frame=4), *audio((pcm * 32768).astype("<i2").tobytes())])
    assert all(each.data == frame.tobytes() for each, frame in zip(said.frames, frames, strict=True))
    assert len(hub.talks) == 1
    lazy.close()
    until(lambda: not hub.talks)


def test_who_says_nothing_is_sent_away(channel: grpc.Channel, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    silent = Open(channel, config(), sound())
    next(iter(silent.call))
    until(lambda: len(hub.talks) == 1)
    hub.talks[0].check(time.monotonic() + 31)
    monkeypatch.setattr(hub, "limits", replace(hub.limits, idle_seconds=0.05))
    dumb = Open(channel)
    for each, words in ((silent, "no sound came"), (dumb, "no config came")):
        with pytest.raises(grpc.RpcError) as told:
            list(each.call)
        assert told.value.code() == StatusCode.DEADLINE_EXCEEDED
        assert words in told.value.details()
        each.close()
    hurried = Open(channel, config(), sound(), timeout=0.3)
    with pytest.raises(grpc.RpcError) as told:
        list(hurried.call)
    assert told.value.code() == StatusCode.DEADLINE_EXCEEDED
    hurried.close()
    until(lambda: not hub.talks)


def test_who_does_not_read_is_sent_away(
    channel: grpc.Channel, hub: Hub, counted: Counted, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub, "limits", replace(hub.limits, idle_seconds=0.3))
    lazy = Open(channel, config(), *[sound(1)] * 8, END)  # 18 MB of pictures, more than is sent unread
    until(lambda: len(hub.talks) == 1)
    counted.seen.clear()
    until(lambda: ("grpc", "Speak", "DEADLINE_EXCEEDED") in counted.seen)
    until(lambda: not hub.talks)
    with pytest.raises(grpc.RpcError) as told:  # once it reads, it is told
        list(lazy.call)
    assert told.value.code() == StatusCode.DEADLINE_EXCEEDED
    assert "was taken for 0.3 s" in told.value.details()
    lazy.close()


def test_no_room(channel: grpc.Channel, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise Refused("one more talk would make others late", retry_after=7)

    monkeypatch.setattr(hub, "open", full)
    with pytest.raises(grpc.RpcError) as told:
        list(method(channel, AVATAR, "Speak")(iter([config()]), timeout=60))
    assert told.value.code() == StatusCode.RESOURCE_EXHAUSTED
    assert "would make others late" in told.value.details()
    assert ("retry-after", "7") in [(key, value) for key, value in told.value.trailing_metadata()]


def test_a_server_that_is_being_shut_down(channel: grpc.Channel, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    def closing(*_: object, **__: object) -> None:
        raise Refused("the server is being shut down", closing=True)

    monkeypatch.setattr(hub, "open", closing)
    monkeypatch.setattr(Hub, "closing", property(lambda _: True))
    with pytest.raises(grpc.RpcError) as told:
        list(method(channel, AVATAR, "Speak")(iter([config()]), timeout=60))
    assert told.value.code() == StatusCode.UNAVAILABLE
    answer = method(channel, HEALTH, "Check")(health_pb2.HealthCheckRequest(), timeout=60)
    assert answer.status == health_pb2.HealthCheckResponse.NOT_SERVING


@pytest.mark.parametrize("kind", [RuntimeError, GpupipeError])
def test_an_error_of_the_server_tells_nothing_of_it(
    channel: grpc.Channel,
    hub: Hub,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    kind: type[Exception],
) -> None:
    def fails() -> float:
        raise kind("a secret")

    monkeypatch.setattr(hub, "load_share", fails)
    with pytest.raises(grpc.RpcError) as told:
        method(channel, AVATAR, "GetStatus")(pb.GetStatusRequest(), timeout=60)
    assert told.value.code() == StatusCode.INTERNAL
    assert told.value.details() == "the server failed; see its log"
    (logged,) = [each for each in caplog.records if each.levelname == "ERROR"]
    assert "a secret" in logged.message
    assert "GetStatus" in logged.message


def test_what_the_server_says_of_itself(channel: grpc.Channel) -> None:
    (anna,) = method(channel, AVATAR, "ListCharacters")(pb.ListCharactersRequest(), timeout=60).characters
    assert (anna.name, anna.width, anna.height, anna.fps, anna.frames, anna.loaded) == ("anna", 320, 192, 25, 30, True)
    status = method(channel, AVATAR, "GetStatus")(pb.GetStatusRequest(), timeout=60)
    assert (status.sessions, status.most_sessions, status.load, status.closing) == (0, 256, 0, False)
    for service in ("", AVATAR.full_name):
        answer = method(channel, HEALTH, "Check")(health_pb2.HealthCheckRequest(service=service), timeout=60)
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
    with pytest.raises(grpc.RpcError) as told:
        method(channel, HEALTH, "Check")(health_pb2.HealthCheckRequest(service="nothing"), timeout=60)
    assert told.value.code() == StatusCode.NOT_FOUND
    watching = method(channel, HEALTH, "Watch")(health_pb2.HealthCheckRequest())
    assert next(watching).status == health_pb2.HealthCheckResponse.SERVING
    watching.cancel()


def test_only_who_has_a_token_may_ask(hub: Hub) -> None:
    with served(hub, (TOKEN,)) as channel:
        listed = method(channel, AVATAR, "ListCharacters")
        reflected = method(channel, REFLECTION, "ServerReflectionInfo")
        asked = reflection_pb2.ServerReflectionRequest(list_services="")
        for shown in (None, "", TOKEN, f"Bearer {TOKEN}x", "Bearer ", f"Basic {TOKEN}"):
            metadata = None if shown is None else [("authorization", shown)]
            for call in (
                lambda: listed(pb.ListCharactersRequest(), metadata=metadata, timeout=60),  # noqa: B023
                lambda: list(method(channel, AVATAR, "Speak")(iter([config()]), metadata=metadata, timeout=60)),  # noqa: B023
                lambda: list(reflected(iter([asked]), metadata=metadata, timeout=60)),  # noqa: B023
            ):
                with pytest.raises(grpc.RpcError) as told:
                    call()
                assert told.value.code() == StatusCode.UNAUTHENTICATED
        metadata = [("authorization", f"Bearer {TOKEN}")]
        assert len(listed(pb.ListCharactersRequest(), metadata=metadata, timeout=60).characters) == 1
        (answer,) = reflected(iter([asked]), metadata=metadata, timeout=60)
        assert {each.name for each in answer.list_services_response.service} == {
            "gpupipe.v1.Avatar",
            "monolithic.MonolithicService",
            "grpc.health.v1.Health",
            "grpc.reflection.v1alpha.ServerReflection",
        }
        method(channel, HEALTH, "Check")(health_pb2.HealthCheckRequest(), timeout=60)


def test_who_asks_for_health_without_a_token_keeps_nobody_out(
    hub: Hub, counted: Counted, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither by silence nor by what is no question, nor by watching."""
    monkeypatch.setattr(health, "READ_SECONDS", 0.3)
    request = health_pb2.HealthCheckRequest
    with served(hub, (TOKEN,), counted) as channel:
        check, watch = method(channel, HEALTH, "Check"), method(channel, HEALTH, "Watch")
        with pytest.raises(grpc.RpcError) as told:
            check(request(service="x" * 20_000), timeout=60)
        assert told.value.code() == StatusCode.RESOURCE_EXHAUSTED
        assert len(told.value.details()) < 100
        silence = channel.stream_unary(f"/{HEALTH.full_name}/Check")
        never = threading.Event()
        silent = [silence.future(iter(lambda: never.wait(30), True)) for _ in range(health.ASKING + 8)]
        codes = Counter(each.exception(10).code() for each in silent)
        never.set()
        assert codes[StatusCode.DEADLINE_EXCEEDED] + codes[StatusCode.RESOURCE_EXHAUSTED] == health.ASKING + 8
        assert codes[StatusCode.DEADLINE_EXCEEDED] <= health.ASKING
        assert check(request(), timeout=60).status == health_pb2.HealthCheckResponse.SERVING
        watching = [watch(request()) for _ in range(health.WATCHING)]
        assert all(next(each).status == health_pb2.HealthCheckResponse.SERVING for each in watching)
        with pytest.raises(grpc.RpcError) as told:
            next(watch(request()))
        assert told.value.code() == StatusCode.RESOURCE_EXHAUSTED
        for each in watching:
            each.cancel()


def test_sound_that_waits_keeps_no_more_than_itself() -> None:
    message = bytes(range(256)) * 1000
    samples, sound = Samples(np.dtype("<i2"), 16_000), SoundOfFrames(2, 16_000, Fraction(25))
    before = sys.getrefcount(message)
    for piece in samples.pieces(message):
        sound.add(piece)
    del piece
    assert sys.getrefcount(message) == before
    assert sound.of(0) + sound.rest() == message


def test_a_port_that_another_has_is_an_error(hub: Hub) -> None:
    async def twice() -> None:
        server, port = await grpc_server(hub, Tokens(), "127.0.0.1:0", metrics=Counted())
        with pytest.raises(OptionError, match=r"cannot be had.*use another"):
            await grpc_server(hub, Tokens(), f"127.0.0.1:{port}", metrics=Counted())
        await server.stop(None)

    asyncio.run(twice())


@pytest.mark.parametrize("module", [pb, monolithic_pb2])
def test_what_is_made_of_the_proto_files_is_what_they_say(tmp_path: Path, module: Any) -> None:
    root = Path(__file__).parents[1]
    made = tmp_path / "made"
    assert protoc.main(["", f"-I{root}", f"--descriptor_set_out={made}", str(root / module.DESCRIPTOR.name)]) == 0
    (found,) = FileDescriptorSet.FromString(made.read_bytes()).file
    for message in found.message_type:
        for each in message.field:
            each.ClearField("json_name")  # which follows from the name, and is left out of the module
    assert found == FileDescriptorProto.FromString(module.DESCRIPTOR.serialized_pb), "run `make protos`"
