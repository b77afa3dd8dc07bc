"""The comparison behind `gpupipe bench`: gpupipe against the ways that people render today, on this machine.

It may use everything that renders; nothing that renders knows of it. It gives JSON values, which `report` shows.

`registry` names the ways, `way` says what is asked of each; `plain_ways`, `gpupipe_way` and `torch_way` are they.
`algorithm` is what every frame must equal, `precisions` how those are judged that cannot. `scene` is what all are given
alike. `stages`, `sweep` and `memory` measure, `measure` has the arithmetic, `floor` the least that the machine could
take. `host_steps` is gpupipe's compositor for the benchmarks of single steps.
"""

from gpupipe.bench.compare import run
from gpupipe.bench.options import BenchOptions, add_arguments

__all__ = ["BenchOptions", "add_arguments", "run"]
