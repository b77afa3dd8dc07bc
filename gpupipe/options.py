"""What can be asked for."""

from typing import Final

MAX_BATCH: Final = 512
"""Frames a batch may have: one bit each in 64 bytes of status."""
