"""scripts/study_*.py of recipes: what is done is kept, what was interrupted is made anew, other options are refused."""

import json
import math
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from conftest import TINY_OPTIONS, TinyCorpus, compose_config

from asr.config import BeamLmConfig, GreedyConfig, TrainConfig, TuneConfig
from asr.records import Utterance
from asr.score import ErrorCounts
from asr.stats import rate_interval
from asr.tuning import Trial

SCRIPTS = Path(__file__).parents[1] / "scripts"


@pytest.fixture
def study(tiny_corpus: Any, tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    def run(
        trials: dict[str, list[str]], *options: str, first: Sequence[str] = ()
    ) -> subprocess.CompletedProcess[str]:
        plan = tmp_path / "plan.yaml"
        plan.write_text(
            yaml.safe_dump(
                {"first": list(first), "common": [*TINY_OPTIONS, "trainer.max_epochs=1"], "trials": trials},
                sort_keys=False,
            )
        )
        folders = ["--data", str(tiny_corpus.folder), "--output", str(tmp_path / "runs")]
        command = [sys.executable, str(SCRIPTS / "study_recipe.py"), "--plan", str(plan), *folders, *options]
        environment = os.environ | {"COLUMNS": "200"}
        return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)

    return run


@pytest.mark.slow
def test_a_study(study: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path) -> None:
    half_done = tmp_path / "runs" / "fast-0"
    checkpoint = half_done / "run" / "checkpoints" / "last.ckpt"
    checkpoint.parent.mkdir(parents=True)
    checkpoint.write_text("interrupted")
    trials = {"slow": ["optimizer.learning_rate=1e-4"], "fast": ["optimizer.learning_rate=1e-2"]}
    done = study(trials)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "runs" / "plan.json").read_text())
    assert list(found) == ["slow", "fast"]
    assert found["fast"]["seeds"]["0"]["greedy"] <= 2
    assert found["fast"]["seeds"]["0"]["dev_loss"] < found["slow"]["seeds"]["0"]["dev_loss"]
    assert (tmp_path / "runs" / "plan.png").stat().st_size > 0
    written = checkpoint.stat().st_mtime_ns
    again = study(trials)
    assert again.returncode == 0, again.stderr
    assert "slow" in again.stdout
    assert checkpoint.stat().st_mtime_ns == written
    for how in ([], ["--table-only"]):
        changed = study(trials | {"fast": ["optimizer.learning_rate=1e-3"]}, *how)
        assert changed.returncode == 1
        assert "was made with other options" in changed.stderr


@pytest.mark.slow
def test_a_study_of_two_trainings(
    study: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    done = study({"recipe": []}, first=[*TINY_OPTIONS, "trainer.max_epochs=1"])
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "runs" / "recipe-0"
    command = (folder / "run" / "command.sh").read_text()
    assert f"init_from={folder / 'first' / 'checkpoints' / 'last.ckpt'}" in command
    sources = [
        "spliced_from" in json.loads(line)
        for line in (folder / "spliced" / "train.jsonl").read_text().splitlines()
    ]
    assert sorted(sources) == [False] * 8 + [True] * 8
    assert f"data.train={folder / 'spliced' / 'train.jsonl'}" in command
    minutes = [
        json.loads((folder / f"{name}.json").read_text())["cpu_minutes"]
        for name in ("first", "spliced", "run")
    ]
    found = json.loads((tmp_path / "runs" / "plan.json").read_text())
    assert found["recipe"]["seeds"]["0"]["cpu_minutes"] == pytest.approx(sum(minutes))


@pytest.mark.usefixtures("scripts")
def test_a_learning_curve_goes_on_in_the_second_training(tmp_path: Path) -> None:
    import study_recipe

    header = "epoch,step,dev/wer,dev/loss\n"
    for name, rows in {"first": "0,5,,\n1,10,0.9,2.0\n", "run": "0,15,0.5,1.0\n2,20,0.4,0.5\n"}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "metrics.csv").write_text(header + rows)
    assert study_recipe.learning_curve(tmp_path) == [(2, 0.9, 2.0), (3, 0.5, 1.0), (5, 0.4, 0.5)]
    assert study_recipe.learning_curve(tmp_path / "nothing") == []


