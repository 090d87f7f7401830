"""report.json round trips and its documented schema; terminal, Markdown and sclite views of it."""

import io
import json
import math
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import jiwer
import pytest
from rich.console import Console

from asr.attribution import Attribution, ErrorRegion, TextScore
from asr.errors import TextError
from asr.records import Hypothesis, Utterance, Word
from asr.report.json_report import (
    SCHEMA_VERSION,
    EvaluationReport,
    Exclusion,
    ReportError,
    build_report,
    read_report,
    write_report,
)
from asr.report.nist import Transcript, write_sclite_files, write_trn
from asr.report.schema import record_fields
from asr.report.slices import slice_by_range
from asr.report.terminal import print_report, to_markdown
from asr.score import ErrorCounts

SCHEMA_PAGE = Path(__file__).parents[1] / "docs" / "report_schema.md"
TEXTS = [
    ("the cat sat on the mat", "the hat sat on mat"),
    ("one two three", "one two three"),
    ("Ein schöner Tag", "ein schöner tag heute"),
    ("yes", ""),
]


def utterance(position: int, text: str, **fields: Any) -> Utterance:
    duration = 2.0 + position
    return Utterance(
        f"utt{position}", Path(f"a b/{position}.flac"), duration, text, f"spk{position % 2}", 0.5, fields
    )


def recognised(text: str, score: float = -3.5) -> Hypothesis:
    words = tuple(Word(word, 0.5 * i, 0.5 * i + 0.4, 0.9) for i, word in enumerate(text.split()))
    return Hypothesis((1, 2), text, score, words=words)


def make_report(texts: list[tuple[str, str]] = TEXTS, **options: Any) -> EvaluationReport:
    utterances = [
        utterance(i, text, accent="us" if i < 2 else "de", snr=i, noisy=i == 3)
        for i, (text, _) in enumerate(texts)
    ]
    hypotheses = [recognised(text) for _, text in texts]
    return build_report(utterances, hypotheses, **{"decode_seconds": 0.7, **options})


@pytest.fixture
def report() -> EvaluationReport:
    return make_report(
        excluded=[Exclusion("bad", "no samples")], provenance={"checkpoint": "best.ckpt", "epochs": [1, 2]}
    )


def test_greedy_decoding_is_compared_utterance_by_utterance(report):
    assert report.greedy is None
    references = [text.lower() for text, _ in TEXTS] * 8
    worse = ["the hat hat on", "one two tree", "ein tag", ""] * 8
    compared = make_report(TEXTS * 8, greedy_texts=worse, provenance={"decoder": {"lm": "a.arpa"}})
    assert compared.greedy.wer == pytest.approx(jiwer.wer(references, worse))
    assert compared.greedy.comparison.difference == pytest.approx(compared.wer - compared.greedy.wer)
    assert "the language model makes this better by" in to_markdown(compared).replace("\\", "")
    perfect = make_report(TEXTS * 8, greedy_texts=references, provenance={"decoder": {"lm": "a.arpa"}})
    assert "makes this worse" in to_markdown(perfect).replace("\\", "")
    assert "asr.tune" in to_markdown(perfect)
    same = make_report(TEXTS, greedy_texts=[text.lower() for _, text in TEXTS])
    assert "no difference shown for the beam search" in to_markdown(same)


def test_headline_figures_are_jiwers_and_hand_arithmetic(report):
    references = [text.lower() for text, _ in TEXTS]
    hypotheses = [text for _, text in TEXTS]
    assert report.wer == jiwer.wer(references, hypotheses)
    assert report.cer == jiwer.cer(references, hypotheses)
    assert tuple(report.counts) == (10, 1, 2, 1)
    assert report.sentence_error_rate == 3 / 4
    assert report.audio_seconds == 2 + 3 + 4 + 5
    assert report.rtfx == pytest.approx(14 / 0.7)
    assert (report.num_utterances, report.num_excluded) == (4, 1)
    assert report.wer_interval.low < report.wer < report.wer_interval.high
    assert report.wer_interval_by_speaker.num_units == 2


