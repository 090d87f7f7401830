"""``python -m asr.augment_preview``: what augmentation makes of some training utterances, to hear and to see."""

import re
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import soundfile
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from asr import build
from asr.augment import FeatureAugmenter
from asr.cli import launch, setup_logging
from asr.config import AugmentPreviewConfig
from asr.dataset import load_utterance, select_readable
from asr.errors import ConfigError, ManifestError
from asr.features import SpectralFeatures
from asr.manifest import read_manifest
from asr.records import Utterance

MAX_NAME_LENGTH = 120


def main() -> int:
    """Entry point; returns the exit code."""
    return launch(augment_preview, config_name="augment_preview", schema=AugmentPreviewConfig)


def augment_preview(config: AugmentPreviewConfig) -> int:
    """Write each chosen utterance as it is and in several versions, as WAV and in one picture.

    Files are named after what was drawn. A version is one that training with these options could
    make; levels above full scale, which training keeps, are scaled down in the WAV file alone.
    """
    from asr.report.augment_plots import Panel, preview_figure
    from asr.report.ctc_plots import save_figure

    setup_logging()
    folder = make_folder(config.output)
    front_end = build.make_features(config.features).eval()
    augmenter, augment_features = build.make_augmenters(config.augment, front_end)
    random = np.random.default_rng(config.seed)
    table = Table("utterance", "version", "changes", title=f"written to {folder}", title_justify="left")
    for utterance in choose(config, random):
        original = load_utterance(utterance, front_end.sample_rate)
        panels = [Panel("original", spectrogram(front_end, original))]
        write_wav(folder, utterance, ["original"], original, front_end.sample_rate)
        for number, seed in enumerate(random.integers(2**62, size=config.num_versions).tolist(), start=1):
            drawn = augmenter.draw(seed)
            words = drawn.describe() or ["unchanged"]
            version = augmenter.apply(original, drawn)
            write_wav(folder, utterance, [str(number), *words], version, front_end.sample_rate)
            panels.append(Panel("  ".join(words), spectrogram(front_end, version, augment_features, seed)))
            table.add_row(utterance.id, str(number), ", ".join(words))
        title = f"{utterance.id}: {utterance.text}"
        picture = folder / f"{safe_name(utterance.id)}.png"
        save_figure(preview_figure(panels, front_end.hop_seconds, title), picture)
    Console().print(table)
    return 0


def make_folder(output: str) -> Path:
    folder = Path(output)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"output={output}: cannot be made ({error.strerror})") from error
    return folder


def choose(config: AugmentPreviewConfig, random: np.random.Generator) -> list[Utterance]:
    """Some utterances of the training manifest whose audio can be read.

    Raises:
        ManifestError: there are none.
    """
    utterances = read_manifest(config.data.train)
    order = random.permutation(len(utterances))[: 4 * config.num_utterances]
    readable = select_readable([utterances[index] for index in order], build.make_normalise(config.text))
    if not readable.examples:
        raise ManifestError(f"{config.data.train}: no audio can be read: {readable.exclusions[0].reason}")
    return [example.utterance for example in readable.examples[: config.num_utterances]]


def spectrogram(
    front_end: SpectralFeatures, waveform: Tensor, augment: FeatureAugmenter | None = None, seed: int = 0
) -> Tensor:
    """``(frames, bins)`` features of ``(samples,)``, as the encoder would be given them."""
    with torch.inference_mode():
        features = front_end(waveform[None], torch.tensor([len(waveform)]))
        return (features if augment is None else augment(features, torch.tensor([seed]))).features[0]


def write_wav(
    folder: Path, utterance: Utterance, words: Sequence[str], waveform: Tensor, sample_rate: int
) -> None:
    path = folder / f"{safe_name('-'.join([utterance.id, *words]))}.wav"
    peak = max(1.0, float(waveform.abs().max()))
    soundfile.write(path, (waveform / peak).numpy(), sample_rate, subtype="PCM_16")


def safe_name(text: str) -> str:
    return re.sub(r"[^\w.+-]+", "_", text)[:MAX_NAME_LENGTH]


if __name__ == "__main__":
    sys.exit(main())
