"""What an engine holds for its sessions: models, lanes, characters, encoders, surfaces; opened once, and shared."""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from gpupipe.compose.protocol import BatchKind, Coming
from gpupipe.engine.ahead import FramesAhead
from gpupipe.engine.backend import Backend
from gpupipe.engine.cache_bound import CacheBound, Divided
from gpupipe.engine.feature_store import FeatureStore
from gpupipe.engine.features import SplitModel
from gpupipe.engine.kept_features import FeatureBudget, KeptFeatures
from gpupipe.engine.lane import Lane, slots_of
from gpupipe.engine.order import SessionOrder
from gpupipe.engine.residents import Resident, ResidentKey, Residents
from gpupipe.engine.shelf import Digests, Shelf
from gpupipe.engine.slot_room import SlotRoom
from gpupipe.engine.surfaces import Memory, SurfacePool
from gpupipe.geometry import SPEECH_WIDTH
from gpupipe.log import Log
from gpupipe.machine import release_free_memory
from gpupipe.model.model import Model
from gpupipe.speech.encoder import AudioEncoder
from gpupipe.speech.rows import SpeechRows
from gpupipe.speech.speech import OpenEncoder

LANES_KEPT = 2
"""Lanes that stay open when no session uses them."""
ENCODERS_KEPT = 2
"""Audio encoders that stay open when no session uses them."""

_log = Log(__name__)


Speech = Callable[[OpenEncoder], SpeechRows]
OnComputeThread = Callable[[Callable[[], Any]], Any]


@dataclass(frozen=True)
class Parts:
    """What one session has been given of it all."""

    lane: Lane
    frames: Any
    speech: SpeechRows
    placed: Any
    memory: list[Memory]
    notes: tuple[str, ...]
    features: KeptFeatures | None
    coming: Coming


