"""report.html: what it says, that nothing in it runs but its own script, and how it works in a browser."""

import base64
import hashlib
import io
import json
import math
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import html5lib
import numpy as np
import pytest
import soundfile
import torch
from chromium import Browser, find_chromium
from conftest import TinyCorpus, compose_config
from PIL import Image
from test_report_json import make_report, recognised

from asr import checkpoint
from asr.attribution import Attribution, ErrorRegion, TextScore
from asr.calibration import ConfidenceReport, Reliability, ReliabilityBin
from asr.config import EvaluateConfig, GreedyConfig
from asr.errors import ConfigError
from asr.evaluate import evaluate
from asr.firewall import DataUse, Notice
from asr.manifest import read_manifest
from asr.records import Utterance
from asr.report.examination import Examination, Picture, Sound, TimedText, encode_sound, examine
from asr.report.json_report import EvaluationReport, Exclusion, build_report, read_report, slice_members
from asr.report.page import render_page, write_page
from asr.report.word_times import WordTimes

HTML = "{http://www.w3.org/1999/xhtml}"
EVIL = [
    "</script><script>window.pwned=1</script>",
    "<img src=x onerror=window.pwned=1>",
    "<!--<script>",
    "'\"><svg/onload=window.pwned=1>",
    "javascript:window.pwned=1",
    "{{ 7 * 7 }}${window.pwned=1}",
    "\u202eright\u2028left\u2029&amp;lt;",
    "half\ud800",
]


def blamed(report: EvaluationReport) -> EvaluationReport:
    """Every utterance with errors blamed, the causes in turn."""
    causes = ("acoustic_model", "language_model", "search", "unwritable")
    results = []
    for position, result in enumerate(report.utterances):
        region = ErrorRegion("x", "y", causes[position % 4], -1.0, 0.5)
        blame = Attribution(causes[position % 4], "", TextScore(-3, -math.inf), TextScore(-2, 0.0), (region,))
        results.append(replace(result, attribution=blame if result.counts.num_errors else None))
    return replace(report, utterances=tuple(results))


def hostile_report() -> EvaluationReport:
    utterances = [
        Utterance(
            id=f"{i}{evil}",
            audio_file=f"/a/{evil}.wav",
            duration_seconds=1.0 + i,
            text=f"{evil} said",
            speaker=f"{evil}{i % 2}",
            extra={evil: f"{evil}{i % 2}"},
        )
        for i, evil in enumerate(EVIL)
    ]
    hypotheses = [recognised(f"heard {evil}") for evil in EVIL]
    provenance = {
        "command": EVIL[0],
        "checkpoint": {"path": EVIL[1], "sha256": EVIL[2]},
        "decoder_weights": {"text": EVIL[0]},
        EVIL[3]: EVIL[0],
    }
    excluded = [Exclusion(evil, evil) for evil in EVIL]
    report = build_report(
        utterances,
        hypotheses,
        decode_seconds=1.0,
        normaliser="none",
        provenance=provenance,
        excluded=excluded,
    )
    notices = tuple(Notice("warning", evil) for evil in EVIL)
    return replace(blamed(report), data_use=DataUse("test", True, notices))


def picture() -> Picture:
    gradient = np.tile(np.arange(200, dtype=np.uint8), (80, 1))
    posteriors = np.zeros((3, 50), np.uint8)
    posteriors[1, 10:20] = 255
    return Picture(gradient, 0.01, posteriors, 0.04, (EVIL[0], "a", "–"), (TimedText(EVIL[1], 0.1, 0.5),))


def sound() -> Sound:
    return encode_sound(np.sin(np.arange(32_000) / 8).astype(np.float32) * 0.1, 16_000)


def parse(page: str) -> Any:
    return html5lib.parse(page, treebuilder="etree")


def section(page: str, name: str) -> Any:
    (found,) = (node for node in parse(page).iter(f"{HTML}section") if node.get("id") == name)
    return found


