"""A measurement, or several, as tables of text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from gpupipe.report.results import Change, Result, compare, differences_in_kind

TITLES = {
    "compose": "Compositing: model inputs, paste, hand-over in the encoder's pixel format",
    "infer": "Inference alone",
    "encode": "Encoding alone, to mp4",
    "render": "Whole render, to mp4",
}

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
        yield "Memory, each way in a process of its own", _memory_table(result["memory"])
    if meaningless := [[way, found["meaningless"]] for way, found in result["ways"].items() if found["meaningless"]]:
        yield "Times that say nothing", [["way", "reason"], *meaningless]
    if result["absent"]:
        yield "Not here", [["way", "reason"], *([way, reason] for way, reason in result["absent"].items())]
    yield "Machine and settings", [["", ""], *([name, value] for name, value in circumstances(result))]


def stage_table(rows: Mapping[str, Any]) -> Table:
    """The table of one stage, the fastest first, what is not ranked last."""
    # The rows that are compared with most name the bases in their own order.
    compared = sorted(rows.values(), key=lambda row: -len(row["times_faster_than"]))
    bases = list(dict.fromkeys(base for row in compared for base in row["times_faster_than"]))
    header = ["#", "way", "ms a frame", "differing pixels", "quartiles", "FPS", "CPU ms", f"{TIMES} floor"]
    table = [[*header, *(f"vs {base}" for base in bases)]]
    for way, row in sorted(rows.items(), key=lambda item: (item[1]["rank"] or len(rows) + 1, item[1]["ms"]["median"])):
        ms, faster = row["ms"], row["times_faster_than"]
        floor = row["times_the_floor"]
        place = str(row["rank"] or ("WRONG" if not row["right"] else DASH))
        table.append(
            [
                place,
                way,
                f"{ms['median']:.2f}",
                difference_cell(row),
                f"{ms['q1']:.2f}{DASH}{ms['q3']:.2f}",
                f"{row['fps']:.1f}" if row["fps"] else "",
                f"{row['cpu_ms']:.2f}",
                f"{floor:.1f}{TIMES}" if floor and not row["meaningless"] else "",
                *(f"{faster[base]['median']:.2f}{TIMES}" if base in faster else "" for base in bases),
            ]
        )
    return table


def difference_cell(row: Mapping[str, Any]) -> str:
    """How many pixels differ from the reference, and by how much at most; nothing where nothing is computed."""
    if row["differing_pixels"] is None:
        return DASH
    levels = row["largest_difference"]
    return f"{row['differing_pixels']} (by {levels})" if row["differing_pixels"] else "0"


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
    table = [["way", "loading", "peak resident", "of it cached frames", "on the device"]]
    for way, row in rows.items():
        sizes = [f"{row[name] / 1e6:.0f} MB" for name in ("peak_rss_bytes", "cache_bytes", "device_bytes")]
        table.append([way, f"{row['preload_seconds']:.2f} s", *sizes])
    return table


def circumstances(result: Result) -> list[tuple[str, str]]:
    """Machine, character and settings, named."""
    machine, settings, character = result["machine"], result["settings"], result["character"]
    gpu, host, model = machine["gpu"], result["floor"]["host"], result["floor"]["model"]
    encoder = settings["encoder"]
    return [
        ("CPU", f"{machine['cpu']}, {machine['cores']} cores" + _if("{} MHz", machine["cpu_mhz"])),
        ("GPU", f"{gpu['name']}, CUDA {machine['cuda_driver']}" if gpu else f"none: {machine['gpu_problem']}"),
        ("load", f"{machine['load']} at the start, {machine['load_at_end']} at the end"),
        ("system", f"{machine['system']}, Python {machine['python']}"),
        ("packages", ", ".join(f"{name} {version}" for name, version in machine["packages"].items())),
        ("character", f"{character['name']}, {character['width']}x{character['height']}, model {character['model']}"),
        ("frames", f"{settings['frames']}, {settings['runs']} runs in turn after a warm-up"),
        ("batch", f"{settings['batch']}{_batches(result)}"),
        ("workers", f"{settings['workers']} compositing threads where a way has them"),
        (
            "threads",
            f"model {settings['model_threads']}, OpenCV {settings['opencv_threads']}, encoder {encoder['threads']}; "
            "the same for every way",
        ),
        ("encoder", f"{encoder['encoder']}, crf {encoder['crf']}, preset {encoder['preset']}"),
        ("whole render", settings["included"]["render"]),
        ("copy", f"{host['copy_bytes_per_second'] / 1e9:.1f} GB/s read and written, one thread"),
        ("matrix", f"{host['flops_per_second'] / 1e9:.0f} GFLOP/s float32"),
        ("model", f"{model['macs'] / 1e9:.3f} GMAC a frame, {model['weight_bytes'] / 1e6:.1f} MB"),
        ("reproduce", settings["command"]),
    ]


def _batches(result: Result) -> str:
    """What the ways made of the batch that was asked for, if some could not have it."""
    ran = {way: row["batch"] for rows in result["stages"].values() for way, row in rows.items()}
    less = [f"{way} {batch}" for way, batch in ran.items() if batch < result["settings"]["batch"]]
    return f" asked for; in fact {', '.join(less)}" if less else ""


def _if(pattern: str, value: Any) -> str:
    return f", {pattern.format(value)}" if value is not None else ""


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
    return f"{row['ms']['median']:.2f}{mark}"


def comparison_table(changes: Sequence[Change]) -> Table:
    """What changed, as cells."""
    table = [["stage", "way", "before", "after", "change", ""]]
    for change in changes:
        times = f"{change.before:.2f} ms", f"{change.after:.2f} ms"
        table.append([change.stage, change.way, *times, f"{change.percent:+.1f} %", mark(change)])
    return table


def mark(change: Change) -> str:
    """What a change amounts to, in words."""
    if change.broken:
        return "WRONG NOW"
    if not change.beyond_noise:
        return "within the noise"
    return "slower" if change.regression else "faster"
