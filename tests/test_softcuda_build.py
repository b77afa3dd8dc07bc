"""Building softcuda, running commands on it, and how pytest finds it (conftest.py)."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from softcuda.build import BuildError, build, folder

ROOT = Path(__file__).resolve().parents[1]
RUN = ROOT / "tests" / "softcuda" / "run.py"
cuda = pytest.mark.cuda
softcuda_only = pytest.mark.skipif(os.environ.get("SOFTCUDA") != "1", reason="is about the software device itself")


def test_run_needs_a_command() -> None:
    done = subprocess.run([sys.executable, RUN], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (2, "usage: python tests/softcuda/run.py COMMAND…\n")


@cuda
@softcuda_only
def test_run_hands_over_arguments_and_exit_status() -> None:
    program = "import os, sys; print(sys.argv[1:], os.environ['SOFTCUDA']); sys.exit(7)"
    done = subprocess.run(
        [sys.executable, RUN, sys.executable, "-c", program, "a b", "*"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (7, "['a b', '*'] 1\n")


@pytest.mark.skipif(sys.platform != "linux", reason="softcuda runs on Linux")
def test_a_build_without_a_compiler_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOFTCUDA_BUILD", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BuildError, match=r"there is no g\+\+ on PATH"):
        build()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(sys.platform != "linux", reason="softcuda runs on Linux")
def test_a_build_that_fails_says_why_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOFTCUDA_BUILD", str(tmp_path))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    with pytest.raises(BuildError) as e:
        build()
    first, *log = str(e.value).splitlines()
    assert first.startswith("softcuda: could not fetch CuPy's source with pip")
    assert "No matching distribution found" in "\n".join(log)
    assert [p.suffix for p in tmp_path.iterdir()] == [".lock"]
    assert not folder().exists()


def pytest_elsewhere(*arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    """pytest as it is started by hand, where this process was started anew on softcuda."""
    base = {k: v for k, v in os.environ.items() if k not in ("SOFTCUDA", "PYTHONPATH", "LD_LIBRARY_PATH")}
    command = [sys.executable, "-m", "pytest", "-o", "addopts=", "-p", "no:cacheprovider", *arguments]
    return subprocess.run(
        command,
        cwd=ROOT,
        env=base | env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )


ONE_CUDA_TEST = "tests/test_softcuda_ptx.py::test_dividing_bytes_by_255"
ONE_OTHER_TEST = "tests/test_softcuda_build.py::test_run_needs_a_command"


@cuda
@softcuda_only
@pytest.mark.parametrize("capture", ["fd", "sys", "no"])
def test_pytest_starts_itself_again_and_reports_as_ever(capture: str) -> None:
    done = pytest_elsewhere(ONE_CUDA_TEST, f"--capture={capture}")
    assert done.returncode == 0, done.stdout
    assert done.stdout.count("test session starts") == 1
    assert "1 passed in" in done.stdout.splitlines()[-1]


@cuda
@softcuda_only
def test_pytest_starts_itself_again_and_tells_its_exit_status() -> None:
    none = pytest_elsewhere(ONE_CUDA_TEST, "-k", "nothing")
    assert none.returncode == pytest.ExitCode.NO_TESTS_COLLECTED
    assert "1 deselected" in none.stdout.splitlines()[-1]


@cuda
@softcuda_only
def test_without_a_compiler_cuda_tests_are_skipped_or_fail(tmp_path: Path) -> None:
    skipped = pytest_elsewhere("-rs", ONE_CUDA_TEST, ONE_OTHER_TEST, PATH=str(tmp_path), GPUPIPE_REQUIRE_CUDA="0")
    assert skipped.returncode == 0
    assert "there is no GPU, and no g++ to build the software device with" in skipped.stdout
    assert "1 passed, 1 skipped" in skipped.stdout
    required = pytest_elsewhere(ONE_CUDA_TEST, ONE_OTHER_TEST, PATH=str(tmp_path), GPUPIPE_REQUIRE_CUDA="1")
    assert required.returncode == 1
    assert "1 passed, 1 error" in required.stdout


@cuda
@softcuda_only
def test_a_failed_build_fails_cuda_tests_and_no_others(tmp_path: Path) -> None:
    done = pytest_elsewhere(
        ONE_CUDA_TEST, ONE_OTHER_TEST, SOFTCUDA_BUILD=str(tmp_path), PIP_NO_INDEX="1", PIP_FIND_LINKS=""
    )
    assert done.returncode == 1
    assert "softcuda: could not fetch CuPy's source with pip" in done.stdout
    assert "1 passed, 1 error" in done.stdout