def test_slices_pool_their_utterances(report):
    by_accent = {cut.value: cut for cut in report.slices["accent"]}
    assert list(by_accent) == ["de", "us"]
    assert by_accent["us"].wer == 2 / 9
    assert by_accent["de"].num_utterances == 2
    assert [cut.value for cut in report.slices["speaker"]] == ["spk0", "spk1"]
    assert [(cut.value, cut.num_utterances) for cut in report.slices["noisy"]] == [("False", 3), ("True", 1)]
    for cuts in report.slices.values():
        assert sum(cut.num_utterances for cut in cuts) == 4
        assert sum(cut.counts.num_errors for cut in cuts) == report.counts.num_errors
    assert [cut.value for cut in report.slices["snr"]] == ["0–0.75", "0.75–1.5", "1.5–2.25", "2.25–3"]


def test_ranges_hold_their_lower_end():
    cuts = slice_by_range(range(9), [ErrorCounts(hits=1)] * 9)
    assert [(cut.value, cut.num_utterances) for cut in cuts] == [
        ("0–2", 2),
        ("2–4", 2),
        ("4–6", 2),
        ("6–8", 3),
    ]
    assert slice_by_range([1.5] * 9, [ErrorCounts(hits=1)] * 9) == slice_by_range([], []) == ()


def test_same_seed_same_report():
    assert make_report(seed=3) == make_report(seed=3)


def test_normaliser_is_declared_and_applied():
    report = make_report([("It's twenty-five", "it is 25")], normaliser="english")
    assert (report.normaliser, report.wer) == ("english", 0)
    assert report.utterances[0].reference == "it is 25"
    assert make_report([("Yes", "yes")], normaliser="none").wer == 1


def test_written_report_comes_back_equal(report, tmp_path):
    path = tmp_path / "new" / "report.json"
    write_report(report, path)
    assert read_report(path) == report
    assert [file.name for file in path.parent.iterdir()] == ["report.json"]
    data = json.loads(path.read_text(encoding="utf-8"))
    assert data["counts"] == {"hits": 10, "substitutions": 1, "deletions": 2, "insertions": 1}
    assert data["utterances"][0]["alignment"][1] == ["substitute", "cat", "hat"]
    assert data["utterances"][0]["words"][0] == {
        "text": "the",
        "start_seconds": 0.0,
        "end_seconds": 0.4,
        "confidence": 0.9,
    }
    assert data["provenance"] == {"checkpoint": "best.ckpt", "epochs": [1, 2]}


def test_what_does_not_exist_is_null(tmp_path):
    path = tmp_path / "report.json"
    report = build_report([utterance(0, "")], [recognised("noise", -math.inf)], decode_seconds=0)
    write_report(report, path)
    data = json.loads(path.read_text(encoding="utf-8"), parse_constant=pytest.fail)
    assert (
        data["wer"] is data["rtfx"] is data["wer_interval"]["low"] is data["utterances"][0]["score"] is None
    )
    assert data["counts"]["insertions"] == 1
    assert math.isnan(read_report(path).wer)


def test_empty_evaluation_has_a_report(tmp_path):
    path = tmp_path / "report.json"
    write_report(build_report([], [], decode_seconds=0), path)
    assert read_report(path).num_utterances == 0
    assert "–" in to_markdown(read_report(path))


