"""What a CTC loss may be given: arguments brought into one form, and every broken rule named.

The rules (Graves et al. 2006, section 3) are: finite, normalised rows; labels inside the
vocabulary and never the blank; lengths that fit the tensors; and at least one frame per label
plus one blank between equal neighbours. A breach costs nobody a debugging session here: it is
one sentence that says which utterance, what was found, what the argument means and what to do.
"""

import logging
import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from asr.errors import TrainingError

Inputs = Literal["log_probs", "logits", "probs"]
Layout = Literal["TNC", "NTC"]
Lengths = Tensor | Sequence[int] | int

_log = logging.getLogger(__name__)

ROW_TOLERANCE = 1e-2
HALF_PRECISION_ROW_TOLERANCE = 5e-2
_MAX_NAMED_UTTERANCES = 8

_INPUT_LENGTHS_MEANING = "input_lengths counts the valid (not padded) frames of each utterance"
_TARGET_LENGTHS_MEANING = (
    "target_lengths counts the labels of each utterance (no blanks, no padding; not the vocabulary's size)"
)


class ContractError(TrainingError, ValueError):
    """The loss was given something that CTC is not defined for."""


class CTCProblem(NamedTuple):
    """The arguments of one loss call in the one form that every backend reads.

    - ``scores``: ``(batch, frames, vocab)`` view of what the caller gave, in float32 or float64
    - ``targets``: ``(batch, max_target_length)`` int64; what lies beyond a length is never read
    - ``input_lengths``, ``target_lengths``: ``(batch,)`` int64
    """

    scores: Tensor
    targets: Tensor
    input_lengths: Tensor
    target_lengths: Tensor
    blank: int


def prepare(
    x: Tensor, targets: Tensor, input_lengths: Lengths, target_lengths: Lengths, *, blank: int, layout: Layout
) -> CTCProblem:
    """Accept every documented calling convention; refuse shapes and types that fit none of them.

    ``x`` is ``(frames, batch, vocab)`` (``layout="TNC"``), ``(batch, frames, vocab)`` (``"NTC"``) or
    unbatched ``(frames, vocab)``. ``targets`` are padded ``(batch, max_target_length)`` or concatenated
    ``(sum of target_lengths,)``. Lengths are tensors, tuples or lists, of shape ``(batch,)``,
    ``(batch, 1)`` or, unbatched, a single number. Nothing large is copied.
    """
    scores = _batch_first(x, layout)
    batch, frames, vocab = scores.shape
    if not -vocab <= blank < vocab:
        raise ContractError(
            f"blank={blank} is outside the vocabulary: the last axis of the input has {vocab} entries"
        )
    if frames == 0 or batch == 0:
        raise ContractError(f"the input of shape {tuple(x.shape)} is empty: CTC needs at least one frame")
    input_counts = _as_counts(input_lengths, "input_lengths", scores, layout)
    target_counts = _as_counts(target_lengths, "target_lengths", scores, layout)
    labels = _as_labels(targets)
    if labels.device != scores.device:
        labels = labels.to(scores.device, non_blocking=True)
    if labels.dim() == 2 and labels.shape[0] != batch:
        raise ContractError(
            f"targets has shape {tuple(labels.shape)} but the input holds {batch} utterances; "
            "give padded (batch, max_target_length) or concatenated (sum of target_lengths,) targets"
        )
    if labels.dim() <= 1:
        labels = pad_targets(labels.reshape(-1), target_counts)
    return CTCProblem(scores, labels, input_counts, target_counts, blank % vocab)


def pad_targets(targets: Tensor, target_lengths: Tensor) -> Tensor:
    """Concatenated ``(sum of target_lengths,)`` labels as ``(batch, max_target_length)``, padded with -1."""
    counts = target_lengths.tolist()
    if min(counts) < 0 or sum(counts) != targets.numel():
        raise ContractError(
            f"concatenated targets hold {targets.numel()} labels but target_lengths {_shorten(counts)} "
            f"add up to {sum(counts)}; {_TARGET_LENGTHS_MEANING}"
        )
    pieces = list(targets.split(counts))
    return torch.nn.utils.rnn.pad_sequence(pieces, batch_first=True, padding_value=-1)


def min_frames(targets: Tensor, target_lengths: Tensor) -> Tensor:
    """Fewest frames that can carry each target: one per label, one blank between equal neighbours.

    Args:
        targets: ``(batch, max_target_length)`` padded, or ``(sum of target_lengths,)`` concatenated.
        target_lengths: ``(batch,)`` label counts.

    Returns:
        ``(batch,)`` int64. An utterance is alignable when its frame count is at least this.
    """
    if targets.dim() == 1:
        targets = pad_targets(targets, target_lengths)
    return target_lengths + _count_repeats(targets, target_lengths)


