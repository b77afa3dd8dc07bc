"""Renders to files on a server: the bytes of a render, in turn, called off, and gone on with by the next server."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
from serving import Counted, served

from gpupipe.errors import OutputError
from gpupipe.media.sound import read_pcm
from gpupipe.render.parts import parts_folder
from gpupipe.render.verify import verify
from gpupipe.serve.http.app import application
from gpupipe.serve.hub import Hub
from gpupipe.serve.jobrecord import RECORD, JobOptions, JobRecord, read_record
from gpupipe.serve.jobs import Jobs
from gpupipe.serve.jobstore import SOUND, VIDEO
from gpupipe.serve.limits import ServeLimits
from gpupipe.serve.refusals import NotFound, Refused
from gpupipe.serve.tokens import Tokens

LIMITS = ServeLimits(jobs=3)


@pytest.fixture(scope="module")
def wav(folder: Path) -> Path:
    return folder / "anna" / "aud.wav"


@pytest.fixture(scope="module")
def long_wav(wav: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """17 s of speech: 420 frames, in two segments."""
    data = wav.read_bytes()
    path = tmp_path_factory.mktemp("sound") / "long.wav"
    path.write_bytes(data[:40] + (14 * (len(data) - 44)).to_bytes(4, "little") + 14 * data[44:])
    assert sum(map(len, read_pcm(path))) > 16.5 * 16_000
    return path


@pytest.fixture(scope="module")
def hub(folder: Path) -> Iterator[Hub]:
    with Hub(folder, ["cpu"], {}, {}, limits=LIMITS) as hub:
        hub.load("anna")
        yield hub


@pytest.fixture
def jobs(hub: Hub, tmp_path: Path) -> Iterator[Jobs]:
    jobs = Jobs(hub, tmp_path / "jobs")
    jobs.start()
    yield jobs
    jobs.close()


def submit(jobs: Jobs, wav: Path, options: JobOptions | None = None) -> JobRecord:
    sound = jobs.draft()
    shutil.copyfile(wav, sound)
    return jobs.submit(sound, "anna", options or JobOptions())


def until(jobs: Jobs, name: str, *wanted: str) -> JobRecord:
    end = time.monotonic() + 60
    while (record := jobs.get(name)).status not in wanted:
        assert time.monotonic() < end, record
        time.sleep(0.01)
    return record


def test_a_job_is_a_render(hub: Hub, jobs: Jobs, folder: Path, wav: Path, tmp_path: Path) -> None:
    hub.engines[0].render(folder / "anna", tmp_path / "wanted.mp4", audio=wav, start_frame=5, crf=30)
    taken = submit(jobs, wav, JobOptions(start_frame=5, crf=30))
    with pytest.raises(NotFound, match="it has no video"):
        jobs.video(taken.id)
    done = until(jobs, taken.id, "done", "failed")
    assert (done.status, done.done, done.total, done.error) == ("done", 30, 30, None)
    video = jobs.video(taken.id)
    assert video.read_bytes() == (tmp_path / "wanted.mp4").read_bytes()
    assert sorted(path.name for path in video.parent.iterdir()) == [RECORD, VIDEO]
    assert video.parent.stat().st_mode & 0o077 == 0
    assert read_record(video.parent) == done


def test_what_fails_says_so(jobs: Jobs, wav: Path, tmp_path: Path) -> None:
    short = tmp_path / "short.wav"
    short.write_bytes(wav.read_bytes()[:40] + (2000).to_bytes(4, "little") + bytes(2000))
    failed = until(jobs, submit(jobs, short).id, "done", "failed")
    assert (failed.status, failed.ended is not None) == ("failed", True)
    assert failed.error is not None
    assert "short" in failed.error
    assert str(tmp_path) not in failed.error


def test_as_many_as_may_be(jobs: Jobs, long_wav: Path) -> None:
    drafts = [jobs.draft() for _ in range(2)]
    running = submit(jobs, long_wav)
    with pytest.raises(Refused, match="3 jobs wait"):
        jobs.draft()
    jobs.drop(drafts[0])
    assert not drafts[0].parent.exists()
    jobs.drop(jobs.draft())
    jobs.delete(running.id)
    assert jobs.count == 0


def test_one_that_is_called_off_leaves_nothing(jobs: Jobs, wav: Path, long_wav: Path, tmp_path: Path) -> None:
    names = [submit(jobs, long_wav).id for _ in range(3)]  # two at a time
    until(jobs, names[0], "running")
    assert jobs.get(names[2]).status == "waiting"
    for name in names:
        jobs.delete(name)
        with pytest.raises(NotFound):
            jobs.get(name)
    assert [path.name for path in (tmp_path / "jobs").iterdir()] == ["lock"]
    assert until(jobs, submit(jobs, wav).id, "done", "failed").status == "done"


def test_the_next_server_goes_on(
    hub: Hub, folder: Path, wav: Path, long_wav: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = Jobs(hub, tmp_path / "jobs")
    first.start()
    half, whole = submit(first, long_wav), submit(first, wav)
    until(first, whole.id, "done")
    with pytest.raises(OutputError, match="used by another server"):
        Jobs(hub, tmp_path / "jobs").start()
    parts = parts_folder(tmp_path / "jobs" / half.id / VIDEO)
    end = time.monotonic() + 60
    while not list(parts.glob("segment_*")) and time.monotonic() < end:
        time.sleep(0.01)
    uploading = first.draft()
    first.close()
    assert list(parts.glob("segment_*"))
    assert read_record(tmp_path / "jobs" / half.id).status == "waiting"
    with pytest.raises(Refused, match="shut down"):
        first.draft()
    (tmp_path / "jobs" / "something else").mkdir()

    def full(*_: object, **__: object) -> None:
        raise OutputError("No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(hub.engines[0], "submit", full)
        without_room = Jobs(hub, tmp_path / "jobs")
        without_room.start()
        try:
            failed = until(without_room, half.id, "done", "failed")
            assert (failed.status, failed.error) == ("failed", "No space left on device")
        finally:
            without_room.close()
    assert list(parts.glob("segment_*"))  # nothing that was finished is lost

    second = Jobs(hub, tmp_path / "jobs")
    second.start()
    try:
        assert {record.id: record.status for record in second.all()}[whole.id] == "done"
        assert not uploading.parent.exists()
        assert second.video(whole.id).is_file()
        done = until(second, half.id, "done", "failed")
        assert done.status == "done", done.error
        hub.engines[0].render(folder / "anna", tmp_path / "wanted.mp4", audio=long_wav)
        assert second.video(half.id).read_bytes() == (tmp_path / "wanted.mp4").read_bytes()
    finally:
        second.close()
    assert (tmp_path / "jobs" / "something else").is_dir()


def test_what_was_begun_otherwise_is_begun_again(hub: Hub, wav: Path, tmp_path: Path) -> None:
    """As by another version: its parts cannot be gone on with."""
    first = Jobs(hub, tmp_path / "jobs")
    first.start()
    sound = first.draft()
    shutil.copyfile(wav, sound)
    first.close()
    first.submit(sound, "anna", JobOptions())  # nobody takes it
    parts = parts_folder(sound.with_name(VIDEO))
    parts.mkdir()
    (parts / "manifest.json").write_text('{"version": 1}')
    second = Jobs(hub, tmp_path / "jobs")
    second.start()
    try:
        done = until(second, sound.parent.name, "done", "failed")
        assert done.status == "done", done.error
    finally:
        second.close()


def test_finished_ones_go_after_a_while(hub: Hub, wav: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gpupipe.serve.jobs.SWEEP_SECONDS", 0.05)
    monkeypatch.setattr(hub, "limits", ServeLimits(job_hours=1 / 3600))
    jobs = Jobs(hub, tmp_path / "jobs")
    jobs.start()
    try:
        name = submit(jobs, wav).id
        until(jobs, name, "done")
        end = time.monotonic() + 20
        while jobs.all() and time.monotonic() < end:
            time.sleep(0.02)
        assert jobs.all() == []
        jobs.close()
        assert not (tmp_path / "jobs" / name).exists()
    finally:
        jobs.close()


def test_over_the_network(hub: Hub, jobs: Jobs, wav: Path, tmp_path: Path) -> None:
    with (
        served(application(hub, Tokens(()), jobs, metrics=Counted())) as port,
        httpx.Client(base_url=f"http://127.0.0.1:{port}/v1", timeout=30) as client,
    ):
        answer = client.post("/jobs?character=anna&frames=20&sound=0", content=wav.read_bytes())
        assert answer.status_code == 202
        name = answer.json()["id"]
        assert answer.headers["location"] == f"/v1/jobs/{name}"
        until(jobs, name, "done")
        assert [each["id"] for each in client.get("/jobs").json()["jobs"]] == [name]
        whole = client.get(f"/jobs/{name}/video")
        part = client.get(f"/jobs/{name}/video", headers={"range": "bytes=100-199"})
        assert (part.status_code, part.content) == (206, whole.content[100:200])
        assert client.get(f"/jobs/{name}/video", headers={"range": "bytes=99999999-"}).status_code == 416
        (tmp_path / "video.mp4").write_bytes(whole.content)
        found = verify(tmp_path / "video.mp4")
        assert (found.problems, found.frames, found.sound_seconds) == ([], 20, None)
        for path, status in (
            ("/jobs?character=nobody", 404),
            ("/jobs", 400),
            ("/jobs?character=anna&crf=52", 400),
            ("/jobs?character=anna&output=/etc/passwd", 400),
        ):
            assert client.post(path, content=wav.read_bytes()).status_code == status
        late = client.post("/jobs?character=anna&start_frame=30", content=wav.read_bytes())
        why = "start_frame: the character has 30 frames (got 30); give 0 to 29"
        assert (late.status_code, late.json()) == (400, {"error": why})
        assert client.post("/jobs?character=anna", content=b"no sound").status_code == 400
        assert client.get("/jobs/../../etc/passwd").status_code == 404
        assert client.delete(f"/jobs/{name}").status_code == 204
        assert client.get(f"/jobs/{name}/video").status_code == 404
    assert [path.name for path in (tmp_path / "jobs").iterdir()] == ["lock"]


def test_many_at_once(jobs: Jobs, wav: Path) -> None:
    """Taken, called off and asked for from many threads: each is done once, or gone."""
    done: list[str] = []

    def client(number: int) -> None:
        for _ in range(3):
            try:
                name = submit(jobs, wav).id
            except Refused:
                continue
            if number % 2:
                jobs.delete(name)
            else:
                done.append(until(jobs, name, "done", "failed").status)

    threads = [threading.Thread(target=client, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert set(done) == {"done"}
    assert jobs.count == 0
    assert all(np.isfinite(record.created) for record in jobs.all())
    assert all((jobs.video(record.id).parent / SOUND).exists() is False for record in jobs.all())
