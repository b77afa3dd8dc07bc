"""Opening files for reading: by which name, with which of FFmpeg's demuxers, and within which limits."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import av

from gpupipe.errors import MediaError, reason
from gpupipe.media.limits import Limits

FORMATS: Final = (
    "mov,matroska,avi,mpegts,mpeg,mpegvideo,flv,asf,mxf,nut,gxf,dv,ivf,h261,h263,h264,hevc,vvc,obu,av1,vc1,m4v,rm,ogg,"
    "wtv,gif,mjpeg,yuv4mpegpipe,wav,w64,caf,iff,aiff,au,voc,mp3,aac,flac,ape,wv,tta,tak,amr,amrnb,amrwb,ac3,eac3,dts,"
    "dtshd,truehd,mlp,loas,spdif,sox,mpc,mpc8,dsf,qcp,gsm,sbc,aptx,bit,oma,ircam,nistsphere,iamf,xwma,shn"
)
"""FFmpeg's demuxers that read one file of pictures or sound and nothing else. The others open what a file names: other
files, and addresses on the network (`hls`, `dash`, `concat`, `sdp`, `imf`, `image2`). `format_whitelist` is looked at
before a demuxer reads the file (libavformat, demux.c: `avformat_open_input`, right after `init_input`)."""


def media_url(path: Path | str) -> str:
    """A path as FFmpeg must be given it: without a protocol of its own, a colon in a name would end one."""
    return f"file:{path}"


def media_options(limits: Limits, **more: str) -> dict[str, str]:
    """What FFmpeg is to be told when it opens a file for reading: formats, and the largest frame.

    FFmpeg decodes a little of a file as it opens it; `max_pixels` (libavutil, imgutils.c: `av_image_check_size2`) lets
    no decoder allocate a larger frame, whatever a header or a stream that changes its size says.
    """
    return {"format_whitelist": FORMATS, "max_pixels": str(limits.max_pixels), **more}


@contextmanager
def opened(path: Path, limits: Limits, **options: str) -> Iterator[tuple[av.container.InputContainer, av.VideoStream]]:
    """Open a file and its first video stream, once its size and its number of frames are known to be taken.

    Args:
        path: the file.
        limits: what is taken.
        options: FFmpeg's, besides `media_options`.

    Raises:
        MediaError: it is missing, no video, or larger or longer than is taken.
    """
    if not path.is_file():
        raise MediaError("no such file", file=path, remedy="add it, or check the folder's name")
    try:
        container = av.open(media_url(path), options=media_options(limits, **options), metadata_errors="replace")
    except (av.FFmpegError, OSError, ValueError) as error:
        raise MediaError(
            f"cannot be opened as a video: {reason(error)}", file=path, remedy="it may be truncated: write it again"
        ) from error
    with container:
        if not container.streams.video:
            raise MediaError("holds no video stream", file=path, remedy="give a video file")
        stream = container.streams.video[0]
        if stream.codec_context is None:
            raise MediaError("holds a video that FFmpeg cannot decode", file=path, remedy="write it again as H.264")
        limits.check_size(path, stream.codec_context.width, stream.codec_context.height)
        limits.check_frames(path, stream.frames)
        stream.codec_context.options = {"max_pixels": str(limits.max_pixels)}
        yield container, stream
