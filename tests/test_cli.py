"""The command line: mistakes cost one line and exit code 2, help reads well, sweeps stay in their place."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import yaml

from asr import cli
from asr.config import EvaluateConfig, TrainConfig
from asr.errors import TrainingError


def run_task(
    monkeypatch: pytest.MonkeyPatch,
    arguments: Sequence[str],
    config_name: str = "train",
    schema: type = TrainConfig,
) -> tuple[int, list[TrainConfig]]:
    """Launch a command whose task only keeps its configuration."""
    seen: list[TrainConfig] = []
    monkeypatch.setattr(sys, "argv", ["train.py", *arguments])
    code = cli.launch(seen.append, config_name=config_name, schema=schema)
    return code, seen


def mistake(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: Sequence[str],
    **command: object,
) -> str:
    code, seen = run_task(monkeypatch, arguments, **command)  # type: ignore[arg-type]
    message = capsys.readouterr().err
    assert code == 2
    assert seen == []
    assert message.startswith("error: ")
    assert message.count("\n") == 1
    return message


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["trainer.max_epoch=3"], ["trainer.max_epoch", "did you mean 'trainer.max_epochs'"]),
        (["optimizer.momentum=0.9"], ["optimizer.momentum", "only for kind sgd"]),
        (["sed=1"], ["sed", "did you mean 'seed'"]),
        (["model=tyni"], ["tyni", "tiny"]),
        (["trainer.max_epochs=abc"], ["abc", "trainer.max_epochs"]),
        (["trainer.max_epochs=1.5"], ["1.5", "trainer.max_epochs"]),
        (["features.dither=loud"], ["loud", "features.dither"]),
        (["model.conv_channels=8"], ["model.conv_channels"]),
        (["data.max_seconds=1", "data.min_seconds=2"], ["data.max_seconds=1", "data.min_seconds=2"]),
        (["experiment=null"], ["experiment=null"]),
        (["model="], ["model="]),
        (["experiment=nothing"], ["nothing", "an4"]),
        (["seed=0,1"], ["seed"]),
        (["seed"], ["seed"]),
        (["augment=standard", "features.normalise=none"], ["features.normalise=none", "augment"]),
    ],
    ids=" ".join,
)
def test_mistakes_cost_one_line(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    words: list[str],
) -> None:
    message = mistake(monkeypatch, capsys, arguments)
    for word in words:
        assert word in message


def test_missing_option_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    message = mistake(monkeypatch, capsys, [], config_name="evaluate", schema=EvaluateConfig)
    assert "checkpoint" in message
    assert "must be given" in message


@pytest.mark.parametrize(
    ("preset", "words"),
    [
        ("trainer:\n  max_epoch: 3\n", ["max_epoch", "max_epochs"]),
        ("trainer:\n  max_epochs: many\n", ["many", "max_epochs"]),
        ("sede: 3\n", ["sede", "seed"]),
    ],
)
def test_mistakes_inside_a_preset_cost_one_line(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    preset: str,
    words: list[str],
) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text(f"# @package _global_\n{preset}")
    message = mistake(monkeypatch, capsys, ["experiment=mine", f"hydra.searchpath=[file://{tmp_path}]"])
    for word in words:
        assert word in message


def test_errors_for_people_and_errors_of_the_program(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def user_error(config: TrainConfig) -> None:
        raise TrainingError("two\nlines")

    def bug(config: TrainConfig) -> None:
        raise ValueError("a bug")

    def interrupted(config: TrainConfig) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(sys, "argv", ["train.py"])
    assert cli.launch(user_error, config_name="train", schema=TrainConfig) == 2
    assert capsys.readouterr().err == "error: two lines\n"
    with pytest.raises(ValueError, match="a bug"):
        cli.launch(bug, config_name="train", schema=TrainConfig)
    assert cli.launch(interrupted, config_name="train", schema=TrainConfig) == 130


def test_exit_code_is_that_of_the_task(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["train.py"])
    assert cli.launch(lambda config: 1, config_name="train", schema=TrainConfig) == 1


def test_multirun_jobs_have_run_directories_and_commands_of_their_own(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["train.py", "-m", "experiment=an4", "seed=0,1,2"])
    seen: list[tuple[int, str, list[str]]] = []

    def task(config: TrainConfig) -> int:
        seen.append((config.seed, config.run_dir, sys.argv[1:]))
        return 1 if config.seed == 1 else 0

    assert cli.launch(task, config_name="train", schema=TrainConfig) == 1
    assert [seed for seed, _, _ in seen] == [0, 1, 2]  # one that fails does not stop the others
    assert len({run_dir for _, run_dir, _ in seen}) == 3
    assert all(run_dir.startswith("runs/an4/") for _, run_dir, _ in seen)
    assert [arguments for _, _, arguments in seen] == [
        ["experiment=an4", f"seed={seed}"] for seed in range(3)
    ]
    assert sys.argv[1] == "-m"
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]
    assert list((tmp_path / "runs").rglob("multirun.yaml"))


def test_a_single_run_leaves_nothing_of_hydra_behind(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    code, (config,) = run_task(monkeypatch, ["seed=4"])
    assert code == 0
    assert config.seed == 4
    assert list(tmp_path.iterdir()) == []


def test_plain_arguments_are_told_from_options(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    Path("take=2.wav").touch()
    arguments = [
        "a.wav",
        "format=json",
        "take=2.wav",
        "--cfg",
        "job",
        "decoder.kind=greedy",
        "+x=1",
        "dir/*.flac",
    ]
    plain, options = cli.split_plain_arguments(arguments)
    assert plain == ["a.wav", "take=2.wav", "dir/*.flac"]
    assert options == ["format=json", "--cfg", "job", "decoder.kind=greedy", "+x=1"]


def command(arguments: Sequence[str], folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(Path(cli.__file__).parents[1])}
    return subprocess.run(
        [sys.executable, "-m", *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


@pytest.mark.slow
def test_from_the_shell(tmp_path: Path) -> None:
    helped = command(["asr.train", "--help"], tmp_path)
    assert helped.returncode == 0
    for words in ("python -m asr.train experiment=an4", "Groups", "experiment: an4", "max_epochs"):
        assert words in helped.stdout
    shown = command(["asr.train", "--cfg", "job", "experiment=fsdd", "seed=3"], tmp_path)
    assert shown.returncode == 0
    assert yaml.safe_load(shown.stdout)["seed"] == 3
    wrong = command(["asr.train", "trainer.max_epoch=3"], tmp_path)
    assert wrong.returncode == 2
    assert wrong.stderr.count("\n") == 1
    assert wrong.stdout == ""
    missing = command(["asr.train", "data.train=gone.jsonl"], tmp_path)
    assert missing.returncode == 2
    assert missing.stderr.startswith("error: gone.jsonl is not there; make it with: python -m asr.prepare")
    assert missing.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


PRINT_SIGNAL_STACK = """
import ctypes, sys
from asr import cli
from asr.config import CompareConfig

