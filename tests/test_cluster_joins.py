"""Slow segments that are begun a second time, and engines on nodes that join a run: without Ray."""

from __future__ import annotations

import random
import threading
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from cluster_scene import (
    FRAMES,
    OPTIONS,
    PATIENCE_SECONDS,
    SEGMENTS,
    Here,
    LinkHere,
    by_one_process,
    character,
    run_here,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from test_cluster_board import board_of, opened

from gpupipe.character.folder import GpupipeWarning
from gpupipe.cluster import board as rules
from gpupipe.cluster import joining, ledger
from gpupipe.cluster.board import Board, Pending
from gpupipe.cluster.crew import Crews, Hand, Unfit
from gpupipe.cluster.drawing import Drawing
from gpupipe.cluster.fleet import Lost
from gpupipe.cluster.job import Asked, ClusterJob
from gpupipe.cluster.joining import Joining
from gpupipe.cluster.ledger import LEAST_SECONDS, SLOW, Work
from gpupipe.cluster.places import Places
from gpupipe.cluster.remote import Remote
from gpupipe.engine.shelf import Digests
from gpupipe.errors import Cancelled, ClusterError
from gpupipe.media.limits import DEFAULT
from gpupipe.render.parts import parts_folder

LONG = 100.0
assert LONG > LEAST_SECONDS


class Clock:
    """The time, as the test has it."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def second(job: int, segment: int) -> Work:
    return Work(job, segment, second=True)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return character(tmp_path / "anna")


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Segments are slow, and nodes are looked at, in no time."""
    monkeypatch.setattr(ledger, "LEAST_SECONDS", 0.0)
    monkeypatch.setattr(rules, "WAKE_SECONDS", 0.02)
    monkeypatch.setattr("gpupipe.cluster.run.LOOK_SECONDS", 0.02)


# Segments that are slow


def one_slow(clock: Clock, *more: str, segments: int = 2) -> Board:
    """A board of a job: `a` has begun its last segment, and `b` has drawn the others, in LONG seconds each."""
    board = Board(("anna",), clock)
    for name in ("a", "b", *more):
        board.join(name, 2 if name == "b" else 1)
    opened(board, board.offer("a"), "a", segments)
    assert board.offer("a") == Work(0, 0)
    for number in range(1, segments):
        assert board.offer("b") == Work(0, number)
        clock.now += LONG
        assert not board.done(Work(0, number), "b")
    return board


def test_what_is_slow_is_begun_again_and_who_is_first_is_kept(clock: Clock) -> None:
    board = one_slow(clock)
    clock.now = SLOW * LONG
    assert board.offer("b") is None, "not slow yet"
    assert board.offer("a") is None
    clock.now += 1.0
    assert board.offer("b") == second(0, 0)
    assert board.offer("b") is None, "two at a time, on two engines"
    board.join("c", 1)
    assert board.offer("c") is None
    assert board.pending() == Pending((), 0, 1)
    assert board.late(Work(0, 0)) == ()
    assert board.done(Work(0, 0), "b"), "the last, though the slow one goes on"
    assert board.late(Work(0, 0)) == ("a",)
    assert board.behind() == {"a"}
    assert board.offer("a") is None, "it has no room"
    assert not board.failed(Work(0, 0), "a"), "it was called off"
    assert board.late(Work(0, 0)) == ()
    assert board.behind() == set()
    assert board.end(0)


def test_the_slow_one_may_be_first(clock: Clock) -> None:
    board = one_slow(clock)
    clock.now = LONG * LONG
    assert board.offer("b") == second(0, 0)
    assert board.done(Work(0, 0), "a")
    assert not board.done(Work(0, 0), "b")
    assert board.end(0)


def test_a_lost_copy_is_no_try_while_the_other_goes_on(clock: Clock) -> None:
    board = one_slow(clock, "c", "d")
    clock.now = LONG * LONG
    assert board.offer("b") == second(0, 0)
    assert board.lost(Work(0, 0), "b") == 0
    assert board.offer("b") is None, "not the same again"
    assert board.offer("c") == second(0, 0)
    assert not board.failed(Work(0, 0), "c")
    assert board.offer("d") == second(0, 0)
    assert board.lost(Work(0, 0), "a") == 0, "the first one, too"
    assert board.lost(Work(0, 0), "d") == 1
    assert board.offer("a") == Work(0, 0), "all have lost it"
    assert board.failed(Work(0, 0), "a")


def test_no_copy_of_what_ends_engines_or_before_anything_is_finished_or_for_who_has_more_to_do(clock: Clock) -> None:
    board = Board(("anna",), clock)
    board.join("a", 1)
    opened(board, board.offer("a"), "a", 2)
    assert board.offer("a") == Work(0, 0)
    for name in "bc":
        board.join(name, 2)
    assert board.offer("b") == Work(0, 1)
    clock.now = LONG
    assert board.offer("c") is None, "nobody knows how long one takes"
    assert not board.done(Work(0, 1), "b")
    clock.now = 3 * LONG
    assert board.offer("b") == second(0, 0)
    assert board.lost(Work(0, 0), "b") == 0
    assert board.lost(Work(0, 0), "a") == 1
    assert board.offer("c") == Work(0, 0)
    assert board.lost(Work(0, 0), "c") == 2
    assert board.offer("a") == Work(0, 0)
    clock.now = LONG * LONG
    board.join("d", 1)
    assert board.offer("d") is None, "it was lost twice, and is drawn alone"


def test_the_slowest_of_all_jobs_is_begun_by_who_has_least_to_do(clock: Clock) -> None:
    board = Board(("anna", "ben"), clock)
    for name in "abc":
        board.join(name, 2)
    opened(board, board.offer("a"), "a", 3)
    ben = board.offer("b")
    assert ben == Work(1, None)
    assert board.offer("a") == Work(0, 0)
    opened(board, ben, "b", 1)
    clock.now = 1.0
    assert board.offer("b") == Work(1, 0)
    assert board.offer("c") == Work(0, 1)
    assert board.offer("a") == Work(0, 2)
    clock.now = LONG
    board.done(Work(0, 2), "a")
    board.done(Work(0, 1), "c")
    clock.now = LONG * LONG
    assert board.offer("a") is None, "c has less to do"
    assert board.offer("b") is None
    assert board.offer("c") == second(0, 0), "which is under way the longest"
    assert board.offer("c") == second(1, 0), "by how long those of another job took"


@settings(max_examples=60)
@given(
    st.lists(st.tuples(st.sampled_from("xyz"), st.integers(0, 5)), min_size=1, max_size=5),
    st.integers(1, 4),
    st.integers(1, 3),
    st.randoms(use_true_random=False),
)
def test_every_segment_is_kept_once_whoever_is_slow_lost_or_called_off(
    jobs: list[tuple[str, int]], engines: int, slots: int, draw: random.Random
) -> None:
    clock = Clock()
    board = Board((name for name, _ in jobs), clock)
    for number in range(engines):
        board.join(str(number), slots)
    running: list[tuple[str, Work]] = []
    kept: Counter[tuple[int, int | None]] = Counter()
    ended: list[int] = []
    losses = 0
    while not board.wait(0.0):
        clock.now += draw.choice((0.0, 1.0, LONG))
        engine = str(draw.randrange(engines))
        if draw.random() < 0.5 and (work := board.offer(engine)) is not None:
            same = [name for name, other in running if other[:2] == work[:2]]
            assert work.second == bool(same)
            assert len(same) < 2
            assert engine not in same
            running.append((engine, work))
            assert sum(name == engine for name, _ in running) <= slots
        elif running:
            engine, work = running.pop(draw.randrange(len(running)))
            there = kept[work[:2]] > 0
            if work.segment is None:
                board.opened(work, range(jobs[work.job][1]))
                board.done(work, engine)
                last = not jobs[work.job][1]
            elif there and draw.random() < 0.5:
                assert engine in board.late(work)
                assert not board.failed(work, engine)
                last = False
            elif losses < 2 and draw.random() < 0.2:
                goes_on = there or any(other[:2] == work[:2] for _, other in running)
                assert (board.lost(work, engine) == 0) == goes_on
                losses += not goes_on
                last = False
            else:
                last = board.done(work, engine)
                kept[work[:2]] += not there
                assert not (there and last)
            if last:
                assert board.end(work.job)
                ended.append(work.job)
    assert kept == Counter({(job, n): 1 for job, (_, count) in enumerate(jobs) for n in range(count)})
    assert sorted(ended) == list(range(len(jobs)))


def test_who_hangs_delays_nothing_and_the_bytes_are_the_same(folder: Path, tmp_path: Path, soon: None) -> None:
    hanging: list[int] = []
    both = threading.Event()

    def hang(link: LinkHere, segment: int) -> None:
        hanging.append(segment)
        if len(hanging) == link.remote.slots:
            both.set()
        link.until_called_off(segment)

    def draw_later(link: LinkHere, segment: int) -> None:
        assert both.wait(PATIENCE_SECONDS)

    output = tmp_path / "talk.mp4"
    slow, quick = Here(0, tmp_path / "0", before=hang), Here(1, tmp_path / "1", before=draw_later)
    [(error, stats)] = run_here([slow, quick], [Asked(folder, output, OPTIONS)])
    assert error is None
    assert stats is not None
    assert output.read_bytes() == by_one_process(folder, tmp_path / "whole.mp4")
    assert not parts_folder(output).exists()
    [node] = stats.nodes
    assert (node.node, node.segments, node.frames) == ("node 1", SEGMENTS, FRAMES)
    assert (node.backups, node.retries) == (2, 0)
    assert len(hanging) == 2


def test_a_copy_that_comes_late_leaves_nothing(folder: Path, tmp_path: Path) -> None:
    job = ClusterJob(0, Asked(folder, tmp_path / "talk.mp4", {**OPTIONS, "frames": 6}), DEFAULT, Digests().sha256)
    [(error, _)] = run_here([Here(0, tmp_path / "0")], [job.asked])
    assert error is None
    (tmp_path / "talk.mp4").rename(tmp_path / "first.mp4")
    assert job.look()
    assert job.spec is not None
    link = LinkHere(Here(1, tmp_path / "1"))
    try:
        manifest = link.ask("begin", job.spec, shared=True)
        assert job.begin(manifest) == (0,)
        drawn = [link.ask("draw", job.id, 0, job.fingerprint) for _ in range(2)]
        paths = [job.gathered.room(f"{number}-segment") for number in range(2)]
        for each, path in zip(drawn, paths, strict=True):
            assert link.ask("deliver", each.ticket, str(path))
            assert job.gathered.keep(0, path, each.sha256), "the second, too, is what was drawn"
            assert not path.exists()
        job.finish()
        paths[1].parent.mkdir()
        paths[1].write_bytes(b"written while the others were joined")
        job.gathered.tidy(paths[1])
        assert not link.ask("deliver", drawn[1].ticket, str(paths[1]))
    finally:
        link.kill()
    assert not parts_folder(tmp_path / "talk.mp4").exists()
    assert (tmp_path / "talk.mp4").read_bytes() == (tmp_path / "first.mp4").read_bytes()


def test_who_is_told_of_a_job_that_has_ended_meanwhile_forgets_it(clock: Clock, folder: Path, tmp_path: Path) -> None:
    job = ClusterJob(0, Asked(folder, tmp_path / "talk.mp4", {**OPTIONS, "frames": 6}), DEFAULT, Digests().sha256)
    assert job.look()
    board = one_slow(clock)
    clock.now = LONG * LONG
    copy = board.offer("b")
    assert copy == second(0, 0)
    links = [LinkHere(Here(number, tmp_path / f"{number}")) for number in range(2)]
    try:
        job.begin(links[0].ask("begin", job.spec, shared=True))
        assert board.done(Work(0, 0), "a")
        assert board.end(0)
        links[1].name = "b"
        hand = Hand(links[1])
        assert not Drawing(board, shared=True).draw(hand, job, copy)
        assert "draw" not in links[1].remote.asked
        assert not hand.begun
        with pytest.raises(Cancelled):
            links[1].ask("draw", job.id, 0, job.fingerprint)
        assert [node.backups for node in job.tally.nodes] == [1]
    finally:
        job.leave()
        for link in links:
            link.kill()


# Nodes that join


class Later:
    """Gives engines that join, the first of them when it is asked a second time, and something has happened."""

    def __init__(self, *remotes: Remote, after: threading.Event | None = None) -> None:
        self.remotes, self.after = list(remotes), after
        self.asked: list[int] = []

    def __call__(self, most: int) -> Sequence[Remote]:
        self.asked.append(most)
        come = len(self.asked) > 1 and (self.after is None or self.after.is_set())
        return [self.remotes.pop(0)] if come and self.remotes else []


def until_drawn(remote: Here) -> Any:
    """Waits until another engine has begun to draw."""

    def wait(link: LinkHere, segment: int) -> None:
        with remote.changed:
            assert remote.changed.wait_for(lambda: "draw" in remote.asked, PATIENCE_SECONDS)

    return wait


def test_a_node_that_joins_draws_too(folder: Path, tmp_path: Path, soon: None) -> None:
    output = tmp_path / "talk.mp4"
    joins = Here(1, tmp_path / "1")
    more = Later(joins)
    [(error, stats)] = run_here(
        [Here(0, tmp_path / "0", before=until_drawn(joins))], [Asked(folder, output, OPTIONS)], more=more
    )
    assert error is None
    assert stats is not None
    assert output.read_bytes() == by_one_process(folder, tmp_path / "whole.mp4")
    assert [node.node for node in stats.nodes] == ["node 0", "node 1"]
    assert sum(node.segments for node in stats.nodes) == SEGMENTS
    assert max(more.asked) <= SEGMENTS - 1, "one engine is there"


def test_a_node_that_joins_and_is_not_like_the_others_is_not_used(
    folder: Path, tmp_path: Path, soon: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused: list[str] = []
    begun, both = threading.Event(), threading.Event()
    leave = Board.leave

    def until_refused(link: LinkHere, segment: int) -> None:
        begun.set()
        assert both.wait(PATIENCE_SECONDS)

    def left(self: Board, engine: str) -> None:
        leave(self, engine)
        refused.append(engine)
        if len(refused) == 2:
            both.set()

    monkeypatch.setattr(Board, "leave", left)
    older = Here(1, tmp_path / "1", facts={"av": "1.0"})
    tuned = Here(2, tmp_path / "2", fingerprint={"--batch": "3"})
    with pytest.warns(GpupipeWarning) as warned:
        [(error, stats)] = run_here(
            [Here(0, tmp_path / "0", before=until_refused)],
            [Asked(folder, tmp_path / "talk.mp4", OPTIONS)],
            more=Later(older, tuned, after=begun),
        )
    assert error is None
    assert stats is not None
    assert [(node.node, node.segments) for node in stats.nodes] == [("node 0", SEGMENTS)]
    said = [str(each.message) for each in warned if "joined" in str(each.message)]
    assert len(said) == 2
    assert "node that has joined is not used: node 1: av: would not make the same bytes as the machine" in said[0]
    assert "node that has joined is not used: node 2: batch: batch is 3 there, and not there where" in said[1]


def test_a_job_that_a_newcomer_has_opened_goes_on(folder: Path, tmp_path: Path) -> None:
    job = ClusterJob(0, Asked(folder, tmp_path / "talk.mp4", OPTIONS), DEFAULT, Digests().sha256)
    assert job.look()
    board = board_of("anna", engines={"engine 0": 1, "engine 1": 1})
    drawing = Drawing(board, shared=True)
    links = [LinkHere(Here(n, tmp_path / f"{n}", fingerprint={"--batch": str(n)})) for n in range(2)]
    newcomer, before = Hand(links[0], joined=True), Hand(links[1])
    try:
        work = board.offer("engine 0")
        assert work is not None
        drawing.try_out(newcomer, [job])
        assert not newcomer.begun, "nothing is under way"
        assert not drawing.open(newcomer, job, work)
        with pytest.raises(Unfit, match="batch is 1 there, and 0 where"):
            drawing.draw(before, job, Work(0, 0))
        with pytest.raises(Unfit, match="batch is 1 there, and 0 where"):
            drawing.try_out(Hand(links[1], joined=True), [job])
        drawing.try_out(newcomer, [job])
    finally:
        job.leave()
        for link in links:
            link.kill()


def test_a_run_without_an_engine_waits_for_one_that_joins(folder: Path, tmp_path: Path, soon: None) -> None:
    output = tmp_path / "talk.mp4"
    gone = Here(0, tmp_path / "0")
    gone.gone = True
    with (
        pytest.warns(GpupipeWarning, match="node 0: draws no more: the node is gone"),
        pytest.warns(GpupipeWarning, match="no engine is left: waiting for a node that joins, 60 seconds at most"),
    ):
        [(error, stats)] = run_here([gone], [Asked(folder, output, OPTIONS)], more=Later(Here(1, tmp_path / "1")))
    assert error is None
    assert stats is not None
    assert [node.segments for node in stats.nodes] == [SEGMENTS]


def test_how_many_join_and_how_long_it_is_waited(clock: Clock, folder: Path, tmp_path: Path) -> None:
    asked: list[int] = []

    def more(most: int) -> Sequence[Remote]:
        asked.append(most)
        if len(asked) == 1:
            raise Lost("the cluster does not answer now")
        return []

    remotes = [Here(number, tmp_path / f"{number}") for number in range(2)]
    jobs = [
        ClusterJob(number, Asked(folder, tmp_path / f"{number}.mp4", OPTIONS), DEFAULT, Digests().sha256)
        for number in range(2)
    ]
    jobs[0].look()
    board = board_of("anna", "anna", engines={"engine 0": 2, "engine 1": 2})
    crews = Crews(remotes, board, may_join=True)
    joins = Joining(more, jobs, board, crews, clock)
    assert joins.look() == ()
    assert asked == [SEGMENTS + 1 - 2], "of the second job nobody has seen more than that it is there"
    opened(board, board.offer("engine 0"), "engine 0", 3)
    opened(board, Work(1, None), "engine 1", 0)
    board.end(1)
    assert not joins.look()
    assert asked[-1] == 1
    for engine in ("engine 0", "engine 1", "engine 0"):
        assert board.offer(engine) is not None
    joins.look()
    assert len(asked) == 2, "nothing waits"
    board.lost(Work(0, 0), "engine 0")
    for crew in crews:
        crew.gone = True
    with pytest.warns(GpupipeWarning, match="waiting for a node"):
        joins.look()
    assert asked[-1] == 1
    clock.now = joining.WITHOUT_SECONDS
    joins.look()
    clock.now += 1.0
    with pytest.raises(ClusterError, match="no engine is left"):
        joins.look()


def node_of(name: str, **resources: float) -> dict[str, Any]:
    return {"Alive": True, "NodeID": name, "NodeManagerAddress": "10.0.0.1", "Resources": resources}


def test_each_place_is_given_once_and_a_node_that_comes_back_is_another() -> None:
    plain, other = node_of("a", CPU=8.0), node_of("b", CPU=4.0, GPU=1.0)
    places = Places([plain], {"device": "auto"}, cores=None, slots=2)
    assert places.count == 2
    [first] = places.take([plain], 1)
    assert (first.name, first.share[:1], first.options) == ("engine 0", ("a",), {"device": "cpu", "workers": 4})
    found = places.take([plain, other], 9)
    assert [(each.name, each.share.node_id, each.share.gpus) for each in found] == [
        ("engine 1", "a", 0),
        ("engine 2", "b", 0),
    ], "on the CPU, as the first"
    assert places.take([plain, other], 9) == []
    back = node_of("c", CPU=4.0)
    assert [each.name for each in places.take([{**plain, "Alive": False}, other, back], 9)] == ["engine 3"]
    on_gpus = Places([other], {}, cores=None, slots=2)
    assert [each.share.gpus for each in on_gpus.take([plain, other], 9)] == [1]
