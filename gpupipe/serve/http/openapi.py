"""The interface as programs read it: OpenAPI 3.1, made of what is written here of each route."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from starlette.routing import Route

from gpupipe import __version__
from gpupipe.serve.http.schemas import SCHEMAS
from gpupipe.serve.order import DELAY_SECONDS

Doc = dict[str, Any]


def _json(what: str, schema: str) -> Doc:
    ref = {"$ref": f"#/components/schemas/{schema}"}
    return {"description": what, "content": {"application/json": {"schema": ref}}}


def _bytes(what: str, kind: str) -> Doc:
    return {"description": what, "content": {kind: {"schema": {"type": "string", "format": "binary"}}}}


def _error(what: str) -> Doc:
    return _json(what, "Error")


def _query(name: str, schema: Doc, what: str, *, required: bool = False) -> Doc:
    return {"name": name, "in": "query", "required": required, "schema": schema, "description": what}


def _operation(summary: str, answers: dict[str, Doc], **more: Any) -> Doc:
    return {"summary": summary, "responses": answers, **more}


_FLAG: Final = {"type": "integer", "enum": [0, 1]}
_START: Final = _query(
    "start_frame", {"type": "integer", "minimum": 0}, "position in the ping-pong order of the frames to start at"
)
_SOUND: Final = {
    "required": True,
    "description": "a sound file's bytes: wav, mp3, m4a, ogg, …, or a video's, whose sound is taken",
    "content": {"*/*": {"schema": {"type": "string", "format": "binary"}}},
}
_BAD: Final = {
    "400": _error("a field is wrong, or the body is no sound that can be read"),
    "408": _error("the body comes too slowly"),
    "413": _error("the body, or the sound, is larger or longer than is taken"),
    "503": _error("there is no room now; the header Retry-After says when to ask again"),
}
_NO_CHARACTER: Final = {"404": _error("there is no such character")}
_NO_SUCH_SIZE: Final = {"400": _error("it has an odd width or height, which no video has")}
_NO_TALK: Final = {"404": _error("there is no such talk")}
_NO_JOB: Final = {"404": _error("there is no such job")}

OPERATIONS: Final[dict[tuple[str, str], Doc]] = {
    ("/v1/characters", "get"): _operation("Who can speak", {"200": _json("all characters", "Characters")}),
    ("/v1/characters/{id}", "get"): _operation(
        "A character", {"200": _json("the character", "Character"), **_NO_SUCH_SIZE, **_NO_CHARACTER}
    ),
    ("/v1/characters/{id}/picture", "get"): _operation(
        "A character's first frame",
        {"200": _bytes("a picture, 640 pixels at most", "image/jpeg"), **_NO_SUCH_SIZE, **_NO_CHARACTER},
    ),
    ("/v1/characters/{id}/video", "post"): _operation(
        "A character speaks: the video comes while it is rendered",
        {
            "200": _bytes(
                "fragmented MP4, H.264 and AAC, playable from its first fragment. The header Content-Type names the "
                "codecs, Gpupipe-Talk the number of the talk in /v1/status. If something fails after the first byte, "
                "the answer breaks off without its last chunk",
                "video/mp4",
            ),
            **_BAD,
            **_NO_CHARACTER,
        },
        parameters=[
            _query("realtime", _FLAG, "1: each frame has its time, before all that have time; 0: as fast as can be"),
            _query(
                "delay",
                {"type": "number", "minimum": 0.5, "maximum": 10},
                f"realtime: seconds from a frame's own time to when it is due, {DELAY_SECONDS} unless given",
            ),
            _START,
        ],
        requestBody=_SOUND,
    ),
    ("/v1/characters/{id}/offer", "post"): _operation(
        "A character listens and speaks by WebRTC",
        {"200": _json("the server's answer, and the key of the talk", "Answer"), **_BAD, **_NO_CHARACTER},
        requestBody={
            "required": True,
            "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Offer"}}},
        },
    ),
    ("/v1/talks/{talk}", "get"): _operation("How a WebRTC talk goes", {"200": _json("its state", "Peer"), **_NO_TALK}),
    ("/v1/talks/{talk}", "delete"): _operation(
        "End a WebRTC talk", {"204": {"description": "it has ended"}, **_NO_TALK}
    ),
    ("/v1/talks/{talk}/audio", "post"): _operation(
        "Sound that the character of a WebRTC talk says, after what is said before",
        {"200": _json("seconds of sound that were taken, once all are", "Said"), **_BAD, **_NO_TALK},
        parameters=[
            _query("rate", {"type": "integer"}, "samples a second of raw mono samples; left out: the body is a file"),
            _query("encoding", {"type": "string"}, "of raw samples, which come as they are said"),
        ],
        requestBody=_SOUND,
    ),
    ("/v1/status", "get"): _operation("How busy the server is", {"200": _json("its state", "Status")}),
    ("/v1/jobs", "get"): _operation("All jobs", {"200": _json("the oldest first", "Jobs")}),
    ("/v1/jobs", "post"): _operation(
        "Render to a file, when there is time",
        {"202": _json("the job, which waits; the header Location says where it is", "Job"), **_BAD, **_NO_CHARACTER},
        parameters=[
            _query("character", {"type": "string"}, "who speaks", required=True),
            _START,
            _query("frames", {"type": "integer", "minimum": 1}, "the most frames; all of the speech unless given"),
            _query("sound", _FLAG, "0: a video without sound"),
            _query("crf", {"type": "integer", "minimum": 0, "maximum": 51}, "constant quality, lower is better"),
        ],
        requestBody=_SOUND,
    ),
    ("/v1/jobs/{id}", "get"): _operation("A job", {"200": _json("the job", "Job"), **_NO_JOB}),
    ("/v1/jobs/{id}", "delete"): _operation(
        "Call a job off, and remove its files", {"204": {"description": "it is gone"}, **_NO_JOB}
    ),
    ("/v1/jobs/{id}/video", "get"): _operation(
        "A finished job's video",
        {
            "200": _bytes("an MP4", "video/mp4"),
            "206": _bytes("the range that the header Range asks for", "video/mp4"),
            "404": _error("there is no such job, or it is not finished"),
            "416": {"description": "the range is beyond the file's end"},
        },
    ),
    ("/healthz", "get"): _operation("Whether the server lives", {"200": _json("it does", "State")}, security=[]),
    ("/readyz", "get"): _operation(
        "Whether the server takes more talks",
        {"200": _json("it does", "State"), "503": _error("it is being shut down")},
        security=[],
    ),
    ("/metrics", "get"): _operation("Metrics for Prometheus", {"200": _bytes("its text format", "text/plain")}),
    ("/openapi.json", "get"): _operation("This", {"200": _json("OpenAPI 3.1", "OpenApi")}, security=[]),
}
"""What there is, by path and method; the page's files are left out."""


