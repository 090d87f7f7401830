"""Features against torchaudio's own pipelines, frame counts against real shapes, padding and silence."""

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torchaudio
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from asr.errors import ConfigError
from asr.features import LOG_FLOOR, LogMel, LogSpectrogram, Mfcc, SpectralFeatures, length_mask

SPECTRAL: dict[str, Any] = {
    "sample_rate": 16000,
    "window_seconds": 0.025,
    "hop_seconds": 0.010,
    "dither": 0.0,
    "normalise": "none",
}
MEL: dict[str, Any] = {"num_mels": 80, "low_hz": 20.0, "high_hz": 7600.0}


def log_mel(**changes: Any) -> LogMel:
    return LogMel(**{**SPECTRAL, **MEL, **changes}).eval()


def mfcc(**changes: Any) -> Mfcc:
    return Mfcc(**{**SPECTRAL, **MEL, "num_mfcc": 40, **changes}).eval()


def log_spectrogram(**changes: Any) -> LogSpectrogram:
    return LogSpectrogram(**{**SPECTRAL, **changes}).eval()


KINDS = {"logmel": log_mel, "mfcc": mfcc, "spectrogram": log_spectrogram}
every_kind = pytest.mark.parametrize("make", KINDS.values(), ids=KINDS.keys())


def noise(num_samples: int, seed: int = 0) -> Tensor:
    return 0.1 * torch.randn(num_samples, generator=torch.Generator().manual_seed(seed))


def padded(waveforms: list[Tensor], extra: int = 0) -> tuple[Tensor, Tensor]:
    lengths = torch.tensor([len(waveform) for waveform in waveforms])
    batch = torch.nn.utils.rnn.pad_sequence(waveforms, batch_first=True)
    return torch.nn.functional.pad(batch, (0, extra)), lengths


# ------------------------------------------------------------------ values


def torchaudio_mel(waveform: Tensor) -> Tensor:
    mel = torchaudio.transforms.MelSpectrogram(
        16000,
        n_fft=512,
        win_length=400,
        hop_length=160,
        n_mels=80,
        f_min=20.0,
        f_max=7600.0,
        power=2.0,
        center=True,
        pad_mode="constant",
    )
    return mel(waveform).T


def test_log_mel_equals_torchaudio() -> None:
    waveform = noise(16000)
    ours = log_mel()(waveform[None], torch.tensor([16000])).features[0]
    torch.testing.assert_close(ours, (torchaudio_mel(waveform) + LOG_FLOOR).log(), rtol=1e-4, atol=1e-4)


def test_mfcc_equals_torchaudio() -> None:
    waveform = 10 * noise(16000)  # loud: torchaudio's own floor of 1e-6 makes no difference
    reference = torchaudio.transforms.MFCC(
        16000,
        n_mfcc=40,
        log_mels=True,
        melkwargs={
            "n_fft": 512,
            "win_length": 400,
            "hop_length": 160,
            "n_mels": 80,
            "f_min": 20.0,
            "f_max": 7600.0,
            "pad_mode": "constant",
        },
    )
    ours = mfcc()(waveform[None], torch.tensor([16000])).features[0]
    torch.testing.assert_close(ours, reference(waveform).T, rtol=1e-3, atol=1e-3)


def test_log_spectrogram_equals_torchaudio() -> None:
    waveform = noise(4000)
    power = torchaudio.transforms.Spectrogram(n_fft=512, win_length=400, hop_length=160, pad_mode="constant")
    ours = log_spectrogram()(waveform[None], torch.tensor([4000])).features[0]
    assert ours.shape[1] == log_spectrogram().num_bins == 257
    torch.testing.assert_close(ours, (power(waveform).T + LOG_FLOOR).log(), rtol=1e-3, atol=1e-3)


def test_a_tone_is_found_in_its_own_bin() -> None:
    time = torch.arange(16000) / 16000
    tone = torch.sin(2 * torch.pi * 1000 * time)
    frames = log_spectrogram()(tone[None], torch.tensor([16000])).features[0, 5:-5]
    assert (frames.argmax(dim=1) == 32).all()  # 1000 Hz x 512 / 16000


@pytest.mark.parametrize("sample_rate", [8000, 11025, 16000, 22050, 44100, 48000])
def test_other_rates_have_the_same_time_axis(sample_rate: int) -> None:
    features = log_spectrogram(sample_rate=sample_rate)
    assert features.hop_seconds == pytest.approx(0.010, rel=0.005)
    assert features.fft_size >= features.window_samples > features.fft_size / 2
    found = features(noise(sample_rate)[None], torch.tensor([sample_rate]))
    assert abs(found.features.shape[1] - 101) <= 1


def test_settings_shorter_than_a_sample_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"hop_seconds.*too short.*sample_rate=16000"):
        log_spectrogram(hop_seconds=1e-5)
    with pytest.raises(ConfigError, match=r"window_seconds"):
        log_spectrogram(window_seconds=7e-5, hop_seconds=6.25e-5)


# ------------------------------------------------------------------ frame counts


