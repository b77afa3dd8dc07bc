"""The style sheet of the page: light and dark, wide and narrow."""

COLOURS = 6

_LIGHT = """--back: #fff; --text: #1c2024; --quiet: #5b636b; --line: #d9dde1; --bad: #b3261e; --good: #1b6e3c;
  --c0: #2f6db5; --c1: #c8761a; --c2: #2d8a5b; --c3: #8a56a8; --c4: #b8405e; --c5: #63707c"""
_DARK = """--back: #15181b; --text: #e6e9ec; --quiet: #a3abb3; --line: #363c42; --bad: #ff8a80; --good: #7fd6a2;
  --c0: #6fa8e8; --c1: #e8a35a; --c2: #66c795; --c3: #bd8fd9; --c4: #ea839c; --c5: #a0abb5"""

STYLE = (
    f":root {{ color-scheme: light dark; {_LIGHT} }}\n"
    f"@media (prefers-color-scheme: dark) {{ :root {{ {_DARK} }} }}\n"
    + """* { box-sizing: border-box }
body { margin: 0 auto; padding: 1.5rem 1rem 4rem; max-width: 64rem; background: var(--back); color: var(--text);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif }
h1 { font-size: 1.6rem; line-height: 1.2; margin: 0 0 .4rem }
h2 { font-size: 1.2rem; line-height: 1.3; margin: 2.8rem 0 .4rem }
h3 { font-size: 1rem; margin: 1.6rem 0 .3rem }
p { margin: .3rem 0 .8rem; max-width: 46rem }
.quiet, figcaption { color: var(--quiet) }
.scroll { overflow-x: auto; margin: .5rem 0 1rem }
table { border-collapse: collapse; font-size: .875rem; font-variant-numeric: tabular-nums }
th, td { padding: .3rem .9rem .3rem 0; text-align: left; vertical-align: top; white-space: nowrap }
th { color: var(--quiet); font-weight: 600; border-bottom: 1px solid var(--line) }
tr + tr td { border-top: 1px solid var(--line) }
td.n, th.n { text-align: right }
table.facts td { white-space: normal }
table.facts td:first-child { color: var(--quiet); white-space: nowrap }
.bad { color: var(--bad); font-weight: 600 }
.good { color: var(--good) }
figure { margin: 1rem 0; max-width: 40rem }
figcaption { font-size: .875rem }
svg { display: block; width: 100%; height: auto }
svg text { fill: var(--text); font: 12px system-ui, sans-serif }
svg text.axis { fill: var(--quiet); font-size: 11px }
svg .grid { stroke: var(--line); fill: none }
svg .mark { stroke: var(--text); stroke-width: 2.5; fill: none }
svg .whisker { stroke: var(--text); stroke-width: 1; fill: none }
.legend { list-style: none; display: flex; flex-wrap: wrap; gap: .2rem 1.2rem; padding: 0; margin: .4rem 0 }
.legend { font-size: .875rem }
.legend span { display: inline-block; width: .8rem; height: .8rem; margin-right: .4rem; border-radius: 2px }
code { font: .875rem ui-monospace, Menlo, Consolas, monospace; overflow-wrap: anywhere }
@media (max-width: 40rem) { svg text { font-size: 16px } svg text.axis { font-size: 15px } h2 { margin-top: 2.2rem } }
"""
    + "".join(
        f".c{n} {{ fill: var(--c{n}) }} .k{n} {{ background: var(--c{n}) }} "
        f".l{n} {{ stroke: var(--c{n}); fill: none; stroke-width: 2 }}\n"
        for n in range(COLOURS)
    )
)
