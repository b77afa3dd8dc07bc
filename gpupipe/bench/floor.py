"""The least time that each stage can take here: bytes that must move over the measured bandwidth, and floating-point
operations over the measured matrix rate."""

from __future__ import annotations

from math import prod

from gpupipe.bench.scene import Scene
from gpupipe.colour import PixelFormat
from gpupipe.geometry import SPEECH_SHAPE


def stage_bytes(scene: Scene, pixel_format: PixelFormat) -> dict[str, int]:
    """Bytes a frame that must be read and written in each stage, whoever does it.

    prepare: the roi read, both inputs and the speech written; paste: the prediction, the crop's border and the body
    read, and the frame written, in the format that the encoder takes; encode: the frame read.
    """
    info, size, crop = scene.body_info, scene.layout.model_size, scene.layout.crop_size
    speech = 4 * prod(SPEECH_SHAPE)
    encoded = info.width * info.height * 3 // 2
    body = encoded if pixel_format == "nv12" else 2 * encoded
    prepare = 3 * size**2 + 4 * 6 * size**2 + 2 * speech
    paste = 4 * 3 * size**2 + 3 * (crop**2 - size**2) + body + encoded
    return {"prepare": prepare, "paste": paste, "encode": encoded, "to_host": body}


def floors(
    scene: Scene, pixel_format: PixelFormat, host: dict[str, float], gpu: dict[str, float | None] | None, macs: int
) -> dict[str, float | None]:
    """The least milliseconds a frame of each stage; None where a rate is not known.

    On the host stages share the cores, so that a whole render takes their sum; on a GPU they run side by side, and the
    longest decides.
    """
    moved = stage_bytes(scene, pixel_format)
    flops = 2 * macs
    encode = moved["encode"] / host["copy_bytes_per_second"] * 1e3
    if gpu is None:
        compose = (moved["prepare"] + moved["paste"]) / host["copy_bytes_per_second"] * 1e3
        infer = flops / host["flops_per_second"] * 1e3
        found: dict[str, float | None] = {"compose": compose, "infer": infer, "encode": encode}
        found["render"] = compose + infer + encode
    else:
        assert gpu["copy_bytes_per_second"] is not None
        assert gpu["to_host_bytes_per_second"] is not None
        drawn = (moved["prepare"] + moved["paste"]) / gpu["copy_bytes_per_second"] * 1e3
        to_host = moved["to_host"] / gpu["to_host_bytes_per_second"] * 1e3
        rate = gpu["flops_per_second"] or host["flops_per_second"]
        found = {"compose": drawn + to_host, "infer": flops / rate * 1e3, "encode": encode}
        found["render"] = max(value for value in found.values() if value is not None)
    return {name: None if value is None else round(value, 4) for name, value in found.items()}
