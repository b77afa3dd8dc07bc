"""What one client, and all of them, may take; checked before memory is."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ServeLimits:
    """Limits of a server.

    Attributes:
        sessions: talks at a time, realtime or not.
        seconds: of speech in a talk, or of a sound that is uploaded.
        upload_bytes: of a sound that is uploaded.
        message_bytes: of one message.
        ahead_seconds: of speech that may wait to be drawn, before its client is waited with.
        idle_seconds: after which a client that sends, or takes, nothing is sent away.
        connections: at a time.
        jobs: that wait or are under way.
        job_hours: for which a finished job's output is kept.
    """

    sessions: int = 256
    seconds: float = 3600.0
    upload_bytes: int = 256_000_000
    message_bytes: int = 104_857_600
    ahead_seconds: float = 30.0
    idle_seconds: float = 30.0
    connections: int = 4096
    jobs: int = 1000
    job_hours: float = 24.0