def test_names_that_would_share_a_folder(study: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    refused = study({"rate 1e-3": [], "rate 1e_3": []})
    assert refused.returncode == 1
    assert "two trials would share a folder" in refused.stderr


@pytest.mark.parametrize("plan", sorted(SCRIPTS.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_plan_composes(plan: Path) -> None:
    content = yaml.safe_load(plan.read_text())
    if "first" in content:
        compose_config("train", TrainConfig, content["first"])
    for options in content["trials"].values():
        compose_config("train", TrainConfig, [*content["common"], *options])


# --------------------------------------------------------------------------- their parts


@pytest.fixture
def scripts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(SCRIPTS))


def trial(errors: Sequence[int], alpha: float, vocabulary: str) -> Trial:
    """On utterances of ten words."""
    counts = tuple(ErrorCounts(10 - error, error) for error in errors)
    decoder = BeamLmConfig(lm="x.arpa", alpha=alpha, beta=0.0, vocabulary=vocabulary)
    return Trial("grid", decoder, counts, 1.0)


def decoded(
    speakers: Sequence[str], *errors: Sequence[int], prefix: str = "u", vocabulary: str = "open"
) -> Any:
    """What one training does: ``errors`` under each of the language-model weights, of which the first are none."""
    from cross_validate import Decoded

    utterances = [
        Utterance(f"{prefix}{place}", "x.wav", 1.0, "x", speaker) for place, speaker in enumerate(speakers)
    ]
    grid = [trial(own, float(alpha), vocabulary) for alpha, own in enumerate(errors)]
    greedy = Trial("greedy", GreedyConfig(), grid[0].counts, 1.0)
    return Decoded(utterances, np.full(len(utterances), 10.0), greedy, grid)


@pytest.mark.usefixtures("scripts")
def test_weights_of_another_training_need_a_first_one(tmp_path: Path) -> None:
    from recipes import Recipe
    from study_recipe import Plan

    with pytest.raises(
        SystemExit, match=r"begins with weights of another training \(runs/an4-first/.*give --first"
    ):
        Recipe(("experiment=an4-best", "trainer.max_epochs=1"))
    plan = tmp_path / "plan.yaml"
    plan.write_text("common: [experiment=an4]\ntrials: {plain: [], best: [experiment=an4-best]}\n")
    with pytest.raises(SystemExit):
        Plan.read(plan)
    with pytest.raises(SystemExit, match="begins with weights"):
        Recipe(("experiment=an4-best",), first=("experiment=an4-best",))
    with pytest.raises(SystemExit, match="nonsense"):
        Recipe(("experiment=nonsense",), first=("experiment=an4",))
    Recipe(("experiment=an4",))
    Recipe(("experiment=an4-best",), first=("experiment=an4",))
    for given in ("mine.ckpt", "null"):
        Recipe(("experiment=an4-best", f"init_from={given}"))
    with pytest.raises(SystemExit, match=r"did you mean 'model\.dropout'"):
        Recipe(("experiment=an4", "model.droput=0"))


@pytest.fixture
def copying(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A step that copies its source and counts how often."""
    from recipes import Step

    (tmp_path / "copy_it.py").write_text(
        "import sys\n"
        "given = dict(argument.split('=') for argument in sys.argv[1:])\n"
        "open(given['output'], 'a').write(open(given['source']).read())\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (tmp_path / "source.txt").write_text("one")
    arguments = (f"source={tmp_path / 'source.txt'}", f"output={tmp_path / 'product.txt'}", "seed=0")
    return Step("copy_it", arguments, tmp_path / "product.txt")


@pytest.mark.usefixtures("scripts")
def test_a_step_is_made_of_the_files_that_it_was_made_of(scripts: None, copying: Any, tmp_path: Path) -> None:
    source, product, record = (tmp_path / name for name in ("source.txt", "product.txt", "product.txt.json"))
    product.write_text("of an interrupted step, ")
    assert copying.minutes() is None
    copying.make_once()
    copying.make_once()
    assert product.read_text() == "of an interrupted step, one"
    # printf one | sha256sum
    digest = "7692c3ad3540bb803c020b3aee66cd8887123234ea0c6e7143c0add73ff431ed"
    assert json.loads(record.read_text())["inputs"] == {str(source): digest}
    source.write_text("two")
    for act in (copying.minutes, copying.make_once):
        with pytest.raises(
            SystemExit, match=r"product\.txt was made from another .*source\.txt: give another --output"
        ):
            act()
    source.unlink()
    assert copying.minutes() is not None
    source.write_text("two")
    content = json.loads(record.read_text())
    del content["inputs"]
    record.write_text(json.dumps(content))
    assert copying.minutes() is not None


@pytest.mark.usefixtures("scripts")
def test_weights_are_chosen_by_other_utterances_of_a_single_speaker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import study_recipe

    # Without any one of them, the others cannot tell the two apart and then make fewer errors under what harms it.
    found = decoded(["ann"] * 4, [0, 0, 9, 9], [9, 9, 0, 0])
    monkeypatch.setattr(study_recipe, "decode", lambda *_: found)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "metrics.csv").write_text("epoch,dev/wer,dev/loss\n0,0.5,1.25\n")
    judged = study_recipe.judge(tmp_path, 1.0, tmp_path / "dev.jsonl", tmp_path / "lm.arpa", "closed")
    assert judged.errors["beam + LM"].tolist() == [9, 9, 9, 9]
    assert judged.loss == 1.25


@pytest.mark.usefixtures("scripts")
def test_a_dev_set_of_one_utterance_is_refused(tiny_corpus: TinyCorpus, tmp_path: Path) -> None:
    from study_recipe import require_others

    require_others(tiny_corpus.manifest("dev"))
    alone = tiny_corpus.write(tmp_path / "dev.jsonl", tiny_corpus.lines("dev")[:1])
    with pytest.raises(SystemExit, match="one utterance only"):
        require_others(alone)


@pytest.mark.usefixtures("scripts")
def test_a_difference_is_one_of_seeds_too() -> None:
    from study_recipe import Judged, difference

    def run(errors: int) -> Judged:
        every = np.full(20, float(errors))
        return Judged(np.full(20, 10.0), {"greedy": every}, 0.0, 0.0)

    first, better = {0: run(2), 1: run(4), 2: run(9)}, {0: run(1), 1: run(3)}
    # One seed: 20 utterances, and all are better by one: 2 of 2**20 signs are as extreme.
    assert difference({0: better[0]}, first, "greedy") == "-10.00 (p=0.00)"
    # Both trials vary by sqrt(2) / 10 over two seeds, so the standard error of the difference is 0.1414 too, with two
    # degrees of freedom: t = -0.1 / 0.1414, and Student's distribution for two is 1/2 + t / (2 * sqrt(2 + t * t)).
    t = -0.1 / math.sqrt(0.02)
    p = 2 * (0.5 + t / (2 * math.sqrt(2 + t * t)))
    text, _, found = difference(better, first, "greedy").partition(" (p=")
    assert text == "-10.00"
    assert float(found.rstrip(")")) == pytest.approx(p, abs=0.02)
    assert p == pytest.approx(0.553, abs=0.001)


@pytest.mark.usefixtures("scripts")
@pytest.mark.parametrize("speakers", [("", ""), ("ann", "ben")])
def test_a_cross_validation_of_unknown_speakers(
    speakers: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from cross_validate import Fold, report, summary
    from recipes import Recipe

    errors = [[1, 2, 5], [0, 4, 3]]
    folds = [
        decoded([speaker] * 3, own, [one + 1 for one in own], prefix=speaker or str(place))
        for place, (speaker, own) in enumerate(zip(speakers, errors, strict=True))
    ]
    units = [[8, 30], [7, 30]] if speakers[0] else [[one, 10] for own in errors for one in own]
    expected = rate_interval(*zip(*units, strict=True))
    assert not math.isnan(expected.low)
    found = summary("greedy", [fold.greedy.errors for fold in folds], folds)
    assert found["pooled_interval"] == (expected.low, expected.high)
    assert found["pooled"] == 15 / 60
    plan = [Fold(str(place), (), tmp_path) for place in range(2)]
    report(plan, folds, tmp_path, Recipe(("experiment=an4",)))
    printed = capsys.readouterr().out
    assert "nan" not in printed
    assert ("paired by speaker" if speakers[0] else "paired by utterance") in printed
    content = json.loads((tmp_path / "cross_validation.json").read_text())
    assert [one["speaker"] for one in content["utterances"]] == [name for name in speakers for _ in range(3)]
    assert [one["errors"]["greedy"] for one in content["utterances"]] == [1, 2, 5, 0, 4, 3]
    assert "beam + words" not in printed  # an open vocabulary has no words of its own


@pytest.mark.usefixtures("scripts")
def test_what_the_words_alone_do_in_a_cross_validation(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from cross_validate import Fold, report
    from recipes import Recipe

    defaults = TuneConfig()
    assert {0.0} <= {*defaults.alphas} & {*defaults.betas}  # else a real fold's grid lacks the words alone
    # Each fold's other one chooses alpha = 1, under which there is one error an utterance less.
    folds = [
        decoded(["ann", "ben"], [one + 1, one + 2], [one, one + 1], prefix=str(one), vocabulary="closed")
        for one in (0, 2)
    ]
    folds = [fold._replace(grid=fold.grid[::-1]) for fold in folds]
    report(
        [Fold(str(place), (), tmp_path) for place in range(2)], folds, tmp_path, Recipe(("experiment=an4",))
    )
    content = json.loads((tmp_path / "cross_validation.json").read_text())
    assert [list(one["errors"].values()) for one in content["utterances"]] == [
        [1, 1, 0],
        [2, 2, 1],
        [3, 3, 2],
        [4, 4, 3],
    ]
    means = {one["decoder"]: one["mean"] for one in content["summaries"]}
    assert means == pytest.approx({"greedy": 10 / 40, "beam + words": 10 / 40, "beam + LM": 6 / 40})
    assert "beam + words: mean of folds 25.00 %" in capsys.readouterr().out


def test_speakers_of_a_cross_validation(tmp_path: Path) -> None:
    # 13 recordings of each of six women and 12 of a seventh, 13 of a man, one each of four more men: 107, of which the
    # first 100 in the order of speakers leave out three of the first man and the four others.
    names = [f"an{number:03}-f{speaker}-b" for number in range(13) for speaker in "abcdef"]
    names += [f"an{number:03}-fg-b" for number in range(12)] + [f"an{number:03}-ma-b" for number in range(13)]
    names += [f"an000-m{speaker}-b" for speaker in "bcde"]
    first = sorted(names, key=lambda name: (name.split("-")[1], name))[:100]
    words = {name: 6 if number < 91 else 5 for number, name in enumerate(first)}
    content = [
        {
            "id": name,
            "speaker": name.split("-")[1],
            "words": words.get(name, 9),
            "errors": {
                "greedy": int(name in first[:30]),
                "beam + words": int(name in first[:60]),
                "beam + LM": 0 if name in words else 9,
            },
        }
        for name in names
    ]
    path = tmp_path / "cross_validation.json"

    def run(utterances: list[dict[str, Any]]) -> tuple[str, list[list[str]]]:
        path.write_text(json.dumps({"utterances": utterances}))
        command = [sys.executable, str(SCRIPTS / "study_an4_speakers.py"), str(path)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        rows = [
            [cell.split("(")[0].strip() for cell in line.split("│")[1:-1]]
            for line in done.stdout.splitlines()
        ]
        return done.stdout, [row for row in rows if row]

    _, rows = run(content)
    assert rows == [
        ["women", "7", "540", "5.6", "11.1", "0.0"],
        ["men", "5", "114", "0.0", "0.0", "55.3"],
        ["ESPnet's dev set", "8", "591", "5.1", "10.2", "0.0"],
        ["there ESPnet, without and with its LM", "8", "591", "12.9", "", "12.7"],
    ]
    printed, rows = run(content[:60])
    assert "without ESPnet's dev set" in printed
    assert [row[0] for row in rows] == ["women"]
