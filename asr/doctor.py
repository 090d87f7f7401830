"""``python -m asr.doctor``: what in a corpus cannot be learned from, and what is suspicious."""

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from rich.console import Console

from asr import build
from asr.cli import launch, setup_logging
from asr.config import DoctorConfig
from asr.dataset import select_readable
from asr.errors import ConfigError, ManifestError
from asr.findings import CHECKS, ExaminedSplit, Finding, find_problems
from asr.manifest import read_manifest, write_manifest
from asr.records import Utterance
from asr.report.corpus_report import build_corpus_report, print_corpus_report, write_corpus_report
from asr.selection import check_dev_is_complete, inspect_splits, read_split, select_split, unusable

SPLITS = ("train", "dev", "test")


def main() -> int:
    """Entry point; returns the exit code."""
    return launch(examine, config_name="doctor", schema=DoctorConfig)


def examine(config: DoctorConfig) -> int:
    """Examine the splits that are there. Exit code 1 when errors remain (``fix=`` settles those of its split)."""
    setup_logging()
    check_options(config)
    torch.set_num_threads(1)  # files are looked at side by side
    utterances = {"train": read_split(config.data, "train")} | {
        split: read_manifest(path)
        for split in SPLITS[1:]
        if (named := getattr(config.data, split)) is not None and (path := Path(named)).exists()
    }
    splits, sample_rate = examine_splits(config, utterances)
    findings = find_problems(splits, sample_rate)
    manifests = {split: str(getattr(config.data, split)) for split in utterances}
    report = build_corpus_report(splits, findings, manifests)
    console = Console()
    print_corpus_report(report, console, num_shown=config.num_shown)
    write_corpus_report(report, findings, Path(config.output))
    say(console, f"everything: {config.output}")
    fixed = None
    if config.fix is not None:
        fixed = config.fix_split
        say(console, fix(config, utterances[fixed], [found for found in findings if found.split == fixed]))
    return int(any(found.severity == "error" and found.split != fixed for found in findings))


def check_options(config: DoctorConfig) -> None:
    """Refuse at once what would only fail at the end.

    Raises:
        ConfigError: an unknown check in ``drop``, a split without manifest, or a manifest that would
            be replaced by its own cleaned copy.
    """
    unknown = [name for name in config.drop if name not in CHECKS]
    if unknown:
        raise ConfigError(f"drop: there is no check {unknown[0]!r}; there are {', '.join(CHECKS)}")
    if config.fix is None:
        return
    named = getattr(config.data, config.fix_split)
    if named is None or not Path(named).exists():
        raise ConfigError(f"fix_split={config.fix_split}: data.{config.fix_split}={named} is not there")
    own = {Path(path).resolve() for split in SPLITS if (path := getattr(config.data, split)) is not None}
    if Path(config.fix).resolve() in own:
        raise ConfigError(f"fix={config.fix} is one of the manifests examined; give another name")
    if Path(config.fix).suffix != ".jsonl":
        raise ConfigError(f"fix={config.fix} must end in .jsonl")


def examine_splits(
    config: DoctorConfig, utterances: dict[str, list[Utterance]]
) -> tuple[list[ExaminedSplit], int]:
    """The same choice of utterances as training makes, and the front-end's rate in Hz.

    Raises:
        ManifestError: no training utterance has readable audio and a text, or words are missing in dev.
    """
    check_dev_is_complete(config, utterances.get("dev", []))
    facts = inspect_splits(config.doctor, config.data, utterances)
    normalise = build.make_normalise(config.text)
    readable = {
        split: select_readable(of_split, normalise, unusable(split, of_split, facts[split]))
        for split, of_split in utterances.items()
    }
    known = [build.known_text(config.text, example.text) for example in readable["train"].examples]
    texts = [text for text in known if text]
    if not texts:
        first = readable["train"].exclusions[:1]
        because = f": {first[0].id}: {first[0].reason}" if first else ""
        raise ManifestError(f"{config.data.train}: no utterance has readable audio and a text{because}")
    tokenizer = build.make_target_tokenizer(config.text, build.make_tokenizer(config.tokenizer, texts))
    acoustic_model = build.make_acoustic_model(config.features, config.model, tokenizer.vocab_size)
    examined = [
        ExaminedSplit(
            split,
            utterances[split],
            facts[split],
            select_split(config, split, readable[split], tokenizer, acoustic_model),
        )
        for split in utterances
    ]
    return examined, config.features.sample_rate


def fix(config: DoctorConfig, utterances: Sequence[Utterance], findings: Sequence[Finding]) -> str:
    """Write the utterances without errors (and without findings of ``drop``), and beside them the others.

    Returns what was done, in one line.
    """
    assert config.fix is not None
    reasons: dict[str, list[Finding]] = {}
    for finding in findings:
        if finding.severity == "error" or finding.check in config.drop:
            reasons.setdefault(finding.id, []).append(finding)
    kept = [utterance for utterance in utterances if utterance.id not in reasons]
    if not kept:
        raise ManifestError(f"fix={config.fix}: nothing would be left; see {config.output}")
    path = Path(config.fix)
    write_manifest(path, kept)
    left_out = path.with_suffix(".excluded.jsonl")
    with left_out.open("w", encoding="utf-8") as file:
        for utterance in utterances:
            for finding in reasons.get(utterance.id, []):
                line = {**asdict(finding), "text": utterance.text, "audio_path": str(utterance.audio_path)}
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
    return f"{path}: {len(kept):,} utterances kept; {len(reasons):,} left out, named in {left_out}"


def say(console: Console, line: str) -> None:
    console.print(line, markup=False, highlight=False, soft_wrap=True)


if __name__ == "__main__":
    sys.exit(main())
