"""The utterances of a training: which can be read, which are used, and what is told of them."""

import dataclasses
import json
import logging
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from asr import build, parallel
from asr.config import TrainConfig
from asr.dataset import Exclusion, Selection, select_readable
from asr.errors import TrainingError
from asr.findings import CHECKS, ExaminedSplit, Finding, find_problems
from asr.inspection import UNLEARNABLE_AUDIO, AudioFacts
from asr.models.acoustic import AcousticModel
from asr.records import Problem, Utterance
from asr.report.corpus_report import FINDINGS_NAME, write_findings
from asr.selection import inspect_splits, select_split, unusable
from asr.tokenizer import Tokenizer, report_unknown_characters

logger = logging.getLogger(__name__)

MAX_LISTED_EXCLUSIONS = 10
EXCLUDED_NAME = "excluded.jsonl"


@dataclass(frozen=True)
class Corpus:
    """The training and dev utterances that are used, and those that are not."""

    train: Selection
    dev: Selection


def look_at_audio(
    config: TrainConfig, utterances: dict[str, list[Utterance]], goes_on_in: Path | None
) -> tuple[dict[str, Selection], dict[str, AudioFacts | None]]:
    """Of each split what can be read, and what was found; a run that goes on keeps to what it had found.

    Args:
        goes_on_in: the directory of the run that this one goes on with.

    Raises:
        TrainingError: nothing can be read.
    """
    problems = None if goes_on_in is None else recorded_problems(goes_on_in, utterances)
    with parallel.first_before_others():
        facts = inspect_splits(config.doctor, config.data, utterances) if problems is None else {}
    normalise = build.make_normalise(config.text)
    readable = {
        split: select_readable(
            of_split, normalise, problems[split] if problems else unusable(split, of_split, facts[split])
        )
        for split, of_split in utterances.items()
    }
    for split, selection in readable.items():
        check_not_empty(config, split, selection)
    return readable, facts


def select_corpus(
    config: TrainConfig,
    train_readable: Selection,
    dev_readable: Selection,
    tokenizer: Tokenizer,
    acoustic_model: AcousticModel,
) -> Corpus:
    """Decide for every utterance whether it is used; names the unknown characters.

    Raises:
        TrainingError: nothing is left to train on or to validate with.
    """
    tokenizer = build.make_target_tokenizer(config.text, tokenizer)
    train_set = select_split(config, "train", train_readable, tokenizer, acoustic_model)
    dev_set = select_split(config, "dev", dev_readable, tokenizer, acoustic_model)
    for name, readable in (("train", train_readable), ("dev", dev_readable)):
        utterances = [
            dataclasses.replace(example.utterance, text=example.text)
            for example in readable.examples
            if tokenizer.unknown_characters(example.text)
        ]
        for line in report_unknown_characters(tokenizer, utterances).lines():
            logger.warning("%s: character unknown to the tokenizer: %s", name, line)
    for name, selection in (("train", train_set), ("dev", dev_set)):
        check_not_empty(config, name, selection)
    if not any(example.text for example in dev_set.examples):
        raise TrainingError(
            f"data.dev={config.data.dev}: no utterance has a word by which to judge the model"
        )
    return Corpus(train_set, dev_set)


def check_not_empty(config: TrainConfig, split: str, selection: Selection) -> None:
    """Stop with the reasons when no utterance can be used.

    Raises:
        TrainingError: nothing is left.
    """
    if not selection.examples:
        reasons = sorted({exclusion.reason for exclusion in selection.exclusions})[:3]
        raise TrainingError(
            f"no usable utterance in data.{split}={getattr(config.data, split)}; "
            f"left out because: {'; '.join(reasons)}"
        )


def report_corpus(corpus: Corpus, run_dir: Path) -> None:
    """Say how much is used; list what is not, in full in ``excluded.jsonl``."""
    for name, selection in (("train", corpus.train), ("dev", corpus.dev)):
        seconds = sum(example.utterance.duration_seconds for example in selection.examples)
        logger.info("%s: %d utterances, %.2f hours", name, len(selection.examples), seconds / 3600)
        report_exclusions(name, selection.exclusions)
    lines = [
        {"split": name, **dataclasses.asdict(exclusion)}
        for name, selection in (("train", corpus.train), ("dev", corpus.dev))
        for exclusion in selection.exclusions
    ]
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    (run_dir / EXCLUDED_NAME).write_text(text, encoding="utf-8")


def recorded_problems(
    run_dir: Path, utterances: dict[str, list[Utterance]]
) -> dict[str, list[Problem | None]] | None:
    """What an interrupted run found wrong with the audio, so that it goes on with the same batches.

    None where it left no such record.
    """
    found: dict[tuple[str, str], Problem] = {}
    try:
        for line in (run_dir / EXCLUDED_NAME).read_text(encoding="utf-8").splitlines():
            item = json.loads(line)
            if item["problem"] in UNLEARNABLE_AUDIO:
                found[item["split"], item["id"]] = Problem(item["problem"], item["reason"])
    except (OSError, ValueError, KeyError):
        return None
    return {
        split: [found.get((split, utterance.id)) for utterance in utterances[split]] for split in utterances
    }


def report_exclusions(split: str, exclusions: Sequence[Exclusion]) -> None:
    if not exclusions:
        return
    seconds = sum(exclusion.duration_seconds for exclusion in exclusions)
    logger.warning(
        "%s: %d utterances (%.2f hours) left out, all named in excluded.jsonl:",
        split,
        len(exclusions),
        seconds / 3600,
    )
    for exclusion in exclusions[:MAX_LISTED_EXCLUSIONS]:
        logger.warning("  %s: %s", exclusion.id, exclusion.reason)


def report_findings(
    corpus: Corpus,
    utterances: dict[str, list[Utterance]],
    facts: dict[str, AudioFacts | None],
    sample_rate: int,
    run_dir: Path,
) -> None:
    """One line for each check and split that found something; all of it in ``findings.jsonl``.

    Nothing where a run goes on, which has told it before.
    """
    if not facts:
        return
    splits = {"train": corpus.train, "dev": corpus.dev}
    examined = [ExaminedSplit(name, utterances[name], facts[name], splits[name]) for name in splits]
    findings = find_problems(examined, sample_rate)
    groups: dict[tuple[str, str], list[Finding]] = defaultdict(list)
    for finding in findings:
        groups[finding.check, finding.split].append(finding)
    for (check, split), found in groups.items():
        if found[0].severity != "error":  # those have been left out, and named
            logger.info(
                "%s: %s: %d utterances (%.2f hours): %s, e.g. %s (%s)",
                found[0].severity,
                split,
                len(found),
                sum(finding.duration_seconds for finding in found) / 3600,
                CHECKS[check].meaning,
                found[0].id,
                found[0].detail,
            )
    write_findings(findings, run_dir / FINDINGS_NAME)
