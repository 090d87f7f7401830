"""Which data chose what, and whether a figure on some data can still be believed.

A set of utterances by whose results something was chosen (a checkpoint, the moment to stop, the weights
of a decoder) gives optimistic figures afterwards. Training and tuning record their choices; evaluation
compares what it is given with them, by the hash of the manifest and by the utterances themselves, so
that a renamed or re-cut manifest is recognised.
"""

import dataclasses
import hashlib
import heapq
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from asr.errors import ConfigError, ManifestError
from asr.manifest import manifest_sha256, read_manifest
from asr.records import Utterance

CHOICES_FILE = "choices.jsonl"
"""In a run directory: what was chosen with data after the training."""

BEST_CHECKPOINT = "the checkpoint with the lowest WER"
EARLY_STOPPING = "when training stopped"

MAX_KEYS = 1000
"""Of larger sets the smallest keys are kept: a set that shares 1 % of them is still noticed (p > 0.9999)."""

_KEY_DIGITS = 12


class NotDevDataError(ConfigError):
    """Data on which nothing may be chosen."""


class TunedSplitError(ConfigError):
    """Data that something was chosen on, evaluated as if it were test data."""


@dataclass(frozen=True, slots=True)
class Choice:
    """``what`` was chosen by results on a manifest; ``keys`` are (a sample of) its utterances' :func:`keys_of`."""

    what: str
    manifest: str
    sha256: str
    num_utterances: int
    keys: tuple[str, ...] = ()

    def of_earlier_training(self) -> "Choice":
        """The same for weights that another training begins with."""
        suffix = " of the training before"
        return self if self.what.endswith(suffix) else dataclasses.replace(self, what=self.what + suffix)


@dataclass(frozen=True, slots=True)
class Notice:
    """Something to know about a figure: a ``warning`` limits what it means, a ``note`` does not."""

    severity: Literal["warning", "note"]
    text: str


@dataclass(frozen=True, slots=True)
class DataUse:
    """What the evaluated data had been used for before; ``split`` is what it was evaluated as."""

    split: str
    is_optimistic: bool
    notices: tuple[Notice, ...]


@dataclass(frozen=True, slots=True)
class EvaluatedData:
    """What is about to be scored; ``split`` is ``train``, ``dev``, ``test`` or empty."""

    manifest: str
    sha256: str
    utterances: Sequence[Utterance]
    split: str


def utterance_key(utterance: Utterance) -> str:
    """Tells utterances apart across manifests: of id, length and words, wherever the audio lies."""
    words = " ".join(utterance.text.casefold().split())
    content = f"{utterance.id}\0{utterance.duration_seconds:.2f}\0{words}"
    return _key(content)


def keys_of(utterance: Utterance) -> tuple[str, str]:
    """What an utterance is known by: its content wherever the audio lies, its audio whatever it is called."""
    return utterance_key(utterance), _key(f"{utterance.audio_path}\0{utterance.offset_seconds:.3f}")


def _key(content: str) -> str:
    return hashlib.sha256(content.encode("utf-8", "surrogatepass")).hexdigest()[:_KEY_DIGITS]


def _sample(utterances: Iterable[Utterance]) -> tuple[str, ...]:
    """Of each kind of key all, or the smallest :data:`MAX_KEYS`."""
    kinds = list(zip(*map(keys_of, utterances), strict=True))
    return tuple(key for kind in kinds for key in heapq.nsmallest(MAX_KEYS, kind))


def choose_on(what: str, manifest: str | Path, utterances: Iterable[Utterance]) -> Choice:
    """The record of a choice.

    Raises:
        ManifestError: the manifest cannot be read.
    """
    known = list(utterances)
    return Choice(what, str(manifest), manifest_sha256(manifest), len(known), _sample(known))


def training_choices(provenance: Mapping[str, Any], *, is_last: bool = False) -> list[Choice]:
    """What a training, and those that it began with, chose on dev sets.

    Args:
        provenance: the checkpoint's.
        is_last: it holds the last weights, which were not chosen among others.
    """
    return [choice for choice in _all_choices(provenance) if not (is_last and choice.what == BEST_CHECKPOINT)]


def training_manifests(provenance: Mapping[str, Any]) -> list[dict[str, str]]:
    """``path`` and ``sha256`` of all that a checkpoint has learned from, in trainings that it began with, too."""
    train = provenance.get("manifests", {}).get("train")
    return [*([] if train is None else [train]), *provenance.get("learned_before", [])]


def _all_choices(provenance: Mapping[str, Any]) -> list[Choice]:
    if "choices" in provenance:
        return [Choice(**{**choice, "keys": tuple(choice["keys"])}) for choice in provenance["choices"]]
    dev = provenance.get("manifests", {}).get("dev")  # checkpoints from before choices were recorded
    if dev is None:
        return []
    known = _unchanged_manifest(dev) or []
    return [Choice(BEST_CHECKPOINT, dev["path"], dev["sha256"], len(known), _sample(known))]


def recorded_choices(run_dir: Path) -> list[Choice]:
    """What was chosen with a run after its training.

    Raises:
        ConfigError: the record is damaged.
    """
    path = run_dir / CHOICES_FILE
    if not path.is_file():
        return []
    try:
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        return [Choice(**{**line, "keys": tuple(line["keys"])}) for line in lines]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path}: damaged, it should hold one choice per line ({error})") from error


def record_choice(run_dir: Path, choice: Choice) -> None:
    """Add a choice to a run's record, once."""
    if choice in recorded_choices(run_dir):
        return
    with open(run_dir / CHOICES_FILE, "a", encoding="utf-8") as file:
        file.write(json.dumps(dataclasses.asdict(choice), ensure_ascii=False) + "\n")