def text_of(page: str) -> str:
    body = parse(page).find(f"{HTML}body")
    for script in list(body.iter(f"{HTML}script")):
        script.text = ""
    return re.sub(r"\s+", " ", " ".join(body.itertext()))


def block(page: str, name: str) -> Any:
    (found,) = [node for node in parse(page).iter(f"{HTML}script") if node.get("id") == name]
    return json.loads(found.text)


# --- what it says --------------------------------------------------------------------------------


def test_the_headline_is_the_reports() -> None:
    shown = text_of(render_page(make_report(), Examination()))
    assert "30.77 %" in shown
    report = make_report()
    low, high = (f"{100 * end:.2f}" for end in report.wer_interval[:2])
    assert f"{low}–{high}" in shown
    assert "13 words in 4 utterances" in shown
    assert "2 speakers" in shown
    assert "normaliser basic" in shown


def test_everything_the_list_needs_is_in_the_data() -> None:
    report = blamed(make_report())
    data = block(render_page(report, Examination()), "data")
    for shown, result in zip(data["utterances"], report.utterances, strict=True):
        assert shown["id"] == result.id
        assert sum(shown["sdi"]) == result.counts.num_errors
        assert " ".join(pair[1] for pair in shown["pairs"] if pair[1]) == result.reference
        heard = [pair[1] if pair[0] == "e" else pair[2] for pair in shown["pairs"]]
        assert " ".join(filter(None, heard)) == result.hypothesis
        assert (shown["blame"] is None) == (result.counts.num_errors == 0)
    assert data["utterances"][0]["blame"]["reference"] == [-3, None]


def test_slices_name_their_members() -> None:
    report = make_report()
    members = slice_members(report)
    assert set(members) == set(report.slices)
    for field, slices in report.slices.items():
        assert {part.value: part.num_utterances for part in slices} == {
            value: members[field].count(value) for value in members[field]
        }


def test_a_report_without_errors_or_provenance_is_a_page_too() -> None:
    shown = text_of(render_page(make_report([("one two", "one two")]), Examination()))
    assert "No word errors." in shown
    assert "0.00 %" in shown
    empty = text_of(render_page(make_report([]), Examination()))
    assert "0 words in 0 utterances" in empty


def test_what_must_be_known_before_believing_the_figure() -> None:
    found = (Notice("warning", "dev and test share 3 speakers"), Notice("note", "it chose the checkpoint"))
    report = replace(make_report(excluded=[Exclusion("x", "gone")]), data_use=DataUse("test", True, found))
    page = parse(render_page(report, Examination()))
    shown = [
        (node.get("role"), "".join(node.itertext()))
        for node in page.iter(f"{HTML}p")
        if "notice" in str(node.get("class"))
    ]
    assert shown[:2] == [("alert", "dev and test share 3 speakers"), ("note", "it chose the checkpoint")]
    assert "1 utterances were not scored" in shown[2][1]
    assert "x gone" in text_of(render_page(report, Examination()))


def test_where_decoder_weights_come_from_is_said() -> None:
    provenance = {
        "decoder": {"kind": "beam_lm", "alpha": 0.7},
        "decoder_files": {"lm": {"path": "words.arpa", "sha256": "0123456789abcdef"}},
        "decoder_weights": {"origin": "tuned", "text": "tuned on dev.jsonl"},
    }
    shown = text_of(render_page(make_report(provenance=provenance), Examination()))
    assert "decoder kind=beam_lm, alpha=0.7" in shown
    assert "words.arpa, SHA-256 0123456789ab" in shown
    assert "decoder weights tuned on dev.jsonl" in shown


