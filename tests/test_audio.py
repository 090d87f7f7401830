"""Audio boundary: decoding and resampling against signals known by formula; bad files one by one."""

import math
import os
import resource
import struct
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import scipy.io.wavfile
import scipy.signal
import soundfile
import torch
import torchaudio
from hypothesis import given, settings
from hypothesis import strategies as st

from asr import audio
from asr.audio import (
    AUDIO_EXTENSIONS,
    AudioInfo,
    audio_info,
    describe_problems,
    load_audio,
    resampled_num_samples,
    samples_to_seconds,
    seconds_to_samples,
    stream_audio,
)
from asr.errors import AudioError, ConfigError

RATE = 16000


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Many short torch calls: threads that wait for each other on a busy machine make them slow."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num_threads)


def sine(num_samples: int, rate: int, hertz: float = 440.0, level: float = 0.5) -> np.ndarray:
    return level * np.sin(2 * np.pi * hertz * np.arange(num_samples) / rate)


def noise(num_samples: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-0.5, 0.5, num_samples).astype(np.float32)


@pytest.fixture
def wav(tmp_path: Path) -> Path:
    """One second of a sine, 16-bit, 16 kHz."""
    path = tmp_path / "sine.wav"
    soundfile.write(path, sine(RATE, RATE), RATE, subtype="PCM_16")
    return path


class TestDecoding:
    @pytest.mark.parametrize(
        ("extension", "subtype", "tolerance"),
        [
            ("wav", "PCM_U8", 1 / 128),
            ("wav", "PCM_16", 1 / 32768),
            ("wav", "PCM_24", 2**-23),
            ("wav", "PCM_32", 2**-24),
            ("wav", "FLOAT", 2**-24),
            ("wav", "DOUBLE", 2**-24),
            ("wav", "ULAW", 0.02),
            ("flac", "PCM_16", 1 / 32768),
            ("flac", "PCM_24", 2**-23),
            ("aiff", "PCM_16", 1 / 32768),
            ("au", "PCM_16", 1 / 32768),
            ("w64", "PCM_16", 1 / 32768),
            ("rf64", "PCM_16", 1 / 32768),
            ("nist", "PCM_16", 1 / 32768),
            ("ogg", "VORBIS", 0.05),
        ],
    )
    def test_formats_give_the_written_samples(
        self, tmp_path: Path, extension: str, subtype: str, tolerance: float
    ) -> None:
        path = tmp_path / f"a.{extension}"
        expected = sine(RATE, RATE)
        soundfile.write(path, expected, RATE, subtype=subtype, format=extension.upper())
        waveform = load_audio(path, RATE)
        assert waveform.dtype == torch.float32
        assert waveform.shape == (RATE,)
        np.testing.assert_allclose(waveform.numpy(), expected, atol=tolerance)
        assert audio_info(path) == AudioInfo(path, RATE, 1, RATE, 1.0, subtype)

    @pytest.mark.parametrize("extension", ["mp3", "opus"])
    def test_lossy_formats_keep_the_sound(self, tmp_path: Path, extension: str) -> None:
        path = tmp_path / f"a.{extension}"
        container = {"opus": {"format": "OGG", "subtype": "OPUS"}}.get(extension, {})
        soundfile.write(path, sine(RATE, RATE), RATE, **container)
        waveform = load_audio(path, RATE).numpy()
        spectrum = np.abs(np.fft.rfft(waveform[:RATE]))
        assert abs(int(spectrum.argmax()) - 440) <= 1
        assert len(waveform) == audio_info(path).num_samples

    @pytest.mark.parametrize("num_channels", [2, 6])
    def test_channels_are_averaged(self, tmp_path: Path, num_channels: int) -> None:
        channels = np.stack([noise(4000, seed) for seed in range(num_channels)], axis=1)
        path = tmp_path / "a.wav"
        soundfile.write(path, channels, RATE, subtype="FLOAT")
        np.testing.assert_allclose(load_audio(path, RATE).numpy(), channels.mean(axis=1), atol=1e-6)
        assert audio_info(path).num_channels == num_channels
        assert audio_info(path).num_samples == 4000

    def test_agrees_with_scipy_reader(self, wav: Path) -> None:
        _, expected = scipy.io.wavfile.read(wav)
        np.testing.assert_array_equal(load_audio(wav, RATE).numpy(), expected.astype(np.float32) / 32768)

    def test_float_samples_above_full_scale_are_kept(self, tmp_path: Path) -> None:
        soundfile.write(tmp_path / "a.wav", np.full(100, 1.5), RATE, subtype="FLOAT")
        assert load_audio(tmp_path / "a.wav", RATE).max() == 1.5

    def test_zeros_ten_milliseconds_and_clipped_audio_load(self, tmp_path: Path) -> None:
        for name, samples in {
            "zeros": np.zeros(RATE),
            "short": noise(160),
            "clipped": np.clip(sine(RATE, RATE, level=4.0), -1, 1),
        }.items():
            path = tmp_path / f"{name}.wav"
            soundfile.write(path, samples, RATE)
            assert len(load_audio(path, RATE)) == len(samples)

    def test_non_ascii_and_very_long_paths(self, tmp_path: Path, wav: Path) -> None:
        # libsndfile itself refuses paths above 1023 bytes.
        folder = tmp_path.joinpath("Ωdiphthong – 語音 ü", *["d" * 200] * 7)
        folder.mkdir(parents=True)
        path = folder / ("ñ" * 100 + ".wav")
        path.write_bytes(wav.read_bytes())
        assert len(os.fsencode(path)) > 1500
        torch.testing.assert_close(load_audio(path, RATE), load_audio(wav, RATE), rtol=0, atol=0)
        assert audio_info(str(path)).path == path

    def test_every_extension_that_folders_are_searched_for_is_readable(self) -> None:
        formats = {name.lower() for name in soundfile.available_formats()}
        synonyms = {
            ".oga": "ogg",
            ".opus": "ogg",
            ".aif": "aiff",
            ".aifc": "aiff",
            ".snd": "au",
            ".sph": "nist",
        }
        assert {synonyms.get(extension, extension[1:]) for extension in AUDIO_EXTENSIONS} <= formats


