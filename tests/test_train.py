"""Training: what a run leaves behind, that its options do what they say, and what it refuses."""

import copy
import csv
import dataclasses
import hashlib
import importlib.metadata
import io
import itertools
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib.image
import pytest
import torch
import yaml

from asr import __version__
from asr.callbacks import SaveBetween
from asr.dev_pictures import DevPictures
from asr.errors import AsrError, ConfigError, ManifestError, TrainingError
from asr.module import CtcModule, StepResult
from asr.report.json_report import read_report
from asr.report.terminal import escape_markdown
from asr.train import train

Compose = Callable[..., Any]
ONE_EPOCH = "trainer.max_epochs=1"
PLAIN_SGD = [
    *("optimizer=sgd", "optimizer.momentum=0", "optimizer.nesterov=false", "optimizer.learning_rate=0.5"),
    *("schedule=constant", "features.dither=0", "model.dropout=0", "trainer.precision=32", ONE_EPOCH),
]


def metrics(run_dir: Path) -> list[dict[str, str]]:
    with open(run_dir / "metrics.csv", newline="") as file:
        return list(csv.DictReader(file))


def last_checkpoint(run_dir: Path) -> dict[str, Any]:
    return torch.load(run_dir / "checkpoints" / "last.ckpt", weights_only=True)


def refusal(config: Any, kind: type[AsrError]) -> str:
    with pytest.raises(kind) as caught:
        train(config)
    message = str(caught.value)
    assert "\n" not in message
    return message


def at_batches(
    monkeypatch: pytest.MonkeyPatch, when: str, action: Callable[[CtcModule, Any, int], None]
) -> None:
    """Do ``action(module, batch, batch_number)`` at the start or end of every training batch."""

    def at_start(callback: Any, trainer: Any, module: CtcModule, batch: Any, number: int) -> None:
        action(module, batch, number)

    def at_end(callback: Any, trainer: Any, module: CtcModule, output: Any, batch: Any, number: int) -> None:
        action(module, batch, number)

    monkeypatch.setattr(SaveBetween, f"on_train_batch_{when}", at_start if when == "start" else at_end)


# ------------------------------------------------------------------ the run directory


def test_run_directory_tells_everything(tiny_run: Path, tiny_train_config: Compose, tiny_corpus: Any) -> None:
    config = yaml.safe_load((tiny_run / "config.yaml").read_text())
    assert config == dataclasses.asdict(tiny_train_config(tiny_run))
    provenance = json.loads((tiny_run / "provenance.json").read_text())
    assert provenance["asr"] == __version__
    assert provenance["packages"]["torch"] == importlib.metadata.version("torch")
    for split in ("train", "dev"):
        digest = hashlib.sha256(tiny_corpus.manifest(split).read_bytes()).hexdigest()
        assert provenance["manifests"][split]["sha256"] == digest
    assert (tiny_run / "command.sh").read_text().strip() == provenance["command"]
    assert (tiny_run / "excluded.jsonl").read_text() == ""
    report = read_report(tiny_run / "report.json")
    assert report.num_utterances == 4
    assert all(result.attribution is not None for result in report.utterances if result.counts.num_errors)
    rate = f"{100 * report.wer:.2f} %"
    assert rate in (tiny_run / "report.html").read_text(encoding="utf-8")
    assert rate in (tiny_run / "report.md").read_text(encoding="utf-8")
    log = (tiny_run / "train.log").read_text()
    assert "epoch 2/2" in log
    assert "said  ad bc" in log  # decoded dev samples
    assert sorted(path.name for path in (tiny_run / "checkpoints").iterdir()) == ["best.ckpt", "last.ckpt"]


def test_metrics_file_has_a_row_for_every_step_and_validation(tiny_run: Path) -> None:
    rows = metrics(tiny_run)
    steps = [row for row in rows if row["train/loss"]]
    validations = [row for row in rows if row["dev/wer"]]
    assert [int(row["step"]) for row in steps] == list(range(8))
    assert [(int(row["step"]), int(row["epoch"])) for row in validations] == [(4, 0), (8, 1)]
    for row in steps:
        assert float(row["train/loss"]) > 0
        assert float(row["train/gradient_norm"]) > 0
        assert 0 <= float(row["train/blank_rate"]) <= 1
    rates = [float(row["train/learning_rate"]) for row in steps]
    assert max(rates) <= 1e-3  # one cycle: up to the configured rate and down
    assert rates.index(max(rates)) in {1, 2}
    assert rates[-1] < 1e-6
    for row in validations:
        assert float(row["train/frames_per_second"]) > 0
        assert float(row["dev/loss"]) > 0
        assert 0 <= float(row["dev/blank_rate"]) <= 1
    assert float(validations[-1]["dev/cer"]) > 0


