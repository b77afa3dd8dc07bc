"""What answers in JSON look like: JSON Schema, for `openapi`."""

from __future__ import annotations

from typing import Any, Final, get_args

from gpupipe.serve.jobrecord import Status
from gpupipe.serve.order import Output

Schema = dict[str, Any]

_TEXT: Final[Schema] = {"type": "string"}
_COUNT: Final[Schema] = {"type": "integer", "minimum": 0}
_NUMBER: Final[Schema] = {"type": "number"}
_FLAG: Final[Schema] = {"type": "boolean"}


def _object(**properties: Schema) -> Schema:
    """An object with these properties, and no others."""
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def _list(items: Schema) -> Schema:
    return {"type": "array", "items": items}


def _or_null(schema: Schema, what: str) -> Schema:
    return schema | {"type": [schema["type"], "null"], "description": what}


def _ref(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


_SECONDS: Final = {"type": "number", "description": "seconds since 1970"}

SCHEMAS: Final[dict[str, Schema]] = {
    "Error": _object(error=_TEXT),
    "State": _object(status=_TEXT),
    "OpenApi": {"type": "object", "required": ["openapi", "info", "paths"]},
    "Offer": _object(sdp=_TEXT, type={"type": "string", "enum": ["offer"]}),
    "Answer": _object(sdp=_TEXT, type={"type": "string", "enum": ["answer"]}, talk=_TEXT),
    "Said": _object(seconds=_NUMBER),
    "Peer": _object(
        character=_TEXT,
        state=_TEXT | {"description": "of the connection, as WebRTC calls it"},
        speaking=_FLAG,
        ticks=_COUNT | {"description": "frames' times that have passed"},
        pictures=_COUNT | {"description": "handed to the encoder"},
        late=_COUNT | {"description": "frames for which the one before was repeated"},
        waited=_COUNT
        | {"description": "frames' times by which a speech began later, as its first picture was not there"},
    ),
    "Character": _object(id=_TEXT, width=_COUNT, height=_COUNT, fps=_NUMBER, frames=_COUNT),
    "Characters": _object(characters=_list(_ref("Character")), broken=_list(_object(id=_TEXT, error=_TEXT))),
    "Status": _object(
        version=_TEXT,
        closing=_FLAG,
        devices=_list(_TEXT),
        load={"type": "number", "description": "what realtime talks take of what is scarcest, 1 for all of it"},
        sessions=_COUNT,
        most_sessions=_COUNT,
        refused=_COUNT,
        room=_FLAG | {"description": "whether one more talk may come, if it takes little"},
        loaded=_list(_TEXT) | {"description": "characters that are loaded for talks, or being loaded"},
        models=_list(_TEXT) | {"description": "likewise, for the Go server's service"},
        talks=_list(_ref("Talk")),
    ),
    "Talk": _object(
        number=_COUNT,
        character=_TEXT,
        output={"type": "string", "enum": list(get_args(Output))},
        realtime=_FLAG,
        seconds={"type": "number", "description": "of speech that have come"},
        frames={"type": "integer", "description": "given out so far"},
        late={"type": "integer", "description": "frames that were late, or passed over"},
    ),
    "Jobs": _object(jobs=_list(_ref("Job"))),
    "Job": _object(
        id=_TEXT,
        character=_TEXT,
        options=_object(
            start_frame=_COUNT,
            frames=_or_null(_COUNT, "the most frames"),
            sound=_FLAG,
            crf=_or_null(_COUNT, "constant quality"),
        ),
        status={"type": "string", "enum": list(get_args(Status))},
        created=_SECONDS,
        started=_or_null(_NUMBER, "when it was last begun"),
        ended=_or_null(_NUMBER, "when it was finished, well or not"),
        done=_COUNT | {"description": "frames that are written"},
        total=_COUNT | {"description": "frames in all; 0: not known yet"},
        error=_or_null(_TEXT, "why it failed"),
    ),
}