class TestResampling:
    @pytest.mark.parametrize("from_rate", [8000, 22050, 44100, 48000, 96000])
    def test_a_sine_stays_the_same_sine(self, tmp_path: Path, from_rate: int) -> None:
        path = tmp_path / "a.wav"
        soundfile.write(path, sine(from_rate, from_rate), from_rate, subtype="FLOAT")
        waveform = load_audio(path, RATE).numpy()
        assert len(waveform) == RATE
        inner = slice(200, -200)  # the filter sees silence beyond the ends
        np.testing.assert_allclose(waveform[inner], sine(RATE, RATE)[inner], atol=2e-3)

    def test_agrees_with_scipy_on_band_limited_noise(self, tmp_path: Path) -> None:
        low = scipy.signal.resample_poly(noise(8000), 441, 80, window=("kaiser", 12.0))  # 8 kHz → 44.1 kHz
        soundfile.write(tmp_path / "a.wav", low, 44100, subtype="FLOAT")
        expected = scipy.signal.resample_poly(low, 160, 441, window=("kaiser", 12.0))
        waveform = load_audio(tmp_path / "a.wav", RATE).numpy()
        inner = slice(400, -400)
        error = waveform[inner] - expected[inner]
        assert np.sqrt(np.mean(error**2)) < 0.01 * np.sqrt(np.mean(expected[inner] ** 2))

    def test_tones_above_the_new_nyquist_vanish(self, tmp_path: Path) -> None:
        soundfile.write(tmp_path / "a.wav", sine(48000, 48000, hertz=12000), 48000, subtype="FLOAT")
        assert load_audio(tmp_path / "a.wav", RATE)[200:-200].abs().max() < 0.01

    @settings(deadline=None, max_examples=60)
    @given(
        st.integers(0, 10**18),
        st.sampled_from([8000, 11025, 16000, 22050, 44100, 48000, 96000]),
        st.sampled_from([8000, 16000, 22050, 24000]),
    )
    def test_length_is_the_exact_ceiling(self, num_samples: int, from_rate: int, to_rate: int) -> None:
        expected = math.ceil(Fraction(num_samples) * to_rate / from_rate)
        assert resampled_num_samples(num_samples, from_rate, to_rate) == expected

    @settings(deadline=None, max_examples=25)
    @given(
        st.integers(1, 3000),
        st.sampled_from([8000, 11025, 22050, 44100, 48000]),
        st.sampled_from([0.01, 0.037, 30.0]),
    )
    def test_blocks_change_neither_samples_nor_length(
        self, tmp_path_factory: pytest.TempPathFactory, num_samples: int, from_rate: int, block_seconds: float
    ) -> None:
        path = tmp_path_factory.mktemp("blocks") / "a.wav"
        samples = noise(num_samples)
        soundfile.write(path, samples, from_rate, subtype="FLOAT")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(audio, "_BLOCK_SECONDS", block_seconds)
            waveform = load_audio(path, RATE)
        expected = torchaudio.functional.resample(torch.from_numpy(samples).double(), from_rate, RATE).float()
        assert len(waveform) == resampled_num_samples(num_samples, from_rate, RATE)
        torch.testing.assert_close(waveform[: len(expected)], expected, rtol=0, atol=5e-7)

    def test_length_is_exact_where_float32_would_round(self, tmp_path: Path) -> None:
        num_samples = 441 * 2900 + pow(160, -1, 441)  # at 16 kHz, 1/441 more than a whole number
        soundfile.write(tmp_path / "a.wav", np.zeros(num_samples, np.int16), 44100)
        assert num_samples * 160 % 441 == 1
        assert len(load_audio(tmp_path / "a.wav", RATE)) == num_samples * 160 // 441 + 1

    def test_a_rate_without_common_divisor_is_refused_by_name(self, tmp_path: Path) -> None:
        soundfile.write(tmp_path / "odd.wav", noise(1000), 44101)
        with pytest.raises(AudioError, match=r"odd\.wav.*44101 Hz.*sox or ffmpeg"):
            load_audio(tmp_path / "odd.wav", RATE)

    @given(st.integers(0, 10**9), st.sampled_from([8000, 16000, 22050, 44100, 48000]))
    def test_seconds_and_samples_invert_each_other(self, num_samples: int, rate: int) -> None:
        assert seconds_to_samples(samples_to_seconds(num_samples, rate), rate) == num_samples


