"""Anything that lhotse has a recipe for: a CutSet, or recordings with supervisions, → our manifests.

Each supervision becomes one utterance: a segment of its recording by offset and duration. What a
manifest of segments cannot express (audio in several pieces, in an archive or behind a command; a
recording that lhotse would change while loading; one channel of several) is left out and named.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from asr.corpora.collect import SPLIT_NAMES, Entry, Exclusion, PreparedCorpus, Progress, Reason, collect
from asr.corpora.splits import SplitPlan, with_dev
from asr.errors import ConfigError, ManifestError

_SUFFIXES = (".jsonl", ".jsonl.gz", ".json", ".json.gz", ".yaml", ".yaml.gz")


def prepare(
    source: Path,
    output: Path,
    *,
    dev_fraction: float | None = None,
    test_fraction: float = 0.0,
    seed: int = 0,
    folds: int | None = None,
    fold: int | None = None,
    split_by: str = "auto",
    progress: Progress | None = None,
) -> PreparedCorpus:
    """Read a CutSet file, a supervisions file beside its recordings, or a folder of either.

    Files whose names hold ``train``, ``dev`` (``valid``) or ``test`` (``eval``) are those splits, as
    lhotse's recipes write them; without a dev split, dev is carved by whole speakers.

    Raises:
        ManifestError: nothing that lhotse can read is there.
        ConfigError: lhotse is not installed, or options contradict each other.
    """
    plan = SplitPlan(dev_fraction, test_fraction, seed, folds, fold, split_by)
    entries: list[Entry] = []
    excluded: list[Exclusion] = []
    for path in _manifests(source):
        split = _split_of(path)
        for item in _read(path, split):
            (entries if isinstance(item, Entry) else excluded).append(item)  # type: ignore[arg-type]
    collected = collect(entries, progress=progress)
    return with_dev(collected, excluded, plan, str(source))


def _manifests(source: Path) -> list[Path]:
    """The CutSet files of a folder, or else its supervisions files."""
    if source.is_file():
        return [source]
    files = sorted(path for path in source.iterdir() if path.name.endswith(_SUFFIXES))
    chosen = [path for path in files if "cuts" in path.name] or [
        path for path in files if "supervisions" in path.name
    ]
    if not chosen:
        raise ManifestError(
            f"{source} holds no lhotse manifests: *cuts*.jsonl.gz, or *recordings* and *supervisions*"
        )
    return chosen


def _split_of(path: Path) -> str:
    words = path.name.lower().replace("-", "_").replace(".", "_").split("_")
    return next((SPLIT_NAMES[word] for word in words if word in SPLIT_NAMES), "")


def _read(path: Path, split: str) -> Iterator[Entry | Exclusion]:
    """Every supervision of a file, with its offset in the recording."""
    lhotse = _lhotse()
    try:
        items = lhotse.load_manifest_lazy(path) if ".jsonl" in path.name else lhotse.load_manifest(path)
        if isinstance(items, lhotse.SupervisionSet):
            beside = path.with_name(path.name.replace("supervisions", "recordings"))
            if beside == path or not beside.is_file():
                raise ManifestError(f"{path} needs its recordings beside it: {beside.name}")
            recordings = {recording.id: recording for recording in lhotse.load_manifest(beside)}
            for supervision in items:
                recording = recordings.get(supervision.recording_id)
                yield _entry(path, split, supervision, recording, supervision.start)
        elif isinstance(items, lhotse.CutSet):
            for cut in items:
                yield from _of_cut(path, split, cut)
        else:
            raise ManifestError(
                f"{path} holds a {type(items).__name__}: give a CutSet, or supervisions beside recordings"
            )
    except (OSError, ValueError, KeyError, TypeError, AssertionError) as error:
        raise ManifestError(f"{path}: lhotse cannot read it ({error})") from error


def _of_cut(path: Path, split: str, cut: Any) -> Iterator[Entry | Exclusion]:
    recording = getattr(cut, "recording", None)
    if recording is None:  # mixed or padded cuts are made of several
        yield Exclusion(cut.id, Reason.UNREADABLE_AUDIO, str(path), "not a plain stretch of one recording")
        return
    if not cut.supervisions:
        yield Exclusion(cut.id, Reason.MISSING_TRANSCRIPT, str(path), "the cut has no supervision")
    for supervision in cut.supervisions:
        # Counted from the beginning of the cut, and before it where the cut begins in mid-sentence: the
        # text is that of the whole supervision, which the recording still holds.
        start = round(cut.start + supervision.start, 6)
        yield _entry(path, split, supervision, recording, start)


def _entry(path: Path, split: str, supervision: Any, recording: Any, start: float) -> Entry | Exclusion:
    problem = _unusable_recording(supervision, recording)
    if problem:
        return Exclusion(supervision.id, Reason.UNREADABLE_AUDIO, str(path), problem)
    audio = Path(recording.sources[0].source)
    fields = {"language": supervision.language, "gender": supervision.gender, **(supervision.custom or {})}
    return Entry(
        id=supervision.id,
        where=str(path),
        audio_path=audio if audio.is_absolute() else Path.cwd() / audio,
        text=supervision.text,
        speaker=supervision.speaker or "",
        offset_seconds=start,
        duration_seconds=supervision.duration,
        split=split,
        extra={name: value for name, value in fields.items() if isinstance(value, str | int | float)},
    )


def _unusable_recording(supervision: Any, recording: Any) -> str:
    """Why the audio is no stretch of one file, empty if it is."""
    if recording is None:
        return f"there is no recording {supervision.recording_id}"
    if len(recording.sources) != 1 or recording.sources[0].type != "file":
        kinds = ", ".join(source.type for source in recording.sources)
        return f"its audio is not one file (sources: {kinds}); write it out with CutSet.save_audios"
    if recording.transforms:
        return "lhotse would change it while loading (speed, volume, …); write it out with CutSet.save_audios"
    channels = supervision.channel if isinstance(supervision.channel, Sequence) else [supervision.channel]
    if set(channels) != set(recording.sources[0].channels):
        return f"it is channel {channels} of {recording.sources[0].channels}; write the channels to files of their own"
    return ""


def _lhotse() -> Any:
    try:
        import lhotse
    except ImportError as error:
        raise ConfigError("corpus=lhotse needs the package lhotse: pip install 'asr[lhotse]'") from error
    return lhotse
