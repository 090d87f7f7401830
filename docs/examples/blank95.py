"""Why do good predictions cost 222.8446 and all-blank ones only 3.7955?

A user of ``torch.nn.CTCLoss(blank=95)`` compared two outputs of shape (167, 1, 96) for the same 13
labels. The first one's most probable tokens are listed below, run by run; the second one's are
all blank. The scores themselves were not published; those built here have the same best tokens.
Run it with ``python docs/examples/blank95.py``.
"""

import itertools
import math

import torch

from asr.ctc import ContractError, CTCLoss
from asr.ctc.align import forced_align
from asr.ctc.paths import collapse

BLANK, VOCAB_SIZE = 95, 96
LABELS = (63, 8, 1, 38, 29, 14, 41, 71, 14, 29, 45, 41, 3)
REPORTED_GOOD, REPORTED_BLANK = 222.8446, 3.7955
GOOD_CONFIDENCE, BLANK_CONFIDENCE = 0.9, 0.92
RUNS = """
63x6 95x2 63x2 95x2 8x3 95x1 8x1 95x1 8x2 95x3 1x2 95x1 1x1 95x1 1x2 95x2 38x1 95x2 38x5 29x7 95x1
29x2 95x10 14x1 95x1 14x1 95x4 14x1 95x1 14x1 41x3 95x1 41x6 71x3 95x1 71x5 95x2 14x2 95x1 14x2 95x1
14x2 95x1 29x2 95x1 29x7 45x1 95x2 45x2 95x1 45x4 41x1 95x1 41x2 95x3 41x3 3x5 95x1 3x3 95x28
"""
PREDICTED = tuple(
    token
    for run in RUNS.split()
    for token in itertools.repeat(int(run.split("x")[0]), int(run.split("x")[1]))
)


def log_probs_for(path: tuple[int, ...], confidence: float) -> torch.Tensor:
    """``(frames, 1, vocab)``: ``confidence`` on the path, the rest shared out evenly."""
    other = math.log((1 - confidence) / (VOCAB_SIZE - 1))
    log_probs = torch.full((len(path), 1, VOCAB_SIZE), other, dtype=torch.float64)
    log_probs[torch.arange(len(path)), 0, torch.tensor(path)] = math.log(confidence)
    return log_probs


def torch_loss(scores: torch.Tensor) -> float:
    """What the user computed: torch's loss, averaged over the labels."""
    labels = torch.tensor([LABELS])
    loss = torch.nn.CTCLoss(blank=BLANK)(scores, labels, (len(scores),), (len(LABELS),))
    return float(loss)


def without_inner_blanks(path: tuple[int, ...]) -> tuple[int, ...]:
    """Blanks between two frames of the same token become that token."""
    runs = [(token, len(list(frames))) for token, frames in itertools.groupby(path)]
    filled: list[int] = []
    for i, (token, length) in enumerate(runs):
        inside = 0 < i < len(runs) - 1 and token == BLANK and runs[i - 1][0] == runs[i + 1][0]
        filled += [runs[i - 1][0] if inside else token] * length
    return tuple(filled)


def main() -> None:
    good = log_probs_for(PREDICTED, GOOD_CONFIDENCE)
    blank = log_probs_for((BLANK,) * len(PREDICTED), BLANK_CONFIDENCE)
    per_unit = len(PREDICTED) / len(LABELS)
    good_shift = (torch_loss(good) - REPORTED_GOOD) / per_unit
    blank_shift = (torch_loss(blank) - REPORTED_BLANK) / per_unit

    print(f"Taken: probability {GOOD_CONFIDENCE} for each printed token, {BLANK_CONFIDENCE} for the blank")
    print("1. Scores that are not normalised: a constant per frame goes straight into the loss")
    print(f"   'good' scores shifted by {good_shift:+.4f}: loss {torch_loss(good + good_shift):.4f}")
    print(f"   'blank' scores shifted by {blank_shift:+.4f}: loss {torch_loss(blank + blank_shift):.4f}")
    print(f"   every unit of shift moves the loss by {len(PREDICTED)}/{len(LABELS)} = {per_unit:.4f}")
    try:
        CTCLoss(blank=BLANK)(good + good_shift, torch.tensor([LABELS]), (len(PREDICTED),), (len(LABELS),))
    except ContractError as error:
        print(f"   asr.ctc.CTCLoss: {str(error).split(': the row sum')[0]}")

    print("2. After log_softmax the two can be compared")
    for name, scores, shift in (("good", good, good_shift), ("blank", blank, blank_shift)):
        print(f"   '{name}': loss {torch_loss((scores + shift).log_softmax(-1)):.4f}")

    print("3. And the predictions are not as good as they look: blanks inside a label split it")
    print(f"   they read {len(collapse(PREDICTED, BLANK))} labels instead of {len(LABELS)}")
    mismatch = torch.full((len(PREDICTED), VOCAB_SIZE), -1.0)
    mismatch[torch.arange(len(PREDICTED)), torch.tensor(PREDICTED)] = 0.0
    changes = -forced_align(mismatch, LABELS, blank=BLANK).log_prob
    print(f"   {changes:.0f} of {len(PREDICTED)} frames must change before they read the labels")
    filled = without_inner_blanks(PREDICTED)
    assert collapse(filled, BLANK) == LABELS
    print(f"   with those blanks filled in: loss {torch_loss(log_probs_for(filled, GOOD_CONFIDENCE)):.4f}")


if __name__ == "__main__":
    main()
