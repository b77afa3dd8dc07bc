"""What the simulated fleet has answered, in tables and pictures."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from gpupipe.report.plots import Bar, bars, legend, lines
from gpupipe.report.style import COLOURS, STYLE

Rows = Sequence[dict[str, Any]]


def _pair(row: dict[str, Any], name: str, unit: str) -> str:
    found = row["found"]
    return f"{found[f'{name}_median']:.1f} · {found[f'{name}_p99']:.1f} {unit}"


def _lost_each(row: dict[str, Any]) -> str:
    found = row["found"]
    talks = found["interrupted"] - found["cut_off"]
    return f"{found['lost_frames'] / talks:.0f}" if talks > 0 else ""


COLUMNS: dict[str, tuple[tuple[str, Callable[[dict[str, Any]], str]], ...]] = {
    "policies": (
        ("GPUs", lambda row: f"{row['case']['nodes']:,}"),
        ("router", lambda row: row["case"]["policy"]),
        ("talk fps", lambda row: f"{row['found']['talk_fps']:,.0f}"),
        ("job fps", lambda row: f"{row['found']['job_fps']:,.0f}"),
        ("loads for each who came", lambda row: f"{row['found']['loads_share']:.3f}"),
        ("a talk waits, median · p99", lambda row: _pair(row, "start", "s")),
        ("a job takes, median · p99", lambda row: _pair(row, "turnaround", "s")),
        ("late", lambda row: f"{row['found']['late']:.2%}"),
        ("refused", lambda row: f"{row['found']['refused']:.2%}"),
    ),
    "cache": (
        ("memory for characters", lambda row: f"{row['case']['gb']:.0f} GB"),
        ("router", lambda row: row["case"]["policy"]),
        ("loads for each who came", lambda row: f"{row['found']['loads_share']:.3f}"),
        ("a talk waits, median · p99", lambda row: _pair(row, "start", "s")),
        ("refused", lambda row: f"{row['found']['refused']:.2%}"),
    ),
    "load": (
        ("models", lambda row: "one each" if row["case"]["own_models"] else "shared"),
        ("talks want", lambda row: f"{row['case']['load']:.0%}"),
        ("refused", lambda row: f"{row['found']['refused']:.2%}"),
        ("late", lambda row: f"{row['found']['late']:.2%}"),
        ("talk fps", lambda row: f"{row['found']['talk_fps']:,.0f}"),
        ("job fps", lambda row: f"{row['found']['job_fps']:,.0f}"),
        ("GPUs busy", lambda row: f"{row['found']['busy']:.0%}"),
        ("a job takes, median · p99", lambda row: _pair(row, "turnaround", "s")),
    ),
    "failure": (
        ("talks want", lambda row: f"{row['case']['load']:.0%}"),
        ("GPUs lost", lambda row: f"{row['case']['killed']}"),
        ("talks interrupted", lambda row: f"{row['found']['interrupted']:,}"),
        ("that found no other", lambda row: f"{row['found']['cut_off']:,}"),
        ("talk frames lost", lambda row: f"{row['found']['lost_frames']:,.0f}"),
        ("for each that found one", _lost_each),
        ("job frames drawn again", lambda row: f"{row['found']['redrawn_frames']:,.0f}"),
        ("loads", lambda row: f"{row['found']['loads']:,}"),
        ("late, of all", lambda row: f"{row['found']['late']:.3%}"),
        ("refused", lambda row: f"{row['found']['refused']:.2%}"),
    ),
}
"""Of each scene, the columns of its table."""


def table(scene: str, rows: Rows) -> str:
    """A scene's rows as a Markdown table."""
    columns = COLUMNS[scene]
    lines = ["| " + " | ".join(name for name, _ in columns) + " |", "|---" * len(columns) + "|"]
    lines += ["| " + " | ".join(text(row) for _, text in columns) + " |" for row in rows if row["scene"] == scene]
    return "\n".join(lines) + "\n"


