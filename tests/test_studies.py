"""scripts/study_*.py of recipes: what is done is kept, what was interrupted is made anew, other options are refused."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import TINY_OPTIONS, compose_config

from asr.config import TrainConfig

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
            "errors": {"greedy": int(name in first[:30]), "beam + LM": 0 if name in words else 9},
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
        ["women", "7", "540", "5.6", "0.0"],
        ["men", "5", "114", "0.0", "55.3"],
        ["ESPnet's dev set", "8", "591", "5.1", "0.0"],
        ["the same by ESPnet, beam of 10 without and with its LM", "8", "591", "12.9", "12.7"],
    ]
    printed, rows = run(content[:60])
    assert "without ESPnet's dev set" in printed
    assert [row[0] for row in rows] == ["women"]
