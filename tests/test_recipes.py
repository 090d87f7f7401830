"""Every preset in conf/experiment, shrunk to seconds: all of its parts are switched on, and it learns."""

from pathlib import Path
from typing import Any

import pytest
from conftest import compose_config

from asr.config import TrainConfig
from asr.report.json_report import read_report
from asr.train import train

PRESETS = sorted(path.stem for path in (Path(__file__).parents[1] / "conf" / "experiment").glob("*.yaml"))
# Sizes and rates, not parts: loss, averages, schedule, strides, masks, speeds and noise are those of the preset.
SMALLER = [
    *("model.conv_channels=[8,8]", "model.rnn_size=32", "model.dropout=0.05", "features.sample_rate=8000"),
    *("features.num_mels=40", "optimizer.learning_rate=1e-2", "data.num_workers=0"),
    *("data.max_batch_utterances=4", "trainer.accelerator=cpu", "trainer.precision=32"),
    *("trainer.max_epochs=60", "trainer.validate_every_epochs=60", "trainer.progress_bar=false"),
    *("logger.tensorboard=false", "doctor.cache=null"),
]


@pytest.mark.slow
@pytest.mark.parametrize("preset", PRESETS)
def test_miniature_of_a_preset_learns(preset: str, tiny_corpus: Any, tmp_path: Path) -> None:
    learned = tiny_corpus.manifest("train")
    options = [f"experiment={preset}", f"data.train={learned}", f"data.dev={learned}", *SMALLER]
    assert train(compose_config("train", TrainConfig, [*options, f"run_dir={tmp_path / 'run'}"])) == 0
    report = read_report(tmp_path / "run" / "report.json")
    assert report.num_utterances == 8
    assert report.cer < 0.2