def filled(text: str, tables: Mapping[str, str]) -> str:
    """A Markdown text, its tables replaced: what stands between `<!-- table: NAME -->` and the next `<!-- end -->`.

    >>> filled("a\\n<!-- table: b -->\\nold\\n<!-- end -->\\nc", {"b": "new\\n"})
    'a\\n<!-- table: b -->\\nnew\\n<!-- end -->\\nc'
    """
    for name, new in tables.items():
        begin = f"<!-- table: {name} -->\n"
        before, rest = text.split(begin)
        text = before + begin + new + rest[rest.index("<!-- end -->") :]
    return text


def pictures(rows: Rows) -> dict[str, str]:
    """Plots by name, each a figure with its legend."""

    def of(scene: str) -> list[dict[str, Any]]:
        return [row for row in rows if row["scene"] == scene]

    found: dict[str, str] = {}
    cached: dict[str, list[tuple[str, float]]] = {}
    for row in of("cache"):
        points = cached.setdefault(row["case"]["policy"], [])
        points.append((f"{row['case']['gb']:.0f}", 1000 * row["found"]["loads_share"]))
    found["cache"] = legend(list(cached)) + lines(
        cached,
        across="gigabytes for characters on each GPU",
        unit="Characters loaded for 1,000 who came",
        title="Loads over memory, by router",
    )
    largest = max(row["case"]["nodes"] for row in of("policies"))
    found["policies"] = bars(
        [
            Bar(row["case"]["policy"], [1000 * row["found"]["loads_share"]])
            for row in of("policies")
            if row["case"]["nodes"] == largest
        ],
        unit=f"Characters loaded for 1,000 who came, on {largest:,} GPUs.",
        title="Loads by router",
    )
    loads: dict[str, list[tuple[str, float]]] = {}
    for row in of("load"):
        name = "a model for each character" if row["case"]["own_models"] else "one model for all"
        loads.setdefault(name, []).append((f"{row['case']['load']:.0%}", 100 * row["found"]["refused"]))
    found["load"] = legend(list(loads)) + lines(
        loads,
        across="what talks want of the GPUs, if batches were full",
        unit="Talks refused, %",
        title="Refusals over load",
    )
    return found


def page(rows: Rows) -> str:
    """One HTML page that needs nothing from outside."""
    parts = [f"<h2>{name}</h2>{picture}" for name, picture in pictures(rows).items()]
    return (
        f"<!doctype html><meta charset=utf-8><title>A simulated fleet</title><style>{STYLE}</style>"
        f"<h1>A simulated fleet</h1>{''.join(parts)}\n"
    )


def drawing(picture: str) -> str:
    """A plot as an SVG file of its own, its legend below it, in the page's light colours."""
    inner = re.search(r'<svg viewBox="0 0 (\d+) (\d+)"[^>]*>(.*)</svg>', picture, re.DOTALL)
    caption = re.search(r"<figcaption>(.*)</figcaption>", picture)
    assert inner is not None
    assert caption is not None
    wide, high = int(inner[1]), int(inner[2])
    colours = dict(re.findall(r"--(\w+): (#\w+)", STYLE.split("@media")[0]))
    rules = [
        f"text {{ fill: {colours['text']}; font: 12px system-ui, sans-serif }}",
        f".axis {{ fill: {colours['quiet']}; font-size: 11px }}",
        f".grid {{ stroke: {colours['line']}; fill: none }}",
    ]
    for n in range(COLOURS):
        colour = colours[f"c{n}"]
        rules.append(f".c{n} {{ fill: {colour} }} .l{n} {{ stroke: {colour}; fill: none; stroke-width: 2 }}")
    below = [f'<text class="axis" x="8" y="{high + 14}">{caption[1]}</text>']
    for row, (number, name) in enumerate(re.findall(r'<span class="k(\d)"></span>([^<]*)', picture)):
        y = high + 34 + 18 * row
        below.append(f'<rect class="c{number}" x="8" y="{y - 10}" width="11" height="11" rx="2"/>')
        below.append(f'<text x="26" y="{y}">{name}</text>')
    high += 24 + 18 * (len(below) // 2)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {wide} {high}" width="{wide}" height="{high}">'
        f'<style>{" ".join(rules)}</style><rect width="{wide}" height="{high}" fill="{colours["back"]}"/>'
        f"{inner[3]}{''.join(below)}</svg>\n"
    )
