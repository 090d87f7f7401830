"""Changes made to training audio: speed, rooms, noise, codecs and level on the waveform,
vocal tract and masks on the features.

Everything random is drawn from one seed per utterance and epoch, so a batch is the same whatever
the number of loader processes, and nothing here ever runs in validation.
"""

from asr.augment.codecs import Codecs
from asr.augment.masks import SpecAugment
from asr.augment.noise import RecordedNoise, SimulatedNoise
from asr.augment.rooms import MeasuredRooms, SimulatedRooms
from asr.augment.sounds import SoundLibrary, find_sounds
from asr.augment.vocal_tract import FeatureAugmenter, VocalTractWarp
from asr.augment.waveform import Drawn, WaveformAugmenter

__all__ = [
    "Codecs",
    "Drawn",
    "FeatureAugmenter",
    "MeasuredRooms",
    "RecordedNoise",
    "SimulatedNoise",
    "SimulatedRooms",
    "SoundLibrary",
    "SpecAugment",
    "VocalTractWarp",
    "WaveformAugmenter",
    "find_sounds",
]