def test_training_curves_are_means_over_epochs(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "metrics.csv").write_text(
        "step,epoch,train/loss,dev/wer,dev/cer,dev/loss\n0,0,6,,,\n10,0,2,,,\n12,0,,0.8,0.4,3\n20,1,2,,,\n22,1,,0.2,0.1,2\n"
    )
    provenance = {"checkpoint": {"path": str(tmp_path / "checkpoints" / "best.ckpt"), "sha256": "0"}}
    page = section(render_page(make_report(provenance=provenance), Examination()), "training")
    lines = [node.get("points") for node in page.iter("{http://www.w3.org/2000/svg}polyline")]
    assert lines[0] == "0.00,0.00 100.00,50.00"  # loss 4 and 2 on an axis up to 4
    assert lines[2] == "0.00,0.00 100.00,75.00"  # WER 80 % and 20 % on an axis up to 80 %
    svg = "{http://www.w3.org/2000/svg}"
    loss, rate = (
        [(text.get("y"), text.text) for text in node.iter(f"{svg}text") if text.get("class") == "y"]
        for node in page.iter(f"{svg}svg")
        if node.get("class") == "rules"
    )
    assert loss == [("100.0%", "0"), ("75.0%", "1"), ("50.0%", "2"), ("25.0%", "3"), ("0.0%", "4")]
    assert rate[-1] == ("0.0%", "80")
    assert 'id="training"' not in render_page(make_report(), Examination())


def test_confidences_and_word_times_are_judged() -> None:
    bins = (
        ReliabilityBin(0.0, 0.5, 4, 0.25, 0.5),
        ReliabilityBin(0.5, 0.6, 0, math.nan, math.nan),
        ReliabilityBin(0.6, 1.0, 16, 0.9, 0.75),
    )
    confidence = ConfidenceReport(20, 14, Reliability(0.2, 0.17, bins))
    calibrated = Reliability(0.4, 0.05, (ReliabilityBin(0.0, 1.0, 20, 0.7, 0.7),))
    confidence = replace(confidence, calibrated=calibrated, temperature=1.5, source="fitted <b>here</b>")
    times = WordTimes(14, 0.031, 0.042, 0.0, 0.0, 0.1)
    page = render_page(replace(make_report(), confidence=confidence, word_times=times), Examination())
    shown = text_of(page)
    assert "NCE 0.200, ECE 17.00 %, 20 words, 6 wrong" in shown
    assert "NCE 0.400, ECE 5.00 %, temperature 1.50, fitted <b>here</b>" in shown
    assert "starts 31 ms and ends 42 ms from the true ones on average" in shown
    drawn = section(page, "words")
    lines = [node.get("points") for node in drawn.iter("{http://www.w3.org/2000/svg}polyline")]
    assert lines == ["0,100 100,0", "25.00,50.00 90.00,25.00", "70.00,30.00"]
    without = replace(make_report(), confidence=None, word_times=None)
    assert 'id="words"' not in render_page(without, Examination())


def test_what_is_left_out_is_said() -> None:
    shown = text_of(render_page(make_report(), Examination(pictures={0: picture()}, sounds={0: sound()})))
    assert "Pictures: 1 of 3 utterances with errors" in shown
    assert "Audio: 1 of 4 utterances" in shown
    assert "audio_mib=N" in shown


# --- nothing foreign runs ------------------------------------------------------------------------


def test_markup_in_a_report_stays_text() -> None:
    page = render_page(hostile_report(), Examination(pictures={0: picture()}, sounds={0: sound()}))
    tree = parse(page)
    scripts = list(tree.iter(f"{HTML}script"))
    assert [script.get("type") for script in scripts] == ["application/json", "application/json", None]
    for node in tree.iter():
        assert not [name for name in node.attrib if str(name).startswith("on")], node.tag
        assert str(node.get("href", "#")).startswith("#")
        assert node.get("src") is None
        assert node.get("style") is None
    assert not [node for node in tree.iter() if node.tag in {f"{HTML}img", f"{HTML}iframe", f"{HTML}object"}]
    shown = text_of(page)
    for evil in EVIL[:6]:
        assert evil in shown
    assert [u["id"] for u in block(page, "data")["utterances"]] == [
        f"{i}{evil}" for i, evil in enumerate(EVIL)
    ]
    assert block(page, "media")["pictures"]["0"]["tokens"][0] == EVIL[0]
    for separator in "\u2028\u2029":
        assert separator not in page.partition('id="data">')[2]


