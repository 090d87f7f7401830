"""asr.compare: what is compared with what, and what is claimed, on reports with known truth."""

import json
import random
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from asr import compare
from asr.firewall import DataUse, Notice
from asr.records import Hypothesis, Utterance
from asr.report.json_report import EvaluationReport, build_report, write_report
from asr.stats import compare_paired, holm_adjust

WORDS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]


def make_report(
    error_rate: float,
    *,
    luck: int = 0,
    num_utterances: int = 120,
    first: int = 0,
    seed: int = 0,
    normaliser: str = "none",
    hard_speaker: float = 1.0,
    **options: Any,
) -> EvaluationReport:
    """Spoken digits in which each word is replaced with this chance; ``luck`` seeds the errors."""
    chance = random.Random(luck)
    utterances, hypotheses = [], []
    for number in range(first, first + num_utterances):
        text = random.Random(number).choices(WORDS, k=5 + number % 4)
        factor = hard_speaker if number % 3 == 0 else 1.0
        heard = [word if chance.random() >= factor * error_rate else "what" for word in text]
        name = f"u{number}"
        utterances.append(Utterance(name, Path(f"{name}.wav"), 2.0, " ".join(text), speaker=f"s{number % 3}"))
        hypotheses.append(Hypothesis((), " ".join(heard), 0.0))
    provenance = {
        "checkpoint": {"path": "best.ckpt", "sha256": f"sha of {luck}"},
        "decoder": {"kind": "greedy"},
        "training": {"manifests": {"train": {"path": "train.jsonl", "sha256": "t"}}},
        "training_config": {
            "seed": seed,
            "run_dir": f"runs/{luck}",
            "model": {"rnn_size": 64},
            "trainer": {"max_epochs": 3, "num_threads": luck},
        },
    }
    for name, value in options.items():
        group, option = name.split("__")
        provenance["training_config"].setdefault(group, {})[option] = value  # type: ignore[index]
    return build_report(
        utterances, hypotheses, decode_seconds=1.0, normaliser=normaliser, provenance=provenance
    )


class Command:
    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
        self.folder, self._monkeypatch, self._capsys = folder, monkeypatch, capsys
        self.errors = ""

    def write(self, **reports: EvaluationReport) -> list[str]:
        for name, report in reports.items():
            write_report(report, self.folder / name / "report.json")
        return [str(self.folder / name) for name in reports]

    def __call__(self, *arguments: str) -> int:
        output = f"output={self.folder / 'out'}"
        self._monkeypatch.setattr(sys, "argv", ["compare.py", *arguments, output, "num_resamples=1000"])
        code = compare.main()
        shown = self._capsys.readouterr()
        self.shown, self.errors = shown.out, shown.err
        return code

    @property
    def json(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.folder / "out" / "comparison.json").read_text())
        return found

    @property
    def markdown(self) -> str:
        return (self.folder / "out" / "comparison.md").read_text(encoding="utf-8")


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    monkeypatch.setenv("COLUMNS", "160")
    return Command(tmp_path, monkeypatch, capsys)


def test_a_difference_that_is_there_is_claimed(command: Command) -> None:
    worse, better = make_report(0.3, luck=1), make_report(0.1, luck=2, model__rnn_size=128)
    assert command(*command.write(worse=worse, better=better)) == 0
    (pair,) = command.json["pairs"]
    assert pair["verdict"].startswith("B is better than A by")
    assert "B is better than A" in command.shown
    assert "B is better than A" in command.markdown
    errors = [[result.counts.num_errors for result in report.utterances] for report in (worse, better)]
    lengths = [result.counts.num_reference for result in worse.utterances]
    expected = compare_paired(*errors, lengths, num_resamples=1000)
    assert pair["comparison"]["difference"] == pytest.approx(worse.wer - better.wer)
    assert pair["comparison"]["p_value"] == pytest.approx(expected.p_value)
    assert pair["matched_pairs"]["p_value"] < 0.01
    only_b = sum(a > 0 and b == 0 for a, b in zip(*errors, strict=True))
    assert pair["mcnemar"]["num_only_b_correct"] == only_b
    assert pair["by_speaker"]["interval"]["num_units"] == 3
    assert pair["options"] == [{"option": "model.rnn_size", "value_a": "64", "value_b": "128"}]
    assert [system["name"] for system in command.json["systems"]] == ["worse", "better"]
    assert "One training of each" in command.shown


