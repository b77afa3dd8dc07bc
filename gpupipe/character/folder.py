"""A character folder, loaded and validated: every error names file and field."""

from __future__ import annotations

import json
import os
import warnings
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from gpupipe.errors import GpupipeError, PackageError, reason
from gpupipe.geometry import BORDER, CropLayout, Rect
from gpupipe.media.limits import DEFAULT, Limits
from gpupipe.media.video import VideoInfo, probe

BODY = "full_body_video.mp4"
CROPS = "crops_328_video.mp4"
ROIS = "rois_320_video.mp4"
MODEL_INPUTS = "model_inputs_video.mp4"
RECTANGLES = "cache/crop_rectangles.json"
FEATURES = "aud_ave.npy"
MODEL = "checkpoint/model_best.onnx"
AUDIO_ENCODER = "checkpoint/audio_encoder.onnx"
SOUND = "aud.wav"


LARGEST = 1 << 13
"""Coordinates of rectangles are within this many pixels; what is beyond is no place in a video."""

LARGEST_AREA = 1 << 24
"""The most pixels of a rectangle, 4096x4096: more than half of an 8K frame, which no face takes. Each thread that draws
on the CPU needs up to 31 bytes for each of them (see `compose.cpu`), here 520 MB."""

LARGEST_RECTANGLES = 1 << 26
"""Bytes of the rectangle file, 67 MB: 670 for each of 100 000 frames. Parsed it takes some ten times as much."""

STEADY = 0.5
"""Frames by which one may be from its time in a video of constant rate. Up to half a frame, the frame that is shown is
still the one nearest to the time; rounded timestamps stay far below (Matroska's are whole milliseconds)."""


class GpupipeWarning(UserWarning):
    """Something about the input that the user should know, and that does not stop a render."""


@dataclass(frozen=True)
class Character:
    """A person filmed once.

    Attributes:
        path: the folder.
        body: the body video.
        crops: the face crops, one for each body frame.
        rects: where each crop belongs, body pixels; one for each frame that can be used.
        layout: the layout of the crops.
        recorded: the recorded model inputs (roi, masked), if the folder has both.
        notes: what is odd but does no harm.
    """

    path: Path
    body: VideoInfo
    crops: VideoInfo
    rects: tuple[Rect, ...]
    layout: CropLayout
    recorded: tuple[VideoInfo, VideoInfo] | None = None
    notes: tuple[str, ...] = ()

    @property
    def count(self) -> int:
        """Frames that can be used: the shortest of body, crops and rectangles."""
        return len(self.rects)

    @cached_property
    def rects_hash(self) -> int:
        """Tells its rectangles from others: the file may hold others by now."""
        return hash(self.rects)

    @property
    def limits(self) -> Limits:
        """Under which its files, and what it says, are read."""
        return self.body.limits

    def under(self, limits: Limits) -> Character:
        """The same character, read under other limits.

        Raises:
            MediaError, PackageError: it goes beyond them.
        """
        if limits == self.limits:
            return self
        if limits.isolate:
            check_links(self.path)
        videos = [self.body, self.crops, *(self.recorded or ())]
        for info in videos:
            limits.check_size(info.path, info.width, info.height)
            limits.check_frames(info.path, info.frames)
        body, crops, *recorded = (replace(info, limits=limits) for info in videos)
        both = (recorded[0], recorded[1]) if recorded else None
        return replace(self, body=body, crops=crops, recorded=both)

    @property
    def features_path(self) -> Path:
        """The features of the speech that the character was filmed with."""
        return self.path / FEATURES

    @property
    def model_path(self) -> Path:
        """The lip-sync model that belongs to the character."""
        return self.path / MODEL

    @property
    def audio_encoder_path(self) -> Path:
        """The speech encoder that belongs to the character."""
        return self.path / AUDIO_ENCODER

    @property
    def sound_path(self) -> Path | None:
        """The speech that the character was filmed with, if the folder has it."""
        path = self.path / SOUND
        return path if path.is_file() else None

    @classmethod
    def load(cls, path: Path | str, limits: Limits = DEFAULT) -> Character:
        """Load a character folder.

        Args:
            path: the folder.
            limits: what is taken; an engine has its own, for what it is given.

        Raises:
            PackageError: the folder, or an entry in it, is missing or wrong.
            MediaError: a video is missing or truncated.

        Warns:
            GpupipeWarning: the videos and the rectangles differ in number, or the body's frame rate varies.
        """
        character, faults, notes = examine(path, limits)
        if faults:
            raise faults[0]
        assert character is not None
        for note in notes:
            warnings.warn(note, GpupipeWarning, stacklevel=2)
        return character


