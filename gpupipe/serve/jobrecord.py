"""What is known of a job, and kept in its folder."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Literal, get_args

from gpupipe.render.durable import replace, sync, sync_folder

ID: Final = re.compile(r"[A-Za-z0-9_-]{24}", re.ASCII)
"""A job's name: 18 random bytes, so that nobody guesses another's."""

RECORD: Final = "job.json"

Status = Literal["waiting", "running", "done", "failed"]


@dataclass(frozen=True)
class JobOptions:
    """How a job is rendered, as `gpupipe render` calls it.

    Attributes:
        start_frame: position in the ping-pong order to start at.
        frames: the most frames; None: all of the speech.
        sound: whether the video has it.
        crf: constant quality; None: the encoder's default.
    """

    start_frame: int = 0
    frames: int | None = None
    sound: bool = True
    crf: int | None = None


@dataclass(frozen=True)
class JobRecord:
    """A job.

    Attributes:
        id: its name.
        character: who speaks.
        options: how.
        status: where it stands.
        created: when it was taken, seconds since 1970; likewise
        started: when it was last begun;
        ended: when it was finished, well or not.
        done: frames written so far.
        total: frames in all; 0 before that is known.
        error: why it failed.
    """

    id: str
    character: str
    options: JobOptions
    status: Status = "waiting"
    created: float = 0.0
    started: float | None = None
    ended: float | None = None
    done: int = 0
    total: int = 0
    error: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """The same as JSON values."""
        return asdict(self)


def read_record(folder: Path) -> JobRecord:
    """What is kept in a job's folder.

    Raises:
        FileNotFoundError: nothing is.
        OSError: it cannot be read.
        ValueError: it is no record of this job.
    """
    try:
        found = json.loads((folder / RECORD).read_text("utf-8"))
        record = JobRecord(**found | {"options": JobOptions(**found["options"])})
    except (TypeError, KeyError) as error:
        raise ValueError(f"{folder / RECORD} is no job") from error
    if record.id != folder.name or record.status not in get_args(Status):
        raise ValueError(f"{folder / RECORD} is another job's")
    return record


def write_record(folder: Path, record: JobRecord) -> None:
    """Keep it, so that a loss of power leaves this or what was there.

    Raises:
        OSError: the disk.
    """
    written = folder / f".{RECORD}"
    written.write_text(json.dumps(record.as_dict(), indent=1), "utf-8")
    sync(written)
    replace(written, folder / RECORD)
    sync_folder(folder)
