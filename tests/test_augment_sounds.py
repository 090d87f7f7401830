"""Noise, rooms and codecs, each against an independent computation."""

import math
from pathlib import Path

import numpy as np
import pytest
import scipy.signal
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from asr.audio import load_audio
from asr.augment import (
    Codecs,
    MeasuredRooms,
    RecordedNoise,
    SimulatedNoise,
    SimulatedRooms,
    SoundLibrary,
    find_sounds,
)
from asr.augment.codecs import CODECS, code, telephone_band
from asr.augment.noise import MadeNoise, NoiseDraw, cut_stretch, mix_noise
from asr.augment.rooms import DIRECT_SECONDS, SimulatedRoom, reverberate
from asr.augment.sounds import Sound, _with_energy, list_files, sounds_sha256
from asr.errors import ConfigError

RATE = 16000
BIG = 2**30


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def library(path: Path, cache_bytes: int = BIG, rate: int = RATE) -> SoundLibrary:
    return SoundLibrary(find_sounds(str(path), "augment.noise"), sample_rate=rate, cache_bytes=cache_bytes)


def sound(samples: Tensor) -> Sound:
    return _with_energy(samples, block_samples=320)


def power(waveform: Tensor) -> float:
    return float(waveform.double().square().sum())


def lag(found: Tensor, original: Tensor) -> int:
    """Samples by which ``found`` comes later."""
    correlation = scipy.signal.correlate(found.numpy(), original.numpy(), method="fft")
    return int(np.abs(correlation).argmax()) - (len(original) - 1)


def speechlike(num_samples: int = 2 * RATE, seed: int = 1, level: float = 0.1) -> Tensor:
    """Coloured noise whose level goes up and down four times a second."""
    noise = np.random.default_rng(seed).standard_normal(num_samples)
    coloured = scipy.signal.lfilter([1], [1, -0.9], noise)
    envelope = 0.55 - 0.45 * np.cos(2 * np.pi * 4 * np.arange(num_samples) / RATE)
    return torch.from_numpy((level * coloured * envelope).astype(np.float32))


# ------------------------------------------------------------------ noise


@given(seed=st.integers(0, 2**62), num_samples=st.sampled_from([1600, 24000, 50000]))
@settings(deadline=None, max_examples=40)
def test_the_ratio_is_the_one_that_was_drawn(
    noise_library: SoundLibrary, seed: int, num_samples: int
) -> None:
    noise = RecordedNoise(noise_library, probability=1.0, snr_db=(-5.0, 25.0))
    speech = speechlike(num_samples)
    drawn = noise.draw(seeded(seed))
    assert drawn is not None
    noisy = noise.apply(speech, drawn)
    assert len(noisy) == num_samples
    assert -5 <= drawn.snr_db <= 25
    measured = 10 * math.log10(power(speech) / power(noisy.double() - speech.double()))
    assert measured == pytest.approx(drawn.snr_db, abs=0.01)


@given(seed=st.integers(0, 2**62), num_samples=st.sampled_from([1, 1601, 24000]))
@settings(deadline=None, max_examples=30)
def test_made_noise_has_the_ratio_that_was_drawn(seed: int, num_samples: int) -> None:
    noise = SimulatedNoise(sample_rate=16000, probability=1.0, snr_db=(-5.0, 25.0))
    speech = speechlike(num_samples)
    drawn = noise.draw(seeded(seed))
    assert drawn is not None
    noisy = noise.apply(speech, drawn)
    assert len(noisy) == num_samples
    measured = 10 * math.log10(power(speech) / power(noisy.double() - speech.double()))
    assert measured == pytest.approx(drawn.snr_db, abs=0.02)
    assert torch.equal(noise.apply(speech, drawn), noisy)


@pytest.mark.parametrize("slope_db", [0.0, -3.0, -6.0, -9.0])
def test_the_spectrum_of_made_noise_falls_as_drawn(slope_db: float) -> None:
    noise = SimulatedNoise(sample_rate=16000, probability=1.0, snr_db=(0.0, 0.0))
    made = noise.make(16000 * 20, MadeNoise(snr_db=0.0, slope_db=slope_db, gust_db=0.0, seed=7)).double()
    hertz, density = scipy.signal.welch(made.numpy(), 16000, nperseg=1024)
    inside = (hertz > 100) & (hertz < 7000)
    slope = np.polyfit(np.log2(hertz[inside]), 10 * np.log10(density[inside]), 1)[0]
    assert slope == pytest.approx(slope_db, abs=0.3)


