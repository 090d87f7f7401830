"""``python -m asr.explain``: CTC made visible, for a small table or for a recording.

``text=CAT probs=table.csv`` shows every path, their sum and the trellis. ``checkpoint=… audio=…``
shows what a trained model hears: posteriors, the reference aligned to them, and where its loss
comes from. Both end in a diagnosis in plain words.
"""

import json
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.text import Text

from asr.cli import launch
from asr.config import ExplainConfig, GreedyConfig
from asr.ctc.diagnosis import Diagnosis, diagnose
from asr.ctc.paths import BestLabelling, ScoredPath, best_labelling, best_paths, collapse, count_paths
from asr.ctc.tables import EmissionTable, read_table
from asr.errors import AudioError, ConfigError, TextError
from asr.report.ctc_text import (
    diagnosis_as_plain,
    findings_table,
    format_probability,
    path_as_plain,
    paths_table,
    word_as_plain,
    words_table,
)

MAX_TRELLIS_CELLS = 20_000_000
# Prefixes are searched for a second or two: their cost grows with the table's cells, above a floor.
_SEARCH_BUDGET = 6_000_000
_MIN_PREFIX_COST = 100


def main() -> int:
    sys.argv[1:] = [_quoted_text(argument) for argument in sys.argv[1:]]
    return launch(explain, config_name="explain", schema=ExplainConfig)


def explain(config: ExplainConfig) -> int:
    """Run the command that ``config`` asks for."""
    console = Console(highlight=False)
    if config.probs is not None:
        _explain_table(config, console)
    else:
        _explain_recording(config, console)
    return 0


def _quoted_text(argument: str) -> str:
    """``text=it's`` is what people type; what Hydra's grammar asks for around it is added here."""
    name, _, value = argument.partition("=")
    if name != "text" or value in {"", "null"} or value[0] in "\"'":
        return argument
    # Inside quotes a backslash is special only before a quote, the closing one included.
    escaped = re.sub(r'(\\*)("|$)', lambda match: 2 * match[1] + ('\\"' if match[2] else ""), value)
    return f'text="{escaped}"'


# --------------------------------------------------------------------------- a table of probabilities


@dataclass(frozen=True)
class TableExplanation:
    """A table taken apart: its diagnosis, its paths, and the labelling it makes most probable."""

    diagnosis: Diagnosis
    symbols: tuple[str, ...]
    num_paths: int
    paths: tuple[ScoredPath, ...]
    best_labelling: BestLabelling

    def spell(self, token_ids: Sequence[int]) -> str:
        return spell(token_ids, self.symbols)


