"""Short-time spectra on the model's device: log-mel, MFCC, log-spectrogram.

All of them pad the signal with zeros at both ends and centre window ``t`` on sample
``t * hop_samples``. A batch is zero-padded as well, so an utterance has the same features alone
and in any batch.
"""

import math

import torch
import torchaudio
from torch import Tensor, nn

from asr.errors import ConfigError
from asr.records import Features

# About the energy of 16-bit quantisation noise in one mel band: digital silence stays near the
# quietest real frames instead of becoming an outlier of the normalisation.
LOG_FLOOR = 1e-7


class SpectralFeatures(nn.Module):
    """Waveforms → normalised features; subclasses say what is taken from the power spectrum.

    Args:
        sample_rate: Hz.
        window_seconds: length of the Hann window.
        hop_seconds: distance between frames.
        dither: standard deviation of the white noise added to samples in training mode
            (full scale is 1). It keeps silent stretches from being all alike.
        normalise: ``utterance`` (zero mean, unit variance per bin over the utterance's own
            frames), ``utterance_mean`` (zero mean) or ``none``.

    Raises:
        ConfigError: the hop is shorter than one sample or the window shorter than two.
    """

    num_bins: int

    def __init__(
        self,
        *,
        sample_rate: int,
        window_seconds: float,
        hop_seconds: float,
        dither: float,
        normalise: str,
    ) -> None:
        super().__init__()
        self.sample_rate = sample_rate
        self.hop_samples = round(hop_seconds * sample_rate)
        self.window_samples = round(window_seconds * sample_rate)
        if self.hop_samples < 1 or self.window_samples < 2:
            raise ConfigError(
                f"features.window_seconds={window_seconds:g} and features.hop_seconds={hop_seconds:g} are too "
                f"short for features.sample_rate={sample_rate}: at least 2 samples and 1 sample are needed"
            )
        self.fft_size = 2 ** (self.window_samples - 1).bit_length()
        self.dither = dither
        self.normalise = normalise
        self.spectrum = torchaudio.transforms.Spectrogram(
            n_fft=self.fft_size,
            win_length=self.window_samples,
            hop_length=self.hop_samples,
            power=None,  # complex: squaring its parts is cheaper than abs() and its square root
            center=True,
            pad_mode="constant",
        )

    @property
    def hop_seconds(self) -> float:
        """Exact distance between frames, after rounding to whole samples."""
        return self.hop_samples / self.sample_rate

    def output_lengths(self, waveform_lengths: Tensor) -> Tensor:
        """Number of frames for each number of samples, ``(batch,)`` int64."""
        return torch.div(waveform_lengths, self.hop_samples, rounding_mode="floor") + 1

    def forward(self, waveforms: Tensor, waveform_lengths: Tensor) -> Features:
        """Features of zero-padded waveforms.

        Args:
            waveforms: ``(batch, samples)`` float32 at ``sample_rate``.
            waveform_lengths: ``(batch,)`` int64.

        Returns:
            ``(batch, frames, bins)`` float32, zero beyond ``feature_lengths``.
        """
        # Half-precision spectra lose the quiet frames: float32 even under autocast.
        with torch.autocast(waveforms.device.type, enabled=False):
            waveforms = waveforms.float()
            if self.training and self.dither > 0:
                noise = self.dither * torch.randn_like(waveforms)
                waveforms = waveforms + noise * length_mask(waveform_lengths, waveforms.shape[1])
            spectrum = self.spectrum(waveforms).transpose(1, 2)
            features = self.from_power(spectrum.real.square() + spectrum.imag.square())
            feature_lengths = self.output_lengths(waveform_lengths)
            return Features(self._normalised(features, feature_lengths), feature_lengths)

    def bin_hertz(self) -> Tensor | None:
        """``(bins,)`` centre of each bin, ascending; None where bins are no bands of frequencies."""
        raise TypeError(f"{type(self).__name__} must say which frequencies its bins are")

    def from_power(self, power: Tensor) -> Tensor:
        """``(batch, frames, fft_size // 2 + 1)`` power → ``(batch, frames, bins)`` log domain."""
        raise TypeError(f"{type(self).__name__} must say what it takes from the power spectrum")

    def _normalised(self, features: Tensor, feature_lengths: Tensor) -> Tensor:
        mask = length_mask(feature_lengths, features.shape[1]).unsqueeze(2)
        if self.normalise != "none":
            counts = feature_lengths.view(-1, 1, 1).to(features.dtype)
            mean = (features * mask).sum(dim=1, keepdim=True) / counts
            features = features - mean
            if self.normalise == "utterance":
                variance = (features.square() * mask).sum(dim=1, keepdim=True) / counts
                features = features / (variance + 1e-5).sqrt()
        return features * mask


class LogMel(SpectralFeatures):
    """Logarithm of mel-band energies, ``num_mels`` per frame."""

    def __init__(self, *, num_mels: int, low_hz: float, high_hz: float | None, **spectral: object) -> None:
        super().__init__(**spectral)  # type: ignore[arg-type]
        self.num_bins = num_mels
        self.mel_scale = torchaudio.transforms.MelScale(
            n_mels=num_mels,
            sample_rate=self.sample_rate,
            f_min=low_hz,
            f_max=high_hz,
            n_stft=self.fft_size // 2 + 1,
        )

    def bin_hertz(self) -> Tensor | None:
        # MelScale's triangles, on the scale of O'Shaughnessy (1987): equal distances in mel, the ends are no centres.
        low, high = (
            2595 * math.log10(1 + hertz / 700) for hertz in (self.mel_scale.f_min, self.mel_scale.f_max)
        )
        mels = torch.linspace(low, high, self.num_bins + 2, dtype=torch.float64)[1:-1]
        return 700 * (10 ** (mels / 2595) - 1)

    def from_power(self, power: Tensor) -> Tensor:
        return (self.mel_scale(power.transpose(1, 2)).transpose(1, 2) + LOG_FLOOR).log()


class Mfcc(LogMel):
    """Cosine transform of the log-mel energies, ``num_mfcc`` coefficients per frame."""

    dct: Tensor

    def __init__(self, *, num_mfcc: int, num_mels: int, **options: object) -> None:
        super().__init__(num_mels=num_mels, **options)  # type: ignore[arg-type]
        self.num_bins = num_mfcc
        self.register_buffer("dct", torchaudio.functional.create_dct(num_mfcc, num_mels, norm="ortho"))

    def bin_hertz(self) -> Tensor | None:
        return None

    def from_power(self, power: Tensor) -> Tensor:
        return super().from_power(power) @ self.dct


class LogSpectrogram(SpectralFeatures):
    """Logarithm of the power spectrum, ``fft_size // 2 + 1`` bins per frame."""

    def __init__(self, **spectral: object) -> None:
        super().__init__(**spectral)  # type: ignore[arg-type]
        self.num_bins = self.fft_size // 2 + 1

    def bin_hertz(self) -> Tensor | None:
        return torch.linspace(0, self.sample_rate / 2, self.num_bins, dtype=torch.float64)

    def from_power(self, power: Tensor) -> Tensor:
        return (power + LOG_FLOOR).log()


def length_mask(lengths: Tensor, max_length: int) -> Tensor:
    """``(batch, max_length)`` bool: True where the position is below the length."""
    return torch.arange(max_length, device=lengths.device) < lengths.unsqueeze(1)
