"""The definition of the CTC loss, short enough to be read: everything else is checked against it.

Graves et al. 2006, "Connectionist temporal classification", equations 5 to 8, in log space. Plain
autograd differentiates it, so second derivatives exist, and float64 is exact to rounding.
"""

from typing import Any

import torch
from torch import Tensor

from asr.ctc.contract import CTCProblem

# log(0) as a number: -inf would make autograd compute 0 * nan wherever no path leads.
_NOTHING = -1e30


def per_utterance(problem: CTCProblem, is_normalised: bool) -> Tensor:
    """Losses ``(batch,)``, +inf where no alignment exists.

    ``is_normalised`` says that the scores are log-probabilities; otherwise they are logits. The
    derivative with respect to log-probabilities is the true one, minus the occupancy of each label.
    """
    scores = problem.scores if is_normalised else problem.scores.log_softmax(-1)
    scores = scores.clamp_min(_NOTHING)
    batch, num_frames, _ = scores.shape
    states, can_skip = _extended_targets(problem)
    emissions = scores.gather(2, states[:, None, :].expand(-1, num_frames, -1))

    at_start = torch.arange(states.shape[1], device=scores.device) == 0
    alpha = torch.where(at_start, 0.0, _NOTHING).to(scores).expand(batch, -1)
    for frame in range(num_frames):
        if frame == 0:
            # Before the first frame the path may enter the leading blank or the first label.
            stay, skip = alpha, torch.full_like(alpha, _NOTHING)
        else:
            stay, skip = alpha, torch.where(can_skip, _shifted(alpha, 2), _NOTHING)
        arrived = torch.stack((stay, _shifted(alpha, 1), skip)).logsumexp(0) + emissions[:, frame]
        is_valid = (frame < problem.input_lengths)[:, None]
        alpha = torch.where(is_valid, arrived, alpha)

    # A path ends in the last label or in the blank after it.
    last_blank = 2 * problem.target_lengths[:, None]
    last_label = (last_blank - 1).clamp_min(0)
    in_blank = alpha.gather(1, last_blank)
    in_label = torch.where(problem.target_lengths[:, None] > 0, alpha.gather(1, last_label), _NOTHING)
    # Without frames nothing was emitted: only the empty target has a path, of probability one.
    in_label = torch.where(problem.input_lengths[:, None] > 0, in_label, _NOTHING)
    log_likelihood = torch.cat((in_blank, in_label), 1).logsumexp(1)
    return torch.where(log_likelihood <= _NOTHING / 2, torch.inf, -log_likelihood)


class AssumeLogSoftmax(torch.autograd.Function):
    """Identity that turns the true gradient of log-probabilities into PyTorch's convention.

    ``torch.nn.CTCLoss`` returns probability minus occupancy, which is the true gradient pulled through
    a log_softmax. Behind a real log_softmax both conventions give the logits the same gradient.
    """

    @staticmethod
    def forward(ctx: Any, log_probs: Tensor) -> Tensor:
        ctx.save_for_backward(log_probs)
        return log_probs.view_as(log_probs)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:  # type: ignore[override]
        (log_probs,) = ctx.saved_tensors
        (gradient,) = gradients
        return gradient - log_probs.exp() * gradient.sum(-1, keepdim=True)


def _extended_targets(problem: CTCProblem) -> tuple[Tensor, Tensor]:
    """Labels with blanks around them ``(batch, 2 * max_target_length + 1)``, and which may skip a blank."""
    targets = problem.targets
    batch, width = targets.shape
    used = torch.arange(width, device=targets.device) < problem.target_lengths[:, None]
    states = targets.new_full((batch, 2 * width + 1), problem.blank)
    states[:, 1::2] = torch.where(used, targets, problem.blank)
    can_skip = (states != problem.blank) & (states != _shifted(states, 2))
    return states, can_skip


def _shifted(values: Tensor, by: int) -> Tensor:
    """Move states ``by`` places to the right, filling with what no path or label equals."""
    return torch.nn.functional.pad(values, (by, 0), value=_NOTHING if values.is_floating_point() else -1)[
        :, : values.shape[1]
    ]
