"""Files of jobs: what is read, and a line for every fault."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gpupipe.errors import JobFileError
from gpupipe.options import JobKeywords, OutputOptions, options_of, split
from gpupipe.render.jobfile import JobLine, read_jobs


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "jobs" / "list.jsonl"


def write(file: Path, *lines: str | bytes | dict[str, Any], end: bytes = b"\n") -> Path:
    file.parent.mkdir(exist_ok=True)
    texts = [json.dumps(line) if isinstance(line, dict) else line for line in lines]
    file.write_bytes(b"".join((text.encode() if isinstance(text, str) else text) + end for text in texts))
    return file


def test_jobs(file: Path) -> None:
    write(
        file,
        {"character": "anna", "output": "a.mp4", "audio": "speech/a.wav", "start_frame": 3, "sound": False},
        "",
        "   ",
        {"output": "/elsewhere/b/", "character": "../bert", "features": "/f.npy", "image_format": "png", "crf": None},
        '{"character": "\u2028 角色", "output": "\u0085.mkv"}',
    )
    here = file.parent
    jobs, faults = read_jobs(file)
    assert faults == {}
    assert jobs == [
        JobLine(
            1,
            here / "anna",
            str(here / "a.mp4"),
            {"audio": here / "speech" / "a.wav", "start_frame": 3, "sound": False},
        ),
        JobLine(
            4,
            here / "../bert",
            str(Path("/elsewhere/b")) + "/",
            {"features": Path("/f.npy"), "image_format": "png", "crf": None},
        ),
        JobLine(5, here / "\u2028 角色", str(here / "\u0085.mkv"), {}),
    ]
    engine, _, speech, output = split(jobs[1].options, JobKeywords)
    assert (speech.features, output) == (Path("/f.npy"), OutputOptions(image_format="png"))
    assert engine.device == "auto"


def test_a_file_as_windows_writes_it(file: Path) -> None:
    job = {"character": "anna", "output": "a.mp4"}
    write(file, b"\xef\xbb\xbf" + json.dumps(job).encode(), {**job, "output": "b.mp4"}, end=b"\r\n")
    jobs, faults = read_jobs(file)
    assert ([job.line for job in jobs], faults) == ([1, 2], {})
    assert jobs[1].output == str(file.parent / "b.mp4")


def test_no_jobs(file: Path) -> None:
    assert read_jobs(write(file)) == ([], {})
    assert read_jobs(write(file, "", "\t")) == ([], {})


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    for path in (tmp_path / "none.jsonl", tmp_path):
        with pytest.raises(JobFileError) as caught:
            read_jobs(path)
        assert str(caught.value).startswith(f"{path}: cannot be read: ")
        assert str(caught.value).endswith("; give a file with a JSON object a line")


KNOWN = ", ".join(options_of(JobKeywords))


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "is no JSON: Expecting property name enclosed in double quotes (column 2); write one object a line"),
        ("# a comment", "is no JSON: Expecting value (column 1); write one object a line"),
        ('{"a": 1} {"b": 2}', "is no JSON: Extra data (column 10); write one object a line"),
        (b'{"character": "\xff"}', "is not UTF-8; save the file as UTF-8"),
        ("[1, 2]", 'is no JSON object (got [1, 2]); write {"character": …, "output": …}'),
        ("null", 'is no JSON object (got None); write {"character": …, "output": …}'),
        ("[" * 100_000, "is no JSON that can be read; write one object a line"),
        ("1" * 100_000, "is no JSON that can be read; write one object a line"),
        ('{"frames": NaN}', "is no JSON number (got 'NaN'); write a number"),
        ('{"frames": 1, "frames": 2}', "a name is there twice (got 'frames'); leave one out"),
        ({}, "character: missing; add it"),
        ({"character": "c"}, "output: missing; add it"),
        ({"character": None, "output": "o.mp4"}, "character: not a path (got None); give the name of a file"),
        ({"character": "c", "output": ""}, "output: not a path (got ''); give the name of a file"),
        ({"character": "c", "output": "a\0.mp4"}, "output: not a path (got 'a\\x00.mp4'); give the name of a file"),
        (
            {"character": "c", "output": "o.avi"},
            "output: neither a video nor a folder (got '.avi'); "
            "end it in .mp4, .mkv for a video, or in / for a folder of images",
        ),
        (
            {"character": "c", "output": "x" * 300},
            f"output: not a path: File name too long (got {'x' * 300!r}); use another",
        ),
        (
            {"character": "c", "output": "o.mp4", "device": "cpu"},
            "device: is the same for all jobs (got 'cpu'); give it on the command line",
        ),
        (
            {"character": "c", "output": "o.mp4", "max_memory": 1},
            "max_memory: is the same for all jobs (got 1); give it on the command line",
        ),
        (
            {"character": "c", "output": "o.mp4", "--batch": 3},
            "'--batch': no such option; write batch",
        ),
        ({"character": "c", "output": "o.mp4", "colour": "red"}, f"colour: no such option; there are {KNOWN}"),
        (
            {"character": "c", "output": "o.mp4", "batch": "8"},
            "batch: not a whole number (got '8'); give 1 to 512, or auto",
        ),
        (
            {"character": "c", "output": "o.mp4", "batch": 8.0},
            "batch: not a whole number (got 8.0); give 1 to 512, or auto",
        ),
        ({"character": "c", "output": "o.mp4", "sound": 0}, "sound: neither true nor false (got 0)"),
    ],
)
def test_a_line_that_is_no_job(file: Path, line: Any, said: str) -> None:
    good = [{"character": "c", "output": name} for name in ("1.mp4", "2.mp4")]
    jobs, faults = read_jobs(write(file, good[0], line, good[1]))
    assert [job.line for job in jobs] == [1, 3]
    (fault,) = faults.values()
    assert str(fault) == fault.on_command_line() == f"{file}:2: {said}"


def test_an_output_of_two_jobs(file: Path) -> None:
    names = ["a.mp4", "b/", "../jobs/a.mp4", "b", str(file.parent / "a.mp4"), "A.mkv"]
    (file.parent / "b").mkdir(parents=True)
    jobs, faults = read_jobs(write(file, *({"character": "c", "output": name} for name in names)))
    assert [job.line for job in jobs] == [1, 2, 6]
    assert [str(fault) for fault in faults.values()] == [
        f"{file}:{line}: output: is that of line {first} too (got {str(file.parent / name)!r}); give each job its own"
        for line, first, name in ((3, 1, "../jobs/a.mp4"), (4, 2, "b"), (5, 1, "a.mp4"))
    ]


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(), inner, max_size=2),
    max_leaves=4,
)
OBJECTS = st.dictionaries(st.sampled_from(["character", "output", *options_of(JobKeywords)]) | st.text(), VALUES)
LINES = st.one_of(
    st.binary(),
    st.text().map(lambda text: text.encode("utf-8", "surrogatepass")),
    VALUES.map(lambda value: json.dumps(value).encode()),
    OBJECTS.map(lambda value: json.dumps(value).encode()),
    OBJECTS.map(lambda value: json.dumps({"character": "c", "output": "o.mp4"} | value).encode()),
    OBJECTS.map(lambda value: json.dumps({"character": "c", "output": "o/"} | value)[:-1].encode()),
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.lists(LINES, max_size=6))
def test_whatever_is_in_a_line_it_is_a_job_or_a_line_of_error(file: Path, lines: list[bytes]) -> None:
    jobs, faults = read_jobs(write(file, *lines))
    content = [text for line in lines for text in line.split(b"\n")]
    numbers = [number for number, text in enumerate(content, 1) if text.strip()]
    if content and content[0].startswith(b"\xef\xbb\xbf"):
        return
    told = [int(str(fault).removeprefix(f"{file}:").split(":")[0]) for fault in faults.values()]
    assert sorted([*told, *(job.line for job in jobs)]) == numbers
    assert all("\n" not in str(fault) for fault in faults.values())
    for job in jobs:
        split(job.options, JobKeywords)
        assert json.loads(content[job.line - 1])["character"]