class TestSegments:
    def test_a_segment_is_that_part_of_the_file(self, wav: Path) -> None:
        whole = load_audio(wav, RATE)
        segment = load_audio(wav, RATE, offset_seconds=0.25, duration_seconds=0.5)
        assert torch.equal(segment, whole[4000:12000])
        assert torch.equal(load_audio(wav, RATE, offset_seconds=0.25), whole[4000:])

    def test_a_segment_counts_in_seconds_at_any_rate(self, wav: Path) -> None:
        segment = load_audio(wav, 8000, offset_seconds=0.25, duration_seconds=0.5)
        assert len(segment) == 4000
        inner = slice(100, -100)
        np.testing.assert_allclose(segment[inner], sine(8000, 8000)[2000:6000][inner], atol=2e-3)

    def test_the_rounding_of_durations_is_forgiven(self, wav: Path) -> None:
        assert len(load_audio(wav, RATE, offset_seconds=0.5, duration_seconds=0.54)) == 8000

    @pytest.mark.parametrize(
        ("offset", "duration", "message"),
        [
            (1.0, None, "offset 1 s lies outside its 1 s"),
            (7.5, 1.0, "offset 7.5 s lies outside its 1 s"),
            (-0.1, None, "offset -0.1 s lies outside"),
            (0.5, 0.56, r"offset 0.5 s \+ duration 0.56 s end past its 1 s"),
            (0.5, 0.0, "0 s holds no samples"),
            (0.5, -1.0, "-1 s holds no samples"),
        ],
    )
    def test_segments_outside_the_file_are_refused(
        self, wav: Path, offset: float, duration: float | None, message: str
    ) -> None:
        with pytest.raises(AudioError, match=rf"sine\.wav: .*{message}.*correct the manifest"):
            load_audio(wav, RATE, offset_seconds=offset, duration_seconds=duration)


