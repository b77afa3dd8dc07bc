"""How many clients a server holds, as one HTML page that needs nothing from outside."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from html import escape
from typing import Any, Final

from gpupipe.report.plots import Bar, bars, legend, lines
from gpupipe.report.style import STYLE

NAMES: Final = {"served": "gpupipe serve", "alone": "a process for each talk"}

MEMORY: Final = {"rss": "memory, MB", "threads": "threads", "files": "open files"}


def serving_page(result: Mapping[str, Any]) -> str:
    """The page of what `python -m gpupipe.serve.load --json` writes."""
    title = "gpupipe serve: sessions that come and go" if "levels" in result else "gpupipe serve: talks in real time"
    parts = _soaked(result) if "levels" in result else _held(result)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<style>{STYLE}</style></head>\n<body><h1>{escape(title)}</h1>\n" + "\n".join(parts) + "\n</body></html>\n"
    )


def _held(result: Mapping[str, Any]) -> Iterator[str]:
    settings, machine = result["settings"], result["machine"]
    kinds = {kind: result[kind] for kind in NAMES if kind in result}
    yield (
        f"<p>One character, {settings['width']}x{settings['height']}, {settings['output']}, "
        f"{'over gRPC on the loopback' if settings['network'] else 'without a network'}; each client talks for "
        f"{settings['seconds']} s. {escape(machine['cpu'])}, {machine['cores']} cores, for the clients too. "
        "A frame is late that comes later than 0.6 s after its own time, or is left out for that.</p>"
    )
    yield "<h2>Talks that are held with less than 1 % of their frames late</h2>"
    yield bars(
        [Bar(NAMES[kind], [found["largest"]]) for kind, found in kinds.items()], unit="Talks.", title="talks held"
    )
    yield "<h2>Frames that are late</h2>"
    yield legend([NAMES[kind] for kind in kinds])
    yield _over_clients(kinds, "Percent of the frames", lambda each: 100 * each["late_share"])
    yield "<h2>From a frame's own time to its coming</h2><p class=quiet>The 99th of a hundred.</p>"
    yield legend([NAMES[kind] for kind in kinds])
    yield _over_clients(kinds, "Milliseconds", lambda each: each["latency_ms"][2])
    fills = [(str(each["clients"]), 100 * (each["batch_fill"] or 0.0)) for each in result["served"]["tried"]]
    yield "<h2>How full the batches are</h2>"
    yield lines({"": fills}, across="clients", unit="Percent of the places in batches", title="batch fill")
    if (told := result.get("overload")) is not None:
        yield (
            f"<h2>A fifth more than are held</h2><p>{told['clients']} clients came, {told['refused']} were refused, "
            f"within {told['refused_seconds'] * 1e3:.0f} ms. Of those inside, {100 * told['late_share']:.2f} % of "
            f"{told['frames']} frames were late.</p>"
        )


def _over_clients(kinds: Mapping[str, Any], unit: str, value: Any) -> str:
    every = sorted({each["clients"] for found in kinds.values() for each in found["tried"]})
    names = [str(clients) for clients in every]
    series = {
        NAMES[kind]: [(str(each["clients"]), value(each)) for each in found["tried"]] for kind, found in kinds.items()
    }
    # The first series sets the order of the categories: all of them, from few to many.
    ordered = {name: sorted(points, key=lambda point: names.index(point[0])) for name, points in series.items()}
    return lines(ordered, across="clients", unit=unit, title=unit, categories=names)


def _soaked(result: Mapping[str, Any]) -> Iterator[str]:
    levels = [each for each in result["levels"] if "rss" in each]
    yield "<p>" + escape(", ".join(f"{name}: {count}" for name, count in sorted(result["statuses"].items()))) + "</p>"
    for name, unit in MEMORY.items():
        points = [
            (str(each["sessions"]), each[name] / (1e6 if name == "rss" else 1))
            for each in levels[:: max(1, len(levels) // 8)]
        ]
        yield f"<h2>{escape(unit)}</h2>" + lines({unit: points}, across="sessions", unit=unit, title=unit)
