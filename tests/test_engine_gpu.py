"""The engine on a CUDA device: the bytes that each session has alone, within the budget, and nothing left behind."""

from __future__ import annotations

from typing import Any

import pytest
from conftest import gives_back
from hypothesis import HealthCheck, given, settings
from test_engine import INTERLEAVED, Wish, run, surfaces

from gpupipe.gpu.device import open_device
from gpupipe.render.engine import Engine

__all__ = ["surfaces"]

pytestmark = [pytest.mark.cuda, pytest.mark.timeout(120)]

ON_HOST: dict[str, Any] = {"provider": "cpu", "inference_threads": 2}
ON_DEVICE: dict[str, Any] = {"provider": "cuda"}


def interleaved(surfaces: list[object], options: dict[str, Any]) -> None:
    with Engine(device="cuda") as engine:

        @settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
        @given(**INTERLEAVED)
        def any_interleaving(chosen: list[Wish], steps: Any) -> None:
            run(engine, surfaces, options, chosen, steps)

        any_interleaving()


def test_any_interleaving_gives_each_session_the_bytes_that_it_has_alone(surfaces: list[object]) -> None:
    before = open_device().free_bytes
    interleaved(surfaces, ON_HOST)
    assert gives_back(before, open_device().free_bytes)


def test_any_interleaving_with_the_model_on_the_device(surfaces: list[object], model_on_device: list[int]) -> None:
    before = open_device().free_bytes
    interleaved(surfaces, ON_DEVICE)
    assert gives_back(before, open_device().free_bytes)
