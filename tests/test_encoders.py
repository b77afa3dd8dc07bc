"""What encoders are told, in their own words. NVENC's options can be had without a GPU; only opening needs one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import pytest
import small

from gpupipe.errors import OptionError
from gpupipe.media.encode import VideoWriter
from gpupipe.media.encoders import QUALITY_OPTION, EncoderOptions
from gpupipe.render import video_output as room
from gpupipe.render.render import render


def told(options: EncoderOptions) -> dict[str, str]:
    context = av.VideoCodecContext.create(options.encoder, "w")
    assert isinstance(context, av.VideoCodecContext)
    return options.codec_options(context)


@pytest.mark.parametrize(("encoder", "most"), [("h264_nvenc", 51), ("hevc_nvenc", 51), ("av1_nvenc", 63)])
def test_quality_0_is_automatic_to_nvenc_and_refused(encoder: str, most: int) -> None:
    for quality in (1, most):
        assert told(EncoderOptions(encoder, crf=quality))["cq"] == str(quality)
    for quality in (0, most + 1):
        with pytest.raises(OptionError, match=rf"crf: out of range \(got {quality}\); give 1 to {most}"):
            told(EncoderOptions(encoder, crf=quality))
    assert told(EncoderOptions("libx264", crf=0))["crf"] == "0"


@pytest.mark.parametrize("encoder", sorted(QUALITY_OPTION))
def test_nvenc_encodes_on_the_gpu_that_composites(encoder: str) -> None:
    assert told(EncoderOptions(encoder, gpu=1))["gpu"] == "1"
    assert "gpu" not in told(EncoderOptions(encoder))
    software = EncoderOptions("libx264")
    assert told(replace(software, gpu=1)) == told(software)


@pytest.mark.cuda
def test_a_render_tells_its_encoder_where_it_composites(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int | None] = []

    def opened(*arguments: Any, options: EncoderOptions, **more: Any) -> Any:
        seen.append(options.gpu)
        return VideoWriter(*arguments, options=options, **more)

    monkeypatch.setattr(room, "VideoWriter", opened)
    folder = small.small_character(tmp_path / "small")
    for device in ("cpu", "cuda"):
        render(folder, tmp_path / f"{device}.mp4", device=device, provider="cpu", frames=3)
    assert seen == [None, 0]
