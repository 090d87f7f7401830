"""Tokenizers: round trips, named unknown characters, and sentencepiece against its own processor."""

import base64
import itertools
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st

from asr.errors import CheckpointError, TextError
from asr.records import Utterance
from asr.tokenizer import (
    BLANK_DISPLAY,
    CharTokenizer,
    PartialTokenizer,
    SentencePieceTokenizer,
    Tokenizer,
    WordGroup,
    report_unknown_characters,
    tokenizer_from_state,
)

TEXTS = [
    "the cat sat on the mat",
    "the dog's bone is on the mat",
    "a quick brown fox jumps over the lazy dog",
    "pack my box with five dozen liquor jugs",
    "über den zaun",
] * 3
ALPHABET = sorted(set("".join(TEXTS)))

TOKENIZERS: dict[str, Tokenizer] = {
    "characters": CharTokenizer.train(TEXTS),
    "characters-last": CharTokenizer.train(TEXTS, blank="last"),
    "characters-middle": CharTokenizer(ALPHABET, blank_id=7),
    "unigram": SentencePieceTokenizer.train(TEXTS, 44),
    "unigram-last": SentencePieceTokenizer.train(TEXTS, 44, blank="last"),
    "bpe": SentencePieceTokenizer.train(TEXTS, 80, model_type="bpe"),
    "bpe-last": SentencePieceTokenizer.train(TEXTS, 80, model_type="bpe", blank="last"),
}
SENTENCEPIECES = [name for name in TOKENIZERS if not name.startswith("characters")]

each_tokenizer = pytest.mark.parametrize("tokenizer", TOKENIZERS.values(), ids=TOKENIZERS.keys())
words = st.lists(st.text([c for c in ALPHABET if c != " "], min_size=1, max_size=8), max_size=6)


def label_ids(tokenizer: Tokenizer) -> st.SearchStrategy[list[int]]:
    labels = [token_id for token_id in range(tokenizer.vocab_size) if token_id != tokenizer.blank_id]
    return st.lists(st.sampled_from(labels), max_size=20)


@each_tokenizer
class TestEveryTokenizer:
    @settings(deadline=None, max_examples=60)
    @given(words=words)
    def test_round_trip(self, tokenizer: Tokenizer, words: list[str]) -> None:
        text = " ".join(words)
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text
        assert tokenizer.blank_id not in ids
        assert all(0 <= token_id < tokenizer.vocab_size for token_id in ids)
        assert tokenizer.encode("  " + " \t ".join(words) + " \n") == ids

    @settings(deadline=None, max_examples=60)
    @given(data=st.data())
    def test_word_groups_of_any_labels(self, tokenizer: Tokenizer, data: st.DataObject) -> None:
        ids = data.draw(label_ids(tokenizer))
        groups = tokenizer.word_groups(ids)
        assert [group.text for group in groups] == tokenizer.decode(ids).split()
        tokens = tokenizer.tokens
        for group in groups:
            assert 0 <= group.first <= group.last < len(ids)
            spelling = "".join(tokens[token_id] for token_id in ids[group.first : group.last + 1])
            assert spelling.strip() == group.text
        for before, after in itertools.pairwise(groups):
            assert before.last < after.first

    @settings(deadline=None, max_examples=60)
    @given(words=words, gap=st.booleans())
    def test_never_more_labels_than_announced(
        self, tokenizer: Tokenizer, words: list[str], gap: bool
    ) -> None:
        text = " ".join(words)
        assert len(tokenizer.encode(text)) <= tokenizer.max_labels(text)
        partial = PartialTokenizer(tokenizer, "*")
        for marked in (" * ".join(words), "*".join(words), "* " * gap + text + " *"):
            assert len(partial.encode(marked)) <= partial.max_labels(marked)

    def test_tokens_and_blank(self, tokenizer: Tokenizer) -> None:
        assert len(tokenizer.tokens) == tokenizer.vocab_size
        assert tokenizer.tokens.index(BLANK_DISPLAY) == tokenizer.blank_id
        assert tokenizer.tokens.count(BLANK_DISPLAY) == 1
        assert set(ALPHABET) <= set(tokenizer.tokens)

    def test_unknown_characters_are_named_never_dropped(self, tokenizer: Tokenizer) -> None:
        assert tokenizer.unknown_characters("the ça ça 5▁") == {"ç": 2, "5": 1, "▁": 1}
        with pytest.raises(TextError) as caught:
            tokenizer.encode("the ça 5")
        message = str(caught.value)
        assert "'the ça 5'" in message
        assert "'5' (U+0035 DIGIT FIVE), 'ç' (U+00E7 LATIN SMALL LETTER C WITH CEDILLA)" in message
        assert "\n" not in message

    def test_state_is_plain_and_rebuilds_the_same(self, tokenizer: Tokenizer) -> None:
        state = json.loads(json.dumps(tokenizer.state()))
        rebuilt = tokenizer_from_state(state)
        assert type(rebuilt) is type(tokenizer)
        assert rebuilt.tokens == tokenizer.tokens
        assert rebuilt.blank_id == tokenizer.blank_id
        assert rebuilt.fingerprint == tokenizer.fingerprint
        assert rebuilt.encode(TEXTS[1]) == tokenizer.encode(TEXTS[1])

    def test_travels_to_worker_processes(self, tokenizer: Tokenizer) -> None:
        assert pickle.loads(pickle.dumps(tokenizer)).encode(TEXTS[1]) == tokenizer.encode(TEXTS[1])

    def test_ids_that_spell_nothing(self, tokenizer: Tokenizer) -> None:
        for token_id in (tokenizer.blank_id, -1, tokenizer.vocab_size):
            with pytest.raises(ValueError, match=f"token id {token_id} spells no text"):
                tokenizer.decode([token_id])
            with pytest.raises(ValueError, match="spells no text"):
                tokenizer.word_groups([token_id])

    def test_no_text(self, tokenizer: Tokenizer) -> None:
        assert tokenizer.encode("") == tokenizer.encode(" \n") == []
        assert tokenizer.decode([]) == ""
        assert tokenizer.word_groups([]) == []


