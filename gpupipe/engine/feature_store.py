"""Which characters' features are kept: within a budget, and where that wins."""

from __future__ import annotations

import threading
from collections.abc import Hashable
from typing import Any
from weakref import WeakKeyDictionary, WeakSet

from gpupipe.engine.features import FeatureBudget, KeptFeatures, SplitModel
from gpupipe.errors import OptionError
from gpupipe.machine import megabytes, memory_available_bytes
from gpupipe.model.model import Model
from gpupipe.options import EngineOptions, read_bytes


def feature_budget(options: EngineOptions) -> FeatureBudget | None:
    """What `--feature-cache` says: None for nothing. Where it says nothing, there is room for what is tuned.

    Raises:
        OptionError: it is neither a number of bytes nor auto nor off.
    """
    if options.feature_cache == "off":
        return None
    if options.feature_cache in (None, "auto"):
        tuned = options.feature_cache is None
        return FeatureBudget((memory_available_bytes() or 0) // 4, always=tuned, tuned=tuned)
    try:
        return FeatureBudget(read_bytes(options.feature_cache), always=True)
    except OptionError as error:
        raise error.about("--feature-cache") from error


class FeatureStore:
    """Features of resident frames, which go when the frames do.

    Args:
        budget: how much is kept; None: nothing.
    """

    def __init__(self, budget: FeatureBudget | None) -> None:
        self._budget = budget
        self._kept: WeakKeyDictionary[Any, dict[Hashable, KeptFeatures]] = WeakKeyDictionary()
        self._all: WeakSet[KeptFeatures] = WeakSet()
        self._reasons: dict[Hashable, str] = {}
        self._lock = threading.Lock()

    def wanted(self, tuned: bool) -> bool:
        """Whether features are to be kept for a session: for all, or for one that is tuned to it."""
        return self._budget is not None and (tuned or not self._budget.tuned)

    def open(self, model: Model, key: Hashable) -> SplitModel | None:
        """A model in two nets, if features are to be kept and that can be.

        Raises:
            GpupipeError: it cannot be cut or opened.
        """
        if self._budget is None:
            return None
        found = SplitModel.open(model)
        if isinstance(found, SplitModel):
            return found
        self._reasons[key] = found.reason
        return None

    def of(self, split: SplitModel | None, frames: Any, key: Hashable, shown: float, count: int) -> KeptFeatures | None:
        """Room for the features of a character's frames, as far as the budget goes.

        Args:
            split: the model in two nets, if it is.
            frames: the character's cached frames.
            key: of the model.
            shown: how often the session shows each of them.
            count: how many there are.
        """
        if split is None or self._budget is None:
            return None
        with self._lock:
            mine = self._kept.setdefault(frames, {})
            if key in mine:
                return mine[key]
            if not self._budget.always and shown < split.break_even:
                self._reasons[key] = f"a frame must be shown {split.break_even:.1f} times, and is {shown:.1f} times"
                return None
            left = self._budget.nbytes - sum(each.nbytes for each in self._all)
            room = min(count, left // split.frame_bytes)
            if room < 1:
                self._reasons[key] = f"{megabytes(left)} are left, and a frame needs {megabytes(split.frame_bytes)}"
                return None
            mine[key] = KeptFeatures(split.source, room)
            self._all.add(mine[key])
            return mine[key]

    def notes(self, key: Hashable, kept: KeptFeatures | None, count: int) -> tuple[str, ...]:
        """What to say of it to a session's user."""
        if self._budget is None:
            return ()
        if kept is None:
            return (f"no features are kept: {self._reasons.get(key, 'there is no room')}",)
        return (f"features of {kept.features.frames} of {count} frames are kept, {megabytes(kept.nbytes)}",)
