"""``python -m asr.prepare``: a corpus on its official layout → manifests, with nothing silently lost."""

import dataclasses
import inspect
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table

from asr import cli, spliced
from asr.config import PrepareConfig
from asr.corpora import an4, collect, folder, fsdd, lhotse, librispeech, ljspeech, webdataset
from asr.corpora.collect import SPLITS, Exclusion, PreparedCorpus
from asr.corpora.download import Archive, obtain
from asr.corpora.splits import shared_speakers_notes
from asr.corpora.written import SUMMARY_NAME, manifest_path, names_written
from asr.errors import ConfigError, ManifestError
from asr.manifest import manifest_sha256, read_manifest, write_manifest
from asr.records import Utterance

EXCLUDED_NAME = "excluded.jsonl"
_MAX_IDS_SHOWN = 3

_READERS: Mapping[str, Callable[..., PreparedCorpus]] = {
    "an4": an4.prepare,
    "fsdd": fsdd.prepare,
    "librispeech": librispeech.prepare,
    "ljspeech": ljspeech.prepare,
    "folder": folder.prepare,
    "lhotse": lhotse.prepare,
    "webdataset": webdataset.prepare,
    "spliced": spliced.prepare,
}
# Options of this command itself; all others belong to a corpus.
_COMMON_OPTIONS = frozenset({"corpus", "source", "output", "download_dir", "mirror", "shards"})
_DEMO_OPTIONS = frozenset({"seed", "num_utterances", "num_speakers", "grammar"})


def main() -> int:
    """Entry point of ``asr-prepare``; returns the exit code."""
    return cli.launch(prepare, config_name="prepare", schema=PrepareConfig)


def prepare(config: PrepareConfig) -> None:
    """Prepare the corpus that ``config`` names and show what came out.

    Raises:
        AsrError: for options that do not fit the corpus, sources that are not one, and downloads
            that fail.
    """
    cli.setup_logging()
    console = Console(soft_wrap=True)
    output = Path(config.output)
    options = corpus_options(config)
    if config.corpus == "demo":
        splits = _make_demo(config, options, console)
        corpus = PreparedCorpus(splits, [])
    else:
        with _progress(console) as progress:
            source = _source(config, progress)
            corpus = _READERS[config.corpus](source, output, progress=progress, **options)
            require_other_place(corpus, output, config)
            if config.shards is not None:
                corpus = in_shards(corpus, output / webdataset.SHARD_FOLDER, config, progress)
        write(corpus, output, config)
    show(corpus, output, console)
    console.print(f"\nnext: {_next_command(config, corpus)}", style="bold", highlight=False)


def corpus_options(config: PrepareConfig) -> dict[str, Any]:
    """The options that the user gave for the corpus; ``ConfigError`` for any that it does not know."""
    if config.corpus == "demo":
        known: frozenset[str] = _DEMO_OPTIONS
    else:
        parameters = inspect.signature(_READERS[config.corpus]).parameters
        known = frozenset(parameters) - {"source", "output", "progress"}
    values = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    given = {
        name: value for name, value in values.items() if name not in _COMMON_OPTIONS and value is not None
    }
    unknown = sorted(given.keys() - known)
    if unknown:
        raise ConfigError(
            f"{unknown[0]} is no option of corpus={config.corpus}, which knows {', '.join(sorted(known))}"
        )
    return given


def require_other_place(corpus: PreparedCorpus, output: Path, config: PrepareConfig) -> None:
    """Raise ``ManifestError`` where a manifest would replace its own source, or remove it as one of an earlier run."""
    names = names_written(output) | {name for name, part in _named(corpus).items() if part}
    written = {manifest_path(output, name).resolve() for name in names}
    if config.source is not None and Path(config.source).resolve() in written:
        raise ManifestError(f"{config.source} would be overwritten by its own result: choose another output")


def in_shards(
    corpus: PreparedCorpus, folder: Path, config: PrepareConfig, progress: collect.Progress
) -> PreparedCorpus:
    """The same corpus, read from tar shards that are written here.

    Raises:
        ManifestError: they cannot be written.
    """
    splits: dict[str, list[Utterance]] = {}
    excluded = list(corpus.excluded)
    for split, utterances in corpus.splits.items():
        packed = webdataset.pack(
            utterances, folder, split, config.shard_bytes, seed=config.seed or 0, progress=progress
        )
        splits[split] = packed.utterances
        excluded += packed.excluded
    by_id = {utterance.id: utterance for utterances in splits.values() for utterance in utterances}
    parts = {
        name: [by_id[utterance.id] for utterance in part if utterance.id in by_id]
        for name, part in corpus.parts.items()
    }
    return dataclasses.replace(corpus, splits=splits, excluded=excluded, parts=parts)


