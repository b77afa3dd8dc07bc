"""NAL units of H.264 and HEVC, as mp4 and mkv hold them, each behind its length: whether a packet is as it was written.

A decoder takes much for granted: bytes that were lost and read as zeros are a picture to it, if a wrong one. The syntax
does not: `00 00 00`, `00 00 01` and `00 00 02` never occur inside a NAL unit, since every encoder puts a 03 between
(ITU-T H.264 and H.265, 7.4.1 and 7.4.2: `emulation_prevention_three_byte`), and the lengths fill the packet.
"""

from __future__ import annotations

from typing import Final

FORBIDDEN: Final = (b"\0\0\0", b"\0\0\1", b"\0\0\2")

_LENGTH_BYTE: Final = {"h264": 4, "hevc": 21}
"""Which byte of the decoder's configuration says in its last two bits how many bytes a length has, less one (ISO/IEC
14496-15: `lengthSizeMinusOne`)."""


def length_size(codec: str, configuration: bytes | None) -> int | None:
    """How many bytes the length before each NAL unit has.

    Args:
        codec: FFmpeg's name of the decoder.
        configuration: the stream's `avcC` or `hvcC`; FFmpeg's extradata.

    Returns:
        None: another codec, or units behind start codes, not lengths.
    """
    at = _LENGTH_BYTE.get(codec)
    if at is None or configuration is None or len(configuration) <= at or configuration[0] != 1:
        return None
    return (configuration[at] & 3) + 1


def is_sound(packet: bytes, length_size: int) -> bool:
    """Whether a packet is NAL units and nothing else, none with bytes that no encoder writes.

    >>> is_sound(bytes([0, 3, 65, 7, 9]), 2), is_sound(bytes([0, 3, 65, 7]), 2), is_sound(bytes([0, 4, 65, 0, 0, 0]), 2)
    (True, False, False)
    """
    begin = 0
    while begin < len(packet):
        body = begin + length_size
        end = body + int.from_bytes(packet[begin:body], "big")
        if not body < end <= len(packet) or any(packet.find(one, body, end) >= 0 for one in FORBIDDEN):
            return False
        begin = end
    return True
