"""Which characters' features are kept: within a budget, and where that wins."""

from __future__ import annotations

import threading
from collections.abc import Hashable
from typing import Any

from gpupipe.engine.features import SplitModel
from gpupipe.engine.gpu_backend import SPARE_BYTES, elsewhere
from gpupipe.engine.kept_features import FeatureBudget, KeptFeatures
from gpupipe.errors import DeviceMemoryError
from gpupipe.gpu.device import Device
from gpupipe.machine import megabytes, memory_available_bytes
from gpupipe.model.model import Model
from gpupipe.options import EngineOptions


def feature_budget(options: EngineOptions, gpu: Device | None) -> FeatureBudget | None:
    """What `--feature-cache` says: None for nothing. Where it says nothing, there is room for what is tuned.

    Args:
        options: of an engine.
        gpu: its GPU, if it has one, before anything is allocated there.
    """
    size = options.feature_cache
    if size == "off":
        return None
    if not isinstance(size, int):  # None or "auto"
        tuned = size is None
        free = 0 if gpu is None else gpu.free_bytes
        return FeatureBudget((memory_available_bytes() or 0) // 4, free // 4, always=tuned, tuned=tuned)
    return FeatureBudget(size, size, always=True)


class FeatureStore:
    """Features of resident frames, which go when the frames do.

    Args:
        budget: how much is kept; None: nothing.
        gpu: the engine's GPU, if it has one.
    """

    def __init__(self, budget: FeatureBudget | None, gpu: Device | None) -> None:
        self._budget, self._gpu = budget, gpu
        self._kept: dict[Any, dict[Hashable, KeptFeatures]] = {}
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
        try:
            found = SplitModel.open(model, self._gpu)
        except DeviceMemoryError as error:
            self._no_room(key, error)
            return None
        if isinstance(found, SplitModel):
            return found
        self._reasons[key] = found.reason
        return None

    def warm_up(self, split: SplitModel, key: Hashable) -> SplitModel | None:
        """Let the nets take the memory that they work in, on the thread that runs them; None if they do not fit, which
        the session's notes say."""
        try:
            split.warm_up()
        except DeviceMemoryError as error:
            split.close()
            self._no_room(key, error)
            return None
        return split

    def _no_room(self, key: Hashable, error: DeviceMemoryError) -> None:
        self._reasons[key] = f"both nets do not fit beside the model: {error.brief()}"

    def of(self, split: SplitModel | None, frames: Any, key: Hashable, shown: float, count: int) -> KeptFeatures | None:
        """Room for the features of a character's frames, as far as the budget goes, and on a GPU as far as its memory
        does. On the thread that runs the model.

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
            left = self._left(split.on_device)
            room = min(count, left // split.frame_bytes)
            if room < 1:
                self._reasons[key] = f"{megabytes(left)} are left, and a frame needs {megabytes(split.frame_bytes)}"
                return None
            try:
                mine[key] = split.keep(room)
            except DeviceMemoryError as error:  # free in pieces, or taken meanwhile
                self._reasons[key] = error.brief()
                return None
            return mine[key]

    def _left(self, on_device: bool) -> int:
        """Bytes that more features may take."""
        assert self._budget is not None
        taken = sum(each.nbytes for of in self._kept.values() for each in of.values() if each.on_device == on_device)
        if not on_device or self._gpu is None:
            return max(0, self._budget.on_host - taken)
        return max(0, min(self._budget.on_device - taken, self._gpu.free_bytes - SPARE_BYTES))

    def release(self, frames: Any) -> None:
        """Let go of the features of frames that are no longer kept; what was queued with them is done."""
        with self._lock:
            for each in self._kept.pop(frames, {}).values():
                each.close()

    def notes(
        self, key: Hashable, split: SplitModel | None, kept: KeptFeatures | None, shown: float, count: int
    ) -> tuple[str, ...]:
        """What to say of it to a session's user; the parameters are those of `of`."""
        if self._budget is None:
            return ()
        if kept is None or split is None:
            return (f"no features are kept: {self._reasons.get(key, 'there is no room')}",)
        said = f"features of {kept.frames} of {count} frames are kept, {megabytes(kept.nbytes)}"
        if not self._budget.always:
            said += f"; worth it from {split.break_even:.1f} showings of a frame on, and there are {shown:.1f}"
        if not split.on_device:
            return (said,)
        said += "; on the GPU, where frames agree with the whole model's within rounding"
        return (said, *elsewhere(split.nodes, split.model.provider, "the model's two nets"))
