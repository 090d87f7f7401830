"""PyTorch's own CTC kernels behind the common interface."""

import torch
from torch import Tensor

from asr.ctc.contract import CTCProblem


def per_utterance(problem: CTCProblem, is_normalised: bool) -> Tensor:
    """Losses ``(batch,)``, +inf where no alignment exists, with a zero gradient there.

    ``is_normalised`` says that the scores are log-probabilities; otherwise they are logits. The
    gradient with respect to log-probabilities follows PyTorch's convention: it assumes that they come
    out of a log_softmax, and is probability minus occupancy.
    """
    log_probs = problem.scores if is_normalised else problem.scores.log_softmax(-1)
    targets = problem.targets
    if targets.shape[1] == 0:
        targets = targets.new_full((targets.shape[0], 1), -1)
    # The public function zeroes either both infinite losses and their gradients or neither, and then
    # the gradients are nan, which poisons a batch even when the loss is masked out.
    losses, _ = torch._ctc_loss(
        log_probs.transpose(0, 1),
        targets,
        problem.input_lengths,
        problem.target_lengths,
        problem.blank,
        zero_infinity=True,
    )
    return losses
