"""Draw the README's picture from a rendered demo: a frame, and the face beside the loudness of what it says.

gpupipe demo build/demo && gpupipe render build/demo -o build/demo.mp4
python docs/make_picture.py build/demo build/demo.mp4 docs/demo.jpg
"""

import sys
from pathlib import Path

import cv2
import numpy as np

from gpupipe import Character
from gpupipe.media.sound import read_pcm
from gpupipe.media.video import read_frames

WIDTH, FACES, FACE = 1280, 8, 160


def main(folder: str, video: str, output: str) -> None:
    """Draw the picture."""
    character = Character.load(folder)
    frames = list(read_frames(video, "bgr24"))
    pcm = np.concatenate(list(read_pcm(video)))
    shown = range(12, 12 + 3 * FACES, 3)
    faces = []
    for number in shown:
        rect = character.rects[number]
        margin = rect.width // 8
        face = frames[number][rect.y1 - margin : rect.y2, rect.x1 - margin // 2 : rect.x2 + margin // 2]
        faces.append(cv2.resize(face, (FACE, FACE), interpolation=cv2.INTER_AREA))
    samples = 16_000 / float(character.body.fps)
    sound = pcm[round((shown[0] - 1) * samples) : round((shown[-1] + 2) * samples)]
    wave = np.full((90, WIDTH, 3), 255, np.uint8)
    for x, part in enumerate(np.array_split(np.abs(sound), WIDTH)):
        half = round(42 * float(part.max()) / float(np.abs(sound).max()))
        cv2.line(wave, (x, 45 - half), (x, 45 + half), (150, 90, 40), 1)
    best = max(shown, key=lambda n: float(np.abs(pcm[round(n * samples) : round((n + 1) * samples)]).mean()))
    cv2.imwrite(output, np.vstack([frames[best], np.hstack(faces), wave]), [cv2.IMWRITE_JPEG_QUALITY, 88])


if __name__ == "__main__":
    if len(sys.argv) != 4 or not Path(sys.argv[1]).is_dir():
        sys.exit(__doc__)
    main(*sys.argv[1:])
