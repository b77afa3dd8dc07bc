"""Which engine takes what next, and what a node keeps: rules without a network."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpupipe.cluster.board import TRIES, Board
from gpupipe.cluster.inputs import file_bundle
from gpupipe.cluster.ledger import Work
from gpupipe.cluster.store import Store
from gpupipe.cluster.work import Bundle
from gpupipe.engine.shelf import Digests
from gpupipe.errors import ClusterError


def board_of(*characters: str, engines: dict[str, int] | None = None) -> Board:
    board = Board(characters)
    for name, slots in (engines or {"a": 1, "b": 1}).items():
        board.join(name, slots)
    return board


def opened(board: Board, work: Work | None, engine: str, segments: int) -> None:
    assert work is not None
    assert work.segment is None
    board.opened(work, range(segments))
    board.done(work, engine)


def test_an_engine_goes_on_with_its_job_and_helps_when_nothing_is_left() -> None:
    board = board_of("anna", "ben", "anna")
    opened(board, board.offer("a"), "a", 3)
    first = board.offer("a")
    assert first == Work(0, 0)
    ben = board.offer("b")
    assert ben == Work(1, None), "a character that nobody holds"
    opened(board, ben, "b", 1)
    assert board.offer("b") == Work(1, 0)
    assert board.done(Work(1, 0), "b")
    assert board.end(1)
    third = board.offer("b")
    assert third == Work(2, None), "before it helps with what others have begun"
    opened(board, third, "b", 0)
    board.end(2)
    assert board.offer("b") == Work(0, 1)
    assert not board.done(Work(0, 0), "a")
    assert board.offer("a") == Work(0, 2)
    assert not board.done(Work(0, 2), "a")
    assert board.done(Work(0, 1), "b")
    assert not board.wait(0.0)
    assert board.end(0)
    assert not board.end(0)
    assert board.wait(0.0)
    assert board.take("a") is None


def test_an_engine_takes_first_whose_character_it_holds() -> None:
    board = board_of("anna", "ben", "ben", "anna", engines={"a": 1})
    opened(board, board.offer("a"), "a", 0)
    board.end(0)
    assert board.offer("a") == Work(3, None)


def test_what_is_left_at_the_end_goes_to_who_has_least_to_do() -> None:
    board = board_of("anna", engines={"a": 2, "b": 2})
    opened(board, board.offer("a"), "a", 3)
    assert board.offer("a") == Work(0, 0)
    assert board.offer("a") == Work(0, 1)
    assert board.offer("b") == Work(0, 2)
    board.lost(Work(0, 1), "a")
    assert board.offer("a") is None, "b has less to do, and has not lost it"
    assert board.offer("b") == Work(0, 1)


def test_what_is_lost_goes_elsewhere_then_alone_then_no_more() -> None:
    board = board_of("anna", engines={"a": 2, "b": 2})
    opened(board, board.offer("a"), "a", 4)
    assert board.offer("a") == Work(0, 0)
    assert board.lost(Work(0, 0), "a")
    assert board.offer("a") == Work(0, 1), "not the same again"
    assert board.offer("b") == Work(0, 0)
    assert board.lost(Work(0, 0), "b")
    assert board.offer("b") == Work(0, 0), "all have lost it, so any may try"
    assert board.offer("b") is None, "alone on its engine"
    assert board.lost(Work(0, 0), "b") == TRIES
    board.end(0)
    assert board.take("b") is None


def test_an_engine_that_leaves_is_no_reason_to_wait() -> None:
    board = board_of("anna")
    opened(board, board.offer("a"), "a", 2)
    assert board.offer("a") == Work(0, 0)
    assert board.lost(Work(0, 0), "a")
    board.leave("b")
    assert board.offer("a") == Work(0, 0)
    board.leave("a")
    assert board.take("a") is None


@settings(max_examples=40)
@given(
    st.lists(st.tuples(st.sampled_from("xyz"), st.integers(0, 5)), min_size=1, max_size=6),
    st.integers(1, 3),
    st.integers(1, 3),
    st.randoms(use_true_random=False),
)
def test_every_segment_is_drawn_once_whoever_is_free_when(
    jobs: list[tuple[str, int]], engines: int, slots: int, draw: random.Random
) -> None:
    board = board_of(*(character for character, _ in jobs), engines={str(n): slots for n in range(engines)})
    running: list[tuple[str, Work]] = []
    drawn: list[Work] = []
    while not board.wait(0.0):
        engine = str(draw.randrange(engines))
        if draw.random() < 0.5 and (work := board.offer(engine)) is not None:
            running.append((engine, work))
            assert sum(name == engine for name, _ in running) <= slots
        elif running and draw.random() < 0.7:
            engine, work = running.pop(draw.randrange(len(running)))
            if work.segment is None:
                board.opened(work, range(jobs[work.job][1]))
                board.done(work, engine)
                last = not jobs[work.job][1]
            else:
                drawn.append(work)
                last = board.done(work, engine)
            if last:
                assert board.end(work.job)
    assert sorted(drawn) == [Work(job, n) for job, (_, count) in enumerate(jobs) for n in range(count)]


def bundle_of(path: Path, content: bytes) -> Bundle:
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    return file_bundle(path, Digests().sha256, field="--audio")[0]


def send(store: Store, bundle: Bundle, content: bytes) -> Path:
    for offset in range(0, len(content), 4):
        store.write(bundle, "x.wav", offset, content[offset : offset + 4])
    return store.seal(bundle)


def test_a_store_keeps_what_was_sent_whole_and_never_too_many(tmp_path: Path) -> None:
    bundles = [bundle_of(tmp_path / f"{n}" / "x.wav", bytes([n]) * 10) for n in range(4)]
    store = Store(tmp_path / "store", most=25)
    assert store.find(bundles[0]) is None
    for n in range(2):
        assert (send(store, bundles[n], bytes([n]) * 10) / "x.wav").read_bytes() == bytes([n]) * 10
    with pytest.raises(ClusterError, match=r"x.wav: did not come as it was sent"):
        send(store, bundles[2], b"something else")
    with pytest.raises(ClusterError, match="no file of what was announced"):
        store.write(bundles[2], "../y", 0, b"")
    other = Store(tmp_path / "store", most=25)
    assert other.find(bundles[2]) is None
    send(other, bundles[2], bytes([2]) * 10)
    assert all(store.find(bundle) for bundle in bundles[:3]), "what is used stays"
    store.close()
    send(other, bundles[3], bytes([3]) * 10)
    kept = [bundle for bundle in bundles if other.find(bundle)]
    assert bundles[3] in kept
    assert len(kept) == 2
    other.close()
    assert not list((tmp_path / "store").glob("work-*"))


def test_what_an_engine_leaves_that_is_killed_goes(tmp_path: Path) -> None:
    (tmp_path / "work-dead").mkdir()
    (tmp_path / "work-dead.lock").write_text("1")
    store = Store(tmp_path, most=1)
    assert not (tmp_path / "work-dead").exists()
    assert store.work.is_dir()
    store.close()


def test_bundles_are_known_by_what_they_hold(tmp_path: Path) -> None:
    same = bundle_of(tmp_path / "a" / "x.wav", b"1"), bundle_of(tmp_path / "b" / "x.wav", b"1")
    assert same[0].key == same[1].key
    assert bundle_of(tmp_path / "a" / "y.wav", b"1").key != same[0].key != bundle_of(tmp_path / "c" / "x.wav", b"2").key
