"""The packages that a server needs. Imports none of them."""

from __future__ import annotations

from typing import Final

from gpupipe.errors import OptionError
from gpupipe.machine import package_version

PACKAGES: Final = ("aiortc", "grpcio", "prometheus-client", "starlette", "uvicorn")
"""Of the extra `serve`."""


def require_packages() -> None:
    """See that all of them are installed.

    Raises:
        OptionError: some are not.
    """
    missing = [name for name in PACKAGES if package_version(name) is None]
    if missing:
        raise OptionError(
            f"gpupipe serve needs {', '.join(missing)}",
            remedy="install what is missing with pip install 'gpupipe[serve]'",
        )
