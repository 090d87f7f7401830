"""The search of ``asr.tune``: emissions once, many decoders, and a choice that does not chase noise.

The score is the number of word errors on the dev set, a step function of the weights with wide flat parts
in which neighbours differ by chance. So the weights are not those of the lowest count: among all that
cannot be told from it (paired by utterance, within one standard error), those in the middle are taken.
Pruning only approximates the search, so then the fastest is taken that makes no more errors than the widest.
"""

import dataclasses
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.utils.rnn import pad_sequence

from asr.config import DecoderConfig
from asr.dataset import Example, select_readable
from asr.decode.decoder import Decoder
from asr.errors import AudioError, ManifestError
from asr.inspection import audio_fingerprint
from asr.pipeline import recognise_examples
from asr.recogniser import Recogniser
from asr.records import Emissions, Utterance
from asr.score import ErrorCounts, count_words, total

CACHE_VERSION = 1
_BATCH = 16
_NUM_PARTITIONS = 10


# --------------------------------------------------------------------------- emissions


@dataclass(frozen=True)
class DevSet:
    """Emissions of the dev set: of utterance ``i`` the ``lengths[i]`` next rows of ``log_probs`` (rows, vocab)."""

    examples: list[Example]
    lengths: list[int]
    log_probs: NDArray[np.float32]
    is_from_cache: bool

    def batches(self) -> Iterator[tuple[list[int], Emissions]]:
        """Places in ``examples`` and their emissions, padded; utterances of like length together."""
        starts = np.concatenate([[0], np.cumsum(self.lengths)])
        order = sorted(range(len(self.lengths)), key=self.lengths.__getitem__)
        for first in range(0, len(order), _BATCH):
            places = order[first : first + _BATCH]
            frames = [torch.from_numpy(self.log_probs[starts[i] : starts[i + 1]].copy()) for i in places]
            lengths = torch.tensor([self.lengths[i] for i in places])
            yield places, Emissions(pad_sequence(frames, batch_first=True), lengths)


def cached_emissions(
    recogniser: Recogniser,
    utterances: Sequence[Utterance],
    folder: Path,
    *,
    checkpoint_sha256: str,
    manifest_sha256: str,
    max_batch_utterances: int,
    max_batch_seconds: float,
    on_progress: Callable[[int], None] = lambda num_done: None,
) -> DevSet:
    """The emissions of ``utterances``, from ``folder`` where they are there already.

    They are made anew for another checkpoint or manifest, when an audio file has another size or time, is gone or there
    again, and as long as one cannot be decoded: that may pass.

    Raises:
        ManifestError: no audio can be read. Single utterances are left out; the caller compares counts.
    """
    index_path, data_path = folder / "emissions.json", folder / "emissions.f32"
    readable = select_readable(utterances, recogniser.normalise).examples
    vocab_size = recogniser.tokenizer.vocab_size
    wanted = {
        "version": CACHE_VERSION,
        "checkpoint_sha256": checkpoint_sha256,
        "audio_sha256": audio_fingerprint(utterances, manifest_sha256),
        "vocab_size": vocab_size,
    }
    by_id = {example.utterance.id: example for example in readable}
    index = _read_index(index_path)
    if index is not None and {name: index.get(name) for name in wanted} == wanted:
        is_whole = data_path.is_file() and data_path.stat().st_size == 4 * vocab_size * sum(index["lengths"])
        if is_whole and set(index["ids"]) == set(by_id):
            examples = [by_id[name] for name in index["ids"]]
            log_probs = _mapped(data_path, sum(index["lengths"]), vocab_size)
            return DevSet(examples, index["lengths"], log_probs, is_from_cache=True)
    folder.mkdir(parents=True, exist_ok=True)
    temporary = data_path.with_name(f".{data_path.name}.{os.getpid()}.tmp")
    found: list[tuple[Example, int]] = []
    with open(temporary, "wb") as file:
        num_done = 0
        for batch in recognise_examples(
            recogniser,
            readable,
            max_batch_utterances=max_batch_utterances,
            max_batch_seconds=max_batch_seconds,
        ):
            for one in batch:
                if not isinstance(one.result, AudioError) and one.log_probs is not None:
                    rows = one.log_probs.float().cpu().numpy()
                    file.write(rows.tobytes())
                    found.append((readable[one.item], len(rows)))
            num_done += len(batch)
            on_progress(num_done)
    if not found:
        temporary.unlink()
        raise ManifestError("no utterance of the dev set has audio that can be read")
    index_path.unlink(missing_ok=True)  # whatever happens now, it never describes other data than its own
    temporary.replace(data_path)
    ids, lengths = [example.utterance.id for example, _ in found], [length for _, length in found]
    content = json.dumps({**wanted, "ids": ids, "lengths": lengths})
    index_path.write_text(content + "\n", encoding="utf-8")
    log_probs = _mapped(data_path, sum(lengths), vocab_size)
    return DevSet([example for example, _ in found], lengths, log_probs, is_from_cache=False)


