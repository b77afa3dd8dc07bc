"""Who may ask: those who hold one of the server's tokens, if it has any."""

from __future__ import annotations

import hmac
from pathlib import Path
from typing import Final

from gpupipe.errors import OptionError, reason

LEAST_LETTERS: Final = 16
"""Of a token: 16 random letters of base64 have 96 bits."""


class Tokens:
    """The tokens of a server; none: everybody may ask.

    Args:
        tokens: each of them.
    """

    def __init__(self, tokens: tuple[str, ...] = ()) -> None:
        self._tokens = tuple(each.encode() for each in tokens)

    @classmethod
    def read(cls, path: Path) -> Tokens:
        """Those of a file, one a line; empty lines and those that begin with # are left out.

        Raises:
            OptionError: it cannot be read, holds none, or one that is too short.
        """
        try:
            lines = [line.strip() for line in path.read_text("utf-8").splitlines()]
        except (OSError, UnicodeDecodeError) as error:
            raise OptionError(f"cannot be read: {reason(error)}", field="--token-file", value=str(path)) from error
        tokens = tuple(line for line in lines if line and not line.startswith("#"))
        if not tokens or min(map(len, tokens)) < LEAST_LETTERS:
            raise OptionError(
                f"must hold tokens of {LEAST_LETTERS} letters or more, one a line",
                field="--token-file",
                value=str(path),
                remedy="make one with `openssl rand -base64 32`",
            )
        return cls(tokens)

    @property
    def wanted(self) -> bool:
        """Whether a token must be shown."""
        return bool(self._tokens)

    @property
    def any(self) -> str | None:
        """One of them, to be shown to servers that want the same; None: there are none."""
        return self._tokens[0].decode() if self._tokens else None

    @property
    def every(self) -> tuple[str, ...]:
        """All of them, for servers that are to want the same."""
        return tuple(each.decode() for each in self._tokens)

    def allows(self, authorization: str | None) -> bool:
        """Whether who shows this may ask. The time it takes tells nothing of the tokens but how many there are.

        Args:
            authorization: `Bearer TOKEN`, as in HTTP's header and gRPC's metadata of that name; None: nothing shown.
        """
        if not self._tokens:
            return True
        scheme, _, token = (authorization or "").partition(" ")
        shown = token.strip().encode()
        matches = [hmac.compare_digest(shown, each) for each in self._tokens]
        return scheme.lower() == "bearer" and any(matches)
