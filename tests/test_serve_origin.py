"""The published Go server's clients: all six methods, called by stubs that are made here of its interface."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import grpc
import numpy as np
import onnxruntime
import pytest
import reference
from google.protobuf.descriptor_pb2 import FileDescriptorSet
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass
from grpc_scene import method, served
from grpc_tools import protoc
from numpy.typing import NDArray

from gpupipe.character.folder import Character
from gpupipe.media.sound import read_pcm
from gpupipe.media.video import read_frames
from gpupipe.serve.batches import Batch, Batches
from gpupipe.serve.grpc import monolithic
from gpupipe.serve.grpc import monolithic_pb2 as pb
from gpupipe.serve.hub import Hub
from gpupipe.serve.refusals import BadRequest

FRAMES, SIZE = 30, 160


class Stub:
    """A client: of each method, what calls it with the request's fields."""

    def __init__(self, channel: grpc.Channel, folder: Path) -> None:
        here, made = Path(__file__).parent, folder / "monolithic"
        assert (
            protoc.main(["", f"-I{here}", f"--descriptor_set_out={made}", str(here / "monolithic_client.proto")]) == 0
        )
        pool = DescriptorPool()  # its own: the server's messages have the same names
        pool.Add(FileDescriptorSet.FromString(made.read_bytes()).file[0])
        self._service, self._channel = pool.FindServiceByName("monolithic.MonolithicService"), channel

    def __getattr__(self, name: str) -> Any:
        request = GetMessageClass(self._service.methods_by_name[name].input_type)
        call = method(self._channel, self._service, name)
        return lambda **fields: call(request(**fields), timeout=60)

    def frames(self, **fields: Any) -> list[bytes]:
        answer = self.InferBatchComposite(**fields)
        assert answer.success, answer.error
        assert answer.error == ""
        return list(answer.composited_frames)


@pytest.fixture(scope="module")
def anna(folder: Path) -> Character:
    return Character.load(folder / "anna")


@pytest.fixture(scope="module")
def hub(folder: Path) -> Iterator[Hub]:
    with Hub(folder, ["cpu"], {}, {}) as hub:
        yield hub


@pytest.fixture(scope="module")
def stub(hub: Hub, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stub]:
    with served(hub) as channel:
        yield Stub(channel, tmp_path_factory.mktemp("stub"))


@pytest.fixture(scope="module")
def sound(folder: Path) -> bytes:
    return np.concatenate(list(read_pcm(folder / "anna" / "aud.wav"))).astype("<f4").tobytes()


@pytest.fixture(scope="module")
def images(hub: Hub, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    """Of a render of the same sound."""
    written = tmp_path_factory.mktemp("images")
    hub.engines[0].render(folder / "anna", f"{written}/", audio=folder / "anna" / "aud.wav")
    return [path.read_bytes() for path in sorted(written.glob("*.jpg"))]


def test_frames_are_the_images_of_a_render(stub: Stub, images: list[bytes], sound: bytes) -> None:
    assert len(images) == FRAMES
    assert stub.frames(model_id="anna", raw_audio=sound, batch_size=FRAMES) == images
    assert stub.frames(model_id="anna", raw_audio=sound, batch_size=3, sample_rate=16_000) == images[:3]


class Plain:
    """The plain algorithm on the character's own files, with the model run frame by frame."""

    def __init__(self, anna: Character) -> None:
        self._anna = anna
        self._body = list(read_frames(anna.body.path, "bgr24"))
        self._crops = list(read_frames(anna.crops.path, "bgr24"))
        self._model = onnxruntime.InferenceSession(anna.model_path, providers=["CPUExecutionProvider"])

    def seen(self, source: int) -> NDArray[np.float32]:
        return reference.visual_input(self._crops[source], self._anna.layout)

    def image(self, source: int, window: NDArray[np.float32], visual: NDArray[np.float32]) -> NDArray[np.uint8]:
        given = {
            node.name: (visual if node.shape[1] == 6 else window.reshape(32, 16, 16))[None]
            for node in self._model.get_inputs()
        }
        (prediction,) = self._model.run(None, given)[0]
        rect = self._anna.rects[source]
        return reference.composite_bgr24(prediction, self._crops[source], self._body[source], rect, self._anna.layout)


def encoded(image: NDArray[np.uint8]) -> bytes:
    return bytes(cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 95])[1])


