"""label_errors=true: wrong transcripts come first, with figures that torch's CTC loss confirms."""

import csv
import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TinyCorpus, compose_config
from torch import Tensor, nn

from asr.checkpoint import load_recogniser
from asr.config import EvaluateConfig, GreedyConfig
from asr.ctc.align import occupancy
from asr.dataset import load_utterance
from asr.errors import ConfigError
from asr.evaluate import evaluate
from asr.label_errors import find_label_errors, fit_of
from asr.manifest import read_manifest
from asr.recogniser import Recogniser
from asr.records import Emissions, Utterance
from asr.report.label_errors import LabelErrorReport, write_label_errors

FRAMES_PER_TOKEN = 3


def heard(recogniser: Recogniser, text: str, doubt: float) -> Tensor:
    """``(frames, vocab)``: each token for a few frames, then a blank; ``doubt`` is shared by all other tokens."""
    tokenizer = recogniser.tokenizer
    path = [
        one for token in tokenizer.encode(text) for one in [token] * FRAMES_PER_TOKEN + [tokenizer.blank_id]
    ]
    probs = torch.full((len(path), tokenizer.vocab_size), doubt / (tokenizer.vocab_size - 1))
    probs[torch.arange(len(path)), torch.tensor(path)] = 1 - doubt
    return probs.log()


class Oracle(nn.Module):
    """Knows what is said in each recording, by the sum of its samples, and how clearly."""

    def __init__(self, recogniser: Recogniser, corpus: list[Utterance], noisy: set[str]) -> None:
        super().__init__()
        self.features, self.seconds_per_frame = recogniser.acoustic_model.features, 0.04
        self.weight = nn.Parameter(torch.zeros(1))
        self.known = {}
        for one in corpus:
            key = self.key(load_utterance(one, recogniser.sample_rate))
            self.known[key] = heard(recogniser, one.text, 0.6 if one.id in noisy else 0.05)

    @staticmethod
    def key(waveform: Tensor) -> float:
        return round(float(waveform.double().abs().sum()), 3)

    def forward(self, waveforms: Tensor, lengths: Tensor) -> Emissions:
        found = [self.known[self.key(one)] for one in waveforms]
        padded = nn.utils.rnn.pad_sequence(found, batch_first=True)
        return Emissions(padded, torch.tensor([len(one) for one in found]))


@pytest.fixture(scope="module")
def recogniser(tiny_run: Path) -> Recogniser:
    return load_recogniser(tiny_run, GreedyConfig(), torch.device("cpu"))


@pytest.fixture(scope="module")
def corpus(tiny_corpus: TinyCorpus) -> list[Utterance]:
    return read_manifest(tiny_corpus.manifest("train"))


@pytest.fixture
def rank(recogniser: Recogniser, corpus: list[Utterance]) -> Callable[..., LabelErrorReport]:
    """``rank(texts, noisy)``: with these transcripts instead; one set of noisy recordings for each model."""

    def call(texts: dict[str, str], *noisy: set[str]) -> LabelErrorReport:
        models = [
            replace(recogniser, acoustic_model=Oracle(recogniser, corpus, one)) for one in noisy or (set(),)
        ]
        changed = [replace(one, text=texts.get(one.id, one.text)) for one in corpus]
        return find_label_errors(models, changed, max_batch_utterances=3, max_batch_seconds=100)

    return call


def test_each_kind_of_error_comes_before_all_that_is_right(rank: Callable[..., LabelErrorReport]) -> None:
    wrong = {"train-0": "ab cc", "train-2": "aa", "train-3": "ca da db", "train-5": "dcba"}
    found = rank(wrong)
    assert {one.id for one in found.suspects[:4]} == set(wrong)
    assert len(found.suspects) == 8
    differences = {one.id: one.difference for one in found.suspects}
    assert differences["train-0"] == "cc → cd"
    assert differences["train-2"] == "∅ → bb"
    assert differences["train-3"] == "da → ∅"
    assert differences["train-1"] == ""


def test_noise_is_less_suspicious_than_a_wrong_word(rank: Callable[..., LabelErrorReport]) -> None:
    found = rank({"train-0": "ab cc"}, {"train-1", "train-4"})
    assert found.suspects[0].id == "train-0"
    by_loss = sorted(found.suspects, key=lambda one: -one.fits[0].loss)
    assert by_loss[0].id in {"train-1", "train-4"}  # which the loss alone would have accused