def test_gusts_move_the_level_of_made_noise() -> None:
    noise = SimulatedNoise(sample_rate=16000, probability=1.0, snr_db=(0.0, 0.0))
    spreads = []
    for gust_db in (0.0, 5.0, 10.0):
        made = noise.make(16000 * 60, MadeNoise(snr_db=0.0, slope_db=0.0, gust_db=gust_db, seed=7))
        spreads.append(float((10 * made.reshape(-1, 800).pow(2).mean(1).log10()).std()))
    assert spreads[0] < 0.5
    # Levels are interpolated between independent ones, which takes a fifth off their deviation.
    assert spreads[1] == pytest.approx(5.0 * math.sqrt(2 / 3), rel=0.2)
    assert spreads[2] == pytest.approx(10.0 * math.sqrt(2 / 3), rel=0.2)


@pytest.fixture(scope="module")
def noise_library(noise_folder: Path) -> SoundLibrary:
    return library(noise_folder)


def test_probability_and_range_of_the_draw(noise_library: SoundLibrary) -> None:
    noise = RecordedNoise(noise_library, probability=0.3, snr_db=(0.0, 10.0))
    drawn = [noise.draw(seeded(seed)) for seed in range(1000)]
    heard = [draw for draw in drawn if draw is not None]
    assert 230 < len(heard) < 370
    assert np.mean([draw.snr_db for draw in heard]) == pytest.approx(5, abs=0.7)
    names = [draw.part.name for draw in heard]
    assert min(names.count(name) for name in ("steady.wav", "short/hum.flac", "short/event.wav")) > 60
    assert RecordedNoise(noise_library, probability=0.0, snr_db=(0.0, 10.0)).draw(seeded(1)) is None


