"""Beginning with the weights of another model, as far as they fit."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from asr.errors import CheckpointError
from asr.models.acoustic import AcousticModel
from asr.tokenizer import Tokenizer

# Parameters with one row for each token of the vocabulary.
_HEAD = "encoder.output."
# The one with a column for each: what self-conditioning feeds back.
_FEEDBACK = "encoder.conditioning.weight"


@dataclass(frozen=True, slots=True)
class WarmStart:
    """What was taken over: names of tensors, and tokens of the output layer."""

    taken: tuple[str, ...]
    other_shape: tuple[str, ...]
    absent: tuple[str, ...]
    unused: tuple[str, ...]
    known_tokens: int
    new_tokens: tuple[str, ...]

    def lines(self) -> list[str]:
        """The report, for people."""
        found = f"{len(self.taken)} tensors taken over"
        if self.new_tokens:
            names = " ".join(repr(token) for token in self.new_tokens[:20])
            found += f"; output layer: {self.known_tokens} tokens known, {len(self.new_tokens)} new ({names})"
        lines = [found]
        for what, missing in (
            ("begin at random, because their shape differs", self.other_shape),
            ("begin at random, because the other model has no such", self.absent),
            ("of the other model are not used", self.unused),
        ):
            if missing:
                lines.append(f"{len(missing)} {what}: {', '.join(missing)}")
        return lines


def take_over(
    weights: Mapping[str, Tensor], tokens: list[str], model: AcousticModel, tokenizer: Tokenizer
) -> WarmStart:
    """Copy weights of the same name and shape into ``model``; what belongs to a token goes by token.

    Args:
        weights: the other acoustic model's ``state_dict``.
        tokens: of its vocabulary, in order.
        model: is changed.
        tokenizer: of ``model``.

    Raises:
        CheckpointError: nothing fits.
    """
    own = model.state_dict()
    position = {token: row for row, token in enumerate(tokens)}
    pairs = [(row, position[token]) for row, token in enumerate(tokenizer.tokens) if token in position]
    rows, their_rows = torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2).T
    taken, other_shape = [], []
    with torch.no_grad():
        for name in own.keys() & weights.keys():
            mine, theirs = own[name], weights[name]
            if name.startswith(_HEAD) and mine.shape[1:] == theirs.shape[1:]:
                mine[rows] = theirs[their_rows].to(mine.dtype)
            elif name == _FEEDBACK and mine.shape[:1] == theirs.shape[:1]:
                mine[:, rows] = theirs[:, their_rows].to(mine.dtype)
            elif mine.shape == theirs.shape:
                mine.copy_(theirs)
            else:
                other_shape.append(name)
                continue
            taken.append(name)
    if not any(name.startswith("encoder.") for name in taken):
        raise CheckpointError(
            "no layer of the other model fits this one: compare their model and features options"
        )
    known = {row for row, _ in pairs}
    return WarmStart(
        taken=tuple(sorted(taken)),
        other_shape=tuple(sorted(other_shape)),
        absent=tuple(sorted(own.keys() - weights.keys())),
        unused=tuple(sorted(weights.keys() - own.keys())),
        known_tokens=len(known),
        new_tokens=tuple(token for row, token in enumerate(tokenizer.tokens) if row not in known),
    )
