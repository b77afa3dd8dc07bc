"""Video encoders: which there are, what they take, and their options."""

from __future__ import annotations

import io
import os
from dataclasses import dataclass

import av

from gpupipe.colour import PixelFormat
from gpupipe.errors import OptionError
from gpupipe.options import OutputOptions

COPIES_INPUT = frozenset({"libx264", "libx265"})
"""Encoders that have copied a frame's pixels when `encode` returns, so that its buffer may be handed over as it is."""

QUALITY_OPTION = {"h264_nvenc": "cq", "hevc_nvenc": "cq", "av1_nvenc": "cq"}
"""The option that holds the constant quality of encoders that do not call it `crf`: those of NVENC. To them 0 means
automatic, a variable bit rate (libavcodec/nvenc.c, FFmpeg 8.1: `nvenc_setup_rate_control`), which is not what is asked
for."""

NVENC_DRIVER = "570"
"""The oldest NVIDIA driver that the PyAV 18.1 wheel's FFmpeg encodes with: it is built with NVENC 13.0."""

NVENC_DELAY = 32
"""Frames by which NVENC's packets lag behind, at the most: so many it may still have to read when `encode` returns.

FFmpeg takes a packet out once so many frames are under way (libavcodec/nvenc.c, as in librempeg 08b68b9:
`output_ready`), or one less than its `nb_surfaces`, which it makes at least four times the distance of two P frames
(`nvenc_recalc_surfaces`). Each call of `encode` takes one frame in and one packet out (`ff_nvenc_receive_packet`), so
fewer than that stay under way. Lookahead, which presets p6 and p7 may turn on, is cut down to what the delay leaves
room for (`nvenc_setup_rate_control`: the delay less the distance of P frames less 4). With the 32 surfaces that batches
of 8 keep busy this makes 64, as many as FFmpeg keeps registered (`MAX_REGISTERED_FRAMES`)."""

DEFAULTS: dict[str, tuple[int, str]] = {
    "libx264": (20, "veryfast"),
    "libx265": (23, "veryfast"),
    "libsvtav1": (30, "10"),
    "h264_nvenc": (20, "p4"),
    "hevc_nvenc": (23, "p4"),
    "av1_nvenc": (28, "p4"),
}
"""Constant quality and preset where none is asked for; other encoders keep their own defaults."""

X264_FAMILY = frozenset({"libx264", "libx265"})
X264_PRESETS = (
    "ultrafast", "superfast", "veryfast", "faster", "fast", "medium", "slow", "slower", "veryslow", "placebo"
)  # fmt: skip
"""The presets of libx264 and libx265, which FFmpeg passes on as text and therefore does not list."""

FIXED: dict[str, dict[str, str]] = {
    # x264's AVX-512 code for the macroblock tree reads memory that nothing has written when a row of macroblocks is no
    # multiple of 16: the same frames give other bytes at every run (seen with the x264 of the PyAV 18.1 wheel).
    "libx264": {"x264-params": "mbtree=0"},
    "libx265": {"x265-params": "log-level=error"},  # it writes to standard error on its own
    **{encoder: {"delay": str(NVENC_DELAY)} for encoder in QUALITY_OPTION},
}
"""Options that an encoder always gets."""

SPEAKS = {"libsvtav1": ("SVT_LOG", "1")}
"""Encoders that write to standard error by themselves, past FFmpeg's log, unless an environment variable forbids it."""

DEFAULT_THREADS = 4
"""Encoder threads, the same on every machine: x264's output depends on their number, and a joined file must not depend
on who encoded which part."""


