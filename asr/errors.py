"""Errors meant for the person at the keyboard.

Every :class:`AsrError` carries one clear line that names the file, utterance or option
and says what to do about it. Entry points print that line and exit with code 2; any other
exception is a bug and keeps its traceback.
"""


class AsrError(Exception):
    """Base of all user-facing errors."""


class ConfigError(AsrError):
    """Options that are unknown, out of range or contradict each other."""


class AudioError(AsrError):
    """An audio file that cannot be turned into usable samples."""


class NotFiniteAudioError(AudioError):
    """Audio with NaN or infinite samples."""


class ManifestError(AsrError):
    """A manifest or corpus folder that is missing, malformed or empty."""


class TextError(AsrError):
    """A transcript or tokenizer input that cannot be encoded."""


class CheckpointError(AsrError):
    """A checkpoint that is damaged, unsafe or from another version."""


class TrainingError(AsrError):
    """Training cannot go on: non-finite loss, no usable utterances, unwritable run directory."""