def test_fingerprints_differ_between_tokenizers() -> None:
    fingerprints = {tokenizer.fingerprint for tokenizer in TOKENIZERS.values()}
    assert len(fingerprints) == len(TOKENIZERS)
    assert all(len(fingerprint) == 64 for fingerprint in fingerprints)


class TestCharacters:
    def test_by_hand(self) -> None:
        tokenizer = CharTokenizer.train(["b a", "ab\tb"])
        assert tokenizer.tokens == ["<blank>", " ", "a", "b"]
        assert tokenizer.encode("ab b") == [2, 3, 1, 3]
        assert tokenizer.decode([1, 2, 1, 1, 3, 1]) == "a b"
        assert tokenizer.word_groups([1, 2, 3, 1, 1, 3]) == [WordGroup("ab", 1, 2), WordGroup("b", 5, 5)]
        last = CharTokenizer.train(["b a"], blank="last")
        assert last.tokens == [" ", "a", "b", "<blank>"]
        assert last.encode("ab b") == [1, 2, 0, 2]

    @pytest.mark.parametrize("texts", [[], [""], [" ", "\n"]])
    def test_nothing_to_train_on(self, texts: list[str]) -> None:
        with pytest.raises(TextError, match="training text is empty"):
            CharTokenizer.train(texts)

    @pytest.mark.parametrize(
        ("characters", "blank_id"), [(["ab"], 0), (["a", "a"], 0), (["a"], 2), (["a"], -1), ([], 0)]
    )
    def test_nonsense_is_refused(self, characters: list[str], blank_id: int) -> None:
        with pytest.raises(ValueError, match=r"token|blank_id"):
            CharTokenizer(characters, blank_id=blank_id)


