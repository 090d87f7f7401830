"""torchaudio's prefix beam search on an NVIDIA GPU behind our interface: no words, no language model.

It takes all utterances of a batch and all candidates at once, one frame after the other. What it leaves
to its caller, as of torchaudio 2.11, and what is made of it here:

- It skips frames whose blank is likelier than a threshold, as if they held nothing else. Its scores lack
  them, and where all frames are skipped its score is whatever the memory held: their blanks are added.
- It silently keeps no more candidates than there are tokens, and with more than 128 it ends the process:
  both are refused.
- It counts in 32 bits, and ends the process when a batch has no frames to search: batches are split.
- Sums of minus infinity become NaN: a finite value stands for it.
- It writes beyond the shared memory that it asks for (pytorch/audio issues 3754 and 4181, open). GPUs of compute
  capability 9.0 (Hopper) and later end the process for that: it is refused there. On earlier ones the place is
  usually free, but nobody looks: a warning says so.
- It works on the stream that is current when it is made, in memory that it keeps: every batch has one of
  its own, so that it runs beside the forward pass and any thread may decode.
"""

import logging
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from asr.decode.beam import frames_of
from asr.decode.decoder import FORBIDDEN, DecodeError, refuse_unusable
from asr.decode.token_times import aligned
from asr.device import to_device
from asr.errors import ConfigError
from asr.records import Emissions, Hypothesis
from asr.tokenizer import Tokenizer

logger = logging.getLogger(__name__)

MAX_UTTERANCES = 800
"""It launches no more blocks than this, and each utterance needs one."""
MAX_CELLS = 2**31 - 1
"""The most utterances × candidates × frames × tokens that it can count."""
CHECKS_SHARED_MEMORY = (9, 0)
"""The first compute capability whose GPUs stop a program that writes beyond its shared memory."""
OVERRUN = "torchaudio's search writes beyond its shared memory (https://github.com/pytorch/audio/issues/4181)"


class Search(NamedTuple):
    """How torchaudio searches: ``make()`` gives a decoder that works on the current stream of ``device``."""

    make: Callable[[], Any]
    beam_width: int
    blank_skip_threshold: float
    device: torch.device


class CudaDecoder:
    """Prefix beam search by torchaudio.

    Scores are those of :class:`asr.decode.beam.BeamDecoder` without words, except that frames that are
    skipped count as blanks, and that a beam this narrow loses alignments.

    Args:
        tokenizer: gives the blank and turns labels into text.
        seconds_per_frame: for word times.
        search: see :func:`make_search`.
    """

    def __init__(self, tokenizer: Tokenizer, seconds_per_frame: float, search: Search) -> None:
        self.tokenizer = tokenizer
        self.seconds_per_frame = seconds_per_frame
        self._search = search

    def decode(self, emissions: Emissions) -> list[Hypothesis]:
        """``(batch, frames, vocab)`` log-probabilities, on any device → the best hypothesis of each utterance.

        Raises:
            DecodeError: NaN, a frame in which no token is possible, or too many frames.
            ConfigError: log-probabilities and tokenizer differ in their number of classes.
        """
        utterances = frames_of(emissions, self.tokenizer)
        for index, log_probs in enumerate(utterances):
            refuse_unusable(log_probs, index)
        are_skipped = [self._are_skipped(log_probs) for log_probs in utterances]
        searched = [index for index, skipped in enumerate(are_skipped) if not skipped.all()]
        lengths = [len(utterances[index]) for index in searched]
        found = dict(zip(searched, self._best(emissions.log_probs, searched, lengths), strict=True))
        return [
            self._hypothesis(log_probs, skipped, found.get(index))
            for index, (log_probs, skipped) in enumerate(zip(utterances, are_skipped, strict=True))
        ]

    def text_score(self, token_ids: Sequence[int]) -> float:
        """Nothing: every text counts for what is heard alone."""
        return 0.0

    def _are_skipped(self, log_probs: NDArray[np.float32]) -> NDArray[np.bool_]:
        """``(frames,)``, by the comparison that the search makes, in float32."""
        threshold = np.float32(math.log(self._search.blank_skip_threshold))
        return log_probs[:, self.tokenizer.blank_id] >= threshold

    def _best(self, log_probs: Tensor, indices: Sequence[int], lengths: Sequence[int]) -> list[Any]:
        """torchaudio's best hypothesis of the utterances at ``indices``, which have ``lengths`` frames."""
        if not indices:
            return []
        if not log_probs.is_cuda:
            log_probs = to_device(log_probs, self._search.device)
        log_probs = log_probs.detach().float().clamp(min=FORBIDDEN)
        longest = max(lengths)
        num_together = min(
            MAX_CELLS // (self._search.beam_width * longest * log_probs.shape[2]), MAX_UTTERANCES
        )
        if num_together == 0:
            raise DecodeError(
                indices[lengths.index(longest)],
                f"its {longest} frames are too many for decoder=cuda with decoder.beam_width="
                f"{self._search.beam_width}; lower that, or use decoder=beam",
            )
        found: list[Any] = []
        for first in range(0, len(indices), num_together):
            these = slice(first, first + num_together)
            rows = log_probs[list(indices[these]), : max(lengths[these])].contiguous()
            found += self._search.make()(
                rows, to_device(torch.tensor(lengths[these], dtype=torch.int32), rows.device)
            )
        return [hypotheses[0] for hypotheses in found]

    def _hypothesis(
        self, log_probs: NDArray[np.float32], skipped: NDArray[np.bool_], found: Any | None
    ) -> Hypothesis:
        score = float(log_probs[skipped, self.tokenizer.blank_id].sum(dtype=np.float64))
        token_ids: list[int] = []
        if found is not None:
            token_ids = np.asarray(found.tokens).tolist()
            score += float(found.score)
        possible = np.maximum(log_probs, np.float32(FORBIDDEN))
        return aligned(self.tokenizer, possible, token_ids, score, self.seconds_per_frame)