@given(
    length=st.integers(1, 3000),
    num_samples=st.integers(1, 4000),
    instant=st.floats(0, 1, exclude_max=True),
    place=st.floats(0, 1, exclude_max=True),
    event=st.floats(0, 1, exclude_max=True),
)
@settings(deadline=None, max_examples=200)
def test_a_stretch_is_a_piece_of_the_repeated_noise_and_never_silent(
    length: int, num_samples: int, instant: float, place: float, event: float
) -> None:
    samples = torch.zeros(length)
    samples[int(event * length)] = 0.5  # the shortest event there is
    samples[: length // 3] += 0.001 * torch.arange(length // 3)
    stretch = cut_stretch(sound(samples), num_samples, instant, place)
    assert len(stretch) == num_samples
    assert power(stretch) > 0
    if num_samples <= length:
        windows = samples.unfold(0, num_samples, 1)
    else:
        windows = torch.stack(
            [samples.roll(-start).repeat(num_samples // length + 2)[:num_samples] for start in range(length)]
        )
    assert (windows == stretch).all(dim=1).any()


def test_every_part_of_a_steady_noise_is_used() -> None:
    samples = 1 + torch.arange(16000) / 1e6
    starts = [
        float(cut_stretch(sound(samples), 1000, *torch.rand(2, generator=seeded(seed)).tolist())[0] - 1) * 1e6
        for seed in range(2000)
    ]
    counts, _ = np.histogram(starts, bins=10, range=(0, 15001))
    assert counts.sum() == 2000
    assert counts.min() > 130
    assert counts.max() < 330  # moments near the ends are heard from the first or to the last sample


def test_silent_noise_leaves_speech_as_it_is_and_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    soundfile.write(tmp_path / "silence.wav", np.zeros(8000), RATE)
    noise = RecordedNoise(library(tmp_path), probability=1.0, snr_db=(0.0, 0.0))
    speech = speechlike()
    for seed in range(3):
        drawn = noise.draw(seeded(seed))
        assert drawn is not None
        assert torch.equal(noise.apply(speech, drawn), speech)
    assert caplog.text.count("silence.wav is silent") == 1


def test_silent_speech_stays_finite(noise_library: SoundLibrary) -> None:
    part = noise_library.draw(seeded(1))
    silence = torch.zeros(1000)
    noisy = mix_noise(silence, noise_library.load(part), NoiseDraw(part, 5.0, 0.5, 0.5))
    assert torch.equal(noisy, silence)
    assert torch.equal(reverberate(silence, torch.tensor([0.1, 1.0, 0.3])), silence)


# ------------------------------------------------------------------ recordings


def test_recordings_are_found_in_folders_manifests_and_single_files(
    noise_folder: Path, tmp_path: Path
) -> None:
    names = [part.name for part in find_sounds(str(noise_folder), "x")]
    assert names == ["short/event.wav", "short/hum.flac", "steady.wav"]
    manifest = tmp_path / "noise.jsonl"
    manifest.write_text(
        f'{{"id": "a", "audio_filepath": "{noise_folder}/steady.wav", "offset": 0.5, "duration": 0.25, "text": ""}}\n'
    )
    (part,) = find_sounds(str(manifest), "x")
    loaded = library(manifest).load(part).waveform
    whole = load_audio(noise_folder / "steady.wav", RATE)
    assert torch.equal(loaded, whole[8000:12000])
    (part,) = find_sounds(str(noise_folder / "steady.wav"), "x")
    assert part.duration_seconds == 1.5


@pytest.mark.parametrize("make", ["missing", "empty", "text", "broken"])
def test_what_holds_no_recordings_names_the_option(make: str, tmp_path: Path) -> None:
    path = tmp_path / make
    if make != "missing":
        path.mkdir()
    if make == "text":
        (path / "readme.txt").write_text("no audio here")
    if make == "broken":
        (path / "a.wav").write_text("not audio")
    with pytest.raises(ConfigError, match=r"augment\.noise=") as caught:
        find_sounds(str(path), "augment.noise")
    assert "\n" not in str(caught.value)


def test_unreadable_recordings_are_named_the_rest_is_used(
    noise_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("steady.wav", "short/hum.flac"):
        (tmp_path / Path(name).name).write_bytes((noise_folder / name).read_bytes())
    (tmp_path / "broken.wav").write_text("not audio")
    assert [part.name for part in find_sounds(str(tmp_path), "augment.noise")] == ["hum.flac", "steady.wav"]
    assert "1 of 3" in caplog.text
    assert "broken.wav" in caplog.text


def test_the_hash_tells_other_recordings(noise_folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "steady.wav"
    copy.write_bytes((noise_folder / "steady.wav").read_bytes())
    before = sounds_sha256(str(tmp_path), "x")
    assert sounds_sha256(str(tmp_path), "x") == before
    copy.rename(tmp_path / "other.wav")
    assert sounds_sha256(str(tmp_path), "x") != before
    assert len(list_files(str(tmp_path), "x")) == 1


def test_each_is_decoded_once_and_the_limit_is_kept(
    noise_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded: list[str] = []

    def counting(path: Path, *arguments: float, **options: float) -> Tensor:
        decoded.append(path.name)
        return load_audio(path, *arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr("asr.augment.sounds.load_audio", counting)
    sounds = library(noise_folder)
    limited = library(noise_folder, cache_bytes=120_000)  # event 2 s: 128 kB, hum 0.1 s, steady 1.5 s
    for _ in range(3):
        for part in sounds.sounds:
            assert torch.equal(sounds.load(part).waveform, limited.load(part).waveform)
    assert sorted(decoded) == ["event.wav"] * 4 + ["hum.flac"] * 2 + ["steady.wav"] * 2
    held = sum(kept.waveform.nbytes + kept.energy.nbytes for kept in limited._cache.values())
    assert 0 < held <= 120_000


def test_long_recordings_are_read_in_parts(tmp_path: Path) -> None:
    ramp = np.arange(100 * 100, dtype=np.float32) / 10000
    soundfile.write(tmp_path / "long.wav", ramp, 100, subtype="FLOAT")
    sounds = library(tmp_path, rate=100)
    parts = {sounds.draw(seeded(seed)) for seed in range(60)}
    assert sorted((part.offset_seconds, part.duration_seconds) for part in parts) == [
        (0, 30),
        (30, 30),
        (60, 40),
    ]
    for part in parts:
        start = round(part.offset_seconds * 100)
        np.testing.assert_array_equal(
            sounds.load(part).waveform, ramp[start : start + round(part.duration_seconds * 100)]
        )


# ------------------------------------------------------------------ rooms


@given(delay=st.integers(0, 900), num_samples=st.integers(50, 9000), seed=st.integers(0, 99))
@settings(deadline=None, max_examples=40)
def test_reverberation_is_scipys_convolution_without_its_delay(
    delay: int, num_samples: int, seed: int
) -> None:
    random = np.random.default_rng(seed)
    response = 0.2 * random.standard_normal(1000) * np.exp(-np.arange(1000) / 200)
    response[delay] = 3.0
    speech = random.standard_normal(num_samples)
    expected = scipy.signal.fftconvolve(speech, response)[delay : delay + num_samples]
    expected *= np.linalg.norm(speech) / np.linalg.norm(expected)
    found = reverberate(torch.from_numpy(speech).float(), torch.from_numpy(response).float())
    np.testing.assert_allclose(found.numpy(), expected, atol=2e-4)


def test_measured_rooms_come_from_files_at_any_rate(tmp_path: Path) -> None:
    response = np.zeros(4800)
    response[480] = 0.5  # a direct path 10 ms late, and one echo 20 ms after it
    response[480 + 960] = 0.25
    soundfile.write(tmp_path / "room.wav", response, 48000, subtype="FLOAT")
    rooms = MeasuredRooms(library(tmp_path), probability=1.0)
    drawn = rooms.draw(seeded(3))
    assert drawn is not None
    speech = speechlike()
    found = reverberate(speech, rooms.response(drawn))
    echo = torch.nn.functional.pad(speech, (320, 0))[: len(speech)]
    expected = speech + 0.5 * echo
    expected *= math.sqrt(power(speech) / power(expected))
    # Speech below 7 kHz only: an impulse at 48 kHz is no longer one sample at 16 kHz.
    low = scipy.signal.firwin(101, 6000, fs=RATE)
    difference = scipy.signal.fftconvolve((found - expected).numpy(), low)
    assert np.sqrt((difference**2).mean()) < 0.02 * float(expected.std())
    assert lag(found, speech) == 0


@pytest.mark.parametrize(("rt60", "direct_db"), [(0.3, 6.0), (0.8, -3.0), (1.5, 0.0)])
def test_simulated_rooms_decay_as_asked(rt60: float, direct_db: float) -> None:
    rooms = SimulatedRooms(sample_rate=RATE, probability=1.0, rt60_seconds=(rt60, rt60), direct_db=(0.0, 0.0))
    slopes = []
    for seed in range(8):
        response = rooms.response(SimulatedRoom(rt60, direct_db, seed)).double().numpy()
        num_direct = round(DIRECT_SECONDS * RATE)
        direct, tail = response[:num_direct], response[num_direct:]
        assert 10 * math.log10((direct**2).sum() / (tail**2).sum()) == pytest.approx(direct_db, abs=1e-3)
        assert np.abs(response).argmax() == 0
        # Schroeder's backward integration (ISO 3382): time from -5 to -25 dB, three times that is RT60.
        level = 10 * np.log10(np.cumsum(tail[::-1] ** 2)[::-1] / (tail**2).sum())
        slopes.append(3 * (np.argmax(level < -25) - np.argmax(level < -5)) / RATE)
    assert np.mean(slopes) == pytest.approx(rt60, rel=0.05)


def test_rooms_keep_place_length_and_loudness() -> None:
    rooms = SimulatedRooms(sample_rate=RATE, probability=1.0, rt60_seconds=(0.2, 0.9), direct_db=(0.0, 12.0))
    speech = speechlike()
    for seed in range(10):
        drawn = rooms.draw(seeded(seed))
        assert drawn is not None
        assert 0.2 <= drawn.rt60_seconds <= 0.9
        assert 0 <= drawn.direct_db <= 12
        found = reverberate(speech, rooms.response(drawn))
        assert len(found) == len(speech)
        assert lag(found, speech) == 0
        assert power(found) == pytest.approx(power(speech), rel=1e-3)
    heard = [
        SimulatedRooms(sample_rate=RATE, probability=0.2, rt60_seconds=(0.2, 0.9), direct_db=(0.0, 1.0)).draw(
            seeded(seed)
        )
        for seed in range(500)
    ]
    assert 70 < sum(drawn is not None for drawn in heard) < 130


# ------------------------------------------------------------------ codecs


def test_mu_law_is_the_textbook_formula() -> None:
    """F(x) = sgn(x) ln(1 + 255|x|) / ln 256, cut into 256 steps, and its inverse."""
    speech = telephone_band(speechlike(8000), 8000)
    x = speech.double().numpy()
    compressed = np.sign(x) * np.log1p(255 * np.abs(x)) / np.log(256)
    level = np.floor((compressed + 1) / 2 * 255 + 0.5)
    back = level / 255 * 2 - 1
    expected = np.sign(back) * (256 ** np.abs(back) - 1) / 255
    found = code(speechlike(8000), 8000, "mu_law").double().numpy()
    # A value on the edge between two steps may fall on either side in float32.
    assert (np.abs(found - expected) < 1e-5).mean() > 0.999
    assert np.abs(found - expected).max() < 0.05
    noise = 10 * np.log10((x**2).sum() / ((found - x) ** 2).sum())
    assert 36 < noise < 39.5  # the textbook figure for eight bits of μ-law is about 38 dB


@pytest.mark.parametrize("rate", [8000, 16000, 22050])
def test_telephone_passes_its_band_only(rate: int) -> None:
    seconds = torch.arange(rate) / rate

    def gain_db(hertz: float, name: str) -> float:
        tone = 0.5 * torch.sin(2 * torch.pi * hertz * seconds)
        inside = slice(rate // 10, -rate // 10)
        return 10 * math.log10(power(code(tone, rate, name)[inside]) / power(tone[inside]))

    assert gain_db(1000, "mu_law") == pytest.approx(0, abs=0.2)
    assert gain_db(500, "mu_law") == pytest.approx(0, abs=0.5)
    assert gain_db(3200, "mu_law") == pytest.approx(0, abs=1)
    assert gain_db(300, "mu_law") == pytest.approx(-6, abs=1)
    assert gain_db(100, "mu_law") < -30
    assert gain_db(3800, "mu_law") < -30
    if rate > 8000:
        assert gain_db(6000, "mu_law") < -30
        assert gain_db(5000, "vorbis") == pytest.approx(0, abs=1)


@pytest.mark.parametrize("name", sorted(CODECS))
@pytest.mark.parametrize(("rate", "num_samples"), [(16000, 32000), (8000, 12345), (22050, 7001), (16000, 40)])
def test_codecs_keep_place_and_length_and_repeat_themselves(name: str, rate: int, num_samples: int) -> None:
    speech = speechlike(num_samples)
    found = code(speech, rate, name)
    assert found.shape == speech.shape
    assert torch.isfinite(found).all()
    assert torch.equal(found, code(speech, rate, name))
    if num_samples > 40:
        assert abs(lag(found, speech)) <= 1
        assert not torch.equal(found, speech)


@pytest.mark.parametrize("name", sorted(CODECS))
def test_levels_above_full_scale_are_not_clipped(name: str) -> None:
    """A waveform 20 times above full scale loses no more than one at full scale does."""
    speech = telephone_band(speechlike(), RATE)
    speech = speech / speech.abs().max()

    def loss_db(scale: float) -> float:
        coded = code(scale * speech, RATE, name) / scale
        return 10 * math.log10(power(coded - speech) / power(speech))

    assert loss_db(20) == pytest.approx(loss_db(1), abs=1)
    assert float(code(20 * speech, RATE, name).abs().max()) > 10


def test_codecs_are_drawn_about_equally_often() -> None:
    codecs = Codecs(["mu_law", "gsm", "mp3"], sample_rate=RATE, probability=0.6)
    drawn = [codecs.draw(seeded(seed)) for seed in range(1000)]
    assert 330 < drawn.count(None) < 470
    assert min(drawn.count(name) for name in ("mu_law", "gsm", "mp3")) > 150
