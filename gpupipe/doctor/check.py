"""What a check of the self-test is, and what the checks are given."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple

from gpupipe.character.folder import Character
from gpupipe.errors import GpupipeError, reason
from gpupipe.gpu.device import Device
from gpupipe.gpu.spin import Spin
from gpupipe.model.runtime import Provider

Outcome = Literal["passed", "failed", "not possible here"]

RATHER_MS = 100.0
"""How long the GPU is kept busy to see who waits for it."""


class NotPossible(Exception):
    """A check cannot be made here; its text says why."""


class Found(NamedTuple):
    """What a check has found.

    Attributes:
        passed: whether it is as it should be.
        measured: what was measured, for people.
        numbers: the same as JSON values.
    """

    passed: bool
    measured: str
    numbers: Mapping[str, Any] = {}


class Check(NamedTuple):
    """A check.

    Attributes:
        name: which.
        criterion: when it has passed.
        work: makes it.
    """

    name: str
    criterion: str
    work: Callable[[Subject], Found]

    def made(self, subject: Subject) -> dict[str, Any]:
        """Make it: its name, criterion, `result` (an `Outcome`), `measured`, `numbers`, `reason` and `seconds`."""
        told: dict[str, Any] = {"name": self.name, "criterion": self.criterion, "measured": None, "numbers": {}}
        began = time.perf_counter()
        try:
            found = self.work(subject)
            outcome: Outcome = "passed" if found.passed else "failed"
            told |= {"measured": found.measured, "numbers": dict(found.numbers), "result": outcome, "reason": None}
        except NotPossible as error:
            told |= {"result": "not possible here", "reason": str(error)}
        except GpupipeError as error:
            told |= {"result": "failed", "reason": error.on_command_line()}
        except Exception as error:  # a fault of this program's, or of a library: a report is wanted all the same
            told |= {"result": "failed", "reason": f"{type(error).__name__}: {reason(error)}"}
        # What it has queued must not be in the next one's way.
        with suppress(GpupipeError):
            subject.gpu.synchronize()
        return told | {"seconds": round(time.perf_counter() - began, 3)}


@dataclass
class Subject:
    """What the checks are about.

    Attributes:
        gpu: the GPU, opened.
        character: whom to render.
        model: the ONNX file that the checks run; of two inputs and one output, as a lip-sync model has them.
        other_model: one of the same graph with other weights; None if there is none.
        folder: for what a check writes.
        problems: why a provider does not open; None for one that does.
        rates: what `model.rates.device_rates` gives, once it is known.
    """

    gpu: Device
    character: Character
    model: Path
    other_model: Path | None
    folder: Path
    problems: dict[Provider, str | None] = field(default_factory=dict)
    rates: dict[str, float | None] = field(default_factory=dict)

    @property
    def device_name(self) -> str:
        """As options name it."""
        return f"cuda:{self.gpu.index}"

    def need(self, provider: Provider) -> None:
        """Raise `NotPossible` unless a provider opens."""
        if self.problems.get(provider, "was not tried") is not None:
            raise NotPossible(f"{provider} does not open")

    @property
    def best(self) -> Provider:
        """What runs models on the GPU if it opens, else the CPU's."""
        return "cuda" if self.problems.get("cuda", "") is None else "cpu"

    @cached_property
    def spin(self) -> Spin:
        """Keeps the GPU busy."""
        return Spin(self.gpu)

    @cached_property
    def works_alone(self) -> bool:
        """Whether the device does what is queued while nobody waits for it: a software device does not."""
        gpu, done, spin = self.gpu, self.gpu.event(), self.spin  # which is compiled and measured first
        began = time.perf_counter()
        spin.queue(gpu.compute_stream, RATHER_MS / 4)
        gpu.record(done, gpu.compute_stream)
        queued = time.perf_counter() - began
        time.sleep(RATHER_MS / 1e3)
        alone = done.done and queued < RATHER_MS / 8e3
        gpu.synchronize()
        return alone

    def need_a_device_that_works_alone(self) -> None:
        """Raise `NotPossible` unless `works_alone`."""
        if not self.works_alone:
            raise NotPossible("a software device, which works while it is waited for: times and overlap say nothing")


def median_ms(seconds: list[float]) -> float:
    """The median of times, in milliseconds."""
    return statistics.median(seconds) * 1e3
