"""``python -m asr.evaluate``: the word error rate of a checkpoint, with every error."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress

from asr import checkpoint
from asr.cli import launch, setup_logging
from asr.config import EvaluateConfig
from asr.device import choose_device
from asr.errors import ConfigError, ManifestError
from asr.evaluation import evaluate_utterances
from asr.manifest import read_manifest
from asr.recogniser import Recogniser
from asr.records import Utterance
from asr.report.json_report import EvaluationReport, write_report
from asr.report.terminal import print_report


def main() -> int:
    """Entry point; returns the exit code."""
    return launch(evaluate, config_name="evaluate", schema=EvaluateConfig)


def evaluate(config: EvaluateConfig) -> int:
    """Evaluate as configured. Exit code 1 when some utterances could not be scored."""
    setup_logging()
    manifest = find_manifest(config)
    utterances = read_manifest(manifest)
    path = checkpoint.resolve(config.checkpoint)
    recogniser = checkpoint.load_recogniser(path, config.decoder, choose_device(config.device))
    provenance = checkpoint.describe_evaluation(path, manifest, config.decoder)
    report = evaluate_with_progress(recogniser, utterances, config, provenance)
    output = Path(config.output) if config.output else default_output(config, path, manifest)
    write_report(report, output / "report.json")
    console = Console()
    print_report(report, console, num_worst=config.num_worst)
    console.print(f"report: {output / 'report.json'}", markup=False, soft_wrap=True)
    return 1 if report.excluded else 0


def evaluate_with_progress(
    recogniser: Recogniser,
    utterances: Sequence[Utterance],
    config: EvaluateConfig,
    provenance: dict[str, Any],
) -> EvaluationReport:
    with Progress(console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as progress:
        task = progress.add_task("evaluating", total=len(utterances))
        return evaluate_utterances(
            recogniser,
            utterances,
            max_batch_utterances=config.data.max_batch_utterances,
            max_batch_seconds=config.data.max_batch_seconds,
            normaliser=config.normaliser,
            provenance=provenance,
            compare_greedy=config.compare_greedy,
            on_progress=lambda num_done: progress.update(task, completed=num_done),
        )


def find_manifest(config: EvaluateConfig) -> Path:
    """The manifest meant by ``manifest`` or by ``data`` and ``split``.

    Raises:
        ConfigError: the data has no such split.
        ManifestError: it does not exist; says how to make it.
    """
    if config.manifest is not None:
        return Path(config.manifest)
    named = getattr(config.data, config.split)
    if named is None:
        raise ConfigError(f"split={config.split}: data.{config.split} is not set for data={config.data.name}")
    if not Path(named).exists():
        raise ManifestError(f"{named} is not there; make it with: {config.data.prepare_hint}")
    return Path(named)


def default_output(config: EvaluateConfig, path: Path, manifest: Path) -> Path:
    """``<run directory>/evaluation/<data>-<split>``; beside a checkpoint that is in no run directory."""
    name = manifest.stem if config.manifest is not None else f"{config.data.name}-{config.split}"
    in_run = path.parent.name == checkpoint.CHECKPOINT_FOLDER
    return (path.parent.parent if in_run else path.parent) / "evaluation" / name


if __name__ == "__main__":
    sys.exit(main())