def document(routes: Sequence[Route], *, tokens_wanted: bool) -> Doc:
    """The interface of a server with these routes.

    Args:
        routes: of the server.
        tokens_wanted: whether it has tokens.

    Raises:
        ValueError: one of them, below `/v1`, is not described here.
    """
    paths: dict[str, Doc] = {}
    for route in routes:
        for method in sorted(name.lower() for name in (route.methods or {"GET"}) - {"HEAD"}):
            found = OPERATIONS.get((route.path, method))
            if found is not None:
                paths.setdefault(route.path, {})[method] = _completed(route, found, tokens_wanted)
            elif route.path.startswith("/v1/"):
                raise ValueError(f"{method.upper()} {route.path} is not described")
    bearer = {"token": {"type": "http", "scheme": "bearer"}}
    told: Doc = {
        "openapi": "3.1.0",
        "info": {
            "title": "gpupipe serve",
            "version": __version__,
            "description": 'Filmed characters say what they are given. Errors: {"error": "what is wrong; a remedy"}.',
        },
        "paths": paths,
        "components": {"schemas": SCHEMAS},
    }
    if tokens_wanted:
        told["components"]["securitySchemes"] = bearer
        told["security"] = [{"token": []}]
    return told


def _completed(route: Route, found: Doc, tokens_wanted: bool) -> Doc:
    named = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in route.param_convertors
    ]
    done = found | {"parameters": [*named, *found.get("parameters", [])]}
    if tokens_wanted and "security" not in found:
        done["responses"] = found["responses"] | {"401": _error("a token is wanted, or it is a wrong one")}
    return done
