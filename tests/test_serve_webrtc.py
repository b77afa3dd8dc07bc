"""WebRTC over the loopback, with aiortc as the peer; and its parts alone."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from peering import Peer, Says, serving

from gpupipe.character.folder import Character
from gpupipe.geometry import Rect, frame_at
from gpupipe.media.rtc import SOUND_RATE
from gpupipe.media.sound import read_pcm
from gpupipe.media.video import read_frames
from gpupipe.serve.delivery import Answer
from gpupipe.serve.hub import Hub
from gpupipe.serve.idle import SEAM, blend
from gpupipe.serve.limits import ServeLimits
from gpupipe.serve.order import TalkOrder
from gpupipe.serve.refusals import BadRequest
from gpupipe.serve.webrtc.ear import HANGOVER_SECONDS, LEAD_SECONDS, Ear
from gpupipe.serve.webrtc.ice import parsed_offer
from gpupipe.serve.webrtc.stage import Shown, Stage

pytestmark = pytest.mark.timeout(120)

FRAMES, FPS = 30, 25
IN_STEP_SECONDS = 0.08
"""Between a picture and the sound that belongs to it: nobody sees that they are apart."""


@pytest.fixture(scope="module")
def hub(folder: Path) -> Iterator[Hub]:
    with Hub(folder, ["cpu"], {}, {}, limits=ServeLimits(idle_seconds=2.0)) as hub:
        hub.load("anna")
        yield hub


@pytest.fixture(scope="module")
def body(folder: Path) -> list[NDArray[np.int16]]:
    """The luma of the filmed frames, without the mouths."""
    frames = read_frames(folder / "anna" / "full_body_video.mp4", "nv12")
    return [without_mouth(frame[:192], rect) for frame, rect in zip(frames, rects(folder), strict=True)]


def rects(folder: Path) -> tuple[Rect, ...]:
    return Character.load(folder / "anna").rects


def without_mouth(luma: NDArray[np.uint8], rect: Rect) -> NDArray[np.int16]:
    found = luma.astype(np.int16)
    found[rect.y1 : rect.y2, rect.x1 : rect.x2] = 0
    return found


def mouth(luma: NDArray[np.uint8], rect: Rect) -> NDArray[np.int16]:
    return luma[rect.y1 : rect.y2, rect.x1 : rect.x2].astype(np.int16)


def spoken_mouths(hub: Hub, folder: Path, start: int) -> list[NDArray[np.int16]]:
    """What is to be seen of the demo's speech from a position on."""
    with hub.open(TalkOrder("anna", "nv12", realtime=False, start_frame=start)) as talk:
        for chunk in read_pcm(folder / "anna" / "aud.wav"):
            talk.push(chunk)
        talk.finish()
        places = rects(folder)
        return [mouth(picture.pixels[:192], places[frame_at(start + picture.index, FRAMES)]).copy() for picture in talk]


def place_of(pcm: NDArray[np.float32], sound: NDArray[np.float32]) -> float:
    """At how many seconds of a sound another one begins."""
    size = 1 << (len(pcm) + len(sound)).bit_length()
    against = np.fft.irfft(np.fft.rfft(sound, size) * np.conj(np.fft.rfft(pcm, size)), size)
    return int(np.argmax(against[: len(sound)])) / SOUND_RATE


def assert_speech_in_step(peer: Peer, hub: Hub, folder: Path, start: int, pcm: NDArray[np.float32]) -> None:
    """The speech's pictures are the engine's, and its sound is heard when they are seen: by the streams' own times, and
    by when they came."""
    wanted = spoken_mouths(hub, folder, start)
    places, seen = rects(folder), []
    for tick, came, luma in peer.pictures:
        index = tick - start
        if SEAM <= index < FRAMES - SEAM:
            shown = mouth(luma, places[frame_at(tick, FRAMES)])
            assert np.abs(shown - wanted[index]).mean() < 2.0, tick
            seen.append((index, tick, came))
    assert len(seen) > 8
    sound = np.concatenate([block for _, block in peer.sound])
    begins = place_of(pcm, sound)
    for index, tick, _ in seen:
        assert abs((tick / FPS - index / FPS) - begins) < IN_STEP_SECONDS
    heard_at = [came - at * 0.02 for at, (came, _) in enumerate(peer.sound)]
    seen_at = [came - tick / FPS for tick, came, _ in peer.pictures]
    assert abs(np.median(heard_at) - np.median(seen_at)) < IN_STEP_SECONDS


