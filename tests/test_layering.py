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
        *("compose_cpu", "images", "demo.draw", "demo.folder", "demo.head", "demo.paint", "demo.scene"),
        # The ways that gpupipe is compared with use OpenCV as people do.
        *("bench", "bench_handover", "bench_reference", "bench_ways"),
    },
    "cupy": {"driver", "kernels"},
    "onnxruntime": {"session"},
    "onnx": {"demo.graph", "demo.full", "demo.mouth", "demo.models"},
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
    "encode": {"errors", "colour", "compositor", "encoders", "video"},
    "join": {"encode", "soundtrack", "video"},
    "sound_file": {"errors", "video"},
    "sound": {"errors", "sound_file"},
    "soundtrack": {"errors", "sound", "sound_file"},
    "mel": {"errors", "geometry"},
    "audio": {"errors", "geometry", "mel"},
    "character": {"errors", "geometry", "video"},
    "session": {"errors", "machine"},
    "inference": {"errors", "geometry", "session"},
    "frame_cache": BASE,
    "driver": {"errors"},
    "device": {"driver", "errors"},
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
    "arguments": {"compositor", "output"},
    "report": {"errors", "cli"},
    "report_tables": {"report"},
    "report_page": {"report", "report_plots", "report_style", "report_tables"},
    "report_plots": {"report_style"},
    "report_style": set(),
    "demo": {*BASE, "audio", "mel", "encode", "encoders", "character", "machine"},
    "bench": {
        *BASE,
        *("character", "cli", "compose_cpu", "demo", "device", "encoders", "inference", "job", "machine", "output"),
        *("pipeline", "plan", "session", "trace", "video"),
    },
}
ANYTHING = {"cli", "inspection", "__main__", "gpupipe"}


def imports(path: Path) -> set[str]:
    """Full names of what a file imports, those inside functions too."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
    return found


def rooms() -> dict[str, Path]:
    """Every room's file by its name: `video`, `demo.draw`; a package's own file goes by the package's name."""
    found = {}
    for path in sorted(ROOMS.rglob("*.py")):
        parts = path.relative_to(ROOMS).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts) or "gpupipe"] = path
    return found


@pytest.mark.parametrize("room", rooms())
def test_a_room_imports_only_what_it_may(room: str) -> None:
    names = imports(rooms()[room])
    for package, owners in OWNERS.items():
        if any(name.split(".")[0] == package for name in names):
            assert room in owners, f"{room} imports {package}"
    used = {name.split(".")[1] for name in names if name.startswith("gpupipe.")} - {"__version__"}
    package = room.split(".")[0]
    if package.startswith("bench"):
        package, used = "bench", {"bench" if name.startswith("bench") else name for name in used}
    if package in ANYTHING:
        return
    assert package in MAY, f"{room} is a new room: say here what it may import"
    assert used - {package} <= MAY[package], f"{room} imports {sorted(used - MAY[package])}"


@pytest.mark.parametrize("room", rooms())
def test_a_room_is_small(room: str) -> None:
    assert len(rooms()[room].read_text("utf-8").splitlines()) <= 330


def test_only_geometry_knows_the_sizes() -> None:
    for room, path in rooms().items():
        if room == "geometry":
            continue
        numbers = {
            node.value for node in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(node, ast.Constant)
        }
        sizes = {324, 328, 164, 168} | (set() if room == "demo.speech" else {320})  # which names 320 Hz
        assert not numbers & sizes, f"{room} names a size that belongs in geometry"


def test_importing_gpupipe_opens_no_device() -> None:
    """The device is never chosen at import, nor what runs the model."""
    import subprocess
    import sys

    code = "import sys, gpupipe; print([n for n in ('cupy', 'onnxruntime') if n in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"