def test_a_second_model_that_hears_better_clears_up(rank: Callable[..., LabelErrorReport]) -> None:
    found = rank({"train-0": "ab cc"}, {"train-0"}, set())
    first = found.suspects[0]
    assert first.id == "train-0"
    assert len(first.fits) == 2
    assert first.suspicion == pytest.approx(sum(fit.suspicion for fit in first.fits) / 2)
    assert first.fits[1].margin > first.fits[0].margin


def test_figures_are_those_of_torch(recogniser: Recogniser) -> None:
    log_probs = torch.randn(40, recogniser.tokenizer.vocab_size, generator=torch.Generator().manual_seed(0))
    log_probs = (3 * log_probs).log_softmax(dim=1)
    emissions = Emissions(log_probs[None], torch.tensor([40]))
    hypothesis = recogniser.hypotheses(emissions)[0]
    fit = fit_of(log_probs, "ab cd", hypothesis, recogniser)
    losses = []
    for labels in (recogniser.tokenizer.encode("ab cd"), list(hypothesis.token_ids)):
        target = torch.tensor([labels])
        loss = nn.functional.ctc_loss(
            log_probs[:, None].double(),
            target,
            torch.tensor([40]),
            torch.tensor([len(labels)]),
            blank=recogniser.tokenizer.blank_id,
            reduction="sum",
        )
        losses.append(float(loss))
    assert fit.loss == pytest.approx(losses[0])
    assert fit.margin == pytest.approx(losses[0] - losses[1])
    assert (fit.loss_per_frame, fit.loss_per_label) == pytest.approx((losses[0] / 40, losses[0] / 5))
    frames = occupancy(log_probs, recogniser.tokenizer.encode("ab cd"), blank=recogniser.tokenizer.blank_id)
    size = round(0.5 / recogniser.acoustic_model.seconds_per_frame)
    sums = [frames.frame_losses[start : start + size].sum() for start in range(40 - size + 1)]
    assert fit.worst_stretch == pytest.approx(max(sums))
    assert fit.worst_seconds == pytest.approx(
        sums.index(max(sums)) * recogniser.acoustic_model.seconds_per_frame
    )


def test_what_cannot_be_judged_is_named_and_what_cannot_be_said_comes_first(
    rank: Callable[..., LabelErrorReport],
) -> None:
    found = rank({"train-0": "a" * 60, "train-1": "xyz"})
    assert found.suspects[0].id == "train-0"
    assert found.suspects[0].suspicion == math.inf
    (excluded,) = found.excluded
    assert excluded.id == "train-1"
    assert "'x' 'y' 'z'" in excluded.reason


def test_a_table_for_spreadsheets(rank: Callable[..., LabelErrorReport], tmp_path: Path) -> None:
    found = rank({"train-0": "ab cc"})
    first = replace(found.suspects[0], text="=1+1", speaker="a,b")
    table, everything = write_label_errors(replace(found, suspects=(first, *found.suspects[1:])), tmp_path)
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["id"] for row in rows] == [one.id for one in found.suspects]
    assert rows[0]["transcript"] == "'=1+1"
    assert rows[0]["speaker"] == "a,b"
    assert json.loads(everything.read_text())["suspects"][0]["text"] == "=1+1"


def run(tiny_run: Path, corpus: TinyCorpus, *overrides: str) -> int:
    options = [f"checkpoint={tiny_run}", f"data.dev={corpus.manifest('dev')}", "data.name=tiny"]
    options += [f"data.train={corpus.manifest('train')}", "split=train", "label_errors=true", *overrides]
    return evaluate(compose_config("evaluate", EvaluateConfig, options))


def test_the_command(
    tiny_run: Path, tiny_corpus: TinyCorpus, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (
        run(tiny_run, tiny_corpus, f"output={tmp_path}", f"second_checkpoint={tiny_run}", "num_worst=2") == 0
    )
    shown = capsys.readouterr().out
    assert shown.count("written") == 2
    assert "2 of 8" in shown
    found: dict[str, Any] = json.loads((tmp_path / "label_errors.json").read_text())
    assert len(found["suspects"]) == 8
    assert all(one["fits"][0] == one["fits"][1] for one in found["suspects"])


def test_contradictions_are_named(tiny_run: Path, tiny_corpus: TinyCorpus) -> None:
    for options in (["check_parity=true"], ["sweep=speed"], ["sclite=true"]):
        with pytest.raises(ConfigError, match="label_errors=true"):
            run(tiny_run, tiny_corpus, *options)
    with pytest.raises(ConfigError, match="label_errors=true"):
        run(tiny_run, tiny_corpus, "label_errors=false", "second_checkpoint=a")
