"""The command line."""

from gpupipe.cli.commands import main

__all__ = ["main"]
