"""Settings for the whole suite, set before torch is imported, and a tiny corpus to train on."""

import dataclasses
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

# Several test processes share the cores: one thread each, and nothing reaches for a network.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("MPLBACKEND", "Agg")

TINY_RATE = 8000
TINY_TONES = {"a": 400.0, "b": 800.0, "c": 1300.0, "d": 1900.0, " ": None}
TINY_TEXTS = {
    "train": ["ab cd", "dc ba", "aa bb", "ca db", "bd ac", "abcd", "da bc", "cc ad"],
    "dev": ["ad bc", "cb da", "ba", "dd ca"],
}


@dataclasses.dataclass(frozen=True)
class TinyCorpus:
    """A few short utterances in which each letter is a tone of its own."""

    folder: Path

    def manifest(self, split: str) -> Path:
        return self.folder / f"{split}.jsonl"

    def lines(self, split: str) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.manifest(split).read_text(encoding="utf-8").splitlines()]

    def write(self, path: Path, lines: Sequence[dict[str, Any]]) -> Path:
        """Another manifest over the same audio."""
        whole = [{**line, "audio_filepath": str(self.folder / line["audio_filepath"])} for line in lines]
        path.write_text(
            "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in whole), encoding="utf-8"
        )
        return path


def tone_speech(text: str, seed: int) -> np.ndarray:
    """Each letter 0.1 s of its tone and 0.04 s of silence, over faint noise."""
    random = np.random.default_rng(seed)
    time = np.arange(int(0.1 * TINY_RATE)) / TINY_RATE
    pieces = [np.zeros(int(0.08 * TINY_RATE))]
    for character in text:
        hertz = TINY_TONES[character]
        tone = np.zeros_like(time) if hertz is None else 0.3 * np.sin(2 * np.pi * hertz * time)
        pieces += [tone * np.hanning(len(time)), np.zeros(int(0.04 * TINY_RATE))]
    signal = np.concatenate([*pieces, np.zeros(int(0.08 * TINY_RATE))])
    return (signal + 0.003 * random.standard_normal(len(signal))).astype(np.float32)


@pytest.fixture(scope="session")
def tiny_corpus(tmp_path_factory: pytest.TempPathFactory) -> TinyCorpus:
    import soundfile

    folder = tmp_path_factory.mktemp("tiny_corpus")
    for split, texts in TINY_TEXTS.items():
        lines = []
        for number, text in enumerate(texts):
            samples = tone_speech(text, seed=number)
            name = f"{split}-{number}.wav"
            soundfile.write(folder / name, samples, TINY_RATE, subtype="PCM_16")
            duration = round(len(samples) / TINY_RATE, 4)
            speaker = f"s{number % 2}"
            lines.append(
                {
                    "id": name[:-4],
                    "audio_filepath": name,
                    "duration": duration,
                    "text": text,
                    "speaker": speaker,
                }
            )
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return TinyCorpus(folder)


@pytest.fixture(scope="session")
def noise_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Noises of several rates, channel counts and lengths: steady, hum, and one short event in silence."""
    import soundfile

    folder = tmp_path_factory.mktemp("noise")
    random = np.random.default_rng(7)
    steady = 0.1 * random.standard_normal((24000, 2))
    hum = 0.2 * np.sin(2 * np.pi * 120 * np.arange(4410) / 44100)
    event = np.zeros(16000)
    event[9000:9400] = 0.5 * random.standard_normal(400)
    (folder / "short").mkdir()
    soundfile.write(folder / "steady.wav", steady, 16000)
    soundfile.write(folder / "short" / "hum.flac", hum, 44100)
    soundfile.write(folder / "short" / "event.wav", event, 8000)
    return folder


def compose_config(command: str, schema: type, overrides: Sequence[str]) -> Any:
    """The typed configuration of a command line, without running the command."""
    import hydra

    from asr.cli import CONFIG_DIR, register_schemas, to_typed

    register_schemas(command, schema)
    with hydra.initialize_config_dir(CONFIG_DIR, version_base="1.3"):
        return to_typed(hydra.compose(command, list(overrides)))


TINY_OPTIONS = [
    *("model=tiny", "model.conv_channels=[4]", "model.conv_kernels=[[5,5]]", "model.conv_strides=[[2,2]]"),
    *("model.rnn_size=16", "model.rnn_layers=1", "features.sample_rate=8000", "features.num_mels=20"),
    *("augment=none", "data=custom", "data.num_workers=0", "data.max_batch_utterances=2"),
    *("trainer.accelerator=cpu", "trainer.num_threads=1", "trainer.max_epochs=2"),
    *("trainer.log_every_steps=1", "trainer.progress_bar=false", "logger.tensorboard=false"),
    "doctor.cache=null",
]


@pytest.fixture(scope="session")
def tiny_train_options(tiny_corpus: TinyCorpus) -> list[str]:
    """Options of ``asr.train`` with which a run takes about a second."""
    manifests = [f"data.{split}={tiny_corpus.manifest(split)}" for split in TINY_TEXTS]
    return [*TINY_OPTIONS, *manifests]


@pytest.fixture(scope="session")
def tiny_train_config(tiny_train_options: list[str]) -> Callable[..., Any]:
    """``tiny_train_config(run_dir, *overrides)`` → a ``TrainConfig``."""
    from asr.config import TrainConfig

    def compose(run_dir: Path, *overrides: str) -> TrainConfig:
        return compose_config("train", TrainConfig, [*tiny_train_options, f"run_dir={run_dir}", *overrides])

    return compose


@pytest.fixture(scope="session")
def tiny_run(tiny_train_config: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run directory of a finished training of two epochs."""
    from asr.train import train

    run_dir = tmp_path_factory.mktemp("runs") / "tiny"
    assert train(tiny_train_config(run_dir)) == 0
    return run_dir
