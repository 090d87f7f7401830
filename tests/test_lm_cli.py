"""The command that makes language models: what it writes, says and refuses."""

import gzip
import json
import sys
from pathlib import Path

import pytest

from asr.decode.arpa import read_arpa
from asr.lm import main

TEXT = """The cat sat on the mat.
The cat sat on the hat!

A dog -- it's Tom's dog -- ate the hat
"""


@pytest.fixture
def text(tmp_path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(TEXT)
    return path


@pytest.fixture
def run(capsys, monkeypatch, tmp_path):
    """Run the command; returns exit code, what it showed on one line, and its error."""

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["asr.lm", *map(str, arguments)])
        code = main()
        captured = capsys.readouterr()
        return code, " ".join(captured.out.split()), captured.err

    return call


def vocabulary(path: Path) -> set[str]:
    return set(read_arpa(path).words) - {"<unk>", "<s>", "</s>"}


def test_a_model_from_text(text, tmp_path, run):
    output = tmp_path / "models" / "lm.arpa"
    code, shown, _ = run(f"text={text}", "order=2", f"output={output}")
    assert code == 0
    assert vocabulary(output) == {"the", "cat", "sat", "on", "mat", "hat", "a", "dog", "it's", "tom's", "ate"}
    assert [len(order.log10_probs) for order in read_arpa(output).orders] == [14, 16]
    assert "from 3 sentences, 23 tokens" in shown
    assert "│ 2 │ 16 │ 16 │" in shown


def test_words_beside_missing_ones_do_not_follow_each_other(tmp_path, run):
    text, output = tmp_path / "text.txt", tmp_path / "lm.arpa"

    def bigrams(content: str) -> set[tuple[str, ...]]:
        text.write_text(content)
        code, _, message = run(f"text={text}", "order=2", f"output={output}", "wildcard='*'")
        assert code == 0, message
        model = read_arpa(output)
        return {tuple(model.words[i] for i in ids) for ids in model.orders[1].word_ids.tolist()}

    assert bigrams("call me * now\n* please\n*\n") == {
        *(("<s>", "call"), ("call", "me"), ("me", "</s>"), ("<s>", "now"), ("now", "</s>")),
        *(("<s>", "please"), ("please", "</s>")),
    }
    assert ("me", "now") in bigrams("me now *\n")


def test_text_as_it_is(text, tmp_path, run):
    output = tmp_path / "lm.arpa"
    assert run(f"text={text}", "order=1", f"output={output}", "normalise=false")[0] == 0
    assert {"The", "mat.", "hat!", "--"} < vocabulary(output)
    assert run(f"text={text}", "order=1", f"output={output}", "case=upper")[0] == 0
    assert {"THE", "MAT", "TOM'S"} < vocabulary(output)


def test_files_of_every_kind_make_one_model(text, tmp_path, run):
    (tmp_path / "more.txt.gz").write_bytes(gzip.compress("zip zap".encode("utf-8-sig")))
    lines = [
        {"audio_filepath": "a.wav", "duration": 1.0, "text": words} for words in ("Jason speaks", "über")
    ]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    files = f"text=[{text},{tmp_path / 'more.txt.gz'},{tmp_path / 'train.jsonl'}]"
    output = tmp_path / "lm.arpa.gz"
    code, shown, _ = run(files, "order=2", f"output={output}")
    assert code == 0
    assert {"zip", "zap", "jason", "speaks", "über", "mat"} < vocabulary(output)
    assert "from 6 sentences" in shown


def test_characters(text, tmp_path, run):
    output = tmp_path / "lm.arpa"
    assert run(f"text={text}", "order=4", "unit=char", f"output={output}")[0] == 0
    assert vocabulary(output) == {*"thecasonmdgi'", "<space>"}
    arpa = read_arpa(output)
    quads = {tuple(arpa.words[word_id] for word_id in word_ids) for word_ids in arpa.orders[3].word_ids}
    assert ("e", "<space>", "c", "a") in quads
    assert ("<s>", "t", "h", "e") in quads
    assert ("h", "a", "t", "</s>") in quads