def _count_repeats(targets: Tensor, target_lengths: Tensor) -> Tensor:
    positions = torch.arange(1, max(targets.shape[1], 1), device=targets.device)
    repeats = (targets[:, 1:] == targets[:, :-1]) & (positions < target_lengths[:, None])
    return repeats.sum(1)


@dataclass(frozen=True)
class Rules:
    """What a report is read against: everything that is known without looking into a tensor."""

    inputs: Inputs
    blank: int
    vocab: int
    num_frames: int
    max_target_length: int
    is_alignability_error: bool
    row_tolerance: float

    @classmethod
    def of(cls, problem: CTCProblem, inputs: Inputs, dtype: torch.dtype, zero_infinity: bool) -> "Rules":
        """``dtype`` is the caller's: rows rounded to half precision need not sum to one exactly."""
        _, num_frames, vocab = problem.scores.shape
        is_half = dtype in (torch.float16, torch.bfloat16)
        return cls(
            inputs=inputs,
            blank=problem.blank,
            vocab=vocab,
            num_frames=num_frames,
            max_target_length=problem.targets.shape[1],
            is_alignability_error=not zero_infinity,
            row_tolerance=HALF_PRECISION_ROW_TOLERANCE if is_half else ROW_TOLERANCE,
        )


def inspect_integers(problem: CTCProblem) -> Tensor:
    """Facts about lengths and labels, ``(batch, 6)`` int64, computed where the labels live.

    Columns: input length, target length, fewest frames needed, position of the first label that is
    out of range or blank (-1: none), that label, and 1 where anything breaks a rule.
    """
    targets, frames, labels = problem.targets, problem.input_lengths, problem.target_lengths
    num_frames, vocab = problem.scores.shape[1:]
    width = targets.shape[1]
    needed = min_frames(targets, labels)
    broken = (frames < needed) | (frames < 0) | (frames > num_frames) | (labels < 0) | (labels > width)
    if width:
        positions = torch.arange(width, device=targets.device)
        wrong = ((targets < 0) | (targets >= vocab) | (targets == problem.blank)) & (
            positions < labels[:, None]
        )
        is_wrong, first = wrong.max(1)
        wrong_label = targets.gather(1, first[:, None]).squeeze(1)
        position = torch.where(is_wrong, first, -1)
        broken = broken | is_wrong
    else:
        position = wrong_label = torch.full_like(labels, -1)
    return torch.stack((frames, labels, needed, position, wrong_label, broken.long()), dim=1)


def inspect_rows(problem: CTCProblem, rules: Rules, row_log_totals: Tensor | None = None) -> Tensor:
    """Facts about rows, ``(batch, 3)`` float64: first bad frame (-1: none), its total, its smallest score.

    A row is bad when it holds nan or +inf or, unless ``inputs="logits"``, when its probabilities do not
    add up to one. Padded frames are never looked at. ``row_log_totals`` ``(batch, frames)`` is the
    logarithm of each row's sum of exponentials, if a backend knows it already.
    """
    scores, inputs = problem.scores.detach(), rules.inputs
    if inputs == "probs":
        total = scores.sum(-1)
    else:
        if row_log_totals is None:
            # One utterance at a time: the function makes a copy of what it is given.
            row_log_totals = torch.stack([utterance.logsumexp(-1) for utterance in scores])
        total = row_log_totals if inputs == "logits" else row_log_totals.exp()
    bad = ~total.isfinite() if inputs == "logits" else ~((total - 1).abs() <= rules.row_tolerance)
    if inputs == "probs":
        bad |= scores.amin(-1) < 0
    frame = torch.arange(scores.shape[1], device=scores.device)
    bad &= frame < problem.input_lengths.to(scores.device)[:, None]
    is_bad, first = bad.max(1)
    utterance = torch.arange(scores.shape[0], device=scores.device)
    smallest = scores[utterance, first].amin(-1)
    first_bad = torch.where(is_bad, first, -1)
    return torch.stack((first_bad.double(), total[utterance, first].double(), smallest.double()), dim=1)


