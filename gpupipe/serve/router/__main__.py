"""`python -m gpupipe.serve.router`: a server, as `gpupipe serve` is, that ends when its standard input does.

A router holds the other end, which the system closes with it, however it has ended.
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


threading.Thread(target=_end_with_the_router, daemon=True).start()
sys.exit(main(["serve", *sys.argv[1:]]))
