"""What `verify` says of outputs that were damaged after they were written: nothing that is damaged is whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small

import gpupipe
from gpupipe.cli import main
from gpupipe.render.verify import verify

FRAMES = 20


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = small.small_character(tmp_path / "anna")
    np.save(folder / "aud_ave.npy", small.features(FRAMES))
    return folder


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("talk.mp4", {}),
        ("talk.mkv", {"encoders": 2, "crf": 35}),
        ("talk.mp4", {"encoder": "libx265", "encoders": 2}),
        ("talk.mkv", {"encoder": "libx265"}),
    ],
)
def test_lost_bytes_of_a_video(
    folder: Path, tmp_path: Path, name: str, options: dict[str, Any], capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / name
    gpupipe.render(folder, out, device="cpu", segment_frames=8, **options)
    found = verify(out)
    assert (found.frames, found.problems) == (FRAMES, [])
    whole = out.read_bytes()
    capfd.readouterr()
    for share in (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9):
        at = int(len(whole) * share)
        out.write_bytes(whole[:at] + bytes(512) + whole[at + 512 :])
        assert main(["verify", str(out)]) == 1, f"{share} of {name}"
        told = capfd.readouterr()
        assert "whole" not in told.out
        assert all(line.startswith(f"error: {out}: ") for line in told.err.splitlines())


@pytest.mark.parametrize("encoder", ["libsvtav1", "mpeg4"])
def test_other_codecs_are_whole_as_they_were_written(folder: Path, tmp_path: Path, encoder: str) -> None:
    gpupipe.render(folder, tmp_path / "talk.mp4", device="cpu", segment_frames=8, encoder=encoder)
    found = verify(tmp_path / "talk.mp4")
    assert (found.frames, found.problems) == (FRAMES, [])


@pytest.mark.parametrize("kind", ["jpg", "png"])
def test_images_that_end_early(folder: Path, tmp_path: Path, kind: Any, capfd: pytest.CaptureFixture[str]) -> None:
    gpupipe.render(folder, f"{tmp_path}/images/", device="cpu", frames=3, image_format=kind)
    assert main(["verify", f"{tmp_path}/images/"]) == 0
    assert capfd.readouterr().out.endswith("3 frames of 96x64; whole\n")
    image = tmp_path / "images" / f"frame_0001.{kind}"
    whole = image.read_bytes()
    spoiled = [whole[: len(whole) * share // 10] for share in (0, 1, 5, 9)] + [whole[:-1], whole[:-2]]
    spoiled += [whole + b"\0"] if kind == "jpg" else []
    for data in spoiled:
        image.write_bytes(data)
        assert main(["verify", f"{tmp_path}/images/"]) == 1
        assert capfd.readouterr().err == (
            f"error: {tmp_path}/images: frame_0001.{kind} cannot be decoded; render it again\n"
        )
