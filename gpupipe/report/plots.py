"""Plots as inline SVG: stacked bars, bars against a mark, and lines. The page's style sheet gives them their colours.

Every plot is drawn `WIDTH` units wide and scales with the page, its units stand under it. Series are coloured
by the classes `c0` to `c5` (fills) and `l0` to `l5` (lines); text by `label`, `number` and `axis`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from math import ceil, floor, log10
from typing import NamedTuple

from gpupipe.report.style import COLOURS

WIDTH = 520

_LEFT, _RIGHT, _TOP, _AXIS = 4, 84, 2, 26
_NAME, _BAR, _GAP = 25, 15, 6


class Bar(NamedTuple):
    """One bar of a plot.

    Attributes:
        name: above it.
        parts: lengths, one for each series.
        mark: where a stroke goes across it, or None.
        low: begin of its whisker (a quartile), or None.
        high: end of its whisker.
        note: after its end, instead of its length.
    """

    name: str
    parts: Sequence[float]
    mark: float | None = None
    low: float | None = None
    high: float | None = None
    note: str | None = None


def bars(bars: Sequence[Bar], *, unit: str, title: str) -> str:
    """Horizontal bars from 0, their parts one after the other.

    Args:
        bars: from the top down.
        unit: of the lengths, and what strokes mean; written under the plot.
        title: for those who cannot see the plot.
    """
    longest = max((max(sum(bar.parts), bar.high or 0, bar.mark or 0) for bar in bars), default=0)
    ticks = nice_ticks(longest)
    scale = (WIDTH - _LEFT - _RIGHT) / (ticks[-1] or 1)
    bottom = _TOP + len(bars) * (_NAME + _BAR + _GAP)
    out = [_grid(_LEFT + tick * scale, _TOP, bottom, _number(tick)) for tick in ticks]
    for row, bar in enumerate(bars):
        # The name stands above its bar: beside it there is no room on a phone.
        y = _TOP + row * (_NAME + _BAR + _GAP) + _NAME
        out.append(_text(_LEFT + 2, y - 7, bar.name, "label", "start"))
        x = float(_LEFT)
        for series, part in enumerate(bar.parts):
            wide = part * scale
            out.append(f'<rect class="c{series % COLOURS}" x="{x:.1f}" y="{y}" width="{wide:.1f}" height="{_BAR}"/>')
            x += wide
        end = x
        if bar.low is not None and bar.high is not None:
            a, b, middle = _LEFT + bar.low * scale, _LEFT + bar.high * scale, y + _BAR / 2
            strokes = f"M{a:.1f} {middle}H{b:.1f}M{a:.1f} {middle - 4}v8M{b:.1f} {middle - 4}v8"
            out.append(f'<path class="whisker" d="{strokes}"/>')
            end = max(end, b)
        if bar.mark is not None:
            at = _LEFT + bar.mark * scale
            out.append(f'<path class="mark" d="M{at:.1f} {y - 3}v{_BAR + 6}"/>')
            end = max(end, at)
        out.append(_text(end + 7, y + _BAR - 3, bar.note or _number(sum(bar.parts)), "number", "start"))
    return _figure(out, bottom + _AXIS, title, unit)


def lines(
    series: Mapping[str, Sequence[tuple[str, float]]],
    *,
    across: str,
    unit: str,
    title: str,
    height: int = 190,
    categories: Sequence[str] | None = None,
) -> str:
    """Lines over evenly spaced categories, from 0 up.

    Args:
        series: points by name: category and value. Categories come in the order of their first appearance.
        across: what the categories are; written under the plot.
        unit: of the values; written under the plot.
        title: for those who cannot see the plot.
        height: of the plot's area, units.
        categories: all there are, in order; None: as they appear.
    """
    categories = categories or list(dict.fromkeys(name for points in series.values() for name, _ in points))
    ticks = nice_ticks(max((value for points in series.values() for _, value in points), default=0))
    left, right, top = 44, 12, 14
    step = (WIDTH - left - right) / max(1, len(categories))
    x = {name: left + (number + 0.5) * step for number, name in enumerate(categories)}

    def y(value: float) -> float:
        return top + height * (1 - value / (ticks[-1] or 1))

    out = [_text(left - 8, y(tick) + 4, _number(tick), "axis", "end") for tick in ticks]
    out += [f'<path class="grid" d="M{left} {y(tick):.1f}H{WIDTH - right}"/>' for tick in ticks]
    out += [_text(at, top + height + 22, name, "axis", "middle") for name, at in x.items()]
    for number, points in enumerate(series.values()):
        path = "L".join(f"{x[name]:.1f} {y(value):.1f}" for name, value in points)
        out.append(f'<path class="l{number % COLOURS}" d="M{path}"/>')
        colour = f"c{number % COLOURS}"
        out += [f'<circle class="{colour}" cx="{x[name]:.1f}" cy="{y(value):.1f}" r="4.5"/>' for name, value in points]
    return _figure(out, top + height + 30, title, f"{unit} over {across}.")


def legend(names: Sequence[str] | Mapping[int, str]) -> str:
    """What the colours stand for: of the first series and the following, or of those that are given."""
    numbered = names.items() if isinstance(names, Mapping) else enumerate(names)
    keys = "".join(f'<li><span class="k{n % COLOURS}"></span>{escape(name)}</li>' for n, name in numbered)
    return f'<ul class="legend">{keys}</ul>'


def nice_ticks(longest: float) -> list[float]:
    """Round numbers from 0 to at least `longest`, three to seven of them.

    >>> nice_ticks(23)
    [0.0, 5.0, 10.0, 15.0, 20.0, 25.0]
    >>> nice_ticks(0.37)
    [0.0, 0.1, 0.2, 0.3, 0.4]
    """
    if longest <= 0:
        return [0.0, 1.0]
    power = 10.0 ** floor(log10(longest))
    step = next(power * f for f in (0.1, 0.2, 0.25, 0.5, 1, 2) if longest / (power * f) <= 6)
    return [round(number * step, 10) for number in range(ceil(longest / step - 1e-9) + 1)]


def _number(value: float) -> str:
    return (
        f"{value:.0f}" if value >= 100 or value == round(value) else f"{value:.1f}" if value >= 10 else f"{value:.2g}"
    )


def _grid(x: float, top: float, bottom: float, text: str) -> str:
    return f'<path class="grid" d="M{x:.1f} {top}V{bottom}"/>{_text(x, bottom + 18, text, "axis", "middle")}'


def _text(x: float, y: float, text: str, kind: str, anchor: str) -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _figure(parts: Sequence[str], height: float, title: str, caption: str) -> str:
    return (
        f'<figure><svg viewBox="0 0 {WIDTH} {height:.0f}" role="img" aria-label="{escape(title, quote=True)}">'
        f"<title>{escape(title)}</title>{''.join(parts)}</svg><figcaption>{escape(caption)}</figcaption></figure>"
    )
