"""Batches of 8 sessions of 3 characters with bodies of 3 sizes, on the GPU's compositor: what they cost, and draw.

python tests/gpu_batches.py BATCHES COUNT PIXEL_FORMAT FILE.npy
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import numpy as np
from gpu_scene import Character, Shot, Speech, features, predictions, put
from numpy.typing import NDArray

from gpupipe.colour import Colour, PixelFormat
from gpupipe.compose.frames import FrameSpec
from gpupipe.compose.gpu import GpuCompositor
from gpupipe.compose.protocol import BatchKind
from gpupipe.geometry import CropLayout, Rect
from gpupipe.gpu.device import open_device

SIZES = ((64, 48), (62, 34), (40, 60))
SLOTS = 3


def run(
    batches: int,
    count: int,
    pixel_format: PixelFormat,
    on_device: bool,
    begins: Callable[[int], None] = lambda _: None,
) -> NDArray[np.uint8]:
    """The bytes of all frames that were drawn.

    Args:
        batches: how many are queued; the last few are not waited for.
        count: frames in each.
        pixel_format: of the frames.
        on_device: whether the model's tensors lie there.
        begins: is told the number of each batch before it is queued, and then how many there were.
    """
    device, rng, layout = open_device(), np.random.default_rng(0), CropLayout(32)
    characters = []
    for i, (width, height) in enumerate(SIZES):
        rects = tuple(Rect(j, 3 * j - i, j + 37 - i, 3 * j + 31) for j in range(5))
        colour = Colour(1 + 4 * (i % 2), 1 + i % 2)
        characters.append(
            Character(device, FrameSpec(layout, pixel_format, width, height, rects, colour, recorded=i == 1), i)
        )
    sessions = [(characters[i % 3], Speech(device, features(rng, 20 + i))) for i in range(8)]
    compositor = GpuCompositor(device, BatchKind(layout, pixel_format, np.dtype("f4"), 8), model_on_device=on_device)
    for character in characters:
        compositor.admit(character.frames)
    slots = [compositor.new_slot() for _ in range(SLOTS)]
    given = predictions(rng, 8, 32, np.float32, strange=False)
    for slot in slots:
        put(device, slot.prediction, given)
    sets = [[Shot(character, 0, speech, 0).drawing(device) for character, speech in sessions] for _ in slots]
    kept: list[Any] = []
    for i in range(batches):
        begins(i)
        slot, drawings = slots[i % SLOTS], sets[i % SLOTS]
        if i >= SLOTS:
            assert not compositor.finish(slot).any()
            for drawing in drawings[:count]:
                host = drawing.surface.host
                assert host is not None
                kept.append(host.reshape(-1).copy())
        drawings[:] = [d._replace(source=(i + j) % 5, row=i + j, fraction=1000 * i) for j, d in enumerate(drawings)]
        compositor.prepare(slot, drawings[:count])
        compositor.ready(slot)
        compositor.paste(slot)
    begins(batches)
    compositor.close()
    return np.concatenate(kept)


if __name__ == "__main__":
    queued, each, drawn_as, path = sys.argv[1:]
    np.save(path, run(int(queued), int(each), "nv12" if drawn_as == "nv12" else "bgr24", True))
