"""Vocal tract length perturbation against Jaitly & Hinton's formula, numpy's interpolation and shifted tones."""

import math

import numpy as np
import pytest
import torch
from conftest import compose_config
from hypothesis import given
from hypothesis import strategies as st

from asr import build
from asr.augment import FeatureAugmenter, VocalTractWarp
from asr.config import TrainConfig
from asr.errors import ConfigError
from asr.features import LogMel, LogSpectrogram, Mfcc, SpectralFeatures
from asr.records import Features

RATE = 16000
OPTIONS = {
    "sample_rate": RATE,
    "window_seconds": 0.025,
    "hop_seconds": 0.01,
    "dither": 0.0,
    "normalise": "none",
}


def log_mel(num_mels: int = 80) -> LogMel:
    return LogMel(num_mels=num_mels, low_hz=20.0, high_hz=None, **OPTIONS)


def warp(features: SpectralFeatures, factor: float) -> VocalTractWarp:
    bin_hertz = features.bin_hertz()
    assert bin_hertz is not None
    return VocalTractWarp(bin_hertz=bin_hertz, highest_hertz=RATE / 2, factors=(factor, factor))


def moved(hertz: float, factor: float) -> float:
    """Equation 1 of the paper, with its F_hi of 4800 Hz."""
    bend, half = 4800 * min(factor, 1), RATE / 2
    if hertz <= bend / factor:
        return hertz * factor
    return half - (half - bend) / (half - bend / factor) * (half - hertz)


def tone(hertz: float) -> torch.Tensor:
    return torch.sin(2 * math.pi * hertz * torch.arange(RATE // 4) / RATE)[None]


def features_of(front_end: SpectralFeatures, waveform: torch.Tensor) -> Features:
    return front_end.eval()(waveform, torch.tensor([waveform.shape[1]]))


def test_bins_are_where_the_filters_peak() -> None:
    front_end = log_mel(40)
    hertz = front_end.bin_hertz()
    peaks = front_end.mel_scale.fb.argmax(dim=0) * RATE / front_end.fft_size
    assert (hertz - peaks).abs().max() <= RATE / front_end.fft_size
    spectrum = LogSpectrogram(**OPTIONS)
    assert spectrum.bin_hertz().tolist() == [i * RATE / spectrum.fft_size for i in range(spectrum.num_bins)]
    assert Mfcc(num_mfcc=13, num_mels=40, low_hz=20.0, high_hz=None, **OPTIONS).bin_hertz() is None


@pytest.mark.parametrize("factor", [0.8, 0.9, 1.1, 1.25])
@pytest.mark.parametrize("hertz", [500.0, 1500.0, 3500.0, 5500.0, 7000.0])
@pytest.mark.parametrize("front_end", [log_mel(), LogSpectrogram(**OPTIONS)], ids=["mel", "linear"])
def test_a_tone_moves_as_the_paper_says(front_end: SpectralFeatures, hertz: float, factor: float) -> None:
    found = warp(front_end, factor)(features_of(front_end, tone(hertz)), torch.tensor([3]))
    expected = features_of(front_end, tone(moved(hertz, factor)))
    loudest = [one.features[0].mean(dim=0).argmax() for one in (found, expected)]
    assert abs(int(loudest[0] - loudest[1])) <= 1


@given(st.floats(0.5, 2.0), st.integers(2, 60), st.integers(0, 2**62))
def test_values_are_numpys_interpolation(factor: float, num_bins: int, seed: int) -> None:
    front_end = log_mel(num_bins)
    hertz = front_end.bin_hertz().numpy()
    features = torch.randn(1, 3, num_bins, generator=torch.Generator().manual_seed(seed))
    found = warp(front_end, factor)(Features(features, torch.tensor([3])), torch.tensor([seed])).features[0]
    # The inverse of the paper's function, by a fine table of it.
    table = np.linspace(0, RATE / 2, 200_001)
    source = np.interp(hertz, [moved(one, factor) for one in table[::50]], table[::50])
    for row, expected in zip(found.numpy(), features[0].numpy(), strict=True):
        np.testing.assert_allclose(row, np.interp(source, hertz, expected), atol=2e-3)


def test_a_factor_of_one_changes_nothing_and_padding_stays_zero() -> None:
    front_end = log_mel()
    features = Features(torch.randn(2, 30, 80), torch.tensor([30, 20]))
    features.features[1, 20:] = 0
    same = warp(front_end, 1.0)(features, torch.tensor([1, 2])).features
    torch.testing.assert_close(same, features.features, atol=1e-5, rtol=0)
    assert (warp(front_end, 1.3)(features, torch.tensor([1, 2])).features[1, 20:] == 0).all()


def test_factors_depend_on_the_seed_alone_and_fill_their_range() -> None:
    front_end = log_mel()
    hertz = front_end.bin_hertz()
    augment = VocalTractWarp(bin_hertz=hertz, highest_hertz=RATE / 2, factors=(0.8, 1.2))
    features = torch.randn(3, 20, 80)
    seeds, lengths = torch.tensor([5, 2**61, 7]), torch.tensor([20, 20, 20])
    together = augment(Features(features, lengths), seeds).features
    for index in range(3):
        alone = augment(
            Features(features[index : index + 1], lengths[:1]), seeds[index : index + 1]
        ).features[0]
        assert torch.equal(together[index], alone)
    assert not torch.equal(together[0], augment(Features(features, lengths), seeds + 1).features[0])
    # What a bin at 1 kHz reads tells the factor: the features are the frequencies themselves.
    ramp = Features(hertz.float().expand(400, 1, -1).contiguous(), torch.ones(400, dtype=torch.int64))
    at_one_kilohertz = int(torch.searchsorted(hertz, 1000.0))
    read = augment(ramp, torch.arange(400)).features[:, 0, at_one_kilohertz]
    factors = float(hertz[at_one_kilohertz]) / read
    assert 0.8 <= factors.min() < 0.81
    assert 1.19 < factors.max() <= 1.2


def test_the_option_reaches_the_training() -> None:
    def augmenter(*overrides: str) -> FeatureAugmenter:
        config = compose_config(
            "train", TrainConfig, ["data.train=x", "data.dev=x", "augment=none", *overrides]
        )
        model = build.make_acoustic_model(config.features, config.model, 5)
        return build.make_augmenters(config.augment, model.features)[1]

    features = Features(torch.randn(1, 30, 80), torch.tensor([30]))
    seed = torch.tensor([4])
    assert torch.equal(augmenter()(features, seed).features, features.features)
    changed = augmenter("augment.vtlp_factors=[0.9,1.1]")(features, seed).features
    assert not torch.equal(changed, features.features)
    masked = augmenter("augment.vtlp_factors=[0.9,1.1]", "augment.num_mel_masks=1")(features, seed).features
    hidden = masked == 0
    assert hidden.any()
    assert torch.equal(masked[~hidden], changed[~hidden])  # masks come last
    with pytest.raises(ConfigError, match="cepstra"):
        augmenter("augment.vtlp_factors=[0.9,1.1]", "features=mfcc")
    with pytest.raises(ConfigError, match="two numbers"):
        augmenter("augment.vtlp_factors=[1.1,0.9]")
    with pytest.raises(ConfigError, match="at most 2"):
        augmenter("augment.vtlp_factors=[1,3]")
