"""Give tests marked `cuda` a device: the machine's GPU, or the software device of tests/softcuda.

CuPy takes its CUDA libraries from paths that are read when a process starts. Where there is no GPU, pytest therefore
replaces itself, once, by the same command in an environment that leads CuPy to softcuda.
"""

from __future__ import annotations

import ctypes
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import pytest
from numpy.typing import NDArray
from quicker import drawn_once, without_waiting_for_the_disk
from ray_nodes import Nodes, ray_nodes
from softcuda.build import BuildError, build
from softcuda.run import environment

ROOT = Path(__file__).resolve().parents[1]

# Why tests marked `cuda` have no device, and whether that is a fault of softcuda and not of the machine.
no_device = pytest.StashKey[str]()
is_fault = pytest.StashKey[bool]()

# `make test` tries the same cases everywhere; `make fuzz`, which says how many, others each time.
hypothesis.settings.register_profile("test", derandomize=True)
hypothesis.settings.register_profile("fuzz", print_blob=True)
hypothesis.settings.load_profile("fuzz" if os.environ.get("GPUPIPE_FUZZ") else "test")

SoftcudaStats = Callable[..., dict[str, Any]]


def on_softcuda() -> bool:
    """Whether this process runs on the software device."""
    return os.environ.get("SOFTCUDA", "0") not in ("", "0")


def gives_back(before: int, after: int) -> bool:
    """Whether as many bytes of device memory are free as before.

    On a GPU the driver keeps pages and loaded kernels, and other programs come and go: there it may differ by 32 MB.
    """
    return before == after if on_softcuda() else abs(before - after) <= 32_000_000


def device_required() -> bool:
    """Whether a test that finds no device must fail."""
    return os.environ.get("GPUPIPE_REQUIRE_CUDA", "0") not in ("", "0")


def has_gpu() -> bool:
    """Whether the driver of a real GPU is there and counts at least one device."""
    try:
        cuda = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return False
    count = ctypes.c_int(0)
    return cuda.cuInit(0) == 0 and cuda.cuDeviceGetCount(ctypes.byref(count)) == 0 and count.value > 0


def pytest_configure(config: pytest.Config) -> None:
    """Find a device, or become a pytest that has one."""
    if on_softcuda() or config.option.markexpr == "not cuda":
        return
    if importlib.util.find_spec("cupy") is None:
        config.stash[no_device] = "CuPy is not installed: pip install cupy-cuda12x"
        if device_required():  # tests that import CuPy are skipped as files, where no mark is seen
            raise pytest.UsageError(f"GPUPIPE_REQUIRE_CUDA is set, and {config.stash[no_device]}")
    elif has_gpu():
        return
    elif "SOFTCUDA" in os.environ:
        config.stash[no_device] = "there is no GPU, and SOFTCUDA=0 turns the software device off"
    elif sys.platform != "linux":
        config.stash[no_device] = f"there is no GPU, and the software device does not run on {sys.platform}"
    elif shutil.which("g++") is None:
        config.stash[no_device] = "there is no GPU, and no g++ to build the software device with"
    else:
        _restart_on_softcuda(config)


