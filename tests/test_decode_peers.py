"""flashlight-text as a decoder: the same texts and scores as our search where neither prunes."""

import os
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import compose_config
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from asr.build import make_decoder
from asr.config import EvaluateConfig, FlashlightConfig
from asr.decode.arpa import LanguageModelError
from asr.decode.beam import BeamDecoder, Pruning
from asr.decode.decoder import DecodeError, Decoder
from asr.decode.estimate import estimate
from asr.decode.scorer import make_scorer
from asr.errors import ConfigError
from asr.records import Emissions, Hypothesis
from asr.tokenizer import CharTokenizer, SentencePieceTokenizer

TOKENIZER = CharTokenizer([" ", "a", "b"], blank_id=0)
SENTENCES = ["a ab ba", "ab a", "ba ba a ab", "bb", "a a", "ab ba"]
WIDE = {"beam_width": 100_000, "score_gap": 1e6}
needs_flashlight = pytest.mark.skipif(find_spec("flashlight") is None, reason="needs flashlight-text")
seeds = st.integers(0, 2**32 - 1)


@pytest.fixture(scope="module")
def words_arpa(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("lm") / "words.arpa"
    estimate([sentence.split() for sentence in SENTENCES], output, order=3)
    return output


@pytest.fixture(scope="module")
def tokens_arpa(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("lm") / "tokens.arpa"
    estimate([list(sentence.replace(" ", "_")) for sentence in SENTENCES], output, order=3)
    output.write_text(output.read_text().replace("_", "<space>"))
    return output


def random_log_probs(seed: int, num_frames: int, vocab_size: int = 4) -> Tensor:
    rng = np.random.default_rng(seed)
    return torch.from_numpy(2 * rng.normal(size=(num_frames, vocab_size))).log_softmax(-1).float()


def as_batch(*utterances: Tensor) -> Emissions:
    padded = torch.nn.utils.rnn.pad_sequence(list(utterances), batch_first=True)
    return Emissions(padded, torch.tensor([len(utterance) for utterance in utterances]))


def flashlight(**options: object) -> Decoder:
    return make_decoder(FlashlightConfig(**(WIDE | options)), TOKENIZER, 0.02)  # type: ignore[arg-type]


def scores_by_text(hypotheses: list[Hypothesis]) -> dict[str, float]:
    scores = {hypothesis.text: hypothesis.score for hypothesis in hypotheses}
    assert len(scores) == len(hypotheses)
    return scores


# ------------------------------------------------------------------ the same as ours


@needs_flashlight
@given(seed=seeds, num_frames=st.integers(1, 6))
@settings(deadline=None, max_examples=40)
def test_without_words(seed: int, num_frames: int) -> None:
    batch = as_batch(random_log_probs(seed, num_frames))
    ours = BeamDecoder(TOKENIZER, 0.02, pruning=Pruning.none(5000)).decode_nbest(batch, 5000)[0]
    theirs = flashlight().decode_nbest(batch, 5000)[0]
    assert {one.token_ids: one.score for one in theirs} == pytest.approx(
        {one.token_ids: one.score for one in ours}, abs=1e-4
    )


@needs_flashlight
@given(seed=seeds, num_frames=st.integers(1, 6), with_lm=st.booleans())
@settings(deadline=None, max_examples=40)
def test_with_words(words_arpa: Path, seed: int, num_frames: int, with_lm: bool) -> None:
    lexicon = words_arpa.with_name("words.txt")
    lexicon.write_text("a\nab\nba\nbb\naa\n")  # the model does not know the last one
    files = {"lexicon_path": str(lexicon), "lm_path": str(words_arpa) if with_lm else None}
    scorer = make_scorer(TOKENIZER, vocabulary="closed", alpha=0.7 * with_lm, beta=0.4, **files)
    batch = as_batch(random_log_probs(seed, num_frames))
    decoder = BeamDecoder(TOKENIZER, 0.02, pruning=Pruning.none(5000), scorer=scorer)
    ours = scores_by_text(decoder.decode_nbest(batch, 5000)[0])
    theirs = flashlight(lexicon=files["lexicon_path"], lm=files["lm_path"], alpha=0.7, beta=0.4).decode_nbest(
        batch, 5000
    )[0]
    assert {one.text: one.score for one in theirs} == pytest.approx(ours, abs=1e-4)


@needs_flashlight
@given(seed=seeds, num_frames=st.integers(1, 6))
@settings(deadline=None, max_examples=20)
def test_with_a_model_of_tokens(tokens_arpa: Path, seed: int, num_frames: int) -> None:
    scorer = make_scorer(TOKENIZER, lm_path=str(tokens_arpa), lm_unit="token", alpha=0.6)
    batch = as_batch(random_log_probs(seed, num_frames))
    decoder = BeamDecoder(TOKENIZER, 0.02, pruning=Pruning.none(5000), scorer=scorer)
    ours = {one.token_ids: one.score for one in decoder.decode_nbest(batch, 5000)[0]}
    found = flashlight(lm=str(tokens_arpa), lm_unit="token", alpha=0.6).decode_nbest(batch, 5000)[0]
    assert {one.token_ids: one.score for one in found} == pytest.approx(ours, abs=1e-4)


@needs_flashlight
def test_words_and_times_are_those_of_our_alignment(words_arpa: Path) -> None:
    labels = [0, 2, 2, 3, 0, 1, 0, 0, 3, 2]  # "ab ba"
    log_probs = torch.full((len(labels), 4), -6.0)
    log_probs[range(len(labels)), labels] = 0.0
    batch = as_batch(log_probs.log_softmax(-1), random_log_probs(0, 4))
    scorer = make_scorer(TOKENIZER, lm_path=str(words_arpa), vocabulary="closed", alpha=0.5)
    ours = BeamDecoder(TOKENIZER, 0.02, scorer=scorer).decode(batch)[0]
    theirs = flashlight(lm=str(words_arpa)).decode(batch)[0]
    assert theirs.text == "ab ba"
    assert (theirs.token_ids, theirs.token_frames) == (ours.token_ids, ours.token_frames)
    # Only our own search knows the rivals of a word, which its confidence is made of.
    assert [replace(word, confidence=0) for word in theirs.words] == [
        replace(word, confidence=0) for word in ours.words
    ]


@needs_flashlight
def test_models_are_read_once_and_in_silence(words_arpa: Path, capfd: pytest.CaptureFixture[str]) -> None:
    batch = as_batch(random_log_probs(1, 6))
    copy = words_arpa.with_name("copy.arpa")
    copy.write_text(words_arpa.read_text())
    before = flashlight(lm=str(copy), alpha=3.0).decode(batch)[0].score
    assert flashlight(lm=str(copy), alpha=0.0).decode(batch)[0].score != before
    assert flashlight(lm=str(copy), alpha=3.0).decode(batch)[0].score == before
    estimate([["bb"], ["bb", "bb"]], copy, order=2)
    assert flashlight(lm=str(copy), alpha=3.0).decode(batch)[0].score != before  # another model, same name
    os.write(2, b"heard again")
    assert capfd.readouterr() == ("", "heard again")


@needs_flashlight
@pytest.mark.parametrize("options", [{}, {"lm": "words"}])
def test_nothing_was_said(words_arpa: Path, options: dict) -> None:
    options = {name: str(words_arpa) for name in options}
    silence = torch.tensor([[0.0, -20.0, -20.0, -20.0]])
    for frames in (silence[:0], silence, torch.tensor([[0.0, -torch.inf, -torch.inf, -torch.inf]])):
        hypothesis = flashlight(**options).decode(as_batch(frames))[0]
        assert (hypothesis.text, hypothesis.words) == ("", ())
        assert np.isfinite(hypothesis.score)


@needs_flashlight
def test_a_word_that_is_cut_off_is_left_out(words_arpa: Path) -> None:
    lexicon = words_arpa.with_name("long.txt")
    lexicon.write_text("ba\nbbb\n")
    labels = [3, 2, 1, 3]  # "ba b"
    log_probs = torch.full((len(labels), 4), -torch.inf)
    log_probs[range(len(labels)), labels] = 0.0
    hypothesis = flashlight(lexicon=str(lexicon)).decode(as_batch(log_probs))[0]
    assert hypothesis.text == "ba"
    assert -100 < hypothesis.score <= 0.01


# ------------------------------------------------------------------ what cannot be


@needs_flashlight
@pytest.mark.parametrize(("value", "what"), [(torch.nan, "hold NaN"), (-torch.inf, "are all minus infinity")])
def test_damaged_log_probs(value: float, what: str) -> None:
    damaged = random_log_probs(0, 5)
    damaged[3] = value
    with pytest.raises(DecodeError, match=f"utterance 1 of the batch: .* frame 3 {what}"):
        flashlight().decode(as_batch(random_log_probs(1, 5), damaged))


@needs_flashlight
def test_log_probs_of_another_model() -> None:
    with pytest.raises(ConfigError, match="5 classes but the tokenizer has 4"):
        flashlight().decode(as_batch(random_log_probs(0, 3, vocab_size=5)))


@needs_flashlight
def test_subwords_are_refused_with_words(tmp_path: Path, words_arpa: Path) -> None:
    tokenizer = SentencePieceTokenizer.train(["aba bab ab", "ba aab", "abba baba"] * 5, vocab_size=9)
    with pytest.raises(ConfigError, match="subwords or have none: use decoder=beam_lm"):
        make_decoder(FlashlightConfig(lm=str(words_arpa)), tokenizer, 0.02)
    log_probs = random_log_probs(3, 6, tokenizer.vocab_size)
    ours = BeamDecoder(tokenizer, 0.02, pruning=Pruning.none(5000)).decode(as_batch(log_probs))
    theirs = make_decoder(FlashlightConfig(**WIDE), tokenizer, 0.02).decode(as_batch(log_probs))
    assert theirs[0].text == ours[0].text


@needs_flashlight
def test_damaged_models_are_refused_before_kenlm_sees_them(words_arpa: Path, tmp_path: Path) -> None:
    cut_off = tmp_path / "cut.arpa"
    cut_off.write_text(words_arpa.read_text()[:-40])
    with pytest.raises(LanguageModelError, match=r"cut\.arpa") as caught:
        flashlight(lm=str(cut_off))
    assert "\n" not in str(caught.value)


def test_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "flashlight"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "flashlight", None)
    with pytest.raises(ConfigError, match=r"pip install flashlight-text, or use decoder=beam") as caught:
        flashlight()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["decoder.beam_width=0"], "beam_width=0"),
        (["decoder.score_gap=0"], "score_gap=0"),
        (["decoder.alpha=-1"], "alpha=-1"),
        (["decoder.max_tokens=0"], "max_tokens=0"),
        (["decoder.lm_unit=phone"], "lm_unit=phone"),
        (["decoder.beta=1"], "without decoder.lexicon or a decoder.lm of words"),
        (["decoder.lm_unit=token"], "lm_unit=token describes decoder.lm"),
        (["decoder.lm_unit=token", "decoder.lm=a", "decoder.lexicon=b"], "decoder=beam_lm takes both"),
    ],
)
def test_options_that_contradict_each_other(options: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        compose_config("evaluate", EvaluateConfig, ["checkpoint=a", "decoder=flashlight", *options])
