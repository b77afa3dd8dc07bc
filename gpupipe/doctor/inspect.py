"""What is in a character folder, faults included: `gpupipe inspect`."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from gpupipe.character.features import read_features
from gpupipe.character.folder import BODY, CROPS, FEATURES, MODEL, MODEL_INPUTS, ROIS, Character, check_links, examine
from gpupipe.colour import PixelFormat
from gpupipe.compose.device_frames import bytes_wanted
from gpupipe.compose.device_memory import place_bytes
from gpupipe.compose.frames import FrameSpec
from gpupipe.engine.cache_bound import Slots, divided
from gpupipe.errors import GpupipeError, PackageError
from gpupipe.media.index import index_frames
from gpupipe.media.limits import DEFAULT, Limits
from gpupipe.media.video import probe
from gpupipe.model.runtime import SessionOptions, open_session
from gpupipe.model.signature import Signature
from gpupipe.options import read_bytes
from gpupipe.render.tuning import of_character

BOUNDS = ("256M", "1G", "4G", "16G")
"""Of `--cache`, for which it is told how many frames stay."""


def inspect(path: Path | str, limits: Limits = DEFAULT) -> dict[str, Any]:
    """Everything about a character folder, faults included.

    Args:
        path: the folder.
        limits: what is taken.

    Returns:
        JSON values. `faults` lists every fault found, `notes` what is odd but does no harm; entries that a fault hides
        are null.
    """
    path = Path(path)
    character, faults, notes = examine(path, limits)
    open_to_look = path.is_dir() and not (limits.isolate and _has_links_out(path))
    videos = {name: _video(path / name, limits) for name in (BODY, CROPS, ROIS, MODEL_INPUTS) if open_to_look}
    features = model = None
    if open_to_look:
        try:
            features = list(read_features(path / FEATURES).shape)
        except GpupipeError as error:
            faults.append(error)
        try:
            signature = Signature(path / MODEL, open_session(path / MODEL, SessionOptions()))
            model = signature.describe()
            if character is not None:
                signature.check_size(character.layout)
        except GpupipeError as error:
            faults.append(error)
    return {
        "path": str(path),
        "videos": {name: found for name, found in videos.items() if found is not None},
        "frames": character.count if character else None,
        "fps": float(character.body.fps) if character else None,
        "crop_size": character.layout.crop_size if character else None,
        "model_size": character.layout.model_size if character else None,
        "rectangles": _rectangles(character) if character else None,
        "features": features,
        "model": model,
        "cache_bytes": _cache_bytes(character) if character else None,
        "disk_bytes_an_hour": _disk_bytes_an_hour(character) if character else None,
        "kept_frames": _kept_frames(character) if character else None,
        "tunings": _tunings(character) if character and model else None,
        "faults": [fault.on_command_line() for fault in _once(faults)],
        "notes": notes,
    }


def _has_links_out(path: Path) -> bool:
    try:
        check_links(path)
    except PackageError:  # which `examine` has told
        return True
    return False


def _once(faults: Iterable[GpupipeError]) -> list[GpupipeError]:
    return list({str(fault): fault for fault in faults}.values())


def _video(path: Path, limits: Limits) -> dict[str, Any] | None:
    """What a file holds. `largest_group`: the most frames from keyframe to keyframe, None where that is not known."""
    try:
        info = probe(path, limits)
        index = index_frames(path, limits) if info.index is None else info.index
    except GpupipeError:
        return None  # `examine` has told why, if it matters
    return {
        "codec": info.codec,
        "width": info.width,
        "height": info.height,
        "fps": float(info.fps),
        "frames": info.frames,
        "largest_group": index.largest_group(range(info.frames)) if index.pts else None,
        "matrix": info.colour.matrix,
        "range": info.colour.range,
    }


def _tunings(character: Character) -> list[dict[str, Any]]:
    """What `gpupipe tune` remembers of it on this machine."""
    return [
        {
            "device": tuning.subject.device,
            "provider": tuning.subject.provider,
            "precision": tuning.subject.precision,
            "encoder": tuning.subject.encoder,
            "settings": str(tuning.settings),
            "day": tuning.day,
        }
        for tuning in of_character(character)
    ]


def _rectangles(character: Character) -> dict[str, Any]:
    widths, heights = ([getattr(rect, side) for rect in character.rects] for side in ("width", "height"))
    return {
        "left": min(rect.x1 for rect in character.rects),
        "top": min(rect.y1 for rect in character.rects),
        "right": max(rect.x2 for rect in character.rects),
        "bottom": max(rect.y2 for rect in character.rects),
        "width": [min(widths), max(widths)],
        "height": [min(heights), max(heights)],
        "partly_outside": sum(
            rect != rect.within(character.body.width, character.body.height) for rect in character.rects
        ),
    }


def _disk_bytes_an_hour(character: Character) -> int:
    """What a render of an hour takes for its segments and the file that is joined of them, at the body's own bit rate:
    that is a guess, for what the encoder makes of it is another."""
    body = character.body
    return round(2 * body.path.stat().st_size / (body.frames / body.fps) * 3600)


def _kept_frames(character: Character) -> dict[str, dict[str, dict[str, int]]]:
    """How many of its frames there is room for on the host and on a device with some bounds of `--cache`: all stay, or
    those that are decoded ahead are among them, which backwards are as many as the `largest_group` has, and some."""
    found: dict[str, dict[str, dict[str, int]]] = {"host": {}, "device": {}}
    for name, spec in _specs(character).items():
        for where, each in (("host", spec.cache_bytes // spec.count), ("device", place_bytes(spec))):
            found[where][name] = {
                bound: divided(spec, read_bytes(bound) // each, Slots(0, 0)).kept.count for bound in BOUNDS
            }
    return found


def _cache_bytes(character: Character) -> dict[str, dict[str, int]]:
    specs = _specs(character)
    return {
        "host": {name: spec.cache_bytes for name, spec in specs.items()},
        "device": {name: sum(bytes_wanted(spec).values()) for name, spec in specs.items()},
    }


def _specs(character: Character) -> dict[str, FrameSpec]:
    """What is kept of it, in each pixel format."""
    body = character.body
    formats: tuple[PixelFormat, ...] = ("nv12", "bgr24")
    return {
        name: FrameSpec(character.layout, name, body.width, body.height, character.rects, body.colour)
        for name in formats
    }
