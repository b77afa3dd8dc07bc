"""What this GPU takes for every part of a render, beside the least that it can take.

    python benchmarks/gpu.py [CHARACTER] [--device cuda:0] [--json FILE] [--providers cpu,cuda,tensorrt] [--quick]

Times, with CUDA events, medians after a warm-up: copies between page-locked memory and the GPU, and within it; our
kernels; the model with every provider that opens; whole batches, three under way; an engine's sessions, and whole
renders. A character's own model is taken if one is given, else one that is made here: of the published model's
structure and cost where the `onnx` package is installed, else a small one.

share: the least time over the time; 100% cannot be beaten. The least is what must be moved over the bandwidth, or
computed over the rate, that a copy or a matrix product has reached here, of the model the longer of the two; "nominal"
takes the memory's own bandwidth instead, and "issue" the instructions that `kernel_report.py` has counted over those
that the GPU can issue. Kernels and copies are queued ahead and begin with cold caches; the rest is timed as it comes,
with the host's queuing. Beside times of a few microseconds, mind what two events with nothing between them take.

Needs an NVIDIA GPU and pip install 'gpupipe[cuda,demo]'; takes some ten minutes. Where TensorRT is installed it builds
its engines in the first run, which takes it minutes more; --providers cpu,cuda leaves it out. Ctrl-C ends with what has
been measured.
"""

from __future__ import annotations

import argparse
import platform
import re
import statistics
import sys
import tempfile
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, get_args

from on_gpu.bench import QUICK, Bench, Settings
from on_gpu.kernels import copies, kernels
from on_gpu.models import models, renders
from on_gpu.subjects import found_models, made_characters, made_models
from on_gpu.table import Row, Subject, table

from gpupipe.character.folder import Character
from gpupipe.cli.show import check_folders, write_json
from gpupipe.demo.full import FULL_SIZE
from gpupipe.errors import DeviceError, GpupipeError, OptionError
from gpupipe.geometry import CropLayout
from gpupipe.gpu.device import Device, open_device
from gpupipe.gpu.driver import unique_id, version_text
from gpupipe.gpu.state import State, gpu_state
from gpupipe.machine import PACKAGES, cpu_count, cpu_name, package_version
from gpupipe.model.runtime import Provider

SCHEMA = 1
"""Of the JSON; another number where a key has come to mean something else, or has gone."""

PACKAGES_TOO = (
    *PACKAGES,
    "tensorrt",
    "tensorrt-cu12",
    "tensorrt-cu13",
    "nvidia-cudnn-cu12",
    "nvidia-cudnn-cu13",
    "onnx",
)
QUICK_SIZE = 32
"""Of the model's images."""


def measure(
    gpu: Device, settings: Settings, given: Character | None, layout: CropLayout, folder: Path
) -> dict[str, Any]:
    """Everything.

    Args:
        gpu: opened.
        settings: how much.
        given: whose model and frames are taken; None: made-up ones.
        layout: of the crops.
        folder: for what is made.

    Returns:
        JSON values, without the names of people, machines and folders.
    """
    files, about = made_models(folder, layout.model_size) if given is None else found_models(given, folder)
    state = {"before": _state(gpu)}
    bench = Bench(gpu, settings, layout, files, _say)
    rows: list[Row] = []
    parts = {
        "copies": lambda: copies(bench),
        "kernels": lambda: kernels(bench),
        "models": lambda: models(bench),
        "renders": lambda: renders(bench, [given] if given else made_characters(folder, settings, layout), folder),
    }
    complete = False
    with suppress(KeyboardInterrupt):
        for name, part in parts.items():
            for row in bench.attempts(Subject(name, "all of them"), part):
                rows.append(row)
            state[f"after {name}"] = _state(gpu)
        complete = True
    return {
        "schema": SCHEMA,
        "complete": complete,
        "meaningless": "softcuda" in gpu.name,
        "gpu": {
            "name": gpu.name,
            "compute_capability": ".".join(map(str, gpu.compute_capability)),
            "total_bytes": gpu.total_bytes,
            "cuda_driver": version_text(gpu.driver_version),
            "limits": bench.limits._asdict(),
            "state": state,
        },
        "machine": {
            "system": f"{platform.system()} {platform.machine()}",
            "cpu": cpu_name(),
            "cores": cpu_count(),
            "python": platform.python_version(),
        },
        "packages": {name: version for name in PACKAGES_TOO if (version := package_version(name))},
        "character": "made up" if given is None else given.path.resolve().name,
        "model": {"about": about, "size": layout.model_size, "types": list(files), **bench.cost},
        "settings": asdict(settings),
        "rates": bench.rates
        | {f"cpu_{name}": rate for name, rate in bench.host_rates.items()}
        | {f"{name}_flops_per_second": rate for name, rate in bench.flops.items()},
        "notes": bench.notes,
        "two_events_ms": round(statistics.median(bench.nothing_seconds) * 1e3, 6),
        "rows": rows,
    }


