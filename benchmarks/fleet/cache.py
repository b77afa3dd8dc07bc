"""The characters that a node keeps: as `gpupipe.engine.residents` does, without its locks, and on a simulated clock."""

from __future__ import annotations

import math


class Cache:
    """Characters and their users; those that nobody uses leave, the least recently used first.

    Args:
        memory_bytes: for all.
        unused_bytes: for those that nobody uses; None: what the others leave.
    """

    def __init__(self, memory_bytes: float, unused_bytes: float | None) -> None:
        self._memory, self._bound = memory_bytes, math.inf if unused_bytes is None else unused_bytes
        self._bytes: dict[int, float] = {}
        self._users: dict[int, int] = {}
        self._unused: dict[int, None] = {}  # the least recently used first
        self._used_bytes = self._unused_bytes = 0.0

    def __contains__(self, character: int) -> bool:
        return character in self._bytes

    @property
    def characters(self) -> list[int]:
        """All that are kept."""
        return list(self._bytes)

    def fits(self, character: int, nbytes: float) -> bool:
        """Whether it is here, or those that are in use leave room for it."""
        return character in self._bytes or self._used_bytes + nbytes <= self._memory

    def acquire(self, character: int, nbytes: float) -> list[int]:
        """A user more; it must fit. Whoever had to leave for it."""
        if character in self._unused:
            del self._unused[character]
            self._unused_bytes -= self._bytes[character]
            self._used_bytes += self._bytes[character]
        elif character not in self._bytes:
            self._bytes[character] = nbytes
            self._used_bytes += nbytes
        self._users[character] = self._users.get(character, 0) + 1
        return self._shrink()

    def give_back(self, character: int) -> list[int]:
        """A user less. Whoever had to leave."""
        self._users[character] -= 1
        if not self._users[character]:
            del self._users[character]
            self._unused[character] = None
            self._used_bytes -= self._bytes[character]
            self._unused_bytes += self._bytes[character]
        return self._shrink()

    def drop(self, character: int) -> None:
        """Forget one that nobody uses."""
        del self._unused[character]
        self._unused_bytes -= self._bytes.pop(character)

    def _shrink(self) -> list[int]:
        left = []
        while self._unused and self._unused_bytes > min(self._bound, self._memory - self._used_bytes):
            oldest = next(iter(self._unused))
            self.drop(oldest)
            left.append(oldest)
        return left