def test_only_this_script_and_style_are_allowed() -> None:
    page = render_page(hostile_report(), Examination())
    tree = parse(page)
    (policy,) = [node.get("content") for node in tree.iter(f"{HTML}meta") if node.get("http-equiv")]
    (style,) = tree.iter(f"{HTML}style")
    *_, script = tree.iter(f"{HTML}script")
    for node, directive in ((script, "script-src"), (style, "style-src")):
        digest = base64.b64encode(hashlib.sha256(node.text.encode()).digest()).decode()
        assert f"{directive} 'sha256-{digest}';" in policy
    assert policy.startswith("default-src 'none'")
    assert "unsafe" not in policy
    assert "http" not in policy


def test_half_characters_do_not_keep_a_page_from_being_written(tmp_path: Path) -> None:
    write_page(hostile_report(), tmp_path / "report.html")
    assert "half?" in (tmp_path / "report.html").read_text(encoding="utf-8")


# --- the second look -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def examined(tiny_run: Path, tiny_corpus: TinyCorpus) -> tuple[EvaluationReport, Examination]:
    from asr.evaluation import evaluate_utterances

    recogniser = checkpoint.load_recogniser(tiny_run, GreedyConfig(), torch.device("cpu"))
    utterances = read_manifest(tiny_corpus.manifest("dev"))
    batches = {"max_batch_utterances": 3, "max_batch_seconds": 60.0}
    report = evaluate_utterances(recogniser, utterances, **batches)
    return report, examine(recogniser, report, utterances, num_pictures=2, audio_mib=1.0, **batches)


def test_every_error_is_examined(examined: tuple[EvaluationReport, Examination]) -> None:
    report, examination = examined
    faulty = [i for i, result in enumerate(report.utterances) if result.counts.num_errors]
    assert faulty
    assert sorted(examination.attributions) == faulty
    for position in faulty:
        attribution, result = examination.attributions[position], report.utterances[position]
        # The decoder's score is that of one path, so the sum over all is at least as high.
        assert attribution.hypothesis.acoustic >= result.score - 1e-3
        assert attribution.cause in {"acoustic_model", "search"}
        assert [region.reference.split() for region in attribution.regions]
    assert examination.attributed(report).utterances[faulty[0]].attribution is not None


def test_pictures_are_of_the_worst_and_fill_the_time(examined: tuple[EvaluationReport, Examination]) -> None:
    report, examination = examined
    assert len(examination.pictures) == min(2, len(examination.attributions))
    worst = max(range(len(report.utterances)), key=lambda i: report.utterances[i].counts.num_errors)
    assert report.utterances[min(examination.pictures)].counts.num_errors
    assert worst in examination.pictures
    for position, shown in examination.pictures.items():
        seconds = report.utterances[position].duration_seconds
        assert shown.spectrogram.shape[1] * shown.seconds_per_column == pytest.approx(seconds, abs=0.05)
        assert shown.posteriors.shape[1] * shown.seconds_per_frame == pytest.approx(seconds, abs=0.1)
        assert shown.posteriors.shape[0] == len(shown.tokens)
        assert shown.tokens[-1] == "<blank>"
        assert shown.spectrogram.min() == 0
        assert shown.spectrogram.max() == 255


