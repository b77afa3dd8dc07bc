from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Output(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    OUTPUT_UNSPECIFIED: _ClassVar[Output]
    OUTPUT_H264: _ClassVar[Output]
    OUTPUT_HEVC: _ClassVar[Output]
    OUTPUT_JPEG: _ClassVar[Output]
    OUTPUT_NV12: _ClassVar[Output]

class SampleFormat(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    SAMPLE_FORMAT_UNSPECIFIED: _ClassVar[SampleFormat]
    SAMPLE_FORMAT_PCM_S16LE: _ClassVar[SampleFormat]
    SAMPLE_FORMAT_PCM_F32LE: _ClassVar[SampleFormat]
OUTPUT_UNSPECIFIED: Output
OUTPUT_H264: Output
OUTPUT_HEVC: Output
OUTPUT_JPEG: Output
OUTPUT_NV12: Output
SAMPLE_FORMAT_UNSPECIFIED: SampleFormat
SAMPLE_FORMAT_PCM_S16LE: SampleFormat
SAMPLE_FORMAT_PCM_F32LE: SampleFormat

class SpeakRequest(_message.Message):
    __slots__ = ("config", "audio", "end")
    CONFIG_FIELD_NUMBER: _ClassVar[int]
    AUDIO_FIELD_NUMBER: _ClassVar[int]
    END_FIELD_NUMBER: _ClassVar[int]
    config: SpeakConfig
    audio: bytes
    end: SpeakEnd
    def __init__(self, config: _Optional[_Union[SpeakConfig, _Mapping]] = ..., audio: _Optional[bytes] = ..., end: _Optional[_Union[SpeakEnd, _Mapping]] = ...) -> None: ...

class SpeakConfig(_message.Message):
    __slots__ = ("character", "output", "realtime", "delay_seconds", "sample_rate", "sample_format", "start_frame", "jpeg_quality")
    CHARACTER_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_FIELD_NUMBER: _ClassVar[int]
    REALTIME_FIELD_NUMBER: _ClassVar[int]
    DELAY_SECONDS_FIELD_NUMBER: _ClassVar[int]
    SAMPLE_RATE_FIELD_NUMBER: _ClassVar[int]
    SAMPLE_FORMAT_FIELD_NUMBER: _ClassVar[int]
    START_FRAME_FIELD_NUMBER: _ClassVar[int]
    JPEG_QUALITY_FIELD_NUMBER: _ClassVar[int]
    character: str
    output: Output
    realtime: bool
    delay_seconds: float
    sample_rate: int
    sample_format: SampleFormat
    start_frame: int
    jpeg_quality: int
    def __init__(self, character: _Optional[str] = ..., output: _Optional[_Union[Output, str]] = ..., realtime: _Optional[bool] = ..., delay_seconds: _Optional[float] = ..., sample_rate: _Optional[int] = ..., sample_format: _Optional[_Union[SampleFormat, str]] = ..., start_frame: _Optional[int] = ..., jpeg_quality: _Optional[int] = ...) -> None: ...

class SpeakEnd(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class SpeakResponse(_message.Message):
    __slots__ = ("header", "frame", "summary")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    FRAME_FIELD_NUMBER: _ClassVar[int]
    SUMMARY_FIELD_NUMBER: _ClassVar[int]
    header: SpeakHeader
    frame: Frame
    summary: SpeakSummary
    def __init__(self, header: _Optional[_Union[SpeakHeader, _Mapping]] = ..., frame: _Optional[_Union[Frame, _Mapping]] = ..., summary: _Optional[_Union[SpeakSummary, _Mapping]] = ...) -> None: ...

class SpeakHeader(_message.Message):
    __slots__ = ("width", "height", "fps_numerator", "fps_denominator", "output", "pixel_format", "codec", "delay_seconds", "colour_matrix", "full_range", "session")
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    HEIGHT_FIELD_NUMBER: _ClassVar[int]
    FPS_NUMERATOR_FIELD_NUMBER: _ClassVar[int]
    FPS_DENOMINATOR_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_FIELD_NUMBER: _ClassVar[int]
    PIXEL_FORMAT_FIELD_NUMBER: _ClassVar[int]
    CODEC_FIELD_NUMBER: _ClassVar[int]
    DELAY_SECONDS_FIELD_NUMBER: _ClassVar[int]
    COLOUR_MATRIX_FIELD_NUMBER: _ClassVar[int]
    FULL_RANGE_FIELD_NUMBER: _ClassVar[int]
    SESSION_FIELD_NUMBER: _ClassVar[int]
    width: int
    height: int
    fps_numerator: int
    fps_denominator: int
    output: Output
    pixel_format: str
    codec: str
    delay_seconds: float
    colour_matrix: int
    full_range: bool
    session: int
    def __init__(self, width: _Optional[int] = ..., height: _Optional[int] = ..., fps_numerator: _Optional[int] = ..., fps_denominator: _Optional[int] = ..., output: _Optional[_Union[Output, str]] = ..., pixel_format: _Optional[str] = ..., codec: _Optional[str] = ..., delay_seconds: _Optional[float] = ..., colour_matrix: _Optional[int] = ..., full_range: _Optional[bool] = ..., session: _Optional[int] = ...) -> None: ...

class Frame(_message.Message):
    __slots__ = ("index", "timestamp_seconds", "type", "keyframe", "repeats", "data", "audio")
    INDEX_FIELD_NUMBER: _ClassVar[int]
    TIMESTAMP_SECONDS_FIELD_NUMBER: _ClassVar[int]
    TYPE_FIELD_NUMBER: _ClassVar[int]
    KEYFRAME_FIELD_NUMBER: _ClassVar[int]
    REPEATS_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    AUDIO_FIELD_NUMBER: _ClassVar[int]
    index: int
    timestamp_seconds: float
    type: Output
    keyframe: bool
    repeats: bool
    data: bytes
    audio: bytes
    def __init__(self, index: _Optional[int] = ..., timestamp_seconds: _Optional[float] = ..., type: _Optional[_Union[Output, str]] = ..., keyframe: _Optional[bool] = ..., repeats: _Optional[bool] = ..., data: _Optional[bytes] = ..., audio: _Optional[bytes] = ...) -> None: ...

class SpeakSummary(_message.Message):
    __slots__ = ("frames", "late", "repeated", "audio")
    FRAMES_FIELD_NUMBER: _ClassVar[int]
    LATE_FIELD_NUMBER: _ClassVar[int]
    REPEATED_FIELD_NUMBER: _ClassVar[int]
    AUDIO_FIELD_NUMBER: _ClassVar[int]
    frames: int
    late: int
    repeated: int
    audio: bytes
    def __init__(self, frames: _Optional[int] = ..., late: _Optional[int] = ..., repeated: _Optional[int] = ..., audio: _Optional[bytes] = ...) -> None: ...

class ListCharactersRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListCharactersResponse(_message.Message):
    __slots__ = ("characters",)
    CHARACTERS_FIELD_NUMBER: _ClassVar[int]
    characters: _containers.RepeatedCompositeFieldContainer[Character]
    def __init__(self, characters: _Optional[_Iterable[_Union[Character, _Mapping]]] = ...) -> None: ...

class Character(_message.Message):
    __slots__ = ("name", "width", "height", "fps", "frames", "loaded")
    NAME_FIELD_NUMBER: _ClassVar[int]
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    HEIGHT_FIELD_NUMBER: _ClassVar[int]
    FPS_FIELD_NUMBER: _ClassVar[int]
    FRAMES_FIELD_NUMBER: _ClassVar[int]
    LOADED_FIELD_NUMBER: _ClassVar[int]
    name: str
    width: int
    height: int
    fps: float
    frames: int
    loaded: bool
    def __init__(self, name: _Optional[str] = ..., width: _Optional[int] = ..., height: _Optional[int] = ..., fps: _Optional[float] = ..., frames: _Optional[int] = ..., loaded: _Optional[bool] = ...) -> None: ...

class GetStatusRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetStatusResponse(_message.Message):
    __slots__ = ("version", "sessions", "most_sessions", "load", "closing")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    SESSIONS_FIELD_NUMBER: _ClassVar[int]
    MOST_SESSIONS_FIELD_NUMBER: _ClassVar[int]
    LOAD_FIELD_NUMBER: _ClassVar[int]
    CLOSING_FIELD_NUMBER: _ClassVar[int]
    version: str
    sessions: int
    most_sessions: int
    load: float
    closing: bool
    def __init__(self, version: _Optional[str] = ..., sessions: _Optional[int] = ..., most_sessions: _Optional[int] = ..., load: _Optional[float] = ..., closing: _Optional[bool] = ...) -> None: ...
