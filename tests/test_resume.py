"""Interrupting and going on: the same model as without the interruption, or a refusal that says why."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import Timer

from asr.callbacks import SaveBetween
from asr.errors import AsrError, CheckpointError, ConfigError, TrainingError
from asr.runs import resume_command
from asr.train import train

Compose = Callable[..., Any]

# Everything random is on: batches, speed, level, masks, dither and dropout.
RANDOM = [
    *("augment=standard", "augment.time_mask_seconds=0.1", "features.dither=0.01", "model.dropout=0.3"),
    *("trainer.max_epochs=3", "schedule=cosine", "optimizer.learning_rate=1e-2"),
]

ALL_AUGMENTATION = [
    *("augment.noise_probability=0.7", "augment.reverb_probability=0.5", "augment.codec_probability=0.5"),
    *("augment.codecs=[mu_law,gsm,opus,vorbis,mp3]", "augment.seconds_per_time_mask=0.3"),
]


@pytest.fixture(scope="module")
def whole_run(tiny_train_config: Compose, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Run directory of an uninterrupted training with some options; each is run once."""
    done: dict[tuple[str, ...], Path] = {}

    def run(*options: str) -> Path:
        if options not in done:
            done[options] = tmp_path_factory.mktemp("whole") / "run"
            assert train(tiny_train_config(done[options], *RANDOM, *options)) == 0
        return done[options]

    return run


def interrupt_at(monkeypatch: pytest.MonkeyPatch, batch_number: int, action: Callable[[Any], None]) -> None:
    """Do ``action`` at the start of a training batch, counted from 0 over the whole training."""

    def on_train_batch_start(callback: Any, trainer: Any, *unused: Any) -> None:
        if trainer.fit_loop.epoch_loop.total_batch_idx == batch_number:
            action(callback)

    monkeypatch.setattr(SaveBetween, "on_train_batch_start", on_train_batch_start)


def request(callback: Any) -> None:
    callback._requested = True


def last_checkpoint(run_dir: Path) -> dict[str, Any]:
    return torch.load(run_dir / "checkpoints" / "last.ckpt", weights_only=True)


def assert_identical(found: Any, expected: Any, where: str = "") -> None:
    if isinstance(expected, torch.Tensor):
        assert torch.equal(found, expected), where
    elif isinstance(expected, dict):
        assert found.keys() == expected.keys(), where
        for key in expected:
            assert_identical(found[key], expected[key], f"{where}.{key}")
    elif isinstance(expected, list):
        for index, (one, other) in enumerate(zip(found, expected, strict=True)):
            assert_identical(one, other, f"{where}[{index}]")
    else:
        assert found == expected, where


@pytest.mark.parametrize(
    ("batch_number", "options", "expected_step"),
    [
        pytest.param(1, [], 2, id="in the first epoch"),
        pytest.param(5, [], 6, id="in a later epoch"),
        pytest.param(7, [], 8, id="at the last batch of an epoch"),
        pytest.param(4, ["trainer.accumulate_batches=2"], 3, id="within an accumulated step"),
        pytest.param(3, ["trainer.validate_every_epochs=3"], 4, id="after an epoch without validation"),
        pytest.param(5, ["data.num_workers=1"], 6, id="with a loader process"),
        pytest.param(5, ["ALL AUGMENTATION"], 6, id="with all augmentation"),
    ],
)
def test_interrupted_and_resumed_is_bit_identical(
    tiny_train_config: Compose,
    whole_run: Callable[..., Path],
    noise_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    batch_number: int,
    options: list[str],
    expected_step: int,
) -> None:
    if options == ["ALL AUGMENTATION"]:
        options = [*ALL_AUGMENTATION, f"augment.noise={noise_folder}"]
    expected = last_checkpoint(whole_run(*options))
    run_dir = tmp_path / "run"
    with monkeypatch.context() as patched:
        interrupt_at(patched, batch_number, request)
        assert train(tiny_train_config(run_dir, *RANDOM, *options)) == 130
    assert last_checkpoint(run_dir)["global_step"] == expected_step
    torch.manual_seed(12345)  # nothing may depend on the random state of the process
    assert train(tiny_train_config(tmp_path / "new", *RANDOM, *options, f"resume={run_dir}")) == 0

    found = last_checkpoint(run_dir)
    assert found["global_step"] == expected["global_step"]
    assert_identical(found["state_dict"], expected["state_dict"])
    assert_identical(found["optimizer_states"], expected["optimizer_states"])
    assert_identical(found["lr_schedulers"], expected["lr_schedulers"])
    assert not (tmp_path / "new").exists()


