"""What is to be rendered: the speech, how long it lasts, and what the engine must draw."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace

from gpupipe.character.folder import Character, GpupipeWarning
from gpupipe.colour import PixelFormat
from gpupipe.compose.frames import FrameSpec
from gpupipe.engine.order import SessionOrder
from gpupipe.errors import OptionError, PackageError
from gpupipe.media.video import require_even
from gpupipe.options import ModelOptions, SpeechOptions
from gpupipe.render.precision import ModelFile, model_file
from gpupipe.speech.speech import Speech, open_speech


@dataclass(frozen=True)
class Plan:
    """What is to be rendered.

    Attributes:
        order: what the engine draws.
        speech: what the character says.
        total: output frames.
        notes: what to say of the model.
    """

    order: SessionOrder
    speech: Speech
    total: int
    notes: tuple[str, ...] = ()

    @property
    def character(self) -> Character:
        """Whom to render."""
        return self.order.character

    @classmethod
    def make(
        cls,
        character: Character,
        pixel_format: PixelFormat,
        model: ModelOptions,
        options: SpeechOptions,
        *,
        sound: bool,
    ) -> Plan:
        """Work out what is to be rendered.

        Args:
            character: whom.
            pixel_format: of finished frames.
            model: how the model is run.
            options: what is said.
            sound: whether sound goes with the picture.

        Raises:
            OptionError: an option is out of range.
            PackageError: the character does not hold what the options need.
            MediaError: the speech cannot be read.
            InferenceError: the model cannot be had in the precision that is asked for.
        """
        speech = open_speech(
            character,
            features=options.features,
            audio=options.audio,
            audio_encoder=options.audio_encoder,
            with_sound=sound,
        )
        total = min(options.frames or speech.frames, speech.frames)
        character.limits.check_output(total)
        require_start(options.start_frame, usable_frames(character, masked_video=options.masked_video))
        file = model_file(character, model)
        order = whole(character, pixel_format, model, file=file, masked_video=options.masked_video)
        order = replace(order, start=options.start_frame, total=total).needing([range(total)])
        return cls(order, speech, total, file.notes)


def whole(
    character: Character,
    pixel_format: PixelFormat,
    model: ModelOptions,
    *,
    file: ModelFile | None = None,
    masked_video: bool = False,
) -> SessionOrder:
    """What draws all frames of a character, for as long as the speech lasts.

    Args:
        character: whom.
        pixel_format: of finished frames.
        model: how the model is run.
        file: which file that is, where it is known.
        masked_video: take the model's inputs from the recorded videos.

    Raises:
        PackageError: the character does not hold what that needs.
        InferenceError: the model cannot be had in the precision that is asked for.
    """
    period = usable_frames(character, masked_video=masked_video)
    require_drawable(character, pixel_format)
    body = character.body
    spec = FrameSpec(
        layout=character.layout,
        pixel_format=pixel_format,
        width=body.width,
        height=body.height,
        rects=character.rects[:period],
        colour=body.colour,
        recorded=masked_video,
    )
    file = file or model_file(character, model)
    return SessionOrder(character, spec, file.path, model, period)


def require_drawable(character: Character, pixel_format: PixelFormat) -> None:
    """Raise unless finished frames of a character can have a pixel format.

    Raises:
        PackageError: its body has a size that the format has not.
    """
    body = character.body
    if pixel_format == "nv12":
        require_even(body.path, body.width, body.height, what="nv12", error=PackageError)


def require_start(start_frame: int, period: int) -> None:
    """Raise unless a render can start at a frame of a character, of which so many can be used.

    Raises:
        OptionError: it has fewer.
    """
    if start_frame >= period:
        raise OptionError(
            f"the character has {period} frames",
            field="--start-frame",
            value=start_frame,
            remedy=f"give 0 to {period - 1}",
        )


def usable_frames(character: Character, *, masked_video: bool) -> int:
    """Frames of a character that can be used.

    Raises:
        PackageError: the recorded inputs are asked for, and missing.

    Warns:
        GpupipeWarning: the recorded inputs end early.
    """
    if not masked_video:
        return character.count
    if character.recorded is None:
        raise PackageError(
            "the recorded model inputs are missing",
            file=character.path,
            field="--masked-video",
            remedy="add rois_320_video.mp4 and model_inputs_video.mp4, or leave --masked-video out",
        )
    shortest = min(info.frames for info in character.recorded)
    if shortest < character.count:
        note = (
            f"{character.path}: recorded model inputs end after {shortest} of {character.count} frames; those are used"
        )
        warnings.warn(note, GpupipeWarning, stacklevel=4)
    return min(shortest, character.count)
