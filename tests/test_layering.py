"""Each room imports only what it may."""

import ast
from pathlib import Path

import pytest

import gpupipe

ROOMS = Path(gpupipe.__file__).parent

# Third-party packages, and the rooms that may import them.
OWNERS = {
    "av": {"bench_handover", "video", "encode", "encoders", "join", "sound", "sound_file", "soundtrack"},
    "cv2": {
        *("compose_cpu", "images", "demo_draw", "demo_head", "demo_paint", "demo_scene", "demo"),
        # The ways that gpupipe is compared with use OpenCV as people do.
        *("bench", "bench_handover", "bench_reference", "bench_ways"),
    },
    "cupy": {"device", "kernels"},
    "onnxruntime": {"session"},
    "onnx": {"demo_graph", "demo_full", "demo_mouth", "demo_models"},
    "rich": {"progress"},
}

# gpupipe's rooms, and the rooms that each may import.
BASE = {"errors", "geometry", "colour", "compositor"}
MAY: dict[str, set[str]] = {
    "errors": set(),
    "geometry": set(),
    "colour": set(),
    "compositor": set(),
    "machine": set(),
    "pipeline": set(),
    "trace": set(),
    "images": {"errors"},
    "video": {"errors", "colour", "compositor"},
    "encoders": {"errors"},
    "encode": {"errors", "colour", "compositor", "encoders"},
    "join": {"encode", "soundtrack"},
    "sound_file": {"errors"},
    "sound": {"errors", "sound_file"},
    "soundtrack": {"errors", "sound", "sound_file"},
    "mel": {"errors", "geometry"},
    "audio": {"errors", "geometry", "mel"},
    "character": {"errors", "geometry", "video"},
    "session": {"errors"},
    "inference": {"errors", "geometry", "session"},
    "frame_cache": BASE,
    "device": {"errors"},
    "kernels": BASE,
    "compose_cpu": {*BASE, "frame_cache"},
    "frame_cache_gpu": {*BASE, "frame_cache", "device", "kernels"},
    "compose_gpu": {*BASE, "frame_cache", "frame_cache_gpu", "device", "kernels"},
    "speech": {*BASE, "audio", "character", "machine", "mel", "session", "sound"},
    "gpu_clock": {"device", "trace"},
    "backend": {
        *BASE,
        "frame_cache",
        "frame_cache_gpu",
        "compose_cpu",
        "compose_gpu",
        "device",
        "inference",
        "session",
        "machine",
    },
    "plan": {*BASE, "backend", "character", "frame_cache", "speech", "video"},
    "job": {*BASE, "backend", "character", "gpu_clock", "inference", "machine", "pipeline", "plan", "trace"},
    "output": {*BASE, "encode", "encoders", "images", "join", "video"},
    "render": {
        *BASE,
        "backend",
        "character",
        "encoders",
        "images",
        "job",
        "machine",
        "output",
        "pipeline",
        "plan",
        "trace",
    },
    "progress": {"render"},
    "report": {"errors", "cli"},
    "report_tables": {"report"},
    "report_page": {"report", "report_plots", "report_tables"},
    "report_plots": set(),
}
ANYTHING = {"cli", "inspection", "__main__", "__init__"}
BENCH_MAY = {
    *BASE,
    *("character", "compose_cpu", "demo", "device", "encoders", "inference", "job", "machine", "output", "pipeline"),
    *("plan", "session", "trace", "video"),
}
DEMO_MAY = {*BASE, "audio", "mel", "encode", "encoders", "character", "machine"}


def imports(path: Path) -> set[str]:
    """Full names of what a file imports, those inside functions too."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
    return found


def rooms() -> list[Path]:
    return sorted(path for path in ROOMS.glob("*.py"))


@pytest.mark.parametrize("path", rooms(), ids=lambda path: path.stem)
def test_a_room_imports_only_what_it_may(path: Path) -> None:
    names = imports(path)
    for package, owners in OWNERS.items():
        if any(name.split(".")[0] == package for name in names):
            assert path.stem in owners, f"{path.stem} imports {package}"
    used = {name.split(".")[1] for name in names if name.startswith("gpupipe.")} - {"__version__"}
    if path.stem in ANYTHING:
        return
    for prefix, allowed in (("demo", DEMO_MAY), ("bench", BENCH_MAY)):
        if path.stem.startswith(prefix):
            may = allowed | {room.stem for room in rooms() if room.stem.startswith(prefix)}
            # `python -m gpupipe.bench` hands over to the command line, which prints.
            assert used - {"cli"} <= may, f"{path.stem} imports {sorted(used - may)}"
            return
    assert path.stem in MAY, f"{path.stem} is a new room: say here what it may import"
    may = MAY[path.stem]
    assert used <= may, f"{path.stem} imports {sorted(used - may)}"


@pytest.mark.parametrize("path", rooms(), ids=lambda path: path.stem)
def test_a_room_is_small(path: Path) -> None:
    assert len(path.read_text("utf-8").splitlines()) <= 330


def test_only_geometry_knows_the_sizes() -> None:
    for path in rooms():
        if path.stem == "geometry":
            continue
        numbers = {
            node.value for node in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(node, ast.Constant)
        }
        sizes = {324, 328, 164, 168} | (set() if path.stem == "demo_speech" else {320})  # which names 320 Hz
        assert not numbers & sizes, f"{path.stem} names a size that belongs in geometry"


def test_importing_gpupipe_opens_no_device() -> None:
    """The device is never chosen at import, nor what runs the model."""
    import subprocess
    import sys

    code = "import sys, gpupipe; print([n for n in ('cupy', 'onnxruntime') if n in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"
