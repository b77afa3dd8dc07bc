"""Minimum cuts, against trying every cut."""

from itertools import chain, combinations

from hypothesis import given
from hypothesis import strategies as st

from gpupipe.model.mincut import MinCut

NODES = range(6)
EDGES = st.lists(st.tuples(st.sampled_from(NODES), st.sampled_from(NODES), st.integers(0, 9)), max_size=18)


@given(EDGES)
def test_no_cut_is_cheaper(edges: list[tuple[int, int, int]]) -> None:
    edges = [edge for edge in edges if edge[0] != edge[1]]
    source, sink, *between = NODES

    def cost(side: set[int]) -> int:
        return sum(cost for start, end, cost in edges if start in side and end not in side)

    sides = [{source, *some} for some in chain.from_iterable(combinations(between, n) for n in range(5))]
    least = min(map(cost, sides))
    cut = MinCut(source, sink)
    for edge in edges:
        cut.edge(*edge)
    found = cut.source_side()
    assert sink not in found
    assert cost({source, *(node for node in found if isinstance(node, int))}) == least
    known = {node for start, end, _ in edges for node in (start, end)}
    assert len(found & known) == max(len(side & known) for side in sides if cost(side) == least)