def test_none_is_claimed_where_there_is_none(command: Command) -> None:
    paths = command.write(a=make_report(0.2, luck=1), b=make_report(0.2, luck=2, model__rnn_size=128))
    assert command(*paths) == 0
    (pair,) = command.json["pairs"]
    assert pair["verdict"].startswith("No difference shown between A and B")
    more = pair["comparison"]["num_more_units"]
    assert f"about {more} more utterances" in pair["verdict"]
    assert more > 100
    assert "better than" not in command.shown


def test_two_seeds_of_a_configuration_are_one_system(command: Command) -> None:
    reports = [make_report(0.10, luck=1, seed=0), make_report(0.25, luck=2, seed=1)]
    paths = command.write(s0=reports[0], s1=reports[1])
    assert command(*paths) == 0
    assert command.json["pairs"] == []
    (system,) = command.json["systems"]
    assert system["rates"] == [report.wer for report in reports]
    assert system["seeds"]["standard_deviation"] == pytest.approx(
        abs(reports[0].wer - reports[1].wer) / 2**0.5
    )
    assert "no difference is shown" in command.shown
    # As models, though, one is better than the other.
    assert command(*paths, "group_seeds=false") == 0
    assert "A is better than B" in command.shown


def test_groups_of_seeds_are_compared_by_their_means(command: Command) -> None:
    small = {f"small{n}": make_report(0.20, luck=n, seed=n) for n in range(3)}
    large = {f"large{n}": make_report(0.08, luck=9 + n, seed=n, model__rnn_size=99) for n in range(3)}
    assert command(*command.write(**small, **large)) == 0
    (pair,) = command.json["pairs"]
    assert pair["verdict"].startswith("B is better than A")
    assert pair["seeds"]["degrees_of_freedom"] == 4
    assert pair["matched_pairs"] is None
    means = [sum(report.wer for report in group.values()) / 3 for group in (small, large)]
    assert pair["comparison"]["difference"] == pytest.approx(means[0] - means[1])
    assert "One training of each" not in command.shown


def test_luck_of_a_seed_is_no_better_configuration(command: Command) -> None:
    """The first configuration's seeds differ far more than the configurations do."""
    unlucky = {f"a{n}": make_report(rate, luck=n, seed=n) for n, rate in enumerate((0.10, 0.30))}
    others = {
        f"b{n}": make_report(rate, luck=9 + n, seed=n, model__rnn_size=99)
        for n, rate in enumerate((0.09, 0.24))
    }
    assert command(*command.write(**unlucky, **others)) == 0
    assert "No difference shown between A and B" in command.shown
    assert "more seeds" in command.shown


def test_the_same_model_evaluated_twice_is_no_second_seed(command: Command) -> None:
    report = make_report(0.2, luck=1)
    assert command(*command.write(before=report, after=report)) == 0
    assert command.json["pairs"][0]["verdict"] == (
        "No difference shown between A and B: they make equally many errors."
    )


def test_what_is_not_shared_is_left_out_and_named(command: Command) -> None:
    whole, part = make_report(0.3, luck=1), make_report(0.1, luck=2, num_utterances=110, model__rnn_size=99)
    changed = replace(part.utterances[5], reference="something else")
    part = replace(part, utterances=(*part.utterances[:5], changed, *part.utterances[6:]))
    # The counts of the altered reference are as they were, so the report still adds up.
    assert command(*command.write(whole=whole, part=part)) == 0
    assert command.json["num_utterances"] == 109
    assert command.json["left_out"] == ["u5", *(f"u{n}" for n in range(110, 120))]
    assert "11 utterances are not in all reports" in command.shown


def mistake(command: Command, arguments: Sequence[str]) -> str:
    assert command(*arguments) == 2
    assert command.errors.count("\n") == 1
    return command.errors


