"""A character that was filmed for long, drawn and encoded quickly: what measurements of memory and starting need.

The body is a still picture of the demo's person under the noise of a camera, before which the head and a ball move.
It is drawn and encoded for two minutes, in which no two frames are alike; what is longer repeats these packets. H.264
as cameras and phones write it: CABAC, no B frames, a keyframe at a fixed interval. The model is the demo's tiny one, so
that decoding and encoding are most of what a render costs: the least favourable case for frames that are decoded again.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from tempfile import TemporaryDirectory

import av
import cv2
import numpy as np
from numpy.typing import NDArray

from gpupipe.character.folder import BODY, CROPS, FEATURES, RECTANGLES, SOUND
from gpupipe.demo import make_demo
from gpupipe.demo.draw import TalkingHead
from gpupipe.geometry import SPEECH_WIDTH, CropLayout, Rect

FPS = 25
KEYFRAMES = 250
"""Frames from keyframe to keyframe, where no number is given: what x264 writes unless told, the most that is usual.
Phones write one a second, cameras two."""
MODEL_SIZE = 320
NOISE = 2.0
"""Standard deviation of a pixel from frame to frame, of 255."""
BODY_NOISES, FACE_NOISES = 13, 11
PERIOD_SECONDS = 120

Frame = NDArray[np.uint8]


def make_long(folder: Path, frames: int, size: tuple[int, int], keyframes: int = KEYFRAMES) -> Path:
    """Make a character folder, with speech features for as many frames as it has.

    Args:
        folder: where; not there yet.
        frames: of the videos.
        size: width and height of the body in pixels, even.
        keyframes: frames from keyframe to keyframe.

    Returns:
        The folder.
    """
    make_demo(folder, frames=1, size=size, model_size=MODEL_SIZE)
    (folder / SOUND).unlink()  # it lasts one frame
    layout = CropLayout(MODEL_SIZE)
    period = min(frames, keyframes * max(1, PERIOD_SECONDS * FPS // keyframes))
    videos = {folder / BODY: size, folder / CROPS: (layout.crop_size, layout.crop_size)}
    with TemporaryDirectory(dir=folder) as work:
        once = {path: Path(work) / path.name for path in videos}
        body, crops = (_Encoder(once[path], side, keyframes) for path, side in videos.items())
        rects: list[Rect] = []
        for picture, rect in _film(period, size, layout):
            face = picture[rect.y1 : rect.y2, rect.x1 : rect.x2]
            body.write(picture)
            crops.write(np.asarray(cv2.resize(face, (layout.crop_size,) * 2, interpolation=cv2.INTER_LINEAR), np.uint8))
            rects.append(rect)
        body.close()
        crops.close()
        for path, short in once.items():
            _repeat(short, path, period, frames)
    numbered = {str(number): {"rect": list(rects[number % period])} for number in range(frames)}
    (folder / RECTANGLES).write_text(json.dumps(numbered), "utf-8")
    loud_and_bright = np.random.default_rng(0).random((frames, 2), np.float32)
    np.save(folder / FEATURES, np.repeat(loud_and_bright, SPEECH_WIDTH // 2, axis=1))
    return folder


def _film(frames: int, size: tuple[int, int], layout: CropLayout) -> Iterator[tuple[Frame, Rect]]:
    """Pictures, uint8 `[H, W, 3]`, BGR, each new, and the rectangles of their crops."""
    still, rect = TalkingHead(*size, layout).frame(0.0)
    still_face = still[rect.y1 : rect.y2, rect.x1 : rect.x2]
    random = np.random.default_rng(1)
    bodies = [_noisy(still, random) for _ in range(BODY_NOISES)]
    faces = [_noisy(still_face, random) for _ in range(FACE_NOISES)]
    width, height = size
    for number in range(frames):
        seconds = number / FPS
        right = round(0.02 * width * (math.sin(1.3 * seconds) + math.sin(0.37 * seconds)))
        down = round(0.02 * height * (math.sin(1.7 * seconds) + math.sin(0.41 * seconds)))
        place = Rect(rect.x1 + right, rect.y1 + down, rect.x2 + right, rect.y2 + down)
        picture = bodies[number % BODY_NOISES].copy()
        ball = width * (0.5 + 0.4 * math.sin(0.53 * seconds)), height * (0.8 + 0.1 * math.sin(0.71 * seconds))
        cv2.circle(picture, (round(ball[0]), round(ball[1])), height // 20, (40, 90, 200), -1)
        picture[place.y1 : place.y2, place.x1 : place.x2] = faces[number % FACE_NOISES]
        yield picture, place


def _noisy(picture: Frame, random: np.random.Generator) -> Frame:
    noise = random.normal(0, NOISE, picture.shape)
    return np.clip(np.rint(picture + noise), 0, 255).astype(np.uint8)


def _repeat(short: Path, path: Path, period: int, frames: int) -> None:
    """Write the packets of a video again and again, up to so many frames."""
    with av.open(str(path), "w") as out:
        stream: av.VideoStream | None = None
        for first in range(0, frames, period):
            with av.open(str(short)) as source:
                video = source.streams.video[0]
                stream = stream or out.add_stream_from_template(video)
                for number, packet in enumerate(source.demux(video)):
                    if packet.size and first + number < frames:
                        packet.time_base = Fraction(1, FPS)
                        packet.pts = packet.dts = first + number  # without B frames they come as they are shown
                        packet.duration, packet.stream = 1, stream
                        out.mux(packet)


class _Encoder:
    """One of the videos."""

    def __init__(self, path: Path, size: tuple[int, int], keyframes: int) -> None:
        self._container = av.open(str(path), "w")
        self._stream = self._container.add_stream("libx264", rate=FPS)
        context = self._stream.codec_context
        context.width, context.height = size
        context.pix_fmt = "yuv420p"
        context.time_base = Fraction(1, FPS)
        context.options = {
            "preset": "superfast",
            "crf": "21",
            "x264-params": f"keyint={keyframes}:min-keyint={keyframes}:scenecut=0:bframes=0",
        }
        self._number = 0

    def write(self, picture: Frame) -> None:
        planes = np.asarray(cv2.cvtColor(picture, cv2.COLOR_BGR2YUV_I420), np.uint8)
        frame = av.VideoFrame.from_ndarray(planes, format="yuv420p")
        frame.pts, frame.time_base = self._number, Fraction(1, FPS)
        self._container.mux(self._stream.encode(frame))
        self._number += 1

    def close(self) -> None:
        self._container.mux(self._stream.encode(None))
        self._container.close()
