"""The preview writes what training would hear, named after what was drawn."""

import re
from pathlib import Path

import numpy as np
import pytest
import soundfile
from conftest import TINY_OPTIONS, TINY_RATE, TinyCorpus, compose_config

from asr.augment_preview import augment_preview
from asr.config import AugmentPreviewConfig
from asr.errors import ConfigError, ManifestError


def preview(corpus: TinyCorpus, output: Path, *options: str) -> int:
    manifests = [f"data.{split}={corpus.manifest(split)}" for split in ("train", "dev")]
    given = [*TINY_OPTIONS, *manifests, f"output={output}", *options]
    return augment_preview(compose_config("augment_preview", AugmentPreviewConfig, given))


def test_originals_versions_and_pictures(
    tiny_corpus: TinyCorpus, noise_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["augment=noisy", f"augment.noise={noise_folder}", "augment.noise_probability=1"]
    options += ["num_utterances=2", "num_versions=3"]
    assert preview(tiny_corpus, tmp_path, *options) == 0
    originals = sorted(tmp_path.glob("*-original.wav"))
    assert len(originals) == 2
    for path in originals:
        name = path.name.removesuffix("-original.wav")
        found, rate = soundfile.read(path)
        expected, _ = soundfile.read(tiny_corpus.folder / f"{name}.wav")
        assert rate == TINY_RATE
        np.testing.assert_array_equal(found, expected)
        versions = sorted(tmp_path.glob(f"{name}-[123]-*.wav"))
        assert len(versions) == 3
        for version in versions:
            assert re.search(r"snr-?\d+\.\ddB-(steady|hum|event)", version.name)
            samples, _ = soundfile.read(version)
            speed = re.search(r"speed([\d.]+)", version.name)
            assert len(samples) == pytest.approx(len(expected) / float(speed[1] if speed else 1), abs=2)
            assert np.abs(samples).max() <= 1
        assert (tmp_path / f"{name}.png").read_bytes()[:4] == b"\x89PNG"
    assert "snr" in capsys.readouterr().out
    before = {path.name: path.read_bytes() for path in tmp_path.glob("*.wav")}
    assert preview(tiny_corpus, tmp_path / "again", *options) == 0
    assert before == {path.name: path.read_bytes() for path in (tmp_path / "again").glob("*.wav")}


def test_without_augmentation_nothing_is_changed(tiny_corpus: TinyCorpus, tmp_path: Path) -> None:
    assert preview(tiny_corpus, tmp_path, "num_utterances=1", "num_versions=1") == 0
    (original,), (version,) = tmp_path.glob("*-original.wav"), tmp_path.glob("*-1-unchanged.wav")
    assert original.read_bytes() == version.read_bytes()


def test_mistakes_are_named(tiny_corpus: TinyCorpus, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"augment\.noise="):
        preview(tiny_corpus, tmp_path, "augment=noisy", f"augment.noise={tmp_path / 'gone'}")
    with pytest.raises(ConfigError, match="num_versions"):
        preview(tiny_corpus, tmp_path, "num_versions=0")
    with pytest.raises(ManifestError, match=r"gone\.jsonl"):
        preview(tiny_corpus, tmp_path, f"data.train={tmp_path / 'gone.jsonl'}")
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ConfigError, match="output="):
        preview(tiny_corpus, tmp_path / "file" / "out")