def assert_no_jump(peer: Peer, body: list[NDArray[np.int16]], folder: Path, waited: int) -> None:
    """Each picture's body is that of its place in the ping-pong, spoken or not; so many ticks have stood still."""
    places, stood = rects(folder), 0
    for tick, _, luma in peer.pictures:
        distances = [
            float(np.abs(without_mouth(luma, rect) - each).mean()) for each, rect in zip(body, places, strict=True)
        ]
        while stood < waited and int(np.argmin(distances)) != frame_at(tick - stood, FRAMES):
            stood += 1
        assert int(np.argmin(distances)) == frame_at(tick - stood, FRAMES), tick


def test_pushed_sound_is_spoken_in_step_and_without_a_jump(
    hub: Hub, folder: Path, body: list[NDArray[np.int16]]
) -> None:
    wav = folder / "anna" / "aud.wav"
    pcm = np.concatenate(list(read_pcm(wav, SOUND_RATE)))

    async def run() -> tuple[Peer, int, int]:
        async with serving(hub) as (client, peers):
            peer = Peer()
            await peer.call(client, "anna")
            await peer.until(5)
            said = await client.post(f"/v1/talks/{peer.talk}/audio", content=wav.read_bytes())
            assert said.status_code == 200
            assert said.json() == {"seconds": pytest.approx(len(pcm) / SOUND_RATE)}
            (talk,) = hub.talks
            await peer.until(len(peer.pictures) + 2)
            how = (await client.get(f"/v1/talks/{peer.talk}")).json()
            assert (how["character"], how["speaking"], how["state"]) == ("anna", True, "connected")
            while peer.pictures[-1][0] < talk.order.start_frame + FRAMES + 5:
                await asyncio.sleep(0.02)
            waited = peers.connected.get(peer.talk).stage.waited
            assert (await client.delete(f"/v1/talks/{peer.talk}")).status_code == 204
            assert (await client.get(f"/v1/talks/{peer.talk}")).status_code == 404
            await peer.close()
            return peer, talk.order.start_frame, waited

    peer, start, waited = asyncio.run(run())
    assert hub.talks == []
    assert_no_jump(peer, body, folder, waited)
    assert_speech_in_step(peer, hub, folder, start, pcm)


def test_a_microphone_is_heard(hub: Hub, folder: Path, body: list[NDArray[np.int16]]) -> None:
    """What is said into it is said by the character, in step, and before and after it there is silence."""
    pcm = np.concatenate(list(read_pcm(folder / "anna" / "aud.wav", SOUND_RATE)))

    async def run() -> tuple[Peer, int]:
        async with serving(hub) as (client, peers):
            peer = Peer(Says(pcm, before=0.6))
            await peer.call(client, "anna")
            async with asyncio.timeout(20):
                while not hub.talks:
                    await asyncio.sleep(0.02)
                while hub.talks:
                    await asyncio.sleep(0.02)
            await peer.until(len(peer.pictures) + 10)
            waited = peers.connected.get(peer.talk).stage.waited
            await peer.close()
            return peer, waited

    peer, waited = asyncio.run(run())
    assert_no_jump(peer, body, folder, waited)
    sound = np.concatenate([block for _, block in peer.sound])
    begins = place_of(pcm, sound)
    inside = sound[round(begins * SOUND_RATE) :][: len(pcm)]
    assert np.corrcoef(inside, pcm[: len(inside)])[0, 1] > 0.7  # after two times Opus
    before = sound[: round((begins - LEAD_SECONDS) * SOUND_RATE) - 960]
    assert np.abs(before).max() < 0.01


