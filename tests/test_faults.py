"""Faults at every stage and at random times: a complete right output, or one clear error, and what is kept goes on to
the same bytes; never a hang, a thread or process left over, or a wrong frame.

`make test` tries a few hundred, always the same ones; `make faults` twenty times as many.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import faults
import pytest
import small
from faults import SECONDS, PowerCut, Scene

from gpupipe.cli import main
from gpupipe.compose.cpu import CpuCompositor, CpuSlot
from gpupipe.errors import InferenceError, MediaError, OutputError
from gpupipe.render.manifest import read_manifest
from gpupipe.render.parts import Parts, wrong_parts


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    before = set(threading.enumerate())
    made = Scene(tmp_path_factory.mktemp("faults"))
    yield made
    made.close()
    gc.collect()
    faults.eventually(lambda: set(threading.enumerate()) <= before, "threads are left")


@pytest.mark.parametrize("what", faults.TARGETS)
def test_a_call_that_fails(scene: Scene, what: str) -> None:
    target = faults.TARGETS[what]
    for seed in faults.seeds(5):
        draw = faults.draw(what, seed)
        output = draw.choice(target.outputs)
        encoders = draw.choice((1, 1, 3))
        error = draw.choice(faults.ERRORS if encoders == 1 else faults.ERRORS[:-1])()
        late = target.late and draw.random() < 0.5
        number = draw.randrange(scene.counts[output][what])
        print(f"{what}, seed {seed}: {output}, call {number}, {error!r}{' late' * late}, {encoders} encoders", end=": ")
        scene.clear()
        scene.prepare(output)
        with faults.failing(target, number, error, late=late) as fired:
            raised = faults.ended(lambda: scene.render(output, encoders=encoders))  # noqa: B023
        print(repr(raised))
        if raised is None:
            # Where nobody needs what failed, or the thread that is interrupted calls it no more.
            assert not fired or what in ("syncing", "delivery", "scheduling")
            scene.assert_whole(output)
        else:
            faults.assert_told(raised, error)
            scene.assert_nothing_wrong(output)
            assert target.ends or scene.engine._error is None
            scene.assert_at_rest()
            scene.assert_resumed(output)


@pytest.mark.parametrize(("heard", "said"), [(-0.5, "the model gave NaN"), (2.0, "the model failed")])
def test_a_frame_that_the_model_spoils(scene: Scene, heard: float, said: str) -> None:
    for seed in faults.seeds(5):
        draw = faults.draw(said, seed)
        output, encoders, wrong = draw.choice(faults.OUTPUTS), draw.choice((1, 3)), draw.randrange(faults.FRAMES)
        print(f"{said}, seed {seed}: {output}, frame {wrong}, {encoders} encoders", end=": ")

        def spoiling(prepare: Callable[..., None]) -> Callable[..., None]:
            def call(self: CpuCompositor, slot: CpuSlot, frames: Sequence[Any]) -> None:
                prepare(self, slot, frames)
                for place, drawing in enumerate(frames):
                    if drawing.surface.index == wrong:  # noqa: B023
                        slot.audio[place] = heard

            return call

        scene.clear()
        scene.prepare(output)
        with faults.calling(faults.TARGETS["prepare"], spoiling):
            raised = faults.ended(lambda: scene.render(output, encoders=encoders))  # noqa: B023
        print(repr(raised))
        assert isinstance(raised, InferenceError)
        assert f"output frame {wrong}: {said}" in str(raised)
        scene.assert_nothing_wrong(output)
        scene.assert_at_rest()
        scene.assert_resumed(output)


def test_a_video_that_is_damaged(scene: Scene) -> None:
    for seed in faults.seeds(5):
        draw = faults.draw("damage", seed)
        output, wrong = draw.choice(faults.OUTPUTS), draw.randrange(small.FRAMES)
        path = scene.folder / draw.choice(["full_body_video.mp4", "crops_328_video.mp4"])
        scene.clear()
        scene.prepare(output)
        before = path.read_bytes()
        small.damage(path, wrong)
        raised = faults.ended(lambda: scene.render(output))  # noqa: B023
        path.write_bytes(before)
        print(f"damage, seed {seed}: {path.name}, frame {wrong}: {raised!r}")
        if raised is None:  # what was written over is what the encoder says of itself
            scene.assert_whole(output)
            continue
        assert isinstance(raised, MediaError)
        scene.assert_nothing_wrong(output)
        error = faults.ended(lambda: scene.render(output, resume=True, overwrite=True))  # noqa: B023
        if error is not None:  # segments were finished, of the video as it was then
            assert isinstance(error, OutputError)
            assert f"{path.name} is not what it was when this was begun" in str(error)
            error = faults.ended(lambda: scene.render(output, overwrite=True))  # noqa: B023
        assert error is None
        scene.assert_whole(output)


@pytest.mark.skipif(sys.platform == "win32", reason="files have no limit there")
@pytest.mark.parametrize("output", faults.OUTPUTS)
def test_a_disk_that_is_full(scene: Scene, output: str) -> None:
    """A file may not grow beyond a limit, whoever writes it: FFmpeg, OpenCV or Python."""
    import resource

    whole = scene.whole[output]
    longest = len(whole) if isinstance(whole, bytes) else max(map(len, whole.values()))
    _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    for seed in faults.seeds(5):
        draw = faults.draw(f"full {output}", seed)
        limit, encoders = draw.randrange(longest), draw.choice((1, 3))
        scene.clear()
        scene.prepare(output)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, most))
        try:
            raised = faults.ended(lambda: scene.render(output, encoders=encoders))  # noqa: B023
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
        print(f"full {output}, seed {seed}: files of {limit} of {longest} bytes, {encoders} encoders: {raised!r}")
        assert isinstance(raised, OutputError)
        assert str(raised).startswith(f"{scene.work / output}: cannot be written")
        scene.assert_nothing_wrong(output)
        scene.assert_at_rest()
        scene.assert_resumed(output)


def test_a_disk_that_is_slow(scene: Scene) -> None:
    for seed in faults.seeds(6):
        draw = faults.draw("slow", seed)
        output, encoders = draw.choice(faults.OUTPUTS), draw.choice((1, 3))
        seconds = draw.uniform(0, 0.02)

        def slow(real: Callable[..., Any]) -> Callable[..., Any]:
            def call(*given: Any, **named: Any) -> Any:
                time.sleep(seconds)  # noqa: B023
                return real(*given, **named)

            return call

        print(f"slow, seed {seed}: {output}, {seconds} s a call")
        scene.clear()
        scene.prepare(output)
        with ExitStack() as slowed:
            for what in ("syncing", "renaming", "writing", "writing images"):
                slowed.enter_context(faults.calling(faults.TARGETS[what], slow))
            assert faults.ended(lambda: scene.render(output, encoders=encoders)) is None  # noqa: B023
        scene.assert_whole(output)


@pytest.mark.skipif(sys.platform != "linux", reason="files are told by what /proc says of them")
@pytest.mark.parametrize("output", faults.OUTPUTS)
def test_a_loss_of_power(scene: Scene, output: str) -> None:
    for seed in faults.seeds(5):
        draw = faults.draw(f"power {output}", seed)
        scene.clear()
        scene.prepare(output)
        cut = draw.randrange(80)
        disk = faults.Disk(scene.work)
        finished: list[int] = []
        finish = Parts.finish

        def counted(self: Parts, number: int, suffix: str, frames: range) -> None:
            finish(self, number, suffix, frames)  # noqa: B023
            finished.append(number)  # noqa: B023

        with disk.watched(cut), pytest.MonkeyPatch.context() as patch:
            patch.setattr(Parts, "finish", counted)
            raised = faults.ended(lambda: scene.render(output))
        print(f"power {output}, seed {seed}: cut at call {cut}, {len(finished)} segments finished: {raised!r}")
        assert raised is None or isinstance(raised, PowerCut)
        disk.restore(draw)
        disk.close()
        scene.assert_nothing_wrong(output, kept=False)
        whole = (scene.work / output).exists() and scene.content(output) == scene.whole[output]
        if raised is None:
            assert whole, "what was told to be finished is lost"
        elif not whole and output in faults.VIDEOS:
            manifest = read_manifest(scene.parts(output))
            assert set(finished) <= set(manifest.segments if manifest is not None else ()), "what was kept is lost"
            assert wrong_parts(scene.work / output) == []
        scene.assert_resumed(output)
        scene.assert_at_rest()


def commanded(begun: Any, told: str, arguments: list[str]) -> None:
    """Run a command, in a process of its own that has everything imported, and leave what it says in a file."""
    os.dup2(os.open(told, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
    begun.set()
    try:
        status = main(arguments)
    except SystemExit as ended:
        status = int(str(ended.code))
    os._exit(status)


@pytest.mark.skipif(sys.platform == "win32", reason="signals are sent to processes")
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP", "SIGKILL"])
def test_a_signal(scene: Scene, name: str, tmp_path: Path) -> None:
    number = signal.Signals[name]
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(["gpupipe.cli.commands", "gpupipe.cli.render", "onnxruntime"])
    told, slowest, seeds, untidy = tmp_path / "told", 0.0, faults.seeds(5), 0
    for seed in seeds:
        draw = faults.draw(name, seed)
        output, encoders, share = draw.choice(faults.OUTPUTS), draw.choice((1, 3)), draw.random()
        scene.clear()
        scene.prepare(output)
        options = scene.options | {"encoders": encoders, "device": "cpu"}
        arguments = [f"--{key.replace('_', '-')}={value}" for key, value in options.items()]
        begun = processes.Event()
        command = ["render", str(scene.folder), "-o", f"{scene.work}/{output}", "--quiet", *arguments]
        process = processes.Process(target=commanded, args=(begun, str(told), command))
        process.start()
        assert begun.wait(SECONDS)
        began = time.monotonic()
        if seed:  # the first one shows how long it takes
            process.join(share * slowest)
            with suppress(ProcessLookupError):
                os.kill(process.pid or 0, number)
        process.join(SECONDS)
        assert process.exitcode is not None, "hangs"
        slowest = slowest or time.monotonic() - began
        print(f"{name}, seed {seed}: {output}, after {share * slowest:.3f} s, {encoders} encoders: {process.exitcode}")
        said = told.read_text("utf-8").splitlines()
        print(*said, sep="\n")
        if process.exitcode == 0:
            scene.assert_whole(output)
            # Python itself drops an interrupt that meets a callback of its own, and says so.
            assert said == [] or said[0].startswith("Exception ignored in")
            continue
        early = process.exitcode == -number and name in ("SIGTERM", "SIGHUP")  # there is nothing to clean up yet
        assert early or process.exitcode == {"SIGINT": 130, "SIGTERM": 143, "SIGHUP": 129, "SIGKILL": -9}[name]
        resumable = [line for line in said if line.endswith("segments are finished; go on with --resume")]
        manifest = read_manifest(scene.parts(output))
        assert len(resumable) == bool(manifest is not None and manifest.segments) or name == "SIGKILL"
        assert [line for line in said if line not in resumable] == ["interrupted"] * (name == "SIGINT")
        scene.assert_nothing_wrong(output, kept=False)
        there, right = scene.kept(output)
        untidy += there != right and name != "SIGKILL"
        scene.assert_resumed(output)
    # An interrupt between the making of a file and the next line leaves what a kill leaves: the next render removes it.
    assert untidy <= max(1, len(seeds) // 20)
