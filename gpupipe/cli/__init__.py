"""The command line."""

from gpupipe.cli.main import main

__all__ = ["main"]
