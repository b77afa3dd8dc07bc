"""A measurement, or several, as one HTML page that needs nothing from outside."""

from __future__ import annotations

from collections.abc import Sequence

from gpupipe.report import Result
from gpupipe.report_tables import text_of_all


def page(results: Sequence[tuple[str, Result]]) -> str:
    """The page."""
    return text_of_all(results)