def test_logged_loss_and_gradient_norm_are_those_of_the_step(
    tiny_train_config: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected: list[tuple[float, float]] = []

    def measure(module: CtcModule, batch: Any, number: int) -> None:
        loss, gradients = by_hand(module, batch)
        expected.append((loss, math.sqrt(sum(float(g.square().sum()) for g in gradients))))

    at_batches(monkeypatch, "start", measure)
    train(tiny_train_config(tmp_path / "run", *PLAIN_SGD))
    found = [row for row in metrics(tmp_path / "run") if row["train/loss"]]
    for row, (loss, norm) in zip(found, expected, strict=True):
        assert float(row["train/loss"]) == pytest.approx(loss, rel=1e-4)
        assert float(row["train/gradient_norm"]) == pytest.approx(norm, rel=1e-3)


def tensorboard_events(run_dir: Path) -> Any:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run_dir / "tensorboard"), size_guidance={"images": 0, "tensors": 0})
    events.Reload()
    return events


@pytest.mark.parametrize("choice", ["tensorboard", "none"])
def test_loggers_write_what_they_are_asked_to(
    tiny_train_config: Compose, tmp_path: Path, choice: str
) -> None:
    wanted = choice == "tensorboard"
    run_dir = tmp_path / "run"
    train(tiny_train_config(run_dir, ONE_EPOCH, f"logger.tensorboard={wanted}", "logger.csv=false"))
    assert not (run_dir / "metrics.csv").exists()
    assert (run_dir / "tensorboard").exists() is wanted
    if wanted:
        events = tensorboard_events(run_dir)
        names = ("loss", "gradient_norm", "learning_rate", "blank_rate", "frames_per_second")
        assert {f"train/{name}" for name in names} <= set(events.Tags()["scalars"])
        assert {"dev/wer", "dev/cer", "dev/loss", "dev/blank_rate"} <= set(events.Tags()["scalars"])
        assert len(events.Scalars("train/loss")) == 4


