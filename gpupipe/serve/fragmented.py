"""A talk's pictures and its sound as a fragmented MP4, playable from its first piece."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from gpupipe.media.encoders import DEFAULT_THREADS, EncoderOptions
from gpupipe.media.fragments import FragmentWriter
from gpupipe.serve.delivery import Answer
from gpupipe.serve.talk import Picture, Talk


class Fragmented:
    """See `delivery.Encoder`.

    Args:
        talk: whose pictures it takes.
        sound: chunks of samples, float32 `[channels, n]`, from the talk's time 0; as many are taken as the pictures
            last, in the thread that encodes them. It is closed with this, if it can be. None: without sound.
        rate: samples a second of the sound, see `fragments.sound_rate`.
        channels: of the sound, 1 or 2.

    Raises:
        GpupipeError: the encoder cannot be opened.
    """

    def __init__(self, talk: Talk, sound: Iterator[NDArray[np.float32]] | None, *, rate: int, channels: int) -> None:
        body, format = talk.character.body, talk.format
        self._sound = sound
        self._first = 0  # picture of the next piece
        try:
            self._writer = FragmentWriter(
                width=format.width,
                height=format.height,
                fps=talk.fps,
                sound=sound,
                rate=rate,
                channels=channels,
                # A realtime talk leaves the cores to the others.
                options=EncoderOptions(threads=1 if talk.order.realtime else DEFAULT_THREADS),
                colour=body.colour,
                sample_aspect_ratio=body.sample_aspect_ratio,
            )
        except BaseException:
            self._close_sound()
            raise
        self.codecs = self._writer.codecs
        """What the file holds, see `FragmentWriter.codecs`."""

    def encode(self, picture: Picture) -> Sequence[Answer]:
        """The piece that a picture completes, if it does."""
        return self._answers(self._writer.write(picture.pixels), picture.index)

    def finish(self) -> Sequence[Answer]:
        """The last piece."""
        return self._answers(self._writer.finish(), self._writer.frames)

    def close(self) -> None:
        """Release everything."""
        self._writer.close()
        self._close_sound()

    def _answers(self, piece: bytes, next_piece: int) -> list[Answer]:
        if not piece:
            return []
        first, self._first = self._first, next_piece
        return [Answer(piece, first, keyframe=first == 0)]

    def _close_sound(self) -> None:
        close = getattr(self._sound, "close", None)  # a generator's, which ends the process that decodes
        if close is not None:
            close()
