"""What every acoustic encoder promises."""

from torch import Tensor, nn

from asr.records import Emissions, Features


class Encoder(nn.Module):
    """Features → normalised ``log_probs``.

    A subclass sets ``subsampling`` (input frames per output frame) and implements ``forward`` and
    ``output_lengths``. It never knows the tokenizer, only the size of its vocabulary, and its
    output for an utterance in eval mode does not depend on the padding or on the rest of the batch.
    """

    subsampling: int

    def output_lengths(self, feature_lengths: Tensor) -> Tensor:
        """Number of output frames for each number of input frames, ``(batch,)`` int64."""
        raise TypeError(f"{type(self).__name__} must implement output_lengths")

    def forward(self, batch: Features, with_intermediate: bool = False) -> Emissions:
        """``(batch, frames, bins)`` → ``(batch, output_frames, vocab)`` float32 log-probabilities.

        ``with_intermediate`` adds those of the encoder's ``intermediate_layers``.
        """
        raise TypeError(f"{type(self).__name__} must implement forward")
