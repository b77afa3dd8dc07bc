"""Faults of the device: memory that runs out, and a kernel that fails, at random times of a render."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import faults
import pytest
from conftest import ROOT
from faults import Scene

from gpupipe.errors import DeviceError, DeviceMemoryError, EngineClosed

cp = pytest.importorskip("cupy")

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(os.environ.get("SOFTCUDA") != "1", reason="lets the software device fail"),
]

MEMORY = 160_000_000
"""Bytes of the device whose memory runs out: a render counts 64 MB besides what it takes."""


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    made = Scene(tmp_path_factory.mktemp("faults"), "cuda", provider="cpu")
    yield made
    made.close()


def test_a_device_that_fails(scene: Scene, softcuda_fail_after: Callable[[int], None]) -> None:
    for seed in faults.seeds(12):
        draw = faults.draw("device", seed)
        output, encoders, launches = draw.choice(faults.OUTPUTS), draw.choice((1, 3)), draw.randrange(14)
        scene.clear()
        scene.prepare(output)
        scene.engine  # noqa: B018  # opened before
        softcuda_fail_after(launches)
        raised = faults.ended(lambda: scene.render(output, encoders=encoders))  # noqa: B023
        print(f"device, seed {seed}: {output}, {encoders} encoders, launch {launches}: {raised!r}")
        if raised is None:
            scene.assert_whole(output)
            softcuda_fail_after(-1)
            continue
        assert isinstance(raised, DeviceError | EngineClosed)  # where an encoder asks for its session after that
        scene.assert_nothing_wrong(output)
        scene.close()
        softcuda_fail_after(-1)
        scene.assert_resumed(output)


def test_memory_that_runs_out(tmp_path: Path) -> None:
    """In a process whose device has little memory, of which others take more, before a render and in the middle."""
    env = os.environ | {"SOFTCUDA_MEM": str(MEMORY), "PYTHONPATH": os.pathsep.join([str(ROOT / "tests"), *sys.path])}
    done = subprocess.run(
        [sys.executable, __file__, str(tmp_path)], env=env, text=True, capture_output=True, timeout=600, check=False
    )
    print(done.stdout)
    assert done.returncode == 0, done.stderr


def run_out(path: Path) -> None:
    """Renders beside others that take memory: before, or at a random call of the render."""
    scene = Scene(path, "cuda", provider="cpu")
    became: set[str] = set()
    for seed in faults.seeds(16):
        draw = faults.draw("memory", seed)
        output, in_the_middle = draw.choice(faults.OUTPUTS), draw.random() < 0.5
        left = int(draw.choice([0, 1e5, 1e6, 64e6, 70e6, 90e6]))
        scene.clear()
        scene.prepare(output)
        gpu = scene.engine.backend.gpu
        assert gpu is not None
        taken: list[object] = []

        def take() -> None:
            if (size := gpu.free_bytes - left) > 0:  # noqa: B023
                taken.append(gpu.empty((size // 256 * 256,), "uint8"))  # noqa: B023

        if in_the_middle:
            number = draw.randrange(12)
            allocations = iter(range(1 << 30))
            empty = type(gpu).empty

            def among(self: object, *given: object, **named: object) -> object:
                if next(allocations) == number and not taken:  # noqa: B023
                    with pytest.MonkeyPatch.context() as real:
                        real.setattr(type(gpu), "empty", empty)  # noqa: B023
                        take()
                return empty(self, *given, **named)  # type: ignore[arg-type]  # noqa: B023

            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(type(gpu), "empty", among)
                raised = faults.ended(lambda: scene.render(output))  # noqa: B023
        else:
            take()
            raised = faults.ended(lambda: scene.render(output))  # noqa: B023
        taken.clear()
        print(f"memory, seed {seed}: {output}, {left} bytes left{', in the middle' * in_the_middle}: {raised!r}")
        if raised is None:
            scene.assert_whole(output)
            became.add("whole")
            continue
        assert isinstance(raised, DeviceMemoryError), raised
        assert "\n" not in str(raised)
        became.add("refused")
        scene.assert_nothing_wrong(output)
        assert scene.engine._error is None
        scene.assert_at_rest()
        scene.assert_resumed(output)
    assert became == {"whole", "refused"}
    scene.close()


if __name__ == "__main__":
    run_out(Path(sys.argv[1]))