def write(corpus: PreparedCorpus, output: Path, config: PrepareConfig) -> None:
    """Write manifests, ``excluded.jsonl`` and ``prepare.json``; remove manifests of an earlier run.

    Raises:
        ManifestError: when nothing is usable.
    """
    manifests = {name: utterances for name, utterances in _named(corpus).items() if utterances}
    _write_excluded(output / EXCLUDED_NAME, corpus.excluded)
    if not manifests:
        reasons = ", ".join(f"{count} {reason}" for reason, count in _reasons(corpus).items())
        raise ManifestError(
            f"{config.source or config.corpus}: no utterance is usable ({reasons or 'there are none'}); "
            f"see {output / EXCLUDED_NAME}"
        )
    for name in names_written(output) - manifests.keys():
        manifest_path(output, name).unlink(missing_ok=True)
    for name, utterances in manifests.items():
        write_manifest(manifest_path(output, name), utterances)
    summary = {
        "corpus": config.corpus,
        "source": config.source,
        "options": corpus_options(config) | ({"shards": config.shards} if config.shards else {}),
        "manifests": {
            name: {**describe(utterances), "sha256": manifest_sha256(manifest_path(output, name))}
            for name, utterances in manifests.items()
        },
        "excluded": _reasons(corpus),
        "notes": _notes(corpus),
    }
    (output / SUMMARY_NAME).write_text(json.dumps(summary, indent=2, ensure_ascii=False) + "\n", "utf-8")


def describe(utterances: Sequence[Utterance]) -> dict[str, float]:
    """Counts of one split; utterances of unknown speaker count as no speaker."""
    return {
        "num_utterances": len(utterances),
        "duration_seconds": round(sum(utterance.duration_seconds for utterance in utterances), 3),
        "num_speakers": len({utterance.speaker for utterance in utterances} - {""}),
        "num_words": len({word for utterance in utterances for word in utterance.text.split()}),
    }


def show(corpus: PreparedCorpus, output: Path, console: Console) -> None:
    """Print a table of the splits, the notes, and what was left out."""
    table = Table("split", title=f"{output}", title_justify="left")
    for heading in ("utterances", "h:mm:ss", "speakers", "distinct words"):
        table.add_column(heading, justify="right")
    table.add_column("manifest")
    for name, utterances in _named(corpus).items():
        if utterances:
            counts = describe(utterances)
            table.add_row(
                name,
                f"{counts['num_utterances']:,}",
                str(timedelta(seconds=round(counts["duration_seconds"]))),
                f"{counts['num_speakers']:,}" if counts["num_speakers"] else "unknown",
                f"{counts['num_words']:,}",
                manifest_path(output, name).name,
            )
    console.print(table)
    for note in _notes(corpus):
        console.print(f"- {note}", markup=False, highlight=False)
    for reason in collect.Reason:
        ids = [exclusion.id for exclusion in corpus.excluded if exclusion.reason is reason]
        if ids:
            shown = ", ".join(ids[:_MAX_IDS_SHOWN]) + (", …" if len(ids) > _MAX_IDS_SHOWN else "")
            console.print(f"left out: {len(ids):,} {reason.value} ({shown})", markup=False, highlight=False)
    if corpus.excluded:
        console.print(f"each of them is in {output / EXCLUDED_NAME}", markup=False, highlight=False)
    else:
        console.print("nothing was left out")


def _source(config: PrepareConfig, progress: collect.Progress) -> Path:
    """The folder or file to read: the user's, or what was downloaded."""
    if config.source is None:
        archives = _archives(config)
        downloads = Path(config.download_dir or Path(config.output) / "download")
        return obtain(archives, downloads, mirror=config.mirror, progress=progress)
    if config.download_dir is not None or config.mirror is not None:
        raise ConfigError("download_dir and mirror are for downloading: leave them out, or leave out source")
    source = Path(config.source).expanduser()
    if not source.exists():
        raise ManifestError(f"source={config.source} does not exist: correct it, or leave it out to download")
    if source.is_file() and config.corpus not in {"folder", "lhotse", "webdataset"}:
        raise ManifestError(f"source={config.source} is a file: give the folder that holds the corpus")
    return source


