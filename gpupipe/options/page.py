"""The options as a page of documentation: `docs/options.md`."""

from __future__ import annotations

from inspect import cleandoc
from typing import Final

from gpupipe.options.declare import declared
from gpupipe.options.groups import GROUPS
from gpupipe.options.keywords import meaning
from gpupipe.options.serving import ServeOptions

HEAD: Final = """\
# Options

Of `gpupipe render` and of `render()`; in a line of a job file they are called as in Python. `frames()` takes those that
say nothing of a file. `gpupipe serve` takes those of the engine and the model, and has its own. Made from
`gpupipe/options/groups.py` and `serving.py`, where they are declared:
`python -c "import pathlib, gpupipe.options.page as p; pathlib.Path('docs/options.md').write_text(p.markdown())"`.
"""


def markdown() -> str:
    """The page: a table for each dataclass."""
    parts = [HEAD]
    for group in (*GROUPS, ServeOptions):
        parts.append(f"## {cleandoc(group.__doc__ or '').rstrip('.')}\n")
        rows = ["| command line | Python | |", "|---|---|---|"]
        for said in declared(group).values():
            value = said.metavar if said.metavar and said.kind != "device" else said.name.upper().rsplit("_")[-1]
            value = value if said.bare is None else f"[{value}]"
            flag = said.flag if said.kind == "switch" else f"{said.flag} {value}"
            text = meaning(said).replace("|", "\\|")
            rows.append(f"| `{flag}` | `{said.name}` | {text} |")
        parts.append("\n".join(rows) + "\n")
    return "\n".join(parts)
