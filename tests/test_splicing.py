"""corpus=spliced: recordings of tones are cut and joined, and an ear for tones hears the new texts in them."""

import json
from collections import Counter
from dataclasses import replace
from itertools import groupby
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from conftest import TINY_RATE, TINY_TONES, TinyCorpus, compose_config
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from asr.checkpoint import load_recogniser
from asr.config import GreedyConfig, PrepareConfig
from asr.corpora.splicing import MAX_PIECE_WORDS, MAX_PIECES, MIN_PIECES, CutUtterance, draw, quietest_sample
from asr.dataset import load_utterance
from asr.errors import ConfigError, ManifestError
from asr.manifest import read_manifest
from asr.prepare import prepare
from asr.recogniser import Recogniser
from asr.records import Emissions, Utterance
from asr.spliced import cut_between_words

FRAME_SECONDS = 0.02


def tones(waveform: np.ndarray) -> list[str]:
    """The letter whose tone is heard in each frame of 20 ms, empty where it is quiet."""
    size = int(FRAME_SECONDS * TINY_RATE)
    letters = {letter: hertz for letter, hertz in TINY_TONES.items() if hertz is not None}
    frames = waveform[: len(waveform) // size * size].reshape(-1, size)
    waves = np.exp(-2j * np.pi * np.outer(np.arange(size), list(letters.values())) / TINY_RATE)
    strengths = np.abs(frames @ waves) / size
    heard = np.array(list(letters))[strengths.argmax(axis=1)]
    return [letter if loud else "" for letter, loud in zip(heard, strengths.max(axis=1) > 0.03, strict=True)]


def letters_in(waveform: np.ndarray) -> str:
    return "".join(letter for letter, _ in groupby(tones(waveform)))


class Ear(nn.Module):
    """An acoustic model that hears tones: each letter while it sounds, a space in the middle of a long silence."""

    def __init__(self, recogniser: Recogniser) -> None:
        super().__init__()
        self.features, self.seconds_per_frame = recogniser.acoustic_model.features, FRAME_SECONDS
        self.tokenizer = recogniser.tokenizer
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, waveforms: Tensor, lengths: Tensor) -> Emissions:
        heard = [
            self.emissions(one[:length].numpy())
            for one, length in zip(waveforms, lengths.tolist(), strict=True)
        ]
        padded = nn.utils.rnn.pad_sequence(heard, batch_first=True)
        return Emissions(padded, torch.tensor([len(one) for one in heard]))

    def emissions(self, waveform: np.ndarray) -> Tensor:
        labels = []
        for letter, run in groupby(tones(waveform)):
            size = len(list(run))
            name = letter or (" " if size > 5 else "")
            label = self.tokenizer.tokens.index(name) if name else self.tokenizer.blank_id
            labels += [label] * size if letter else [self.tokenizer.blank_id] * size
            if name == " ":
                labels[-size // 2] = label
        probs = torch.full((len(labels), self.tokenizer.vocab_size), 0.01)
        probs[torch.arange(len(labels)), torch.tensor(labels)] = 1.0
        return probs.log_softmax(dim=1)


@pytest.fixture(scope="module")
def ear(tiny_run: Path) -> Recogniser:
    recogniser = load_recogniser(tiny_run, GreedyConfig(), torch.device("cpu"))
    return replace(recogniser, acoustic_model=Ear(recogniser))


@pytest.fixture
def hearing(ear: Recogniser, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("asr.spliced.load_recogniser", lambda *_: ear)


def splice(corpus: Path, output: Path, *overrides: str) -> list[Utterance]:
    options = ["corpus=spliced", f"source={corpus}", f"output={output}", *overrides]
    prepare(compose_config("prepare", PrepareConfig, options))
    return read_manifest(output / "train.jsonl")


def test_a_cut_is_in_the_middle_of_the_pause() -> None:
    loud, pause = np.ones(1000, np.float32), np.full(600, 0.01, np.float32)
    waveform = np.concatenate([loud, pause, loud])
    assert abs(quietest_sample(waveform, 500, 2000, 8000) - 1300) <= 1
    waveform[1200] = 0.5  # a click
    assert 1290 < quietest_sample(waveform, 500, 2000, 8000) < 1600
    assert quietest_sample(waveform, 700, 701, 8000) == 700


def test_words_are_cut_where_they_end(ear: Recogniser, tiny_corpus: TinyCorpus) -> None:
    cut, uncut = cut_between_words(ear, read_manifest(tiny_corpus.manifest("train")))
    assert not uncut
    assert [one.utterance.id for one in cut] == [f"train-{number}" for number in range(8)]
    for one in cut:
        waveform = load_utterance(one.utterance, TINY_RATE).numpy()
        assert one.words == tuple(one.utterance.text.split())
        assert one.borders[0] == 0
        assert one.borders[-1] == len(waveform) / TINY_RATE
        for word, begin, end in zip(one.words, one.borders, one.borders[1:], strict=False):
            piece = waveform[round(begin * TINY_RATE) : round(end * TINY_RATE)]
            assert letters_in(piece) == "".join(letter for letter, _ in groupby(word)) or word in {
                "aa",
                "bb",
                "cc",
            }
            # Two tones of 0.1 s and 0.04 s of silence after each letter; half of the space's 0.14 s is on either side.
            assert begin == 0 or end == one.borders[-1] or abs(end - begin - 0.42) < 0.05


@pytest.mark.usefixtures("hearing")
def test_new_utterances_sound_like_their_texts(tiny_corpus: TinyCorpus, tmp_path: Path) -> None:
    found = splice(tiny_corpus.folder, tmp_path / "new", "checkpoint=any.ckpt", "num_utterances=40")
    originals = read_manifest(tiny_corpus.manifest("train"))
    assert [(one.id, one.text) for one in found[:8]] == [(one.id, one.text) for one in originals]
    assert len(found) == 48
    speakers = {one.id: one.speaker for one in originals}
    for one in found[8:]:
        waveform, rate = soundfile.read(one.audio_path, dtype="float32")
        assert rate == TINY_RATE
        assert abs(len(waveform) / rate - one.duration_seconds) < 1e-3
        # 0.04 s of silence between letters: every letter of the text is heard apart from the next.
        assert letters_in(waveform) == one.text.replace(" ", "")
        assert {speakers[name] for name in one.extra["spliced_from"]} == {one.speaker}
    assert len({one.text for one in found[8:]}) > 30
    assert read_manifest(tmp_path / "new" / "dev.jsonl")[0].text == "ad bc"
    again = splice(tiny_corpus.folder, tmp_path / "again", "checkpoint=any.ckpt", "num_utterances=40")
    assert [one.text for one in again] == [one.text for one in found]
    other = splice(tiny_corpus.folder, tmp_path / "other", "checkpoint=any.ckpt", "seed=1")
    assert len(other) == 16
    assert [one.text for one in other[8:]] != [one.text for one in found[8:16]]


@pytest.mark.usefixtures("hearing")
def test_what_cannot_be_cut_is_named_and_stays(
    tiny_corpus: TinyCorpus, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = tiny_corpus.lines("train")
    lines[0]["text"] = "ab xy"
    lines[1]["text"] = "abcd " * 20
    lines[2]["text"] = ""
    lines[3]["audio_filepath"] = "gone.wav"
    for line in lines:
        del line["speaker"]
    (tmp_path / "source").mkdir()
    tiny_corpus.write(tmp_path / "source" / "train.jsonl", lines)
    found = splice(tmp_path / "source", tmp_path / "new", "checkpoint=any.ckpt")
    sources = {name for one in found[8:] for name in one.extra["spliced_from"]}
    assert sources <= {"train-4", "train-5", "train-6", "train-7"}
    assert [one.id for one in found[:8]] == [f"train-{number}" for number in range(8)]
    notes = " ".join(json.loads((tmp_path / "new" / "prepare.json").read_text())["notes"])
    assert "spliced from 4 of its 8" in notes
    assert "4 could not be cut" in notes
    assert "as if all had the same" in notes
    assert "4 could not be cut" in " ".join(capsys.readouterr().out.split())
    tiny_corpus.write(tmp_path / "source" / "train.jsonl", lines[:3])
    with pytest.raises(ManifestError, match="can be cut"):
        splice(tmp_path / "source", tmp_path / "none", "checkpoint=any.ckpt")


@pytest.mark.usefixtures("hearing")
def test_a_place_that_cannot_be_written_is_named(tiny_corpus: TinyCorpus, tmp_path: Path) -> None:
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "audio").write_text("a file where the folder should be")
    with pytest.raises(ManifestError, match=r"cannot write .*spliced_000001\.flac"):
        splice(tiny_corpus.folder, tmp_path / "new", "checkpoint=any.ckpt")


@pytest.mark.usefixtures("hearing")
def test_an_interruption_leaves_no_manifest_of_audio_that_was(
    tiny_corpus: TinyCorpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    splice(tiny_corpus.folder, tmp_path / "new", "checkpoint=any.ckpt")
    monkeypatch.setattr("asr.corpora.splicing._write", interrupted)
    with pytest.raises(KeyboardInterrupt):
        splice(tiny_corpus.folder, tmp_path / "new", "checkpoint=any.ckpt", "seed=1")
    assert {path.name for path in (tmp_path / "new").glob("*.json*")} == {"excluded.jsonl"}


@pytest.mark.usefixtures("hearing")
def test_the_next_training_begins_with_the_model_that_spliced(
    tiny_corpus: TinyCorpus, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    splice(tiny_corpus.folder, tmp_path / "new", "checkpoint=any.ckpt")
    hint = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("next: "))
    manifests = [f"data.{split}={tmp_path / 'new' / split}.jsonl" for split in ("train", "dev")]
    assert hint.startswith(" ".join(["next: python -m asr.train init_from=any.ckpt", *manifests]) + ", with")
    assert "data=custom" not in hint


def test_what_is_spliced_is_not_spliced_again(tiny_corpus: TinyCorpus, tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    for fields in ({"id": "spliced_000001"}, {"spliced_from": ["a", "b"]}):
        lines = tiny_corpus.lines("train")
        lines[3] |= fields
        tiny_corpus.write(tmp_path / "source" / "train.jsonl", lines)
        # Said before the checkpoint is looked for, which is not there.
        with pytest.raises(ManifestError, match=rf"spliced already \({lines[3]['id']}\)"):
            splice(tmp_path / "source", tmp_path / "new", "checkpoint=any.ckpt")


def test_contradictions_are_named(tiny_corpus: TinyCorpus, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="needs checkpoint="):
        splice(tiny_corpus.folder, tmp_path)
    with pytest.raises(ConfigError, match="needs source="):
        prepare(compose_config("prepare", PrepareConfig, ["corpus=spliced", f"output={tmp_path}"]))
    with pytest.raises(ManifestError, match=r"no train\.jsonl"):
        splice(tmp_path, tmp_path, "checkpoint=any.ckpt")
    with pytest.raises(ConfigError, match="num_utterances=0"):
        splice(tiny_corpus.folder, tmp_path, "checkpoint=any.ckpt", "num_utterances=0")
    with pytest.raises(ManifestError, match="overwritten"):
        splice(tiny_corpus.folder, tiny_corpus.folder, "checkpoint=any.ckpt")


words = st.lists(st.text("abc", min_size=1, max_size=3), min_size=1, max_size=7)


@given(st.lists(st.tuples(words, st.sampled_from("xyz")), min_size=1, max_size=6), st.integers(0, 99))
def test_pieces_are_runs_of_words_of_one_speaker(corpus: list[tuple[list[str], str]], seed: int) -> None:
    sources = [
        CutUtterance(
            Utterance(str(number), f"{number}.wav", 1.0, " ".join(text), speaker),
            tuple(text),
            tuple(range(len(text) + 1)),
        )
        for number, (text, speaker) in enumerate(corpus)
    ]
    for pieces in draw(sources, 20, seed):
        assert MIN_PIECES <= len(pieces) <= MAX_PIECES
        assert len({piece.source.utterance.speaker for piece in pieces}) == 1
        for piece in pieces:
            assert 1 <= len(piece.words) <= MAX_PIECE_WORDS
            assert piece.words == piece.source.words[piece.start : piece.stop]


def test_rare_words_come_more_often() -> None:
    texts = ["often often often often"] * 20 + ["often often seldom often"]
    sources = [
        CutUtterance(Utterance(str(number), "x.wav", 1.0, text, "s"), tuple(text.split()), (0, 1, 2, 3, 4))
        for number, text in enumerate(texts)
    ]
    drawn = Counter(word for pieces in draw(sources, 2000, 0) for piece in pieces for word in piece.words)
    share = drawn["seldom"] / drawn.total()
    assert share > 5 / 84  # it is 1 of 84 words
