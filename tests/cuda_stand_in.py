"""The kernels of torchaudio's CUDA decoder on a CPU, as slow as can be: what is around them is torchaudio's.

They search with ours, and they are as strict: what makes the real ones end the process raises here.
"""

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchaudio.models.decoder import _cuda_ctc_decoder

from asr.decode.beam import BeamDecoder, Pruning
from asr.decode.cuda import Search
from asr.tokenizer import Tokenizer


class Kernels:
    """In place of the operators of ``torchaudio_prefixctc``; ``batch_sizes`` are those of the searches."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.batch_sizes: list[int] = []

    def prefixCTC_free(self, data: int) -> None:  # noqa: N802
        assert data == id(self)

    def ctc_beam_search_decoder_batch_gpu_v2(
        self,
        data: int,
        memory: Tensor,
        log_probs: Tensor,
        lengths: Tensor,
        beam_width: int,
        blank: int,
        space: int,
        log_threshold: float,
    ) -> tuple[int, Any, Any, Any]:
        """Size of the memory that is needed, or 0 and token ids, their numbers and scores of all candidates."""
        assert (data, blank, space) == (id(self), 0, 0)
        assert (log_probs.dtype, lengths.dtype) == (torch.float32, torch.int32)
        assert log_probs.is_contiguous()
        assert log_probs.isfinite().all()
        num_utterances, num_frames, vocab_size = log_probs.shape
        assert 0 < num_utterances * beam_width * num_frames * vocab_size < 2**31
        assert num_utterances <= 800
        assert beam_width <= min(128, vocab_size)
        if memory.numel() == 0:
            return 64, None, None, None
        self.batch_sizes.append(num_utterances)
        is_read = log_probs[:, :, blank] < torch.tensor(log_threshold)
        is_read &= torch.arange(num_frames) < lengths.unsqueeze(1)
        assert is_read.any()
        num_read = int(is_read.sum(1).max())
        tokens = torch.full((num_utterances, beam_width, num_read), 999, dtype=torch.int32)
        sizes = torch.zeros(num_utterances, beam_width, dtype=torch.int32)
        scores = torch.full(
            (num_utterances, beam_width), torch.nan
        )  # where nothing is read, nothing is written
        for row in range(num_utterances):
            frames = log_probs[row, : lengths[row]].numpy()
            if is_read[row].any():
                found = self.search(frames, is_read[row, : lengths[row]].numpy(), beam_width)
                for rank, (token_ids, score) in enumerate(found):
                    tokens[row, rank, : len(token_ids)] = torch.tensor(token_ids)
                    sizes[row, rank], scores[row, rank] = len(token_ids), score
        return 0, tokens, sizes, scores

    def search(
        self, frames: NDArray[np.float32], is_read: NDArray[np.bool_], beam_width: int
    ) -> list[tuple[tuple[int, ...], float]]:
        """Frames that are not read part what is before them from what is after them, and cost nothing."""
        certain = np.full(frames.shape[1], -np.inf, np.float32)
        certain[0] = 0.0
        decoder = BeamDecoder(self.tokenizer, 1.0, pruning=Pruning.none(beam_width))
        found = decoder.search(np.where(is_read[:, None], frames, certain), beam_width)
        return [(one.token_ids, one.score) for one in found]


def make_search(
    tokenizer: Tokenizer, *, beam_width: int = 10, blank_skip_threshold: float = 0.95, kernels: Any = None
) -> Search:
    """As :func:`asr.decode.cuda.make_search`, with these kernels."""
    kernels = kernels or Kernels(tokenizer)
    beam_width = min(beam_width, tokenizer.vocab_size)

    class Decoder(_cuda_ctc_decoder.CUCTCDecoder):  # type: ignore[misc]
        def __init__(self) -> None:  # the original asks for a GPU
            self.internal_data, self.memory = id(kernels), torch.empty(0, dtype=torch.int8)
            self.blank_id, self.space_id, self.nbest = 0, 0, 1
            self.vocab_list, self.beam_size = tokenizer.tokens, beam_width
            self.blank_skip_threshold = math.log(blank_skip_threshold)

        def __call__(self, log_probs: Tensor, lengths: Tensor) -> Any:
            original, _cuda_ctc_decoder.cuctc = _cuda_ctc_decoder.cuctc, kernels
            try:
                return super().__call__(log_probs, lengths)
            finally:
                _cuda_ctc_decoder.cuctc = original

        def __del__(self) -> None:
            kernels.prefixCTC_free(self.internal_data)

    return Search(Decoder, beam_width, blank_skip_threshold, torch.device("cpu"))
