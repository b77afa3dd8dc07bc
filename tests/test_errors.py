"""What errors say."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import av
import pytest

from gpupipe.errors import reason


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/tmp/talk.mp4"), os.strerror(errno.ENOSPC)),
        (OSError("the handle is invalid"), "the handle is invalid"),
        (ValueError("  first line\n\tsecond   line\n"), "first line second line"),
        (RuntimeError(), "RuntimeError"),
        (ValueError(" \n"), "ValueError"),
        (KeyError("audio"), "'audio'"),
    ],
)
def test_the_reason_is_one_line(error: Exception, said: str) -> None:
    assert reason(error) == said


def test_the_reason_of_ffmpegs_errors_has_neither_number_nor_path(tmp_path: Path) -> None:
    (tmp_path / "talk.mp4").write_text("not a video\n" * 50)
    with pytest.raises(av.FFmpegError) as caught:
        av.open(str(tmp_path / "talk.mp4"))
    assert reason(caught.value) == "Invalid data found when processing input"
