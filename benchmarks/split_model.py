"""The full lip-sync model alone: whole, and in two nets with the features of its frames resident.

    python benchmarks/split_model.py [--model M.onnx] [--threads 2] [--frames 16] [--runs 9] [--worth 1 4] [--json FILE]

Each way goes over the same frames in turn with the others; a time is the median of the runs, a ratio the median of the
pairs. "plain": the graph is cut as it is; "as the CPU runs it": what ONNX Runtime has made of it for this CPU is cut.
Break-even: how often a frame must be shown for the source net's one run to be won back.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime

from gpupipe.bench.measure import in_turn, paired, spread
from gpupipe.demo.models import full_model
from gpupipe.machine import cpu_name
from gpupipe.model.cpu_graph import cpu_graph
from gpupipe.model.features import FeatureRow, ResidentFeatures
from gpupipe.model.model import Model
from gpupipe.model.runtime import SessionOptions
from gpupipe.model.split import NotSplit, Split, split
from gpupipe.model.split_model import RestNet, SourceNet

BATCH = 8


class Slot:
    """A slot's buffers: the same noise in every one."""

    def __init__(self, cut: Split) -> None:
        random = np.random.default_rng(0)
        specs = (cut.visual, cut.audio, cut.prediction)
        self.visual, self.audio, self.prediction = (
            random.random((BATCH, *spec.frame_shape)).astype(spec.dtype) for spec in specs
        )


def whole(path: Path, options: SessionOptions, frames: int, buffers: Slot) -> Callable[[], None]:
    """The whole model over the frames."""
    model = Model(path, options, batch=BATCH)
    bound = model.bind(buffers.visual, buffers.audio, buffers.prediction)

    def run() -> None:
        for _ in range(frames // BATCH):
            model.run(bound, BATCH)

    return run


def parts(
    folder: Path, cut: Split, options: SessionOptions, frames: int, buffers: Slot
) -> tuple[Callable[[], None], Callable[[], None]]:
    """The source net over the frames, and the rest over the frames."""
    folder.mkdir()
    source_net, rest_net = cut.write(folder)
    source = SourceNet(source_net.file, options, batch=BATCH)
    rest = RestNet(rest_net.file, source, options, batch=BATCH)
    features = ResidentFeatures.allocate(source.features, frames)
    bound = rest.bind(buffers.audio, buffers.prediction, buffers.visual if rest.needs_visual else None)

    def all_sources() -> None:
        for start in range(0, frames, BATCH):
            source.run(buffers.visual, features.rows(start, BATCH))

    def all_rests() -> None:
        for start in range(0, frames, BATCH):
            rest.run(bound, [FeatureRow(features, start + place) for place in range(BATCH)])

    return all_sources, all_rests


def break_even(base: list[float], rest: list[float], source: list[float]) -> dict[str, float]:
    """How often a frame must be shown: what the source net takes over what the rest saves, run by run."""
    saved = [max(1e-9, a - b) for a, b in zip(base, rest, strict=True)]
    return spread([made / won for made, won in zip(source, saved, strict=True)], 2)


def main() -> None:
    """Measure, print, and write JSON if asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="an ONNX file instead of the demo's full model")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--frames", type=int, default=16, help="cached frames, made a multiple of the batch")
    parser.add_argument("--runs", type=int, default=9)
    parser.add_argument("--worth", type=float, nargs="+", default=[1.0])
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    frames = max(BATCH, options.frames // BATCH * BATCH)
    settings = SessionOptions(threads=options.threads)
    with tempfile.TemporaryDirectory() as folder:
        path = options.model or Path(folder) / "full.onnx"
        if options.model is None:
            onnx.save(full_model(), str(path))
        model = onnx.load(str(path))
        steps: dict[str, Callable[[], None]] = {}
        cuts: dict[str, Split] = {}
        for kind, graph in (("plain", model), ("as the CPU runs it", cpu_graph(model))):
            for worth in options.worth:
                cut = split(graph, file=path, worth=worth)
                if isinstance(cut, NotSplit):
                    print(f"{kind}, worth {worth:g}: the model is not split: {cut.reason}")
                    continue
                cuts[f"{kind}, worth {worth:g}"] = cut
        buffers: dict[str, Slot] = {}
        for number, (name, cut) in enumerate(cuts.items()):
            if not steps:
                buffers["whole"] = Slot(cut)
                steps["whole"] = whole(path, settings, frames, buffers["whole"])
            buffers[name] = Slot(cut)
            made = parts(Path(folder) / str(number), cut, settings, frames, buffers[name])
            steps[f"source, {name}"], steps[f"rest, {name}"] = made
        times = in_turn(steps, options.runs)
    result: dict[str, Any] = {
        "cpu": cpu_name(),
        "onnxruntime": onnxruntime.__version__,
        "threads": options.threads,
        "frames": frames,
        "runs": options.runs,
        "ms_a_frame": {
            name: spread([seconds / frames * 1e3 for seconds in found.seconds]) for name, found in times.items()
        },
        "cpu_ms_a_frame": {
            name: spread([seconds / frames * 1e3 for seconds in found.cpu]) for name, found in times.items()
        },
        "cuts": {},
    }
    for name, cut in cuts.items():
        base, rest, source = (times[step] for step in ("whole", f"rest, {name}", f"source, {name}"))
        result["cuts"][name] = {
            "feature_bytes": cut.feature_bytes,
            "needs_visual": cut.needs_visual,
            "macs": [cut.whole_cost.macs, cut.source_cost.macs, cut.rest_cost.macs],
            "activation_bytes": [cost.activation_bytes for cost in (cut.whole_cost, cut.source_cost, cut.rest_cost)],
            "rest_times_faster": paired(base.seconds, rest.seconds),
            "rest_times_less_cpu": paired(base.cpu, rest.cpu),
            "break_even": break_even(base.seconds, rest.seconds, source.seconds),
            "break_even_by_cpu": break_even(base.cpu, rest.cpu, source.cpu),
            "largest_difference": float(
                np.abs(buffers[name].prediction.astype(np.float64) - buffers["whole"].prediction).max()
            ),
        }
    for name, found in result["ms_a_frame"].items():
        print(f"{name:40} {found['median']:8.2f} ms   {found['q1']:.2f} to {found['q3']:.2f}")
    for name, found in result["cuts"].items():
        faster, less, shown, shown_by_cpu = (
            found[key]["median"]
            for key in ("rest_times_faster", "rest_times_less_cpu", "break_even", "break_even_by_cpu")
        )
        print(
            f"{name:28} {found['feature_bytes'] / 1e6:6.2f} MB a frame; the rest {faster:.3f} times faster, "
            f"{less:.3f} by CPU time; break-even {shown:.2f}, {shown_by_cpu:.2f} by CPU time; "
            f"differs by {found['largest_difference']:.1e}"
        )
    if options.json is not None:
        options.json.write_text(json.dumps(result, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
