"""What every decoder promises, and what they share."""

from collections.abc import Sequence
from typing import Protocol

from asr.errors import AsrError
from asr.records import Emissions, Hypothesis, Word
from asr.tokenizer import Tokenizer


class DecodeError(AsrError):
    """Log-probabilities that nothing can be decoded from: those of utterance ``index`` of a batch."""

    def __init__(self, index: int, problem: str, name: str | None = None) -> None:
        super().__init__(f"{name or f'utterance {index} of the batch'}: {problem}")
        self.index = index
        self.problem = problem

    def named(self, name: str) -> "DecodeError":
        """The same with the utterance's name."""
        return DecodeError(self.index, self.problem, name)


def unusable_frame(index: int, frame: int, what: str) -> DecodeError:
    """The error for a frame of utterance ``index`` of a batch from which nothing can be decoded."""
    return DecodeError(
        index,
        f"the log-probabilities of frame {frame} {what}; the model's weights or the audio are damaged",
    )


class Decoder(Protocol):
    """Emissions → one best hypothesis per utterance."""

    def decode(self, emissions: Emissions) -> list[Hypothesis]:
        """``(batch, frames, vocab)`` log-probabilities → one hypothesis per utterance."""
        ...

    def text_score(self, token_ids: Sequence[int]) -> float:
        """What a labelling scores beside its acoustic log-probability; minus infinity if forbidden."""
        ...


def words_from_tokens(
    tokenizer: Tokenizer,
    token_ids: Sequence[int],
    start_frames: Sequence[int],
    end_frames: Sequence[int],
    confidences: Sequence[float],
    seconds_per_frame: float,
) -> tuple[Word, ...]:
    """Words with times: from the start of the first token to the end of the last.

    A word's confidence is the geometric mean of its tokens' probabilities.
    """
    words = []
    for group in tokenizer.word_groups(list(token_ids)):
        inside = range(group.first, group.last + 1)
        product = 1.0
        for index in inside:
            product *= confidences[index]
        words.append(
            Word(
                text=group.text,
                start_seconds=start_frames[group.first] * seconds_per_frame,
                end_seconds=(end_frames[group.last] + 1) * seconds_per_frame,
                confidence=product ** (1 / len(inside)),
            )
        )
    return tuple(words)