def examine(path: Path | str, limits: Limits = DEFAULT) -> tuple[Character | None, list[GpupipeError], list[str]]:
    """Look at everything in a character folder.

    Args:
        path: the folder.
        limits: what is taken.

    Returns:
        The character (None if it has faults), every fault found, and what is odd but does no harm.
    """
    path = Path(path)
    try:
        if not path.is_dir():
            return None, [PackageError("no such character folder", file=path, remedy="give a folder")], []
        if limits.isolate:
            check_links(path)
    except OSError as error:  # a name that is too long, a folder that may not be entered
        return None, [PackageError(f"cannot be entered: {reason(error)}", file=path, remedy="give another folder")], []
    except PackageError as error:
        return None, [error], []
    faults: list[GpupipeError] = []
    notes: list[str] = []

    def try_probe(name: str) -> VideoInfo | None:
        try:
            return probe(path / name, limits)
        except GpupipeError as error:
            faults.append(error)
            return None

    body, crops = try_probe(BODY), try_probe(CROPS)
    recorded = [try_probe(name) for name in (ROIS, MODEL_INPUTS) if (path / name).exists()]
    entries = _read_rectangles(path / RECTANGLES, faults)
    layout = None if crops is None else _layout(crops, faults)
    if body is not None and (body.width < 2 or body.height < 2):
        faults.append(_size_fault(body, "a body of at least 2x2 pixels"))
    if layout is not None:
        for info in recorded:
            if info is not None and (info.width, info.height) != (layout.model_size, layout.model_size):
                faults.append(_size_fault(info, f"{layout.model_size}x{layout.model_size} as the crops say"))
    counts = {info.path.name: info.frames for info in (body, crops) if info is not None}
    counts[RECTANGLES] = max(entries, default=-1) + 1
    count = min(counts.values())
    if len(set(counts.values())) > 1 and entries:
        listed = ", ".join(f"{name} {number}" for name, number in counts.items())
        notes.append(f"{path}: counts differ ({listed}); the first {count} frames are used")
    if body is not None and body.timing_error_seconds * body.fps > STEADY:
        notes.append(
            f"{body.path}: the frame rate varies; it is taken for its average of {float(body.fps):.6g} a second, which "
            f"puts frames up to {body.timing_error_seconds * 1000:.0f} ms from their own times; write it again at a "
            "constant rate"
        )
    # Bounded, for one wild frame number would otherwise be reported as a million missing frames.
    listed_frames = range(min(count, 2 * len(entries) + 1))
    rectangles = path / RECTANGLES
    rects = [_rectangle(rectangles, frame, entries, body, faults) for frame in listed_frames]
    if faults or body is None or crops is None or layout is None:
        return None, faults, notes
    both = (recorded[0], recorded[1]) if len(recorded) == 2 and recorded[0] and recorded[1] else None
    whole = tuple(rect for rect in rects if rect is not None)
    return Character(path, body, crops, whole, layout, both, tuple(notes)), faults, notes


def check_links(folder: Path) -> None:
    """Raise a PackageError for a link in a folder, or below, that leads out of it."""
    root = Path(os.path.realpath(folder))
    for above, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = Path(above, name)
            if path.is_symlink() and not Path(os.path.realpath(path)).is_relative_to(root):
                raise PackageError(
                    "is a link that leads out of the character's folder",
                    file=path,
                    value=os.fspath(path.readlink()),
                    remedy="put the file itself there, or leave --isolate out",
                )


def _layout(crops: VideoInfo, faults: list[GpupipeError]) -> CropLayout | None:
    if crops.width != crops.height or crops.width <= 2 * BORDER + 16:
        faults.append(_size_fault(crops, "square crops, the model's size plus 8"))
        return None
    return CropLayout.of_crop(crops.width)


def _size_fault(info: VideoInfo, wanted: str) -> PackageError:
    return PackageError(
        "wrong size", file=info.path, field="size", value=f"{info.width}x{info.height}", remedy=f"give {wanted}"
    )


def _read_rectangles(path: Path, faults: list[GpupipeError]) -> dict[int, Any]:
    """The entries of the rectangle file by frame."""
    remedy = 'write {"0": {"rect": [x1, y1, x2, y2]}, …}'
    try:
        if path.exists() and not path.is_file():
            raise ValueError("it is no file")
        if path.stat().st_size > LARGEST_RECTANGLES:
            raise ValueError(f"{path.stat().st_size} bytes, more than {LARGEST_RECTANGLES}")
        entries = json.loads(path.read_text("utf-8-sig"))
        if not isinstance(entries, dict):
            raise ValueError(f"a {type(entries).__name__} instead of an object")
        numbered = {int(key): entry for key, entry in entries.items()}
    except FileNotFoundError:
        faults.append(PackageError("no such file", file=path, remedy=remedy))
        return {}
    except (ValueError, OSError, RecursionError) as error:
        faults.append(PackageError(f"cannot be read: {reason(error)}", file=path, remedy=remedy))
        return {}
    if not numbered:
        faults.append(PackageError("holds no rectangle", file=path, remedy=remedy))
    elif min(numbered) < 0:
        faults.append(PackageError("no such frame", file=path, field=f"frame {min(numbered)}", remedy="count from 0"))
    return numbered


def _rectangle(
    path: Path, frame: int, entries: dict[int, Any], body: VideoInfo | None, faults: list[GpupipeError]
) -> Rect | None:
    """The rectangle of one frame, or None and a fault."""

    def fault(what: str, value: Any, remedy: str) -> None:
        faults.append(PackageError(what, file=path, field=f"frame {frame}: rect", value=value, remedy=remedy))

    if frame not in entries:
        faults.append(PackageError("missing", file=path, field=f"frame {frame}", remedy="add its rectangle"))
        return None
    entry = entries[frame]
    numbers = entry.get("rect") if isinstance(entry, dict) else None
    if not isinstance(numbers, list) or len(numbers) != 4 or not all(type(number) is int for number in numbers):
        fault(
            "not four integers", numbers if isinstance(entry, dict) else entry, "write [x1, y1, x2, y2] in body pixels"
        )
        return None
    rect = Rect(*numbers)
    if rect.empty:
        fault("empty or reversed", numbers, "x2 must be greater than x1, and y2 than y1")
    elif max(map(abs, rect)) > LARGEST:
        fault(f"beyond {LARGEST} pixels", numbers, "give body pixels")
    elif rect.width * rect.height > LARGEST_AREA:
        fault(f"larger than {LARGEST_AREA} pixels", numbers, "give the face's rectangle in body pixels")
    elif body is not None and rect.within(body.width, body.height).empty:
        fault(f"wholly outside the {body.width}x{body.height} body", numbers, "give body pixels")
    else:
        return rect
    return None
