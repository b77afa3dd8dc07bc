"""shelf: what is opened once for all who use it; surfaces: memory that is lent and comes back."""

from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import small

from gpupipe.compose.surface import SurfaceFormat
from gpupipe.engine import surfaces
from gpupipe.engine.shelf import Digests, Shelf
from gpupipe.engine.surfaces import SurfacePool

SECONDS = 20

pytestmark = pytest.mark.timeout(60)


class Book:
    """Something that is opened and closed."""

    def __init__(self, name: str) -> None:
        self.name, self.open = name, True

    def close(self) -> None:
        assert self.open, "closed twice"
        self.open = False


def take(shelf: Shelf[Book], name: str) -> Book:
    return shelf.take(name, lambda: Book(name))


def test_it_is_opened_once_and_stays_open_while_it_is_used() -> None:
    shelf: Shelf[Book] = Shelf(keep=0)
    first, second = take(shelf, "a"), take(shelf, "a")
    assert first is second
    shelf.give_back("a")
    assert first.open
    shelf.trim()
    assert first.open
    shelf.give_back("a")
    assert not first.open
    assert not shelf.holds("a")
    assert take(shelf, "a") is not first


def test_a_few_are_kept_and_the_least_recently_used_are_closed_first() -> None:
    shelf: Shelf[Book] = Shelf(keep=2)
    books = {name: take(shelf, name) for name in "abc"}
    shelf.give_back("a")
    shelf.give_back("b")
    assert all(book.open for book in books.values())
    take(shelf, "a")
    shelf.give_back("a")
    shelf.give_back("c")
    assert [name for name, book in books.items() if book.open] == ["a", "c"]
    shelf.trim()
    assert not any(book.open for book in books.values())


def test_those_who_ask_while_it_is_opened_wait_for_it_and_others_do_not() -> None:
    shelf: Shelf[Book] = Shelf(keep=1)
    begun, go_on, opened = threading.Event(), threading.Event(), []

    def opening() -> Book:
        begun.set()
        assert go_on.wait(SECONDS)
        opened.append(Book("a"))
        return opened[-1]

    with ThreadPoolExecutor(4) as pool:
        asking = [pool.submit(shelf.take, "a", opening) for _ in range(3)]
        assert begun.wait(SECONDS)
        assert shelf.holds("a")
        take(shelf, "b")
        shelf.trim()
        go_on.set()
        assert {each.result(SECONDS) for each in asking} == set(opened)
    assert len(opened) == 1


def test_what_fails_to_open_is_opened_anew_for_the_next() -> None:
    shelf: Shelf[Book] = Shelf(keep=1)

    def opening() -> Book:
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        shelf.take("a", opening)
    assert not shelf.holds("a")
    assert take(shelf, "a").open


def test_closing_closes_everything() -> None:
    shelf: Shelf[Book] = Shelf(keep=3)
    used, unused = take(shelf, "a"), take(shelf, "b")
    shelf.give_back("b")
    shelf.close()
    assert not used.open
    assert not unused.open


def test_copies_of_one_file_are_one_model_and_a_changed_file_is_another(tmp_path: Path) -> None:
    first, copy = tmp_path / "one.onnx", tmp_path / "copy.onnx"
    small.write_model(first)
    copy.write_bytes(first.read_bytes())
    digests = Digests()
    known = digests.of(first)
    assert digests.of(copy) == known
    small.write_model(first, dtype="float16")
    stat = first.stat()
    os.utime(first, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1_000_000))
    assert digests.of(first) != known
    # What is not there is told from what is, by whoever opens it.
    assert digests.of(tmp_path / "none.onnx") not in (known, digests.of(tmp_path / "other.onnx"))


SMALL, LARGE = SurfaceFormat("nv12", 8, 4), SurfaceFormat("bgr24", 64, 32)


def test_surfaces_are_made_once_and_lent_again() -> None:
    pool = SurfacePool(None)
    assert pool.bytes_wanted(SMALL, 3) == 3 * 8 * 6
    lent = pool.borrow(SMALL, 3)
    assert [memory.host.shape for memory in lent if memory.host is not None] == [(6, 8)] * 3
    assert all(memory.device is None for memory in lent)
    assert len({id(memory.host) for memory in lent}) == 3
    pool.give_back(SMALL, lent[:2])
    assert pool.bytes_wanted(SMALL, 3) == 8 * 6
    again = pool.borrow(SMALL, 3)
    assert {id(memory.host) for memory in lent[:2]} <= {id(memory.host) for memory in again}
    assert pool.bytes_wanted(LARGE, 1) == LARGE.nbytes
    pool.give_back(SMALL, again)
    assert again == []  # whoever keeps the list keeps no memory
    pool.trim()
    assert pool.bytes_wanted(SMALL, 3) == 3 * 8 * 6


def test_what_nobody_uses_is_kept_up_to_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(surfaces, "KEPT_BYTES", LARGE.nbytes + 2 * SMALL.nbytes)
    pool = SurfacePool(None)
    small_ones, large_ones = pool.borrow(SMALL, 4), pool.borrow(LARGE, 2)
    pool.give_back(SMALL, small_ones)
    assert pool.bytes_wanted(SMALL, 4) == 0
    # The other formats go first: what has just been used is the likeliest to be asked for.
    pool.give_back(LARGE, large_ones[:1])
    assert pool.bytes_wanted(LARGE, 1) == 0
    assert pool.bytes_wanted(SMALL, 4) == 2 * SMALL.nbytes
    pool.give_back(LARGE, large_ones[1:])
    assert pool.bytes_wanted(LARGE, 2) == LARGE.nbytes
    assert pool.bytes_wanted(SMALL, 4) == 4 * SMALL.nbytes


def test_nothing_is_lost_of_a_loan_that_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    pool = SurfacePool(None)
    pool.give_back(SMALL, pool.borrow(SMALL, 2))
    zeros = np.zeros
    left = iter([True])

    def failing(*arguments: object) -> object:
        if not next(left, False):
            raise MemoryError("no more")
        return zeros(*arguments)  # type: ignore[call-overload]

    monkeypatch.setattr(np, "zeros", failing)
    with pytest.raises(MemoryError):
        pool.borrow(SMALL, 4)
    monkeypatch.undo()
    assert pool.bytes_wanted(SMALL, 3) == 0
