"""ARPA files: what is written is read back, and whatever is wrong is named with its line."""

import gzip
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asr.decode.arpa import LanguageModelError, NgramBlock, read_arpa, write_arpa

MODEL = """made by hand

\\data\\
ngram 1=5
ngram 2=3

\\1-grams:
-1.5\t<unk>
0\t<s>\t-0.25
-0.75\t</s>
-1\ta\t-0.5
-2e0 b 0

\\2-grams:
-0.25\t<s> a
-0.5\ta </s>
-0.125\ta b

\\end\\
"""


def write(folder: Path, text: str | bytes, name: str = "lm.arpa") -> Path:
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_reads_words_and_numbers(tmp_path):
    arpa = read_arpa(write(tmp_path, MODEL))
    assert arpa.words == ["<unk>", "<s>", "</s>", "a", "b"]
    assert [order.word_ids.tolist() for order in arpa.orders] == [
        [[0], [1], [2], [3], [4]],
        [[1, 3], [3, 2], [3, 4]],
    ]
    assert arpa.orders[0].log10_probs.tolist() == [-1.5, 0, -0.75, -1, -2]
    assert arpa.orders[0].backoffs.tolist() == [0, -0.25, 0, -0.5, 0]
    assert arpa.orders[1].log10_probs.tolist() == [-0.25, -0.5, -0.125]
    assert arpa.first_lines == [8, 15]


def test_gzip_and_other_line_ends_read_alike(tmp_path):
    plain = read_arpa(write(tmp_path, MODEL))
    for path in (
        write(tmp_path, gzip.compress(MODEL.encode()), "lm.arpa.gz"),
        write(tmp_path, MODEL.replace("\n", "\r\n"), "dos.arpa"),
    ):
        other = read_arpa(path)
        assert other.words == plain.words
        for ours, theirs in zip(other.orders, plain.orders, strict=True):
            assert all((left == right).all() for left, right in zip(ours, theirs, strict=True))


def test_unknown_word_may_be_upper_case(tmp_path):
    arpa = read_arpa(write(tmp_path, MODEL.replace("<unk>", "<UNK>").replace("a b\n", "a <UNK>\n")))
    assert arpa.words[0] == "<unk>"
    assert arpa.orders[1].word_ids.tolist()[2] == [3, 0]