def analyse_table(
    table: EmissionTable,
    text: str | None,
    *,
    blank: int = 0,
    symbols: str | None = None,
    max_paths: int = 30,
) -> TableExplanation:
    """Everything there is to say about ``text`` under ``table``; see :class:`ExplainConfig`.

    Raises:
        ConfigError: ``blank`` or ``symbols`` do not fit the table.
        TextError: ``text`` cannot be written with the table's tokens.
    """
    num_frames, vocab_size = table.log_probs.shape
    if not -vocab_size <= blank < vocab_size:
        raise ConfigError(
            f"blank={blank} is outside the table's {vocab_size} columns (0 to {vocab_size - 1})"
        )
    blank %= vocab_size
    named = split_symbols(symbols, vocab_size) if symbols is not None else table.symbols
    names = named or tuple(map(str, range(vocab_size)))
    search = best_labelling(
        table.log_probs,
        blank,
        max_expansions=max(1, _SEARCH_BUDGET // (num_frames * vocab_size + _MIN_PREFIX_COST)),
    )
    labels = search.labels if text is None else labels_of(text, named, blank, vocab_size)
    diagnosis = diagnose(
        table.log_probs,
        labels,
        blank=blank,
        spell=lambda token_ids: spell(token_ids, names),
        symbols=names,
    )
    paths = best_paths(table.log_probs, labels, blank, max_paths)
    return TableExplanation(diagnosis, names, count_paths(labels, num_frames), tuple(paths), search)


def split_symbols(symbols: str, vocab_size: int) -> tuple[str, ...]:
    """Names of the columns: single characters, or names between spaces."""
    names = tuple(symbols.split() if " " in symbols.strip() else symbols)
    if len(names) != vocab_size:
        raise ConfigError(f"symbols names {len(names)} tokens but the table has {vocab_size} columns")
    if len(set(names)) != len(names):
        raise ConfigError("symbols names a token twice; every column needs a name of its own")
    return names


def labels_of(text: str, symbols: Sequence[str], blank: int, vocab_size: int) -> tuple[int, ...]:
    """Token ids of ``text``: names between spaces, else single characters; numbers without ``symbols``."""
    if not symbols:
        pieces = text.replace(",", " ").split()
        if not all(piece.isdecimal() for piece in pieces):
            raise TextError(
                f"text={text!r}: the table does not name its columns; name them in its first row or with "
                "symbols=, or give token numbers"
            )
        labels = tuple(map(int, pieces))
        if any(label >= vocab_size for label in labels):
            raise TextError(f"text={text!r}: token {max(labels)} is outside the table's {vocab_size} columns")
    else:
        ids = {symbol: token for token, symbol in enumerate(symbols)}
        by_name = " " not in ids and all(piece in ids for piece in text.split())
        pieces = text.split() if by_name else list(text)
        unknown = sorted({piece for piece in pieces if piece not in ids})
        if unknown:
            raise TextError(
                f"text={text!r}: no column is named {', '.join(map(repr, unknown))}; "
                f"the columns are {' '.join(symbols)}"
            )
        labels = tuple(ids[piece] for piece in pieces)
    if blank in labels:
        raise TextError(
            f"text={text!r} contains the blank (token {blank}); CTC puts blanks in by itself, "
            "so write only what is said or choose another blank="
        )
    return labels


def spell(token_ids: Sequence[int], symbols: Sequence[str]) -> str:
    """Token ids as text; names of several characters are kept apart."""
    names = [symbols[token] for token in token_ids]
    return ("" if all(len(symbol) == 1 for symbol in symbols) else " ").join(names)


def _explain_table(config: ExplainConfig, console: Console) -> None:
    assert config.probs is not None
    table = read_table(config.probs, config.inputs)  # type: ignore[arg-type]
    found = analyse_table(
        table,
        config.text,
        blank=0 if config.blank is None else config.blank,
        symbols=config.symbols,
        max_paths=config.max_paths,
    )
    _print_table(found, console)
    console.print(findings_table(found.diagnosis.findings))
    plain = {
        "table": config.probs,
        "inputs": table.inputs,
        **diagnosis_as_plain(found.diagnosis, found.symbols),
        "num_paths": found.num_paths,
        "paths": [path_as_plain(path, found.symbols, found.diagnosis.blank) for path in found.paths],
        "best_labelling": {
            "labels": list(found.best_labelling.labels),
            "symbols": [found.symbols[label] for label in found.best_labelling.labels],
            "log_probability": found.best_labelling.log_prob,
            "exact": found.best_labelling.exact,
        },
    }
    if config.output is not None:
        _write_table_files(found, plain, config, console)


def _print_table(found: TableExplanation, console: Console) -> None:
    diagnosis = found.diagnosis
    if diagnosis.occupancy is not None:
        total_log_prob = diagnosis.occupancy.log_prob
        wanted = found.spell(diagnosis.labels)
        console.print(Text(f"Paths that collapse to {wanted!r}, most probable first"))
        console.print(paths_table(found.paths, found.symbols, total_log_prob, found.num_paths))
        _print_fact(console, "sum over all paths", format_probability(total_log_prob))
        _print_fact(console, "loss = -ln(sum)", f"{diagnosis.loss:.4f}\n")
    best = diagnosis.best_path
    reading = found.spell(collapse(best.path, diagnosis.blank))
    _print_fact(
        console,
        "most probable path",
        f"{found.spell(best.path)}  {format_probability(best.log_prob)}, reads {reading!r}",
    )
    search = found.best_labelling
    doubt = (
        ""
        if search.exact
        else f" (search stopped; none above {format_probability(search.upper_bound_log_prob)})"
    )
    same = " (the same)" if search.labels == diagnosis.reading else ""
    _print_fact(
        console,
        "most probable labelling",
        f"{found.spell(search.labels)!r}  {format_probability(search.log_prob)}, "
        f"the sum of {count_paths(search.labels, diagnosis.num_frames)} paths{same}{doubt}\n",
    )


def _print_fact(console: Console, name: str, value: str) -> None:
    console.print(Text(f"{name:<26}{value}"), soft_wrap=True)


def _write_table_files(
    found: TableExplanation, plain: dict[str, Any], config: ExplainConfig, console: Console
) -> None:
    from asr.report.ctc_plots import posterior_figure, save_figure, trellis_figure

    assert config.output is not None
    folder = Path(config.output)
    written = [_write_json(folder, plain)]
    posteriors = folder / f"posteriors.{config.image_format}"
    save_figure(posterior_figure(found.diagnosis, found.symbols), posteriors)
    written.append(posteriors)
    if found.diagnosis.occupancy is not None:
        trellis = folder / f"trellis.{config.image_format}"
        title = f"{found.spell(found.diagnosis.labels)}: loss {found.diagnosis.loss:.4f} nats"
        save_figure(trellis_figure(found.diagnosis, found.symbols, title), trellis)
        written.append(trellis)
    _print_written(written, console)


# --------------------------------------------------------------------------- a recording


def _explain_recording(config: ExplainConfig, console: Console) -> None:
    from asr.audio import load_audio
    from asr.checkpoint import load_recogniser
    from asr.report.ctc_plots import save_figure
    from asr.report.recording import diagnose_recording, draw_recording

    assert config.checkpoint is not None
    assert config.audio is not None
    recogniser = load_recogniser(config.checkpoint, GreedyConfig(), torch.device("cpu"))
    tokenizer = recogniser.tokenizer
    waveform = load_audio(config.audio, recogniser.sample_rate)
    log_probs = recogniser.emissions([waveform]).log_probs[0]
    if len(log_probs) == 0:
        raise AudioError(f"{config.audio} is too short: the model makes no frame of it")
    reference = None if config.text is None else recogniser.normalise(config.text)
    labels = None if reference is None else tokenizer.encode(reference)
    num_labels = len(log_probs) if labels is None else len(labels)
    if len(log_probs) * (2 * num_labels + 1) > MAX_TRELLIS_CELLS:
        raise AudioError(f"{config.audio} is too long to draw; cut out the utterance in question")
    found = diagnose_recording(recogniser, log_probs, labels)
    reading, diagnosis, words = found
    seconds_per_frame = recogniser.acoustic_model.seconds_per_frame

    _print_fact(console, "audio", f"{config.audio}, {len(waveform) / recogniser.sample_rate:.2f} s")
    _print_fact(console, "heard (best path)", tokenizer.decode(reading))
    _print_fact(console, "reference", reference if reference is not None else "not given: what was heard")
    if words:
        console.print(words_table(words, diagnosis, seconds_per_frame))
    console.print(findings_table(diagnosis.findings))
    if config.output is None:
        return
    folder = Path(config.output)
    plain = {
        "checkpoint": config.checkpoint,
        "audio": config.audio,
        "duration_seconds": len(waveform) / recogniser.sample_rate,
        "seconds_per_frame": seconds_per_frame,
        "reading": tokenizer.decode(reading),
        "reference": reference,
        "words": [word_as_plain(word, diagnosis, seconds_per_frame) for word in words],
        **diagnosis_as_plain(diagnosis, tokenizer.tokens),
    }
    figure = draw_recording(recogniser, waveform, found, Path(config.audio).name)
    picture = folder / f"utterance.{config.image_format}"
    save_figure(figure, picture)
    _print_written([_write_json(folder, plain), picture], console)


def _write_json(folder: Path, plain: dict[str, Any]) -> Path:
    path = folder / "explanation.json"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        path.write_text(
            json.dumps(plain, indent=1, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8"
        )
    except OSError as error:
        raise ConfigError(f"output={folder}: cannot be written ({error.strerror or error})") from error
    return path


def _print_written(paths: Sequence[Path], console: Console) -> None:
    console.print(Text(f"\nwritten: {', '.join(map(str, paths))}", style="dim"), soft_wrap=True)


if __name__ == "__main__":
    sys.exit(main())
