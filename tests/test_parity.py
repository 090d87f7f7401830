"""The same audio gives the same text in validation, evaluation and transcription, in whatever batch."""

import dataclasses
import json
import sys
from pathlib import Path

import pytest
import soundfile
import torch
from tiny_model import SAMPLE_RATE, babble, train_config, write_checkpoint

from asr import transcribe
from asr.build import make_augmenters, make_decoder, make_loss, make_training_loss
from asr.checkpoint import load_recogniser
from asr.config import GreedyConfig
from asr.dataset import Example, SpeechDataset
from asr.evaluation import evaluate_utterances
from asr.module import CtcModule
from asr.recogniser import Recogniser
from asr.records import Utterance
from asr.sampler import Pick, batches_by_length

# Lengths around multiples of the hop (160 samples) and of the subsampling, and one far longer than
# the rest, which pads them.
NUM_SAMPLES = (9_599, 9_600, 9_601, 10_240, 16_000, 23_457, 40_001, 131_072)


@pytest.fixture(scope="module")
def checkpoint_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("model") / "best.ckpt")


@pytest.fixture(scope="module")
def recogniser(checkpoint_path: Path) -> Recogniser:
    return load_recogniser(checkpoint_path, GreedyConfig(), torch.device("cpu"))


@pytest.fixture(scope="module")
def utterances(tmp_path_factory: pytest.TempPathFactory) -> list[Utterance]:
    folder = tmp_path_factory.mktemp("audio")
    found = []
    for number, num_samples in enumerate(NUM_SAMPLES):
        path = folder / f"{number}.wav"
        soundfile.write(path, babble(num_samples / SAMPLE_RATE, number), SAMPLE_RATE)
        found.append(Utterance(str(number), path, round(num_samples / SAMPLE_RATE, 2), "some words"))
    return found


@pytest.fixture(scope="module")
def expected(recogniser: Recogniser, utterances: list[Utterance]) -> dict[str, str]:
    """Each file alone, without any batch: its samples straight into the model."""
    texts = {}
    for utterance in utterances:
        samples = torch.from_numpy(soundfile.read(utterance.audio_path, dtype="float32")[0])
        with torch.inference_mode():
            emissions = recogniser.acoustic_model(samples[None], torch.tensor([len(samples)]))
        texts[utterance.id] = recogniser.normalise(recogniser.decoder.decode(emissions)[0].text)
    assert len(set(texts.values())) == len(texts)  # else the comparisons below would prove nothing
    assert all(len(text) > 1 for text in texts.values())
    return texts


def batches(utterances: list[Utterance], batch_size: int) -> list[list[int]]:
    durations = [utterance.duration_seconds for utterance in utterances]
    return batches_by_length(durations, max_utterances=batch_size, max_seconds=1e6)


@pytest.mark.parametrize("batch_size", [1, 3, len(NUM_SAMPLES)])
def test_validation(
    recogniser: Recogniser, utterances: list[Utterance], expected: dict[str, str], batch_size: int
) -> None:
    config = train_config()
    tokenizer = recogniser.tokenizer
    module = CtcModule(
        acoustic_model=recogniser.acoustic_model,
        loss=make_loss(config.loss, tokenizer.blank_id),
        training_loss=make_training_loss(config.loss, config.text, tokenizer),
        decoder=make_decoder(config.decoder, tokenizer, recogniser.acoustic_model.seconds_per_frame),
        blank_id=tokenizer.blank_id,
        augment_features=make_augmenters(config.augment, recogniser.acoustic_model.features)[1],
        make_optimizer=lambda model: torch.optim.SGD(model.parameters(), lr=0.1),
        make_schedule=torch.optim.lr_scheduler.ConstantLR,
        normalise=recogniser.normalise,
        recipe={},
        skip_non_finite=False,
        log_every_steps=1,
    ).eval()
    examples = [Example(one, one.text) for one in utterances]
    dataset = SpeechDataset(examples, sample_rate=SAMPLE_RATE, tokenizer=tokenizer)
    module.on_validation_epoch_start()
    with torch.no_grad():
        for number, indices in enumerate(batches(utterances, batch_size)):
            module.validation_step(dataset[[Pick(index, 0) for index in indices]], number)
    assert {sample.utterance_id: sample.hypothesis for sample in module.dev_samples} == expected


@pytest.mark.parametrize("batch_size", [1, 3, len(NUM_SAMPLES)])
def test_evaluation(
    recogniser: Recogniser, utterances: list[Utterance], expected: dict[str, str], batch_size: int
) -> None:
    report = evaluate_utterances(
        recogniser, utterances, max_batch_utterances=batch_size, max_batch_seconds=1e6
    )
    assert {result.id: result.hypothesis for result in report.utterances} == expected


@pytest.mark.parametrize("batch_size", [1, len(NUM_SAMPLES)])
def test_transcription(
    checkpoint_path: Path,
    utterances: list[Utterance],
    expected: dict[str, str],
    batch_size: int,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    paths = [str(utterance.audio_path) for utterance in utterances]
    texts = {}
    for start in range(0, len(paths), batch_size):
        batch = paths[start : start + batch_size]
        monkeypatch.setattr(
            sys, "argv", ["asr.transcribe", *batch, f"checkpoint={checkpoint_path}", "format=json"]
        )
        assert transcribe.main() == 0
        results = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
        texts |= {Path(result["path"]).stem: result["text"] for result in results}
    assert texts == expected


def test_padding_of_any_length(
    recogniser: Recogniser, utterances: list[Utterance], expected: dict[str, str]
) -> None:
    samples = torch.from_numpy(soundfile.read(utterances[2].audio_path, dtype="float32")[0])
    for num_zeros in (1, 79, 160, 1000, 12_345, 200_000):
        padded = torch.nn.functional.pad(samples, (0, num_zeros))
        with torch.inference_mode():
            emissions = recogniser.acoustic_model(padded[None], torch.tensor([len(samples)]))
        assert recogniser.decoder.decode(emissions)[0].text == expected["2"]


def test_the_same_words_and_times(recogniser: Recogniser, utterances: list[Utterance]) -> None:
    waveforms = [
        torch.from_numpy(soundfile.read(utterance.audio_path, dtype="float32")[0]) for utterance in utterances
    ]
    together = recogniser.recognise(waveforms)
    alone = [recogniser.recognise([waveform])[0] for waveform in waveforms]
    for one, other in zip(together, alone, strict=True):
        assert one.token_frames == other.token_frames
        assert one.score == pytest.approx(other.score, rel=1e-4)
        for word, twin in zip(one.words, other.words, strict=True):
            assert dataclasses.replace(word, confidence=0) == dataclasses.replace(twin, confidence=0)
            assert word.confidence == pytest.approx(twin.confidence, abs=1e-4)
