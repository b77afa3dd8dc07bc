"""Pictures and sound in files: the only home of PyAV, and OpenCV's for images.

May touch files, FFmpeg by way of PyAV, and what every room shares (`errors`, `colour`); knows nothing of characters
or models. Gives frames and sound as NumPy arrays, and takes finished frames:

    limits      what is taken from strangers                        isolate     decoding in a process of its own,
    opening     which files FFmpeg opens, and how                   decoder     which is this one
    video       what a video holds; its frames as bgr24 or nv12     handover    a finished frame → the encoder's picture
    matroska    whether such a file is whole                        encoders    which there are, and their options
    sound_file  what a file says of its sound                       encode      frames → one file
    sound       sound as float32 samples from time 0                soundtrack  sound → AAC packets beside the picture
    images      frames as JPEG and PNG files                        join        parts → the finished file
    fragments   frames and sound → a file that plays while it is made
    live_encoder: frames → packets of a stream, each at once
    verify      whether a finished file is whole, with nal_units: what no encoder writes
    index       where in a video its frames are, to begin elsewhere than at the first
    rtc         single pictures and sound, as WebRTC's own encoders take and give them
    device_handover: like handover, for a frame in GPU memory, which is all that is known of GPUs here

Errors are `MediaError` (cannot be read), `OutputError` (cannot be written) and `OptionError` (an encoder's options).
`join.join` is not offered from here: its room has the same name.
"""

from gpupipe.media.encode import VideoWriter
from gpupipe.media.encoders import EncoderOptions
from gpupipe.media.handover import HandOver
from gpupipe.media.images import write_image
from gpupipe.media.sound import SoundInfo, decode_sound, probe_sound, read_pcm
from gpupipe.media.soundtrack import sound_packets
from gpupipe.media.video import VideoInfo, probe, read_frames

__all__ = [
    "EncoderOptions",
    "HandOver",
    "SoundInfo",
    "VideoInfo",
    "VideoWriter",
    "decode_sound",
    "probe",
    "probe_sound",
    "read_frames",
    "read_pcm",
    "sound_packets",
    "write_image",
]
