"""Every preset in conf/experiment, shrunk to seconds: all of its parts are switched on, and it learns."""

from pathlib import Path
from typing import Any

import pytest
from conftest import compose_config

from asr.config import PrepareConfig, TrainConfig
from asr.errors import CheckpointError, ManifestError
from asr.prepare import prepare
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
FIRST_TRAININGS = {"an4-best": "an4"}


@pytest.mark.slow
@pytest.mark.parametrize("preset", PRESETS)
def test_miniature_of_a_preset_learns(preset: str, tiny_corpus: Any, tmp_path: Path) -> None:
    learned = tiny_corpus.manifest("train")

    def learn(preset: str, *options: str) -> Path:
        run = tmp_path / preset
        common = [f"experiment={preset}", f"data.dev={learned}", f"run_dir={run}", *SMALLER]
        assert train(compose_config("train", TrainConfig, [*common, *options])) == 0
        return run

    if preset in FIRST_TRAININGS:
        first = learn(FIRST_TRAININGS[preset], f"data.train={learned}") / "checkpoints" / "last.ckpt"
        spliced = tmp_path / "spliced"
        places = [f"source={tiny_corpus.folder}", f"output={spliced}", f"checkpoint={first}"]
        prepare(compose_config("prepare", PrepareConfig, ["corpus=spliced", *places]))
        run = learn(preset, f"data.train={spliced / 'train.jsonl'}", f"init_from={first}")
    else:
        run = learn(preset, f"data.train={learned}")
    report = read_report(run / "report.json")
    assert report.num_utterances == 8
    assert report.cer < 0.2


def test_a_preset_with_a_first_training_says_what_is_missing(
    tiny_corpus: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ManifestError, match=r"asr\.prepare corpus=spliced .*checkpoint=runs/an4-first"):
        train(compose_config("train", TrainConfig, ["experiment=an4-best", "run_dir=run"]))
    manifests = [f"data.{split}={tiny_corpus.manifest('train')}" for split in ("train", "dev")]
    with pytest.raises(CheckpointError, match=r"runs/an4-first"):
        train(compose_config("train", TrainConfig, ["experiment=an4-best", "run_dir=run", *manifests]))
    assert not Path("run").exists()
