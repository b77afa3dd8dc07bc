"""What a talk's pictures become: frames as they are drawn, images, or packets of a video stream."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, Literal

from gpupipe.colour import Colour
from gpupipe.media.images import FromNv12, jpeg
from gpupipe.media.live_encoder import LiveCodec, LiveEncoder, LivePacket
from gpupipe.serve.delivery import Answer, Encoder
from gpupipe.serve.talk import Picture, Talk

JPEG_QUALITY: Final = 90

PictureOutput = Literal["h264", "hevc", "jpeg", "nv12"]


def encoder_of(output: PictureOutput, *, jpeg_quality: int = JPEG_QUALITY) -> Callable[[Talk], Encoder]:
    """What makes the encoder of a talk, for `Conversation.open`.

    Args:
        output: what each picture becomes.
        jpeg_quality: 1 to 100, libjpeg's scale.
    """
    if output == "nv12":
        return lambda _: FrameEncoder()
    if output == "jpeg":
        return lambda talk: JpegEncoder(talk.character.body.colour, jpeg_quality)
    return lambda talk: PacketEncoder(talk, output)


class FrameEncoder:
    """Pictures as they are drawn: nv12, `H * W * 3 // 2` bytes. One that repeats has none, once there was a picture."""

    def __init__(self) -> None:
        self._shown = False

    def encode(self, picture: Picture) -> Sequence[Answer]:
        """See `delivery.Encoder`."""
        again, self._shown = self._shown and picture.repeats, True
        data = b"" if again else picture.pixels.tobytes()
        return [Answer(data, picture.index, keyframe=not again, repeats=picture.repeats)]

    def finish(self) -> Sequence[Answer]:
        """Nothing is left."""
        return ()

    def close(self) -> None:
        """Nothing to release."""


class JpegEncoder:
    """Pictures as JPEG images. One that repeats has no bytes, once there was a picture.

    Talks are drawn in nv12, so these are not the images of `gpupipe render`, which draws images in bgr24.

    Args:
        colour: of the pictures.
        quality: 1 to 100, libjpeg's scale.
    """

    def __init__(self, colour: Colour, quality: int) -> None:
        self._to_bgr, self._quality, self._shown = FromNv12(colour), quality, False

    def encode(self, picture: Picture) -> Sequence[Answer]:
        """See `delivery.Encoder`."""
        again, self._shown = self._shown and picture.repeats, True
        data = b"" if again else jpeg(self._to_bgr(picture.pixels), self._quality)
        return [Answer(data, picture.index, keyframe=not again, repeats=picture.repeats)]

    def finish(self) -> Sequence[Answer]:
        """Nothing is left."""
        return ()

    def close(self) -> None:
        """Nothing to release."""


class PacketEncoder:
    """A packet for each picture, those that repeat too, which are small.

    Args:
        talk: whose pictures come.
        codec: of the stream.

    Raises:
        OptionError: the encoder cannot be opened here.
    """

    def __init__(self, talk: Talk, codec: LiveCodec) -> None:
        self._encoder = LiveEncoder(
            codec,
            width=talk.format.width,
            height=talk.format.height,
            fps=talk.fps,
            colour=talk.character.body.colour,
        )
        self._repeats: dict[int, bool] = {}

    def encode(self, picture: Picture) -> Sequence[Answer]:
        """See `delivery.Encoder`."""
        self._repeats[picture.index] = picture.repeats
        return self._answers(self._encoder.encode(picture.pixels))

    def finish(self) -> Sequence[Answer]:
        """The packets that are left."""
        return self._answers(self._encoder.finish())

    def close(self) -> None:
        """Release the encoder."""
        self._encoder.close()

    def _answers(self, packets: Sequence[LivePacket]) -> list[Answer]:
        return [
            Answer(packet.data, packet.number, packet.keyframe, self._repeats.pop(packet.number)) for packet in packets
        ]
