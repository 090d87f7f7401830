"""What can be added to the CTC loss in training, each as one weight; all of them off is plain CTC.

Every term is a sum over the frames of an utterance, as the CTC loss is, so that a weight means the
same for short and long utterances. docs/loss_variants.md says what each is for and what it did.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, distributed, nn

from asr.ctc.loss import Backend, CTCLoss
from asr.records import Emissions

# Of the running label priors: they follow the last hundred batches or so.
_PRIOR_MOMENTUM = 0.99
# A label that is never heard would else be divided by zero one day.
_LEAST_PRIOR = 1e-8


@dataclass(frozen=True)
class Variants:
    """Weights of everything beside plain CTC; the defaults are plain CTC.

    - ``consistency``: α of CR-CTC (Yao et al. 2024, arXiv 2410.05101): the emissions of two differently
      masked views of an utterance are pulled together, each towards the other as a fixed target
    - ``intermediate``: share of the loss taken from earlier layers (Lee & Watanabe 2021, arXiv 2102.03216)
    - ``blank_penalty``: nats that a path pays for each of its blanks
    - ``prior``: exponent of the running label priors that scores are divided by (Zeyer et al. 2021,
      arXiv 2105.14849; Huang et al. 2024, arXiv 2406.02560)
    - ``entropy``: of the confidence penalty, which rewards the entropy of each frame (Pereyra et al.
      2017, arXiv 1701.06548)
    - ``label_smoothing``: share of the loss that is the divergence of each frame from the uniform
      distribution (Kim et al. 2018, arXiv 1711.02212)
    - ``focal_gamma``: exponent of (1 - probability of the transcript), by which the CTC loss of an
      utterance is multiplied (Feng et al. 2019, doi 10.1155/2019/9345861)
    - ``wildcard_penalty``: nats per frame that a wildcard covers, None where transcripts have none
      (Cai et al. 2022, arXiv 2110.10185; the penalty: Pratap et al. 2022, arXiv 2201.12208)
    """

    consistency: float = 0.0
    intermediate: float = 0.0
    blank_penalty: float = 0.0
    prior: float = 0.0
    entropy: float = 0.0
    label_smoothing: float = 0.0
    focal_gamma: float = 0.0
    wildcard_penalty: float | None = None

    @property
    def num_views(self) -> int:
        """How many differently masked copies of a batch the loss is made from."""
        return 2 if self.consistency else 1

    def coefficients(self) -> dict[str, float]:
        """By what each part that is in use is multiplied in the total."""
        of_ctc = 1 - self.label_smoothing
        found = {
            "ctc": of_ctc * (1 - self.intermediate),
            "intermediate": of_ctc * self.intermediate,
            "smoothing": self.label_smoothing,
            "consistency": self.consistency,
            "entropy": -self.entropy,
        }
        return {name: value for name, value in found.items() if value}


class LossParts(NamedTuple):
    """``total``: ``(batch,)``, in nats per utterance; ``parts``: the same for each part, before its weight."""

    total: Tensor
    parts: dict[str, Tensor]


class VariantLoss(nn.Module):
    """The training loss: CTC with the chosen variants.

    Its running label priors are a buffer, so a checkpoint holds them.

    Args:
        variants: which, and how much of each.
        vocab_size: labels including the blank; a wildcard in the targets has this number.
        blank_id: of the CTC blank.
        backend: of the CTC loss.
    """

    log_prior: Tensor | None

    def __init__(
        self, variants: Variants, *, vocab_size: int, blank_id: int, backend: Backend = "auto"
    ) -> None:
        super().__init__()
        self.variants = variants
        self.coefficients = variants.coefficients()
        self.blank_id = blank_id
        options = {"blank": blank_id, "reduction": "none", "layout": "NTC", "backend": backend}
        self._ctc_of_log_probs = CTCLoss(**options, inputs="log_probs", check=False)  # type: ignore[arg-type]
        self._ctc_of_logits = CTCLoss(**options, inputs="logits", check=False)  # type: ignore[arg-type]
        uniform = torch.full((vocab_size,), -math.log(vocab_size))
        self.register_buffer("log_prior", uniform if variants.prior else None)

    @property
    def part_names(self) -> list[str]:
        """What the total is made of; empty when it is CTC alone."""
        return list(self.coefficients) if len(self.coefficients) > 1 else []

    def forward(self, emissions: Emissions, targets: Tensor, target_lengths: Tensor) -> LossParts:
        """Loss of each utterance.

        Args:
            emissions: ``(num_views * batch, frames, vocab)``: all first views, then all second ones.
            targets: ``(batch, labels)`` of the utterances; ``target_lengths``: ``(batch,)``.
        """
        log_probs, lengths = emissions.log_probs, emissions.log_prob_lengths
        num_views = self.variants.num_views
        targets, target_lengths = targets.repeat(num_views, 1), target_lengths.repeat(num_views)
        by_row = {"ctc": self._criterion(log_probs, lengths, targets, target_lengths)}
        if "intermediate" in self.coefficients:
            earlier = [self._criterion(x, lengths, targets, target_lengths) for x in emissions.intermediate]
            by_row["intermediate"] = torch.stack(earlier).mean(dim=0)
        if "consistency" in self.coefficients:
            by_row["consistency"] = over_frames(divergence_from_other_view(log_probs), lengths)
        if "smoothing" in self.coefficients:
            by_row["smoothing"] = over_frames(divergence_from_uniform(log_probs), lengths)
        if "entropy" in self.coefficients:
            by_row["entropy"] = over_frames(frame_entropy(log_probs), lengths)
        if self.log_prior is not None:
            self._follow_priors(log_probs.detach(), lengths)
        parts = {name: rows.view(num_views, -1).mean(dim=0) for name, rows in by_row.items()}
        total = torch.stack([self.coefficients[name] * part for name, part in parts.items()]).sum(dim=0)
        return LossParts(total, parts)

    def _criterion(
        self, log_probs: Tensor, lengths: Tensor, targets: Tensor, target_lengths: Tensor
    ) -> Tensor:
        """CTC loss ``(rows,)`` of one layer's output, with all that changes the CTC loss itself."""
        scores = self._scores(log_probs)
        if scores is log_probs:
            losses = self._ctc_of_log_probs(scores, targets, lengths, target_lengths)
        else:
            # The kernels know normalised rows only. What normalising takes away is given back, and
            # the derivative is that of the free scores.
            losses = self._ctc_of_logits(scores, targets, lengths, target_lengths)
            losses = losses - over_frames(scores.logsumexp(dim=2), lengths)
        if self.variants.focal_gamma:
            improbability = -torch.expm1(-losses.clamp_min(1e-6))  # its power has no slope at 0
            losses = improbability**self.variants.focal_gamma * losses
        return losses

    def _scores(self, log_probs: Tensor) -> Tensor:
        """What paths are scored with: ``(rows, frames, vocab)``, and one column more for the wildcard."""
        scores = log_probs
        if self.log_prior is not None:
            # Relative to the uniform prior: before anything is learned about priors, this is plain CTC.
            scores = scores - self.variants.prior * (self.log_prior + math.log(len(self.log_prior)))
        if self.variants.blank_penalty:
            penalty = torch.zeros_like(scores[0, 0])
            penalty[self.blank_id] = self.variants.blank_penalty
            scores = scores - penalty
        if self.variants.wildcard_penalty is not None:
            # Any token may be there, blank included: their probabilities sum to one.
            covered = scores.new_full((*scores.shape[:2], 1), -self.variants.wildcard_penalty)
            scores = torch.cat([scores, covered], dim=2)
        return scores

    @torch.no_grad()
    def _follow_priors(self, log_probs: Tensor, lengths: Tensor) -> None:
        """Move the priors towards the mean posterior of the real frames of this batch, in all processes."""
        assert self.log_prior is not None
        sums = (log_probs.exp() * _frame_mask(log_probs, lengths).unsqueeze(2)).sum(dim=(0, 1))
        totals = torch.cat([sums, lengths.sum().view(1).to(sums.dtype)])
        if distributed.is_initialized():
            distributed.all_reduce(totals)
        mean = totals[:-1] / totals[-1].clamp(min=1)
        prior = _PRIOR_MOMENTUM * self.log_prior.exp() + (1 - _PRIOR_MOMENTUM) * mean
        self.log_prior.copy_(prior.clamp_min(_LEAST_PRIOR).log())


