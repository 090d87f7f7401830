"""An evaluation counts every utterance once, as jiwer does, whatever the batches."""

import json
from collections.abc import Sequence
from pathlib import Path

import jiwer
import numpy as np
import pytest
import soundfile
import torch

from asr.decode.greedy import GreedyDecoder
from asr.evaluation import evaluate_utterances
from asr.features import LogMel
from asr.models.acoustic import AcousticModel
from asr.models.bilstm import BiLstmEncoder
from asr.recogniser import Recogniser
from asr.records import Emissions, Hypothesis, Utterance
from asr.report.json_report import EvaluationReport
from asr.text import normalise
from asr.tokenizer import CharTokenizer

RATE = 8000
TOKENIZER = CharTokenizer(list(" abcde"), blank_id=0)


@pytest.fixture(scope="module")
def recogniser() -> Recogniser:
    """A model with random weights: it hears nonsense, but always the same."""
    torch.manual_seed(0)
    features = LogMel(
        sample_rate=RATE,
        window_seconds=0.025,
        hop_seconds=0.010,
        dither=1e-5,
        normalise="utterance",
        num_mels=20,
        low_hz=20.0,
        high_hz=None,
    )
    encoder = BiLstmEncoder(
        num_bins=20,
        vocab_size=TOKENIZER.vocab_size,
        conv_channels=[4],
        conv_kernels=[[5, 5]],
        conv_strides=[[2, 2]],
        rnn_size=12,
        rnn_layers=2,
        rnn_norm="batch",
        dropout=0.2,
    )
    torch.nn.init.normal_(encoder.output.weight, std=3.0)  # so that all the labels are heard
    model = AcousticModel(features, encoder).eval()
    return Recogniser(model, TOKENIZER, GreedyDecoder(TOKENIZER, model.seconds_per_frame), normalise)


@pytest.fixture(scope="module")
def utterances(tmp_path_factory: pytest.TempPathFactory) -> list[Utterance]:
    folder = tmp_path_factory.mktemp("audio")
    rng = np.random.default_rng(0)
    found = []
    for index, seconds in enumerate([0.3, 2.0, 0.9, 1.4, 0.5, 3.1, 1.0, 0.2]):
        path = folder / f"{index}.wav"
        colour = np.convolve(rng.normal(size=round(seconds * RATE)), rng.normal(size=9), mode="same")
        soundfile.write(path, 0.1 * colour, RATE, subtype="FLOAT")
        text = " ".join(rng.choice(["ab", "cde", "a", "ea d"], size=rng.integers(1, 6)))
        found.append(Utterance(f"utt{index}", path, seconds, text, speaker=f"s{index % 2}"))
    return found


def evaluate(
    recogniser: Recogniser, utterances: Sequence[Utterance], batch: int = 3, **options: object
) -> EvaluationReport:
    return evaluate_utterances(
        recogniser,
        utterances,
        max_batch_utterances=batch,
        max_batch_seconds=10.0,
        **options,  # type: ignore[arg-type]
    )


def texts_of(report: EvaluationReport) -> dict[str, str]:
    return {result.id: result.hypothesis for result in report.utterances}


class Scripted:
    """A decoder that gives prepared texts, in the order in which it is asked."""

    def __init__(self, texts: Sequence[str]) -> None:
        self.texts = list(texts)

    def decode(self, emissions: Emissions) -> list[Hypothesis]:
        num_utterances = len(emissions.log_probs)
        given, self.texts = self.texts[:num_utterances], self.texts[num_utterances:]
        return [Hypothesis((), text, 0.0) for text in given]


def scripted(recogniser: Recogniser, texts: Sequence[str]) -> Recogniser:
    return Recogniser(recogniser.acoustic_model, TOKENIZER, Scripted(texts), normalise)


# ------------------------------------------------------------------ figures


def test_the_rates_are_jiwers_on_the_pooled_texts(
    recogniser: Recogniser, utterances: list[Utterance]
) -> None:
    report = evaluate(recogniser, utterances)
    references = [utterance.text for utterance in utterances]
    hypotheses = [texts_of(report)[utterance.id] for utterance in utterances]
    assert len(set(hypotheses)) > 4  # the nonsense is not all the same
    words, characters = (
        jiwer.process_words(references, hypotheses),
        jiwer.process_characters(references, hypotheses),
    )
    assert report.wer == pytest.approx(words.wer)
    assert report.cer == pytest.approx(characters.cer)
    assert report.counts == (words.hits, words.substitutions, words.deletions, words.insertions)
    assert report.sentence_error_rate == pytest.approx(
        np.mean([one != other for one, other in zip(references, hypotheses, strict=True)])
    )
    assert report.num_utterances == len(utterances)
    assert report.audio_seconds == pytest.approx(sum(one.duration_seconds for one in utterances))
    assert report.rtfx == pytest.approx(report.audio_seconds / report.decode_seconds)


def test_rates_are_pooled_not_averaged(recogniser: Recogniser, utterances: list[Utterance]) -> None:
    long, short = utterances[1], utterances[0]  # decoded in this order, the longest first
    pair = [
        Utterance("long", long.audio_path, long.duration_seconds, "a b c d e a b c d"),
        Utterance("short", short.audio_path, short.duration_seconds, "a"),
    ]
    report = evaluate(scripted(recogniser, ["a b c d e a b c d", "b"]), pair)
    assert report.wer == pytest.approx(1 / 10)  # the mean of the two rates would be 50 %