class Holdings:
    """Opens what sessions need, keeps it for the next, and makes room.

    Args:
        backend: the device.
        cache: how much of characters is kept.
        on_compute_thread: runs something where the models are run, and waits for it.
        features: how much is kept of the model's work on cached frames; None: nothing.
    """

    def __init__(
        self,
        backend: Backend,
        cache: CacheBound | None,
        on_compute_thread: OnComputeThread,
        features: FeatureBudget | None = None,
    ) -> None:
        self._backend, self._on_compute_thread = backend, on_compute_thread
        self._kept = FeatureStore(features, backend.gpu)
        self._models: Shelf[_OpenModel] = Shelf(keep=0)  # lanes keep theirs open
        self._lanes: Shelf[Lane] = Shelf(keep=LANES_KEPT)
        self._encoders: Shelf[AudioEncoder] = Shelf(keep=ENCODERS_KEPT)
        self.digests = Digests()
        self._cache = cache or CacheBound(None)
        self.residents: Residents[Any] = Residents(self._unload, self._cache.unused, self._whole)
        self._slot_room = SlotRoom(self.residents)
        self._pool = SurfacePool(backend.gpu)

    def open(self, order: SessionOrder, speech: Speech, held: ExitStack) -> Parts:
        """Everything for one session; `held` gives it back.

        Raises:
            GpupipeError: something cannot be opened, or does not fit in memory.
        """
        backend, spec = self._backend, order.spec
        keep = self._kept.wanted(order.features)
        model_key = (self.digests.of(order.model), replace(order.options, model=None), keep)
        opened = self._models.take(model_key, lambda: self._open_model(order, model_key, keep=keep))
        held.callback(self._models.give_back, model_key)
        model = opened.model
        model.signature.check_size(spec.layout)
        kind = BatchKind(spec.layout, spec.pixel_format, model.dtype, backend.batch(model, order.options))
        lane_key = (model_key, kind.layout, kind.pixel_format, order.workers)
        if not self._lanes.holds(lane_key):
            with backend.opening():
                self._on_compute_thread(lambda: self._warm_up(opened, kind, model_key))
        rows = speech(lambda path, batch: self._encoder(path, batch, model, held))
        # A batch in each slot, and one with the sink.
        depth = (order.depth or (slots_of(model, kind.batch) + 1) * kind.batch) + order.kept
        held.callback(self._slot_room.give_back, held)
        kept_spec, slots = self._make_room(order, kind, lane_key, model, rows, depth, held)
        lane = self._lanes.take(lane_key, lambda: self._open_lane(model_key, kind, order.workers))
        held.callback(self._lanes.give_back, lane_key)
        resident = self._resident(replace(order, spec=kept_spec))
        held.callback(self.residents.give_back, resident)
        frames, coming = resident.frames, backend.coming(resident.frames)
        notes = (*opened.notes, *model.notes)
        if slots:
            coming = ahead = self._ahead(order, resident, slots, depth)
            held.callback(ahead.close)
            frames, notes = ahead.frames, (*notes, ahead.note)
        placed = backend.place(rows)
        held.callback(backend.unplace, placed)
        memory = self._pool.borrow(spec.format, depth, on_host=order.on_host)
        held.callback(self._pool.give_back, spec.format, memory, on_host=order.on_host)
        split, shown, store = lane.split, order.shown, self._kept
        count = spec.numbers.stop - resident.numbers.start
        kept = self._on_compute_thread(lambda: store.of(split, resident.frames, model_key, shown, count))
        said = store.notes(model_key, split, kept, shown, count) if keep else ()
        return Parts(lane, frames, rows, placed, memory, (*notes, *said), kept, coming)

    def load(self, order: SessionOrder) -> None:
        """Keep a character's frames, and open its model if the file is there, before the first session needs them.

        Raises:
            GpupipeError: something cannot be opened, or does not fit in memory.
        """
        with ExitStack() as held:
            if order.model.is_file():
                nothing = SpeechRows(np.zeros((1, SPEECH_WIDTH), np.float32))
                self.open(order, lambda _: nothing, held).coming.wait()
                return
            self.residents.make_room(lambda: not self._backend.fits(self._backend.frame_bytes(order.spec)))
            self._backend.require(self._backend.frame_bytes(order.spec))
            resident = self._resident(order)
            held.callback(self.residents.give_back, resident)
            self._backend.coming(resident.frames).wait()

    def _resident(self, order: SessionOrder) -> Resident[Any]:
        backend = self._backend

        def load() -> Any:
            spec, path = order.spec, order.character.path
            with _log.timed("frames loaded", character=path, frames=spec.count, bytes=spec.cache_bytes):
                return backend.load(spec, order.readers())

        return self.residents.acquire(ResidentKey.of(order), order.spec, load)

    def _ahead(self, order: SessionOrder, resident: Resident[Any], slots: int, depth: int) -> FramesAhead:
        """The frames of a session that do not all stay, from the first of those that do."""
        first, backend = resident.numbers.start, self._backend
        spec = replace(order.spec, first=first, rects=order.character.rects[first : order.spec.numbers.stop])
        ring = backend.ring(resident.frames, spec, slots)
        return FramesAhead(order, backend.coming(resident.frames), len(resident.numbers), ring, depth)

    def _whole(self, frames: Any) -> bool:
        return self._backend.coming(frames).whole

    def _unload(self, frames: Any) -> None:
        self._backend.unload(frames)  # which waits for what is queued
        self._kept.release(frames)

    def close(self) -> None:
        """Release everything; no session may be open."""
        self._pool.trim()
        self.residents.close()
        self._lanes.close()
        self._models.close()
        self._encoders.close()

    def _open_model(self, order: SessionOrder, key: Hashable, *, keep: bool) -> _OpenModel:
        with self._backend.opening():
            with _log.timed("model opened", path=order.model) as told:
                model, notes = self._backend.open_model(order.model, order.options)
                told |= {"provider": model.provider, "notes": notes}
            try:
                return _OpenModel(self._backend, model, notes, self._kept.open(model, key) if keep else None)
            except BaseException:
                model.close()
                raise

    def _warm_up(self, opened: _OpenModel, kind: BatchKind, key: Hashable) -> None:
        """Let a model, and both nets of one that is split, take the memory that they work in."""
        self._backend.warm_up(opened.model, kind)
        if opened.split is not None:
            opened.split = self._kept.warm_up(opened.split, key)

    def _open_lane(self, model_key: Hashable, kind: BatchKind, workers: int | None) -> Lane:
        opened = self._models.take(model_key, _must_be_open)
        try:
            compositor = self._backend.compositor(kind, opened.model, workers)
            lane = Lane(opened.model, compositor, lambda: self._models.give_back(model_key), opened.split)
        except BaseException:
            self._models.give_back(model_key)
            raise
        try:
            slots = [slot.bindings for slot in lane.free]
            with self._backend.opening(), _log.timed("lane opened", logging.DEBUG, model=lane.model.path):
                self._on_compute_thread(lambda: self._backend.capture(lane.model, slots))
        except BaseException:
            lane.close()
            raise
        release_free_memory()
        return lane

    def _encoder(self, path: Path, batch: int, model: Model, held: ExitStack) -> AudioEncoder:
        """An audio encoder, run by the model's provider."""
        key = (self.digests.of(path), batch, model.provider)

        def opened() -> AudioEncoder:
            with self._backend.opening(), _log.timed("audio encoder opened", path=path, provider=model.provider):
                return AudioEncoder(path, model.options, batch=batch)

        encoder = self._encoders.take(key, opened)
        held.callback(self._encoders.give_back, key)
        return encoder

    def _make_room(
        self,
        order: SessionOrder,
        kind: BatchKind,
        lane_key: Hashable,
        model: Model,
        rows: SpeechRows,
        depth: int,
        owner: object,
    ) -> Divided:
        """Check that a session fits, before anything of it is allocated; what nobody uses leaves if it must.

        Returns:
            Which of its frames are kept, all or the first, and how many slots there are for the others.

        Raises:
            DeviceMemoryError, HostMemoryError: it does not fit.
        """
        backend, key, bound, room = self._backend, ResidentKey.of(order), self._cache.each, self._slot_room
        each = backend.place_bytes(order.spec)
        found = Divided(order.spec, 0)
        if bound is not None and not self.residents.holds(key, order.spec.numbers):
            found = room.divide(order, depth, bound, each, owner)

        def wanted() -> dict[str, int]:
            parts: dict[str, int] = {}
            if not self.residents.holds(key, found.kept.numbers):
                parts |= backend.frame_bytes(found.kept)
            if found.slots:
                parts |= backend.ring_bytes(order.spec, found.slots)
            if not self._lanes.holds(lane_key):
                parts |= backend.lane_bytes(kind, model, slots_of(model, kind.batch))
            parts["finished frames"] = self._pool.bytes_wanted(order.spec.format, depth, on_host=order.on_host)
            return parts | backend.speech_bytes(rows)

        self.residents.make_room(lambda: not backend.fits(wanted()))
        if not backend.fits(wanted()):
            _log.event("unused lanes and surfaces released", wanted=sum(wanted().values()))
            self._pool.trim()
            self._lanes.trim()
        for less in (backend.cache_bytes() or 0, 0) if bound is None else ():
            if not backend.fits(wanted()):
                found = room.divide(order, depth, less, each, owner, shared=False)
        backend.require(wanted())
        return found


@dataclass(eq=False)
class _OpenModel:
    """An opened model, as a shelf keeps it, and the same in two nets, if features are kept."""

    backend: Backend
    model: Model
    notes: tuple[str, ...]
    split: SplitModel | None

    def close(self) -> None:
        """Close it."""
        with self.backend.closing():
            self.model.close()
            if self.split is not None:
                self.split.close()


def _must_be_open() -> _OpenModel:
    raise AssertionError("a session's model is open")