class Stack(ctypes.Structure):
    _fields_ = [("address", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t)]

def task(config):
    stack = Stack()
    ctypes.CDLL(None).sigaltstack(None, ctypes.byref(stack))
    print(stack.flags)

sys.exit(cli.launch(task, config_name="compare", schema=CompareConfig))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the layout of stack_t is Linux's")
def test_signals_are_handled_on_a_stack_of_their_own() -> None:
    """Else a signal in the middle of oneDNN's matrix product, which moves the stack pointer, corrupts the heap."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONFAULTHANDLER"}
    done = subprocess.run(
        [sys.executable, "-c", PRINT_SIGNAL_STACK],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "0"  # SS_DISABLE, 2: there is none


def test_a_preset_that_overrules_a_chosen_group_says_so() -> None:
    choices = {"experiment": "an4-best", "augment": "none", "schedule": "cosine", "model": "compact"}
    given = {"experiment", "augment", "schedule", "schedule.warmup_share"}
    (line,) = cli.overruled_groups(choices, given)
    assert (
        "experiment=an4-best sets augment.num_time_masks, augment.time_mask_seconds in augment=none" in line
    )
    assert list(cli.overruled_groups(choices, {"experiment", "model"})) == []
    assert list(cli.overruled_groups({"augment": "none"}, {"augment"})) == []
    (line,) = cli.overruled_groups({"experiment": "an4-best", "optimizer": "sgd"}, {"optimizer"})
    assert "optimizer.learning_rate" in line
    (line,) = cli.overruled_groups({"experiment": "an4-best", "data": "fsdd"}, {"data", "data.train"})
    assert "data.max_batch_utterances" in line  # of the preset that an4-best builds on
    assert "data.train" not in line


def test_a_preset_of_another_folder_is_no_obstacle() -> None:
    assert (
        list(cli.overruled_groups({"experiment": "mine", "augment": "none"}, {"experiment", "augment"})) == []
    )


def test_an_interrupted_job_ends_the_sweep(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["train.py", "-m", "seed=0,1,2"])
    done: list[int] = []

    def interrupted(config: TrainConfig) -> int:
        done.append(config.seed)
        return cli.INTERRUPTED if config.seed == 1 else 0

    assert cli.launch(interrupted, config_name="train", schema=TrainConfig) == cli.INTERRUPTED
    assert done == [0, 1]
