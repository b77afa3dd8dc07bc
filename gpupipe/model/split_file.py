"""Split models in the user's cache folder: cut once for each model, machine and version, by one process at a time."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from pathlib import Path
from typing import Final, NamedTuple

from gpupipe.errors import OutputError, reason
from gpupipe.filelock import FileLock
from gpupipe.machine import cache_folder, cpu_name, package_version
from gpupipe.model.cpu_graph import cpu_graph
from gpupipe.model.digest import digest
from gpupipe.model.measured import onnx_package
from gpupipe.model.split import REST_FILE, SOURCE_FILE, NotSplit, split

WORTH: Final = 4.0
"""What a byte that is kept must save (`split.split`): 42 % less is kept than at 1, nearly as much saved."""

_REASON_FILE: Final = "not-split.json"
_SUMS_FILE: Final = "sums.json"


class SplitFiles(NamedTuple):
    """Both nets of a model."""

    source: Path
    rest: Path


def split_files(path: Path, *, on_cpu: bool) -> SplitFiles | NotSplit:
    """The nets of a model, from the cache, or cut and put there.

    Args:
        path: the model.
        on_cpu: cut what ONNX Runtime has made of it for this machine's CPU (`cpu_graph`); else the graph as it is,
            which every provider takes, and fuses as it likes.

    Raises:
        InferenceError: it is no lip-sync model, or does not run.
        OutputError: the cache folder cannot be written to.
        GpupipeError: the onnx package is not installed.
    """
    root = cache_folder() / "split"
    found = digest(path)
    told = [found.sha256, *found.stats_beside(), WORTH, cpu_name() if on_cpu else None]
    told += [package_version(name) for name in ("gpupipe", "onnx")]
    told += [package_version("onnxruntime") or package_version("onnxruntime-gpu")]
    folder = root / hashlib.sha256(json.dumps(told).encode("utf-8")).hexdigest()[:32]
    if not _whole(folder):
        try:
            root.mkdir(parents=True, exist_ok=True)
            with FileLock(root / "lock"):
                if not _whole(folder):
                    shutil.rmtree(folder, ignore_errors=True)
                    _make(path, folder, on_cpu)
        except OSError as error:
            raise OutputError(f"cannot be written: {reason(error)}", file=root, remedy="make it writable") from error
    if (folder / _REASON_FILE).is_file():
        return NotSplit(json.loads((folder / _REASON_FILE).read_text("utf-8")))
    return SplitFiles(folder / SOURCE_FILE, folder / REST_FILE)


def _whole(folder: Path) -> bool:
    """Whether a folder holds what was written into it."""
    try:
        sums = json.loads((folder / _SUMS_FILE).read_text("utf-8"))
        return bool(sums) and all(digest(folder / name).sha256 == told for name, told in sums.items())
    except (OSError, ValueError, AttributeError, TypeError):
        return False


def _make(path: Path, folder: Path, on_cpu: bool) -> None:
    """Cut a model into a folder that appears when it is complete."""
    for left in folder.parent.glob(".*.partial"):  # of a process that was killed: no other works here now
        shutil.rmtree(left, ignore_errors=True)
    model = onnx_package().load(str(path))
    cut = split(cpu_graph(model, file=path) if on_cpu else model, file=path, worth=WORTH)
    work = Path(tempfile.mkdtemp(prefix=".", suffix=".partial", dir=folder.parent))
    try:
        if isinstance(cut, NotSplit):
            (work / _REASON_FILE).write_text(json.dumps(cut.reason), "utf-8")
        else:
            cut.write(work)
        sums = {file.name: digest(file).sha256 for file in sorted(work.iterdir())}
        (work / _SUMS_FILE).write_text(json.dumps(sums), "utf-8")
        work.rename(folder)
    except BaseException:
        shutil.rmtree(work, ignore_errors=True)
        raise
