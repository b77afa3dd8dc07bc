"""The feature rows of one speech in device memory, whole or growing, laid out so that every window is in one piece.

    block 0   17 rows of zeros, rows 0 …              each block begins with the last 16 rows of the one before it,
    block 1   the last 16 rows of block 0, more rows  and ends, where the speech ends, with zeros
    …

A window is 17 rows (16, and one more for a frame between two rows). The 17 rows before the speech and those after it
are zeros, so a window needs no bounds: one that lies wholly outside is taken from the zeros.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from gpupipe.errors import DeviceError
from gpupipe.geometry import SPEECH_BEFORE, SPEECH_ROWS, SPEECH_WIDTH
from gpupipe.gpu.device import Device
from gpupipe.gpu.types import DeviceArray, Event
from gpupipe.speech.rows import SpeechRows

WINDOW: Final = SPEECH_ROWS + 1
"""Rows that a kernel may read from a window's first row on."""
BLOCK: Final = 512
"""Rows of a block of a speech that grows: 20 seconds."""
AHEAD: Final = 96
"""Rows of a speech that grows that are uploaded before a window needs them, if they have come."""
PIECE: Final = 64
"""Rows of a piece of the page-locked staging. There are two, so that `AHEAD` rows go without a wait."""

_ROW_BYTES = SPEECH_WIDTH * np.dtype(np.float32).itemsize


@dataclass
class _Piece:
    """A part of the staging, and the event that follows the copies from it."""

    rows: NDArray[np.float32]
    copied: Event


class DeviceSpeech:
    """Rows of speech features on a device. Used by one thread at a time: the one that queues the device's work.

    A speech that is finished when it is given takes one block of its own size, and is uploaded at once. Of one that
    grows, rows are uploaded as windows are asked for, and blocks that `forget` has let go of are used again, so that
    it takes three blocks however long it is.

    Args:
        device: where to.
        rows: the speech.

    Raises:
        DeviceMemoryError: the memory does not suffice.
    """

    def __init__(self, device: Device, rows: SpeechRows) -> None:
        self.device = device
        self.rows = rows
        self._block_rows = _block_rows(rows)
        self._blocks: dict[int, DeviceArray] = {}
        self._free: list[DeviceArray] = []
        self._uploaded = 0
        self._forgotten = 0
        self._used, self._arrived = device.event(), device.event()
        staging = device.pinned((2, PIECE, SPEECH_WIDTH), np.float32, "speech features")
        self._pieces = [_Piece(piece, device.event()) for piece in staging]
        self._turn = 0
        self._reserve(0)
        self._hand_over()
        if rows.finished:
            self.update()

    @staticmethod
    def bytes_wanted(rows: SpeechRows) -> dict[str, int]:
        """Bytes of device memory that a speech takes, by name."""
        blocks = 1 if rows.finished else 3
        return {"speech": blocks * _block_rows(rows) * _ROW_BYTES}

    def update(self, until: int | None = None) -> None:
        """Queue the upload of the rows that have come since. What is queued on the compute stream later sees them.

        The host waits only if it is two pieces of staging ahead of the copies.

        Args:
            until: the first row that need not be there yet; None: all that have come.
        """
        target = self.rows.count if until is None else min(until, self.rows.count)
        if target <= self._uploaded:
            return
        # The zeros behind the speech are a window's too.
        for number in range(self._number(self._uploaded), self._number(target) + 1):
            self._reserve(number)
        while self._uploaded < target:
            begin, end = self._uploaded, min(target, self._uploaded + PIECE)
            self._upload(begin, self.rows.view(begin, end))
            self._uploaded = end
        self._hand_over()

    def window(self, row: int) -> int:
        """The address of the first row of the window around `row`: float32 `[17, 512]`, rows `row` - 8 and on.

        What is queued on the compute stream from now on finds there the rows that have come by now, and zeros for
        those that have not.

        Raises:
            IndexError: `forget` has let go of the row.
        """
        if row + SPEECH_ROWS > self._uploaded and self._uploaded < self.rows.count:
            self.update(row + SPEECH_ROWS + AHEAD)
        first = min(max(row - SPEECH_BEFORE, -WINDOW), self._uploaded)
        number = self._number(first)
        block = self._blocks.get(number)
        if block is None:
            raise IndexError(f"row {row} of the speech has been forgotten; {self._forgotten} is the first one kept")
        return block.data.ptr + (first - self._first(number)) * _ROW_BYTES

    def forget(self, before_row: int) -> None:
        """Let go of what only windows around rows before `before_row` need. Those that were asked for stay good until
        the work queued by now is done; none may be asked for any more."""
        if before_row <= self._forgotten:
            return
        self._forgotten = before_row
        number = self._number(min(max(before_row - SPEECH_BEFORE, -WINDOW), self._uploaded))
        old = [block for block in self._blocks if block < number]
        if old:
            self._free += map(self._blocks.pop, old)
            # A block is filled anew once what has been queued with it is done.
            self.device.record(self._used, self.device.compute_stream)

    def close(self) -> None:
        """Release the memory, once what has been queued with it is done."""
        # A GPU that has failed has said so where its result was waited for: that error is the one to show.
        with suppress(DeviceError):
            self.device.wait_for_queued(self.device.compute_stream)
            self.device.wait_for_queued(self.device.upload_stream)
        self._blocks.clear()
        self._free.clear()
        self._pieces.clear()

    def _hand_over(self) -> None:
        """Let what is queued on the compute stream from now on see what has been queued on the upload stream."""
        self.device.record(self._arrived, self.device.upload_stream)
        self.device.stream_waits_for(self.device.compute_stream, self._arrived)

    def _number(self, first: int) -> int:
        """The block of the window whose first row is `first`."""
        return (first + WINDOW) // (self._block_rows - WINDOW + 1)

    def _first(self, number: int) -> int:
        """The first row of a block."""
        return number * (self._block_rows - WINDOW + 1) - WINDOW

    def _reserve(self, number: int) -> None:
        """Have a block, all zeros."""
        if number in self._blocks:
            return
        if self._free:
            block = self._free.pop()
            self.device.stream_waits_for(self.device.upload_stream, self._used)
        else:
            block = self.device.empty((self._block_rows, SPEECH_WIDTH), np.float32, "speech features")
        self.device.clear(block, self.device.upload_stream)
        self._blocks[number] = block

    def _upload(self, begin: int, rows: NDArray[np.float32]) -> None:
        """Queue the copies of rows `begin` and on, at most a piece, to each block that has a place for them."""
        piece = self._pieces[self._turn]
        self._turn = 1 - self._turn
        if not piece.copied.done:
            self.device.wait(piece.copied)
        piece.rows[: len(rows)] = rows
        end = begin + len(rows)
        for number in range(self._number(begin - WINDOW + 1), self._number(end - 1) + 1):
            block, first = self._blocks.get(number), self._first(number)
            low, high = max(begin, first), min(end, first + self._block_rows)
            if block is not None and low < high:
                to = block[low - first : high - first]
                self.device.copy(to, piece.rows[low - begin : high - begin], self.device.upload_stream)
        self.device.record(piece.copied, self.device.upload_stream)


def _block_rows(rows: SpeechRows) -> int:
    return WINDOW + rows.count + WINDOW if rows.finished else BLOCK