def _read_index(path: Path) -> dict[str, Any] | None:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return content if isinstance(content, dict) and "ids" in content and "lengths" in content else None
    except (OSError, ValueError):
        return None


def _mapped(path: Path, num_rows: int, vocab_size: int) -> NDArray[np.float32]:
    return np.memmap(path, np.float32, mode="r", shape=(num_rows, vocab_size))


# --------------------------------------------------------------------------- trials


@dataclass(frozen=True, eq=False)
class Trial:
    """One decoder on the dev set; ``counts`` per utterance, ``cpu_seconds`` of all threads."""

    stage: str
    decoder: DecoderConfig
    counts: tuple[ErrorCounts, ...]
    cpu_seconds: float

    @property
    def errors(self) -> NDArray[np.float64]:
        return np.array([count.num_errors for count in self.counts], np.float64)

    @property
    def num_errors(self) -> int:
        return total(self.counts).num_errors

    @property
    def wer(self) -> float:
        return total(self.counts).rate

    def option(self, name: str) -> Any:
        return getattr(self.decoder, name)


class Trials:
    """Runs decoders on the dev set, each once.

    Args:
        make_decoder: from settings.
        normalise: what is done to both sides before counting.
    """

    def __init__(
        self,
        dev: DevSet,
        make_decoder: Callable[[DecoderConfig], Decoder],
        normalise: Callable[[str], str],
        on_trial: Callable[[], None] = lambda: None,
    ) -> None:
        self.all: list[Trial] = []
        self._dev = dev
        self._make_decoder = make_decoder
        self._normalise = normalise
        self._on_trial = on_trial
        self._references = [normalise(example.text) for example in dev.examples]
        self._known: dict[str, Trial] = {}
        self._warm: set[type[DecoderConfig]] = set()

    def run(self, stage: str, decoder: DecoderConfig) -> Trial:
        """Decode the whole dev set with these settings, or remember having done it."""
        key = json.dumps(dataclasses.asdict(decoder), sort_keys=True)
        if key not in self._known:
            search = self._make_decoder(decoder)
            if type(decoder) not in self._warm:  # compiled code is loaded outside of the time that counts
                self._warm.add(type(decoder))
                search.decode(next(self._dev.batches())[1])
            texts = [""] * len(self._references)
            cpu_seconds = 0.0
            for places, emissions in self._dev.batches():
                started = time.process_time()
                hypotheses = search.decode(emissions)
                cpu_seconds += time.process_time() - started
                for place, hypothesis in zip(places, hypotheses, strict=True):
                    texts[place] = self._normalise(hypothesis.text)
            counts = count_words(self._references, texts)
            self._known[key] = Trial(stage, decoder, counts, cpu_seconds)
            self.all.append(self._known[key])
            self._on_trial()
        return self._known[key]

    def grid(self, stage: str, base: DecoderConfig, choices: Mapping[str, Sequence[Any]]) -> list[Trial]:
        """Every combination of the choices."""
        return [
            self.run(stage, dataclasses.replace(base, **dict(zip(choices, values, strict=True))))
            for values in product(*choices.values())
        ]

    def refine(
        self, stage: str, trials: Sequence[Trial], weights: Sequence[str], num_rounds: int
    ) -> list[Trial]:
        """More ``weights`` around the middle of the good ones, with steps that halve in every round."""
        steps = {name: _step([trial.option(name) for trial in trials]) for name in weights}
        found = list(trials)
        for _ in range(num_rounds):
            steps = {name: step / 2 for name, step in steps.items()}
            middle = choose_weights(found)
            around = {
                name: [round(middle.option(name) + sign * step, 4) for sign in (-1, 0, 1)]
                for name, step in steps.items()
            }
            around["alpha"] = sorted({max(0.0, alpha) for alpha in around["alpha"]})
            found += self.grid(stage, middle.decoder, around)
        return list(dict.fromkeys(found))