def refusal(path: Path) -> str:
    """The one line with which ``path`` is refused; streaming must refuse it too."""
    with pytest.raises(AudioError) as caught:
        load_audio(path, RATE)
    with pytest.raises(AudioError):
        list(stream_audio(path, RATE, window_seconds=0.2, hop_seconds=0.1))
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(str(path))
    return message


class TestBadFiles:
    def test_missing(self, tmp_path: Path) -> None:
        assert "no such audio file; correct the path" in refusal(tmp_path / "nope.wav")

    def test_folder(self, tmp_path: Path) -> None:
        assert "is a folder, not an audio file" in refusal(tmp_path)

    def test_name_too_long(self, tmp_path: Path) -> None:
        assert "File name too long" in refusal(tmp_path / ("x" * 300 + ".wav"))

    def test_null_character_in_the_name(self) -> None:
        assert "cannot be opened" in refusal(Path("a\0b.wav"))

    @pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
    def test_no_permission(self, wav: Path) -> None:
        wav.chmod(0)
        assert "permissions" in refusal(wav)

    def test_zero_bytes(self, tmp_path: Path) -> None:
        (tmp_path / "a.wav").touch()
        assert "is empty (0 bytes)" in refusal(tmp_path / "a.wav")

    def test_text_named_wav(self, tmp_path: Path) -> None:
        (tmp_path / "a.wav").write_text("hello, I am a transcript")
        assert "cannot be decoded as audio (Format not recognised); convert" in refusal(tmp_path / "a.wav")

    def test_samples_without_a_header(self, tmp_path: Path) -> None:
        (tmp_path / "a.raw").write_bytes(bytes(32000))
        assert "cannot be decoded as audio" in refusal(tmp_path / "a.raw")

    @pytest.mark.parametrize(
        "magic", [b"RIFF", b"RIFF\0\0\0\0WAVE", b"FORM\0\0\0\0AIFFSSND", b".snd", b"NIST_1A\n   x"]
    )
    def test_headers_cut_off_or_nonsensical(self, tmp_path: Path, magic: bytes) -> None:
        (tmp_path / "a.wav").write_bytes(magic)
        assert "cannot be decoded" in refusal(tmp_path / "a.wav")

    @pytest.mark.parametrize("extension", ["wav", "aiff", "au", "nist", "rf64", "flac", "mp3"])
    @pytest.mark.parametrize("share", [0.3, 0.97])
    def test_truncated(self, tmp_path: Path, extension: str, share: float) -> None:
        path = tmp_path / f"a.{extension}"
        soundfile.write(path, noise(RATE), RATE, format=extension.upper())
        content = path.read_bytes()
        path.write_bytes(content[: int(len(content) * share)])
        message = refusal(path)
        assert "truncated" in message
        assert "copy or record it again" in message

    def test_a_single_missing_byte_is_noticed(self, wav: Path) -> None:
        wav.write_bytes(wav.read_bytes()[:-1])
        assert "promises 32000 bytes of samples and 31999 are there" in refusal(wav)
        with pytest.raises(AudioError, match="truncated"):
            audio_info(wav)

    def test_a_truncated_flac_serves_the_segments_it_holds(self, tmp_path: Path) -> None:
        path = tmp_path / "a.flac"
        soundfile.write(path, noise(4 * RATE), RATE)
        content = path.read_bytes()
        path.write_bytes(content[: len(content) // 2])
        assert len(load_audio(path, RATE, duration_seconds=1.0)) == RATE

    def test_no_samples(self, tmp_path: Path) -> None:
        soundfile.write(tmp_path / "a.wav", np.zeros(0), RATE)
        assert "holds no samples" in refusal(tmp_path / "a.wav")

    @pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
    def test_non_finite_samples(self, tmp_path: Path, value: float) -> None:
        samples = np.stack([noise(RATE), noise(RATE)], axis=1)
        samples[12000, 1] = value
        soundfile.write(tmp_path / "a.wav", samples, RATE, subtype="FLOAT")
        assert "NaN or infinite samples at 0.750 s" in refusal(tmp_path / "a.wav")

    def test_flac_stream_without_a_length(self, tmp_path: Path) -> None:
        path = tmp_path / "a.flac"
        soundfile.write(path, noise(RATE), RATE)
        content = bytearray(path.read_bytes())
        content[21] &= 0xF0  # the 36-bit number of samples in STREAMINFO; 0 = unknown
        content[22:26] = bytes(4)
        path.write_bytes(content)
        assert "does not say how long it is" in refusal(path)


class TestMp3Length:
    """Encoders that write to a pipe leave out the tag with the number of frames."""

    @staticmethod
    def write_untagged(path: Path, samples: np.ndarray, bitrate_mode: str, level: float) -> None:
        soundfile.write(path, samples, RATE, bitrate_mode=bitrate_mode, compression_level=level)
        content = path.read_bytes()
        assert b"Xing" in content[:64] or b"Info" in content[:64]
        second_frame = content.index(content[:2], 4)
        title = b"ID3\x04\0\0" + bytes([0, 0, 2, 44]) + bytes(300)
        path.write_bytes(title + content[second_frame:])

    def test_a_length_behind_a_long_title_is_believed(self, tmp_path: Path) -> None:
        path = tmp_path / "a.mp3"
        soundfile.write(path, noise(2 * RATE), RATE)
        content = b"ID3\x04\0\0" + bytes([0, 0, 40, 0]) + bytes(40 << 7) + path.read_bytes()
        path.write_bytes(content)
        assert audio_info(path).num_samples == 2 * RATE
        path.write_bytes(content[: len(content) - 3000])
        assert "truncated" in refusal(path)

    def test_constant_bit_rate(self, tmp_path: Path) -> None:
        self.write_untagged(tmp_path / "a.mp3", noise(20 * RATE), "CONSTANT", 0.5)
        assert 20 <= len(load_audio(tmp_path / "a.mp3", RATE)) / RATE < 20.2

    def test_length_estimated_too_long_is_counted(self, tmp_path: Path) -> None:
        silence = np.zeros(10 * RATE)
        samples = np.concatenate([silence, noise(10 * RATE), silence])
        self.write_untagged(tmp_path / "a.mp3", samples, "VARIABLE", 0.3)
        assert soundfile.info(tmp_path / "a.mp3").duration > 40
        waveform = load_audio(tmp_path / "a.mp3", RATE)
        assert 30 <= len(waveform) / RATE < 30.2
        assert audio_info(tmp_path / "a.mp3").num_samples == len(waveform)
        loud = waveform.abs().unfold(0, RATE, RATE).amax(dim=1) > 0.1
        assert loud.nonzero().flatten().tolist() == list(range(10, 20 + int(loud[20])))

    def test_length_estimated_too_short_is_refused(self, tmp_path: Path) -> None:
        samples = np.concatenate([noise(10 * RATE), np.zeros(20 * RATE)])
        self.write_untagged(tmp_path / "a.mp3", samples, "VARIABLE", 0.3)
        assert "does not say how long it is" in refusal(tmp_path / "a.mp3")


class TestWavHeaders:
    """Recorders that write to a pipe cannot fill in sizes; such files are sound."""

    @staticmethod
    def with_sizes(path: Path, riff_size: int, data_size: int) -> None:
        content = bytearray(path.read_bytes())
        position = content.index(b"data") + 4
        content[4:8] = struct.pack("<I", riff_size)
        content[position : position + 4] = struct.pack("<I", data_size)
        path.write_bytes(content)

    @pytest.mark.parametrize(
        ("riff_size", "data_size"),
        [
            (0xFFFFFFFF, 0xFFFFFFFF),
            (0, 0),
            (36, 0),
            (8, 0),
            (0xFFFFFFFF, 0),
            (0x7FFFF024, 0x7FFFF000),
            (0, 0x7FFFFFFF),
        ],
    )
    def test_unknown_sizes_mean_to_the_end(self, wav: Path, riff_size: int, data_size: int) -> None:
        expected = load_audio(wav, RATE)
        self.with_sizes(wav, riff_size, data_size)
        assert torch.equal(load_audio(wav, RATE), expected)
        assert torch.equal(load_audio(wav, RATE, offset_seconds=0.5), expected[8000:])
        assert audio_info(wav).num_samples == RATE

    def test_chunks_before_and_behind_the_samples(self, wav: Path) -> None:
        expected = load_audio(wav, RATE)
        content = wav.read_bytes()
        note = b"LIST" + struct.pack("<I", 5) + b"hello\0"  # an odd size is padded to an even one
        content = content[:36] + note + content[36:] + note
        content = content[:4] + struct.pack("<I", len(content) - 8) + content[8:]
        wav.write_bytes(content)
        assert torch.equal(load_audio(wav, RATE), expected)
        wav.write_bytes(content[:-1000])
        assert "truncated" in refusal(wav)

    def test_an_empty_data_chunk_with_a_note_behind_is_no_stream(self, tmp_path: Path) -> None:
        path = tmp_path / "a.wav"
        soundfile.write(path, np.zeros(0), RATE)
        content = path.read_bytes() + b"LIST" + struct.pack("<I", 4) + b"note"
        path.write_bytes(content[:4] + struct.pack("<I", len(content) - 8) + content[8:])
        assert "holds no samples" in refusal(path)

    def test_big_endian_wav(self, tmp_path: Path) -> None:
        path = tmp_path / "a.wav"
        soundfile.write(path, sine(RATE, RATE), RATE, endian="BIG")
        assert path.read_bytes()[:4] == b"RIFX"
        np.testing.assert_allclose(load_audio(path, RATE).numpy(), sine(RATE, RATE), atol=1 / 32768)
        path.write_bytes(path.read_bytes()[:-100])
        assert "truncated" in refusal(path)


class TestStreaming:
    @settings(deadline=None, max_examples=25)
    @given(
        st.integers(1, 60000),
        st.sampled_from([8000, 16000, 44100]),
        st.integers(50, 20000),
        st.floats(0.05, 1.0),
    )
    def test_windows_are_slices_of_the_whole(
        self,
        tmp_path_factory: pytest.TempPathFactory,
        num_samples: int,
        from_rate: int,
        window_samples: int,
        hop_share: float,
    ) -> None:
        path = tmp_path_factory.mktemp("stream") / "a.wav"
        soundfile.write(path, noise(num_samples), from_rate, subtype="FLOAT")
        hop_samples = max(1, int(hop_share * window_samples))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(audio, "_BLOCK_SECONDS", 0.3)
            windows = list(
                stream_audio(path, RATE, window_seconds=window_samples / RATE, hop_seconds=hop_samples / RATE)
            )
        whole = load_audio(path, RATE)
        for index, window in enumerate(windows):
            start = index * hop_samples
            assert window.start_seconds == start / RATE
            torch.testing.assert_close(
                window.waveform, whole[start : start + window_samples], rtol=0, atol=1e-5
            )
        # The last one, and only it, reaches the end.
        ends = [index * hop_samples + window_samples >= len(whole) for index in range(len(windows))]
        assert ends == [window.is_last for window in windows] == [False] * (len(windows) - 1) + [True]

    def test_two_hours_in_bounded_memory(self, tmp_path: Path) -> None:
        """The file is sparse zeros with one spike; its float samples would fill 230 MB."""
        rate, num_samples, spike = 8000, 8000 * 7200, 8000 * 7000 + 3
        path = tmp_path / "long.wav"
        soundfile.write(path, np.zeros(1, np.int16), rate)
        content = bytearray(path.read_bytes()[:44])
        content[4:8] = struct.pack("<I", 36 + 2 * num_samples)
        content[40:44] = struct.pack("<I", 2 * num_samples)
        with path.open("wb") as file:
            file.write(content)
            file.seek(44 + 2 * spike)
            file.write(struct.pack("<h", 16384))
            file.truncate(44 + 2 * num_samples)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        num_windows, found = 0, []
        for window in stream_audio(path, rate, window_seconds=30, hop_seconds=25):
            num_windows += 1
            if window.waveform.any():
                found.append(seconds_to_samples(window.start_seconds, rate) + int(window.waveform.argmax()))
        grown_megabytes = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
        assert num_windows == math.ceil((7200 - 30) / 25) + 1
        assert set(found) == {spike}
        assert grown_megabytes < 60
        segment = load_audio(path, rate, offset_seconds=7000.0, duration_seconds=1.0)
        assert segment.nonzero().flatten().tolist() == [3]

    def test_reading_stays_just_ahead_of_the_windows(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = tmp_path / "a.wav"
        soundfile.write(path, np.zeros(44100 * 120, np.int16), 44100)
        num_read = 0
        original = soundfile.SoundFile.read

        def counting_read(self: soundfile.SoundFile, *args: object, **kwargs: object) -> np.ndarray:
            nonlocal num_read
            block = original(self, *args, **kwargs)
            num_read += len(block)
            return block

        monkeypatch.setattr(soundfile.SoundFile, "read", counting_read)
        for window in stream_audio(path, RATE, window_seconds=5, hop_seconds=4):
            assert num_read / 44100 <= window.start_seconds + 5 + 2 * 30

    @pytest.mark.parametrize(("window", "hop"), [(1.0, 0.0), (1.0, -1.0), (1.0, 1.5), (0.0, 0.0)])
    def test_hops_that_would_skip_or_stand_still(self, wav: Path, window: float, hop: float) -> None:
        with pytest.raises(ConfigError, match=r"hop_seconds=.*window_seconds="):
            stream_audio(wav, RATE, window_seconds=window, hop_seconds=hop)


class TestProblems:
    @pytest.mark.parametrize(
        ("samples", "names"),
        [
            (noise(RATE), []),
            (np.zeros(RATE), ["silent"]),
            (np.zeros(0), ["silent"]),
            (np.clip(sine(RATE, RATE, level=3.0), -1, 1), ["clipped"]),
            (noise(RATE) / 10 + 0.3, ["dc_offset"]),
            (np.array([0.1, np.nan]), ["not_finite"]),
            (np.array([0.1, -np.inf]), ["not_finite"]),
        ],
    )
    def test_each_is_named(self, samples: np.ndarray, names: list[str]) -> None:
        assert [
            problem.name for problem in describe_problems(torch.tensor(samples, dtype=torch.float32))
        ] == names

    def test_the_clipped_share_is_told(self) -> None:
        waveform = torch.zeros(1000)
        waveform[:250] = 1.0
        details = {problem.name: problem.detail for problem in describe_problems(waveform)}
        assert "25.0%" in details["clipped"]
        assert "+0.250" in details["dc_offset"]
