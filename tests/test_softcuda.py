"""The software CUDA device: what it computes, what it counts, and what it refuses."""

import numpy as np
import pytest


@pytest.mark.cuda
def test_cupy_computes_on_the_device() -> None:
    cp = pytest.importorskip("cupy")
    assert int(cp.arange(10).sum()) == 45


@pytest.mark.cuda
def test_stats_count_copies_and_launches(softcuda_stats) -> None:  # type: ignore[no-untyped-def]
    stats = softcuda_stats("import cupy as cp, numpy as np; cp.asarray(np.zeros(100, np.uint8)).get()")
    assert stats["h2d_bytes"] == 100
    assert stats["d2h_bytes"] == 100


def test_without_device() -> None:
    assert np.arange(3).sum() == 3
