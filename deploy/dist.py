"""What is given to others: wheel, sdist, and one executable file that needs nothing but Python.

    make dist                                      # into dist/
    python deploy/dist.py --pythons 3.11,3.12 …    # for these versions of Python in one file
    python deploy/dist.py --again                  # builds it twice, and says whether the bytes are the same
    python deploy/dist.py --measure                # sizes, and times to an answer, cold and warm, of what is there

The file is a PEX (https://docs.pex-tool.org): gpupipe, what it depends on, and a few lines that unpack all of it into a
cache folder when it is first run (`PEX_ROOT`, else ~/.cache/pex). It is for Linux on x86-64 with glibc 2.28 or later,
and for the CPU; docs/deploy.md says how to use a GPU. The versions that it holds are written beside it, and
`--constraints` builds it with the same again. Times in archives are those of the last commit, or SOURCE_DATE_EPOCH.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
EXTRAS = "cpu,serve,optimize"
PYTHONS = ("3.11", "3.12", "3.13")
GLIBC = 28
"""The least: 2.28, of Debian 10, Ubuntu 18.10 and RHEL 8."""
LONG_AGO = "315532800"
"""1980, where a zip file's time begins: for a tree that is no repository."""


def epoch() -> str:
    """The time that is written into archives, seconds since 1970."""
    if told := os.environ.get("SOURCE_DATE_EPOCH"):
        return told
    done = subprocess.run(["git", "log", "-1", "--format=%ct"], cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout.strip() or LONG_AGO


def call(command: Sequence[str], environment: Mapping[str, str]) -> None:
    """Run a command, and end with it if it fails."""
    print("+", *(part[:80] for part in command), flush=True)
    done = subprocess.run(command, cwd=ROOT, env=environment, check=False)
    if done.returncode:
        raise SystemExit(done.returncode)


def platform(python: str) -> dict[str, Any]:
    """A machine with CPython of a version, as pex and PEP 508 describe it: what its packages are chosen for."""
    from packaging.tags import compatible_tags, cpython_tags  # of what `make dist` installs

    version = tuple(map(int, python.split(".")))
    number = "".join(map(str, version))
    named = [f"manylinux_2_{minor}_x86_64" for minor in range(GLIBC, 4, -1)]
    named += ["manylinux2014_x86_64", "manylinux2010_x86_64", "manylinux1_x86_64", "linux_x86_64"]
    tags = [
        *cpython_tags(version, [f"cp{number}"], named),
        *compatible_tags(version, f"cp{number}", named),
    ]
    return {
        "path": None,
        "compatible_tags": list(map(str, tags)),
        "marker_environment": {
            "implementation_name": "cpython",
            "implementation_version": f"{python}.0",
            "os_name": "posix",
            "platform_machine": "x86_64",
            "platform_python_implementation": "CPython",
            "platform_release": "",
            "platform_system": "Linux",
            "platform_version": "",
            "python_full_version": f"{python}.0",
            "python_version": python,
            "sys_platform": "linux",
        },
    }


def file_name(version: str, pythons: Sequence[str]) -> str:
    """The executable's.

    >>> file_name("0.1.0", ["3.11", "3.12"])
    'gpupipe-0.1.0-cpu-linux-x86_64-py3.11-3.12.pex'
    """
    ends = "-".join(dict.fromkeys((pythons[0], pythons[-1])))
    return f"gpupipe-{version}-cpu-linux-x86_64-py{ends}.pex"


def build(out: Path, pythons: Sequence[str], constraints: Path | None) -> list[Path]:
    """Build everything.

    Args:
        out: folder for what is built.
        pythons: versions that the executable is for.
        constraints: a file of versions, as pip reads it.
    """
    environment = {**os.environ, "SOURCE_DATE_EPOCH": epoch(), "PYTHONHASHSEED": "0"}
    out.mkdir(parents=True, exist_ok=True)
    call([sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out)], environment)
    wheel = max(out.glob("gpupipe-*.whl"), key=lambda path: path.stat().st_mtime)
    version = wheel.name.split("-")[1]
    target = out / file_name(version, pythons)
    command = [sys.executable, "-m", "pex", f"gpupipe[{EXTRAS}] @ {wheel.resolve().as_uri()}"]
    command += ["--console-script", "gpupipe", "--venv", "prepend", "--output-file", str(target)]
    command += ["--python-shebang", "/usr/bin/env python3", "--resolver-version", "pip-2020-resolver"]
    for python in pythons:
        command += ["--complete-platform", json.dumps(platform(python))]
    if constraints is not None:
        command += ["--constraints", str(constraints)]
    call(command, environment)
    versions = target.with_suffix(".txt")
    versions.write_text("".join(f"{line}\n" for line in held(target, pythons)), "utf-8")
    return [wheel, out / f"gpupipe-{version}.tar.gz", target, versions]