def test_who_vanishes_leaves_nothing(hub: Hub, folder: Path) -> None:
    async def run() -> None:
        async with serving(hub) as (client, peers):
            peer = Peer()
            await peer.call(client, "anna")
            await peer.until(3)
            await client.post(f"/v1/talks/{peer.talk}/audio", content=(folder / "anna" / "aud.wav").read_bytes())
            await peer.vanish()
            async with asyncio.timeout(15):
                while len(peers.connected) or hub.talks or hub.load_share() > 0:
                    await asyncio.sleep(0.05)
            await peer.close()

    asyncio.run(run())
    assert hub.engines[0].holdings.residents.nbytes > 0
    hub.engines[0].holdings.residents.make_room(lambda: True)  # of what nobody uses
    assert hub.engines[0].holdings.residents.nbytes == 0


def test_peers_end_with_the_server(folder: Path) -> None:
    async def run() -> None:
        hub = await asyncio.to_thread(Hub, folder, ["cpu"], {}, {})
        async with serving(hub) as (client, peers):
            peer = Peer()
            await peer.call(client, "anna")
            await peer.until(2)
            await client.post(f"/v1/talks/{peer.talk}/audio", content=(folder / "anna" / "aud.wav").read_bytes())
            offered = peer.connection.localDescription.sdp
            closing = asyncio.create_task(asyncio.to_thread(hub.close, 20.0))
            async with asyncio.timeout(15):
                while not hub.closing:
                    await asyncio.sleep(0.01)
                refused = await client.post("/v1/characters/anna/offer", json={"sdp": offered, "type": "offer"})
                assert refused.status_code == 503
                await closing
            assert len(peers.connected) == 0
            await peer.close()
            # What it was saying it has said to its end.
            assert np.abs(np.concatenate([block for _, block in peer.sound])).max() > 0.1

    asyncio.run(run())


def test_what_cannot_be_had(hub: Hub) -> None:
    async def run() -> None:
        async with serving(hub) as (client, peers):
            offer = "/v1/characters/anna/offer"
            for content, status in (
                (b"", 400),
                (b"[", 400),
                (b'{"type": "offer"}', 400),
                (b'{"type": "answer", "sdp": "v=0"}', 400),
                (b'{"type": "offer", "sdp": "v=0"}', 400),
                (b"[" * 100_000, 400),
                (b" " * 300_000, 413),
            ):
                refused = await client.post(offer, content=content)
                assert refused.status_code == status, content[:40]
                assert refused.json()["error"]
            peer = Peer()
            sdp = (await peer.connection.createOffer()).sdp
            unknown = await client.post("/v1/characters/nobody/offer", json={"sdp": sdp, "type": "offer"})
            assert unknown.status_code == 404
            many = sdp.replace("a=mid", "a=candidate:1 1 udp 1 192.0.2.1 5 typ host\r\n" * 40 + "a=mid")
            refused = await client.post(offer, json={"sdp": many, "type": "offer"})
            assert "candidates" in refused.json()["error"]
            without = sdp.replace("m=video", "m=audio")
            refused = await client.post(offer, json={"sdp": without, "type": "offer"})
            assert refused.status_code == 400
            assert "no video" in refused.json()["error"]
            for method in ("GET", "DELETE"):
                assert (await client.request(method, "/v1/talks/nobody")).status_code == 404
            assert (await client.post("/v1/talks/nobody/audio", content=b"1")).status_code == 404
            assert len(peers.connected) == 0
            await peer.close()

    asyncio.run(run())
    assert hub.talks == []
    assert hub.load_share() == 0


