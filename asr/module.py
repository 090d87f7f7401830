"""The training loop's view of a recogniser: loss, dev WER and what is logged, for Lightning."""

import logging
from collections.abc import Callable
from typing import Any, NamedTuple

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from asr.augment import SpecAugment
from asr.ctc import CTCLoss, min_frames
from asr.decode.decoder import Decoder
from asr.errors import TrainingError
from asr.features import length_mask
from asr.models.acoustic import AcousticModel
from asr.records import Batch, Emissions
from asr.score import score, total

logger = logging.getLogger(__name__)


class StepResult(NamedTuple):
    """``loss``: mean per label, scalar; ``losses``: ``(batch,)``, 0 where an utterance does not count."""

    loss: Tensor
    losses: Tensor
    num_labels: Tensor
    emissions: Emissions


class DevSample(NamedTuple):
    """A dev utterance as it was decoded in the latest validation."""

    utterance_id: str
    reference: str
    hypothesis: str


class CtcModule(pl.LightningModule):
    """One shared step — waveforms → log-probabilities → loss — for every stage.

    Args:
        acoustic_model: front-end and encoder.
        loss: with ``reduction="none"`` and ``layout="NTC"``.
        decoder: for the dev WER; the same that evaluation and transcription use.
        blank_id: to measure the share of blanks.
        spec_augment: masks on the training features.
        make_optimizer: model → optimizer.
        make_schedule: optimizer → schedule that is stepped after every optimizer step.
        normalise: transcript normalisation of hypotheses before scoring.
        recipe: plain data that every checkpoint carries (config, tokenizer, …).
        skip_non_finite: leave out a step with a non-finite loss instead of stopping.
        log_every_steps: how often step metrics are logged.
    """

    def __init__(
        self,
        *,
        acoustic_model: AcousticModel,
        loss: CTCLoss,
        decoder: Decoder,
        blank_id: int,
        spec_augment: SpecAugment,
        make_optimizer: Callable[[nn.Module], Optimizer],
        make_schedule: Callable[[Optimizer], LRScheduler],
        normalise: Callable[[str], str],
        recipe: dict[str, Any],
        skip_non_finite: bool,
        log_every_steps: int,
    ) -> None:
        super().__init__()
        self.acoustic_model = acoustic_model
        self.ctc_loss = loss
        self.decoder = decoder
        self.blank_id = blank_id
        self.spec_augment = spec_augment
        self.make_optimizer = make_optimizer
        self.make_schedule = make_schedule
        self.normalise = normalise
        self.recipe = recipe
        self.skip_non_finite = skip_non_finite
        self.log_every_steps = log_every_steps
        self.dev_samples: list[DevSample] = []
        self.num_frames_trained = 0
        self.unlearnable_ids: set[str] = set()
        self._reset_dev_totals()

    # ------------------------------------------------------------------ steps

    def shared_step(self, batch: Batch) -> StepResult:
        """Emissions and CTC loss of a batch.

        Utterances without labels (dev only) and those that turn out to have fewer frames than their
        labels need do not count; the latter are named in ``unlearnable_ids``.
        """
        augment = (lambda features: self.spec_augment(features, batch.seeds.cpu())) if self.training else None
        emissions = self.acoustic_model(batch.waveforms, batch.waveform_lengths, augment)
        needed = min_frames(batch.targets, batch.target_lengths)
        alignable = needed <= emissions.log_prob_lengths
        for utterance_id, fits in zip(batch.utterance_ids, alignable.tolist(), strict=True):
            if not fits and utterance_id not in self.unlearnable_ids:
                self.unlearnable_ids.add(utterance_id)
                logger.warning("%s has too few frames for its labels: left out of the loss", utterance_id)
        counts = alignable & (batch.target_lengths > 0)
        target_lengths = torch.where(counts, batch.target_lengths, 0)
        losses = self.ctc_loss(emissions.log_probs, batch.targets, emissions.log_prob_lengths, target_lengths)
        # An empty target has a loss of its own (every frame blank): it does not count either.
        losses = torch.where(counts, losses, 0.0)
        num_labels = target_lengths.sum()
        return StepResult(losses.sum() / num_labels.clamp(min=1), losses, num_labels, emissions)

    def training_step(self, batch: Batch, batch_index: int) -> Tensor | None:
        result = self.shared_step(batch)
        if not torch.isfinite(result.loss):
            self._non_finite(batch, result.losses)
            return None
        self.num_frames_trained += int(result.emissions.log_prob_lengths.sum())
        if self.global_step % self.log_every_steps == 0:
            self.log("train/loss", result.loss, prog_bar=True)
            self.log(
                "train/blank_rate", self._num_blanks(result.emissions) / self._num_frames(result.emissions)
            )
            self.log("train/learning_rate", self.optimizers().param_groups[0]["lr"])  # type: ignore[union-attr]
        return result.loss

    def _non_finite(self, batch: Batch, losses: Tensor) -> None:
        named = [
            utterance_id
            for utterance_id, finite in zip(batch.utterance_ids, losses.isfinite().tolist(), strict=True)
            if not finite
        ]
        message = f"loss is not finite at step {self.global_step} for: {', '.join(named)}"
        if not self.skip_non_finite:
            raise TrainingError(
                f"{message}. Listen to them and check their text; if they are fine, lower "
                "optimizer.learning_rate or trainer.gradient_clip_norm, or go on without such steps: "
                "trainer.non_finite_loss=skip"
            )
        logger.warning("%s: step skipped", message)

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        if self.global_step % self.log_every_steps == 0:
            norms = [p.grad.norm() for p in self.parameters() if p.grad is not None]
            self.log("train/gradient_norm", torch.stack(norms).norm())

    # ------------------------------------------------------------------ validation

    def on_validation_epoch_start(self) -> None:
        self._reset_dev_totals()

    def validation_step(self, batch: Batch, batch_index: int) -> None:
        result = self.shared_step(batch)
        hypotheses = self.decoder.decode(result.emissions)
        texts = [self.normalise(hypothesis.text) for hypothesis in hypotheses]
        scores = score(batch.texts, texts)
        self._dev_words += scores.word_total
        self._dev_characters += scores.character_total
        self._dev_loss += float(result.losses.sum())
        self._dev_labels += int(result.num_labels)
        self._dev_blanks += int(self._num_blanks(result.emissions))
        self._dev_frames += int(self._num_frames(result.emissions))
        self.dev_samples += [
            DevSample(*sample) for sample in zip(batch.utterance_ids, batch.texts, texts, strict=True)
        ]

    def on_validation_epoch_end(self) -> None:
        self.log("dev/wer", self._dev_words.rate, prog_bar=True)
        self.log("dev/cer", self._dev_characters.rate)
        self.log("dev/loss", self._dev_loss / max(self._dev_labels, 1))
        self.log("dev/blank_rate", self._dev_blanks / max(self._dev_frames, 1))

    def _reset_dev_totals(self) -> None:
        self.dev_samples = []
        self._dev_words = self._dev_characters = total([])
        self._dev_loss = 0.0
        self._dev_labels = self._dev_blanks = self._dev_frames = 0

    def _num_blanks(self, emissions: Emissions) -> Tensor:
        mask = length_mask(emissions.log_prob_lengths, emissions.log_probs.shape[1])
        return ((emissions.log_probs.argmax(dim=2) == self.blank_id) & mask).sum()

    @staticmethod
    def _num_frames(emissions: Emissions) -> Tensor:
        return emissions.log_prob_lengths.sum()

    # ------------------------------------------------------------------ optimizer, checkpoint

    def configure_optimizers(self) -> Any:
        optimizer = self.make_optimizer(self.acoustic_model)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": self.make_schedule(optimizer), "interval": "step"},
        }

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["recipe"] = self.recipe
