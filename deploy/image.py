"""The Dockerfile's steps as a script, where there is no container engine to build it: in a folder instead of an image.

    python deploy/image.py [--target cpu] [--keep FOLDER]

What it copies is copied, its pip steps are run in a virtual environment in place of `/opt/gpupipe`, with this Python,
and then its server's command is asked for help. What only a container has (user, volumes, health check) is left out:
`tests/test_deploy.py` reads those.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
INSTALLED = "/opt/gpupipe"


def instructions(text: str) -> list[tuple[str, str]]:
    """Instructions of a Dockerfile and what stands behind them; lines that go on are joined.

    >>> instructions("# about\\nRUN a \\\\\\n  && b\\nUSER 1\\n")
    [('RUN', 'a && b'), ('USER', '1')]
    """
    text = re.sub(r"^\s*#.*\n", "", text, flags=re.MULTILINE)
    lines = re.sub(r"\\\n\s*", "", text).splitlines()
    return [(line.split()[0], line.split(maxsplit=1)[1]) for line in lines if line.strip()]


def stages(text: str) -> dict[str, list[tuple[str, str]]]:
    """Each stage's own instructions by its name, its FROM first.

    >>> stages("FROM a AS b\\nRUN c\\nFROM b AS d\\n")
    {'b': [('FROM', 'a AS b'), ('RUN', 'c')], 'd': [('FROM', 'b AS d')]}
    """
    found: dict[str, list[tuple[str, str]]] = {}
    name = None
    for instruction, rest in instructions(text):
        if instruction == "FROM":
            name = rest.split(" AS ")[1]
            found[name] = []
        if name is not None:
            found[name].append((instruction, rest))
    return found


def build(target: str, folder: Path) -> Path:
    """Do what the stages before `target` do; the virtual environment."""
    found = stages((ROOT / "Dockerfile").read_text("utf-8"))
    source, installed = folder / "src", folder / "gpupipe"
    source.mkdir()
    for instruction, rest in found["source"] + found[f"build-{target}"]:
        if instruction == "COPY":
            *copied, _ = rest.split()
            for each in copied:
                if (ROOT / each).is_dir():
                    shutil.copytree(ROOT / each, source / each, ignore=shutil.ignore_patterns("__pycache__"))
                else:
                    shutil.copy2(ROOT / each, source / each)
        if instruction == "RUN":
            step = rest.replace(INSTALLED, str(installed)).replace("python -m venv", f"{sys.executable} -m venv", 1)
            print("+", step, flush=True)
            subprocess.run(["sh", "-ec", step], cwd=source, check=True)
    return installed


def check(target: str, installed: Path) -> None:
    """Ask what was installed for help, as the image's command would run it."""
    found = stages((ROOT / "Dockerfile").read_text("utf-8"))
    told = dict(found["base"]) | dict(found[target])
    program, *arguments = json.loads(told["ENTRYPOINT"]) + json.loads(told["CMD"])
    environment = os.environ | {"PATH": f"{installed / 'bin'}:{os.environ['PATH']}"}
    command = [str(installed / "bin" / program), *arguments]
    for asked in ([command[0], "--version"], [*command, "--help"]):
        subprocess.run(asked, env=environment, check=True, stdout=subprocess.DEVNULL)
    print(f"{target}: {' '.join(command)}: taken")


def main() -> None:
    """Build in a folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--keep", type=Path, help="build there, in a folder that is not there yet, and leave it")
    args = parser.parse_args()
    if args.keep is not None:
        args.keep.mkdir(parents=True)
        check(args.target, build(args.target, args.keep.resolve()))
        return
    with tempfile.TemporaryDirectory() as folder:
        check(args.target, build(args.target, Path(folder)))


if __name__ == "__main__":
    main()
