"""A measurement, or several, as one HTML page that needs nothing from outside."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape
from typing import Any

from gpupipe.report.circumstances import spoken
from gpupipe.report.plots import Bar, bars, legend, lines
from gpupipe.report.results import EXACT, Result, compare, differences_in_kind
from gpupipe.report.style import STYLE
from gpupipe.report.tables import DASH, TITLES, Table, classes, comparison_table, side_by_side, tables
from gpupipe.trace import FINISH, INFER, PASTE, PREPARE, SAVE, Stage

PART_NAMES: dict[Stage, str] = {
    PREPARE: "prepare inputs",
    INFER: "model",
    PASTE: "paste",
    SAVE: "convert and encode",
    FINISH: "flush and join",
}
WRONG_COLOUR = 4
CLASS_COLOURS = {EXACT: 0, "tf32": 1, "fp16": 2, "int8": 3}
"""Series of the plots."""


def html_page(results: Sequence[tuple[str, Result]]) -> str:
    """The page.

    Args:
        results: one measurement, or several with the one that the others are compared with first, and their names.
    """
    title = f"gpupipe bench: {', '.join(name for name, _ in results)}"
    parts = list(_several(results)) if len(results) > 1 else []
    for name, result in results:
        if len(results) > 1:
            parts.append(f"<h2>{escape(name)}</h2>")
        parts += _one(result)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<style>{STYLE}</style></head>\n<body><h1>{escape(title)}</h1>\n" + "\n".join(parts) + "\n</body></html>\n"
    )


def _one(result: Result) -> Iterator[str]:
    """The sections of one measurement."""
    character, settings = result["character"], result["settings"]
    yield (
        f"<p>{escape(character['name'])}, {character['width']}x{character['height']}, model "
        f"{escape(character['model'])}, {settings['frames']} frames, {settings['runs']} runs{spoken(settings)}. Every "
        "way's frames were compared with the reference before anything was timed; the ways ran in turn; times are "
        "medians, with quartiles, and ratios are taken within a run. A wrong result is not ranked.</p>"
    )
    if any(row["class"] != EXACT for rows in result["stages"].values() for row in rows.values()):
        yield (
            "<p>A reduced precision draws other pixels than the reference. It is ranked in a class of its own, and has "
            "its quality beside its time: PSNR and SSIM in the mouth region, on average and in the worst frame.</p>"
        )
    found = dict(tables(result))
    for stage, rows in result["stages"].items():
        yield f"<h2>{escape(TITLES[stage])}</h2><p class=quiet>{escape(settings['included'][stage])}.</p>"
        yield _table(found.pop(TITLES[stage]))
        if len(order := classes(rows)) > 1:
            yield legend({CLASS_COLOURS[name]: name for name in order})
        yield bars(
            [
                Bar(
                    way + _mark(row),
                    [0.0] * (CLASS_COLOURS[row["class"]] if row["right"] else WRONG_COLOUR) + [row["ms"]["median"]],
                    None if row["meaningless"] else row["floor_ms"],
                    row["ms"]["q1"],
                    row["ms"]["q3"],
                    _median(row),
                )
                for way, row in rows.items()
            ],
            unit="Milliseconds a frame. Thin whisker: quartiles. Thick stroke: the least this machine could take.",
            title=f"{TITLES[stage]}: milliseconds a frame by way, against the floor",
        )
    render = result["stages"].get("render")
    if render:
        yield "<h2>Where a whole render spends its time</h2>"
        yield "<p class=quiet>Stages of gpupipe run side by side, so that theirs add up to more than the whole.</p>"
        yield legend(list(PART_NAMES.values()))
        yield bars(
            [
                Bar(
                    way + _mark(row),
                    [row["parts"][part]["ms"] for part in PART_NAMES],
                    row["ms"]["median"],
                    note=_median(row),
                )
                for way, row in render.items()
            ],
            unit="Milliseconds a frame. Thick stroke, and number: the whole render.",
            title="Stage times of a whole render, stacked, by way",
        )
    if result["sweep"]:
        yield "<h2>Frames a second over batches and workers</h2>"
        yield from _sweep(result)
    if result["memory"]:
        yield from _starting(result["memory"])
        yield "<h2>Memory</h2>"
        yield legend(["cached frames", "everything else"])
        yield bars(
            [
                # On a GPU the frames are not in the host's memory.
                Bar(f"{way}, and {row['device_bytes'] / 1e6:.0f} on the GPU", [0, row["peak_rss_bytes"] / 1e6])
                if row["device_bytes"]
                else Bar(way, [row["cache_bytes"] / 1e6, (row["peak_rss_bytes"] - row["cache_bytes"]) / 1e6])
                for way, row in result["memory"].items()
            ],
            unit="Megabytes resident at the peak.",
            title="Peak resident memory by way, megabytes",
        )
    for title, table in found.items():
        kind = "facts" if not any(table[0]) else ""
        yield f"<h2>{escape(title)}</h2>{_table(table[1:] if kind else table, kind)}"
    yield "<h2>The ways</h2>"
    yield _table(
        [[way, "; ".join([entry["about"], *entry["notes"]])] for way, entry in result["ways"].items()], "facts"
    )
    yield f"<h2>How to reproduce</h2><p><code>{escape(settings['command'])} --json FILE --html FILE</code></p>"


def _starting(rows: dict[str, Any]) -> Iterator[str]:
    """How long the first frame takes where nothing is loaded; nothing of measurements that do not tell."""
    if any("first_frame_seconds" not in row for row in rows.values()):
        return
    yield "<h2>The first frame</h2>"
    yield bars(
        [Bar(way, [row["first_frame_seconds"]], row["preload_seconds"]) for way, row in rows.items()],
        unit="Seconds from where nothing is open to the first finished frame. Thick stroke: all frames are loaded.",
        title="Seconds to the first frame by way",
    )


def _several(results: Sequence[tuple[str, Result]]) -> Iterator[str]:
    """Measurements side by side, and what changed since the first."""
    names = [name for name, _ in results]
    found = dict(side_by_side(results))
    for (title, table), stage in zip(found.items(), [s for s in TITLES if _has(results, s)], strict=True):
        yield f"<h2>{escape(title)}</h2>{legend(names)}"
        plotted = []
        for way in (row[0] for row in table[1:]):
            for number, (name, result) in enumerate(results):
                row = result["stages"].get(stage, {}).get(way)
                if row is not None:
                    ms = row["ms"]
                    parts = [0.0] * number + [ms["median"]]  # the colour of its place among the measurements
                    plotted.append(Bar(f"{way}, {name}{_mark(row)}", parts, None, ms["q1"], ms["q3"], _median(row)))
        yield bars(plotted, unit="Milliseconds a frame. Thin whisker: quartiles.", title=title)
        yield _table(table)
    base, first = results[0]
    for name, result in results[1:]:
        yield f"<h2>{escape(name)} against {escape(base)}</h2>"
        for note in differences_in_kind(first, result):
            yield f"<p>They {escape(note)}.</p>"
        yield _table(comparison_table(compare(first, result)))


def _has(results: Sequence[tuple[str, Result]], stage: str) -> bool:
    return any(result["stages"].get(stage) for _, result in results)


def _median(row: dict[str, Any]) -> str:
    """The number after a bar."""
    return f"{row['ms']['median']:.2f}"


def _mark(row: dict[str, Any]) -> str:
    """What to know of a bar, after its name."""
    if not row["right"]:
        return ", WRONG"
    if row["meaningless"]:
        return ", times say nothing"
    return "" if row["quality"] is None else f", {row['quality']['psnr_mean']:.1f} dB"


def _sweep(result: Result) -> Iterator[str]:
    for way in dict.fromkeys(row["way"] for row in result["sweep"]):
        rows = [row for row in result["sweep"] if row["way"] == way]
        across, each = ("workers", "batch") if len({row["workers"] for row in rows}) > 1 else ("batch", "workers")
        series = {
            f"{each} {value}": [(str(row[across]), row["fps"]) for row in rows if row[each] == value]
            for value in dict.fromkeys(row[each] for row in rows)
        }
        yield f"<h3>{escape(way)}</h3>{legend(list(series))}"
        over = {"workers": "compositing threads", "batch": "frames in a batch"}[across]
        yield lines(series, across=over, unit="Frames a second", title=f"{way}: FPS over {over}")


def _table(table: Table, kind: str = "") -> str:
    """Cells as a table; columns of numbers to the right, what is wrong or slower in red."""
    head, body = (None, table) if kind else (table[0], table[1:])
    numeric = [all(row[c][:1] in "0123456789+-" + DASH for row in body) for c in range(len(table[0]))]

    def cells(row: Sequence[str], tag: str) -> str:
        out = []
        for text, right in zip(row, numeric, strict=True):
            names = ["n"] * (right and not kind)
            names += ["bad"] * (text in ("WRONG", "WRONG NOW", "slower")) + ["good"] * (text in ("faster", "best"))
            kinds = f' class="{" ".join(names)}"' if names else ""
            out.append(f"<{tag}{kinds}>{escape(text)}</{tag}>")
        return f"<tr>{''.join(out)}</tr>"

    rows = "".join(cells(row, "td") for row in body)
    top = "" if head is None else f"<thead>{cells(head, 'th')}</thead>"
    return f'<div class="scroll"><table class="{kind}">{top}<tbody>{rows}</tbody></table></div>'
