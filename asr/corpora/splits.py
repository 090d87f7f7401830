"""Which utterances train and which evaluate: by whole speakers, the same on every machine.

The order of groups (speakers, chapters, utterances) comes from a hash of seed and name, so it
depends neither on the order of files nor on Python's or NumPy's random generators.
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from asr.corpora.collect import SPLITS, Collected, Exclusion, PreparedCorpus
from asr.errors import ConfigError
from asr.records import Utterance

SPLIT_BY = ("auto", "speaker", "chapter", "utterance")
"""Values of ``split_by``: what is never shared between train, dev and test."""

_MAX_NAMES_IN_NOTE = 12


DEFAULT_DEV_FRACTION = 0.1


@dataclass(frozen=True, slots=True)
class SplitPlan:
    """How evaluation sets are carved: dev is a fraction, or fold ``fold`` (from 0) of ``folds``.

    ``dev_fraction=None`` means the default fraction; an explicit one contradicts ``folds``.

    Raises:
        ConfigError: for fractions outside [0, 1), or folds that are incomplete or out of range.
    """

    dev_fraction: float | None = None
    test_fraction: float = 0.0
    seed: int = 0
    folds: int | None = None
    fold: int | None = None
    split_by: str = "auto"

    def __post_init__(self) -> None:
        for name, fraction in (("dev_fraction", self.dev_fraction), ("test_fraction", self.test_fraction)):
            if fraction is not None and not 0 <= fraction < 1:
                raise ConfigError(f"{name}={fraction:g} must be at least 0 and less than 1")
        if self.dev_share + self.test_fraction >= 1:
            raise ConfigError("dev_fraction and test_fraction together leave nothing for training")
        if self.split_by not in SPLIT_BY:
            raise ConfigError(f"split_by={self.split_by} must be one of {', '.join(SPLIT_BY)}")
        if self.folds is None and self.fold is None:
            return
        if self.folds is None or self.fold is None:
            raise ConfigError("folds and fold go together: e.g. folds=5 fold=0")
        if self.dev_fraction is not None:
            raise ConfigError("dev_fraction and folds contradict each other: a fold is the dev set")
        if self.folds < 2:
            raise ConfigError(f"folds={self.folds} must be at least 2")
        if not 0 <= self.fold < self.folds:
            raise ConfigError(f"fold={self.fold} must be between 0 and {self.folds - 1} (folds={self.folds})")

    @property
    def dev_share(self) -> float:
        """The fraction of all utterances that dev is meant to hold when there are no folds."""
        return DEFAULT_DEV_FRACTION if self.dev_fraction is None else self.dev_fraction

    @property
    def num_parts(self) -> int:
        """The fewest groups with which every part can have one."""
        num_with_train = self.folds or (2 if self.dev_share else 1)
        return num_with_train + (1 if self.test_fraction else 0)

    def require_unused(self, where: str) -> None:
        """Refuse options that say how to carve dev, when ``where`` brings its own dev set."""
        if self.folds is not None or self.dev_fraction is not None:
            option = "folds" if self.folds is not None else "dev_fraction"
            raise ConfigError(f"{option} has no use here: {where} has a dev part of its own")


@dataclass(frozen=True, slots=True)
class Grouping:
    """A way of keeping utterances together: its name (``speaker``) and each utterance's group."""

    name: str
    group_of: Callable[[Utterance], str]


@dataclass(frozen=True, slots=True)
class Carved:
    """Disjoint lists in their original order, and sentences that say how they came about."""

    train: list[Utterance]
    dev: list[Utterance]
    test: list[Utterance]
    notes: list[str]


def by_utterance() -> Grouping:
    """Every utterance on its own: the last resort, voices are shared."""
    return Grouping("utterance", lambda utterance: utterance.id)


def by_speaker() -> Grouping:
    """Whole speakers; an utterance of unknown speaker stands for itself."""
    return Grouping("speaker", lambda utterance: utterance.speaker or f"utterance {utterance.id}")


def carve(utterances: Sequence[Utterance], groupings: Sequence[Grouping], plan: SplitPlan) -> Carved:
    """Split ``utterances`` into train, dev and test by whole groups.

    Args:
        utterances: all of them, with unique ids.
        groupings: what may be kept together, the most honest first; ``split_by=auto`` takes the
            first that has enough groups.
        plan: the sizes. Test is carved first and does not depend on the fold.

    Raises:
        ConfigError: when the grouping asked for is unknown here or has too few groups.
    """
    grouping = _choose_grouping(utterances, groupings, plan.split_by, plan.num_parts)
    sizes = Counter(grouping.group_of(utterance) for utterance in utterances)
    test_groups = choose_groups(
        sizes, plan.test_fraction, plan.seed, purpose="test", num_left=plan.num_parts - 1
    )
    rest = {group: size for group, size in sizes.items() if group not in test_groups}
    if plan.folds is not None:
        assignment = assign_folds(rest, plan.folds, plan.seed)
        dev_groups = frozenset(group for group, fold in assignment.items() if fold == plan.fold)
    else:
        share = plan.dev_share / (1 - plan.test_fraction)
        dev_groups = choose_groups(rest, share, plan.seed, purpose="dev")
    carved = Carved([], [], [], [])
    for utterance in utterances:
        group = grouping.group_of(utterance)
        part = carved.test if group in test_groups else carved.dev if group in dev_groups else carved.train
        part.append(utterance)
    for name, groups, part in (("dev", dev_groups, carved.dev), ("test", test_groups, carved.test)):
        if groups:
            carved.notes.append(
                _describe(
                    name, grouping.name, groups, num_groups=len(sizes), part=part, num_all=len(utterances)
                )
            )
    return carved


