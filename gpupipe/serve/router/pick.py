"""Who is sent where: the power of two choices, among the replicas that hold the character before all others.

No clock, no network: everything is told.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

CHOICES: Final = 2
"""Of the power of two choices (Mitzenmacher, 2001)."""

Dice = Callable[[int], int]
"""A whole number below another."""


@dataclass(frozen=True)
class State:
    """A replica that lives, as far as is known.

    Attributes:
        number: which.
        load: what realtime talks take of what is scarcest there, 1 for all of it.
        sessions: talks under way.
        room: whether one more may come.
        holds: the characters that it has loaded, or is loading.
    """

    number: int
    load: float
    sessions: int
    room: bool
    holds: frozenset[str]


def pick_some(states: list[State], dice: Dice) -> list[State]:
    """Two of them at random, the less loaded first; all, if there are no more."""
    picked = list(states)
    if len(states) > CHOICES:
        first = dice(len(states))
        second = dice(len(states) - 1)
        picked = [states[first], states[second + (second >= first)]]
    return sorted(picked, key=_taken)


def turns(states: Iterable[State], character: str, dice: Dice) -> tuple[int, ...]:
    """In which turn replicas are tried.

    The less loaded of two that hold the character; of any two; then all others that have room, so that nobody is
    refused while there is room anywhere; at last two that had none when they were asked.

    Args:
        states: of the replicas that live.
        character: of the session.
        dice: what picks.

    Returns:
        Their numbers, each once.

    >>> one, two = State(1, 0.2, 1, True, frozenset()), State(2, 0.6, 3, True, frozenset({"anna"}))
    >>> turns([one, two], "anna", lambda below: 0), turns([one, two], "ben", lambda below: 0)
    ((2, 1), (1, 2))
    """
    every = list(states)
    free = [state for state in every if state.room]
    holders = [state for state in free if character in state.holds]
    full = [state for state in every if not state.room]
    order = [
        *pick_some(holders, dice),
        *pick_some(free, dice),
        *sorted(free, key=_taken),
        *pick_some(full, dice),
    ]
    return tuple(dict.fromkeys(state.number for state in order))


def _taken(state: State) -> tuple[float, int, int]:
    return state.load, state.sessions, state.number
