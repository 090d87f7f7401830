"""Lengths that count classes instead of frames and labels.

A Keras user trained a classifier of four classes with CTC: 20 frames per item, a softmax over
5 outputs (four classes, blank last), one-hot rows as labels, ``label_length=4`` (the classes) and
``input_length=5`` (the classes and the blank), filled in by a loop that stopped one item early.
Run it with ``python docs/examples/keras_lengths.py``.
"""

import torch

from asr.ctc import ContractError, CTCLoss
from asr.ctc.paths import count_paths, min_num_frames

NUM_FRAMES, VOCAB_SIZE, BLANK = 20, 5, 4
ONE_HOT = [[0, 1, 0, 0], [1, 0, 0, 0], [0, 0, 1, 0]]
LABEL_LENGTH = [4, 4, 0]  # the last item was never filled in
INPUT_LENGTH = [5, 5, 0]


def main() -> None:
    # An untrained model: every output equally likely. Probabilities, batch first, as in Keras.
    y_pred = torch.full((3, NUM_FRAMES, VOCAB_SIZE), 1 / VOCAB_SIZE)
    loss = CTCLoss(blank=BLANK, inputs="probs", layout="NTC", reduction="none")

    print("As written: each one-hot row is read as a sequence of labels")
    for row, frames, labels in zip(ONE_HOT, INPUT_LENGTH, LABEL_LENGTH, strict=True):
        target = row[:labels]
        needed, paths = min_num_frames(target), count_paths(target, frames)
        print(f"   {target}: frames needed {needed}, given {frames}, paths {paths}")
    try:
        loss(y_pred, torch.tensor(ONE_HOT), torch.tensor(INPUT_LENGTH), torch.tensor(LABEL_LENGTH))
    except ContractError as error:
        print(f"   asr.ctc.CTCLoss: {str(error).split(': every label')[0]}")
    hidden = torch.nn.functional.ctc_loss(
        y_pred.log().transpose(0, 1),
        torch.tensor(ONE_HOT),
        tuple(INPUT_LENGTH),
        tuple(LABEL_LENGTH),
        blank=BLANK,
        reduction="none",
    )
    print(f"   torch.nn.functional.ctc_loss: {', '.join(f'{value + 0.0:.4f}' for value in hidden.tolist())}")

    print("As meant: one label per item, the index of its class, and all the frames")
    classes = torch.tensor(ONE_HOT).argmax(dim=1, keepdim=True)
    losses = loss(y_pred, classes, torch.full((3, 1), NUM_FRAMES), torch.ones(3, 1, dtype=torch.long))
    for label, value in zip(classes.flatten().tolist(), losses.tolist(), strict=True):
        print(f"   [{label}]: paths {count_paths([label], NUM_FRAMES)}, loss {value:.4f}")


if __name__ == "__main__":
    main()