def raise_on_integers(facts: Tensor, rules: Rules, when: str = "", only_memory: bool = False) -> None:
    """Raise the sentence for the first rule that lengths or labels break.

    Impossible utterances that ``zero_infinity`` hides from the loss are named in the log instead.
    ``only_memory`` keeps to what would make a kernel read outside its arrays.
    """
    if not facts[:, 5].any():
        return
    for utterance, (frames, labels, _, position, label, broken) in enumerate(facts.tolist()):
        if not broken:
            continue
        if not 0 <= frames <= rules.num_frames:
            raise ContractError(
                f"{when}input_lengths[{utterance}] is {frames} but the input has {rules.num_frames} frames; "
                f"{_INPUT_LENGTHS_MEANING}, so it lies between 0 and {rules.num_frames}"
            )
        if not 0 <= labels <= rules.max_target_length:
            raise ContractError(
                f"{when}target_lengths[{utterance}] is {labels} but the targets hold "
                f"{rules.max_target_length} labels per utterance; {_TARGET_LENGTHS_MEANING}"
            )
        if position >= 0 and not (only_memory and label == rules.blank):
            raise ContractError(_describe_label(utterance, position, label, rules, when))
    if only_memory:
        return
    if rules.is_alignability_error:
        raise ContractError(when + _describe_impossible(facts))
    _log.warning("%szero_infinity counts these as zero: %s", when, _describe_impossible(facts))


def _describe_impossible(facts: Tensor) -> str:
    """Name the utterances whose labels cannot fit into their frames."""
    rows = [(index, *row[:3]) for index, row in enumerate(facts.tolist()) if row[0] < row[2]]
    named = "; ".join(
        f"utterance {index}: {labels} labels + {needed - labels} repeats = {needed} frames needed, "
        f"{frames} given"
        for index, frames, labels, needed in rows[:_MAX_NAMED_UTTERANCES]
    )
    more = f"; and {len(rows) - _MAX_NAMED_UTTERANCES} more" if len(rows) > _MAX_NAMED_UTTERANCES else ""
    return (
        f"{len(rows)} of {len(facts)} utterances cannot be aligned ({named}{more}): every label takes a "
        f"frame and equal neighbours a blank between them. {_INPUT_LENGTHS_MEANING} after the model's subsampling; "
        f"{_TARGET_LENGTHS_MEANING}. Exclude them (asr.ctc.min_frames counts), subsample less, or set "
        "zero_infinity=True"
    )


def raise_on_rows(facts: Tensor, rules: Rules, when: str = "") -> None:
    """Raise the sentence for the first row that is not finite or not normalised."""
    bad = (facts[:, 0] >= 0).nonzero().flatten().tolist()
    if not bad:
        return
    utterance = bad[0]
    frame, total, smallest = facts[utterance].tolist()
    where = f"{when}utterance {utterance}, frame {int(frame)}"
    if math.isnan(total) or (rules.inputs == "logits" and abs(total) == float("inf")):
        raise ContractError(
            f"{where}: the {rules.inputs} are not finite (nan or inf). Look at the learning rate, at "
            "gradient clipping and at the features of this utterance"
        )
    raise ContractError(_describe_row_sum(where, total, smallest, rules))


def _describe_row_sum(where: str, total: float, smallest: float, rules: Rules) -> str:
    if rules.inputs == "probs":
        found = f"the row sum is {total:.6g} and the smallest entry {smallest:.4g}; "
        found += "probabilities are >= 0 and sum to 1"
        remedy = "apply softmax over the vocabulary axis, or say inputs='logits' or inputs='log_probs'"
    else:
        found = f"the row sum of exp(log_probs) is {total:.6g}, not 1"
        remedy = (
            "apply log_softmax over the vocabulary axis first, or say inputs='logits' to have it done here"
        )
        # Exponentials of probabilities add up to at most this.
        if smallest >= 0 and total <= rules.vocab - 1 + math.e:
            remedy += ". The entries look like probabilities: then say inputs='probs'"
    return (
        f"{where}: the input is not normalised: {found}. A CTC loss of unnormalised rows is meaningless "
        f"(it can rank good predictions behind bad ones); {remedy}"
    )


def _describe_label(utterance: int, position: int, label: int, rules: Rules, when: str) -> str:
    where = f"{when}targets of utterance {utterance}, position {position}: label {label}"
    if label == rules.blank:
        return (
            f"{where} is the blank (blank={rules.blank}), which CTC inserts itself and a target never "
            "contains. Shift the labels, choose another blank or, if this is padding, correct target_lengths "
            f"({_TARGET_LENGTHS_MEANING})"
        )
    return (
        f"{where} is outside the vocabulary 0..{rules.vocab - 1} (the last axis of the input has "
        f"{rules.vocab} entries). Correct the tokenizer or the model's output size or, if this is padding, "
        f"target_lengths "
        f"({_TARGET_LENGTHS_MEANING})"
    )


