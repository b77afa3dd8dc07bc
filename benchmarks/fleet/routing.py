"""Who is sent where. A policy names the nodes to be tried in turn; the node that is least loaded of all comes last, so
that nobody is refused while there is room anywhere ("admission across all")."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from fleet.node import Node

RING_STEP = 2_654_435_761
"""Spreads characters over the ring (Knuth's multiplicative hash)."""
CHOICES = 2
"""Of the power of two choices (Mitzenmacher, 2001)."""
TRIES = 8
"""Nodes along the ring that a sticky router tries."""


class Board:
    """What the router knows: who lives, how loaded each is, and who holds which character.

    Attributes:
        load: of each node: its scarcest share of realtime work; infinity: it does not live.
        waiting: of each node: seconds until a job that comes now would begin; infinity likewise.
        holders: the nodes that have a character or are loading it, by its number.
        alive: nodes.
    """

    def __init__(self, nodes: list[Node]) -> None:
        self.nodes = nodes
        self.load: NDArray[np.float64] = np.zeros(len(nodes))
        self.waiting: NDArray[np.float64] = np.zeros(len(nodes))
        self.holders: dict[int, list[Node]] = {}
        self.alive = list(nodes)

    def holds(self, node: Node, character: int) -> None:
        """A node takes a character."""
        self.holders.setdefault(character, []).append(node)

    def forgets(self, node: Node, character: int) -> None:
        """A node has given a character up."""
        held = self.holders[character]
        held.remove(node)
        if not held:
            del self.holders[character]

    def dies(self, node: Node) -> None:
        """A node is gone, with all that it held."""
        for character in node.cache.characters:
            self.forgets(node, character)
        self.alive.remove(node)
        self.load[node.number] = self.waiting[node.number] = np.inf

    def lives(self, node: Node) -> None:
        """A node is there again."""
        self.alive.append(node)
        self.load[node.number] = self.waiting[node.number] = 0.0


Dice = Callable[[int], int]
"""A whole number below another."""

Policy = Callable[[Board, int, NDArray[np.float64], Dice], Iterator[Node]]
"""Nodes to be tried for a character, by what counts as load: `Board.load` for talks, `Board.waiting` for jobs."""


def pick_some(nodes: list[Node], load: NDArray[np.float64], dice: Dice) -> list[Node]:
    """Two of them at random, the less loaded first; all, if there are no more."""
    if len(nodes) <= CHOICES:
        picked = list(nodes)
    else:
        first = dice(len(nodes))
        second = dice(len(nodes) - 1)
        picked = [nodes[first], nodes[second + (second >= first)]]
    return sorted(picked, key=lambda node: (load[node.number], node.number))


def at_random(board: Board, character: int, load: NDArray[np.float64], dice: Dice) -> Iterator[Node]:
    """Any two, one after the other."""
    for _ in range(CHOICES):
        yield board.alive[dice(len(board.alive))]


def least_loaded(board: Board, character: int, load: NDArray[np.float64], dice: Dice) -> Iterator[Node]:
    """The least loaded of all."""
    yield board.nodes[int(load.argmin())]


def power_of_two(board: Board, character: int, load: NDArray[np.float64], dice: Dice) -> Iterator[Node]:
    """The less loaded of two that hold the character, then of any two."""
    held = board.holders.get(character)
    if held:
        yield from pick_some(held, load, dice)
    yield from pick_some(board.alive, load, dice)


def any_two(board: Board, character: int, load: NDArray[np.float64], dice: Dice) -> Iterator[Node]:
    """The less loaded of any two, whoever holds the character."""
    yield from pick_some(board.alive, load, dice)


def sticky(board: Board, character: int, load: NDArray[np.float64], dice: Dice) -> Iterator[Node]:
    """The character's own place on a ring of all nodes, then its neighbours: consistent hashing with bounded loads."""
    start = character * RING_STEP % 2**32 * len(board.nodes) // 2**32
    tried = 0
    for step in range(len(board.nodes)):
        node = board.nodes[(start + step) % len(board.nodes)]
        if node.alive:
            yield node
            tried += 1
            if tried == TRIES:
                return


POLICIES: dict[str, Policy] = {
    "power of two": power_of_two,
    "sticky": sticky,
    "any two": any_two,
    "least loaded": least_loaded,
    "random": at_random,
}