def carve_by_speaker(utterances: Sequence[Utterance], plan: SplitPlan) -> Carved:
    """By whole speakers where any are known and there are enough, else one by one; warns of those unknown.

    Raises:
        ConfigError: as :func:`carve`.
    """
    num_unknown = sum(not utterance.speaker for utterance in utterances)
    speakers_known = num_unknown < len(utterances)
    carved = carve(utterances, [by_speaker()] * speakers_known + [by_utterance()], plan)
    if num_unknown and (carved.dev or carved.test):
        unknown = f"{_plural(num_unknown, 'utterance')} without a speaker"
        which = unknown if speakers_known else "no speakers are known"
        carved.notes.append(f"{which}: dev and test may hold voices that are in train")
    return carved


def with_dev(collected: Collected, excluded: list[Exclusion], plan: SplitPlan, where: str) -> PreparedCorpus:
    """The corpus with the splits that it has; dev, where there is none, is carved from the training part.

    Raises:
        ConfigError: ``plan`` says how to carve what is there already.
    """
    splits = {split: collected.of(split) for split in SPLITS}
    splits["train"] = collected.of("") + splits["train"]
    if splits["dev"]:
        plan.require_unused(where)
        carved = Carved(splits["train"], splits["dev"], [], [])
    else:
        carved = carve_by_speaker(splits["train"], plan)
    splits |= {"train": carved.train, "dev": carved.dev, "test": splits["test"] or carved.test}
    return PreparedCorpus(splits, collected.excluded + excluded, carved.notes)


def choose_groups(
    sizes: Mapping[str, int], fraction: float, seed: int, *, purpose: str = "dev", num_left: int = 1
) -> frozenset[str]:
    """Whole groups that together hold about ``fraction`` of all items.

    Groups are visited in hash order and taken when that brings the total nearer to the target.
    At least ``num_left`` groups are left, and with a positive fraction at least one is taken where
    that allows it. ``purpose`` makes the orders for dev and test independent.
    """
    target = fraction * sum(sizes.values())
    order = _hash_order(sizes, seed, purpose)
    if target <= 0 or len(order) <= num_left:
        return frozenset()
    chosen: list[str] = []
    total = 0
    for group in order:
        if len(chosen) < len(order) - num_left and abs(total + sizes[group] - target) < abs(total - target):
            chosen.append(group)
            total += sizes[group]
    return frozenset(chosen or [min(order, key=lambda group: sizes[group])])


def assign_folds(sizes: Mapping[str, int], num_folds: int, seed: int) -> dict[str, int]:
    """The fold of each group, balanced by size: in hash order, each goes to the smallest fold so far."""
    totals = [0] * num_folds
    assignment = {}
    for group in _hash_order(sizes, seed, "fold"):
        fold = totals.index(min(totals))
        assignment[group] = fold
        totals[fold] += sizes[group]
    return assignment


def shared_speakers_notes(splits: Mapping[str, Iterable[Utterance]]) -> list[str]:
    """One sentence for each pair of splits in which the same speaker is heard."""
    speakers = {
        name: {utterance.speaker for utterance in utterances if utterance.speaker}
        for name, utterances in splits.items()
    }
    notes = []
    names = list(speakers)
    for index, first in enumerate(names):
        for second in names[index + 1 :]:
            shared = speakers[first] & speakers[second]
            if shared:
                notes.append(
                    f"{first} and {second} share {_plural(len(shared), 'speaker')} ({_names(shared)}): "
                    f"WER on {second} is that of known voices"
                )
    return notes


def _choose_grouping(
    utterances: Sequence[Utterance], groupings: Sequence[Grouping], split_by: str, num_needed: int
) -> Grouping:
    allowed = [grouping for grouping in groupings if split_by in ("auto", grouping.name)]
    if not allowed:
        known = ", ".join(grouping.name for grouping in groupings)
        raise ConfigError(f"split_by={split_by} is not known for this corpus: use auto or {known}")
    num_groups = 0
    for grouping in allowed:
        num_groups = len({grouping.group_of(utterance) for utterance in utterances})
        if num_groups >= num_needed:
            return grouping
    raise ConfigError(
        f"{_plural(num_groups, allowed[-1].name)} cannot be split into {num_needed} parts: "
        "use fewer folds, dev_fraction=0 or test_fraction=0, or another split_by"
    )


def _hash_order(groups: Iterable[str], seed: int, purpose: str) -> list[str]:
    def key(group: str) -> tuple[bytes, str]:
        return hashlib.sha256(f"{purpose}:{seed}:{group}".encode()).digest(), group

    return sorted(groups, key=key)


def _describe(
    name: str,
    unit: str,
    groups: frozenset[str],
    *,
    num_groups: int,
    part: Sequence[Utterance],
    num_all: int,
) -> str:
    share = f"{len(part)} of {num_all} utterances, {100 * len(part) / num_all:.1f} %"
    if unit == "utterance":
        return f"{name}: {share}, picked one by one"
    return f"{name}: {len(groups)} of {_plural(num_groups, unit)}, whole ({_names(groups)}): {share}"


def _names(names: Iterable[str]) -> str:
    ordered = sorted(names)
    shown = ", ".join(ordered[:_MAX_NAMES_IN_NOTE])
    return shown if len(ordered) <= _MAX_NAMES_IN_NOTE else f"{shown}, …"


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
