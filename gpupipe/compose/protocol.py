"""The contract of both compositors. Types only.

A compositor draws batches of one kind: one crop layout, one type of the model's numbers, one pixel format, one size.
The frames of a batch may be of different characters, bodies and speeches. A batch goes through a *slot*:

    prepare(slot, frames)  crops and speech → slot.visual, slot.audio
    ready(slot)            may the model read them? (waits only where the model runs on another device)
    … the model runs: slot.visual, slot.audio → slot.prediction …
    paste(slot)            slot.prediction → the frames' surfaces
    finish(slot)           the surfaces are complete; which predictions held a NaN

Slots are independent of each other; the steps of one slot are called in this order. What is drawn for a frame does not
depend on its place in the batch, nor on the others in it. A batch that is not full leaves the rest of its slot alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from gpupipe.colour import PixelFormat
from gpupipe.compose.decoding import Frame
from gpupipe.compose.frames import FrameSpec, HostFrames
from gpupipe.compose.surface import Surface
from gpupipe.geometry import CropLayout
from gpupipe.gpu.clock import Marks


@dataclass(frozen=True)
class BatchKind:
    """What the frames of a batch have in common.

    Attributes:
        layout: of the crops.
        pixel_format: of bodies and surfaces.
        dtype: what the model reads and writes, float32 or float16.
        batch: the most frames, B.
    """

    layout: CropLayout
    pixel_format: PixelFormat
    dtype: np.dtype[Any]
    batch: int


FramesT = TypeVar("FramesT")
SpeechT = TypeVar("SpeechT")


class CachedFrames(Protocol):
    """What the CPU's compositor reads."""

    @property
    def spec(self) -> FrameSpec:
        """What is cached."""

    @property
    def ycbcr_weights(self) -> NDArray[np.float32]:
        """`Colour.from_bgr` as float32 `[3, 4]`, multiples of 2^-14."""

    def at(self, source: int) -> tuple[HostFrames, int]:
        """In which arrays, and where there, a frame lies."""


class Coming(Protocol):
    """Cached frames that may still be decoded: what may be asked of them meanwhile."""

    @property
    def whole(self) -> bool:
        """Whether every frame is there."""

    @property
    def error(self) -> BaseException | None:
        """Why no more frames come; None while more may."""

    def ready(self, source: int) -> bool:
        """Whether a frame is there, and may be drawn."""

    def failure(self, source: int) -> BaseException | None:
        """Why a frame will never be there; None if it is, or may come."""

    def begun(self, source: int) -> None:
        """A frame that is there is being drawn, and must stay."""

    def drawn(self, source: int) -> None:
        """A frame has been drawn, and need not stay."""

    def listen(self, changed: Callable[[], None]) -> Callable[[], None]:
        """Have `changed` called, in any thread, when more frames are there, or no more come; gives what ends that."""

    def wait(self) -> None:
        """Return once every frame is there; raise what stops them from coming."""


class Ring(Protocol):
    """Slots for cached frames that do not stay, behind the first ones, which do: what a compositor reads of both."""

    @property
    def spec(self) -> FrameSpec:
        """Of all frames."""

    @property
    def slots(self) -> int:
        """How many slots there are."""

    @property
    def cache_bytes(self) -> int:
        """Bytes of the frames that stay, and of the slots."""

    def write(self, slot: int, source: int, decoded: Sequence[Frame]) -> None:
        """Put a decoded frame in a slot, from which nobody reads: it may be drawn once this returns. By one thread.

        Args:
            slot: which.
            source: which frame.
            decoded: its body, its crop and, if there are any, its recorded inputs, as `HostFrames.loading` takes them.

        Raises:
            DeviceError: the device has failed.
        """

    def forget(self, source: int) -> None:
        """A frame's slot is to be written again."""

    def close(self) -> None:
        """Release the slots, once what has been queued with them is done."""


class Drawing(NamedTuple, Generic[FramesT, SpeechT]):
    """One frame to be drawn.

    Attributes:
        frames: the character's cached frames: `CachedFrames` on the CPU, `DeviceTable` on a GPU.
        source: which of them, counted from the first of them.
        speech: the session's speech features: `SpeechRows` on the CPU, `DeviceSpeech` on a GPU.
        row: the row of speech at the frame's time, rounded down; see `geometry.speech_position`.
        fraction: how far the frame's time lies past that row, in 1/65536 of a row.
        surface: where to draw.
        visual: what the model sees instead of the cached crop, float32 `[6, S, S]`; None: the crop. It must stay until
            the batch is finished.
    """

    frames: FramesT
    source: int
    speech: SpeechT
    row: int
    fraction: int
    surface: Surface
    visual: NDArray[np.float32] | None = None


class Slot(Protocol):
    """The buffers of one batch in flight."""

    @property
    def visual(self) -> Any:
        """`[B, 6, S, S]`, float32 or float16, in the memory in which the model reads."""

    @property
    def audio(self) -> Any:
        """`[B, 32, 16, 16]`, like `visual`."""

    @property
    def prediction(self) -> Any:
        """`[B, 3, S, S]`, like `visual`: BGR planes, 0 to 1."""

    @property
    def marks(self) -> Marks | None:
        """When its steps ran, where a GPU does them; who runs the model there marks that ("infer")."""


SlotT = TypeVar("SlotT", bound=Slot)


class Compositor(Protocol[SlotT, FramesT, SpeechT]):
    """Draws finished frames from cached frames and predictions."""

    @property
    def kind(self) -> BatchKind:
        """Of its batches."""

    def admit(self, frames: FramesT) -> None:
        """Make room for what the cached frames of a character need. Called before their first `prepare`."""

    def new_slot(self) -> SlotT:
        """Allocate the buffers of one batch. Nothing is allocated after this, until `admit`."""

    def prepare(self, slot: SlotT, frames: Sequence[Drawing[FramesT, SpeechT]]) -> None:
        """Fill the model's inputs for 1 to B frames, in the slot's first places."""

    def clear(self, slot: SlotT) -> None:
        """Make the model's inputs zeros in every place, once `ready` has returned. A batch that is not full leaves in
        the other places what was there; a model that fails of that would fail for whoever comes next."""

    def ready(self, slot: SlotT) -> None:
        """Return once the model may be run on the slot, in the order of its own device's work."""

    def paste(self, slot: SlotT) -> None:
        """Draw the predictions of the slot into the surfaces of its frames."""

    def finish(self, slot: SlotT) -> NDArray[np.bool_]:
        """Wait until the surfaces are complete.

        Returns:
            bool `[n]`: whether the prediction of each frame held a NaN (drawn as 0).
        """

    def close(self) -> None:
        """Release every buffer."""