@given(
    num_samples=st.integers(1, 3000),
    hop_ms=st.sampled_from([1.25, 5.0, 8.0, 10.0, 12.5, 16.0]),
    window_ms=st.sampled_from([16.0, 20.0, 25.0, 32.0]),
    sample_rate=st.sampled_from([8000, 11025, 16000]),
)
@settings(deadline=None, max_examples=60)
def test_output_lengths_are_the_real_number_of_frames(
    num_samples: int, hop_ms: float, window_ms: float, sample_rate: int
) -> None:
    features = log_spectrogram(
        sample_rate=sample_rate, hop_seconds=hop_ms / 1000, window_seconds=window_ms / 1000
    )
    lengths = torch.tensor([num_samples])
    found = features(noise(num_samples)[None], lengths)
    assert found.features.shape[1] == int(found.feature_lengths) == int(features.output_lengths(lengths))
    assert found.feature_lengths.dtype == torch.int64


def test_frame_counts_by_hand() -> None:
    # One frame centred on every multiple of 160 samples that is not beyond the end.
    lengths = torch.tensor([1, 159, 160, 161, 320, 16000])
    assert log_mel().output_lengths(lengths).tolist() == [1, 1, 2, 2, 3, 101]


def test_length_mask() -> None:
    mask = length_mask(torch.tensor([0, 2, 3]), 3)
    assert mask.tolist() == [[False] * 3, [True, True, False], [True] * 3]


# ------------------------------------------------------------------ padding


@every_kind
@pytest.mark.parametrize("normalise", ["utterance", "utterance_mean", "none"])
def test_an_utterance_has_the_same_features_alone_and_in_a_batch(
    make: Callable[..., SpectralFeatures], normalise: str
) -> None:
    features = make(normalise=normalise)
    waveforms = [noise(length, seed) for seed, length in enumerate([4000, 1601, 7999, 320])]
    together = features(*padded(waveforms, extra=777))
    for index, waveform in enumerate(waveforms):
        alone = features(waveform[None], torch.tensor([len(waveform)]))
        length = int(alone.feature_lengths[0])
        assert int(together.feature_lengths[index]) == length
        torch.testing.assert_close(together.features[index, :length], alone.features[0], rtol=1e-4, atol=1e-4)
        assert (together.features[index, length:] == 0).all()


def test_normalisation_is_over_the_own_frames() -> None:
    batch = log_mel(normalise="utterance")(*padded([noise(9000), noise(3000, 1)]))
    for frames, length in zip(batch.features, batch.feature_lengths.tolist(), strict=True):
        own = frames[:length].double()
        torch.testing.assert_close(own.mean(0), torch.zeros(80).double(), rtol=0, atol=1e-4)
        torch.testing.assert_close(own.var(0, correction=0), torch.ones(80).double(), rtol=1e-3, atol=1e-3)


def test_mean_normalisation_keeps_the_variance() -> None:
    inputs = padded([noise(9000)])
    raw, centred = (log_mel(normalise=kind)(*inputs).features[0] for kind in ("none", "utterance_mean"))
    torch.testing.assert_close(centred, raw - raw.mean(0), rtol=1e-4, atol=1e-4)


# ------------------------------------------------------------------ silence, dither, precision


@every_kind
@pytest.mark.parametrize("normalise", ["utterance", "utterance_mean", "none"])
def test_digital_silence_and_impulses_are_finite(
    make: Callable[..., SpectralFeatures], normalise: str
) -> None:
    impulse = torch.zeros(3000)
    impulse[1500] = 1.0
    batch = make(normalise=normalise)(*padded([torch.zeros(4000), impulse, torch.zeros(1), torch.ones(500)]))
    assert batch.features.isfinite().all()
    assert batch.features.abs().max() < 200


def test_gradients_through_silence_are_finite() -> None:
    waveforms = torch.zeros(1, 2000, requires_grad=True)
    log_mel(normalise="utterance")(waveforms, torch.tensor([2000])).features.sum().backward()
    assert waveforms.grad is not None
    assert waveforms.grad.isfinite().all()


def test_dither_is_only_for_training_and_only_on_samples() -> None:
    features = log_mel(dither=1e-3)
    silence, lengths = torch.zeros(2, 8000), torch.tensor([8000, 1600])
    floor = float(torch.tensor(LOG_FLOOR).log())
    torch.testing.assert_close(
        features(silence, lengths).features[0], torch.full((51, 80), floor), rtol=1e-4, atol=1e-4
    )
    features.train()
    torch.manual_seed(0)
    heard: list[Tensor] = []
    features.spectrum.register_forward_pre_hook(lambda module, inputs: heard.append(inputs[0]))
    first, second = (features(silence, lengths).features for _ in range(2))
    assert not torch.equal(first, second)
    assert (first[0].mean(dim=0) > floor + 1).all()
    assert (heard[0][1, 1600:] == 0).all()
    assert float(heard[0][0].std()) == pytest.approx(1e-3, rel=0.1)
    assert (silence == 0).all()  # the caller's tensor stays as it is


def test_without_dither_training_changes_nothing() -> None:
    inputs = padded([noise(4000)])
    features = log_mel(dither=0.0)
    evaluated = features(*inputs).features
    assert torch.equal(evaluated, features.train()(*inputs).features)


@every_kind
def test_autocast_does_not_lower_the_precision(make: Callable[..., SpectralFeatures]) -> None:
    features, inputs = make(normalise="utterance"), padded([noise(4000)])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = features(*inputs).features
    assert found.dtype == torch.float32
    assert torch.equal(found, features(*inputs).features)


def test_every_default_mel_band_hears_something() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        filters = log_mel(high_hz=None).mel_scale.fb
    assert (filters.sum(dim=0) > 0).all()
