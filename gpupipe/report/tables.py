"""A measurement, or several, as tables of text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from gpupipe.report.circumstances import circumstances
from gpupipe.report.results import EXACT, Change, Result, compare, differences_in_kind

TITLES = {
    "compose": "Compositing: model inputs, paste, hand-over in the encoder's pixel format",
    "infer": "Inference alone",
    "encode": "Encoding alone, to mp4",
    "render": "Whole render, to mp4",
}

STAGE_NAMES = {"infer": "predictions", "render": "finished frames"}
"""What a stage draws."""

QUALITY = "Reduced precisions: what they draw, against fp32"

TIMES, DASH = "\u00d7", "\u2013"

Table = list[list[str]]


def tables(result: Result) -> Iterator[tuple[str, Table]]:
    """The tables of a measurement: a title, and rows of cells, the first of which is the header."""
    for stage, rows in result["stages"].items():
        yield TITLES[stage], stage_table(rows)
    render = result["stages"].get("render")
    if render:
        yield "Parts of a whole render, ms a frame (share of the whole; gpupipe's overlap)", _parts_table(render)
    if result["sweep"]:
        yield "Whole renders over batches and workers", _sweep_table(result["sweep"])
    if result["memory"]:
        yield "Starting and memory, each way in a process of its own", _memory_table(result["memory"])
    if len(qualities := _quality_table(result)) > 1:
        yield QUALITY, qualities
    if result["floor"]["model_ms"]:
        yield "The least that the model takes, ms a frame: the larger counts", _floor_table(result["floor"]["model_ms"])
    if meaningless := [[way, found["meaningless"]] for way, found in result["ways"].items() if found["meaningless"]]:
        yield "Times that say nothing", [["way", "reason"], *meaningless]
    if result["absent"]:
        yield "Not here", [["way", "reason"], *([way, reason] for way, reason in result["absent"].items())]
    yield "Machine and settings", [["", ""], *([name, value] for name, value in circumstances(result))]


def classes(rows: Mapping[str, Any]) -> list[str]:
    """The classes of a stage's ways, what is exact first."""
    return sorted({row["class"] for row in rows.values()}, key=lambda name: (name != EXACT, name))


def stage_table(rows: Mapping[str, Any]) -> Table:
    """The table of one stage, class by class, the fastest first, what is not ranked last."""
    # The rows that are compared with most name the bases in their own order.
    compared = sorted(rows.values(), key=lambda row: -len(row["times_faster_than"]))
    bases = list(dict.fromkeys(base for row in compared for base in row["times_faster_than"]))
    order = classes(rows)
    with_classes = order != [EXACT]
    header = ["#", "way", "ms a frame", "differing pixels", "quartiles", "FPS", "CPU ms", f"{TIMES} floor"]
    if with_classes:
        header[1:4] = ["class", *header[1:4], "mouth PSNR, worst; SSIM"]
    table = [[*header, *(f"vs {base}" for base in bases)]]

    def place(item: tuple[str, Mapping[str, Any]]) -> tuple[Any, ...]:
        row = item[1]
        return row["rank"] is None, order.index(row["class"]), row["rank"], row["ms"]["median"]

    for way, row in sorted(rows.items(), key=place):
        ms, faster = row["ms"], row["times_faster_than"]
        floor = row["times_the_floor"]
        table.append(
            [
                str(row["rank"] or ("WRONG" if not row["right"] else DASH)),
                *[row["class"]] * with_classes,
                way,
                f"{ms['median']:.2f}",
                difference_cell(row),
                *[quality_cell(row)] * with_classes,
                f"{ms['q1']:.2f}{DASH}{ms['q3']:.2f}",
                f"{row['fps']:.1f}" if row["fps"] else "",
                f"{row['cpu_ms']:.2f}",
                f"{floor:.1f}{TIMES}" if floor and not row["meaningless"] else "",
                *(f"{faster[base]['median']:.2f}{TIMES}" if base in faster else "" for base in bases),
            ]
        )
    return table


def quality_cell(row: Mapping[str, Any]) -> str:
    """How near a reduced precision comes to the reference in the mouth region; nothing for what is compared exactly."""
    found = row["quality"]
    if found is None:
        return DASH
    return f"{found['psnr_mean']:.1f} dB, {found['psnr_worst']:.1f}; {found['ssim_mean']:.4f}"


def difference_cell(row: Mapping[str, Any]) -> str:
    """How many pixels differ from the reference, and by how much at most; nothing where nothing is computed."""
    if row["differing_pixels"] is None:
        return DASH
    levels = row["largest_difference"]
    return f"{row['differing_pixels']} (by {levels})" if row["differing_pixels"] else "0"


def _quality_table(result: Result) -> Table:
    """Of each way in a reduced precision: how its file was judged when it was made, and what was drawn here."""
    table = [["way", "what", "frames", "PSNR", "worst", "SSIM", "worst"]]

    def add(way: str, what: str, found: Mapping[str, Any]) -> None:
        numbers = (f"{found[key]:.1f} dB" for key in ("psnr_mean", "psnr_worst"))
        alike = (f"{found[key]:.4f}" for key in ("ssim_mean", "ssim_worst"))
        table.append([way, what, str(found["frames"]), *numbers, *alike])

    for way in result["ways"]:
        rows = {stage: rows[way] for stage, rows in result["stages"].items() if way in rows and rows[way]["drawn"]}
        for row in [*rows.values()][:1]:
            if row["class"] in result["precisions"]:
                add(way, "the file, when it was made", row["quality"])
        for stage, row in rows.items():
            add(way, f"{STAGE_NAMES[stage]} here", row["drawn"])
    return table


