"""The whole chain learns: four utterances by heart, from noise to no error at all."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from asr.report.json_report import read_report
from asr.train import train


def test_four_utterances_are_learned_by_heart(
    tiny_train_config: Callable[..., Any], tiny_corpus: Any, tmp_path: Path
) -> None:
    four = tiny_corpus.write(tmp_path / "four.jsonl", tiny_corpus.lines("train")[:4])
    options = [
        *(f"data.train={four}", f"data.dev={four}", "data.max_batch_utterances=4"),
        *("model.rnn_size=32", "model.conv_channels=[8]", "model.dropout=0", "optimizer.learning_rate=1e-2"),
        *("trainer.max_epochs=150", "trainer.validate_every_epochs=150", "trainer.log_every_steps=50"),
    ]
    assert train(tiny_train_config(tmp_path / "run", *options)) == 0
    report = read_report(tmp_path / "run" / "report.json")
    assert report.wer == 0
    assert report.cer == 0
    assert [result.hypothesis for result in report.utterances] == ["ab cd", "dc ba", "aa bb", "ca db"]
