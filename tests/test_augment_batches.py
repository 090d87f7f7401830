"""All augmentation together: the same batches however they are loaded, and none of it outside training."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import soundfile
import torch
from conftest import TinyCorpus, compose_config

from asr import build
from asr.augment import Drawn, RecordedNoise, SimulatedNoise, WaveformAugmenter
from asr.augment.codecs import CODECS
from asr.config import AugmentConfig, TrainConfig
from asr.datamodule import SpeechDataModule
from asr.dataset import Example
from asr.errors import ConfigError
from asr.manifest import read_manifest
from asr.records import Batch, Features
from asr.tokenizer import CharTokenizer
from asr.train import train

Compose = Callable[..., Any]


@pytest.fixture(scope="module")
def everything(noise_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Options that switch all augmentation on."""
    room = torch.zeros(800)
    room[40], room[300:] = 1.0, 0.02 * torch.randn(500)
    folder = tmp_path_factory.mktemp("rooms")
    soundfile.write(folder / "room.wav", room.numpy(), 8000, subtype="FLOAT")
    return [
        *("augment=noisy", f"augment.noise={noise_folder}", f"augment.reverb_responses={folder}"),
        *("augment.reverb_probability=0.5", "augment.codec_probability=0.7"),
        *("augment.codecs=[mu_law,gsm,opus,vorbis,mp3]", "augment.seconds_per_time_mask=0.2"),
        "augment.time_mask_seconds=0.1",
    ]


def make_datamodule(config: TrainConfig, corpus: TinyCorpus) -> SpeechDataModule:
    examples = {
        split: [Example(utterance, utterance.text) for utterance in read_manifest(corpus.manifest(split))]
        for split in ("train", "dev")
    }
    front_end = build.make_acoustic_model(config.features, config.model, vocab_size=5).features
    augment, _ = build.make_augmenters(config.augment, front_end)
    return SpeechDataModule(
        examples["train"],
        examples["dev"],
        sample_rate=config.features.sample_rate,
        tokenizer=CharTokenizer.train(example.text for example in examples["train"]),
        augment=augment,
        max_batch_utterances=2,
        max_batch_seconds=60,
        num_workers=config.data.num_workers,
        cache_bytes=0,
        seed=config.seed,
    )


def waveforms(batches: Iterable[Batch]) -> list[dict[str, torch.Tensor]]:
    """Of each batch: its waveforms by utterance."""
    return [
        {
            name: waveform[:length]
            for name, waveform, length in zip(
                batch.utterance_ids, batch.waveforms, batch.waveform_lengths, strict=True
            )
        }
        for batch in batches
    ]


def assert_same(found: list[dict[str, torch.Tensor]], expected: list[dict[str, torch.Tensor]]) -> None:
    assert [list(batch) for batch in found] == [list(batch) for batch in expected]
    for batch, other in zip(found, expected, strict=True):
        assert all(torch.equal(batch[name], other[name]) for name in batch)


def test_batches_do_not_depend_on_workers_or_memory(
    tiny_train_config: Compose, tiny_corpus: TinyCorpus, everything: list[str], tmp_path: Path
) -> None:
    def load(*options: str) -> list[dict[str, torch.Tensor]]:
        datamodule = make_datamodule(tiny_train_config(tmp_path, *everything, *options), tiny_corpus)
        loader = datamodule.train_dataloader()
        batches = []
        for epoch in range(2):
            datamodule.train_sampler.set_epoch(epoch)
            batches += waveforms(loader)
        return batches

    expected = load("data.num_workers=0")
    assert len(expected) == 8
    assert_same(load("data.num_workers=2"), expected)
    assert_same(load("data.num_workers=0", "augment.sound_cache_gib=0"), expected)
    with_other_seed = load("seed=1")
    assert any(list(batch) != list(other) for batch, other in zip(with_other_seed, expected, strict=True))


def test_an_utterance_does_not_depend_on_those_before_it(
    tiny_train_config: Compose, tiny_corpus: TinyCorpus, everything: list[str], tmp_path: Path
) -> None:
    config = tiny_train_config(tmp_path, *everything)
    datamodule = make_datamodule(config, tiny_corpus)
    plan = datamodule.train_sampler.plan(0)
    forwards = waveforms(datamodule.train_set[picks] for picks in plan)
    fresh = make_datamodule(config, tiny_corpus)
    backwards = waveforms(fresh.train_set[picks] for picks in reversed(plan))
    assert_same(backwards[::-1], forwards)


def test_every_change_is_drawn_and_leaves_the_other_draws_alone(
    tiny_train_config: Compose, everything: list[str], tmp_path: Path
) -> None:
    def augmenter(*options: str) -> Any:
        config = tiny_train_config(tmp_path, *options)
        front_end = build.make_acoustic_model(config.features, config.model, vocab_size=5).features
        return build.make_augmenters(config.augment, front_end)[0]

    both, standard = augmenter(*everything), augmenter("augment=standard")
    without_noise = augmenter(*everything[2:], "augment=standard")
    drawn = [both.draw(seed) for seed in range(300)]
    for name in ("room", "noise", "codec"):
        share = sum(getattr(draw, name) is not None for draw in drawn) / len(drawn)
        assert 0.35 < share < 0.8
    for seed, draw in enumerate(drawn):
        assert (draw.speed, draw.gain_db) == (standard.draw(seed).speed, standard.draw(seed).gain_db)
        assert (draw.room, draw.codec) == (without_noise.draw(seed).room, without_noise.draw(seed).codec)
        assert without_noise.draw(seed).noise is None
    words = " ".join(word for draw in drawn for word in draw.describe())
    for word in ("speed0.9", "speed1.1", "room-room", "snr", "dB-steady", "gsm", "gain+"):
        assert word in words
    quiet = Drawn(1.0, None, None, None, 0.0)
    assert quiet.describe() == []
    waveform = torch.randn(4000)
    assert torch.equal(both.apply(waveform, quiet), waveform)


