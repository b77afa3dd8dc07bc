"""Checks of CUDA graphs, and of the layout in which float16 models are convolved."""

from __future__ import annotations

import numpy as np

from gpupipe.doctor.check import Check, Found, NotPossible, Subject, median_ms
from gpupipe.doctor.checks_model import ROUNDED_ERROR, compared
from gpupipe.doctor.checks_runs import behind_work
from gpupipe.doctor.on_device import BATCH, OnDevice, random_inputs
from gpupipe.doctor.sample import model_bytes
from gpupipe.doctor.scenes import differing
from gpupipe.gpu.timer import Timer
from gpupipe.model.layout import timed
from gpupipe.model.model import Model
from gpupipe.model.runtime import SessionOptions

REPLAYS = 20
TIMED = 20


def captured(opened: OnDevice) -> None:
    """Capture the runs of a model that has run twice.

    Raises:
        NotPossible: it cannot be captured here.
        RuntimeError: it could, and was not.
    """
    if opened.model.notes:
        raise NotPossible("; ".join(opened.model.notes))
    if not opened.capture():
        raise RuntimeError("; ".join(opened.model.notes))


def replay(subject: Subject) -> Found:
    """Replays give what plain runs give; other bindings have graphs of their own."""
    subject.need("cuda")
    rng, wrong, moved = np.random.default_rng(6), 0, 0
    with OnDevice(subject, "cuda") as opened, OnDevice(subject, "cuda") as plain:
        given = [random_inputs(opened.model, opened.layout, rng) for _ in range(4)]
        wanted = [plain.predict(inputs).copy() for inputs in given]
        for inputs in given[:2]:
            opened.predict(inputs)
        captured(opened)
        for number in range(REPLAYS):
            which = number % len(given)
            found = opened.predict(given[which])
            wrong += differing(found, wanted[which])
            moved += bool(differing(found, wanted[which - 1]))
    measured = f"{wrong} values of {REPLAYS} replays are not a plain run's"
    return Found(not wrong and moved == REPLAYS, measured, {"differing": wrong})


def no_wait(subject: Subject) -> Found:
    """A replay returns while the GPU is still busy with what was queued before."""
    subject.need("cuda")
    subject.need_a_device_that_works_alone()
    with OnDevice(subject, "cuda") as opened:
        for _ in range(2):
            opened.run()
        captured(opened)
        return behind_work(subject, opened, "a replay")


def times(subject: Subject) -> Found:
    """A batch run node by node, and replayed."""
    subject.need("cuda")
    timer, stream = Timer(subject.gpu, runs=TIMED, warm_up=3), subject.gpu.compute_stream
    with OnDevice(subject, "cuda") as opened:
        without = median_ms(timer.seconds(opened.run, stream))
        captured(opened)
        found = median_ms(timer.seconds(opened.run, stream))
    measured = f"{found:.3f} ms a batch of {BATCH} replayed, {without:.3f} ms node by node"
    return Found(True, measured, {"replayed_ms": found, "plain_ms": without})


def layout(subject: Subject) -> Found:
    """A float16 model in both layouts: how far from the CPU's, and how fast."""
    subject.need("cuda")
    path, size = subject.model, subject.character.layout.model_size
    model = Model(path, SessionOptions(), batch=BATCH)
    model.close()
    if model.dtype != np.float16:
        path = subject.folder / "float16.onnx"
        path.write_bytes(model_bytes(size, 0, half=True))
    errors = {name: compared(subject, "cuda", path, nhwc=name == "NHWC")["largest"] for name in ("NCHW", "NHWC")}
    settings = SessionOptions("cuda", device_id=subject.gpu.index)
    found = timed(subject.gpu, path, settings, BATCH, size)
    said = ", ".join(f"{name} {error:.2g}" for name, error in errors.items())
    numbers = {**errors, "nchw_ms": found.nchw * 1e3, "nhwc_ms": found.nhwc * 1e3}
    return Found(max(errors.values()) <= ROUNDED_ERROR, f"largest difference: {said}; {found.note}", numbers)


CHECKS = (
    Check("graph replay", "each replay gives a plain run's predictions, bit for bit", replay),
    Check("graph replay does not wait", "it returns before the work ahead of it ends", no_wait),
    Check("times: graph", "none: for reading", times),
    Check("float16 layouts", f"within {ROUNDED_ERROR:g} of the CPU's in both", layout),
)
"""In the order in which they are made."""