def divergence_from_other_view(log_probs: Tensor) -> Tensor:
    """KL(other view ‖ this one) of each frame; no gradient reaches the other view through its own.

    ``(2 * batch, frames, vocab)``, all first views before all second ones → ``(2 * batch, frames)``.
    The mean over both views is half of the symmetric divergence.
    """
    other = log_probs.detach().roll(len(log_probs) // 2, dims=0)
    return (other.exp() * (other - log_probs)).sum(dim=2)


def divergence_from_uniform(log_probs: Tensor) -> Tensor:
    """KL(uniform ‖ frame): ``(…, vocab)`` → ``(…)``; 0 where all labels are equally probable."""
    return -log_probs.mean(dim=-1) - math.log(log_probs.shape[-1])


def frame_entropy(log_probs: Tensor) -> Tensor:
    """Entropy of each frame in nats: ``(…, vocab)`` → ``(…)``."""
    return -(log_probs.exp() * log_probs).sum(dim=-1)


def over_frames(values: Tensor, lengths: Tensor) -> Tensor:
    """Sum of the real frames: ``(rows, frames)`` and ``(rows,)`` lengths → ``(rows,)``."""
    return torch.where(_frame_mask(values, lengths), values, 0.0).sum(dim=1)


def _frame_mask(values: Tensor, lengths: Tensor) -> Tensor:
    return torch.arange(values.shape[1], device=lengths.device) < lengths.unsqueeze(1)