def test_validation_hears_the_recordings_as_they_are(
    tiny_train_config: Compose, tiny_corpus: TinyCorpus, everything: list[str], tmp_path: Path
) -> None:
    changed = make_datamodule(tiny_train_config(tmp_path, *everything), tiny_corpus)
    plain = make_datamodule(tiny_train_config(tmp_path), tiny_corpus)
    assert_same(waveforms(changed.val_dataloader()), waveforms(plain.val_dataloader()))
    by_name = {
        name: waveform for batch in waveforms(plain.val_dataloader()) for name, waveform in batch.items()
    }
    for line in tiny_corpus.lines("dev"):
        samples, _ = soundfile.read(tiny_corpus.folder / line["audio_filepath"], dtype="float32")
        assert torch.equal(by_name[line["id"]], torch.from_numpy(samples))
    plan = plain.train_sampler.plan(0)
    augmented = waveforms(changed.train_set[picks] for picks in plan)
    assert not any(
        torch.equal(batch[name], before[name])
        for batch, before in zip(augmented, waveforms(plain.train_set[picks] for picks in plan), strict=True)
        for name in batch
        if len(batch[name]) == len(before[name])
    )


# ------------------------------------------------------------------ options


def refusal(**options: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        AugmentConfig(**options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_contradictions_and_ranges_are_named() -> None:
    assert "augment.noise_probability=0" in refusal(noise="folder")
    assert "augment.reverb_probability=0" in refusal(reverb_responses="folder")
    for option in ("noise_probability", "reverb_probability", "codec_probability"):
        assert f"augment.{option}" in refusal(**{option: 1.5})
    assert "augment.noise_snr_db" in refusal(noise_snr_db=[10.0, 0.0])
    assert "augment.reverb_seconds" in refusal(reverb_seconds=[0.0, 1.0])
    assert "augment.reverb_direct_db" in refusal(reverb_direct_db=[1.0])
    assert "did you mean 'gsm'" in refusal(codecs=["gms"])
    assert "augment.codecs" in refusal(codecs=[], codec_probability=0.5)
    assert "augment.num_time_masks" in refusal(seconds_per_time_mask=1.0)
    assert "augment.seconds_per_time_mask" in refusal(num_time_masks=2, seconds_per_time_mask=0.0)
    assert "augment.sound_cache_gib" in refusal(sound_cache_gib=-1.0)


def test_noisy_makes_its_noise_unless_it_is_given_recordings(noise_folder: Path) -> None:
    def augmenter(*options: str) -> WaveformAugmenter:
        config = compose_config("train", TrainConfig, list(options))
        return build.make_augmenters(config.augment, build.make_features(config.features))[0]

    made, recorded = augmenter("augment=noisy"), augmenter("augment=noisy", f"augment.noise={noise_folder}")
    assert isinstance(made.noise, SimulatedNoise)
    assert isinstance(recorded.noise, RecordedNoise)
    speech = torch.randn(16000)
    noisy = next(seed for seed in range(99) if made.draw(seed).noise is not None)
    assert torch.equal(made(speech, noisy), made(speech, noisy))
    assert "dBoct" in " ".join(made.draw(noisy).describe())


def test_every_codec_can_be_chosen() -> None:
    AugmentConfig(codecs=list(CODECS))


def test_a_wrong_noise_folder_stops_before_anything_is_made(
    tiny_train_config: Compose, tmp_path: Path
) -> None:
    options = ["augment=noisy", f"augment.noise={tmp_path / 'gone'}"]
    with pytest.raises(ConfigError, match=r"augment\.noise="):
        train(tiny_train_config(tmp_path / "run", *options))
    assert not (tmp_path / "run").exists()


# ------------------------------------------------------------------ masks


def test_adaptive_masks_grow_with_the_utterance(tiny_train_config: Compose, tmp_path: Path) -> None:
    """Park et al. 2020: one mask per so many frames, up to a limit, each a share of the utterance at most."""
    options = ["augment=adaptive", "augment.num_mel_masks=0", "augment.num_time_masks=5"]
    config = tiny_train_config(tmp_path, *options, "augment.time_mask_share=0.04")
    front_end = build.make_acoustic_model(config.features, config.model, vocab_size=5).features
    _, mask = build.make_augmenters(config.augment, front_end)
    most = {20: 0, 60: 2, 110: 4, 400: 5}  # a mask for every 25 frames
    for num_frames, num_masks in most.items():
        hidden_runs = []
        for seed in range(60):
            ones = Features(torch.ones(1, num_frames, 4), torch.tensor([num_frames]))
            hidden = mask(ones, torch.tensor([seed])).features[0, :, 0] == 0
            edges = torch.nn.functional.pad(hidden.int(), (1, 1)).diff()
            hidden_runs.append(int((edges == 1).sum()))
            assert int(hidden.sum()) <= num_masks * int(0.04 * num_frames)
        assert max(hidden_runs) == (num_masks if 0.04 * num_frames >= 1 else 0)
