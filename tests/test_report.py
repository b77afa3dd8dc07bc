"""Reports: tables, the page, what changed between measurements, and exit codes."""

from __future__ import annotations

import copy
import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpupipe import cli
from gpupipe.errors import PackageError
from gpupipe.report.circumstances import circumstances
from gpupipe.report.page import html_page
from gpupipe.report.plots import Bar, bars, lines, nice_ticks
from gpupipe.report.results import Change, Result, compare, differences_in_kind, failures, load, load_all, wrong
from gpupipe.report.tables import DASH, aligned, mark, stage_table, tables, text
from gpupipe.trace import PARTS


def row(median: float, spread: float = 0.1, **other: Any) -> dict[str, Any]:
    """A way's row in a stage; quartiles `spread` of the median away."""
    low, high = median * (1 - spread), median * (1 + spread)
    return {
        "ms": {"median": median, "q1": low, "q3": high, "runs": [low, median, high]},
        "fps": 1000 / median, "wall_ms": median, "cpu_ms": median * 1.5, "pixel_format": "nv12", "batch": 8,
        "threads": 1, "class": "exact", "quality": None, "drawn": None, "compared_pixels": 1000,
        "differing_pixels": 0, "largest_difference": 0, "right": True,
        "meaningless": None, "rank": 1, "times_faster_than": {}, "floor_ms": 0.5, "times_the_floor": median / 0.5,
    } | other  # fmt: skip


def measurement() -> Result:
    """A whole measurement."""
    part = {"ms": 5.0, "share": 0.25}
    parts: dict[str, Any] = {
        "parts": dict.fromkeys(PARTS, part),
        "video_bytes": 1000,
    }
    faster = {"sequential": {"median": 4.0, "q1": 3.9, "q3": 4.1}}
    return {
        "schema": 2,
        "complete": True,
        "gpupipe": "0.1.0",
        "character": {"name": "talker", "model": "full.onnx", "frames_filmed": 100, "width": 1280, "height": 720,
                      "model_size": 64, "rectangle": [182, 182], "matrix": 2, "range": 0},
        "settings": {
            "frames": 100, "speech_frames": 100, "speech_repeats": 1, "feature_cache": "off", "runs": 5,
            "batch": 8, "workers": 2, "opencv_threads": 1, "model_threads": 2,
            "encoder": {"encoder": "libx264", "crf": 20, "preset": "veryfast", "threads": 4, "segment_frames": 250},
            "tolerance": {}, "command": "gpupipe bench talker",
            "included": {"compose": "inputs", "infer": "the model", "encode": "encoding", "render": "all"},
        },
        "machine": {"cpu": "A CPU", "cores": 2, "cpu_mhz": 2700, "memory_bytes": 1 << 34, "system": "Linux x86_64",
                    "python": "3.11.7", "load": 0.5, "load_at_end": 1.0, "gpu": None, "gpu_problem": "no driver",
                    "cuda_driver": None, "gpu_clocks": None, "packages": {"numpy": "2.4.6"}},
        "ways": {name: {"about": f"the way {name}", "pixel_format": "nv12", "meaningless": None, "notes": ["a note"]}
                 for name in ("sequential", "gpupipe-cpu-nv12")},
        "absent": {"pytorch": "not installed"},
        "precisions": {},
        "stages": {
            "compose": {"sequential": row(4.0, rank=2),
                        "gpupipe-cpu-nv12": row(1.0, rank=1, times_faster_than=faster)},
            "encode": {"sequential": row(9.0, differing_pixels=None, largest_difference=None, rank=1)},
            "render": {"sequential": row(20.0, **parts), "gpupipe-cpu-nv12": row(15.0, **parts)},
        },
        "floor": {"host": {"copy_bytes_per_second": 1.5e10, "threads_copy_bytes_per_second": 2.5e10,
                           "flops_per_second": 2e11}, "device": None,
                  "model": {"macs": 4_885_839_872, "activations": 170_663_936, "weight_bytes": 49_000_000},
                  "model_ms": {"sequential": {"operations": 48.858, "bytes": 29.2662}}, "bytes_a_frame": {}},
        "sweep": [
            {"way": "parallel", "batch": batch, "workers": workers, "fps": 10.0 * batch, "inference_ms": 1.0,
             "composite_ms": 2.0, "save_ms": 3.0, "total_ms": 6.0, "best": batch == 4,
             "speedup": {"median": float(batch), "q1": 1.0, "q3": 1.0}}
            for batch in (1, 4) for workers in (1, 2)
        ],
        "memory": {
            "sequential": {"preload_seconds": 1.5, "first_frame_seconds": 0.25, "peak_rss_bytes": 3e8,
                           "cache_bytes": 1e8, "device_bytes": 0}
        },
    }  # fmt: skip