def text(found: dict[str, Any]) -> str:
    """What `measure` gives, as one page."""
    gpu, machine, model, rates = found["gpu"], found["machine"], found["model"], found["rates"]
    bandwidth = gpu["limits"]["bandwidth"]
    packages = ", ".join(f"{name} {version}" for name, version in found["packages"].items())
    gb = {name: f"{rate / 1e9:.1f} GB/s" for name, rate in rates.items() if name.endswith("bytes_per_second")}
    flops = ", ".join(
        f"{name.removesuffix('_flops_per_second')} {rate / 1e12:.2f} TFLOP/s"
        for name, rate in rates.items()
        if name.endswith("_flops_per_second")
    )
    lines = [
        f"{gpu['name']}, compute capability {gpu['compute_capability']}, {gpu['total_bytes'] / 1e9:.1f} GB, "
        f"driver for CUDA {gpu['cuda_driver']}",
        f"{machine['system']}, Python {machine['python']}, {machine['cpu']}, {machine['cores']} cores",
        packages,
        f"character: {found['character']}; model: {model['about']}, {model['macs'] / 1e9:.3f} GMAC and "
        f"{model['activations'] / 1e6:.1f} million activations a frame",
        f"reached: within {gb['copy_bytes_per_second']} (nominal "
        f"{'not known' if bandwidth is None else f'{bandwidth / 1e9:.1f} GB/s'}), down "
        f"{gb['to_host_bytes_per_second']}, up {gb['to_device_bytes_per_second']}; {flops}",
        f"two events with nothing between them: {found['two_events_ms']:.4f} ms",
        *(f"{when}: {_state_text(state)}" for when, state in gpu["state"].items()),
    ]
    lines += found["notes"]
    if found["meaningless"]:
        lines.append("THIS IS A GPU IN SOFTWARE: its times mean nothing")
    if not found["complete"]:
        lines.append("INTERRUPTED: what follows is not all")
    return "\n".join((*lines, "", table(found["rows"])))


def _state(gpu: Device) -> State | None:
    return gpu_state(unique_id(gpu.index))


def _state_text(state: State | None) -> str:
    if state is None:
        return "nvidia-smi tells nothing"
    return ", ".join(
        f"{name} {value:g}" if isinstance(value, float) else f"{name} {value or '-'}" for name, value in state.items()
    )


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _providers(text: str) -> tuple[Provider, ...]:
    names = text.split(",")
    for name in names:
        if name not in get_args(Provider):
            raise argparse.ArgumentTypeError(f"{name} is none of {', '.join(get_args(Provider))}")
    return tuple(name for name in get_args(Provider) if name in names)


def main(arguments: list[str] | None = None) -> int:
    """Measure, print, and write JSON if asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("character", type=Path, nargs="?", metavar="CHARACTER", help="whose model and frames [default: made up]")
    add("--device", default="cuda:0", metavar="cuda:N", help="which GPU")
    add("--json", type=Path, metavar="FILE", help="write what was found")
    add("--providers", type=_providers, default=get_args(Provider), metavar="cpu,cuda,tensorrt", help="of the model")
    add("--quick", action="store_true", help="a try-out: all rows, small and once or twice")
    options = parser.parse_args(arguments)
    try:
        check_folders(options.json)
        gpu = open_device(_index(options.device))
        given = None if options.character is None else Character.load(options.character)
        layout = CropLayout(QUICK_SIZE if options.quick else FULL_SIZE) if given is None else given.layout
        settings = replace(QUICK if options.quick else Settings(), providers=options.providers)
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            found = measure(gpu, settings, given, layout, Path(folder))
        print(text(found))
        if options.json is not None:
            write_json(options.json, found)
    except DeviceError as error:
        print(f"error: there is no GPU to measure: {error.brief()}; see `gpupipe doctor`", file=sys.stderr)
        return 1
    except GpupipeError as error:
        print(f"error: {error.on_command_line()}", file=sys.stderr)
        return 1
    return 0


def _index(device: str) -> int:
    found = re.fullmatch(r"cuda(?::(\d{1,3}))?", device, re.ASCII)
    if found is None:
        raise OptionError("a GPU is what is measured", field="--device", value=device, remedy="give cuda:N")
    return int(found[1] or 0)


if __name__ == "__main__":
    sys.exit(main())
