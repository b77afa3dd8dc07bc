"""The load generator's own sums, without a server."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from gpupipe.serve.load.search import largest


@dataclass(frozen=True)
class Tried:
    in_time: bool


@pytest.mark.parametrize("holds", [0, 1, 2, 3, 4, 5, 7, 13, 16, 29, 100])
@pytest.mark.parametrize("first", [1, 4])
def test_the_most_is_found(holds: int, first: int) -> None:
    tried: list[int] = []

    def come(clients: int) -> Tried:
        tried.append(clients)
        return Tried(clients <= holds)

    most, found = largest(come, first, 64)
    assert most <= min(holds, 64) <= most + max(1, most // 16)
    assert list(found) == sorted(set(tried))
    assert max(tried, default=0) <= 64
    assert len(tried) <= 2 * 12


def test_who_fails_once_is_tried_again() -> None:
    calls: list[int] = []

    def come(clients: int) -> Tried:
        calls.append(clients)
        return Tried(clients <= 4 and calls.count(clients) > 1)

    assert largest(come, 2, 64)[0] == 4