LIKENESS = {"frames": 16, "psnr_mean": 39.52, "psnr_worst": 36.04, "ssim_mean": 0.98124, "ssim_worst": 0.97}
INT8 = "gpupipe-cpu-nv12-int8"


def reduced(psnr: float = LIKENESS["psnr_mean"], ms: float = 9.0) -> Result:
    """The measurement with a way in int8, faster than all that is exact."""
    result = measurement()
    part = {"parts": result["stages"]["render"]["sequential"]["parts"], "video_bytes": 900}
    result["stages"]["render"][INT8] = row(
        ms, rank=1, quality=LIKENESS | {"psnr_mean": psnr},
        drawn=LIKENESS | {"frames": 8, "psnr_worst": 41.27}, compared_pixels=None, differing_pixels=None,
        largest_difference=None, times_faster_than={"sequential": {"median": 2.22, "q1": 2.2, "q3": 2.3}}, **part,
    ) | {"class": "int8"}  # fmt: skip
    result["ways"][INT8] = result["ways"]["gpupipe-cpu-nv12"]
    result["precisions"]["int8"] = {"bytes": 40_000_000, "made_now": True, "quality": {}}
    result["floor"]["model_ms"][f"{INT8}-features"] = {"operations": None, "bytes": None}
    result["settings"] |= {"speech_frames": 40, "speech_repeats": 3}
    return result


def older() -> Result:
    """The measurement as it was written before."""
    result = measurement() | {"schema": 1}
    for rows in result["stages"].values():
        for each in rows.values():
            for name in ("class", "quality", "drawn"):
                del each[name]
    for name in ("speech_frames", "speech_repeats", "feature_cache"):
        del result["settings"][name]
    del result["floor"]["model_ms"], result["floor"]["host"]["threads_copy_bytes_per_second"]
    del result["floor"]["model"]["activations"], result["precisions"]
    return result


def slower(by: float, stage: str = "compose", way: str = "sequential") -> Result:
    """The measurement, with one time multiplied."""
    result = measurement()
    ms = result["stages"][stage][way]["ms"]
    for name in ("median", "q1", "q3"):
        ms[name] *= by
    return result


def test_no_change_is_within_the_noise() -> None:
    changes = compare(measurement(), measurement())
    assert len(changes) == 5
    assert all(change.percent == 0 and not change.regression for change in changes)


@pytest.mark.parametrize(
    ("by", "percent", "words"),
    [
        (1.15, 15, "within the noise"),  # quartiles 3.6 to 4.4, and 4.14 to 5.06
        (1.3, 30, "slower"),  # 4.68 to 5.72
        (0.9, -10, "within the noise"),
        (0.5, -50, "faster"),
    ],
)
def test_a_change_counts_beyond_the_noise(by: float, percent: float, words: str) -> None:
    (change,) = (c for c in compare(measurement(), slower(by)) if c.percent)
    assert (change.stage, change.way, change.percent, mark(change)) == ("compose", "sequential", percent, words)