def test_both_sides_are_normalised_as_in_training(
    recogniser: Recogniser, utterances: list[Utterance]
) -> None:
    shouted = Utterance("u", utterances[0].audio_path, utterances[0].duration_seconds, "A,  CDE!")
    report = evaluate(scripted(recogniser, [" a  Cde"]), [shouted])
    assert report.wer == 0
    assert report.utterances[0].reference == report.utterances[0].hypothesis == "a cde"


def test_a_further_normaliser_can_be_asked_for(recogniser: Recogniser, utterances: list[Utterance]) -> None:
    one = Utterance("u", utterances[0].audio_path, utterances[0].duration_seconds, "can't pay twenty five")
    for normaliser, wer in (("none", 3 / 4), ("english", 0.0)):
        report = evaluate(scripted(recogniser, ["cannot pay 25"]), [one], normaliser=normaliser)
        assert report.normaliser == normaliser
        assert report.wer == pytest.approx(wer)


# ------------------------------------------------------------------ batches


@pytest.mark.parametrize("batch", [1, 2, 8])
def test_the_batch_size_changes_nothing(
    recogniser: Recogniser, utterances: list[Utterance], batch: int
) -> None:
    one, other = evaluate(recogniser, utterances), evaluate(recogniser, utterances, batch)
    assert [result.id for result in other.utterances] == [utterance.id for utterance in utterances]
    assert texts_of(one) == texts_of(other)
    assert one.counts == other.counts
    assert one.wer_interval == other.wer_interval
    for mine, theirs in zip(one.utterances, other.utterances, strict=True):
        assert mine.score == pytest.approx(theirs.score, abs=1e-2)


def test_the_order_of_the_manifest_changes_nothing(
    recogniser: Recogniser, utterances: list[Utterance]
) -> None:
    assert texts_of(evaluate(recogniser, utterances)) == texts_of(evaluate(recogniser, utterances[::-1]))


def test_a_batch_equals_its_utterances_one_by_one(
    recogniser: Recogniser, utterances: list[Utterance]
) -> None:
    waveforms = [torch.from_numpy(soundfile.read(one.audio_path, dtype="float32")[0]) for one in utterances]
    together = recogniser.emissions(waveforms)
    for index, waveform in enumerate(waveforms):
        alone = recogniser.emissions([waveform])
        num_frames = int(alone.log_prob_lengths)
        assert num_frames == int(together.log_prob_lengths[index])
        torch.testing.assert_close(
            together.log_probs[index, :num_frames], alone.log_probs[0], rtol=1e-3, atol=1e-3
        )


# ------------------------------------------------------------------ what cannot be scored


def test_unreadable_audio_is_named_and_the_others_count(
    recogniser: Recogniser, utterances: list[Utterance], tmp_path: Path
) -> None:
    late = tmp_path / "late.wav"  # its header is fine, its samples are not: found while decoding
    samples = np.full(4000, 0.1, dtype=np.float32)
    samples[3000] = np.nan
    soundfile.write(late, samples, RATE, subtype="FLOAT")
    bad = [
        Utterance("missing", tmp_path / "missing.wav", 1.0, "a b"),
        Utterance("late", late, 0.5, "a b"),
    ]
    done: list[int] = []
    report = evaluate(recogniser, [bad[0], *utterances[:4], bad[1], *utterances[4:]], on_progress=done.append)
    reasons = {exclusion.id: exclusion.reason for exclusion in report.excluded}
    assert set(reasons) == {"missing", "late"}
    assert "missing.wav" in reasons["missing"]
    assert "late.wav" in reasons["late"]
    assert "NaN" in reasons["late"]
    assert report.num_excluded == 2
    assert texts_of(report) == texts_of(evaluate(recogniser, utterances))
    assert done == sorted(done)
    assert done[-1] == len(utterances) + 2


def test_nothing_readable_gives_an_empty_report(recogniser: Recogniser, tmp_path: Path) -> None:
    report = evaluate(recogniser, [Utterance("u", tmp_path / "missing.wav", 1.0, "a")])
    assert (report.num_utterances, report.num_excluded) == (0, 1)
    assert np.isnan(report.wer)


def test_words_heard_where_nothing_was_said_are_insertions(
    recogniser: Recogniser, utterances: list[Utterance]
) -> None:
    silent = Utterance("silent", utterances[1].audio_path, utterances[1].duration_seconds, "")
    spoken = Utterance("spoken", utterances[0].audio_path, utterances[0].duration_seconds, "a b")
    report = evaluate(scripted(recogniser, ["e e e", "a b"]), [silent, spoken])
    assert report.counts == (2, 0, 0, 3)
    assert report.wer == pytest.approx(3 / 2)
    assert report.num_utterances == 2


def test_manifest_fields_and_provenance_reach_the_report(
    recogniser: Recogniser, utterances: list[Utterance]
) -> None:
    first = utterances[0]
    one = Utterance(
        "u", first.audio_path, 0.1, "a", speaker="kim", offset_seconds=0.05, extra={"accent": "north"}
    )
    report = evaluate(recogniser, [one], provenance={"checkpoint": "best.ckpt"})
    result = report.utterances[0]
    assert (result.speaker, result.offset_seconds, result.duration_seconds) == ("kim", 0.05, 0.1)
    assert dict(result.fields) == {"accent": "north"}
    assert json.loads(json.dumps(dict(report.provenance))) == {"checkpoint": "best.ckpt"}
