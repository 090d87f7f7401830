"""``python -m asr.lm``: text → n-gram language model, with what it was made from and how well it predicts."""

import gzip
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import cast

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from asr import cli
from asr.config import LmConfig
from asr.decode.arpa import SPACE, SPECIAL_WORDS, LanguageModelError
from asr.decode.estimate import Summary, estimate
from asr.text import Case, normalise

_REPORT_EVERY_LINES = 1000

Advance = Callable[[int], None]
"""Told the number of bytes read."""


def main() -> int:
    """Entry point of ``asr-lm``; returns the exit code."""
    return cli.launch(estimate_model, config_name="lm", schema=LmConfig)


def estimate_model(config: LmConfig) -> None:
    """Estimate the model that ``config`` describes and show what came out.

    Raises:
        AsrError: for text that cannot be read and options that contradict it.
    """
    cli.setup_logging()
    console = Console(soft_wrap=True)
    output = Path(config.output)
    for name in (*config.text, *config.exclude, config.perplexity, config.vocabulary):
        if name is not None and not Path(name).is_file():
            raise LanguageModelError(f"{name}: no such file")
    excluded = {tuple(tokens) for name in config.exclude for tokens in _sentences(Path(name), config)}
    vocabulary = None if config.vocabulary is None else _vocabulary(Path(config.vocabulary))
    num_excluded = 0

    def kept(advance: Advance) -> Iterator[list[str]]:
        nonlocal num_excluded
        for name in config.text:
            for tokens in _sentences(Path(name), config, advance):
                if excluded and tuple(tokens) in excluded:
                    num_excluded += 1
                else:
                    yield tokens

    with Progress(console=console, transient=True) as progress:
        # The size of what a compressed file holds is not known before it is read.
        sizes = [None if name.endswith(".gz") else Path(name).stat().st_size for name in config.text]
        task = progress.add_task("reading", total=None if None in sizes else sum(cast(list[int], sizes)))
        summary = estimate(
            kept(lambda num_bytes: progress.advance(task, num_bytes)),
            output,
            order=config.order,
            prune=config.prune,
            vocabulary=vocabulary,
            max_words=config.max_words,
            discount_fallback=config.discount_fallback,
            memory_bytes=int(config.memory_gib * 2**30),
            scratch_folder=None if config.scratch_dir is None else Path(config.scratch_dir),
            report=lambda stage: progress.update(task, description=stage),
        )
    _show(summary, output, console)
    if config.exclude:
        console.print(
            f"left out: {num_excluded:,} sentences that are in {', '.join(config.exclude)}", highlight=False
        )
    if config.perplexity is not None:
        _show_perplexity(output, Path(config.perplexity), config, console)


def _show(summary: Summary, output: Path, console: Console) -> None:
    table = Table("order", title=f"{output}", title_justify="left")
    for heading in ("n-grams in the text", "in the model", "discount of 1", "of 2", "of 3 or more"):
        table.add_column(heading, justify="right")
    for order, level in enumerate(summary.orders, start=1):
        discounts = [f"{discount:.3f}" for discount in level.discounts]
        table.add_row(str(order), f"{level.num_counted:,}", f"{level.num_kept:,}", *discounts)
    console.print(table)
    for order, level in enumerate(summary.orders, start=1):
        if level.fallback_reason:
            console.print(
                f"discounts of {order}-grams are the usual ones, for they cannot be estimated: {level.fallback_reason}",
                highlight=False,
            )
    console.print(f"from {summary.num_sentences:,} sentences, {summary.num_tokens:,} tokens", highlight=False)


def _show_perplexity(model_path: Path, text: Path, config: LmConfig, console: Console) -> None:
    from asr.decode.ngram import NgramModel

    model = NgramModel.load(model_path)
    result = model.perplexity(_sentences(text, config))
    console.print(
        f"perplexity of {text}: {result.including_unknown:.2f}, without unknown words "
        f"{result.excluding_unknown:.2f} ({result.num_tokens:,} tokens with sentence ends, "
        f"{result.num_unknown:,} unknown)",
        highlight=False,
    )


def _sentences(path: Path, config: LmConfig, advance: Advance | None = None) -> Iterator[list[str]]:
    """The sentences of a file as tokens; empty ones are skipped."""
    for where, line in _lines(path, advance):
        text = _transcript(line, where) if path.name.removesuffix(".gz").endswith(".jsonl") else line
        # Words on either side of missing ones do not follow each other.
        for part in [text] if config.wildcard is None else text.split(config.wildcard):
            words = _words(part, config)
            if not words:
                continue
            if config.unit == "char":
                yield [SPACE if character == " " else character for character in " ".join(words)]
            else:
                _refuse_reserved(words, where)
                yield words


def _words(text: str, config: LmConfig) -> list[str]:
    if config.normalise:
        text = normalise(text, case=cast(Case, config.case), keep_punctuation=config.keep_punctuation)
    return text.split()


def _refuse_reserved(words: Sequence[str], where: str) -> None:
    for word in SPECIAL_WORDS:
        if word in words:
            raise LanguageModelError(
                f"{where}: {word} has a meaning of its own in language models; remove it"
            )


def _lines(path: Path, advance: Advance | None) -> Iterator[tuple[str, str]]:
    """``(file and line for messages, line)``."""
    num_bytes = 0
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                yield f"{path}: line {number}", line.decode("utf-8-sig" if number == 1 else "utf-8")
                num_bytes += len(line)
                if advance is not None and number % _REPORT_EVERY_LINES == 0:
                    advance(num_bytes)
                    num_bytes = 0
    except UnicodeDecodeError:
        raise LanguageModelError(f"{path}: line {number} is not UTF-8; convert the file") from None
    except (OSError, EOFError) as error:
        raise LanguageModelError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from None


def _transcript(line: str, where: str) -> str:
    try:
        text = json.loads(line)["text"] if line.strip() else ""
    except (ValueError, KeyError, TypeError):
        text = None
    if not isinstance(text, str):
        raise LanguageModelError(f'{where}: not a manifest line with a "text"')
    return text


def _vocabulary(path: Path) -> frozenset[str]:
    """The first word of each line, so that a lexicon serves too."""
    words = frozenset(line.split()[0] for _, line in _lines(path, None) if line.strip())
    if not words:
        raise LanguageModelError(f"{path}: holds no word")
    return words


if __name__ == "__main__":
    sys.exit(main())