BROKEN = {
    "no header": (lambda text: "some text\n", "line 1: no \\data\\ header"),
    "empty": (lambda text: "", "line 1: no \\data\\ header"),
    "binary": (lambda text: "mmap lm http://kheafield.com/code", "line 1: this is a KenLM binary"),
    "declaration": (lambda text: text.replace("ngram 2=3", "ngram 2=x"), "line 5: expected 'ngram 2=COUNT'"),
    "order left out": (lambda text: text.replace("ngram 2", "ngram 3"), "line 5: expected 'ngram 2=COUNT'"),
    "too few": (
        lambda text: text.replace("ngram 1=5", "ngram 1=6"),
        "line 13: \\1-grams: ends after 5 n-grams, but line 4 declares 6",
    ),
    "too many": (
        lambda text: text.replace("ngram 1=5", "ngram 1=4"),
        "line 12: \\1-grams: goes on after the 4 n-grams that line 4 declares",
    ),
    "cut in a section": (
        lambda text: text[: text.index("-0.5\ta </s>")],
        "line 15: the file ends inside \\2-grams:, after 1 of 3",
    ),
    "cut in a line": (lambda text: text[: text.index("b\n\n\\end")], "line 17: expected PROBABILITY WORD WORD in"),
    "no end": (lambda text: text[: text.index("\n\\end")], "line 17: the file ends without \\end\\"),
    "section missing": (
        lambda text: text.replace("\\2-grams:", "\\3-grams:"),
        "line 14: expected \\2-grams:, found '\\\\3-grams:'",
    ),
    "not a number": (lambda text: text.replace("-0.125", "-o.125"), "line 17: log10 probability '-o.125' is not"),
    "not finite": (lambda text: text.replace("-0.125", "nan"), "line 17: log10 probability 'nan' is not a finite"),
    "back-off": (lambda text: text.replace("-0.25\n", "x\n"), "line 9: back-off 'x' is not a finite number"),
    "positive": (lambda text: text.replace("-1\ta", "0.1\ta"), "line 11: log10 probability '0.1' is above 0"),
    "wrong order": (lambda text: text.replace("a b\n", "a b b\n"), "line 17: expected PROBABILITY WORD WORD in"),
    "short line": (lambda text: text.replace("-1\ta\t-0.5", "-1"), "line 11: expected PROBABILITY WORD [BACK-OFF]"),
    "unknown word": (lambda text: text.replace("a b\n", "a c\n"), "line 17: word 'c' is not among the 1-grams"),
    "word twice": (lambda text: text.replace("-2e0 b", "-2e0 a"), "line 12: word 'a' is listed twice"),
    "no <s>": (lambda text: text.replace("<s>", "s"), "line 7: \\1-grams: has no <s>"),
    "no </s>": (lambda text: text.replace("</s>", "s"), "line 7: \\1-grams: has no </s>"),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_every_fault_is_one_line_with_its_number(tmp_path, name):
    change, expected = BROKEN[name]
    path = write(tmp_path, change(MODEL))
    with pytest.raises(LanguageModelError) as raised:
        read_arpa(path)
    message = str(raised.value)
    assert message.startswith(f"{path}: {expected}")
    assert "\n" not in message


def test_text_that_is_not_utf8(tmp_path):
    head, sections = MODEL.encode().split(b"\\1-grams:")
    sections = sections.replace(b"\ta", b"\t\xe4").replace(b" a", b" \xe4")
    path = write(tmp_path, head + b"\\1-grams:" + sections)
    with pytest.raises(LanguageModelError, match=r"line 11: .* is not UTF-8"):
        read_arpa(path)


def test_damaged_gzip_and_missing_file(tmp_path):
    whole = gzip.compress(MODEL.encode())
    for content in (whole[:-20], b"not gzip"):
        with pytest.raises(LanguageModelError, match="damaged gzip"):
            read_arpa(write(tmp_path, content, "lm.arpa.gz"))
    with pytest.raises(LanguageModelError, match=r"cannot read .*gone"):
        read_arpa(tmp_path / "gone.arpa")


def test_errors_know_their_line_beyond_the_first_block(tmp_path, monkeypatch):
    monkeypatch.setattr("asr.decode.arpa._BLOCK_LINES", 2)
    assert [len(order.log10_probs) for order in read_arpa(write(tmp_path, MODEL)).orders] == [5, 3]
    for name, (change, expected) in BROKEN.items():
        path = write(tmp_path, change(MODEL))
        with pytest.raises(LanguageModelError) as raised:
            read_arpa(path)
        assert str(raised.value).startswith(f"{path}: {expected}"), name


def lists_of(elements, count):
    return st.lists(elements, min_size=count, max_size=count)


WORDS = st.text(st.characters(exclude_categories=("Z", "C")), min_size=1, max_size=4)


@settings(deadline=None, max_examples=30)
@given(st.lists(WORDS, unique=True, max_size=6), st.sampled_from(["lm.arpa", "lm.arpa.gz"]), st.data())
def test_round_trip(tmp_path_factory, more_words, name, data):
    words = [
        "<unk>",
        "<s>",
        "</s>",
        *(word for word in more_words if word.lower() not in {"<unk>", "<s>", "</s>"}),
    ]
    numbers = st.floats(-9, 0, width=32)
    orders = []
    for order in (1, 2, 3):
        count = len(words) if order == 1 else data.draw(st.integers(0, 5))
        ids = np.array(data.draw(lists_of(st.integers(0, len(words) - 1), count * order)), np.int32)
        if order == 1:
            ids = np.arange(count, dtype=np.int32)
        values = [np.array(data.draw(lists_of(numbers, count)), np.float32) for _ in range(2)]
        orders.append(NgramBlock(ids.reshape(count, order), *values))
    path = tmp_path_factory.mktemp("arpa") / "sub" / name
    write_arpa(path, words, [len(order.log10_probs) for order in orders], [[order] for order in orders])
    arpa = read_arpa(path)
    assert arpa.words == words
    for number, (written, read) in enumerate(zip(orders, arpa.orders, strict=True), start=1):
        assert (read.word_ids == written.word_ids).all()
        np.testing.assert_allclose(read.log10_probs, written.log10_probs, rtol=1e-6)
        np.testing.assert_allclose(read.backoffs, written.backoffs if number < 3 else 0, rtol=1e-6)
    assert [entry.name for entry in path.parent.iterdir()] == [name]


def test_a_failed_write_leaves_nothing(tmp_path):
    def sections():
        yield [NgramBlock(np.zeros((1, 1), np.int32), np.zeros(1, np.float32), np.zeros(1, np.float32))]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_arpa(tmp_path / "lm.arpa", ["<s>"], [1, 1], sections())
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(LanguageModelError, match="cannot write"):
        write_arpa(Path("/dev/null/lm.arpa"), ["<s>"], [1], sections())