@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize("start", [FRAMES - 2, 3 * FRAMES + 1])
def test_features_are_the_same_for_all_frames_which_go_round(
    stub: Stub, anna: Character, start: int, given: bool
) -> None:
    plain, rng = Plain(anna), np.random.default_rng(start)
    window = rng.random((32, 16, 16), np.float32)
    sources = [(start + number) % FRAMES for number in range(4)]
    visual = [rng.random((6, SIZE, SIZE), np.float32) if given else plain.seen(source) for source in sources]
    found = stub.frames(
        model_id="anna",
        audio_features=window.tobytes(),
        visual_frames=np.stack(visual).tobytes() if given else b"",
        batch_size=4,
        start_frame_idx=start,
    )
    assert found == [encoded(plain.image(*each)) for each in zip(sources, [window] * 4, visual, strict=True)]


def test_given_inputs_that_are_the_crops_change_nothing(
    stub: Stub, anna: Character, images: list[bytes], sound: bytes
) -> None:
    plain = Plain(anna)
    visual = np.stack([plain.seen(source) for source in range(FRAMES)]).astype("<f4").tobytes()  # 18 MB
    assert stub.frames(model_id="anna", raw_audio=sound, batch_size=FRAMES, visual_frames=visual) == images


def test_given_inputs_where_features_are_kept(folder: Path, anna: Character) -> None:
    """What is kept of the cached crops is not used for what is given."""
    plain, rng = Plain(anna), np.random.default_rng(0)
    window, visual = rng.random((16, 512), np.float32), rng.random((2, 6, SIZE, SIZE), np.float32)
    with Hub(folder, ["cpu"], {"feature_cache": "1G"}, {}) as hub:
        batches = Batches(hub)
        crops = batches.draw("anna", Batch(2, 0, window=window)).images
        given = batches.draw("anna", Batch(2, 0, window=window, visual=visual)).images
    assert crops == [encoded(plain.image(number, window, plain.seen(number))) for number in range(2)]
    assert given == [encoded(plain.image(number, window, visual[number])) for number in range(2)]


def test_a_piece_of_sound_is_heard_alone(stub: Stub, anna: Character, images: list[bytes], sound: bytes) -> None:
    """With zeros before and behind it, as if it were all there is."""
    piece = sound[4 * 6400 : 4 * (6400 + 10_240)]
    with_more = stub.frames(model_id="anna", raw_audio=sound, batch_size=16)
    alone = stub.frames(model_id="anna", raw_audio=piece, batch_size=16, start_frame_idx=10)
    assert alone == stub.frames(model_id="anna", raw_audio=piece, batch_size=20, start_frame_idx=10)[:16]
    assert alone[8] != with_more[8]
    assert alone[0] != images[10]
    slow = np.frombuffer(piece, "<f4").repeat(3).tobytes()  # 48 kHz
    assert len(stub.frames(model_id="anna", raw_audio=slow, batch_size=16, sample_rate=48_000)) == 16


WRONG: dict[str, dict[str, Any]] = {
    "batch_size": {"batch_size": 33},
    "batch_size:": {"batch_size": 0},
    "start_frame_idx": {"start_frame_idx": -1},
    "raw_audio, audio_features": {"audio_features": bytes(32_768)},
    "raw_audio, audio_features:": {"raw_audio": b""},
    "audio_features": {"raw_audio": b"", "audio_features": bytes(32_764)},
    "raw_audio": {"raw_audio": bytes(4 * 16_000 + 1)},
    "raw_audio: holds NaN": {"raw_audio": np.full(16_000, np.inf, "<f4").tobytes()},
    "raw_audio: is longer": {"raw_audio": bytes(4 * 16_000 * 61)},
    "the speech is shorter": {"raw_audio": bytes(4 * 1000)},
    "sample_rate": {"sample_rate": 1},
    "visual_frames": {"visual_frames": bytes(4)},
    "visual_frames: holds NaN": {"visual_frames": np.full(2 * 6 * SIZE * SIZE, np.nan, "<f4").tobytes()},
    "character": {"model_id": "../anna"},
    "character: no such": {"model_id": ""},
}


@pytest.mark.parametrize("what", WRONG)
def test_what_is_wrong_is_told_in_the_answer(stub: Stub, folder: Path, what: str) -> None:
    right: dict[str, Any] = {"model_id": "anna", "raw_audio": bytes(4 * 16_000), "batch_size": 2}
    answer = stub.InferBatchComposite(**right | WRONG[what])
    assert (answer.success, list(answer.composited_frames), answer.gpu_id) == (False, [], -1)
    assert answer.error.startswith(what.removesuffix(":"))
    assert str(folder) not in answer.error