def make_search(tokenizer: Tokenizer, *, beam_width: int, blank_skip_threshold: float) -> Search:
    """torchaudio's search over the tokens.

    Args:
        beam_width: candidates kept after each frame.
        blank_skip_threshold: frames whose blank has at least this probability are skipped.

    Raises:
        ConfigError: it cannot search these tokens, or there is no GPU or no such torchaudio here.
    """
    if tokenizer.blank_id != 0:
        raise ConfigError(
            f"decoder=cuda needs the blank to be token 0, and here it is {tokenizer.blank_id}: use decoder=beam"
        )
    if beam_width > tokenizer.vocab_size:
        raise ConfigError(
            f"decoder.beam_width={beam_width}: decoder=cuda keeps no more candidates than there are tokens, "
            f"{tokenizer.vocab_size}; lower it, or use decoder=beam"
        )
    make = _library()
    tokens = tokenizer.tokens

    def make_one() -> Any:
        return make(tokens, nbest=1, beam_size=beam_width, blank_skip_threshold=blank_skip_threshold)

    return Search(make_one, beam_width, blank_skip_threshold, torch.device("cuda"))


def _library() -> Callable[..., Any]:
    if not torch.cuda.is_available():
        raise ConfigError("decoder=cuda needs an NVIDIA GPU, and none is usable here; use decoder=beam")
    if torch.cuda.get_device_capability() >= CHECKS_SHARED_MEMORY:
        raise ConfigError(
            f"decoder=cuda would crash on this GPU ({torch.cuda.get_device_name()}): {OVERRUN}; use decoder=beam"
        )
    try:
        from torchaudio.models.decoder import cuda_ctc_decoder
    except (ImportError, RuntimeError, OSError) as error:
        raise _without_decoder(str(error)) from error
    if not hasattr(torch.ops.torchaudio_prefixctc, "prefixCTC_alloc"):
        raise _without_decoder("its library is missing")
    logger.warning("decoder=cuda: %s: compare its results with those of decoder=beam", OVERRUN)
    return cuda_ctc_decoder  # type: ignore[no-any-return]


def _without_decoder(reason: str) -> ConfigError:
    return ConfigError(
        f"decoder=cuda needs a torchaudio that has the CUDA decoder, as the wheels of 2.11 have "
        f"({' '.join(reason.split())}); use decoder=beam"
    )
