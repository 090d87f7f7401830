"""Beginning with another model's weights: what fits is taken over, by name, shape and token."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from asr.build import make_acoustic_model
from asr.config import BiLstmConfig, LogMelConfig
from asr.errors import CheckpointError, ConfigError
from asr.models.acoustic import AcousticModel
from asr.tokenizer import CharTokenizer
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


def test_not_together_with_resume(tiny_train_config: Compose, tmp_path: Path) -> None:
    with pytest.raises(Exception, match="give one of them") as caught:
        tiny_train_config(tmp_path, "init_from=a", "resume=b")
    assert isinstance(caught.value, ConfigError) or "ConfigError" in repr(caught.value.__cause__)
