"""The cheapest way to part a directed graph in two (a minimum cut), by Dinic's algorithm.

Graphs here have some hundred nodes, so that plain Python suffices. E. A. Dinic, "Algorithm for solution of a problem of
maximum flow in a network with power estimation", 1970; a node's side is read off the residual graph, as the max-flow
min-cut theorem has it (Ford and Fulkerson, 1956).
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Hashable, Iterator
from itertools import pairwise

UNCUTTABLE = 1 << 62
"""The cost of an edge that no cut may cross; above the sum of all others."""


class MinCut:
    """Edges with costs; then the cheapest set of them that parts the sink from the source.

    >>> cut = MinCut("s", "t")
    >>> for edge in (("s", "a", 3), ("a", "b", 1), ("b", "t", 4), ("s", "b", 2)):
    ...     cut.edge(*edge)
    >>> sorted(cut.source_side())
    ['a', 's']
    """

    def __init__(self, source: Hashable, sink: Hashable) -> None:
        self._source, self._sink = source, sink
        self._left: dict[Hashable, dict[Hashable, int]] = defaultdict(lambda: defaultdict(int))

    def edge(self, start: Hashable, end: Hashable, cost: int) -> None:
        """Going from the source's side to the sink's over this edge costs so much, 0 or more; costs of one pair add."""
        self._left[start][end] += cost
        self._left[end][start] += 0  # the way back, for flow to be undone

    def source_side(self) -> set[Hashable]:
        """The nodes on the source's side of a cheapest cut: of several, the cut with the most nodes on that side."""
        while levels := self._levels():
            ways = {node: iter(list(ends)) for node, ends in self._left.items()}
            while self._push(levels, ways):
                pass
        # All that cannot reach the sink any more.
        reaching, queue = {self._sink}, deque([self._sink])
        while queue:
            end = queue.popleft()
            for start in self._left[end]:
                if start not in reaching and self._left[start][end] > 0:
                    reaching.add(start)
                    queue.append(start)
        return self._left.keys() - reaching

    def _levels(self) -> dict[Hashable, int]:
        """Steps from the source, of all nodes that it reaches; nothing if the sink is not among them."""
        levels, queue = {self._source: 0}, deque([self._source])
        while queue:
            start = queue.popleft()
            for end, left in self._left[start].items():
                if left > 0 and end not in levels:
                    levels[end] = levels[start] + 1
                    queue.append(end)
        return levels if self._sink in levels else {}

    def _push(self, levels: dict[Hashable, int], ways: dict[Hashable, Iterator[Hashable]]) -> int:
        """Send flow along one shortest way, found depth first; 0 if there is none left."""
        path: list[Hashable] = [self._source]
        while path[-1] != self._sink:
            start = path[-1]
            for end in ways[start]:
                if self._left[start][end] > 0 and levels.get(end) == levels[start] + 1:
                    path.append(end)
                    break
            else:
                path.pop()
                if not path:
                    return 0
        steps = list(pairwise(path))
        flow = min(self._left[start][end] for start, end in steps)
        for start, end in steps:
            self._left[start][end] -= flow
            self._left[end][start] += flow
        return flow