def test_long_recordings_get_no_picture_and_large_ones_no_sound(
    tiny_run: Path, tiny_corpus: TinyCorpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    recogniser = checkpoint.load_recogniser(tiny_run, GreedyConfig(), torch.device("cpu"))
    utterances = read_manifest(tiny_corpus.manifest("dev"))
    heard = [recognised("zz") for _ in utterances]
    report = build_report(utterances, heard, decode_seconds=1.0, normaliser="none")
    monkeypatch.setattr("asr.report.examination.MAX_PICTURE_SECONDS", 0.7)
    found = examine(
        recogniser,
        report,
        utterances,
        num_pictures=9,
        audio_mib=0.006,
        max_batch_utterances=2,
        max_batch_seconds=9.0,
    )
    short = {i for i, utterance in enumerate(utterances) if utterance.duration_seconds <= 0.7}
    assert 0 < len(short) < 4
    assert set(found.pictures) == short
    assert sum(len(heard.data) for heard in found.sounds.values()) <= 0.006 * 2**20
    assert 0 < len(found.sounds) < 4


def test_sounds_are_the_recordings(examined: tuple[EvaluationReport, Examination]) -> None:
    report, examination = examined
    assert len(examination.sounds) == 4
    for position, heard in examination.sounds.items():
        samples, rate = soundfile.read(io.BytesIO(heard.data))
        assert len(samples) / rate == pytest.approx(report.utterances[position].duration_seconds, abs=0.05)
    flac = encode_sound(np.zeros(11_025, np.float32), 11_025)
    assert (flac.mime_type, soundfile.info(io.BytesIO(flac.data)).format) == ("audio/flac", "FLAC")


def test_pictures_survive_the_page(examined: tuple[EvaluationReport, Examination]) -> None:
    report, examination = examined
    media = block(render_page(examination.attributed(report), examination), "media")
    for position, shown in examination.pictures.items():
        embedded = media["pictures"][str(position)]
        image = np.asarray(Image.open(io.BytesIO(base64.b64decode(embedded["spectrogram"]))))
        assert np.array_equal(image[::-1], shown.spectrogram)
        posteriors = np.asarray(Image.open(io.BytesIO(base64.b64decode(embedded["posteriors"]))))
        assert np.array_equal(posteriors, shown.posteriors)


# --- the command ---------------------------------------------------------------------------------

Run = Callable[..., int]


@pytest.fixture
def run(tiny_run: Path, tiny_corpus: TinyCorpus, tmp_path: Path) -> Run:
    def call(*overrides: str) -> int:
        options = [f"checkpoint={tiny_run}", f"data.dev={tiny_corpus.manifest('dev')}", "data.name=tiny"]
        options += [f"data.train={tiny_corpus.manifest('train')}", f"output={tmp_path / 'out'}", *overrides]
        return evaluate(compose_config("evaluate", EvaluateConfig, options))

    return call


def test_evaluate_writes_the_page_and_its_companions(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("sclite=true") == 0
    out = tmp_path / "out"
    for name in ("report.json", "report.md", "report.html"):
        assert str(out / name) in capsys.readouterr().out or (out / name).stat().st_size
    assert {path.suffix for path in (out / "sclite").iterdir()} == {".trn", ".stm", ".ctm"}
    report = read_report(out / "report.json")
    assert [result.attribution is None for result in report.utterances] == [
        result.counts.num_errors == 0 for result in report.utterances
    ]
    assert "# Evaluation" in (out / "report.md").read_text(encoding="utf-8")
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "the checkpoint with the lowest WER" in text_of(page)
    assert len(block(page, "media")["sounds"]) == 4


def test_a_page_can_be_left_out_and_audio_too(run: Run, tmp_path: Path) -> None:
    assert run("html=false") == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["report.json", "report.md"]
    assert all(
        result.attribution is None for result in read_report(tmp_path / "out" / "report.json").utterances
    )
    assert run("audio_mib=0", "num_pictures=1") == 0
    media = block((tmp_path / "out" / "report.html").read_text(encoding="utf-8"), "media")
    assert media["sounds"] == {}
    assert len(media["pictures"]) <= 1
    with pytest.raises(ConfigError, match="audio_mib=-1"):
        run("audio_mib=-1")
    with pytest.raises(ConfigError, match="num_pictures=-1"):
        run("num_pictures=-1")


# --- in a browser --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    if find_chromium() is None:
        pytest.skip("no Chromium on the PATH: the page is not tested in a browser")
    with Browser(tmp_path_factory.mktemp("profile")) as found:
        yield found


@pytest.fixture
def opened(browser: Browser, tmp_path: Path) -> Browser:
    """A page of 150 utterances, each with errors of its own kind."""
    heard = ["alpha number {} stop", "alpha member {} stop", "alpha {} stop", "alpha number {} stop now"]
    texts = [(f"alpha number {i} stop", heard[i % 4].format(i)) for i in range(150)]
    examination = Examination(pictures={1: picture()}, sounds={1: sound()})
    write_page(blamed(make_report(texts)), tmp_path / "report.html", examination)
    browser.resize(1200, 900)
    browser.open(tmp_path / "report.html")
    return browser


def choose(browser: Browser, control: str, value: str) -> str:
    """Set a control as a hand would; returns what the page says it found."""
    script = (
        f"(e => {{ e.value = {json.dumps(value)}; e.dispatchEvent(new Event('input', {{bubbles: true}})) }})"
    )
    browser.run(f"{script}(document.getElementById('{control}'))")
    return str(browser.run("document.getElementById('found').textContent"))


def ids(browser: Browser) -> list[str]:
    return list(browser.run("[...document.querySelectorAll('#list .id')].map(e => e.textContent)"))


def wait_for(browser: Browser, script: str) -> None:
    for _ in range(200):
        if browser.run(script):
            return
        time.sleep(0.05)
    raise AssertionError(f"never true: {script}")


def test_it_opens_without_a_complaint_and_asks_nobody(opened: Browser, tmp_path: Path) -> None:
    assert opened.problems == []
    assert set(opened.requests) == {(tmp_path / "report.html").as_uri()}
    assert opened.run("document.getElementById('found').textContent") == "112 of 150 utterances"
    assert 0 < len(ids(opened)) <= 112


def test_filters(opened: Browser) -> None:
    assert choose(opened, "operation", "").startswith("150 of")
    assert choose(opened, "operation", "none").startswith("38 of")
    assert choose(opened, "operation", "s").startswith("38 of")
    assert choose(opened, "operation", "d").startswith("37 of")
    assert choose(opened, "operation", "i").startswith("37 of")
    assert choose(opened, "cause", "unwritable").startswith("37 of")
    assert choose(opened, "cause", "search").startswith("0 of")
    choose(opened, "cause", "")
    assert choose(opened, "operation", "any").startswith("112 of")
    place = opened.run("JSON.parse(document.getElementById('data').textContent).slices.indexOf('speaker')")
    assert choose(opened, "slice", f"{place}\nspk0").startswith("37 of")
    choose(opened, "slice", "")
    assert choose(opened, "search", "MEMBER 33").startswith("1 of")
    assert ids(opened) == ["utt33"]
    assert choose(opened, "search", "nowhere").startswith("0 of")


def test_orders(opened: Browser) -> None:
    choose(opened, "operation", "")
    choose(opened, "order", "longest")
    assert ids(opened)[:3] == ["utt149", "utt148", "utt147"]
    choose(opened, "order", "shortest")
    assert ids(opened)[:3] == ["utt0", "utt1", "utt2"]
    choose(opened, "order", "id")
    assert ids(opened)[8:12] == ["utt8", "utt9", "utt10", "utt11"]
    choose(opened, "order", "errors")
    assert ids(opened)[:3] == ["utt1", "utt2", "utt3"]


def test_all_rows_come_when_asked_for(opened: Browser) -> None:
    choose(opened, "operation", "")
    for _ in range(3):
        opened.run("document.getElementById('more').click()")
    assert len(ids(opened)) == 150
    assert opened.run("getComputedStyle(document.getElementById('more')).display") == "none"


def test_tables_filter_the_list(opened: Browser) -> None:
    opened.run("document.querySelector('button[data-pair=s]').click()")
    assert opened.run("document.getElementById('found').textContent").startswith("38 of")
    assert "number" in opened.run("document.getElementById('clear').textContent")
    opened.run("document.getElementById('clear').click()")
    assert opened.run("document.getElementById('found').textContent").startswith("150 of")
    opened.run("document.querySelector('button[data-slice=speaker][data-value=spk1]').click()")
    assert opened.run("document.getElementById('found').textContent").startswith("75 of")
    opened.run("document.querySelector('button[data-cause=language_model]').click()")
    assert opened.run("document.getElementById('found').textContent").startswith("38 of")


def test_an_utterance_plays_and_shows_its_pictures(opened: Browser) -> None:
    choose(opened, "search", "utt1\n")
    choose(opened, "search", "member 1 stop")
    assert ids(opened) == ["utt1"]
    opened.run("document.querySelector('.head').click()")
    wait_for(opened, "document.querySelector('audio').readyState >= 3")
    assert opened.run("document.querySelector('audio').error") is None
    assert opened.run("document.querySelector('audio').duration") == pytest.approx(2.0, abs=0.05)
    wait_for(opened, "[...document.querySelectorAll('canvas')].every(c => c.width > 1)")
    assert opened.run("document.querySelectorAll('canvas').length") == 2
    pixels = "[...document.querySelector('canvas').getContext('2d').getImageData(0, 40, 200, 1).data]"
    reds = opened.run(pixels)[::4]
    assert reds[0] > reds[100] > reds[190]  # light to dark, as the gradient says
    opened.run("document.querySelector('.track span').click()")
    wait_for(opened, "document.querySelector('audio').currentTime > 0.09")
    assert opened.run("document.querySelector('.track span').textContent") == EVIL[1]
    assert "language model" in opened.run("document.querySelector('.detail').textContent")
    opened.run("document.querySelector('.head').click()")
    assert opened.run("document.querySelectorAll('.detail').length") == 0
    assert opened.problems == []


def test_light_and_dark(opened: Browser) -> None:
    background = "getComputedStyle(document.body).backgroundColor"
    light = opened.run(background)
    opened.resize(1200, 900, dark=True)
    dark = opened.run(background)
    assert dark != light
    opened.run("document.getElementById('theme').click()")
    assert opened.run(background) == light
    opened.run("document.getElementById('theme').click()")
    assert opened.run(background) == dark
    assert opened.problems == []


def test_a_phone_shows_it_without_scrolling_sideways(opened: Browser) -> None:
    opened.run("document.querySelector('.head').click()")
    opened.resize(360, 740)
    assert opened.run("document.documentElement.scrollWidth") <= 360
    assert opened.problems == []


def test_it_prints(opened: Browser, tmp_path: Path) -> None:
    opened.pdf(tmp_path / "report.pdf")
    assert (tmp_path / "report.pdf").read_bytes().startswith(b"%PDF")


def test_foreign_markup_is_inert_in_a_browser(browser: Browser, tmp_path: Path) -> None:
    report = hostile_report()
    examination = Examination({}, {i: picture() for i in range(len(EVIL))}, {0: sound()})
    write_page(report, tmp_path / "report.html", examination)
    browser.resize(1200, 900)
    browser.open(tmp_path / "report.html")
    choose(browser, "operation", "")
    browser.run("document.querySelectorAll('.head').forEach(e => e.click())")
    browser.run("document.querySelectorAll('button.link').forEach(e => e.click())")
    choose(browser, "search", EVIL[1])
    browser.run("document.querySelectorAll('.head').forEach(e => e.click())")
    time.sleep(0.2)
    assert browser.run("typeof window.pwned") == "undefined"
    assert browser.run("document.querySelectorAll('img, iframe, object, main script').length") == 0
    assert EVIL[1] in browser.run("document.getElementById('list').textContent")
    assert browser.problems == []
    assert {url.split(":")[0] for url in browser.requests} <= {"file", "data", "blob"}
    files = {url for url in browser.requests if url.startswith("file:")}
    assert files == {(tmp_path / "report.html").as_uri()}


def test_the_policy_stops_what_would_slip_through(browser: Browser, tmp_path: Path) -> None:
    """Break the escaping on purpose: the browser still refuses foreign script."""
    write_page(make_report(), tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    broken = page.replace(
        "<main>", "<main><script>window.pwned = 1</script><img src=x onerror='window.pwned = 1'>"
    )
    (tmp_path / "broken.html").write_text(broken, encoding="utf-8")
    browser.open(tmp_path / "broken.html")
    assert browser.run("typeof window.pwned") == "undefined"
    assert any("Content Security Policy" in problem for problem in browser.problems)
