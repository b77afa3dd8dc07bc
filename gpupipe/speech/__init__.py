"""What is said: sound to mel columns, to windows, to feature rows, whole or as it arrives; and how long it lasts.

Works on arrays and on the host, with sounds from `media`, characters from `character` and encoders opened by `model`.
It gives a `Speech` (feature rows, length, sound file), and `SpeechRows` with the `FeatureStream` that fills them.
"""

from gpupipe.speech.encoder import AudioEncoder, encode_speech, write_features
from gpupipe.speech.rows import SpeechRows
from gpupipe.speech.speech import Speech, open_speech
from gpupipe.speech.stream import FeatureStream, features_from_pcm

__all__ = [
    "AudioEncoder",
    "FeatureStream",
    "Speech",
    "SpeechRows",
    "encode_speech",
    "features_from_pcm",
    "open_speech",
    "write_features",
]