def test_existing_report_survives_a_failed_write(report, tmp_path, monkeypatch):
    path = tmp_path / "report.json"
    write_report(report, path)

    def full_disk(*_args: Any, **_options: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full_disk)
    with pytest.raises(ReportError, match=r"report\.json: cannot write the report \(No space left"):
        write_report(report, path)
    assert read_report(path) == report


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data.update(schema_version=99), "schema_version is 99, this program reads 1"),
        (lambda data: data.pop("wer"), "the report lacks the field wer"),
        (lambda data: data.update(wer="low"), "wer is 'low', must be a number"),
        (lambda data: data.update(num_utterances=True), "num_utterances is 'True', must be of type int"),
        (lambda data: data.update(utterances={}), "utterances is '{}', must be a list"),
        (lambda data: data["utterances"][1].pop("id"), r"utterances\[1\] lacks the field id"),
        (
            lambda data: data["utterances"][0]["alignment"][0].__setitem__(0, "swap"),
            r"utterances\[0\]\.alignment\[0\]\.operation is 'swap', must be one of equal, substitute",
        ),
        (lambda data: data["utterances"].pop(), "num_utterances is 4, but the utterances add up to 3"),
        (lambda data: data["counts"].update(hits=99), "counts is .*hits=99"),
    ],
)
def test_wrong_reports_are_refused_by_name(report, tmp_path, change, message):
    path = tmp_path / "report.json"
    write_report(report, path)
    data = json.loads(path.read_text(encoding="utf-8"))
    change(data)
    path.write_text(json.dumps(data), encoding="utf-8")
    with pytest.raises(ReportError, match=message) as caught:
        read_report(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", ["", "{", "[]", "3", "\x00"])
def test_files_that_are_no_report_are_refused(tmp_path, content):
    path = tmp_path / "report.json"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(ReportError, match=r"report\.json: "):
        read_report(path)
    with pytest.raises(ReportError, match="cannot read the report"):
        read_report(tmp_path / "missing.json")


def test_unknown_fields_are_ignored(report, tmp_path):
    path = tmp_path / "report.json"
    write_report(report, path)
    data = json.loads(path.read_text(encoding="utf-8")) | {"later_addition": 1}
    path.write_text(json.dumps(data), encoding="utf-8")
    assert read_report(path) == report


# --- documentation --------------------------------------------------------------------------------


def documented_records() -> dict[str, dict[str, str]]:
    sections = re.split(r"^## ", SCHEMA_PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]
    return {
        section.split("\n", 1)[0]: dict(
            re.findall(r"^\| `(\w+)` \| ([^|]+) \| [^|]+ \|$", section, re.MULTILINE)
        )
        for section in sections
    }


def describe(annotation: Any, records: dict[str, Any]) -> str:
    """An annotation in the words of the schema page; records found on the way are added."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if type(None) in arguments:
        return f"{describe(arguments[0], records)} or null"
    if origin is tuple:
        return f"list of {describe(arguments[0], records)}"
    if origin is Mapping:
        return "object" if arguments[1] is Any else f"object of {describe(arguments[1], records)}"
    if origin is Literal:
        return "string"
    if annotation in (bool, int, float, str):
        return {bool: "boolean", int: "integer", float: "number", str: "string"}[annotation]
    if annotation.__name__ not in records:
        records[annotation.__name__] = None
        fields = record_fields(annotation)
        records[annotation.__name__] = {name: describe(kind, records) for name, kind in fields.items()}
    return annotation.__name__


def test_schema_page_documents_every_field_in_order():
    records: dict[str, Any] = {}
    describe(EvaluationReport, records)
    documented = documented_records()
    assert documented == records
    assert {name: list(fields) for name, fields in documented.items()} == {
        name: list(fields) for name, fields in records.items()
    }
    assert f"`schema_version` is {SCHEMA_VERSION}" in SCHEMA_PAGE.read_text(encoding="utf-8")


# --- terminal and Markdown ------------------------------------------------------------------------


def printed(report: EvaluationReport, *, width: int = 100, **options: Any) -> str:
    stream = io.StringIO()
    print_report(report, Console(file=stream, width=width, force_terminal=True, color_system=None), **options)
    return stream.getvalue()


def test_both_views_show_the_headline_and_the_worst_first(report):
    for view in (printed(report), to_markdown(report)):
        assert "30.77 %" in view
        assert "13 words in 4 utterances" in view
        assert "1 substituted, 2 deleted, 1 inserted" in view
        assert "20.0 × real time" in view
        assert "no samples" in view
        assert "3 of 3 utterances with errors" in view
        assert view.index("utt0") < view.index("utt3") < view.index("utt2")
        assert "utt1" not in view


def test_words_stand_above_each_other():
    lines = to_markdown(make_report([("a long 日本 word x", "a short 日 word")])).splitlines()
    start = lines.index("```text")
    assert lines[start + 1 : start + 4] == [
        "REF  a long  日本 word x",
        "HYP  a short 日   word ·",
        "       S     S         D",
    ]


def test_long_utterances_wrap_within_the_width():
    words = [f"word{i}" for i in range(60)]
    view = printed(make_report([(" ".join(words), " ".join([*words[:-1], "end"]))]), width=60)
    assert max(map(len, view.splitlines())) <= 60
    assert view.count("REF") > 5
    assert re.findall(r"word\d+", "".join(re.findall("REF(.*)", view))) == words


HOSTILE = "[red]x[/red] [/] <script>alert(1)</script> | **b** \x1b[31m\x07 \u202eabc ``` [a](b)"


def test_markup_in_transcripts_is_shown_not_obeyed():
    texts = [(HOSTILE, "[/nonsense] \x1b]0;title\x07")]
    report = make_report(texts, normaliser="none")
    hostile_name = replace(report.utterances[0], id="[red]id[/red] <img src=x> \x1b[2J")
    report = replace(report, utterances=(hostile_name,), excluded=(Exclusion("[b]", "\x1b[2J<b>"),))
    for view in (printed(report, width=200), to_markdown(report, width=200)):
        assert not re.search("[\x07\u202e]|\x1b\\]|\x1b\\[2J|\x1b\\[31m", view)
        assert "[red]x[/red]" in view
        assert "[/nonsense]" in view
    markdown = to_markdown(report, width=200)
    fences = re.findall("^`{4,}", markdown, re.MULTILINE)
    assert len(fences) == 2
    outside = markdown.split(fences[0])[0] + markdown.split(fences[0])[2]
    assert "<img" not in outside
    assert "<b>" not in outside
    assert "&lt;img src=x&gt;" in outside


def test_number_of_worst_utterances_is_kept(report):
    assert "REF" not in printed(report, num_worst=0)
    assert printed(report, num_worst=1).count("REF") == 1


# --- files for sclite -----------------------------------------------------------------------------


def test_sclite_files(tmp_path):
    report = make_report([("b a", "b c"), ("x", "")])
    report = replace(report, utterances=tuple(reversed(report.utterances)))
    files = write_sclite_files(report, tmp_path / "nist")
    assert [file.name for file in files] == ["ref.trn", "hyp.trn", "ref.stm", "hyp.ctm"]
    assert [file.read_text(encoding="utf-8") for file in files] == [
        "x (spk1-utt1)\nb a (spk0-utt0)\n",
        "(spk1-utt1)\nb c (spk0-utt0)\n",
        "utt0 A spk0 0.000 2.000 b a\nutt1 A spk1 0.000 3.000 x\n",
        "utt0 A 0.000 0.400 b 0.9000\nutt0 A 0.500 0.400 c 0.9000\n",
    ]


def test_sclite_files_without_word_times_are_untimed(tmp_path):
    report = build_report([utterance(0, "a")], [Hypothesis((1,), "a", -1.0)], decode_seconds=1)
    assert [file.name for file in write_sclite_files(report, tmp_path)] == ["ref.trn", "hyp.trn"]


def test_names_that_sclite_would_misread_are_changed_or_refused(tmp_path):
    path = tmp_path / "x.trn"
    write_trn([Transcript("a (1)", "an4_f-x", "hello"), Transcript("b", "", "hello")], path)
    assert path.read_text(encoding="utf-8") == "hello (an4.f.x-a__1_)\nhello (unknown-b)\n"
    with pytest.raises(TextError, match="'a b' and 'a_b' are both 'a_b' for sclite"):
        write_trn([Transcript("a b", "", ""), Transcript("a_b", "", "")], path)


@pytest.mark.parametrize("word", ["{", "a}", "(uh)", "<s>", "@", ";;note"])
def test_words_that_sclite_would_misread_are_refused(tmp_path, word):
    with pytest.raises(TextError, match=r"utterance u1: the word .* normaliser=basic"):
        write_trn([Transcript("u1", "", f"so {word} there")], tmp_path / "x.trn")


def test_reports_without_the_newer_fields_can_be_read_and_attributions_come_back(report, tmp_path):
    blame = Attribution(
        "language_model",
        "",
        TextScore(-3.0, -math.inf),
        TextScore(-4.5, 2.0),
        (ErrorRegion("a", "b", "search", 1.5, 0.25),),
    )
    first = replace(report.utterances[0], attribution=blame)
    write_report(replace(report, utterances=(first, *report.utterances[1:])), tmp_path / "report.json")
    again = read_report(tmp_path / "report.json").utterances[0].attribution
    assert again is not None
    assert (again.cause, again.regions, again.hypothesis) == (blame.cause, blame.regions, blame.hypothesis)
    assert again.reference.acoustic == -3.0
    assert math.isnan(again.reference.text)  # impossible is null
    plain = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    for fields in plain["utterances"]:
        del fields["attribution"], fields["token_ids"]
    (tmp_path / "old.json").write_text(json.dumps(plain), encoding="utf-8")
    assert [result.attribution for result in read_report(tmp_path / "old.json").utterances] == [None] * 4
