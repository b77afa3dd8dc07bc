"""What stands behind a request's `?`: known names, once each, with values that fit."""

from __future__ import annotations

import math
from collections.abc import Collection
from urllib.parse import parse_qsl

from gpupipe.serve.refusals import BadRequest

MOST_FIELDS = 32


class Query:
    """The fields of a request.

    Args:
        text: what stands behind `?`.
        known: names that there are.

    Raises:
        BadRequest: another name, or one twice.
    """

    def __init__(self, text: str, known: Collection[str]) -> None:
        try:
            pairs = parse_qsl(text, keep_blank_values=True, max_num_fields=MOST_FIELDS, errors="strict")
        except ValueError as error:
            raise BadRequest("cannot be read", field="query", remedy="write name=value&name=value") from error
        self._fields = dict(pairs)
        for name, _ in pairs:
            if name not in known:
                some = ", ".join(known) or "none"
                raise BadRequest("no such field", field="query", value=name[:40], remedy=f"there are: {some}")
        if len(self._fields) < len(pairs):
            raise BadRequest("a field is there twice", field="query", remedy="give each once")

    def text(self, name: str) -> str:
        """A field that must be there."""
        if name not in self._fields:
            raise BadRequest("is missing", field=name, remedy=f"add {name}=… behind the ?")
        return self._fields[name]

    def flag(self, name: str, unset: bool) -> bool:
        """1 or 0."""
        value = self._fields.get(name)
        if value not in (None, "0", "1"):
            raise BadRequest("is neither 0 nor 1", field=name, value=value)
        return unset if value is None else value == "1"

    def whole(self, name: str, least: int, most: int) -> int | None:
        """A whole number; None if it is not there."""
        value = self._fields.get(name)
        if value is None:
            return None
        digits = value.removeprefix("-")
        number = int(value) if digits.isascii() and digits.isdigit() and len(digits) < 12 else None
        if number is None or not least <= number <= most:
            raise BadRequest("is no number that fits", field=name, value=value[:40], remedy=f"give {least} to {most}")
        return number

    def seconds(self, name: str, least: float, most: float) -> float | None:
        """A number of seconds; None if it is not there."""
        value = self._fields.get(name)
        if value is None:
            return None
        try:
            number = float(value)
        except ValueError:
            number = math.nan
        if not least <= number <= most:
            raise BadRequest("is no number that fits", field=name, value=value[:40], remedy=f"give {least} to {most}")
        return number
