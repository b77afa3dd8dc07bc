"""What several commands do with their results: files of text and JSON, and indented lines."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from gpupipe.errors import OutputError, reason


def check_folders(*paths: Path | None) -> None:
    """Raise an OutputError for a file whose folder is missing, before anything is done for it."""
    for path in paths:
        if path is not None and not path.parent.is_dir():
            raise OutputError("no such folder", file=path.parent, remedy="create it first")


def write_json(path: Path, value: Any) -> None:
    """Write JSON values.

    Raises:
        OutputError: it cannot be written.
    """
    write_text(path, json.dumps(value, indent=1) + "\n")


def write_text(path: Path, content: str) -> None:
    """Write a text in UTF-8.

    Raises:
        OutputError: it cannot be written.
    """
    try:
        path.write_text(content, "utf-8")
    except OSError as error:
        raise OutputError(f"cannot be written: {reason(error)}", file=path, remedy="use another folder") from error


def lines(value: Any, indent: str = "") -> list[str]:
    """Nested JSON values as indented lines; bytes in megabytes."""
    found = []
    for name, entry in value.items() if isinstance(value, dict) else ():
        if isinstance(entry, dict):
            found += [f"{indent}{name}:", *lines(entry, indent + "  ")]
        elif isinstance(entry, list) and any(isinstance(item, (dict, str)) for item in entry):
            found.append(f"{indent}{name}:")
            for item in entry:
                found += lines(item, indent + "  ") if isinstance(item, dict) else [f"{indent}  {item}"]
        else:
            size = isinstance(entry, int) and ("bytes" in name or name in ("nv12", "bgr24"))
            found.append(f"{indent}{name}: {f'{entry / 1e6:.1f} MB' if size else 'none' if entry is None else entry}")
    return found
