"""What a reader must know beside the times: the machine, the character, the settings, and what the machine can do."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from gpupipe.report.results import Result


def circumstances(result: Result) -> list[tuple[str, str]]:
    """Machine, character and settings, named."""
    machine, settings, character = result["machine"], result["settings"], result["character"]
    gpu, host, model = machine["gpu"], result["floor"]["host"], result["floor"]["model"]
    encoder = settings["encoder"]
    return [
        ("CPU", f"{machine['cpu']}, {machine['cores']} cores" + _if("{} MHz", machine["cpu_mhz"])),
        ("GPU", f"{gpu['name']}, CUDA {machine['cuda_driver']}" if gpu else f"none: {machine['gpu_problem']}"),
        ("load", f"{machine['load']} at the start, {machine['load_at_end']} at the end"),
        ("system", f"{machine['system']}, Python {machine['python']}"),
        ("packages", ", ".join(f"{name} {version}" for name, version in machine["packages"].items())),
        ("character", f"{character['name']}, {character['width']}x{character['height']}, model {character['model']}"),
        ("frames", f"{settings['frames']}, {settings['runs']} runs in turn after a warm-up{spoken(settings)}"),
        ("batch", f"{settings['batch']}{_batches(result)}"),
        ("workers", f"{settings['workers']} compositing threads where a way has them"),
        (
            "threads",
            f"model {settings['model_threads']}, OpenCV {settings['opencv_threads']}, encoder {encoder['threads']}; "
            "the same for every way",
        ),
        ("encoder", f"{encoder['encoder']}, crf {encoder['crf']}, preset {encoder['preset']}"),
        ("whole render", settings["included"]["render"]),
        ("copy", ", ".join(_copies(host))),
        ("matrix", ", ".join(_matrices(host))),
        (
            "model",
            f"{model['macs'] / 1e9:.3f} GMAC"
            + _if("{:.1f} million numbers between its operators", model.get("activations"), 1e6)
            + f" a frame, {model['weight_bytes'] / 1e6:.1f} MB",
        ),
        ("reproduce", settings["command"]),
    ]


def spoken(settings: Mapping[str, Any]) -> str:
    """That the speech was said again, if it was."""
    if settings["speech_repeats"] == 1:
        return ""
    return f"; the speech lasts {settings['speech_frames']} frames and is said {settings['speech_repeats']} times"


def _copies(host: Mapping[str, float]) -> Iterator[str]:
    yield f"{host['copy_bytes_per_second'] / 1e9:.1f} GB/s read and written by one thread"
    if "threads_copy_bytes_per_second" in host:
        yield f"{host['threads_copy_bytes_per_second'] / 1e9:.1f} GB/s by those of the model"


def _matrices(host: Mapping[str, float]) -> Iterator[str]:
    yield f"{host['flops_per_second'] / 1e9:.0f} GFLOP/s float32"
    for name, rate in host.items():
        if name.endswith("_operations_per_second"):
            yield f"{rate / 1e9:.0f} Gop/s {name.removesuffix('_operations_per_second')}"


def _batches(result: Result) -> str:
    """What the ways made of the batch that was asked for, if some could not have it."""
    ran = {way: row["batch"] for rows in result["stages"].values() for way, row in rows.items()}
    others = [f"{way} {batch}" for way, batch in ran.items() if batch != result["settings"]["batch"]]
    return f" asked for; in fact {', '.join(others)}" if others else ""


def _if(pattern: str, value: Any, unit: float = 1) -> str:
    return f", {pattern.format(value / unit if unit != 1 else value)}" if value is not None else ""