def test_offers_of_strangers_are_answered_or_refused(hub: Hub) -> None:
    """Whatever is cut out of an offer, or put into it: an answer, a 400, or no room now; and nothing stays."""

    async def run() -> None:
        async with serving(hub) as (client, peers):
            peer = Peer()
            lines = (await peer.connection.createOffer()).sdp.splitlines()
            random = np.random.default_rng(0)
            for _ in range(30):
                spoiled = list(lines)
                for _ in range(int(random.integers(1, 4))):
                    at = int(random.integers(len(spoiled)))
                    how = random.integers(3)
                    if how == 0:
                        del spoiled[at]
                    elif how == 1:
                        spoiled[at] = spoiled[at][: int(random.integers(len(spoiled[at]) + 1))]
                    else:
                        spoiled.insert(at, "a=candidate:1 1 udp 99999999999 x.local \0 typ host")
                sent = {"sdp": "\r\n".join(spoiled) + "\r\n", "type": "offer"}
                answer = await client.post("/v1/characters/anna/offer", json=sent)
                assert answer.status_code in (200, 400, 503), answer.text
                if answer.status_code == 200:
                    await client.delete(f"/v1/talks/{answer.json()['talk']}")
            await peers.aclose()
            await peer.close()

    asyncio.run(run())
    assert hub.load_share() == 0


def test_raw_sound_and_what_is_wrong_with_it(hub: Hub, folder: Path) -> None:
    pcm = np.concatenate(list(read_pcm(folder / "anna" / "aud.wav", 16_000)))[:8000]

    async def run() -> None:
        async with serving(hub) as (client, _):
            peer = Peer()
            await peer.call(client, "anna")
            await peer.until(2)
            audio = f"/v1/talks/{peer.talk}/audio"
            whole = (pcm * 32767).astype("<i2").tobytes()
            said = await client.post(audio, params={"rate": 16_000, "encoding": "s16le"}, content=whole)
            assert said.json()["seconds"] == pytest.approx(0.5, abs=0.01)
            nan = np.full(100, np.nan, "<f4").tobytes()
            wrong: list[tuple[dict[str, str | int], bytes, str]] = [
                ({"rate": 16_000, "encoding": "mp3"}, whole, "encoding"),
                ({"rate": 16_000}, whole, "encoding"),
                ({"rate": 1, "encoding": "s16le"}, whole, "rate"),
                ({"rate": 16_000, "encoding": "f32le"}, nan, "NaN"),
                ({"rate": 16_000, "encoding": "s16le"}, b"", "empty"),
                ({}, b"no sound", "body"),
            ]
            for fields, content, word in wrong:
                refused = await client.post(audio, params=fields, content=content)
                assert refused.status_code == 400, (fields, refused.text)
                assert word in refused.json()["error"]
            await peer.close()

    asyncio.run(run())


class Spoken:
    """Stands for an utterance."""

    def __init__(self, position: int, total: int | None, sound: int, pictures: set[int]) -> None:
        self.position, self.total, self.over = position, total, False
        self.samples, self._pictures = sound, pictures

    def has_sound(self, samples: int) -> bool:
        return self.samples >= samples or self.total is not None

    def sound(self, samples: int) -> NDArray[np.float32]:
        self.samples -= samples
        return np.ones(samples, np.float32)

    def picture(self, index: int) -> Answer | None:
        return Answer(b"p%d" % index, index) if index in self._pictures else None


def shown(stage: Stage, utterance: Any, ticks: int) -> list[Shown]:
    stage.say(utterance)
    return [stage.tick() for _ in range(ticks)]


def test_a_stage_waits_for_sound_and_not_for_pictures() -> None:
    stage = Stage(Fraction(25))
    stage.begin(100.0)
    utterance = Spoken(2, None, 3 * 1920, set(range(20)) - {1})
    ticks = shown(stage, utterance, 8)
    assert [each.position for each in ticks] == [0, 1, 2, 3, 4, 5, 5, 5]
    assert [each.still for each in ticks] == [False, False, False, True, False, True, True, True]
    assert [bool(each.sound.any()) for each in ticks] == [False, False, True, True, True, False, False, False]
    assert (stage.late, stage.waited) == (1, 3)
    utterance.total = 5
    rest = [stage.tick() for _ in range(4)]
    assert [each.position for each in rest] == [5, 6, 7, 8]
    assert [each.spoken for each in rest] == [b"p3", b"p4", None, None]
    assert [each.share for each in rest] == [2, 1, 0, 0]
    assert len(stage.done) == 1
    assert not stage.busy


