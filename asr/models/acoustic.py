"""Front-end and encoder together: waveforms → log-probabilities."""

from collections.abc import Callable

from torch import Tensor, nn

from asr.features import SpectralFeatures
from asr.models.encoder import Encoder
from asr.records import Emissions, Features

# Of the model's weights among those of a training state.
MODEL_PREFIX = "acoustic_model."


class AcousticModel(nn.Module):
    """The one path from waveforms to emissions, for training, validation, evaluation and transcription."""

    def __init__(self, features: SpectralFeatures, encoder: Encoder) -> None:
        super().__init__()
        self.features = features
        self.encoder = encoder

    @property
    def seconds_per_frame(self) -> float:
        """Audio time between two emission frames."""
        return self.features.hop_seconds * self.encoder.subsampling

    def output_lengths(self, waveform_lengths: Tensor) -> Tensor:
        """Emission frames for each number of samples, ``(batch,)`` int64."""
        return self.encoder.output_lengths(self.features.output_lengths(waveform_lengths))

    def forward(
        self,
        waveforms: Tensor,
        waveform_lengths: Tensor,
        augment: Callable[[Features], Features] | None = None,
        with_intermediate: bool = False,
    ) -> Emissions:
        """``(batch, samples)`` and ``(batch,)`` lengths → emissions ``(batch, frames, vocab)``.

        ``augment`` changes the features on their way (SpecAugment, in training; it may return several
        views of each utterance). ``with_intermediate`` adds the emissions of earlier layers.
        """
        features = self.features(waveforms, waveform_lengths)
        return self.encoder(augment(features) if augment is not None else features, with_intermediate)
