"""Augmentation: limits, determinism by seed, and that nothing depends on the batch around an utterance."""

import math

import pytest
import torch
import torchaudio
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from asr.augment import SpecAugment, WaveformAugmenter
from asr.augment.waveform import _resampler
from asr.records import Features

FACTORS = [0.9, 1.0, 1.1]


def augmenter(factors: list[float], gain_db: float = 0.0) -> WaveformAugmenter:
    return WaveformAugmenter(speed_factors=factors, gain_db=gain_db)


def tone(hertz: float, num_samples: int = 16000) -> Tensor:
    return torch.sin(2 * torch.pi * hertz * torch.arange(num_samples) / 16000)


# ------------------------------------------------------------------ waveforms


@pytest.mark.parametrize(
    ("factor", "ratio"), [(0.9, (10, 9)), (1.1, (10, 11)), (1.25, (4, 5)), (0.5, (2, 1))]
)
@pytest.mark.parametrize("num_samples", [1, 159, 16000, 48001])
def test_speed_changes_the_length_by_its_factor(
    factor: float, ratio: tuple[int, int], num_samples: int
) -> None:
    changed = augmenter([factor])(torch.randn(num_samples), seed=1)
    assert len(changed) == math.ceil(num_samples * ratio[0] / ratio[1])


def test_speed_raises_the_pitch() -> None:
    faster = augmenter([1.1])(tone(1000), seed=3)
    spectrum = torch.fft.rfft(faster[:14400]).abs()
    assert int(spectrum.argmax()) * 16000 / 14400 == pytest.approx(1100, abs=2)


def test_speed_equals_torchaudio_where_its_ratio_is_small() -> None:
    waveform = torch.randn(8000)
    expected, _ = torchaudio.transforms.Speed(16000, 0.9)(waveform)
    torch.testing.assert_close(augmenter([0.9])(waveform, seed=0), expected)


@given(hundredths=st.integers(50, 200))
@settings(deadline=None, max_examples=30)
def test_speed_kernels_stay_small_whatever_the_factor(hundredths: int) -> None:
    # torchaudio's Speed at 22050 Hz and 1.05 makes a kernel of 128 million values.
    resampler = _resampler(hundredths / 100)
    assert resampler.orig_freq / resampler.new_freq == pytest.approx(hundredths / 100, rel=1e-9)
    assert max(resampler.orig_freq, resampler.new_freq) <= 200


def test_all_factors_are_drawn_about_equally_often() -> None:
    change = augmenter(FACTORS)
    lengths = [len(change(torch.zeros(990), seed)) for seed in range(600)]
    counts = [lengths.count(length) for length in (1100, 990, 900)]
    assert sum(counts) == 600
    assert min(counts) > 150


def test_gain_is_uniform_in_decibels_within_its_limits() -> None:
    change = augmenter([1.0], gain_db=6.0)
    gains = torch.tensor([20 * math.log10(float(change(torch.ones(4), seed)[0])) for seed in range(500)])
    assert gains.abs().max() <= 6.0
    assert gains.min() < -5.5
    assert gains.max() > 5.5
    assert abs(float(gains.mean())) < 0.5


def test_the_same_seed_gives_the_same_waveform() -> None:
    waveform = torch.randn(4000)
    first, again = (augmenter(FACTORS, gain_db=6.0)(waveform, seed=2**61 + 5) for _ in range(2))
    assert torch.equal(first, again)
    others = [augmenter(FACTORS, gain_db=6.0)(waveform, seed) for seed in range(5)]
    assert len({float(other.abs().sum()) for other in others}) == 5


def test_the_global_random_state_is_neither_read_nor_changed() -> None:
    waveform, features = torch.randn(4000), Features(torch.randn(1, 50, 20), torch.tensor([50]))
    change, mask = augmenter(FACTORS, gain_db=6.0), masker()
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = change(waveform, 7), mask(features, torch.tensor([7])).features
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    second = change(waveform, 7), mask(features, torch.tensor([7])).features
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


def test_without_options_the_waveform_passes_untouched() -> None:
    waveform = torch.randn(100)
    assert torch.equal(augmenter([1.0])(waveform, seed=9), waveform)