def test_a_result_that_broke_is_a_regression_however_fast() -> None:
    after = slower(0.1)
    after["stages"]["compose"]["sequential"] |= {"right": False, "rank": None}
    broken = [change for change in compare(measurement(), after) if change.regression]
    assert [mark(change) for change in broken] == ["WRONG NOW"]
    assert broken[0].fails(1e9)
    assert wrong(after) == [("compose", "sequential")]


def test_what_is_not_in_both_or_says_nothing_is_not_compared() -> None:
    after = slower(3)
    after["stages"]["compose"]["sequential"]["meaningless"] = "a GPU in software"
    del after["stages"]["encode"]
    assert {(c.stage, c.way) for c in compare(measurement(), after)} == {
        ("compose", "gpupipe-cpu-nv12"), ("render", "sequential"), ("render", "gpupipe-cpu-nv12")
    }  # fmt: skip


@settings(deadline=None)
@given(st.floats(0.2, 5), st.floats(0, 200))
def test_what_fails(by: float, percent: float) -> None:
    results = [("a", measurement()), ("b", slower(by))]
    beyond = 4.0 * by * 0.9 > 4.0 * 1.1
    assert bool(failures(results, percent)) is (beyond and round((by - 1) * 100, 2) > percent)
    assert failures(results, None) == []


def save(folder: Path, name: str, result: Any) -> Path:
    path = folder / name
    path.write_text(json.dumps(result), "utf-8")
    return path


def test_exit_codes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before, after = save(tmp_path, "v1.json", measurement()), save(tmp_path, "v2.json", slower(1.4))
    assert cli.main(["report", str(before)]) == 0
    assert cli.main(["report", str(before), str(after)]) == 0, "nothing was asked to fail"
    assert cli.main(["report", str(before), str(after), "--fail-above", "50"]) == 0
    assert cli.main(["report", str(before), str(after), "--fail-above", "10"]) == 1
    assert cli.main(["report", str(after), str(before), "--fail-above", "10"]) == 0, "it became faster"
    out = capsys.readouterr().out
    assert "v2 against v1" in out
    assert re.search(r"compose +sequential +4\.00 ms +5\.60 ms +\+40\.0 % +slower", out)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "cannot be read"),
        ("{", "is no JSON"),
        ("[]", "is no measurement of this version"),
        ('{"schema": 99}', "schema: is no measurement of this version (got 99)"),
        ('{"schema": 1}', "gpupipe: missing"),
    ],
)
def test_files_that_are_no_measurements(content: str | None, words: str, tmp_path: Path) -> None:
    path = tmp_path / "some.json"
    if content is not None:
        path.write_text(content, "utf-8")
    with pytest.raises(PackageError, match=re.escape(words)) as caught:
        load(path)
    assert str(path) in str(caught.value)