def _archives(config: PrepareConfig) -> Sequence[Archive]:
    if config.corpus == "folder":
        raise ConfigError("corpus=folder needs source=: a folder, or a table (JSONL, CSV, TSV)")
    if config.corpus == "lhotse":
        raise ConfigError("corpus=lhotse needs source=: a CutSet, or a folder of lhotse's manifests")
    if config.corpus == "webdataset":
        raise ConfigError("corpus=webdataset needs source=: a tar, or a folder of them")
    if config.corpus == "spliced":
        raise ConfigError("corpus=spliced needs source=: the folder of a prepared corpus")
    if config.corpus == "librispeech":
        return librispeech.archives(config.subsets)
    return {"an4": an4.ARCHIVES, "fsdd": fsdd.ARCHIVES, "ljspeech": ljspeech.ARCHIVES}[config.corpus]


def _make_demo(
    config: PrepareConfig, options: Mapping[str, Any], console: Console
) -> dict[str, list[Utterance]]:
    """Synthesise the demo corpus, which writes its own manifests, and read them back."""
    from asr.corpora.synth import synthesise_corpus  # loads the speech synthesiser

    for option in ("source", "download_dir", "mirror"):
        if getattr(config, option) is not None:
            raise ConfigError(f"{option} has no use for corpus=demo, which is synthesised on this machine")
    if config.shards is not None:
        raise ConfigError("shards has no use for corpus=demo: pack it with corpus=folder source=data/demo")
    output = Path(config.output)
    with _progress(console) as progress:
        summary = synthesise_corpus(
            output, progress=lambda done, total: progress("synthesising speech", done, total), **options
        )
    if not summary.was_built:
        console.print(f"{output} holds this corpus already, complete and unaltered")
    return {split: read_manifest(manifest_path(output, split)) for split in SPLITS}


@contextmanager
def _progress(console: Console) -> Iterator[collect.Progress]:
    """One bar per stage of the work."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    bars = Progress(*columns, console=console)
    tasks: dict[str, TaskID] = {}

    def report(stage: str, num_done: int, num_total: int | None) -> None:
        if not tasks:
            bars.start()  # not earlier: an error before any work should be a single line
        if stage not in tasks:
            tasks[stage] = bars.add_task(stage, total=num_total)
        bars.update(tasks[stage], completed=num_done, total=num_total)

    try:
        yield report
    finally:
        if tasks:
            bars.stop()


def _named(corpus: PreparedCorpus) -> dict[str, list[Utterance]]:
    """All manifests by name: the splits in their order, then named parts of them."""
    return {split: corpus.splits.get(split, []) for split in SPLITS} | corpus.parts


def _notes(corpus: PreparedCorpus) -> list[str]:
    return [*corpus.notes, *shared_speakers_notes({split: corpus.splits.get(split, []) for split in SPLITS})]


def _reasons(corpus: PreparedCorpus) -> dict[str, int]:
    return collect.count_reasons(corpus.excluded)


def _write_excluded(path: Path, excluded: Sequence[Exclusion]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w", encoding="utf-8") as file:
            for exclusion in excluded:
                file.write(json.dumps(dataclasses.asdict(exclusion), ensure_ascii=False) + "\n")
    except OSError as error:
        raise ManifestError(f"cannot write {path}: {error.strerror or error}") from None


def _next_command(config: PrepareConfig, corpus: PreparedCorpus) -> str:
    output = Path(config.output)
    if (
        config.corpus not in {"folder", "lhotse", "webdataset", "spliced"}
        and output == Path("data") / config.corpus
    ):
        has_preset = (Path(cli.CONFIG_DIR) / "experiment" / f"{config.corpus}.yaml").is_file()
        return f"python -m asr.train {'experiment' if has_preset else 'data'}={config.corpus}"
    manifests = " ".join(
        f"data.{split}={manifest_path(output, split)}" for split in SPLITS if corpus.splits.get(split)
    )
    if config.corpus == "spliced":
        beginning = f"python -m asr.train init_from={config.checkpoint} {manifests}"
        return f"{beginning}, with the other options of the training that made this checkpoint"
    return f"python -m asr.train data=custom {manifests}"


if __name__ == "__main__":
    sys.exit(main())
