"""Nodes of Ray that do not start in time, with one that stands in for Ray."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import pytest

from gpupipe.cluster.fleet import LOCAL, connected
from gpupipe.cluster.starting import STARTS, start_node
from gpupipe.errors import ClusterError

TIMED_OUT = (
    "The current node timed out during startup. This could happen because some of the raylet failed to startup or the "
    "GCS has become overloaded."
)


class SlowNode:
    """As Ray makes one: its processes run before its making ends with an error."""

    def __init__(self, running: list[object], error: Exception | None) -> None:
        self.running = running
        running.append(self)
        if error is not None:
            raise error

    def kill_all_processes(self, *, check_alive: bool, allow_graceful: bool, wait: bool) -> None:
        assert (check_alive, allow_graceful, wait) == (False, True, True)
        self.running.remove(self)


class SlowRay(ModuleType):
    """Ray, whose first nodes do not start in time."""

    def __init__(self, slow: int) -> None:
        super().__init__("ray")
        self.slow, self.begun = slow, 0
        self.running, self.shut = list[object](), list[int]()

    def init(self, **settings: Any) -> None:
        assert settings["address"] == LOCAL
        assert not self.running, "what an earlier start has left"
        self.begun += 1
        SlowNode(self.running, Exception(TIMED_OUT) if self.begun <= self.slow else None)

    def is_initialized(self) -> bool:
        return False

    def nodes(self) -> list[dict[str, Any]]:
        return [{"Alive": bool(self.running)}]

    def shutdown(self) -> None:
        self.shut.append(self.begun)


def stand_in(monkeypatch: pytest.MonkeyPatch, slow: int) -> SlowRay:
    ray, exceptions = SlowRay(slow), ModuleType("ray.exceptions")
    exceptions.RayError = type("RayError", (Exception,), {})  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "ray", ray)
    monkeypatch.setitem(sys.modules, "ray.exceptions", exceptions)
    return ray


def test_a_ray_that_is_slow_to_start_is_started_again(monkeypatch: pytest.MonkeyPatch) -> None:
    ray = stand_in(monkeypatch, STARTS - 1)
    with connected(LOCAL) as found:
        assert found == [{"Alive": True}]
        assert ray.begun == STARTS
        assert ray.shut == [*range(1, STARTS)]
    assert ray.shut[-1] == STARTS


def test_one_that_never_starts_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    ray = stand_in(monkeypatch, STARTS)
    with pytest.raises(ClusterError) as raised, connected(LOCAL):
        pass
    assert raised.value.on_command_line() == (
        "--ray: no Ray was started on this machine, which is too busy for it (got 'local'); "
        "try again when it has less to do, or start one with `ray start --head` and name its address"
    )
    assert (ray.begun, ray.running) == (STARTS, [])


@pytest.mark.parametrize("error", [Exception("no space left"), KeyError("timed out during startup")])
def test_what_else_goes_wrong_is_not_tried_again(error: Exception) -> None:
    running = list[object]()
    with pytest.raises(type(error)) as raised:
        start_node(lambda: SlowNode(running, error))
    assert raised.value is error
    assert len(running) == 1