def test_mistakes_cost_one_line(command: Command) -> None:
    paths = command.write(
        a=make_report(0.1),
        other=make_report(0.1, first=500),
        basic=make_report(0.1, normaliser="basic"),
        texts=make_report(0.1, first=1),
    )
    assert "two reports or more" in mistake(command, [])
    assert "two reports or more" in mistake(command, paths[:1])
    assert "given twice" in mistake(command, [paths[0], f"{paths[0]}/report.json"])
    assert "does not exist" in mistake(command, [paths[0], "gone"])
    assert "only 0 of up to 120" in mistake(command, paths[:2])
    message = mistake(command, [paths[0], paths[2]])
    assert "basic" in message
    assert "none" in message
    empty = command.folder / "empty"
    empty.mkdir()
    assert "holds no report.json" in mistake(command, [paths[0], str(empty)])
    for name in ("dev", "test"):
        write_report(make_report(0.1), empty / "evaluation" / name / "report.json")
    assert "several reports" in mistake(command, [paths[0], str(empty)])
    assert "min_shared" in mistake(command, [paths[0], paths[3], "min_shared=0.999"])
    assert "metric" in mistake(command, [*paths[:2], "metric=ser"])
    named = make_report(0.1)
    nameless = replace(named, utterances=tuple(replace(one, speaker="") for one in named.utterances))
    unnamed = command.write(c=nameless, d=nameless)
    assert "unit=speaker" in mistake(command, [*unnamed, "unit=speaker"])


def test_three_systems_are_corrected_for_their_pairs(command: Command) -> None:
    sizes = {"small": (0.3, 1), "medium": (0.25, 2), "large": (0.2, 3)}
    reports = {
        name: make_report(rate, luck=luck, model__rnn_size=luck) for name, (rate, luck) in sizes.items()
    }
    assert command(*command.write(**reports)) == 0
    pairs = command.json["pairs"]
    assert [(pair["a"], pair["b"]) for pair in pairs] == [("A", "B"), ("A", "C"), ("B", "C")]
    assert [pair["adjusted_p"] for pair in pairs] == pytest.approx(
        holm_adjust([pair["comparison"]["p_value"] for pair in pairs])
    )


def test_slices_are_corrected_for_each_other(command: Command) -> None:
    """Only one of the three speakers is worse."""
    a = make_report(0.05, luck=1, num_utterances=240)
    b = make_report(0.05, luck=2, num_utterances=240, hard_speaker=8, model__rnn_size=99)
    assert command(*command.write(a=a, b=b)) == 0
    (pair,) = command.json["pairs"]
    slices = pair["slices"]
    assert [one["adjusted_p"] for one in slices] == pytest.approx(
        holm_adjust([one["comparison"]["p_value"] for one in slices])
    )
    found = {one["value"]: one["adjusted_p"] for one in slices if one["field"] == "speaker"}
    assert found["s0"] < 0.05 < min(found["s1"], found["s2"])
    assert "speaker=s0" in command.shown


def test_characters_and_speakers(command: Command) -> None:
    a, b = make_report(0.3, luck=1), make_report(0.1, luck=2, model__rnn_size=99)
    assert command(*command.write(a=a, b=b), "metric=cer", "unit=speaker") == 0
    (pair,) = command.json["pairs"]
    assert pair["comparison"]["difference"] == pytest.approx(a.cer - b.cer)
    assert pair["comparison"]["interval"]["num_units"] == 3
    assert pair["by_speaker"] is None
    # Three speakers cannot show anything: all signs equal has a chance of 2 in 8.
    assert pair["comparison"]["p_value"] >= 0.25
    assert "No difference shown" in command.shown


def test_warnings_of_the_reports_are_passed_on(command: Command) -> None:
    use = DataUse("dev", True, (Notice("warning", "weights were [bold]tuned[/bold] on it"),))
    reports = {
        name: replace(make_report(0.1, luck=luck, model__rnn_size=luck), data_use=use)
        for luck, name in enumerate(("a", "b"))
    }
    assert command(*command.write(**reports)) == 0
    assert "A: weights were [bold]tuned[/bold] on it" in command.shown
    assert r"\[bold\]tuned" in command.markdown


def test_two_evaluations_of_a_run(command: Command, tiny_run: Path) -> None:
    """The report of the training itself and one of its evaluations."""
    copy = command.write(other=make_report(0.1))
    assert "only 0 of" in mistake(command, [str(tiny_run), *copy])