def test_a_file_of_before_is_read_as_one_of_today(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = load(save(tmp_path, "old.json", older()))
    wanted = measurement()
    assert found["schema"] == 2
    assert (found["stages"], found["settings"]) == (wanted["stages"], wanted["settings"])
    assert (found["precisions"], found["floor"]["model_ms"]) == ({}, {})
    new = save(tmp_path, "new.json", reduced())
    assert cli.main(["report", str(tmp_path / "old.json")]) == 0
    assert "4.886 GMAC a frame, 49.0 MB" in capsys.readouterr().out
    assert cli.main(["report", str(tmp_path / "old.json"), str(new), "--html", str(tmp_path / "page.html")]) == 0
    out = capsys.readouterr().out
    assert "note: old and new differ in settings speech_repeats: 1 and 3" in out
    assert re.search(rf"{INT8} +\u2013 +9\.00 \(39\.5 dB\)", out)
    Page((tmp_path / "page.html").read_text("utf-8"))


def test_kept_results_can_be_read() -> None:
    for path in (Path(__file__).resolve().parents[1] / "benchmarks" / "results").glob("two-core-*.json"):
        assert text([(path.stem, load(path))])


def test_a_reduced_precision_stands_apart_with_its_quality() -> None:
    table = stage_table(reduced()["stages"]["render"])
    assert table[0][:6] == ["#", "class", "way", "ms a frame", "differing pixels", "mouth PSNR, worst; SSIM"]
    assert [line[:3] for line in table[1:]] == [
        ["1", "exact", "gpupipe-cpu-nv12"], ["1", "exact", "sequential"], ["1", "int8", INT8]
    ]  # fmt: skip
    assert table[-1][3:6] == ["9.00", "\u2013", "39.5 dB, 36.0; 0.9812"]
    assert [line[5] for line in table[1:3]] == ["\u2013"] * 2
    assert table[-1][-1] == "2.22\u00d7", "and is compared all the same"
    wrong_one = reduced()["stages"]["render"]
    wrong_one[INT8] |= {"right": False, "rank": None}
    assert stage_table(wrong_one)[-1][:3] == ["WRONG", "int8", INT8]
    found = dict(tables(reduced()))
    assert found["Reduced precisions: what they draw, against fp32"][1:] == [
        [INT8, "the file, when it was made", "16", "39.5 dB", "36.0 dB", "0.9812", "0.9700"],
        [INT8, "finished frames here", "8", "39.5 dB", "41.3 dB", "0.9812", "0.9700"],
    ]
    assert "Reduced precisions: what they draw, against fp32" not in dict(tables(measurement()))


def test_both_floors_are_shown() -> None:
    shown = dict(tables(reduced()))["The least that the model takes, ms a frame: the larger counts"]
    assert shown == [
        ["way", "operations", "bytes"], ["sequential", "48.858", "29.266"], [f"{INT8}-features", "\u2013", "\u2013"]
    ]  # fmt: skip


def test_speech_that_is_said_again_is_told() -> None:
    told = "the speech lasts 40 frames and is said 3 times"
    for shown in (text([("run", reduced())]), html_page([("run", reduced())])):
        assert told in shown
    assert "is said" not in text([("run", measurement())])


def test_quality_is_compared_too() -> None:
    """A reduced precision below its floor is wrong; above it, what became of it is told."""
    (change,) = (each for each in compare(reduced(), reduced(37.0)) if each.way == INT8)
    assert (change.quality, change.regression) == ((39.52, 37.0), False)
    shown = text([("a", reduced()), ("b", reduced(37.0))])
    assert re.search(rf"{INT8} +9\.00 ms +9\.00 ms +\+0\.0 % +within the noise +39\.5 to 37\.0 dB", shown)
    assert "quality" not in text([("a", measurement()), ("b", measurement())])
    after = reduced(30.0)
    after["stages"]["render"][INT8] |= {"right": False, "rank": None}
    assert [each.way for each in compare(reduced(), after) if each.broken] == [INT8]


def test_the_page_colours_classes() -> None:
    content = html_page([("run", reduced())])
    Page(content)
    assert '<li><span class="k0"></span>exact</li><li><span class="k3"></span>int8</li>' in content
    assert f">{INT8}, 39.5 dB</text>" in content
    assert '<span class="k3"></span>int8' not in html_page([("run", measurement())])


def test_equal_names_are_told_apart(tmp_path: Path) -> None:
    (tmp_path / "new").mkdir()
    paths = [save(tmp_path, "run.json", measurement()), save(tmp_path / "new", "run.json", measurement())]
    assert [name for name, _ in load_all(paths)] == ["run (1)", "run (2)"]


def test_other_machines_are_noted() -> None:
    other = measurement()
    other["machine"]["cpu"], other["settings"]["frames"] = "Another", 24
    assert differences_in_kind(measurement(), other) == [
        "differ in machine cpu: A CPU and Another",
        "differ in settings frames: 100 and 24",
    ]
    assert "note: a and b differ in machine cpu" in text([("a", measurement()), ("b", other)])


def test_the_correctness_column_stands_beside_the_time() -> None:
    rows = measurement()["stages"]["compose"]
    rows["sequential"] |= {"differing_pixels": 51234, "largest_difference": 7, "right": False, "rank": None}
    rows["software"] = row(0.1, rank=None, meaningless="a GPU in software")
    table = stage_table(rows)
    assert table[0][2:4] == ["ms a frame", "differing pixels"]
    assert [line[:4] for line in table[1:]] == [
        ["1", "gpupipe-cpu-nv12", "1.00", "0"],
        ["\u2013", "software", "0.10", "0"],
        ["WRONG", "sequential", "4.00", "51234 (by 7)"],
    ]


def test_tables_say_what_a_reader_needs() -> None:
    shown = text([("talker", measurement())])
    for words in ("differing pixels", "vs sequential", "4.00\u00d7", "not installed", "4.886 GMAC", "no driver",
                  "libx264, crf 20, preset veryfast", "gpupipe bench talker", "best", "300 MB"):  # fmt: skip
        assert words in shown, words
    assert all(len({len(line) for line in table}) == 1 for _, table in tables(measurement()))


def test_the_batch_is_the_one_that_ran() -> None:
    result = measurement()
    assert dict(circumstances(result))["batch"] == "8"
    result["stages"]["render"]["gpupipe-cpu-nv12"]["batch"] = 2
    assert dict(circumstances(result))["batch"] == "8 asked for; in fact gpupipe-cpu-nv12 2"


def test_columns_are_aligned() -> None:
    assert aligned([["way", "ms"], ["a", "1.5"], ["bcd", "10.0"]]) == "way    ms\na     1.5\nbcd  10.0"


class Page(HTMLParser):
    """Checks that tags are balanced; collects them, their attributes, and the text."""

    VOID = frozenset({"meta", "br"})

    def __init__(self, content: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text: list[str] = []
        self.feed(content)
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


@pytest.mark.parametrize("count", [1, 3])
def test_the_page_needs_nothing_from_outside(count: int) -> None:
    content = html_page([(f"run {number}", measurement()) for number in range(count)])
    found = Page(content)
    assert not {"script", "link", "img", "iframe", "object"} & set(found.tags)
    assert not {"src", "href", "srcset", "data"} & {name for name, _ in found.attributes}
    for reference in ("http:", "https:", "url(", "@import", "//"):
        assert reference not in content
    assert "viewport" in {value for _, value in found.attributes}
    # Three stages, the parts of a render, a sweep, the first frame and memory; with several, stages side by side too.
    assert found.tags.count("svg") == 7 * count + (3 if count > 1 else 0)


def test_the_page_holds_the_tables() -> None:
    shown = "".join(Page(html_page([("run", measurement())])).text)
    for words in ("differing pixels", "Compositing", "Whole render", "batch 4", "a note", "How to reproduce",
                  "gpupipe bench talker", "not installed", "Megabytes"):  # fmt: skip
        assert words in shown, words


def test_the_first_frame_is_told_where_it_was_measured() -> None:
    result = measurement()
    starting = next(table for title, table in tables(result) if title.startswith("Starting"))
    assert starting == [
        ["way", "first frame", "loading", "peak resident", "of it cached frames", "on the device"],
        ["sequential", "0.25 s", "1.50 s", "300 MB", "100 MB", "0 MB"],
    ]
    assert "The first frame" in Page(html_page([("run", result)])).text
    del result["memory"]["sequential"]["first_frame_seconds"]  # as in older files
    assert next(table for title, table in tables(result) if title.startswith("Starting"))[1][1] == DASH
    assert "The first frame" not in Page(html_page([("run", result)])).text


def test_names_are_text_in_the_page() -> None:
    result = measurement()
    result["character"]["name"] = '<b>&"bold"</b>'
    found = Page(html_page([("<i>", result)]))
    assert not {"b", "i"} & set(found.tags)
    assert '<b>&"bold"</b>' in "".join(found.text)


def test_a_page_of_one_stage() -> None:
    result = measurement()
    result["stages"] = {"compose": result["stages"]["compose"]}
    result["sweep"], result["memory"] = [], {}
    assert Page(html_page([("run", result)])).tags.count("svg") == 1
    other = copy.deepcopy(result)
    other["stages"] = {"compose": {"another": row(2.0)}}
    assert "another" in "".join(Page(html_page([("a", result), ("b", other)])).text)


def test_what_is_wrong_is_said_in_the_page() -> None:
    result = measurement()
    result["stages"]["compose"]["sequential"] |= {"right": False, "rank": None}
    assert '<td class="bad">WRONG</td>' in html_page([("run", result)])
    assert ">sequential, WRONG</text>" in html_page([("run", result)])


def test_bars_are_as_long_as_their_numbers() -> None:
    drawn = bars([Bar("a", [1.0, 3.0]), Bar("b", [2.0], mark=4.0, low=1.0, high=3.0)], unit="ms", title="times")
    rects = [tuple(map(float, found)) for found in re.findall(r'x="([\d.]+)" y="[\d.]+" width="([\d.]+)"', drawn)]
    (x1, w1), (x2, w2), (x3, w3) = rects
    assert w2 == pytest.approx(3 * w1, abs=0.2)
    assert w3 == pytest.approx(2 * w1, abs=0.2)
    assert x2 == pytest.approx(x1 + w1, abs=0.1)
    (at,) = re.findall(r'class="mark" d="M([\d.]+)', drawn)
    assert float(at) == pytest.approx(x3 + 4 * w1, abs=0.2)


def test_lines_go_up_with_their_values() -> None:
    drawn = lines({"one": [("1", 10.0), ("2", 20.0)]}, across="workers", unit="FPS", title="speed")
    points = [tuple(map(float, found)) for found in re.findall(r'cx="([\d.]+)" cy="([\d.]+)"', drawn)]
    assert points[0][0] < points[1][0]
    assert points[0][1] > points[1][1]


@given(st.floats(1e-6, 1e9))
def test_ticks_are_few_round_and_enough(longest: float) -> None:
    ticks = nice_ticks(longest)
    assert ticks[0] == 0
    assert ticks[-1] >= longest * (1 - 1e-6)
    assert 3 <= len(ticks) <= 8


def test_nothing_to_plot() -> None:
    assert nice_ticks(0) == [0.0, 1.0]
    Page(bars([], unit="ms", title="nothing"))


def test_the_bench_command_writes_what_it_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("gpupipe.bench.run", lambda options, say: say("going on") or measurement())
    json_file, html_file = tmp_path / "run.json", tmp_path / "run.html"
    assert cli.main(["bench", "--json", str(json_file), "--html", str(html_file)]) == 0
    captured = capsys.readouterr()
    assert captured.out == text([("talker", measurement())]) + "\n"
    assert captured.err == "going on\n"
    assert load(json_file) == measurement()
    assert html_file.read_text("utf-8").startswith("<!doctype html>")


def test_the_bench_command_fails_when_a_way_is_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = measurement()
    broken["stages"]["compose"]["sequential"] |= {"right": False, "rank": None}
    monkeypatch.setattr("gpupipe.bench.run", lambda options, say: broken)
    assert cli.main(["bench"]) == 1
    assert "WRONG" in capsys.readouterr().out


@pytest.mark.parametrize("option", ["--json", "--html"])
def test_a_folder_that_is_missing_is_found_before_measuring(
    option: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delattr("gpupipe.bench.run")
    assert cli.main(["bench", option, str(tmp_path / "none" / "file")]) == 1
    assert "no such folder" in capsys.readouterr().err


def test_python_m_gpupipe_report_is_the_command(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "gpupipe.report", str(save(tmp_path, "run.json", measurement()))]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "Whole render" in done.stdout


def test_a_change_in_words() -> None:
    assert mark(Change("compose", "a", 1.0, 2.0, 100.0, beyond_noise=True)) == "slower"
    assert Change("compose", "a", 1.0, 2.0, 100.0, beyond_noise=False).fails(0) is False