def test_who_sends_no_batch_keeps_nobody_out(hub: Hub, sound: bytes, tmp_path: Path) -> None:
    with served(hub) as channel:
        never = threading.Event()
        silence = channel.stream_unary(
            "/monolithic.MonolithicService/InferBatchComposite",
            response_deserializer=pb.CompositeBatchResponse.FromString,
        )
        silent = [silence.future(iter(lambda: never.wait(60), True)) for _ in range(monolithic.AT_A_TIME)]
        stub = Stub(channel, tmp_path)
        try:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(monolithic, "HURRIED_SECONDS", 0.3)
                time.sleep(0.1)  # they are read before
                assert len(stub.frames(model_id="anna", raw_audio=sound, batch_size=2)) == 2
                # The first of them alone had to leave.
                (ended,) = [each for each in silent if each.done()]
                assert "no whole request came in 0." in ended.result().error
        finally:
            for each in silent:
                each.cancel()
            never.set()


def test_batches_for_which_there_is_no_room_are_refused(
    hub: Hub, stub: Stub, sound: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub, "limits", replace(hub.limits, idle_seconds=0.2))
    busy = threading.Event()

    def draw(*_: object) -> None:
        busy.wait(30)
        raise BadRequest("nothing is drawn")

    monkeypatch.setattr(Batches, "draw", draw)
    with ThreadPoolExecutor(monolithic.AT_A_TIME) as clients:
        drawn = [
            clients.submit(stub.InferBatchComposite, model_id="anna", raw_audio=sound, batch_size=2)
            for _ in range(monolithic.AT_A_TIME)
        ]
        time.sleep(0.3)
        answer = stub.InferBatchComposite(model_id="anna", raw_audio=sound, batch_size=2)
        busy.set()
        assert answer.error == "other batches have all the room; ask again later"
        assert {each.result().error for each in drawn} == {"nothing is drawn"}


def test_models_are_loaded_and_released_and_their_use_is_counted(stub: Stub, hub: Hub, sound: bytes) -> None:
    hub.engines[0].unload(hub.characters.get("anna"), pixel_format="bgr24")
    (before,) = stub.GetModelStats().models
    assert (before.model_id, before.loaded, before.gpu_id, before.memory_mb) == ("anna", False, -1, 0)
    assert stub.UnloadModel(model_id="nobody").error.startswith("character: no such character")
    answer = stub.InferBatchComposite(model_id="anna", raw_audio=sound, batch_size=8)
    assert answer.success
    assert answer.model_loaded
    times = (answer.inference_time_ms, answer.composite_time_ms, answer.audio_processing_ms, answer.model_load_time_ms)
    assert all(0 < each < answer.total_time_ms for each in times)
    assert not stub.InferBatchComposite(model_id="anna", raw_audio=sound, batch_size=8).model_loaded
    (after,) = stub.GetModelStats().models
    assert after.loaded
    assert after.memory_mb == round(FRAMES * 3 * (320 * 192 + (SIZE + 8) ** 2) / 1e6)
    assert after.request_count == before.request_count + 2
    assert after.total_inference_ms >= before.total_inference_ms + int(answer.inference_time_ms)
    assert after.avg_inference_ms == pytest.approx(after.total_inference_ms / after.request_count, abs=1)
    assert abs(after.last_used_timestamp - time.time()) < 60
    (listed,) = stub.ListModels().models
    assert (listed.model_id, listed.loaded, listed.memory_mb) == ("anna", True, after.memory_mb)
    assert (listed.request_count, listed.avg_inference_ms) == (after.request_count, after.avg_inference_ms)
    health = stub.Health()
    assert (health.healthy, health.loaded_models, health.max_models) == (True, 1, 1)
    assert list(health.gpu_ids) == list(health.gpu_memory_used_gb) == []  # it runs on the CPU
    assert stub.UnloadModel(model_id="anna").success
    assert stub.UnloadModel(model_id="anna").error == "model_id: the model is not loaded"
    assert not stub.ListModels().models[0].loaded
    assert stub.Health().loaded_models == 0
    loaded = stub.LoadModel(model_id="anna", preferred_gpu=-1)
    assert (loaded.success, loaded.error, loaded.gpu_id, loaded.load_time_ms > 0) == (True, "", -1, True)
    assert stub.ListModels().models[0].loaded
    assert not stub.LoadModel(model_id="..").success
