"""Beginning with another model's weights: what fits is taken over, by name, shape and token."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from conftest import TinyCorpus, compose_config

from asr.build import make_acoustic_model
from asr.config import BiLstmConfig, EvaluateConfig, LogMelConfig
from asr.errors import CheckpointError
from asr.evaluate import evaluate
from asr.firewall import TunedSplitError
from asr.models.acoustic import AcousticModel
from asr.report.json_report import read_report
from asr.tokenizer import CharTokenizer
from asr.train import main as train_command
from asr.train import train
from asr.warm_start import take_over

Compose = Callable[..., Any]


def make(tokenizer: CharTokenizer, seed: int, **options: Any) -> AcousticModel:
    torch.manual_seed(seed)
    sizes = {"conv_channels": [4], "conv_kernels": [[3, 3]], "conv_strides": [[2, 2]], "rnn_size": 6}
    model = BiLstmConfig(**({"rnn_layers": 1, **sizes} | options))
    return make_acoustic_model(LogMelConfig(num_mels=16), model, tokenizer.vocab_size)


def test_rows_of_the_output_layer_go_by_token() -> None:
    old, new = CharTokenizer(list(" abc")), CharTokenizer(list(" bcdé"), blank_id=5)
    theirs, mine = make(old, 0), make(new, 1)
    fresh = mine.encoder.output.weight.clone()
    report = take_over(theirs.state_dict(), old.tokens, mine, new)
    for row, token in enumerate(new.tokens):
        expected = (
            theirs.encoder.output.weight[old.tokens.index(token)] if token in old.tokens else fresh[row]
        )
        assert torch.equal(mine.encoder.output.weight[row], expected), token
    assert torch.equal(
        mine.encoder.rnns[0].forward_lstm.weight_hh_l0, theirs.encoder.rnns[0].forward_lstm.weight_hh_l0
    )
    assert report.new_tokens == ("d", "é")
    assert report.known_tokens == 4  # blank, space, b, c
    assert "'d' 'é'" in report.lines()[0]


def test_what_does_not_fit_is_named() -> None:
    tokenizer = CharTokenizer(list(" abc"))
    theirs, mine = make(tokenizer, 0, rnn_layers=2), make(tokenizer, 1, rnn_size=5)
    report = take_over(theirs.state_dict(), tokenizer.tokens, mine, tokenizer)
    assert any("weight_hh_l0" in name for name in report.other_shape)
    assert report.absent == ()
    assert all(name.startswith(("encoder.rnns.1", "encoder.norms.1")) for name in report.unused)
    assert set(report.taken) | set(report.other_shape) == set(mine.state_dict())
    text = "\n".join(report.lines())
    assert all(name in text for name in (*report.other_shape, *report.unused))


def test_nothing_fits() -> None:
    tokenizer = CharTokenizer(list(" abc"))
    with pytest.raises(CheckpointError, match="no layer"):
        take_over({"other.weight": torch.zeros(3)}, tokenizer.tokens, make(tokenizer, 0), tokenizer)


def test_training_begins_with_them(tiny_train_config: Compose, tiny_run: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    assert train(tiny_train_config(run_dir, f"init_from={tiny_run}", "optimizer.learning_rate=1e-12")) == 0
    before, after = (
        torch.load(path / "checkpoints" / name, weights_only=True)["state_dict"]
        for path, name in ((tiny_run, "best.ckpt"), (run_dir, "last.ckpt"))
    )
    for name, tensor in before.items():
        if "running" not in name and "num_batches" not in name:
            torch.testing.assert_close(after[name], tensor, rtol=1e-6, atol=1e-8)
    assert "tensors taken over" in (run_dir / "train.log").read_text()


@pytest.fixture
def warm_run(
    tiny_corpus: TinyCorpus, tiny_train_config: Compose, tiny_run: Path, tmp_path: Path
) -> Callable[[str], Path]:
    """``warm_run(name)``: a training on one of the tiny utterances that begins with that checkpoint of the tiny run."""

    def train_from(name: str) -> Path:
        run_dir = tmp_path / f"from-{name}"
        manifest = tiny_corpus.write(tmp_path / "one.jsonl", tiny_corpus.lines("train")[:1])
        first = tiny_run / "checkpoints" / name
        options = [f"init_from={first}", f"data.train={manifest}", f"data.dev={manifest}"]
        assert train(tiny_train_config(run_dir, *options)) == 0
        return run_dir

    return train_from


def test_what_the_first_training_used_is_not_forgotten(
    warm_run: Callable[[str], Path], tiny_corpus: TinyCorpus, tmp_path: Path
) -> None:
    """Neither what it has learned from nor what its dev set chose, by the training that begins with its weights."""

    def evaluated(run_dir: Path, split: str, *options: str) -> str:
        one = tmp_path / "one.jsonl"
        given = [f"checkpoint={run_dir}", f"manifest={tiny_corpus.manifest(split)}", "html=false", *options]
        given += [f"output={tmp_path / 'out'}", "data=custom", f"data.train={one}", f"data.dev={one}"]
        assert evaluate(compose_config("evaluate", EvaluateConfig, given)) == 0
        use = read_report(tmp_path / "out" / "report.json").data_use
        assert use is not None
        return " | ".join(notice.text for notice in use.notices)

    from_best, from_last = warm_run("best.ckpt"), warm_run("last.ckpt")
    assert "learned from these very utterances" in evaluated(from_best, "train")
    with pytest.raises(TunedSplitError, match="lowest WER of the training before"):
        evaluated(from_best, "dev", "split=test")
    assert "chose" not in evaluated(from_last, "dev", "split=test")  # the last weights were not chosen by it


def test_a_resumed_training_remembers_what_it_began_with(
    warm_run: Callable[[str], Path], tiny_corpus: TinyCorpus, tiny_train_config: Compose, tmp_path: Path
) -> None:
    run_dir = warm_run("best.ckpt")
    before = (run_dir / "config.yaml").read_text(), json.loads((run_dir / "provenance.json").read_text())
    manifest = tmp_path / "one.jsonl"
    options = [f"data.train={manifest}", f"data.dev={manifest}", f"resume={run_dir}"]
    for longer, init_from in (("4", []), ("6", ["init_from=gone"])):  # as a preset may have it
        assert train(tiny_train_config(run_dir, *options, f"trainer.max_epochs={longer}", *init_from)) == 0
        config, provenance = (
            (run_dir / "config.yaml").read_text(),
            json.loads((run_dir / "provenance.json").read_text()),
        )
        assert yaml.safe_load(config)["init_from"] == yaml.safe_load(before[0])["init_from"]
        assert provenance["learned_before"] == before[1]["learned_before"] != []
        assert provenance["choices"] == before[1]["choices"]


def test_not_together_with_resume(
    monkeypatch: pytest.MonkeyPatch,
    tiny_run: Path,
    tiny_train_options: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "argv", ["train.py", *tiny_train_options, "init_from=a", f"resume={tiny_run}"])
    assert train_command() == 2
    assert "give one of them" in capsys.readouterr().err