def _step(values: Sequence[float]) -> float:
    """The median distance of neighbours."""
    distinct = np.unique(values)
    return float(np.median(np.diff(distinct))) if len(distinct) > 1 else 1.0


# --------------------------------------------------------------------------- choices


def within_noise(errors: NDArray[np.float64], best: NDArray[np.float64]) -> bool:
    """Whether ``(utterances,)`` error counts cannot be told from the best ones: one paired standard error."""
    differences = errors - best
    spread = float(differences.std(ddof=1)) if len(differences) > 1 else 0.0
    return bool(differences.sum() <= spread * np.sqrt(len(differences)))


def indistinguishable(trials: Sequence[Trial], units: NDArray[np.bool_] | None = None) -> list[Trial]:
    """The trials that cannot be told from the one with the fewest errors (of ``units``, if given)."""
    chosen = slice(None) if units is None else units
    errors = [trial.errors[chosen] for trial in trials]
    best = min(errors, key=lambda one: float(one.sum()))
    return [trial for trial, own in zip(trials, errors, strict=True) if within_noise(own, best)]


def choose_weights(trials: Sequence[Trial], units: NDArray[np.bool_] | None = None) -> Trial:
    """The trial in the middle, by alpha and beta, of those that cannot be told from the best."""
    plateau = indistinguishable(trials, units)
    points = np.array([[trial.option("alpha"), trial.option("beta")] for trial in plateau], np.float64)
    spread = np.ptp(points, axis=0)
    scaled = (points - points.mean(axis=0)) / np.where(spread > 0, spread, 1.0)
    distances = np.linalg.norm(scaled, axis=1).round(9).tolist()
    chosen = slice(None) if units is None else units
    keys = [
        (distance, float(trial.errors[chosen].sum()), trial.option("alpha"))
        for distance, trial in zip(distances, plateau, strict=True)
    ]
    return plateau[keys.index(min(keys))]


def choose_pruning(trials: Sequence[Trial], widest: Trial) -> Trial:
    """The fastest of those that make no more errors than the widest search."""
    good = [trial for trial in trials if trial.num_errors <= widest.num_errors]
    return min(good, key=lambda trial: trial.cpu_seconds)


def pareto_front(trials: Sequence[Trial]) -> list[Trial]:
    """The trials than which none is both faster and better; fastest first."""
    front: list[Trial] = []
    for trial in sorted(trials, key=lambda one: (one.cpu_seconds, one.num_errors)):
        if not front or trial.num_errors < front[-1].num_errors:
            front.append(trial)
    return front


class Groups(NamedTuple):
    """``names`` ``(utterances,)`` of what stays together, and what that is: ``speaker`` or ``utterance``."""

    unit: str
    names: list[str]


def groups_of(utterances: Sequence[Utterance]) -> Groups:
    """Speakers, where all are known and there are several; else every utterance is a group of its own."""
    speakers = [utterance.speaker for utterance in utterances]
    if all(speakers) and len(set(speakers)) > 1:
        return Groups("speaker", speakers)
    return Groups("utterance", [utterance.id for utterance in utterances])


def cross_fitted(
    trials: Sequence[Trial], groups: Sequence[str], num_folds: int, seed: int
) -> NDArray[np.float64]:
    """``(utterances,)`` errors under the weights that the *other* folds choose among ``trials``.

    Means over ten ways to make folds. Groups (see :func:`groups_of`) stay together. The trials must have been
    fixed before anything was seen.

    Raises:
        ValueError: fewer than two folds or groups, so that there are no others.
    """
    names = sorted(set(groups))
    if num_folds < 2 or len(names) < 2:
        raise ValueError(f"{num_folds} folds of {len(names)} groups: there have to be two of both")
    random = np.random.default_rng(seed)
    sums = np.zeros(len(groups))
    for _ in range(_NUM_PARTITIONS):
        ranks = dict(zip(names, random.permutation(len(names)).tolist(), strict=True))
        folds = np.array([ranks[group] % num_folds for group in groups])
        for fold in range(num_folds):
            chosen = choose_weights(trials, folds != fold)
            sums += np.where(folds == fold, chosen.errors, 0.0)
    return sums / _NUM_PARTITIONS
