"""`python -m gpupipe.serve.router CORES …`: a server, as `gpupipe serve …` is, that ends when its standard input does.

A router holds the other end, which the system closes with it, however it has ended. The server runs on these cores,
such as `0,2`; `-`: on all.
"""

import os
import signal
import sys
import threading

from gpupipe.cli import main


def _end_with_the_router() -> None:
    while os.read(0, 1024):
        pass
    signal.raise_signal(signal.SIGTERM)


cores, *arguments = sys.argv[1:]
if cores != "-" and hasattr(os, "sched_setaffinity"):
    os.sched_setaffinity(0, [int(core) for core in cores.split(",")])
threading.Thread(target=_end_with_the_router, daemon=True).start()
sys.exit(main(["serve", *arguments]))
