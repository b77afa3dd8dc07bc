"""Faults at every stage and at random times: a complete right output, or one clear error, and what is kept goes on to
the same bytes; never a hang, a thread or process left over, or a wrong frame.

`make test` tries a few hundred, always the same ones; `make faults` twenty times as many.
"""

from __future__ import annotations

import gc
import sys
import threading
from collections.abc import Iterator

import faults
import pytest
from faults import PowerCut, Scene

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
    for seed in faults.seeds(8):
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


@pytest.mark.skipif(sys.platform != "linux", reason="files are told by what /proc says of them")
@pytest.mark.parametrize("output", faults.OUTPUTS)
def test_a_loss_of_power(scene: Scene, output: str) -> None:
    for seed in faults.seeds(8):
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
