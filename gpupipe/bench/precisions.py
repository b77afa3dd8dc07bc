"""Reduced precisions: the files that are made for them, and how near what they draw comes to the reference.

Their pixels differ from it by their nature: they are judged by the mouth, where the speech matters, as `model.quality`
does it, and ranked apart from what draws the reference itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gpupipe.bench.scene import Scene
from gpupipe.colour import PixelFormat
from gpupipe.errors import OptionError
from gpupipe.geometry import BORDER, Rect
from gpupipe.model.cache import Cached, optimised
from gpupipe.model.quality import FLOOR_DB, WORST_FLOOR_DB, Quality, compare, frames_quality
from gpupipe.options import Precision
from gpupipe.render.samples import sample_set

Pixels = NDArray[np.uint8]
Floats = NDArray[np.float32]
Class = Literal["exact", "tf32", "fp16", "int8"]
"""Ways of a class are ranked together."""

RUNS_ON: dict[str, tuple[Precision, ...]] = {"cpu": ("fp32", "fp16", "int8"), "cuda": ("fp32", "tf32", "fp16")}
"""The precisions that a device has."""


class Likeness(NamedTuple):
    """How near pictures come to the reference in the mouth region; see `model.quality`.

    Attributes:
        frames: how many were compared.
        psnr_mean, psnr_worst: dB.
        ssim_mean, ssim_worst: up to 1.
    """

    frames: int
    psnr_mean: float
    psnr_worst: float
    ssim_mean: float
    ssim_worst: float

    @classmethod
    def of(cls, quality: Quality) -> Likeness:
        """Of predictions."""
        psnr, ssim = (quality.mouth_psnr_mean, quality.mouth_psnr_worst), (quality.mouth_ssim_mean,)
        return cls(quality.frames, *psnr, *ssim, quality.mouth_ssim_worst)

    @property
    def passes(self) -> bool:
        """Whether it is above the floor that a render asks of a model."""
        return self.psnr_mean >= FLOOR_DB and self.psnr_worst >= WORST_FLOOR_DB


def make_files(
    scene: Scene, precisions: Sequence[Precision], say: Callable[[str], None] = lambda line: None
) -> dict[str, Cached]:
    """The files of those precisions that need one of their own, as a render would have them made: before anything is
    timed.

    Args:
        scene: whose model and character.
        precisions: that are wanted.
        say: told what is going on.

    Raises:
        GpupipeError: one cannot be made.
    """
    found = {}
    for precision in precisions:
        if precision == "fp16" or precision == "int8":
            say(f"{precision}: the model's file, made once and kept; not timed")
            made = optimised(
                scene.options.model,
                precision,
                sample_set(scene.character),
                told=lambda line, name=precision: say(f"{name}: {line}"),  # type: ignore[misc]
            )
            say(f"{precision}: {'made' if made.made else 'there from before'}: {made.quality.summary()}")
            found[str(precision)] = made
    return found


def check_devices(precisions: Sequence[Precision], devices: Sequence[str]) -> None:
    """Whether each precision has a device.

    Args:
        precisions: that are asked for.
        devices: "cpu", "cuda": where gpupipe is compared.

    Raises:
        OptionError: one has none.
    """
    for precision in precisions:
        fitting = [device for device, able in RUNS_ON.items() if precision in able]
        if precision != "fp32" and not set(fitting) & set(devices):
            names = " or ".join(f"gpupipe-{device}" for device in fitting)
            raise OptionError(
                f"is a way to run {names}, which is not compared",
                field="--precision",
                value=precision,
                remedy="leave it out, or see --ways and `gpupipe doctor`",
            )


def region_of(scene: Scene, precision: Precision) -> Rect:
    """The mouth region by which a precision is judged, in roi pixels: that of its file, if it has one."""
    made = scene.made.get(precision)
    return scene.mouth if made is None else Rect(*made.quality.region)


def predicted_likeness(scene: Scene, precision: Precision, predicted: Floats) -> Likeness:
    """How near predictions for the scene's first batch, float32 `[B, 3, S, S]`, come to the reference."""
    return Likeness.of(compare(scene.predictions, predicted, region_of(scene, precision)))


class Mouths:
    """Compares the mouths of finished frames with the reference as they come, in order.

    Args:
        scene: whose reference.
        precision: of the way.
        pixel_format: of the frames; of nv12 luma is compared.
        frame_count: how many there must be; further ones are ignored.
    """

    def __init__(self, scene: Scene, precision: Precision, pixel_format: PixelFormat, frame_count: int) -> None:
        self._scene, self._format, self._frame_count = scene, pixel_format, frame_count
        self._region = region_of(scene, precision)
        self._pairs: list[tuple[Pixels, Pixels]] = []

    def __call__(self, frame: Pixels) -> None:
        """Compare the next frame."""
        output, scene = len(self._pairs), self._scene
        if output < self._frame_count:
            wanted = scene.expected(output, scene.predicted(output)[0], self._format)
            box = self._box(int(scene.order[output]))
            self._pairs.append((self._mouth(wanted, box), self._mouth(frame, box)))

    def result(self) -> Likeness:
        """Over all frames; if one never came, nothing is like."""
        if len(self._pairs) < self._frame_count:
            return Likeness(len(self._pairs), 0.0, 0.0, 0.0, 0.0)
        found: dict[str, Any] = frames_quality(*zip(*self._pairs, strict=True))
        return Likeness(*(found[name] for name in Likeness._fields))

    def _box(self, source: int) -> Rect:
        """Where the mouth region of a cached frame is in the body; all that is pasted, if that is outside."""
        rect, info = self._scene.rects[source], self._scene.body_info
        crop, region = self._scene.layout.crop_size, self._region
        x1, x2 = (rect.x1 + (BORDER + x) * rect.width // crop for x in (region.x1, region.x2))
        y1, y2 = (rect.y1 + (BORDER + y) * rect.height // crop for y in (region.y1, region.y2))
        mouth = Rect(x1, y1, x2, y2).within(info.width, info.height)
        return rect.within(info.width, info.height) if mouth.empty else mouth

    def _mouth(self, frame: Pixels, box: Rect) -> Pixels:
        """uint8 `[h, w, 3]`."""
        part = frame[box.y1 : box.y2, box.x1 : box.x2]  # of nv12, luma comes first
        return part.copy() if self._format == "bgr24" else part[..., None].repeat(3, axis=2)
