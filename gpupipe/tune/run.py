"""Looking for the settings that render a character fastest on this machine, and remembering them."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any, Final, Unpack

from gpupipe.character.folder import Character
from gpupipe.engine.opening import workers
from gpupipe.errors import ProviderError
from gpupipe.log import Log
from gpupipe.machine import cpu_count
from gpupipe.model.runner import runs_at_a_time
from gpupipe.model.runtime import SessionOptions
from gpupipe.options import BATCH, EngineOptions, ModelOptions, OutputOptions, TuneKeywords, documented, split
from gpupipe.render.engine import Engine
from gpupipe.render.tuned import MOST_ENCODERS, spare_encoders
from gpupipe.render.tuning import Settings, Subject, Tuning, remember
from gpupipe.tune.rig import EngineRig
from gpupipe.tune.search import TURNS, Row, Search, Step, Told, grid, powers

_log = Log(__name__)

SECONDS: Final = 90
"""How long it takes, about, unless told otherwise."""

LEAST_FRAMES, MOST_FRAMES = 24, 750
"""Of a render that is measured: enough for each encoder to get under way; no more than a few seconds of a fast GPU."""

LOADING: Final = 0.2
"""Of the time, what opening and loading take, about."""

MOST_RUNS: Final = 16
"""Of the model at a time that are compared: each has activations of its own."""
BATCHES: Final = (1, 2, 4, BATCH, 16, 32, 64)


@dataclass(frozen=True)
class Report:
    """What was found.

    Attributes:
        tuning: which is remembered.
        file: there.
        default: the settings that nothing is tuned in.
        rows: every comparison, in order.
        frames: of a render, at most.
        seconds: that it all took.
        complete: whether there was time for every comparison.
    """

    tuning: Tuning
    file: Path
    default: Settings
    rows: tuple[Row, ...]
    frames: int
    seconds: float
    complete: bool

    def as_dict(self) -> dict[str, Any]:
        """The same as plain JSON values; of each comparison every turn, milliseconds a frame."""
        return {
            "tuning": self.tuning.as_dict(),
            "file": str(self.file),
            "default": self.default.known(),
            "frames": self.frames,
            "seconds": self.seconds,
            "complete": self.complete,
            "comparisons": [
                {
                    "settings": row.settings.known(),
                    "against": row.against.known(),
                    "speedup": row.speedup,
                    "speedups": row.speedups,
                    "ms": [seconds * 1e3 for seconds in row.seconds],
                    "decided": row.decided,
                    "wins": row.wins,
                }
                for row in self.rows
            ],
        }


@documented(TuneKeywords)
def tune(
    character: Character | Path | str,
    *,
    seconds: float = SECONDS,
    told: Told = lambda _: None,
    **options: Unpack[TuneKeywords],
) -> Report:
    """Find the settings that render a character fastest here, and remember them for its renders.

    Nothing that is tuned changes what is drawn on the CPU. On a GPU the batch may change the last bits of predictions.

    Args:
        character: the character, or its folder.
        seconds: how long it may take, about: what is under way is ended, and what was found is compared once more.
        told: given a line now and then, for people who wait.

    Raises:
        GpupipeError: one of its kinds; nothing is remembered then.
    """
    began = time.monotonic()
    _, model, _, output = split(options, TuneKeywords, by="tune()")
    loaded = character if isinstance(character, Character) else Character.load(character)
    with Engine(device=options.get("device", "auto")) as engine:
        subject, on_gpu = Subject.of(engine, loaded, model, output.encoder), engine.backend.gpu is not None
        for note in engine.notes:
            told(note)
    default = defaults(model, output, on_gpu=on_gpu)
    steps = steps_from(default)
    with (
        tempfile.TemporaryDirectory(prefix="gpupipe-tune-") as folder,
        closing(EngineRig(loaded, Path(folder), options, encoders()[-1])) as rig,
    ):
        rig.prepare(default)
        stats = rig.render(default)
        if subject is None or stats.provider != subject.provider:
            raise ProviderError(
                f"the model runs on {stats.provider} here",
                field="--provider",
                value=model.provider,
                remedy="see `gpupipe doctor`, or use --provider cpu",
            )
        rig.resize(frames_for(seconds, stats.total_seconds / stats.frames, default, steps))
        told(f"renders of {rig.frames} frames, or as many as the speech has, on {stats.device}")
        search = Search(rig, began + seconds, time.monotonic, told)
        settings, speedup = search.fastest(default, steps)
        break_even = rig.break_even if settings.feature_cache == "auto" else None
    tuning = Tuning(subject, settings, speedup, break_even, date.today().isoformat())
    file = remember(tuning)
    _log.event("tuning remembered", path=file, settings=str(settings), speedup=speedup)
    return Report(tuning, file, default, tuple(search.rows), rig.frames, time.monotonic() - began, not search.late)


def defaults(model: ModelOptions, output: OutputOptions, *, on_gpu: bool) -> Settings:
    """The settings that nothing is tuned in. On the CPU a batch is as many frames as the model runs at a time."""
    runs = runs_at_a_time(SessionOptions("cpu", threads=cpu_count()))
    if on_gpu:
        spare = spare_encoders(model, output)
        own = runs if model.provider == "cpu" else None
        return Settings(batch=BATCH, runs=own, encoders=spare, feature_cache="off")
    return Settings(runs=runs, encoders=1, workers=workers(EngineOptions()), feature_cache="off")


def steps_from(default: Settings) -> list[Step]:
    """What to look for from the default: those that matter on its device."""
    cores = cpu_count()
    axes: dict[str, list[int]] = {}
    if default.batch is not None:
        axes["batch"] = list(BATCHES)
    if default.runs is not None:
        # As `Model` bounds them, so that no two are the same.
        asked = powers(min(MOST_RUNS, cores))
        found = {runs_at_a_time(SessionOptions("cpu", threads=cores), runs) for runs in asked}
        axes["runs"] = sorted(found | {default.runs})
    axes["encoders"] = sorted({*encoders(), default.encoders or 1})

    def compositing(best: Settings) -> list[Settings]:
        if best.workers is None:
            return []
        runs = best.runs or 1
        return [best._replace(workers=count) for count in powers(min(runs, cores)) if count != min(best.workers, runs)]

    def keeping(best: Settings) -> list[Settings]:
        return [best._replace(feature_cache="auto")] if best.feature_cache == "off" else []

    return [Step(grid(axes), share=2), Step(compositing), Step(keeping)]


def encoders() -> list[int]:
    """How many encoders are compared."""
    return powers(min(MOST_ENCODERS, cpu_count()))


def frames_for(seconds: float, frame_seconds: float, default: Settings, steps: Sequence[Step]) -> int:
    """How many frames a render can have for all that is to be compared, and the last comparison, to be done in time."""
    compared = [len(step.rivals(default)) + 1 for step in steps] + [2]
    renders = sum(count * (TURNS + 1) for count in compared if count > 1)  # one more to warm up
    found = int(seconds * (1 - LOADING) / renders / frame_seconds)
    return min(MOST_FRAMES, max(LEAST_FRAMES, found))