def test_resuming_from_the_end_of_an_epoch_is_bit_identical(
    tiny_train_config: Compose,
    whole_run: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As after a power cut: what is left is the checkpoint of the last validation."""
    run_dir = tmp_path / "run"
    kept = tmp_path / "kept.ckpt"

    def keep_and_fail(callback: Any) -> None:
        shutil.copy(callback.path, kept)
        raise RuntimeError("power cut")

    with monkeypatch.context() as patched:
        interrupt_at(patched, 5, keep_and_fail)
        with pytest.raises(RuntimeError, match="power cut"):
            train(tiny_train_config(run_dir, *RANDOM))
    assert train(tiny_train_config(tmp_path / "new", *RANDOM, f"resume={run_dir}")) == 0
    assert_identical(last_checkpoint(run_dir)["state_dict"], last_checkpoint(whole_run())["state_dict"])


def test_metrics_of_both_parts_are_those_of_the_whole(
    tiny_train_config: Compose,
    whole_run: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def rows(run_dir: Path) -> list[list[str]]:
        lines = (run_dir / "metrics.csv").read_text().splitlines()
        speed = lines[0].split(",").index("train/frames_per_second")
        split = [line.split(",") for line in lines]
        return [row[:speed] + row[speed + 1 :] for row in split]

    run_dir = tmp_path / "run"
    with monkeypatch.context() as patched:
        interrupt_at(patched, 5, request)
        train(tiny_train_config(run_dir, *RANDOM))
    first_part = rows(run_dir)
    train(tiny_train_config(run_dir, *RANDOM, f"resume={run_dir}"))
    assert rows(run_dir)[: len(first_part)] == first_part
    assert rows(run_dir) == rows(whole_run())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_says_how_to_go_on(
    tiny_train_config: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    before = signal.getsignal(number)
    run_dir = tmp_path / "run"
    interrupt_at(monkeypatch, 1, lambda callback: os.kill(os.getpid(), number))
    assert train(tiny_train_config(run_dir)) == 130
    assert last_checkpoint(run_dir)["global_step"] == 2
    assert f"resume={run_dir}" in (run_dir / "train.log").read_text()
    assert signal.getsignal(number) is before


def test_a_second_interrupt_stops_at_once(
    tiny_train_config: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def twice(callback: Any) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    run_dir = tmp_path / "run"
    interrupt_at(monkeypatch, 5, twice)
    before = signal.getsignal(signal.SIGINT)
    assert train(tiny_train_config(run_dir)) == 130
    assert "last finished epoch" in (run_dir / "train.log").read_text()
    assert last_checkpoint(run_dir)["global_step"] == 4
    assert signal.getsignal(signal.SIGINT) is before


def test_true_takes_the_latest_run(
    tiny_train_config: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, age_seconds in (("b-newer", 0), ("a-older", 100)):
        with monkeypatch.context() as patched:
            interrupt_at(patched, 0, request)
            assert train(tiny_train_config(tmp_path / name)) == 130
        path = tmp_path / name / "checkpoints" / "last.ckpt"
        os.utime(path, (time.time() - age_seconds,) * 2)
    assert train(tiny_train_config(tmp_path / "new", "resume=true")) == 0
    assert (tmp_path / "b-newer" / "report.json").exists()
    assert not (tmp_path / "a-older" / "report.json").exists()


def refusal(config: Any, kind: type[AsrError]) -> str:
    with pytest.raises(kind) as caught:
        train(config)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_changed_options_are_refused_by_name(tiny_train_config: Compose, tiny_run: Path) -> None:
    message = refusal(
        tiny_train_config(tiny_run, f"resume={tiny_run}", "model.rnn_size=8", "seed=4"), ConfigError
    )
    assert "model.rnn_size: 16 → 8" in message
    assert "seed: 0 → 4" in message
    assert "rnn_layers" not in message


def test_changed_manifests_are_refused_by_name(
    tiny_train_config: Compose, tiny_corpus: Any, tmp_path: Path
) -> None:
    manifest = tiny_corpus.write(tmp_path / "train.jsonl", tiny_corpus.lines("train"))
    options = [f"data.train={manifest}", "trainer.max_epochs=1"]
    assert train(tiny_train_config(tmp_path / "run", *options)) == 0
    tiny_corpus.write(manifest, tiny_corpus.lines("train")[1:])
    message = refusal(tiny_train_config(tmp_path / "x", *options, f"resume={tmp_path / 'run'}"), ConfigError)
    assert str(manifest) in message
    assert "dev.jsonl" not in message


def test_changed_noise_is_refused_by_name(
    tiny_train_config: Compose, noise_folder: Path, tmp_path: Path
) -> None:
    noise = shutil.copytree(noise_folder, tmp_path / "noise")
    options = ["augment.noise_probability=0.5", f"augment.noise={noise}", "trainer.max_epochs=1"]
    assert train(tiny_train_config(tmp_path / "run", *options)) == 0
    (noise / "steady.wav").unlink()
    message = refusal(tiny_train_config(tmp_path / "x", *options, f"resume={tmp_path / 'run'}"), ConfigError)
    assert str(noise) in message


def test_how_long_may_change(tiny_train_config: Compose, tiny_run: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(tiny_run, copy)
    assert train(tiny_train_config(copy, f"resume={copy}", "trainer.max_epochs=3")) == 0
    assert last_checkpoint(copy)["global_step"] == 12


def test_steps_are_counted_as_before(tiny_train_config: Compose, tiny_run: Path) -> None:
    config = tiny_train_config(tiny_run, f"resume={tiny_run}", "trainer.accumulate_batches=2")
    assert "trainer.accumulate_batches: 1 → 2" in refusal(config, ConfigError)


@pytest.mark.parametrize(("before", "after"), [(1, 3), (3, 5), (3, 4), (3, 3)])
def test_going_on_after_a_last_epoch_that_was_validated_out_of_turn(
    tiny_train_config: Compose, tmp_path: Path, before: int, after: int
) -> None:
    run_dir, options = tmp_path / "run", ["trainer.validate_every_epochs=2"]
    assert train(tiny_train_config(run_dir, *options, f"trainer.max_epochs={before}")) == 0
    assert (
        train(tiny_train_config(run_dir, *options, f"trainer.max_epochs={after}", f"resume={run_dir}")) == 0
    )
    assert last_checkpoint(run_dir)["global_step"] == 4 * after
    rows = [line.split(",")[:2] for line in (run_dir / "metrics.csv").read_text().splitlines()[1:]]
    steps = [int(step) for step, _ in rows]
    trained = {step for step in steps if step < 4 * after}
    assert trained == set(range(4 * after))


def test_a_torn_file_of_metrics_is_mended(tiny_train_config: Compose, tiny_run: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(tiny_run, tmp_path / "copy")
    metrics = copy / "metrics.csv"
    whole = metrics.read_text()
    metrics.write_bytes(whole.encode() + b"8,2,0.5\n1\x00\x00\x00\xff")
    assert train(tiny_train_config(copy, f"resume={copy}", "trainer.max_epochs=3")) == 0
    assert metrics.read_text().startswith(whole)
    assert len(metrics.read_text().splitlines()) == len(whole.splitlines()) * 3 // 2


def test_averages_of_a_finished_run_stay(tiny_train_config: Compose, tmp_path: Path) -> None:
    run_dir, options = tmp_path / "run", ["trainer.average_best=2"]
    assert train(tiny_train_config(run_dir, *options)) == 0
    before = (run_dir / "checkpoints" / "average.ckpt").read_bytes()
    for path in (run_dir / "checkpoints").glob("epoch-*.ckpt"):
        path.unlink()
    assert train(tiny_train_config(run_dir, *options, f"resume={run_dir}")) == 0
    assert (run_dir / "checkpoints" / "average.ckpt").read_bytes() == before
    assert "average.ckpt is not made: epoch-" in (run_dir / "train.log").read_text()


def test_a_longer_schedule_is_announced(tiny_train_config: Compose, tiny_run: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(tiny_run, tmp_path / "copy")
    assert train(tiny_train_config(copy, f"resume={copy}", "trainer.max_epochs=3")) == 0
    assert "which spanned 2 epochs, now spans 3" in (copy / "train.log").read_text()


def test_an_old_average_does_not_outlive_its_training(tiny_train_config: Compose, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    assert train(tiny_train_config(run_dir, "trainer.average_best=2")) == 0
    assert (run_dir / "checkpoints" / "average.ckpt").exists()
    assert train(tiny_train_config(run_dir, f"resume={run_dir}", "trainer.max_epochs=3")) == 0
    assert not (run_dir / "checkpoints" / "average.ckpt").exists()
    assert json.loads((run_dir / "report.json").read_text())["provenance"]["checkpoint"]["path"].endswith(
        "best.ckpt"
    )


def test_an_epoch_that_was_stopped_and_gone_on_with_is_averaged_once(
    tiny_train_config: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_dir, options = tmp_path / "run", ["trainer.max_epochs=3", "trainer.average_best=3"]

    def stop(callback: Any, trainer: Any, *unused: Any) -> None:
        trainer.should_stop = trainer.global_step == 6  # in the middle of the second epoch

    with monkeypatch.context() as patched:
        patched.setattr(Timer, "on_train_batch_end", stop)
        assert train(tiny_train_config(run_dir, *options, "trainer.max_minutes=100")) == 0
    assert last_checkpoint(run_dir)["global_step"] == 6
    assert train(tiny_train_config(run_dir, *options, f"resume={run_dir}")) == 0
    average = torch.load(run_dir / "checkpoints" / "average.ckpt", weights_only=True)
    names = [name for name, _ in average["recipe"]["provenance"]["average_of"]]
    assert sorted(names) == ["epoch-0001.ckpt", "epoch-0002.ckpt", "epoch-0003.ckpt"]


def test_patience_is_that_of_the_command(tiny_train_config: Compose, tmp_path: Path) -> None:
    run_dir, options = tmp_path / "run", ["optimizer.learning_rate=1e-12", "trainer.max_epochs=20"]

    def steps(patience: int, *more: str) -> int:
        early = f"trainer.early_stopping_epochs={patience}"
        assert train(tiny_train_config(run_dir, *options, early, *more)) == 0
        return last_checkpoint(run_dir)["global_step"] // 4

    assert steps(2) == 3
    assert "stopped: no lower dev WER in 2 epochs" in (run_dir / "train.log").read_text()
    assert steps(2, f"resume={run_dir}") == 3  # it had stopped
    assert steps(5, f"resume={run_dir}") == 6
    assert steps(4, f"resume={run_dir}") == 6


def test_metrics_of_steps_that_are_trained_again_are_dropped(
    tiny_train_config: Compose,
    whole_run: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As after a power cut: rows were written that no checkpoint knows of."""

    def steps(run_dir: Path) -> list[str]:
        return [line.split(",")[0] for line in (run_dir / "metrics.csv").read_text().splitlines()]

    def fail(callback: Any) -> None:
        raise RuntimeError("power cut")

    run_dir = tmp_path / "run"
    for batch_number, resume in ((2, []), (7, []), (None, [f"resume={run_dir}"])):
        with monkeypatch.context() as patched:
            if batch_number is not None:
                interrupt_at(patched, batch_number, fail)
                with pytest.raises(RuntimeError, match="power cut"):
                    train(tiny_train_config(run_dir, *RANDOM))
            else:
                assert train(tiny_train_config(run_dir, *RANDOM, *resume)) == 0
    assert steps(run_dir) == steps(whole_run())


def test_two_trainings_do_not_share_a_run_directory(
    tiny_train_config: Compose, tiny_run: Path, tmp_path: Path
) -> None:
    holder = "import sys\nfrom pathlib import Path\nfrom asr.runs import held\n"
    holder += "with held(Path(sys.argv[1])):\n    print(flush=True)\n    input()"
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    command = [sys.executable, "-c", holder, str(run_dir)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        assert "another training" in refusal(tiny_train_config(run_dir), TrainingError)
        process.kill()
    assert train(tiny_train_config(run_dir)) == 0  # the lock has gone with its process


def test_nothing_to_go_on_from(tiny_train_config: Compose, tiny_run: Path, tmp_path: Path) -> None:
    message = refusal(tiny_train_config(tmp_path / "runs" / "x", "resume=true"), CheckpointError)
    assert str(tmp_path / "runs") in message
    message = refusal(tiny_train_config(tmp_path / "x", f"resume={tmp_path / 'gone'}"), CheckpointError)
    assert "gone" in message
    stray = tmp_path / "stray.ckpt"
    shutil.copy(tiny_run / "checkpoints" / "last.ckpt", stray)
    message = refusal(tiny_train_config(tmp_path / "x", f"resume={stray}"), CheckpointError)
    assert "not in a run directory" in message
    stray.write_bytes(b"")
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    stray.rename(tmp_path / "run" / "checkpoints" / "last.ckpt")
    message = refusal(tiny_train_config(tmp_path / "x", f"resume={tmp_path / 'run'}"), CheckpointError)
    assert "damaged" in message


def test_a_run_directory_is_not_used_twice(tiny_train_config: Compose, tiny_run: Path) -> None:
    before = (tiny_run / "checkpoints" / "last.ckpt").read_bytes()
    assert f"resume={tiny_run}" in refusal(tiny_train_config(tiny_run), TrainingError)
    assert (tiny_run / "checkpoints" / "last.ckpt").read_bytes() == before


def test_resume_command_can_be_pasted(monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ["data.train=my calls/train.jsonl", "resume=old run", "run_dir=here", "seed=3"]
    monkeypatch.setattr(sys, "argv", ["asr-train", *arguments])
    assert (
        resume_command(Path("new run"))
        == "asr-train 'data.train=my calls/train.jsonl' seed=3 'resume=new run'"
    )


def test_saves_now_and_then_within_an_epoch(
    tiny_train_config: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def steps_saved(every_minutes: str) -> list[int]:
        steps: list[int] = []
        with monkeypatch.context() as patched:
            patched.setattr(SaveBetween, "_save", lambda callback, trainer: steps.append(trainer.global_step))
            name = f"run-{every_minutes}"
            assert (
                train(tiny_train_config(tmp_path / name, f"trainer.save_every_minutes={every_minutes}")) == 0
            )
        return steps

    assert steps_saved("1e-9") == [
        1,
        2,
        3,
        5,
        6,
        7,
    ]  # an epoch has 4 steps, its last one ends with a validation
    assert steps_saved("10") == steps_saved("null") == []


KILL_IN_STEP = """
import os, signal, sys
from asr import train
from asr.callbacks import SaveBetween

def on_train_batch_start(callback, trainer, *unused):
    if trainer.fit_loop.epoch_loop.total_batch_idx == {batch_number}:
        os.kill(os.getpid(), signal.SIGKILL)

SaveBetween.on_train_batch_start = on_train_batch_start
sys.exit(train.main())
"""


@pytest.mark.slow
@pytest.mark.parametrize("batch_number", [6])
def test_killed_and_resumed_is_bit_identical(
    tiny_train_options: list[str],
    tiny_train_config: Compose,
    whole_run: Callable[..., Path],
    tmp_path: Path,
    batch_number: int,
) -> None:
    """SIGKILL leaves no time to save anything: the run goes on from what it saved by the clock."""
    run_dir = tmp_path / "run"
    options = [*RANDOM, "trainer.ema_decay=0.9"]
    command = [*tiny_train_options, *options, f"run_dir={run_dir}", "trainer.save_every_minutes=1e-9"]
    script = KILL_IN_STEP.format(batch_number=batch_number)
    killed = subprocess.run([sys.executable, "-c", script, *command], capture_output=True, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    assert last_checkpoint(run_dir)["global_step"] == batch_number
    assert train(tiny_train_config(run_dir, *options, f"resume={run_dir}")) == 0
    found, expected = last_checkpoint(run_dir), last_checkpoint(whole_run("trainer.ema_decay=0.9"))
    for part in ("state_dict", "trained_weights", "optimizer_states", "lr_schedulers"):
        assert_identical(found[part], expected[part], part)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_to_all_processes(tiny_train_options: list[str], tmp_path: Path, number: int) -> None:
    """The terminal's Ctrl-C goes to every process of the group, loaders included, and so does a scheduler's SIGTERM."""
    command = [sys.executable, "-m", "asr.train", *tiny_train_options, f"run_dir={tmp_path / 'run'}"]
    process = subprocess.Popen(
        [*command, "data.num_workers=1", "trainer.max_epochs=100000"],
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )
    assert process.stderr is not None
    try:
        while "epoch 2/" not in process.stderr.readline():
            assert process.poll() is None
        os.killpg(process.pid, number)
        _, messages = process.communicate(timeout=120)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 130, messages
    assert "Traceback" not in messages
    assert messages.count("press Ctrl-C again") == 1
    assert f"resume={tmp_path / 'run'}" in messages
    assert last_checkpoint(tmp_path / "run")["global_step"] >= 8