def test_tensorboard_shows_what_was_heard_and_where(tiny_train_config: Compose, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    every_second = ["trainer.max_epochs=3", "logger.num_pictures=2", "logger.picture_every_validations=2"]
    every_second.append("logger.tensorboard=true")
    train(tiny_train_config(run_dir, *every_second, "trainer.num_dev_samples=1", "trainer.ema_decay=0.5"))
    events = tensorboard_events(run_dir)
    assert set(events.Tags()["images"]) == {"dev/1", "dev/2"}
    drawn = {name: events.Images(name) for name in ("dev/1", "dev/2")}
    assert [image.step for image in drawn["dev/1"]] == [4, 8]  # after the first epoch and the second
    pixels = [matplotlib.image.imread(io.BytesIO(image.encoded_image_string)) for image in drawn["dev/1"]]
    assert pixels[0].std() > 0.05
    assert (pixels[0] != pixels[1]).any()  # the model has learned something in between
    texts = events.Tensors("dev/samples/text_summary")
    assert [text.step for text in texts] == [4, 8, 12]
    last = texts[-1].tensor_proto.string_val[0].decode()
    report = read_report(run_dir / "report.json")
    assert any(f"**{escape_markdown(result.id)}**" in last for result in report.utterances)
    assert "REF " in last
    assert "HYP " in last


def test_tensorboard_shows_figures_only_when_asked_to(tiny_train_config: Compose, tmp_path: Path) -> None:
    without = ["logger.num_pictures=0", "trainer.num_dev_samples=0"]
    train(tiny_train_config(tmp_path / "run", ONE_EPOCH, *without, "logger.tensorboard=true"))
    tags = tensorboard_events(tmp_path / "run").Tags()
    assert "dev/wer" in tags["scalars"]
    assert tags["images"] == []
    assert tags["tensors"] == []


def test_pictures_are_of_the_model_that_was_validated(
    tiny_train_config: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With averaged weights those are exchanged for the validation only."""
    averages, drawn = [], []

    def weight_of(module: CtcModule) -> torch.Tensor:
        return next(module.acoustic_model.parameters()).detach().clone()

    at_validation = CtcModule.on_validation_epoch_start
    monkeypatch.setattr(
        CtcModule,
        "on_validation_epoch_start",
        lambda module: (averages.append(weight_of(module)), at_validation(module))[1],
    )
    show = DevPictures.on_validation_epoch_end
    monkeypatch.setattr(
        DevPictures,
        "on_validation_epoch_end",
        lambda self, trainer, module: (drawn.append(weight_of(module)), show(self, trainer, module))[1],
    )
    train(tiny_train_config(tmp_path / "run", ONE_EPOCH, "trainer.ema_decay=0.9", "logger.tensorboard=true"))
    assert torch.equal(averages[0], drawn[0])


def test_log_every_steps(tiny_train_config: Compose, tmp_path: Path) -> None:
    train(tiny_train_config(tmp_path / "run", ONE_EPOCH, "trainer.log_every_steps=3"))
    rows = [row for row in metrics(tmp_path / "run") if row["train/loss"]]
    assert [row["step"] for row in rows] == ["0", "3"]


# ------------------------------------------------------------------ steps


def by_hand(module: CtcModule, batch: Any) -> tuple[float, list[torch.Tensor]]:
    """Loss per label and gradients with torch's own CTC, on a copy of the model."""
    model = copy.deepcopy(module.acoustic_model).train()
    emissions = model(batch.waveforms, batch.waveform_lengths)
    loss = torch.nn.functional.ctc_loss(
        emissions.log_probs.transpose(0, 1),
        batch.targets,
        emissions.log_prob_lengths,
        batch.target_lengths,
        blank=module.blank_id,
        reduction="sum",
    )
    loss = loss / batch.target_lengths.sum()
    return float(loss.detach()), list(torch.autograd.grad(loss, list(model.parameters())))


def weights(module: CtcModule) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in module.acoustic_model.named_parameters()}


def test_accumulated_step_is_that_of_one_large_batch(
    tiny_train_config: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gradients: list[list[torch.Tensor]] = []
    states: list[dict[str, torch.Tensor]] = []
    num_labels: list[int] = []

    def at_start(module: CtcModule, batch: Any, number: int) -> None:
        states.append(weights(module))
        gradients.append(by_hand(module, batch)[1])
        num_labels.append(int(batch.target_lengths.sum()))

    at_batches(monkeypatch, "start", at_start)
    options = ["trainer.accumulate_batches=4", "trainer.gradient_clip_norm=1e9"]
    train(tiny_train_config(tmp_path / "run", *PLAIN_SGD, *options))
    checkpoint = last_checkpoint(tmp_path / "run")
    assert checkpoint["global_step"] == 1
    names = states[0].keys()
    assert len(set(num_labels)) > 1  # so that a mean of means would be another step
    shares = [number / sum(num_labels) for number in num_labels]
    for name, of_batches in zip(names, zip(*gradients, strict=True), strict=True):
        mean = sum(share * gradient for share, gradient in zip(shares, of_batches, strict=True))
        expected = states[0][name] - 0.5 * mean
        found = checkpoint["state_dict"][f"acoustic_model.{name}"]
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


def test_clipping_bounds_the_step(
    tiny_train_config: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    states: list[dict[str, torch.Tensor]] = []
    at_batches(monkeypatch, "start", lambda module, batch, number: states.append(weights(module)))
    train(tiny_train_config(tmp_path / "run", *PLAIN_SGD, "trainer.gradient_clip_norm=0.01"))
    for before, after in itertools.pairwise(states):
        change = sum(float((after[name] - before[name]).square().sum()) for name in before)
        assert math.sqrt(change) == pytest.approx(0.5 * 0.01, rel=1e-3)  # learning rate x norm
    assert float(metrics(tmp_path / "run")[0]["train/gradient_norm"]) > 0.01  # logged before clipping


def spoil_loss(monkeypatch: pytest.MonkeyPatch, utterance_id: str) -> None:
    """The loss of one utterance is not a number."""
    true_step = CtcModule.shared_step

    def shared_step(self: CtcModule, batch: Any) -> StepResult:
        result = true_step(self, batch)
        if utterance_id not in batch.utterance_ids:
            return result
        losses = result.losses.clone()
        losses[batch.utterance_ids.index(utterance_id)] = torch.nan
        return result._replace(losses=losses, loss=losses.sum())

    monkeypatch.setattr(CtcModule, "shared_step", shared_step)


def spoil_gradient(monkeypatch: pytest.MonkeyPatch, utterance_id: str) -> None:
    """The loss is finite, its gradient is not (as that of a square root at 0)."""
    true_step = CtcModule.shared_step

    def shared_step(self: CtcModule, batch: Any) -> StepResult:
        result = true_step(self, batch)
        if utterance_id in batch.utterance_ids and self.training:
            return result._replace(losses=result.losses + (result.losses - result.losses).sqrt())
        return result

    monkeypatch.setattr(CtcModule, "shared_step", shared_step)


@pytest.mark.parametrize("spoil", [spoil_loss, spoil_gradient])
def test_not_finite_stops_and_names_the_utterance(
    tiny_train_config: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spoil: Callable[..., None]
) -> None:
    spoil(monkeypatch, "train-3")
    message = refusal(tiny_train_config(tmp_path / "run"), TrainingError)
    assert "train-3" in message
    assert "trainer.non_finite_loss=skip" in message
    num_named = sum(f"train-{number}" in message for number in range(8))
    assert num_named == (1 if spoil is spoil_loss else 2)  # a gradient belongs to the whole batch


def test_the_layer_where_it_begins_is_named(
    tiny_train_config: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def overflow(module: CtcModule, batch: Any, number: int) -> None:
        with torch.no_grad():
            module.acoustic_model.encoder.rnns[0].backward_lstm.bias_hh_l0[0] = torch.inf
            module.acoustic_model.encoder.rnns[0].backward_lstm.bias_ih_l0[0] = -torch.inf

    at_batches(monkeypatch, "start", overflow)
    message = refusal(tiny_train_config(tmp_path / "run"), TrainingError)
    assert "loss is not finite at step 0 (it begins in encoder.rnns.0.backward_lstm)" in message


def test_the_gradient_where_it_begins_is_named(
    tiny_train_config: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def spoil(module: CtcModule, batch: Any, number: int) -> None:
        if number == 0:  # as if it came back infinite to the output of the LSTM
            for name, parameter in module.acoustic_model.named_parameters():
                if "output" not in name:
                    parameter.register_hook(lambda gradient: gradient * torch.inf)

    at_batches(monkeypatch, "start", spoil)
    message = refusal(tiny_train_config(tmp_path / "run"), TrainingError)
    assert "gradient is not finite at step 0 (it begins in encoder.rnns.0." in message


@pytest.mark.parametrize("spoil", [spoil_loss, spoil_gradient])
def test_skipping_leaves_the_weights_alone(
    tiny_train_config: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spoil: Callable[..., None]
) -> None:
    spoil(monkeypatch, "train-3")
    states: list[tuple[bool, dict[str, torch.Tensor], dict[str, torch.Tensor]]] = []

    def snapshot(module: CtcModule, batch: Any, number: int) -> None:
        buffers = {name: value.clone() for name, value in module.acoustic_model.named_buffers()}
        states.append(("train-3" in batch.utterance_ids, weights(module), buffers))

    at_batches(monkeypatch, "start", snapshot)
    train(tiny_train_config(tmp_path / "run", "trainer.non_finite_loss=skip", "data.max_batch_utterances=1"))
    assert "train-3: step skipped" in (tmp_path / "run" / "train.log").read_text()
    unchanged = []
    for (is_spoiled, before, buffers_before), (_, after, buffers_after) in itertools.pairwise(states):
        same = all(torch.equal(before[name], after[name]) for name in before)
        assert same is is_spoiled
        if is_spoiled and spoil is spoil_loss:
            assert all(torch.equal(buffers_after[name], value) for name, value in buffers_before.items())
        unchanged.append(same)
    assert any(unchanged)


def test_utterance_that_does_not_fit_at_run_time_is_left_out_and_named(
    tiny_train_config: Compose, tiny_corpus: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = tiny_corpus.lines("train")
    lines[2]["text"] = "abcd" * 30
    manifest = tiny_corpus.write(tmp_path / "train.jsonl", lines)
    monkeypatch.setattr("asr.selection.unlearnable", lambda *unused: lambda example: None)
    assert train(tiny_train_config(tmp_path / "run", f"data.train={manifest}")) == 0
    log = (tmp_path / "run" / "train.log").read_text()
    assert log.count("train-2 has too few frames for its labels: left out of the loss") == 1
    assert all(
        math.isfinite(float(row["train/loss"])) for row in metrics(tmp_path / "run") if row["train/loss"]
    )


def test_a_dev_set_without_words_is_refused(
    tiny_train_config: Compose, tiny_corpus: Any, tmp_path: Path
) -> None:
    silent = [{**line, "text": " "} for line in tiny_corpus.lines("dev")]
    config = tiny_train_config(
        tmp_path / "run", f"data.dev={tiny_corpus.write(tmp_path / 'dev.jsonl', silent)}"
    )
    with pytest.raises(TrainingError, match="no utterance has a word"):
        train(config)


# ------------------------------------------------------------------ when it ends


def test_the_log_says_that_the_time_was_over(tiny_train_config: Compose, tmp_path: Path) -> None:
    options = ["trainer.max_minutes=1e-6", "trainer.accumulate_batches=2", "trainer.max_epochs=500"]
    assert train(tiny_train_config(tmp_path / "run", *options)) == 0
    assert "stopped: trainer.max_minutes=1e-06 are over" in (tmp_path / "run" / "train.log").read_text()
    content = last_checkpoint(tmp_path / "run")
    batches = content["loops"]["fit_loop"]["epoch_loop.batch_progress"]["total"]["completed"]
    assert batches == 2 * content["global_step"]  # not within an accumulated step


def test_early_stopping(tiny_train_config: Compose, tmp_path: Path) -> None:
    options = ["optimizer.learning_rate=1e-12", "trainer.max_epochs=20", "trainer.early_stopping_epochs=2"]
    assert train(tiny_train_config(tmp_path / "run", *options)) == 0
    assert last_checkpoint(tmp_path / "run")["global_step"] == 3 * 4  # the best and two without a better one


def test_max_minutes_stops_within_an_epoch_and_still_reports(
    tiny_train_config: Compose, tmp_path: Path
) -> None:
    options = ["trainer.max_minutes=1e-6", "trainer.max_epochs=500", "data.max_batch_utterances=1"]
    for validate_every in (1, 500):
        run_dir = tmp_path / f"run-{validate_every}"
        config = tiny_train_config(run_dir, *options, f"trainer.validate_every_epochs={validate_every}")
        assert train(config) == 0
        assert last_checkpoint(run_dir)["global_step"] < 8
        assert len([row for row in metrics(run_dir) if row["dev/wer"]]) == 1
        assert read_report(run_dir / "report.json").num_utterances == 4


@pytest.mark.parametrize(
    ("max_epochs", "validated"), [(3, ["1", "2"]), (4, ["1", "3"]), (5, ["1", "3", "4"])]
)
def test_the_last_epoch_is_validated_and_kept_whatever_the_interval(
    tiny_train_config: Compose, tmp_path: Path, max_epochs: int, validated: list[str]
) -> None:
    options = [f"trainer.max_epochs={max_epochs}", "trainer.validate_every_epochs=2"]
    assert train(tiny_train_config(tmp_path / "run", *options)) == 0
    assert last_checkpoint(tmp_path / "run")["global_step"] == max_epochs * 4
    assert [row["epoch"] for row in metrics(tmp_path / "run") if row["dev/wer"]] == validated


def test_best_is_the_epoch_with_the_lowest_dev_wer_and_last_the_last(
    tiny_train_config: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wers = iter([0.9, 0.3, 0.6, 0.3])

    def pretend(module: CtcModule) -> None:
        names = ("cer", "loss", "blank_rate", "entropy", "length_ratio")
        module.log_dict({f"dev/{name}": 0.5 for name in names}, logger=False)
        module.log("dev/wer", next(wers), logger=False)

    monkeypatch.setattr(CtcModule, "on_validation_epoch_end", pretend)
    monkeypatch.setattr("asr.train.finish", lambda *unused: 0)
    train(tiny_train_config(tmp_path / "run", "trainer.max_epochs=4"))
    best = torch.load(tmp_path / "run" / "checkpoints" / "best.ckpt", weights_only=True)
    assert best["global_step"] == 8
    assert last_checkpoint(tmp_path / "run")["global_step"] == 16


# ------------------------------------------------------------------ data that cannot be used


def test_kept_and_excluded_are_the_whole_manifest(
    tiny_train_config: Compose, tiny_corpus: Any, tmp_path: Path
) -> None:
    lines = tiny_corpus.lines("train")
    lines[0]["audio_filepath"] = "gone.wav"
    lines[1]["text"] = "  "
    lines[2]["text"] = "abcd" * 30
    lines[3]["duration"] = 100.0
    (tmp_path / "train.jsonl").write_text("")
    manifest = tiny_corpus.write(tmp_path / "train.jsonl", lines)
    options = [f"data.train={manifest}", "data.min_seconds=0.8", ONE_EPOCH]
    short = [line["id"] for line in lines[4:] if line["duration"] < 0.8]
    assert short
    assert train(tiny_train_config(tmp_path / "run", *options)) == 0
    excluded = [json.loads(line) for line in (tmp_path / "run" / "excluded.jsonl").read_text().splitlines()]
    reasons = {line["id"]: line["reason"] for line in excluded}
    assert set(reasons) == {"train-0", "train-1", "train-2", "train-3", *short}
    assert all(line["split"] == "train" for line in excluded)
    assert "gone.wav" in reasons["train-0"]
    assert reasons["train-1"] == "empty text"
    assert "too few frames" in reasons["train-2"]
    assert "100.00 s" in reasons["train-3"]
    assert "data.min_seconds=0.8" in reasons[short[0]]
    log = (tmp_path / "run" / "train.log").read_text()
    assert f"train: {8 - len(reasons)} utterances" in log
    assert f"train: {len(reasons)} utterances" in log


def test_characters_of_dev_that_training_does_not_know_are_named(
    tiny_train_config: Compose, tiny_corpus: Any, tmp_path: Path
) -> None:
    lines = tiny_corpus.lines("dev")
    lines[1]["text"] = "cb ßa"
    manifest = tiny_corpus.write(tmp_path / "dev.jsonl", lines)
    assert train(tiny_train_config(tmp_path / "run", f"data.dev={manifest}", ONE_EPOCH)) == 0
    log = (tmp_path / "run" / "train.log").read_text()
    assert "dev: character unknown to the tokenizer: 'ß'" in log
    assert "dev-1" in log
    assert read_report(tmp_path / "run" / "report.json").num_utterances == 4  # it counts in the WER


def test_missing_manifest_names_the_command_and_leaves_nothing_behind(
    tiny_train_config: Compose, tmp_path: Path
) -> None:
    config = tiny_train_config(tmp_path / "run", "data.train=gone/train.jsonl", "data.prepare_hint=do this")
    message = refusal(config, ManifestError)
    assert "gone/train.jsonl" in message
    assert "do this" in message
    assert not (tmp_path / "run").exists()


def test_empty_manifest(tiny_train_config: Compose, tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("")
    message = refusal(
        tiny_train_config(tmp_path / "run", f"data.dev={tmp_path / 'empty.jsonl'}"), ManifestError
    )
    assert "empty.jsonl" in message


@pytest.mark.parametrize("split", ["train", "dev"])
def test_nothing_usable_says_why(
    tiny_train_config: Compose, tiny_corpus: Any, tmp_path: Path, split: str
) -> None:
    lines = [{**line, "audio_filepath": "gone.wav"} for line in tiny_corpus.lines(split)]
    manifest = tiny_corpus.write(tmp_path / f"{split}.jsonl", lines)
    message = refusal(tiny_train_config(tmp_path / "run", f"data.{split}={manifest}"), TrainingError)
    assert f"no usable utterance in data.{split}={manifest}" in message
    assert "gone.wav" in message


def test_only_empty_texts(tiny_train_config: Compose, tiny_corpus: Any, tmp_path: Path) -> None:
    lines = [{**line, "text": "!"} for line in tiny_corpus.lines("train")]
    manifest = tiny_corpus.write(tmp_path / "train.jsonl", lines)
    assert "text" in refusal(tiny_train_config(tmp_path / "run", f"data.train={manifest}"), AsrError)


def test_unwritable_run_directory(tiny_train_config: Compose, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    message = refusal(tiny_train_config(tmp_path / "file" / "run"), TrainingError)
    assert str(tmp_path / "file" / "run") in message
    assert "run_dir=" in message


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_gpu_wanted_but_not_there(tiny_train_config: Compose, tmp_path: Path) -> None:
    message = refusal(tiny_train_config(tmp_path / "run", "trainer.accelerator=gpu"), ConfigError)
    assert "trainer.accelerator=gpu" in message
    assert not (tmp_path / "run").exists()