def num_shared(utterances: Iterable[Utterance], choice: Choice) -> int:
    """How many of ``utterances`` are known to be among those of the choice."""
    known = set(choice.keys)
    return sum(not known.isdisjoint(keys_of(utterance)) for utterance in utterances)


def require_dev_data(data: EvaluatedData, test: str | None, action: str) -> None:
    """What is chosen on test data cannot be tested on it afterwards.

    Args:
        test: the manifest of the test split, if there is one.
        action: what is about to be done with the data, as in ``tune``.

    Raises:
        NotDevDataError: test or training data, by name, by hash or by its utterances.
    """
    if data.split in {"test", "train"}:
        reason = (
            f"to {action} on test data leaves nothing to test on afterwards"
            if data.split == "test"
            else "the model has learned from it and is surer of it than of anything else"
        )
        raise NotDevDataError(
            f"{data.manifest} is the {data.split} split: {reason}; {action} on the dev split (split=dev)"
        )
    if test is None or not Path(test).is_file():
        return
    if manifest_sha256(test) == data.sha256:
        raise NotDevDataError(
            f"{data.manifest} is the test split {test} under another name: {action} on dev data"
        )
    shared = num_shared(data.utterances, choose_on("", test, read_manifest(test)))
    if shared:
        raise NotDevDataError(
            f"{data.manifest} shares {shared} of its {len(data.utterances)} utterances with the test split "
            f"{test}: {action} on dev data that is not tested on"
        )


def check_data_use(
    data: EvaluatedData,
    choices: Sequence[Choice],
    training_manifests: Sequence[Mapping[str, str]],
    *,
    allow_tuned_split: bool = False,
) -> DataUse:
    """What is known about earlier uses of the data that is about to be scored.

    Args:
        choices: all that the system rests on.
        training_manifests: ``path`` and ``sha256`` of what the model has learned from.
        allow_tuned_split: report on test data that something was chosen on, instead of refusing.

    Raises:
        TunedSplitError: such data without leave.
    """
    guilty = {choice: num_shared(data.utterances, choice) for choice in choices}
    guilty = {choice: num for choice, num in guilty.items() if num or choice.sha256 == data.sha256}
    if guilty and data.split == "test" and not allow_tuned_split:
        reasons = "; ".join(_describe(data, choice, num) for choice, num in guilty.items())
        raise TunedSplitError(
            f"{data.manifest} is evaluated as test data, but {reasons}: it is no test any more. Take data that "
            "chose nothing, or add allow_tuned_split=true for a report that is marked"
        )
    notices = []
    if guilty:
        whole = [choice.what for choice in guilty if choice.sha256 == data.sha256]
        if whole:
            text = f"{data.split or data.manifest}: this split chose {_and(whole)}; the figure is optimistic"
            notices.append(Notice("warning", text))
        notices += [
            Notice("warning", f"{_describe(data, choice, num)}; the figure is optimistic")
            for choice, num in guilty.items()
            if choice.sha256 != data.sha256
        ]
        if data.split == "test":
            notices.insert(0, Notice("warning", "not a test result: something was chosen on this data"))
    from_training = list(_training_overlap(data, training_manifests))
    is_optimistic = bool(guilty) or any(notice.severity == "warning" for notice in from_training)
    return DataUse(data.split, is_optimistic, (*notices, *from_training))


def _describe(data: EvaluatedData, choice: Choice, num: int) -> str:
    if choice.sha256 == data.sha256:
        return f"it chose {choice.what}"
    least = "at least " if choice.num_utterances > MAX_KEYS else ""
    return (
        f"{least}{num} of its {len(data.utterances)} utterances are in {choice.manifest}, "
        f"which chose {choice.what}"
    )


def _training_overlap(data: EvaluatedData, manifests: Sequence[Mapping[str, str]]) -> Iterable[Notice]:
    if not manifests:
        return
    if data.split == "train" or any(manifest["sha256"] == data.sha256 for manifest in manifests):
        yield Notice("warning", "train: the model has learned from these very utterances")
        return
    train: list[Utterance] = []
    for manifest in {manifest["sha256"]: manifest for manifest in manifests}.values():
        found = _unchanged_manifest(manifest)
        if found is None:
            where = f"the training manifest {manifest['path']} is not here or has changed"
            yield Notice("note", f"{where}: overlap with the training data could not be looked for")
        train += found or []
    known_keys = {key for utterance in train for key in keys_of(utterance)}
    shared = [one for one in data.utterances if not known_keys.isdisjoint(keys_of(one))]
    total = len(data.utterances)
    if shared:
        yield Notice(
            "warning",
            f"the model has learned from {len(shared)} of these {total} utterances, e.g. {shared[0].id}",
        )
    speakers = {utterance.speaker for utterance in data.utterances} - {""}
    known = speakers & {utterance.speaker for utterance in train}
    if known:
        yield Notice(
            "note",
            f"{len(known)} of {len(speakers)} speakers are in the training data too: "
            "the figure is for known voices",
        )


def _unchanged_manifest(manifest: Mapping[str, str]) -> list[Utterance] | None:
    """The utterances of a manifest that is still what it was, else None."""
    path = Path(manifest["path"])
    try:
        is_unchanged = path.is_file() and manifest_sha256(path) == manifest["sha256"]
        return read_manifest(path) if is_unchanged else None
    except ManifestError:
        return None


def _and(names: Sequence[str]) -> str:
    unique = list(dict.fromkeys(names))
    return " and ".join([", ".join(unique[:-1]), unique[-1]] if len(unique) > 1 else unique)
