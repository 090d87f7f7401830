"""``python -m asr.evaluate``: the word error rate of a checkpoint, with every error."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress

from asr import calibration, checkpoint, tuned_decoder
from asr.augment import SoundLibrary, find_sounds
from asr.augment.sounds import sounds_sha256
from asr.calibration import Calibration
from asr.cli import given_options, launch, setup_logging
from asr.config import EvaluateConfig, GreedyConfig
from asr.device import choose_device
from asr.evaluation import evaluate_utterances, write_views
from asr.firewall import (
    Choice,
    DataUse,
    EvaluatedData,
    check_data_use,
    recorded_choices,
    require_dev_data,
    training_choices,
    training_manifests,
)
from asr.label_errors import find_label_errors
from asr.manifest import manifest_sha256, read_manifest
from asr.parity import check_parity
from asr.recogniser import Recogniser
from asr.records import Utterance
from asr.report.json_report import EvaluationReport, ReportError, num_faulty, read_report, write_report
from asr.report.label_errors import print_label_errors, write_label_errors
from asr.report.nist import write_sclite_files
from asr.report.parity import print_parity, write_parity
from asr.report.sweep import SCHEMA_VERSION as SWEEP_SCHEMA_VERSION
from asr.report.sweep import SweepReport, sweep_table, write_sweep
from asr.report.terminal import print_report
from asr.selection import claimed_split, find_manifest
from asr.sweep import (
    STANDARD_SNR_DB,
    STANDARD_SPEEDS,
    Condition,
    noise_conditions,
    run_sweep,
    speed_conditions,
)
from asr.tuned_decoder import FileIdentity, ResolvedDecoder

NOISE_CACHE_BYTES = 2**29


def main() -> int:
    """Entry point; returns the exit code."""
    return launch(evaluate, config_name="evaluate", schema=EvaluateConfig)


def evaluate(config: EvaluateConfig) -> int:
    """Evaluate as configured. Exit code 1 when some utterances could not be scored."""
    setup_logging()
    manifest = find_manifest(config.data, config.split, config.manifest)
    utterances = read_manifest(manifest)
    path = checkpoint.resolve(config.checkpoint)
    identity = checkpoint.identify(path)
    resolved = tuned_decoder.resolve(
        config.tuned,
        config.decoder,
        given_options(),
        checkpoint=FileIdentity(identity.path, identity.sha256),
        tokenizer=identity.tokenizer,
    )
    data = EvaluatedData(
        str(manifest),
        manifest_sha256(manifest),
        utterances,
        claimed_split(config.data, config.split, config.manifest),
    )
    if config.calibrate:
        require_dev_data(data, config.data.test, "calibrate")
    data_use = check_data_use(
        data,
        choices_behind(identity, path, resolved),
        training_manifests(identity.provenance),
        allow_tuned_split=config.allow_tuned_split,
    )
    recogniser = checkpoint.load_recogniser(path, resolved.decoder, choose_device(config.device))
    provenance = checkpoint.describe_evaluation(identity, manifest, resolved.description)
    output = Path(config.output) if config.output else default_output(config, path, manifest)
    run_folder = checkpoint.home(path)
    chosen = None
    if not config.calibrate:
        chosen = calibration.choose(config.calibration, run_folder, path, provenance["decoder"])
    console = Console()
    with Progress(console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as progress:
        run = Evaluation(recogniser, utterances, config, provenance, data_use, chosen, output, progress)
        if config.sweep is not None:
            return evaluate_sweep(run, console)
        if config.check_parity:
            return evaluate_parity(run, console)
        if config.label_errors:
            return rank_label_errors(run, console)
        report = run.evaluate()
        other = other_report(output, provenance)
        report, written = run.write(report)
    print_report(report, console, num_worst=config.num_worst)
    if other is not None:
        console.print(f"replaced: {other}; output=PATH keeps both", markup=False, soft_wrap=True)
    for file in written:
        console.print(f"report: {file}", markup=False, highlight=False, soft_wrap=True)
    if report.confidence is not None and report.confidence.calibrated is not None:
        from asr.report.reliability import plot_reliability  # plotting is slow to load

        plot_reliability(report.confidence, output / "reliability.png")
        console.print(f"reliability: {output / 'reliability.png'}", markup=False, soft_wrap=True)
        if config.calibrate:
            calibration.save(run_folder / calibration.FILE_NAME, report.confidence, provenance)
            console.print(f"calibration: {run_folder / calibration.FILE_NAME}", markup=False, soft_wrap=True)
    return 1 if report.excluded else 0


def other_report(output: Path, provenance: Mapping[str, Any]) -> str | None:
    """What a report that is there already is of, where that is another checkpoint or decoder."""
    try:
        before = read_report(output / "report.json").provenance
    except ReportError:
        return None
    if all(before.get(name) == provenance[name] for name in ("checkpoint", "decoder")):
        return None
    checkpoint_path, kind = before.get("checkpoint", {}).get("path"), before.get("decoder", {}).get("kind")
    return f"the report of {checkpoint_path} with decoder={kind}"


@dataclass(frozen=True)
class Evaluation:
    """All that evaluating once needs, and that every condition of a sweep shares."""

    recogniser: Recogniser
    utterances: Sequence[Utterance]
    config: EvaluateConfig
    provenance: dict[str, Any]
    data_use: DataUse
    calibration: Calibration | None
    output: Path
    progress: Progress

    def evaluate(self, condition: Condition | None = None) -> EvaluationReport:
        name, alter = ("", None) if condition is None else (f" {condition.name}", condition.alter)
        task = self.progress.add_task(f"evaluating{name}", total=len(self.utterances))
        return evaluate_utterances(
            self.recogniser,
            self.utterances,
            max_batch_utterances=self.config.data.max_batch_utterances,
            max_batch_seconds=self.config.data.max_batch_seconds,
            normaliser=self.config.normaliser,
            provenance=self.provenance
            if condition is None
            else {**self.provenance, "condition": condition.name},
            data_use=self.data_use,
            compare_greedy=self.config.compare_greedy,
            calibration=self.calibration,
            calibrate=self.config.calibrate,
            alter=alter,
            on_progress=lambda num_done: self.progress.update(task, completed=num_done),
        )

    def write(self, report: EvaluationReport) -> tuple[EvaluationReport, list[Path]]:
        """Find the causes of errors and write everything; returns the report with them, and the files."""
        config = self.config
        task = self.progress.add_task("examining errors", total=num_faulty(report), visible=config.html)
        report, written = write_views(
            report,
            self.recogniser,
            self.utterances,
            self.output,
            html=config.html,
            num_worst=config.num_worst,
            num_pictures=config.num_pictures,
            audio_mib=config.audio_mib,
            max_batch_utterances=config.data.max_batch_utterances,
            max_batch_seconds=config.data.max_batch_seconds,
            on_progress=lambda num_done: self.progress.update(task, completed=num_done),
        )
        if config.sclite:
            written += write_sclite_files(report, self.output / "sclite")
        return report, written


def evaluate_sweep(run: Evaluation, console: Console) -> int:
    """Evaluate under every condition of the configured sweep; a full report of each is kept."""
    config, kind = run.config, run.config.sweep
    assert kind is not None
    folder = run.output / f"sweep-{kind}"
    conditions, provenance = make_conditions(config, run.recogniser.sample_rate)
    points = run_sweep(
        conditions,
        run.evaluate,
        on_report=lambda condition, report: write_report(report, folder / condition.name / "report.json"),
    )
    sweep = SweepReport(SWEEP_SCHEMA_VERSION, kind, points, {**run.provenance, **provenance})
    written = write_sweep(sweep, folder)
    console.print(sweep_table(sweep))
    for path in written:
        console.print(f"{path.stem}: {path}", markup=False, soft_wrap=True)
    return 1 if points[0].num_excluded else 0


def evaluate_parity(run: Evaluation, console: Console) -> int:
    """Recognise in every way there is. Exit code 1 when two of them differ."""
    config = run.config
    task = run.progress.add_task("comparing ways of recognising", total=None)
    found = check_parity(
        run.recogniser,
        run.utterances,
        max_batch_utterances=config.data.max_batch_utterances,
        max_batch_seconds=config.data.max_batch_seconds,
        window_seconds=config.window_seconds,
        overlap_seconds=config.overlap_seconds,
        on_progress=lambda done, total: run.progress.update(task, completed=done, total=total),
    )
    path = run.output / "parity.json"
    write_parity(found, path)
    print_parity(found, console, config.max_window_difference)
    console.print(f"everything: {path}", markup=False, highlight=False, soft_wrap=True)
    return 0 if found.agrees(config.max_window_difference) else 1


def rank_label_errors(run: Evaluation, console: Console) -> int:
    """Rank the transcripts by how wrong they seem. Exit code 1 when some could not be judged."""
    config, recognisers = run.config, [run.recogniser]
    if config.second_checkpoint is not None:
        path = checkpoint.resolve(config.second_checkpoint)
        recognisers.append(checkpoint.load_recogniser(path, GreedyConfig(), run.recogniser.device))
    task = run.progress.add_task("judging transcripts", total=len(recognisers) * len(run.utterances))
    found = find_label_errors(
        recognisers,
        run.utterances,
        max_batch_utterances=config.data.max_batch_utterances,
        max_batch_seconds=config.data.max_batch_seconds,
        on_progress=lambda num_done: run.progress.update(task, completed=num_done),
    )
    written = write_label_errors(found, run.output)
    print_label_errors(found, console, num_shown=config.num_worst)
    for path in written:
        console.print(f"everything: {path}", markup=False, highlight=False, soft_wrap=True)
    return 1 if found.excluded else 0


def make_conditions(config: EvaluateConfig, sample_rate: int) -> tuple[list[Condition], dict[str, Any]]:
    """The conditions of the configured sweep, and where their noise comes from.

    Raises:
        ConfigError: there is no noise where it should be.
    """
    if config.noise is None:
        return speed_conditions(config.sweep_values or STANDARD_SPEEDS), {}
    library = SoundLibrary(
        find_sounds(config.noise, "noise"), sample_rate=sample_rate, cache_bytes=NOISE_CACHE_BYTES
    )
    noise = {"path": config.noise, "sha256": sounds_sha256(config.noise, "noise"), "seed": config.noise_seed}
    values = config.sweep_values or STANDARD_SNR_DB
    return noise_conditions(library, values, config.noise_seed), {"noise": noise}


def choices_behind(identity: checkpoint.Identity, path: Path, resolved: ResolvedDecoder) -> list[Choice]:
    """All that was chosen with data: in training, and for a decoder with weights after it."""
    choices = training_choices(identity.provenance, is_last=path.name == checkpoint.LAST)
    if resolved.chosen_on is not None:
        return [*choices, resolved.chosen_on]
    if isinstance(resolved.decoder, GreedyConfig):
        return choices
    return [*choices, *recorded_choices(checkpoint.home(path))]


def default_output(config: EvaluateConfig, path: Path, manifest: Path) -> Path:
    """``<run directory>/evaluation/<data>-<split>``; beside a checkpoint that is in no run directory."""
    name = manifest.stem if config.manifest is not None else f"{config.data.name}-{config.split}"
    return checkpoint.home(path) / "evaluation" / name


if __name__ == "__main__":
    sys.exit(main())
