"""A list of jobs in a file: a JSON object a line, with the options of a render."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NoReturn, cast

from gpupipe.errors import GpupipeError, JobFileError, OptionError, reason
from gpupipe.options import JobKeywords, Option, from_json
from gpupipe.render.output import is_video

CHARACTER: Final = Option("path", "the character's folder", name="character")
LARGEST: Final = 1 << 26
"""Bytes of a file of jobs: a few hundred thousand."""
OUTPUT: Final = Option("path", "FILE.mp4, FILE.mkv, or a folder (ending in /) for images", name="output")


@dataclass(frozen=True)
class JobLine:
    """A line's job.

    Attributes:
        line: its number, from 1.
        character: the character's folder.
        output: a video, or a folder for images, then with a `/` at its end if the line has one.
        options: of the job; see `options.JobKeywords`.
    """

    line: int
    character: Path
    output: str
    options: JobKeywords


def read_jobs(path: Path, *, confined: bool = False) -> tuple[list[JobLine], dict[int, GpupipeError]]:
    """Read a file of jobs, such as

        {"character": "anna", "output": "out/a.mp4", "audio": "a.wav"}
        {"character": "anna", "output": "out/b/", "audio": "b.wav", "image_format": "png", "frames": 100}

    in UTF-8. Paths are relative to the file's folder. Empty lines are passed over.

    Args:
        path: the file.
        confined: take no path that leads out of the file's folder.

    Returns:
        The jobs in order, and an error for each line that is none, by its number; it names the file and the line.

    Raises:
        JobFileError: there is no such file, or it cannot be read.
    """
    try:
        if path.exists() and path.stat().st_size > LARGEST:
            raise JobFileError(
                f"larger than {LARGEST} bytes", file=path, value=path.stat().st_size, remedy="give the jobs in parts"
            )
        content = path.read_bytes()
    except OSError as error:
        remedy = "give a file with a JSON object a line"
        raise JobFileError(f"cannot be read: {reason(error)}", file=path, remedy=remedy) from error
    jobs: list[JobLine] = []
    faults: dict[int, GpupipeError] = {}
    lines_of: dict[str, int] = {}
    # Not by `splitlines`: JSON's text may hold other line ends than this one.
    for line, text in enumerate(content.removeprefix(b"\xef\xbb\xbf").split(b"\n"), 1):
        if not text.strip():
            continue
        try:
            job = _job(line, text, path.parent, confined=confined)
            first = lines_of.setdefault(os.path.normcase(os.path.abspath(job.output)), line)  # noqa: PTH100
            if first != line:
                remedy = "give each job its own"
                raise OptionError(f"is that of line {first} too", field="output", value=job.output, remedy=remedy)
        except GpupipeError as error:
            faults[line] = error.naming(f"{path}:{line}")
        else:
            jobs.append(job)
    return jobs, faults


def _job(line: int, text: bytes, folder: Path, *, confined: bool) -> JobLine:
    values = _parsed(text)
    for name in (CHARACTER.name, OUTPUT.name):
        if name not in values:
            raise JobFileError("missing", field=name, remedy="add it")
    character = CHARACTER.from_json(values.pop(CHARACTER.name), folder)
    given = values.pop(OUTPUT.name)
    output = str(OUTPUT.from_json(given, folder))
    if str(given).endswith(("/", os.sep)):
        output += "/"
    try:
        is_video(output)  # or a folder, or an error
    except OSError as error:  # a name that is too long
        raise OptionError(f"not a path: {reason(error)}", field="output", value=given, remedy="use another") from error
    job = JobLine(line, character, output, from_json(values, folder))
    if confined:
        for name, named in (("character", character), ("output", output), *job.options.items()):
            if isinstance(named, Path) or name == "output":
                _check_inside(name, os.fspath(cast("str | Path", named)), folder)
    return job


def _check_inside(name: str, path: str, folder: Path) -> None:
    """Raise for a path that leads out of a folder, by `..`, by its beginning, or by a link."""
    if not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder)):
        remedy = "name files below that folder"
        raise OptionError("leads out of the job file's folder", field=name, value=path, remedy=remedy)


def _parsed(text: bytes) -> dict[str, Any]:
    try:
        values = json.loads(text.decode("utf-8"), object_pairs_hook=_once, parse_constant=_refused)
    except UnicodeDecodeError as error:
        raise JobFileError("is not UTF-8", remedy="save the file as UTF-8") from error
    except json.JSONDecodeError as error:
        raise JobFileError(
            f"is no JSON: {error.msg} (column {error.colno})", remedy="write one object a line"
        ) from error
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, lists in lists in lists
        raise JobFileError("is no JSON that can be read", remedy="write one object a line") from error
    if not isinstance(values, dict):
        raise JobFileError("is no JSON object", value=values, remedy='write {"character": …, "output": …}')
    return values


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise JobFileError("a name is there twice", value=twice, remedy="leave one out")
    return values


def _refused(constant: str) -> NoReturn:
    raise JobFileError("is no JSON number", value=constant, remedy="write a number")