# ------------------------------------------------------------------ SpecAugment


def masker(**changes: float) -> SpecAugment:
    options = {
        "num_time_masks": 2,
        "max_time_frames": 40,
        "max_time_share": 0.2,
        "num_mel_masks": 2,
        "max_mel_share": 0.25,
    }
    return SpecAugment(**{**options, **changes})  # type: ignore[arg-type]


def ones(lengths: list[int], num_bins: int = 20, extra: int = 0) -> Features:
    counts = torch.tensor(lengths)
    mask = torch.arange(max(lengths) + extra) < counts[:, None]
    return Features(mask.float()[:, :, None].repeat(1, 1, num_bins), counts)


@given(
    length=st.integers(1, 300),
    num_bins=st.integers(1, 40),
    max_frames=st.integers(1, 60),
    time_share=st.floats(0.01, 1.0),
    mel_share=st.floats(0.01, 1.0),
    seed=st.integers(0, 2**62),
)
@settings(deadline=None, max_examples=150)
def test_masks_are_contiguous_and_within_their_limits(
    length: int, num_bins: int, max_frames: int, time_share: float, mel_share: float, seed: int
) -> None:
    mask = masker(
        num_time_masks=1,
        num_mel_masks=1,
        max_time_frames=max_frames,
        max_time_share=time_share,
        max_mel_share=mel_share,
    )
    found = mask(ones([length], num_bins, extra=7), torch.tensor([seed])).features[0]
    hidden = found[:length] == 0
    frames, bins = hidden.all(dim=1), hidden.all(dim=0)
    if not hidden.all():
        assert int(frames.sum()) <= min(max_frames, time_share * length)
        assert int(bins.sum()) <= mel_share * num_bins
        # What is hidden is a band of whole frames and a band of whole bins, each in one piece.
        assert torch.equal(hidden, frames[:, None] | bins[None, :])
        for band in (frames, bins):
            places = band.nonzero().flatten()
            assert len(places) == 0 or int(places[-1] - places[0]) + 1 == len(places)
    else:
        assert time_share * length >= length or mel_share * num_bins >= num_bins
    assert (found[length:] == 0).all()


def test_the_widest_masks_and_every_place_are_reached() -> None:
    inputs = ones([100])
    frames = torch.zeros(100, dtype=torch.bool)
    widths = set()
    for seed in range(400):
        hidden = (
            masker(num_time_masks=1, num_mel_masks=0, max_time_frames=10)(inputs, torch.tensor([seed]))
            .features[0, :, 0]
            .eq(0)
        )
        frames |= hidden
        widths.add(int(hidden.sum()))
    assert widths == set(range(11))
    assert frames.all()


def test_masks_depend_on_the_seed_alone_not_on_the_batch() -> None:
    lengths, seeds = [120, 37, 300], torch.tensor([11, 2**61, 13])
    together = masker()(ones(lengths), seeds).features
    reversed_batch = masker()(ones(lengths[::-1], extra=50), seeds.flip(0)).features.flip(0)
    for index, length in enumerate(lengths):
        alone = masker()(ones([length]), seeds[index : index + 1]).features[0]
        assert torch.equal(together[index, :length], alone)
        assert torch.equal(reversed_batch[index, :length], alone)
    assert not torch.equal(
        masker()(ones([120]), torch.tensor([11])).features, masker()(ones([120]), torch.tensor([12])).features
    )


def test_what_is_not_masked_stays_and_the_input_is_not_changed() -> None:
    features = Features(torch.randn(2, 80, 20), torch.tensor([80, 60]))
    before = features.features.clone()
    found = masker()(features, torch.tensor([1, 2]))
    assert torch.equal(features.features, before)
    kept = found.features != 0
    assert torch.equal(found.features[kept], before[kept])
    assert torch.equal(found.feature_lengths, features.feature_lengths)
    assert not kept.all()


def test_no_masks_change_nothing() -> None:
    inputs = ones([50])
    found = masker(num_time_masks=0, num_mel_masks=0)(inputs, torch.tensor([1]))
    assert torch.equal(found.features, inputs.features)
