"""How sessions whose characters are larger than their memory share it: what stays of each, and each one's slots."""

from __future__ import annotations

import threading
from typing import Any

from gpupipe.engine.cache_bound import Divided, divided, slots_ahead
from gpupipe.engine.order import SessionOrder
from gpupipe.engine.residents import ResidentKey, Residents


class SlotRoom:
    """What slots of open sessions take, of each character. Used from any thread.

    Args:
        residents: what stays.
    """

    def __init__(self, residents: Residents[Any]) -> None:
        self._residents = residents
        self._taken: dict[object, tuple[ResidentKey, int]] = {}
        self._lock = threading.Lock()

    def divide(
        self, order: SessionOrder, depth: int, bound: int, each: int, owner: object, *, shared: bool = True
    ) -> Divided:
        """How much of a bound is for frames that stay, and how much for a session's slots, which it has from now on.

        There is less for slots where more stays for another session than this one would keep, and where others of the
        character have slots.

        Args:
            order: what the session draws.
            depth: its surfaces.
            bound: bytes.
            each: bytes of a frame.
            owner: whose slots they are: what `give_back` is told.
            shared: whether others' slots count towards the bound; else it is what they have left.
        """
        key, spec = ResidentKey.of(order), order.spec
        if spec.count * each <= bound:
            return Divided(spec, 0)
        group = order.largest_group if order.backwards else 0
        with self._lock:
            others = sum(nbytes for user, (of, nbytes) in self._taken.items() if of == key and user is not owner)
            room = max(0, bound - (others if shared else 0)) // each
            slots = slots_ahead(spec, depth, group, room)
            found = divided(spec, room, slots)
            stays = max(found.kept.count, self._residents.lessen(key, found.kept.numbers))
            found = Divided(found.kept, max(slots.least, min(found.slots, room - stays)))
            self._taken[owner] = key, found.slots * each
        return found

    def give_back(self, owner: object) -> None:
        """A session's slots are closed, if it had any."""
        with self._lock:
            self._taken.pop(owner, None)