def _restart_on_softcuda(config: pytest.Config) -> None:
    capture = config.pluginmanager.getplugin("capturemanager")
    capture.suspend_global_capture(in_=True)
    try:
        env = environment(build(), os.environ)
    except BuildError as e:
        config.stash[no_device] = str(e)
        config.stash[is_fault] = True
        capture.resume_global_capture()
        return
    # The new process must write where this one was started to write, not into the capture's files.
    capture.stop_global_capturing()
    sys.stdout.flush()
    sys.stderr.flush()
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], env)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip a test that has no device, or fail it where a device must be."""
    reason = item.config.stash.get(no_device, None)
    if reason is None or item.get_closest_marker("cuda") is None:
        return
    if item.config.stash.get(is_fault, False) or device_required():
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)


@pytest.fixture(scope="session", autouse=True)
def drawn_once_and_never_synced() -> Iterator[None]:
    """What many tests do again, and none of them sees."""
    with drawn_once(), without_waiting_for_the_disk():
        yield


@pytest.fixture(autouse=True)
def leave_no_device_memory() -> Iterator[None]:
    """Do what a test left queued on softcuda, and take back what CuPy's pools kept of its memory.

    Each allocation of softcuda lies between guard pages, which are memory maps, and Linux gives a process 65 530 of
    them (vm.max_map_count). softcuda frees memory when its queues are empty, and does queued work when it is waited
    for: what a test left unfinished, a device that failed for one, would keep all that later ones free, until no map
    is left for a thread's stack.
    """
    yield
    if on_softcuda() and "cupy" in sys.modules:
        import cupy

        for number in range(cupy.cuda.runtime.getDeviceCount()):
            with cupy.cuda.Device(number) as device:
                device.synchronize()
                cupy.get_default_memory_pool().free_all_blocks()
        cupy.get_default_pinned_memory_pool().free_all_blocks()


@pytest.fixture
def softcuda_stats(tmp_path: Path) -> SoftcudaStats:
    """A function that runs Python in a process of its own on softcuda and returns what the device counted.

    `softcuda_stats(program, *arguments, env=…)`: `program` is the text of a Python program, or a sequence that is a
    whole command; `env` adds environment variables (`SOFTCUDA_PROFILE="1"`). The process runs in the project's root.
    A failing one fails the test with its output.

    The result is the JSON of SOFTCUDA_STATS (see tests/softcuda/README.md).
    """
    if not on_softcuda():
        pytest.skip("counts bytes and launches with softcuda, and this run is on a GPU")

    def run(program: str | Sequence[str], *arguments: str, env: Mapping[str, str] | None = None) -> dict[str, Any]:
        command = [sys.executable, "-c", program] if isinstance(program, str) else list(program)
        stats = tmp_path / "softcuda-stats.json"
        stats.unlink(missing_ok=True)
        done = subprocess.run(
            [*command, *arguments],
            cwd=ROOT,
            env=os.environ | {"SOFTCUDA_STATS": str(stats)} | dict(env or {}),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        if done.returncode:
            pytest.fail(f"the process ended with exit status {done.returncode}:\n{done.stdout}", pytrace=False)
        counted: dict[str, Any] = json.loads(stats.read_text(encoding="utf-8"))
        return counted

    return run


@pytest.fixture
def softcuda_counters() -> Callable[[], dict[str, Any]]:
    """A function that returns what softcuda has counted in this process so far; compare two calls.

    The result has the same keys as that of `softcuda_stats`.
    """
    if not on_softcuda():
        pytest.skip("counts bytes and launches with softcuda, and this run is on a GPU")
    device = ctypes.CDLL("libcuda.so.1")

    def read() -> dict[str, Any]:
        text = ctypes.create_string_buffer(1 << 20)
        device.softcudaStats(text, ctypes.c_size_t(len(text)))
        counted: dict[str, Any] = json.loads(text.value)
        return counted

    return read


@pytest.fixture
def softcuda_fail_after() -> Iterator[Callable[[int], None]]:
    """A function that lets a kernel launch of this process fail, and its device with it; the test's end heals it.

    `softcuda_fail_after(n)`: after `n` more launches that succeed; -1 heals now. See tests/softcuda/README.md.
    """
    if not on_softcuda():
        pytest.skip("lets a launch fail on softcuda, and this run is on a GPU")
    device = ctypes.CDLL("libcuda.so.1")

    def fail_after(launches: int) -> None:
        device.softcudaFailAfter(ctypes.c_longlong(launches))

    yield fail_after
    fail_after(-1)


@pytest.fixture
def model_on_device(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Let "cuda" be ONNX Runtime's CPU provider on softcuda's memory, which the host can address, with CUDA graphs: see
    `cuda_provider`.

    Where a GPU's provider would queue its work, this waits for what is queued and does it. It keeps the free bytes at
    each run.
    """
    if not on_softcuda():
        pytest.skip("the host does not address a GPU's memory")
    import cuda_provider
    import cupy
    import onnxruntime

    from gpupipe.errors import InferenceError
    from gpupipe.gpu.device import open_device
    from gpupipe.model import features, model, runner, runtime, split_model

    runs: list[int] = []
    run = model.Model.run

    def counted(opened: model.Model, bindings: Any, frames: int) -> None:
        if opened.provider == "cuda":
            runs.append(open_device().free_bytes)
        run(opened, bindings, frames)

    run_bound = runner.Runner.run

    def settled(opened: runner.Runner, bindings: Any, before: Callable[[int], None] | None = None) -> None:
        def then(number: int) -> None:
            if before is not None:
                before(number)
            if opened.options.provider == "cuda":
                try:
                    cupy.cuda.runtime.streamSynchronize(opened.options.stream)
                except cupy.cuda.runtime.CUDARuntimeError as error:
                    raise InferenceError(f"the model failed: {error}", file=opened.path) from error

        run_bound(opened, bindings, then)

    def place(array: Any) -> Any:
        address = array.ctypes.data if isinstance(array, np.ndarray) else array.data.ptr
        return "cpu", 0, np.dtype(array.dtype).type, array.shape, address

    monkeypatch.setitem(runtime.PROVIDER_NAMES, "cuda", runtime.PROVIDER_NAMES["cpu"])
    monkeypatch.setattr(onnxruntime, "InferenceSession", cuda_provider.Session)
    monkeypatch.setattr(cuda_provider.Session, "opened", [])
    monkeypatch.setattr(model.Model, "run", counted)
    monkeypatch.setattr(runner.Runner, "run", settled)
    for room in (model, features, split_model):
        monkeypatch.setattr(room, "place", place)
    return runs


@pytest.fixture(scope="session")
def talker() -> Path:
    """The folder of the filmed character: GPUPIPE_TALKER, else ../shared/characters/talker beside the project."""
    override = os.environ.get("GPUPIPE_TALKER")
    folder = Path(override) if override else ROOT.parent / "shared" / "characters" / "talker"
    if not folder.is_dir():
        pytest.skip(f"the filmed character is not at {folder} (GPUPIPE_TALKER names another folder)")
    return folder


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of characters to be served: anna, of 30 frames. Nobody changes it."""
    from gpupipe.demo import make_demo  # not before this process is the one that runs the tests

    found = tmp_path_factory.mktemp("served")
    make_demo(found / "anna", frames=30, size=(320, 192), model_size=160)
    return found


@pytest.fixture(scope="session")
def pcm(folder: Path) -> NDArray[np.float32]:
    """What anna was filmed saying, float32 `[n]`, 16 kHz."""
    from gpupipe.media.sound import read_pcm

    return np.concatenate(list(read_pcm(folder / "anna" / "aud.wav")))


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    """A Ray cluster of one node with two CPU cores, to which others can be added; their cache folder is the test's."""
    with ray_nodes(tmp_path_factory.mktemp("cache")) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def cluster(nodes: Nodes) -> str:
    """The address of that cluster."""
    return nodes.address
