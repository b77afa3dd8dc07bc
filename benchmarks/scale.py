"""What 100 and 1,000 GPUs would do, simulated: throughput, late frames, refusals, loads, and what a failure costs.

    python benchmarks/scale.py [--json benchmarks/results/scale.json] [--docs docs/scale.md] [--svg docs]

`docs/scale.md` says what the model is, what of it was measured, how it compares with real workers (`scale_check.py`),
and what it leaves out. The same arguments give the same numbers, but for the time that the simulation takes.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path

from fleet.page import COLUMNS, drawing, filled, page, pictures, table
from fleet.sweeps import rows, world


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpus", default="100,1000", help="sizes of the fleets")
    parser.add_argument("--seconds", type=float, default=600, help="that are counted, after half as many that are not")
    parser.add_argument("--json", type=Path, help="write every number there")
    parser.add_argument("--docs", type=Path, help="put the tables into this page, docs/scale.md")
    parser.add_argument("--html", type=Path, help="draw the plots there, on one page")
    parser.add_argument("--svg", type=Path, help="the same as SVG files, in this folder")
    args = parser.parse_args()
    sizes = tuple(int(each) for each in args.gpus.split(","))
    found = []
    for row in rows(sizes, args.seconds):
        found.append(asdict(row))
        print(f"{row.scene} {row.case}: {row.took:.1f} CPU seconds", flush=True)
    for scene in COLUMNS:
        print(f"\n{scene}\n\n{table(scene, found)}")
    if args.json:
        settings = {"seconds": args.seconds, "world": asdict(world(min(sizes)))}
        args.json.write_text(json.dumps(settings | {"rows": found}, indent=1) + "\n", "utf-8")
    if args.docs:
        tables = {scene: table(scene, found) for scene in COLUMNS}
        args.docs.write_text(filled(args.docs.read_text("utf-8"), tables), "utf-8")
    if args.html:
        args.html.write_text(page(found), "utf-8")
    if args.svg:
        for name, picture in pictures(found).items():
            (args.svg / f"scale-{name}.svg").write_text(drawing(picture), "utf-8")


if __name__ == "__main__":
    main()