def test_evaluation_sentences_are_left_out(text, tmp_path, run):
    (tmp_path / "dev.jsonl").write_text(json.dumps({"text": "the CAT sat, on the hat"}) + "\n")
    output = tmp_path / "lm.arpa"
    code, shown, _ = run(
        f"text={text}", "order=2", f"output={output}", f"exclude={tmp_path / 'dev.jsonl'}",
        f"perplexity={tmp_path / 'dev.jsonl'}",
    )  # fmt: skip
    assert code == 0
    assert "left out: 1 sentences" in shown
    assert "from 2 sentences" in shown
    assert "(7 tokens with sentence ends, 0 unknown)" in shown
    perplexity = float(shown.partition("dev.jsonl: ")[2].partition(",")[0])
    assert 1 < perplexity < len(vocabulary(output))


def test_size_limits(text, tmp_path, run):
    output = tmp_path / "lm.arpa"
    lexicon = tmp_path / "lexicon.txt"
    lexicon.write_text("the th e\ncat c a t\nunseen u n\n")
    assert run(f"text={text}", "order=2", f"output={output}", f"vocabulary={lexicon}")[0] == 0
    assert vocabulary(output) == {"the", "cat"}
    assert run(f"text={text}", "order=2", f"output={output}", "max_words=1")[0] == 0
    assert vocabulary(output) == {"the"}
    assert run(f"text={text}", "order=3", f"output={output}", "prune=[0,1]")[0] == 0
    assert [len(order.log10_probs) for order in read_arpa(output).orders] == [14, 7, 5]


def test_discounts_that_cannot_be_estimated_are_said(text, tmp_path, run):
    output = tmp_path / "lm.arpa"
    _, shown, _ = run(f"text={text}", "order=2", f"output={output}")
    assert "discounts of 2-grams are the usual ones, for they cannot be estimated: no n-gram" in shown
    code, _, error = run(f"text={text}", "order=2", f"output={output}", "discount_fallback=false")
    assert code == 2
    assert "cannot be estimated" in error


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["text=gone.txt", "output=lm.arpa"], "gone.txt: no such file"),
        (["text=TEXT", "output=lm.arpa", "perplexity=gone.txt"], "gone.txt: no such file"),
        (["text=[]", "output=lm.arpa"], "text=[] names no file"),
        (["text=TEXT"], "option 'output' must be given"),
        (["text=TEXT", "output=lm.txt"], "must end in .arpa"),
        (["text=TEXT", "output=lm.arpa", "order=11"], "order=11 must be at most 10"),
        (["text=TEXT", "output=lm.arpa", "unit=phone"], "unit=phone is not one of word, char"),
        (["text=TEXT", "output=lm.arpa", "ordr=2"], "did you mean 'order'"),
        (["text=TEXT", "output=lm.arpa", "order=2", "prune=[1]"], "must be 0"),
        (["text=TEXT", "output=lm.arpa", "normalise=false", "case=upper"], "leave out normalise=false"),
        (["text=LATIN", "output=lm.arpa"], "latin.txt: line 2 is not UTF-8"),
        (["text=EMPTY", "output=lm.arpa"], "holds no sentence"),
        (["text=RESERVED", "output=lm.arpa", "normalise=false"], "reserved.txt: line 2: <s> has a meaning"),
        (["text=MANIFEST", "output=lm.arpa"], 'bad.jsonl: line 2: not a manifest line with a "text"'),
        (["text=ZIP", "output=lm.arpa"], "cannot read"),
        (["text=TEXT", "output=lm.arpa", "scratch_dir=gone"], "temporary files in gone: No such file"),
        (["text=TEXT", "output=lm.arpa", "vocabulary=EMPTY"], "empty.txt: holds no word"),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing(text, tmp_path, run, monkeypatch, arguments, expected):
    files = {
        "EMPTY": ("empty.txt", b"\n \n"),
        "LATIN": ("latin.txt", "fine\nm\u00fcde".encode("latin-1")),
        "RESERVED": ("reserved.txt", b"fine\na <s> b"),
        "MANIFEST": ("bad.jsonl", b'{"text": "fine"}\n{"words": "bad"}\n'),
        "ZIP": ("bad.txt.gz", b"no gzip"),
    }
    for name, content in files.values():
        (tmp_path / name).write_bytes(content)
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.iterdir())
    names = {"TEXT": text.name, **{key: name for key, (name, _) in files.items()}}
    for key, name in names.items():
        arguments = [argument.replace(f"={key}", f"={name}") for argument in arguments]
    code, _, error = run(*arguments)
    assert code == 2
    assert expected in error
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert sorted(tmp_path.iterdir()) == before