@dataclass(frozen=True)
class EncoderOptions:
    """How to encode.

    Attributes:
        encoder: FFmpeg's name of the encoder.
        crf: constant quality, lower is better; None for the default (20 for libx264).
        preset: speed against size, by the encoder's own names; None for the default (veryfast for libx264).
        threads: encoder threads.
        gpu: the GPU that NVENC encodes on, as CUDA numbers the visible ones; None: the first that can. Other encoders
            have no use for it.
    """

    encoder: str = "libx264"
    crf: int | None = None
    preset: str | None = None
    threads: int = DEFAULT_THREADS
    gpu: int | None = None

    @classmethod
    def of(cls, options: OutputOptions) -> EncoderOptions:
        """What the options of an output say of its encoder."""
        threads = DEFAULT_THREADS if options.encoder_threads is None else options.encoder_threads
        return cls(options.encoder, options.crf, options.preset, threads)

    def codec_options(self, context: av.VideoCodecContext) -> dict[str, str]:
        """The options in the encoder's own names.

        Raises:
            OptionError: the encoder has no such option, or the option no such value.
        """
        own = {option.name: option for option in context.supported_options.private}
        crf, preset = DEFAULTS.get(self.encoder, (None, None))
        crf, preset = crf if self.crf is None else self.crf, self.preset or preset
        chosen: dict[str, str] = {}
        if crf is not None:
            name = QUALITY_OPTION.get(self.encoder, "crf")
            if name not in own:
                raise OptionError(
                    f"{self.encoder} has no constant quality", field="--crf", value=crf, remedy="leave --crf out"
                )
            # x264 and x265 state no limit, and take what is above 51 for 51.
            highest = min(int(own[name].max), 51 if self.encoder in X264_FAMILY else 255)
            OptionError.unless_within("--crf", crf, 1 if self.encoder in QUALITY_OPTION else 0, highest)
            chosen[name] = str(crf)
        if preset is not None:
            if "preset" not in own:
                raise OptionError(
                    f"{self.encoder} has no presets", field="--preset", value=preset, remedy="leave --preset out"
                )
            known = X264_PRESETS if self.encoder in X264_FAMILY else [c.name for c in own["preset"].choices or ()]
            if known and preset not in known:
                raise OptionError(
                    f"{self.encoder} has no such preset",
                    field="--preset",
                    value=preset,
                    remedy=f"give one of {', '.join(known)}",
                )
            chosen["preset"] = preset
        chosen |= FIXED.get(self.encoder, {})
        if self.gpu is not None and self.encoder in QUALITY_OPTION:
            # Left to itself it takes the first GPU that can encode (libavcodec/nvenc.c: `nvenc_setup_device`).
            chosen["gpu"] = str(self.gpu)
        return chosen


def encoder_name(encoder: str) -> str:
    """FFmpeg's own name of an encoder: libx264 for h264.

    Raises:
        OptionError: PyAV has no such video encoder.
    """
    return str(_codec(encoder).name)


def silence(encoder: str) -> None:
    """Let an encoder that is about to be opened write errors only to standard error, unless the user wants more of it.

    SVT-AV1 reads its level (1: errors) from the environment when its first encoder is opened, and keeps it for as long
    as the process lives (svt_log.c: `logger_create`); no option of the encoder changes it. `os.environ`
    sets it where C's `getenv` finds it.
    """
    if encoder in SPEAKS:
        name, level = SPEAKS[encoder]
        os.environ.setdefault(name, level)


def encoder_formats(encoder: str) -> list[str]:
    """The pixel formats that an encoder takes.

    Raises:
        OptionError: PyAV has no such video encoder.
    """
    return [f.name for f in _codec(encoder).video_formats or ()]


def takes_gpu_memory(encoder: str, pixel_format: PixelFormat) -> bool:
    """Whether an encoder takes frames of that format where a GPU has drawn them: NVENC takes nv12.

    Raises:
        OptionError: PyAV has no such video encoder.
    """
    return pixel_format == "nv12" and "cuda" in encoder_formats(encoder)


def part_suffix(encoder: str, output_suffix: str) -> str:
    """The suffix of the parts of a video: .mp4, which keeps decoding times, unless it cannot hold the codec.

    Raises:
        OptionError: PyAV has no such video encoder.
    """
    codec = _codec(encoder).canonical_name
    with av.open(io.BytesIO(), "w", format="mp4") as container:
        return ".mp4" if codec in container.supported_codecs else output_suffix


def codec_versions() -> str:
    """The versions of FFmpeg's libraries, which tell its builds apart where PyAV's own version is the same."""
    libraries = sorted(av.library_versions.items())
    return ", ".join(f"{name} {'.'.join(map(str, version))}" for name, version in libraries)


def _codec(encoder: str) -> av.Codec:
    try:
        codec = av.Codec(encoder, "w")
    except ValueError:  # av.codec.codec.UnknownCodecError
        codec = None
    if codec is None or codec.type != "video":
        raise OptionError(
            "is no video encoder of this PyAV",
            field="--encoder",
            value=encoder,
            remedy="use libx264, or see `gpupipe doctor`",
        )
    return codec
