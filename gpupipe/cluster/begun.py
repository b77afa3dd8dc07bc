"""A job as a node has it that draws segments of it."""

from __future__ import annotations

import os
import threading
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Unpack, cast

from gpupipe.character.folder import Character, GpupipeWarning
from gpupipe.cluster.inputs import options_on_node
from gpupipe.cluster.work import JobSpec
from gpupipe.errors import ClusterError, GpupipeError, HostMemoryError, reason
from gpupipe.options import JobKeywords, ModelKeywords, options_of, split
from gpupipe.render.engine import Engine
from gpupipe.render.manifest import Manifest
from gpupipe.render.output import is_video
from gpupipe.render.write import outline, pixel_format_of


class NodeEngine(Engine):
    """An engine that says what a render's output would be known by, without rendering it."""

    def manifest(self, character: Character, output: Path | str, **options: Unpack[JobKeywords]) -> Manifest:
        """Of a render with these options; no segment of it is finished."""
        _, model, said, writing = split(options, JobKeywords, by="a job")
        found = self._tuned(character, model, writing if is_video(output) else None)
        return outline([self], self._loaded(character), output, (found, said, writing))[1]


@dataclass
class Begun:
    """A job of which a node draws segments.

    Attributes:
        spec: what it was told of it.
        character: whom.
        options: of the job, with the node's own paths.
        manifest: what its output is known by.
        roots: where the bundles are, by their keys.
    """

    spec: JobSpec
    character: Character
    options: JobKeywords
    manifest: Manifest
    roots: Mapping[str, Path]
    _loading: threading.Lock = field(default_factory=threading.Lock)
    _loaded: bool = False

    @classmethod
    def of(cls, spec: JobSpec, roots: Mapping[str, Path], engine: NodeEngine, cores: int) -> Begun:
        """Look at a job.

        Args:
            spec: what is told of it.
            roots: where the bundles are, by their keys.
            engine: that draws it.
            cores: of the engine, on the CPU.

        Raises:
            GpupipeError: something is wrong with it.
        """
        options = options_on_node(spec, roots)
        if engine.backend.gpu is None and options.get("inference_threads") is None:
            options["inference_threads"] = cores
        with in_users_words(spec, roots), errors_of_the_system(), warnings.catch_warnings():
            warnings.simplefilter("ignore", GpupipeWarning)  # who asked for the render is told there
            character = Character.load(roots[spec.character.key], engine.limits)
            manifest = engine.manifest(character, f"output{spec.output}", **options)
        return cls(spec, character, options, manifest, roots)

    def load(self, engine: Engine) -> None:
        """Load the character as a whole, once, if all of it is shown."""
        with self._loading:
            if self._loaded or not self.spec.whole:
                return
            _, _, said, writing = split(self.options, JobKeywords, by="a job")
            names = options_of(ModelKeywords)
            model = {name: value for name, value in self.options.items() if name in names}
            pixel_format = pixel_format_of(writing, video=is_video(f"output{self.spec.output}"))
            engine.load(
                self.character,
                pixel_format=pixel_format,
                masked_video=said.masked_video,
                **cast(ModelKeywords, model),
            )
            self._loaded = True


@contextmanager
def in_users_words(spec: JobSpec, roots: Mapping[str, Path]) -> Iterator[None]:
    """Let errors name files as they are called where the render was asked for."""
    try:
        yield
    except GpupipeError as error:
        path = None if error.file is None else Path(os.fspath(error.file))
        for bundle in spec.bundles if path is not None else ():
            root = roots[bundle.key]
            if path is not None and path.is_relative_to(root):
                raise error.naming(Path(bundle.root) / path.relative_to(root)) from error
        raise


@contextmanager
def errors_of_the_system() -> Iterator[None]:
    """Let what the system refuses be an error of this node's."""
    try:
        yield
    except OSError as error:
        raise ClusterError(f"on a node: {reason(error)}", file=error.filename, remedy="look at its disk") from error
    except MemoryError as error:
        raise HostMemoryError(f"out of memory: {error}", remedy="use fewer engines a node, or nv12") from error
