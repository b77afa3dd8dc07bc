"""Checks of the machine under it all: libraries, page-locked memory, waiting, and the other GPUs."""

from __future__ import annotations

import os
import shutil
import subprocess
import threading
import time

import numpy as np

from gpupipe.doctor.check import RATHER_MS, Check, Found, NotPossible, Subject
from gpupipe.doctor.checks_frames import rendered
from gpupipe.doctor.libraries import loaded_libraries
from gpupipe.doctor.on_device import OnDevice
from gpupipe.errors import DeviceMemoryError
from gpupipe.gpu.driver import current_gpu, device_count, load_cupy, make_current, unique_id
from gpupipe.machine import megabytes

COPIED_BYTES = 64 << 20
LOCKED_BYTES = 512 << 20
WAITING_SECONDS = 0.05
"""Processor time that a thread may take while it waits for the GPU."""


def libraries(subject: Subject) -> Found:
    """No library of NVIDIA's is there twice, and none that is needed is missing."""
    found = loaded_libraries()
    if found is None:
        raise NotPossible("this system does not tell what a process has loaded")
    twice = {name: files for name, files in found.items() if len({os.path.realpath(file) for file in files}) > 1}
    needed = {"cudnn", "cublas"} if subject.best == "cuda" else set()
    missing = sorted(name for name in needed if name not in found)
    measured = (
        f"{', '.join(found)}: each once"
        if not twice
        else "; ".join(f"{name} from {' and '.join(files)}" for name, files in twice.items())
    )
    if missing:
        measured += f"; without {', '.join(missing)}"
    return Found(not twice and not missing, measured, {"files": found})


def pinned(subject: Subject) -> Found:
    """Page-locked memory: how much there is, and whether copies from and to it wait."""
    gpu = subject.gpu
    try:
        host = gpu.pinned((LOCKED_BYTES,), np.uint8, "measuring")
    except DeviceMemoryError as error:
        return Found(False, error.on_command_line())
    half = COPIED_BYTES
    source, back = host[:half], host[half : 2 * half]
    source[...] = np.random.default_rng(7).integers(0, 256, half, np.uint8)
    back[...] = 0
    device = gpu.empty((half,), np.uint8, "measuring")
    begin, end = gpu.event(timing=True), gpu.event(timing=True)
    told: dict[str, float] = {}
    for _ in range(2):
        for name, target, given in (("up", device, source), ("down", back, device)):
            gpu.record(begin, gpu.copy_stream)
            began = time.perf_counter()
            gpu.copy(target, given, gpu.copy_stream)
            told[f"{name}_call_seconds"] = time.perf_counter() - began
            gpu.record(end, gpu.copy_stream)
            gpu.wait(end)
            told[f"{name}_seconds"] = gpu.elapsed_seconds(begin, end)
    same = bool(np.array_equal(source, back))
    calls_return = all(told[f"{name}_call_seconds"] < told[f"{name}_seconds"] / 10 for name in ("up", "down"))
    rates = ", ".join(f"{half / max(told[f'{name}_seconds'], 1e-9) / 1e9:.1f} GB/s {name}" for name in ("up", "down"))
    measured = f"{megabytes(LOCKED_BYTES)} locked; {rates}; {'equal' if same else 'DIFFERENT'} after both"
    if not subject.works_alone:
        return Found(same, measured + " (a software device)", told)
    measured += f"; the calls took {1e3 * max(told['up_call_seconds'], told['down_call_seconds']):.3f} ms"
    return Found(same and calls_return, measured, told)


def waits(subject: Subject) -> Found:
    """A thread that waits for the GPU sleeps."""
    subject.need_a_device_that_works_alone()
    gpu, done = subject.gpu, subject.gpu.event()
    subject.spin.queue(gpu.compute_stream, 10 * RATHER_MS)
    gpu.record(done, gpu.compute_stream)
    began, used = time.perf_counter(), time.thread_time()
    gpu.wait(done)
    seconds, used = time.perf_counter() - began, time.thread_time() - used
    measured = f"{used * 1e3:.1f} ms of processor time in {seconds:.2f} s of waiting"
    return Found(used < WAITING_SECONDS, measured, {"waited_seconds": seconds, "used_seconds": used})


def current_device(subject: Subject) -> Found:
    """A job leaves the GPU that is current in the calling thread as it was."""
    count = device_count(load_cupy())
    if count < 2:
        raise NotPossible("there is one GPU")
    other = (subject.gpu.index + 1) % count
    found: list[int] = []

    def work() -> None:
        make_current(other)
        rendered(subject, subject.device_name, subject.best, "nv12")
        found.append(current_gpu())
        if subject.best == "cuda":
            with OnDevice(subject, "cuda") as opened:
                opened.run()
            found.append(current_gpu())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    if not found:
        return Found(False, "the job failed")
    measured = f"GPU {other} was current before a job, GPU {found[0]} after it"
    if len(found) > 1:
        measured += f"; after a model's run alone GPU {found[1]}"
    return Found(found[0] == other, measured, {"before": other, "after": found})


def other_gpu(subject: Subject) -> Found:
    """A job takes no memory on another GPU."""
    if device_count(load_cupy()) < 2:
        raise NotPossible("there is one GPU")
    tool = shutil.which("nvidia-smi")
    if tool is None:
        raise NotPossible("there is no nvidia-smi")
    rendered(subject, subject.device_name, subject.best, "nv12")
    command = [tool, "--query-compute-apps=pid,gpu_uuid,used_memory", "--format=csv,noheader"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    rows = [[part.strip() for part in line.split(",")] for line in done.stdout.splitlines() if line.count(",") == 2]
    ours = {gpu: used for pid, gpu, used in rows if pid == str(os.getpid())}
    if not ours:
        raise NotPossible("nvidia-smi does not list this process, as in a container")
    mine = unique_id(subject.gpu.index)
    measured = ", ".join(f"{used} on {'this GPU' if gpu == mine else gpu}" for gpu, used in ours.items())
    return Found(set(ours) == {mine}, measured, {"used": ours})


CHECKS = (
    # Before the checks that make another GPU current.
    Check("other GPU untouched", "a job has memory on its own GPU only", other_gpu),
    Check("current device", "a job leaves the calling thread's GPU as it was", current_device),
    Check("libraries", "each of NVIDIA's libraries is loaded from one file", libraries),
    Check("pinned memory", "contents equal after both copies, whose calls take less than a tenth of the time", pinned),
    Check("event waits", f"less than {1e3 * WAITING_SECONDS:.0f} ms of processor time in a second of waiting", waits),
)
"""In the order in which they are made."""
