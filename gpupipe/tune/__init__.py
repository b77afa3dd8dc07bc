"""Which settings render a character fastest on this machine: `gpupipe tune`.

It renders, and times whole renders; nothing that renders knows of it. What it finds is remembered by `render.tuning`,
and used by `render.tuned`.

    search  which settings to compare, and who wins      rig  engines that stay open, and the time of a render on them
    run     both together, and what is found
"""

from gpupipe.tune.run import SECONDS, Report, tune

__all__ = ["SECONDS", "Report", "tune"]