def _floor_table(floors: Mapping[str, Any]) -> Table:
    table = [["way", "operations", "bytes"]]
    for way, floor in floors.items():
        table.append([way, *(DASH if floor[kind] is None else f"{floor[kind]:.3f}" for kind in table[0][1:])])
    return table


def _parts_table(rows: Mapping[str, Any]) -> Table:
    names = list(next(iter(rows.values()))["parts"])
    table = [["way", *names, "whole"]]
    for way, row in rows.items():
        cells = [f"{part['ms']:.2f} ({part['share'] or 0:.0%})" for part in row["parts"].values()]
        table.append([way, *cells, f"{row['ms']['median']:.2f}"])
    return table


def _sweep_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    table = [["way", "batch", "workers", "FPS", "inference", "composite", "save", "total", "speed-up", ""]]
    for row in rows:
        times = (row["inference_ms"], row["composite_ms"], row["save_ms"], row["total_ms"])
        table.append(
            [
                row["way"],
                str(row["batch"]),
                str(row["workers"]),
                f"{row['fps']:.1f}",
                *(f"{ms:.2f} ms" for ms in times),
                f"{row['speedup']['median']:.2f}{TIMES}",
                "best" if row["best"] else "",
            ]
        )
    return table


def _memory_table(rows: Mapping[str, Any]) -> Table:
    table = [["way", "first frame", "loading", "peak resident", "of it cached frames", "on the device"]]
    for way, row in rows.items():
        sizes = [f"{row[name] / 1e6:.0f} MB" for name in ("peak_rss_bytes", "cache_bytes", "device_bytes")]
        first = row.get("first_frame_seconds")  # older measurements have none
        seconds = DASH if first is None else f"{first:.2f} s", f"{row['preload_seconds']:.2f} s"
        table.append([way, *seconds, *sizes])
    return table


def aligned(table: Table) -> str:
    """Cells in columns; numbers to the right.

    >>> print(aligned([["way", "ms"], ["a", "1.5"], ["bcd", "10.0"]]))
    way    ms
    a     1.5
    bcd  10.0
    """
    widths = [max(len(row[column]) for row in table) for column in range(len(table[0]))]
    numeric = [all(row[column][:1] in "0123456789" + DASH for row in table[1:]) for column in range(len(widths))]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(row, widths, numeric, strict=True)
        ).rstrip()
        for row in table
    )


def text(results: Sequence[tuple[str, Result]]) -> str:
    """One measurement's tables, or several measurements' side by side and what changed since the first.

    Args:
        results: measurements and their names.
    """
    if len(results) == 1:
        return "\n\n".join(f"{title}\n{aligned(table)}" for title, table in tables(results[0][1]))
    parts = [f"{title}\n{aligned(table)}" for title, table in side_by_side(results)]
    base, first = results[0]
    for name, result in results[1:]:
        for note in differences_in_kind(first, result):
            parts.append(f"note: {base} and {name} {note}")
        parts.append(f"{name} against {base}\n{aligned(comparison_table(compare(first, result)))}")
    return "\n\n".join(parts)


def side_by_side(results: Sequence[tuple[str, Result]]) -> Iterator[tuple[str, Table]]:
    """A table a stage: milliseconds a frame of every way in every measurement."""
    for stage, title in TITLES.items():
        ways = list(dict.fromkeys(way for _, result in results for way in result["stages"].get(stage, {})))
        if not ways:
            continue
        table = [["way", *(name for name, _ in results)]]
        for way in ways:
            rows = (result["stages"].get(stage, {}).get(way) for _, result in results)
            table.append([way, *(_median_cell(row) for row in rows)])
        yield f"{title}, ms a frame", table


def _median_cell(row: Mapping[str, Any] | None) -> str:
    if row is None:
        return DASH
    mark = " (WRONG)" if not row["right"] else " (says nothing)" if row["meaningless"] else ""
    if row["quality"] is not None:
        mark = f" ({row['quality']['psnr_mean']:.1f} dB){mark}"
    return f"{row['ms']['median']:.2f}{mark}"


def comparison_table(changes: Sequence[Change]) -> Table:
    """What changed, as cells."""
    reduced = ["quality"] if any(change.quality for change in changes) else []
    table = [["stage", "way", "before", "after", "change", "", *reduced]]
    for change in changes:
        times = f"{change.before:.2f} ms", f"{change.after:.2f} ms"
        cells = [change.stage, change.way, *times, f"{change.percent:+.1f} %", mark(change)]
        table.append(
            [*cells, *["{:.1f} to {:.1f} dB".format(*change.quality) if change.quality else ""] * len(reduced)]
        )
    return table


def mark(change: Change) -> str:
    """What a change amounts to, in words."""
    if change.broken:
        return "WRONG NOW"
    if not change.beyond_noise:
        return "within the noise"
    return "slower" if change.regression else "faster"