def held(pex: Path, pythons: Sequence[str]) -> list[str]:
    """What a PEX holds besides gpupipe, as pip reads it: versions, with the Pythons they are for where these differ."""
    from packaging.specifiers import SpecifierSet
    from packaging.utils import parse_wheel_filename

    with zipfile.ZipFile(pex) as archive:
        metadata = [
            name for name in archive.namelist() if re.fullmatch(r"\.deps/[^/]+/[^/]+\.dist-info/METADATA", name)
        ]
        wheels = []
        for path in metadata:
            said = re.search(r"^Requires-Python: (.*)$", archive.read(path).decode("utf-8"), re.MULTILINE)
            wheel, version, _, tags = parse_wheel_filename(path.split("/")[1])
            wheels.append((wheel, version, set(map(str, tags)), SpecifierSet(said[1] if said else "")))
    chosen: dict[str, dict[str, str]] = {}
    for python in pythons:
        fitting = set(platform(python)["compatible_tags"])
        for wheel, version, names, wants in sorted(wheels, key=lambda each: each[1]):
            if wheel != "gpupipe" and names & fitting and f"{python}.0" in wants:
                chosen.setdefault(wheel, {})[python] = str(version)  # the newest of those that fit
    lines = []
    for name, versions in sorted(chosen.items()):
        if len(set(versions.values())) == 1 and len(versions) == len(pythons):
            lines.append(f"{name}=={next(iter(versions.values()))}")
        else:
            lines += [f'{name}=={version}; python_version == "{python}"' for python, version in versions.items()]
    return lines


def digest(path: Path) -> str:
    """SHA-256 in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def started(pex: Path, home: Path, *arguments: str) -> float:
    """Seconds until the executable has answered, with a cache folder in `home`."""
    # As on a machine on which nothing is set up.
    environment = {"HOME": str(home), "PEX_ROOT": str(home / "pex"), "PATH": "/usr/local/bin:/usr/bin:/bin"}
    began = time.perf_counter()
    command = [sys.executable, str(pex), *arguments]
    subprocess.run(command, env=environment, check=True, capture_output=True)
    return time.perf_counter() - began


def size(folder: Path) -> int:
    """Bytes of the files below a folder, those with several names once."""
    stats = (path.lstat() for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    return sum({stat.st_ino: stat.st_size for stat in stats}.values())


def measure(pex: Path) -> None:
    """Print what the executable takes."""
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        print(f"{pex.name}: {pex.stat().st_size / 1e6:.0f} MB")
        print(f"first start, cold: {started(pex, home, '--version'):.1f} s, unpacked {size(home) / 1e6:.0f} MB")
        print(f"start, warm: {min(started(pex, home, '--version') for _ in range(3)):.2f} s")
        print(f"demo character, the first: {started(pex, home, 'demo', str(home / 'anna'), '--frames', '25'):.1f} s")
        out = str(home / "anna.mp4")
        print(f"render, the first: {started(pex, home, 'render', str(home / 'anna'), '-o', out):.1f} s")
        print(f"render, again: {started(pex, home, 'render', str(home / 'anna'), '-o', out, '--overwrite'):.1f} s")


def main() -> None:
    """Build, or measure what was built."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "dist", help="folder for what is built")
    parser.add_argument("--pythons", default=",".join(PYTHONS), help="versions that the executable is for")
    parser.add_argument("--constraints", type=Path, help="versions of what it depends on, as pip reads them")
    parser.add_argument("--again", action="store_true", help="build twice, and compare")
    parser.add_argument("--measure", action="store_true", help="only measure what is there")
    args = parser.parse_args()
    pythons = args.pythons.split(",")
    if args.measure:
        for pex in sorted(args.out.glob("*.pex")):
            measure(pex)
        return
    built = build(args.out, pythons, args.constraints)
    for path in built:
        print(f"{digest(path)}  {path.stat().st_size / 1e6:8.2f} MB  {path}")
    if args.again:
        before = [digest(path) for path in built]
        # In the same folder: a PEX names the wheel that it was made of.
        again = build(args.out, pythons, built[-1])
        differ = [path.name for path, old in zip(again, before, strict=True) if digest(path) != old]
        print(f"differ when built again: {', '.join(differ)}" if differ else "built again: the same bytes")
        if differ:
            raise SystemExit(1)


if __name__ == "__main__":
    main()