class TestSentencePiece:
    @pytest.mark.parametrize("name", SENTENCEPIECES)
    @settings(deadline=None, max_examples=40)
    @given(words=words)
    def test_agrees_with_its_own_processor(self, name: str, words: list[str]) -> None:
        tokenizer = TOKENIZERS[name]
        model = base64.b64decode(tokenizer.state()["model"])
        processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        text = " ".join(words)
        pieces = [tokenizer.tokens[token_id].replace(" ", "▁") for token_id in tokenizer.encode(text)]
        assert pieces == processor.encode(text, out_type=str)
        assert tokenizer.decode(tokenizer.encode(text)) == processor.decode(processor.encode(text))
        assert tokenizer.vocab_size == processor.vocab_size()

    def test_ids_beside_the_blank_keep_the_model_order(self) -> None:
        first, last = TOKENIZERS["bpe"], TOKENIZERS["bpe-last"]
        assert (first.blank_id, last.blank_id) == (0, 79)
        assert first.tokens[1:] == last.tokens[:-1]
        assert [token_id - 1 for token_id in first.encode(TEXTS[0])] == last.encode(TEXTS[0])

    def test_words_group_by_subwords(self) -> None:
        tokenizer = TOKENIZERS["bpe"]
        ids = tokenizer.encode("the dog's mat")
        groups = tokenizer.word_groups(ids)
        assert [group.text for group in groups] == ["the", "dog's", "mat"]
        assert len(ids) < len("the dog's mat")
        assert tokenizer.decode(ids[groups[1].first : groups[1].last + 1]) == "dog's"

    @pytest.mark.parametrize("model_type", ["unigram", "bpe"])
    def test_training_is_deterministic(self, model_type: Any) -> None:
        fingerprints = {
            SentencePieceTokenizer.train(iter(TEXTS), 40, model_type=model_type).fingerprint for _ in range(3)
        }
        assert len(fingerprints) == 1

    @pytest.mark.parametrize("model_type", ["unigram", "bpe"])
    def test_a_vocabulary_too_large_names_the_maximum_which_works(self, model_type: Any) -> None:
        with pytest.raises(
            TextError, match=r"vocab_size=5000 is too large .* maximum possible is \d+$"
        ) as caught:
            SentencePieceTokenizer.train(TEXTS, 5000, model_type=model_type)
        maximum = int(str(caught.value).rsplit(" ", 1)[1])
        assert SentencePieceTokenizer.train(TEXTS, maximum, model_type=model_type).vocab_size == maximum
        with pytest.raises(TextError, match="too large"):
            SentencePieceTokenizer.train(TEXTS, maximum + 1, model_type=model_type)

    def test_a_vocabulary_too_small_names_the_minimum_which_works(self) -> None:
        with pytest.raises(
            TextError, match=r"vocab_size=5 is too small .* minimum possible is \d+$"
        ) as caught:
            SentencePieceTokenizer.train(TEXTS, 5)
        minimum = int(str(caught.value).rsplit(" ", 1)[1])
        # All characters, the word boundary and the blank.
        assert minimum == len(ALPHABET) + 1
        assert SentencePieceTokenizer.train(TEXTS, minimum).vocab_size == minimum

    @pytest.mark.parametrize("vocab_size", [0, -3])
    def test_a_vocabulary_of_nothing(self, vocab_size: int) -> None:
        with pytest.raises(TextError, match=f"vocab_size={vocab_size}"):
            SentencePieceTokenizer.train(TEXTS, vocab_size)

    @pytest.mark.parametrize("texts", [[], ["", "  "]])
    def test_nothing_to_train_on(self, texts: list[str]) -> None:
        with pytest.raises(TextError, match="training text is empty"):
            SentencePieceTokenizer.train(texts, 50)

    def test_very_long_sentences_count(self) -> None:
        """sentencepiece itself skips those above 4192 bytes without a word."""
        tokenizer = SentencePieceTokenizer.train([*TEXTS, "żółć " * 2000], 50)
        assert not tokenizer.unknown_characters("żółć")

    def test_rare_characters_left_out_on_request_are_unknown(self) -> None:
        tokenizer = SentencePieceTokenizer.train([*TEXTS * 20, "naïve"], 40, character_coverage=0.999)
        assert tokenizer.unknown_characters("naïve") == {"ï": 1}
        with pytest.raises(TextError, match="LATIN SMALL LETTER I WITH DIAERESIS"):
            tokenizer.encode("naïve")

    def test_case_and_compatibility_characters_are_left_alone(self) -> None:
        tokenizer = SentencePieceTokenizer.train(["Straße ﬁne Ａ"] * 3, 11)
        assert tokenizer.decode(tokenizer.encode("Straße ﬁne Ａ")) == "Straße ﬁne Ａ"


class TestDamagedStates:
    @pytest.mark.parametrize(
        "damage",
        [
            lambda state: {},
            lambda state: state | {"type": "phonemes"},
            lambda state: {"type": state["type"]},
            lambda state: state | {"characters": ["ab"]},
            lambda state: state | {"characters": ["a", "a"]},
            lambda state: state | {"characters": [1]},
            lambda state: state | {"characters": None},
            lambda state: state | {"blank_id": 1000},
            lambda state: state | {"blank_id": "0"},
        ],
    )
    def test_characters(self, damage: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
        with pytest.raises(CheckpointError, match="stored tokenizer"):
            tokenizer_from_state(damage(TOKENIZERS["characters"].state()))

    @pytest.mark.parametrize(
        "damage",
        [
            lambda state: {"type": state["type"]},
            lambda state: state | {"model": "%%%"},
            lambda state: state | {"model": state["model"][:400]},
            lambda state: state | {"model": ""},
            lambda state: state | {"model": None},
            lambda state: state | {"model": base64.b64encode(b"no model" * 50).decode()},
            lambda state: state | {"blank": "middle"},
        ],
    )
    def test_sentencepiece(self, damage: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
        with pytest.raises(CheckpointError, match="stored tokenizer"):
            tokenizer_from_state(damage(TOKENIZERS["unigram"].state()))


class TestReport:
    def test_counts_and_names(self) -> None:
        texts = {"u1": "a é", "u2": "ab", "u3": "éé ñ", **{f"v{index}": "ñ" for index in range(9)}}
        utterances = [Utterance(id_, Path("a.wav"), 1.0, text) for id_, text in texts.items()]
        report = report_unknown_characters(CharTokenizer.train(["a b"]), utterances)
        assert report
        assert [(item.character, item.count, item.num_utterances) for item in report.characters] == [
            ("ñ", 10, 10),
            ("é", 3, 2),
        ]
        assert report.characters[1].example_ids == ("u1", "u3")
        assert report.characters[0].example_ids == ("u3", "v0", "v1", "v2", "v3")
        assert report.utterance_ids == ("u1", "u3", *(f"v{index}" for index in range(9)))
        assert report.lines()[1] == (
            "'é' (U+00E9 LATIN SMALL LETTER E WITH ACUTE): 3× in 2 utterances, e.g. u1, u3"
        )

    def test_nothing_unknown(self) -> None:
        report = report_unknown_characters(
            CharTokenizer.train(["ab"]), [Utterance("u", Path("a.wav"), 1.0, "AB")], normalise_text=str.lower
        )
        assert not report
        assert report.lines() == []