def test_a_stage_knows_when_a_position_is_reached() -> None:
    stage = Stage(Fraction(25))
    stage.begin(100.0)
    assert stage.position_at(100.6) == 15
    assert stage.position_at(90.0) == 0
    assert stage.due_at(15) == pytest.approx(100.6)
    first: Any = Spoken(15, 40, 0, set())
    stage.say(first)
    assert stage.position_at(101.0) == 55  # after what is said before


def test_a_blend_is_the_mean_with_weights() -> None:
    random = np.random.default_rng(1)
    filmed, spoken = (random.integers(0, 256, (12 * 3 // 2, 16), np.uint8) for _ in range(2))
    rect = Rect(3, 2, 10, 9)
    for share in range(SEAM + 2):
        mixed = filmed.copy()
        blend(mixed, spoken, rect, share)
        wanted = np.floor((filmed * (SEAM + 1.0 - share) + spoken * float(share)) / (SEAM + 1) + 0.5)
        inside = np.zeros(filmed.shape, bool)
        inside[2:9, 3:10] = inside[12 + 1 : 12 + 5, 2:10] = True
        assert np.array_equal(mixed, np.where(inside, wanted, filmed))


def test_an_ear_finds_speech_with_what_comes_before_it() -> None:
    random = np.random.default_rng(2)
    noise = random.normal(0, 0.001, 3 * SOUND_RATE).astype(np.float32)
    noise[SOUND_RATE // 2 : SOUND_RATE // 2 + 480] += 0.5  # a click, of 10 ms
    speech = slice(SOUND_RATE, SOUND_RATE * 3 // 2)
    noise[speech] += 0.1 * np.sin(np.arange(SOUND_RATE // 2) * 0.05, dtype=np.float32)
    for piece in (960, 777, len(noise)):
        ear = Ear()
        said = [each for at in range(0, len(noise), piece) for each in ear.hear(noise[at : at + piece])]
        assert [each.begins for each in said] == [True] + [False] * (len(said) - 1)
        assert [each.ends for each in said] == [False] * (len(said) - 1) + [True]
        heard = np.concatenate([each.pcm for each in said])
        begins = SOUND_RATE - round(LEAD_SECONDS * SOUND_RATE)
        ends = speech.stop + round(HANGOVER_SECONDS * SOUND_RATE)
        assert np.array_equal(heard, noise[begins:ends])
    ear = Ear(longest=0.4)
    parts = [each for each in ear.hear(noise[: speech.stop]) if each.begins]
    assert len(parts) == 2


def test_hidden_addresses_are_taken_for_the_clients_own() -> None:
    hidden = "a=candidate:1 1 udp 2113937151 0a1b.local 50000 typ host\r\n"
    media = "m=audio 9 UDP/TLS/RTP/SAVPF 96\r\nc=IN IP4 0.0.0.0\r\na=mid:0\r\na=rtpmap:96 opus/48000/2\r\n"
    sdp = "v=0\r\no=- 1 2 IN IP4 127.0.0.1\r\ns=-\r\nt=0 0\r\n" + media + hidden
    offer, said = parsed_offer(sdp, "192.0.2.7")
    assert said.media[0].ice_candidates[0].ip == "192.0.2.7"
    assert ".local" not in offer.sdp
    offer, said = parsed_offer(sdp, None)
    assert said.media[0].ice_candidates == []
    for other in (hidden.replace("0a1b.local", "example.org"), hidden.replace("0a1b.local", "localhost")):
        offer, said = parsed_offer(sdp + other + hidden.replace(" ", " \t").rstrip(), "192.0.2.7")
        assert [each.ip for each in said.media[0].ice_candidates] == ["192.0.2.7", "192.0.2.7"]
        assert other.split()[4] not in offer.sdp
    offer, said = parsed_offer(sdp.replace("0a1b.local", "2001:db8::1"), None)
    assert [each.ip for each in said.media[0].ice_candidates] == ["2001:db8::1"]
    with pytest.raises(BadRequest, match="1 to 8 media"):
        parsed_offer(sdp + media * 8, None)
