"""Sweeps: the noise is the one that was asked for, the same for every SNR, and the figures are evaluation's."""

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from conftest import TINY_RATE, TinyCorpus, compose_config
from torch import Tensor

from asr.augment import SoundLibrary, find_sounds
from asr.config import EvaluateConfig
from asr.errors import ConfigError
from asr.evaluate import evaluate
from asr.manifest import read_manifest
from asr.records import Utterance
from asr.report.json_report import read_report
from asr.sweep import CLEAN, noise_conditions, speed_conditions

Run = Callable[..., int]


@pytest.fixture
def run(tiny_run: Path, tiny_corpus: TinyCorpus, tmp_path: Path) -> Run:
    """``run(*overrides)``: evaluate the tiny run on its dev set; returns the exit code."""

    def call(*overrides: str) -> int:
        options = [f"checkpoint={tiny_run}", f"data.dev={tiny_corpus.manifest('dev')}", "data.name=tiny"]
        options += [f"data.train={tiny_corpus.manifest('train')}", f"output={tmp_path / 'out'}", *overrides]
        return evaluate(compose_config("evaluate", EvaluateConfig, options))

    return call


def library(folder: Path) -> SoundLibrary:
    return SoundLibrary(find_sounds(str(folder), "noise"), sample_rate=TINY_RATE, cache_bytes=2**24)


def noises(
    folder: Path, utterances: Sequence[Utterance], speech: Tensor, snr_db: Sequence[float], seed: int = 0
) -> list[list[Tensor]]:
    """What each condition after the clean one adds to each utterance's speech."""
    clean, *noisy = noise_conditions(library(folder), snr_db, seed)
    assert (clean.name, clean.value, clean.alter) == (CLEAN, None, None)
    return [
        [condition.alter(utterance, speech) - speech for utterance in utterances]  # type: ignore[misc]
        for condition in noisy
    ]


def test_noise_has_the_ratio_asked_for_and_is_the_same_at_each(
    noise_folder: Path, tiny_corpus: TinyCorpus
) -> None:
    utterances = read_manifest(tiny_corpus.manifest("train"))
    speech = 0.1 * torch.randn(6000, generator=torch.Generator().manual_seed(1)).double().float()
    loud, faint = noises(noise_folder, utterances, speech, [0.0, 15.0])
    for one, other in zip(loud, faint, strict=True):
        for added, snr in ((one, 0.0), (other, 15.0)):
            ratio = 10 * math.log10(float(speech.double().square().sum() / added.double().square().sum()))
            assert ratio == pytest.approx(snr, abs=0.02)
        torch.testing.assert_close(one, other * 10 ** (15 / 20), atol=1e-5, rtol=0)
    assert len({float(added.sum()) for added in loud}) == len(utterances)


def test_noise_depends_on_utterance_and_seed_alone(noise_folder: Path, tiny_corpus: TinyCorpus) -> None:
    utterances = read_manifest(tiny_corpus.manifest("train"))
    speech = torch.ones(3000)
    (first,) = noises(noise_folder, utterances, speech, [5.0])
    (again,) = noises(noise_folder, utterances[::-1], speech, [5.0])
    (other,) = noises(noise_folder, utterances, speech, [5.0], seed=1)
    assert all(torch.equal(one, same) for one, same in zip(first, again[::-1], strict=True))
    assert not all(torch.equal(one, changed) for one, changed in zip(first, other, strict=True))


def test_speeds_change_the_length(tiny_corpus: TinyCorpus) -> None:
    (utterance, *_) = read_manifest(tiny_corpus.manifest("train"))
    clean, slow, fast = speed_conditions([0.8, 1.0, 1.25, 0.8])
    assert clean.alter is None
    assert [slow.alter(utterance, torch.randn(1000)).numel(), slow.name] == [1250, "speed0.8"]  # type: ignore[misc]
    assert [fast.alter(utterance, torch.randn(1000)).numel(), fast.value] == [800, 1.25]  # type: ignore[misc]


def test_noise_sweep_writes_what_evaluation_finds(
    run: Run, noise_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run() == 0
    plain = read_report(tmp_path / "out" / "report.json")
    assert run("sweep=snr", f"noise={noise_folder}", "sweep_values=[10,-20]", "num_worst=0") == 0
    folder = tmp_path / "out" / "sweep-snr"
    shown = capsys.readouterr().out
    sweep = json.loads((folder / "sweep.json").read_text())
    assert (folder / "sweep.png").read_bytes()[:4] == b"\x89PNG"
    assert [(point["name"], point["value"]) for point in sweep["points"]] == [
        ("clean", None),
        ("10dB", 10.0),
        ("-20dB", -20.0),
    ]
    clean, *noisy = sweep["points"]
    assert clean["wer"] == plain.wer
    assert clean["against_clean"] is None
    assert clean["wer_interval"]["low"] == pytest.approx(plain.wer_interval.low)
    before = {result.id: result for result in plain.utterances}
    for point in noisy:
        report = read_report(folder / point["name"] / "report.json")
        assert report.wer == point["wer"]
        assert report.provenance["condition"] == point["name"]
        assert {result.id for result in report.utterances} == set(before)
        assert point["against_clean"]["difference"] == pytest.approx(point["wer"] - clean["wer"])
        assert f"{100 * point['wer']:.2f} %" in shown
    drowned = read_report(folder / "-20dB" / "report.json")
    assert any(result.score != before[result.id].score for result in drowned.utterances)
    assert sweep["provenance"]["noise"]["seed"] == 0
    assert sweep["provenance"]["noise"]["sha256"]


def test_speed_sweep(run: Run, tmp_path: Path) -> None:
    assert run("sweep=speed") == 0
    sweep = json.loads((tmp_path / "out" / "sweep-speed" / "sweep.json").read_text())
    assert [point["value"] for point in sweep["points"]] == [None, 0.8, 0.9, 1.1, 1.2]
    assert (tmp_path / "out" / "sweep-speed" / "sweep.png").stat().st_size > 5000


def test_unreadable_audio_is_named_in_every_report(run: Run, tiny_corpus: TinyCorpus, tmp_path: Path) -> None:
    lines = tiny_corpus.lines("dev")
    lines[0]["audio_filepath"] = str(tmp_path / "gone.wav")
    manifest = tiny_corpus.write(tmp_path / "broken.jsonl", lines)
    assert run("sweep=speed", "sweep_values=[1.1]", f"manifest={manifest}") == 1
    report = read_report(tmp_path / "out" / "sweep-speed" / "speed1.1" / "report.json")
    assert [exclusion.id for exclusion in report.excluded] == ["dev-0"]


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"sweep": "snr"}, "noise=FOLDER"),
        ({"sweep": "volume"}, "sweep=volume"),
        ({"sweep": "speed", "noise": "x"}, "sweep=snr"),
        ({"noise": "x"}, "sweep=snr"),
        ({"noise_seed": 1}, "sweep=snr"),
        ({"sweep_values": [1.0]}, "sweep=snr"),
        ({"sweep": "speed", "sweep_values": [5.0]}, "sweep_values"),
        ({"sweep": "speed", "sweep_values": []}, "sweep_values"),
    ],
)
def test_mistakes_are_named(options: dict[str, object], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        EvaluateConfig(checkpoint="a", **options)  # type: ignore[arg-type]


def test_a_folder_without_noise_is_named(run: Run, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"noise=.*does not exist"):
        run("sweep=snr", f"noise={tmp_path / 'gone'}")
