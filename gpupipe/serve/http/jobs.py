"""`/v1/jobs`: renders to files."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route

from gpupipe.render.plan import require_start, usable_frames
from gpupipe.serve.http.query import Query
from gpupipe.serve.http.uploads import Uploads, checked_sound
from gpupipe.serve.http.video import MOST_START_FRAME
from gpupipe.serve.hub import Hub
from gpupipe.serve.jobrecord import JobOptions, JobRecord
from gpupipe.serve.jobs import Jobs

HIGHEST_CRF = 51


class JobRoutes:
    """The routes of jobs.

    Args:
        hub: of the server.
        jobs: of the server.
        uploads: of the server.
    """

    def __init__(self, hub: Hub, jobs: Jobs, uploads: Uploads) -> None:
        self._hub, self._jobs, self._uploads = hub, jobs, uploads

    def routes(self, root: str) -> list[Route]:
        """All of them, below `root`."""
        return [
            Route(f"{root}/jobs", self.every, methods=["GET"]),
            Route(f"{root}/jobs", self.submit, methods=["POST"]),
            Route(f"{root}/jobs/{{id}}", self.one, methods=["GET"]),
            Route(f"{root}/jobs/{{id}}", self.delete, methods=["DELETE"]),
            Route(f"{root}/jobs/{{id}}/video", self.video, methods=["GET"]),
        ]

    async def submit(self, request: Request) -> Response:
        """Take a job."""
        character, options = job_order(request.scope["query_string"].decode("latin-1"))
        loop, hub = asyncio.get_running_loop(), self._hub
        found = await loop.run_in_executor(hub.opening, hub.characters.get, character)
        require_start(options.start_frame, usable_frames(found, masked_video=False))
        sound = await asyncio.to_thread(self._jobs.draft)
        try:
            await self._uploads.take(request, sound)
            limits = hub.engines[0].limits
            await loop.run_in_executor(hub.hearing, checked_sound, sound, limits, hub.limits.seconds)
            record = await asyncio.to_thread(self._jobs.submit, sound, character, options)
        except BaseException:
            await asyncio.to_thread(self._jobs.drop, sound)
            raise
        return JSONResponse(_told(record), 202, headers={"location": f"{request.url.path}/{record.id}"})

    async def every(self, _: Request) -> Response:
        """All jobs."""
        return JSONResponse({"jobs": [_told(record) for record in self._jobs.all()]})

    async def one(self, request: Request) -> Response:
        """A job."""
        return JSONResponse(_told(self._jobs.get(request.path_params["id"])))

    async def video(self, request: Request) -> Response:
        """A finished job's video, or ranges of its bytes."""
        record, path = await asyncio.to_thread(self._found, request.path_params["id"])
        name = f"{record.character}-{record.id[:6]}.mp4"
        return FileResponse(path, media_type="video/mp4", filename=name, content_disposition_type="inline")

    async def delete(self, request: Request) -> Response:
        """Call a job off, and forget it."""
        await asyncio.to_thread(self._jobs.delete, request.path_params["id"])
        return Response(status_code=204)

    def _found(self, name: str) -> tuple[JobRecord, Path]:
        return self._jobs.get(name), self._jobs.video(name)


def job_order(query: str) -> tuple[str, JobOptions]:
    """What a request asks for: a character's name, and how to render.

    Raises:
        BadRequest: it cannot be had.
    """
    fields = Query(query, ("character", "start_frame", "frames", "sound", "crf"))
    return fields.text("character"), JobOptions(
        start_frame=fields.whole("start_frame", 0, MOST_START_FRAME) or 0,
        frames=fields.whole("frames", 1, MOST_START_FRAME),
        sound=fields.flag("sound", unset=True),
        crf=fields.whole("crf", 0, HIGHEST_CRF),
    )


def _told(record: JobRecord) -> dict[str, Any]:
    return record.as_dict()
