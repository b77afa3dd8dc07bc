"""The characters of a server: the folders in one folder, called by their names, and by nothing else."""

from __future__ import annotations

import re
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from gpupipe.character.folder import BODY, CROPS, RECTANGLES, Character
from gpupipe.errors import PackageError
from gpupipe.media.limits import Limits
from gpupipe.render.plan import require_drawable
from gpupipe.seen import Seen, seen
from gpupipe.serve.refusals import BadRequest, NotFound

NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", re.ASCII)
"""What a character's folder is called, to be served."""


_Stamp = tuple[Seen | None, ...]
"""A character's files; None for one that is not there."""


@dataclass(frozen=True)
class Listed:
    """A character, as clients are told of it."""

    name: str
    width: int
    height: int
    fps: float
    frames: int


class Characters:
    """Characters by name, looked at when they are first asked for.

    Args:
        folder: that holds their folders, or is one itself.
        limits: under which they are read.

    Raises:
        PackageError: there is none.
    """

    def __init__(self, folder: Path, limits: Limits) -> None:
        self._folder, self._limits = folder, limits
        self._alone = (folder / BODY).is_file()
        self._known: dict[str, tuple[_Stamp, Character]] = {}
        self._lock = threading.Lock()
        if not self.names():
            raise PackageError(
                "holds no characters", file=folder, remedy="give a folder of character folders, or a character's own"
            )

    def names(self) -> list[str]:
        """Of all there are, sorted."""
        if self._alone:
            return [self._folder.resolve().name]
        found = (each.name for each in self._folder.iterdir() if (each / BODY).is_file())
        return sorted(name for name in found if NAME.fullmatch(name))

    def get(self, name: str) -> Character:
        """A character, as its files are now.

        Raises:
            NotFound: there is none of that name.
            BadRequest: it has a size that the pictures of a talk cannot have.
            PackageError, MediaError: its folder is wrong.
        """
        path = self._folder if self._alone else self._folder / name
        known_name = name == self._folder.resolve().name if self._alone else NAME.fullmatch(name) is not None
        if not known_name or not (path / BODY).is_file():
            raise NotFound("no such character", field="character", value=name[:80], remedy="see the list of characters")
        stamp = _stamp(path)
        with self._lock:
            known = self._known.get(name)
        if known is None or known[0] != stamp:
            known = stamp, Character.load(path, self._limits)
            with self._lock:
                self._known[name] = known
        try:
            require_drawable(known[1], "nv12")
        except PackageError as error:
            raise BadRequest(**error.parts) from error
        return known[1]

    def known(self) -> dict[str, Character]:
        """Those that were asked for so far, and are still there, by their names."""
        with self._lock:
            self._known = {name: each for name, each in self._known.items() if (each[1].path / BODY).is_file()}
            return {name: character for name, (_, character) in self._known.items()}

    def listed(self, name: str) -> Listed:
        """What clients are told of a character. Raises like `get`."""
        character = self.get(name)
        body = character.body
        return Listed(name, body.width, body.height, float(body.fps), character.count)


def _stamp(path: Path) -> _Stamp:
    """What changes with the files that a character's frames come from."""

    def found(name: str) -> Seen | None:
        try:
            return seen(path / name)
        except OSError:
            return None

    return tuple(map(found, (BODY, CROPS, RECTANGLES)))
