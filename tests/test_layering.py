"""Each room imports only what it may."""

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

import gpupipe

ROOMS = Path(gpupipe.__file__).parent

LAYERS = (
    {"errors", "log"},
    {"geometry", "colour", "trace", "machine", "filelock", "seen", "threads"},
    {"options"},
    {"media"},
    {"gpu"},
    {"model"},
    {"character"},
    {"speech"},
    {"compose"},
    {"engine"},
    {"render"},
    {"tune"},
    {"serve"},
    {"cluster"},
    {"demo"},
    {"doctor"},
    {"bench"},
    {"report"},
    {"cli"},
)
"""The packages and rooms of the house, from the ground up: each imports what lies below it, and nothing else.

`gpupipe` itself, which offers the names of the others, and every `__main__` lie on top.
"""

OWNERS = {
    "av": {"media"},
    "cupy": {"gpu"},
    "onnxruntime": {"model"},
    "onnx": {"model", "demo"},
    "rich": {"cli"},
    # OpenCV resizes and draws; the ways that gpupipe is compared with use it as people do.
    "cv2": {"compose", "media", "demo", "bench"},
    "grpc": {"serve"},
    "starlette": {"serve"},
    "uvicorn": {"serve"},
    "aiortc": {"serve"},
    "prometheus_client": {"serve"},
    "ray": {"cluster"},
    "matplotlib": set(),
}
"""Third-party packages, and the packages of the house that may import them."""


def is_room(name: str) -> bool:
    """Whether a full name is that of a module of gpupipe's."""
    path = ROOMS.joinpath(*name.split(".")[1:])
    return name.startswith("gpupipe.") and (path.with_suffix(".py").is_file() or path.is_dir())


@cache
def imports(path: Path) -> set[str]:
    """Full names of what a file imports, those inside functions too; of a package's room, the room's alone."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= names if all(is_room(name) for name in names) else names | {node.module}
    return found


@cache
def rooms() -> dict[str, Path]:
    """Every room's file by its name: `video`, `demo.draw`; a package's own file goes by the package's name."""
    found = {}
    for path in sorted(ROOMS.rglob("*.py")):
        parts = path.relative_to(ROOMS).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts) or "gpupipe"] = path
    return found


def place(package: str) -> int:
    """How high a package or room lies."""
    if package in ("gpupipe", "__main__"):
        return len(LAYERS)
    found = [height for height, names in enumerate(LAYERS) if package in names]
    assert found, f"{package} is new: give it a layer"
    return found[0]


@pytest.mark.parametrize("room", rooms())
def test_a_room_imports_downwards_only(room: str) -> None:
    package = "__main__" if room.endswith("__main__") else room.split(".")[0]
    for name in imports(rooms()[room]):
        first, *rest = name.split(".")
        if first in OWNERS:
            assert package in OWNERS[first], f"{room} imports {first}"
        if first == "gpupipe" and rest and rest[0] not in (package, "__version__"):
            assert place(rest[0]) < place(package), f"{room} imports {name}"


def test_there_are_no_circles() -> None:
    """Nor between rooms of one package. A package's own file gives names of its rooms, which never import it."""
    files = rooms()
    uses = {
        room: {name.removeprefix("gpupipe.") for name in imports(path)} & files.keys() - {room}
        for room, path in files.items()
    }
    done: set[str] = set()

    def visit(room: str, above: tuple[str, ...]) -> None:
        assert room not in above, f"a circle: {' -> '.join((*above, room))}"
        if room not in done:
            for used in sorted(uses[room]):
                visit(used, (*above, room))
            done.add(room)

    for room in files:
        visit(room, ())


@pytest.mark.parametrize("room", rooms())
def test_a_room_is_small(room: str) -> None:
    assert len(rooms()[room].read_text("utf-8").splitlines()) <= 300


def test_only_geometry_knows_the_sizes() -> None:
    for room, path in rooms().items():
        if room == "geometry":
            continue
        numbers = {
            node.value for node in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(node, ast.Constant)
        }
        sizes = {324, 328, 164, 168} | (set() if room == "demo.speech" else {320})  # which names 320 Hz
        assert not numbers & sizes, f"{room} names a size that belongs in geometry"


def in_a_new_process(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    return done.stdout.rstrip("\n")


def test_importing_gpupipe_imports_nothing_heavy() -> None:
    """So the device is never chosen at import, nor what runs the model, and Ctrl-C finds nothing half imported."""
    heavy = (*OWNERS, "numpy")
    told = in_a_new_process(
        f"import sys, gpupipe; print([n for n in {heavy} if n in sys.modules], 'render' in dir(gpupipe))"
    )
    assert told == "[] True"
    told = in_a_new_process(f"import sys, gpupipe.render; print([n for n in {heavy} if n in sys.modules])")
    assert told == "[]"


def test_names_of_gpupipe_are_what_they_say_whatever_is_imported() -> None:
    told = in_a_new_process(
        "import sys, gpupipe.render.output, gpupipe.render.plan\n"
        "from gpupipe import render, frames, Character, GpupipeError, RenderStats, Trace, __version__\n"
        "import gpupipe.cli.render\n"
        "room = sys.modules['gpupipe.render.render']\n"
        "print(gpupipe.render is render is room.render, frames is room.frames, RenderStats is room.RenderStats)\n"
        "print(Character.__module__, GpupipeError.__module__, Trace.__module__, __version__ == gpupipe.__version__)\n"
        "print(sorted(set(gpupipe.__all__) - set(dir(gpupipe))), hasattr(gpupipe, 'nothing'))"
    )
    assert told.splitlines() == [
        "True True True",
        "gpupipe.character.folder gpupipe.errors gpupipe.trace True",
        "[] False",
    ]