class DeferredChecks:
    """Checks of device tensors without waiting for the device.

    The facts of a call travel to the host in the background and are read by a later call, so an error
    names a batch given a few calls earlier: much better than never, and free.
    """

    def __init__(self) -> None:
        self._pending: deque[tuple[Tensor, Tensor, Rules, Any]] = deque()

    def submit(self, integers: Tensor, rows: Tensor, rules: Rules) -> None:
        """Start moving the facts of this call to the host."""
        arrived = None
        if rows.is_cuda:
            integers, rows = (
                torch.empty(facts.shape, dtype=facts.dtype, pin_memory=True).copy_(facts, non_blocking=True)
                for facts in (integers, rows)
            )
            arrived = torch.cuda.Event()
            arrived.record()
        self._pending.append((integers, rows, rules, arrived))

    def poll(self, wait: bool = False) -> None:
        """Raise for the oldest arrived call that broke a rule; ``wait=True`` waits for all of them."""
        while self._pending and (wait or self._pending[0][3] is None or self._pending[0][3].query()):
            integers, rows, rules, arrived = self._pending.popleft()
            if arrived is not None:
                arrived.synchronize()
            raise_on_integers(integers, rules, when="an earlier CTC loss call: ")
            raise_on_rows(rows, rules, when="an earlier CTC loss call: ")


def _batch_first(x: Tensor, layout: Layout) -> Tensor:
    if not x.is_floating_point():
        raise ContractError(
            f"the input has dtype {x.dtype}: CTC needs floating-point scores per frame and label"
        )
    if x.dim() not in (2, 3):
        raise ContractError(
            f"the input has shape {tuple(x.shape)}: give (frames, batch, vocab) with layout='TNC', "
            "(batch, frames, vocab) with layout='NTC', or (frames, vocab) for one utterance"
        )
    if x.dim() == 2:
        x = x.unsqueeze(0)
    elif layout == "TNC":
        x = x.transpose(0, 1)
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


def _as_counts(lengths: Lengths, name: str, scores: Tensor, layout: Layout) -> Tensor:
    """``(batch,)`` int64 on the device of the ``(batch, frames, vocab)`` scores."""
    batch, frames, _ = scores.shape
    counts = lengths if isinstance(lengths, Tensor) else torch.as_tensor(lengths)
    meaning = _INPUT_LENGTHS_MEANING if name == "input_lengths" else _TARGET_LENGTHS_MEANING
    if counts.is_floating_point():
        # Keras examples hold whole numbers in float arrays; a ratio such as 0.8 is refused.
        if counts.is_cuda or not torch.equal(counts, counts.round()):
            raise ContractError(f"{name} has dtype {counts.dtype}: {meaning}, as integers, never as ratios")
        counts = counts.long()
    if counts.dtype == torch.bool or counts.is_complex():
        raise ContractError(f"{name} has dtype {counts.dtype}: {meaning}, as integers")
    if counts.numel() != batch or counts.dim() > 2:
        hint = ""
        if counts.numel() == frames:
            other = "NTC" if layout == "TNC" else "TNC"
            hint = f" (the axes look swapped: with layout='{other}' it would hold {frames})"
        raise ContractError(
            f"{name} has shape {tuple(counts.shape)} but the input holds {batch} utterances{hint}; "
            f"{meaning}, one number per utterance of this batch"
        )
    counts = counts if counts.dim() == 1 else counts.reshape(-1)
    return counts.to(scores.device, torch.int64, non_blocking=True)


def _as_labels(targets: Tensor) -> Tensor:
    labels = targets if isinstance(targets, Tensor) else torch.as_tensor(targets)
    if labels.is_floating_point() or labels.dtype == torch.bool or labels.is_complex():
        raise ContractError(f"targets have dtype {labels.dtype}: they are vocabulary indices, so integers")
    if labels.dim() > 2:
        raise ContractError(
            f"targets have shape {tuple(labels.shape)}: give indices, padded (batch, max_target_length) or "
            "concatenated, not one-hot rows"
        )
    return labels.long()


def _shorten(values: list[int]) -> str:
    return str(values) if len(values) <= _MAX_NAMED_UTTERANCES else f"{values[:_MAX_NAMED_UTTERANCES]}…"
