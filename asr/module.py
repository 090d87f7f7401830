"""The training loop's view of a recogniser: loss, dev WER and what is logged, for Lightning."""

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from asr import parallel
from asr.augment import FeatureAugmenter
from asr.ctc import CTCLoss, min_frames
from asr.ctc.variants import VariantLoss
from asr.decode.decoder import Decoder
from asr.device import in_float32
from asr.errors import TrainingError
from asr.features import length_mask
from asr.models.acoustic import AcousticModel
from asr.records import Batch, Emissions, Features
from asr.score import ErrorCounts, score, total

logger = logging.getLogger(__name__)

# Keeps the random stream of dropout and dither apart from those of augmentation, which have the same seeds.
_STEP_STREAM = 3
# From the seed of an utterance to that of its second view. (torch's generator reads the low 32 bits only.)
_SECOND_VIEW = 2**16


class StepResult(NamedTuple):
    """What one batch gave.

    - ``loss``: mean per label, scalar
    - ``losses``: ``(batch,)``, 0 where an utterance does not count; ``parts``: what they are made of
    - ``emissions``: of the batch; in training with several views, of the first
    """

    loss: Tensor
    losses: Tensor
    num_labels: Tensor
    emissions: Emissions
    parts: dict[str, Tensor]


class DevSample(NamedTuple):
    """A dev utterance as it was decoded in the latest validation."""

    utterance_id: str
    reference: str
    hypothesis: str


T = TypeVar("T")


def spread(ordered: Sequence[T], count: int) -> list[T]:
    """At most ``count`` of them, at equal distances."""
    step = max(1, len(ordered) // max(count, 1))
    return list(ordered[step // 2 :: step][:count])


class CtcModule(pl.LightningModule):
    """One shared step — waveforms → log-probabilities → loss — for every stage.

    Args:
        acoustic_model: front-end and encoder.
        loss: plain CTC, of validation; with ``reduction="none"`` and ``layout="NTC"``.
        training_loss: what training minimises.
        decoder: for the dev WER; the same that evaluation and transcription use.
        blank_id: to measure the share of blanks.
        augment_features: what changes the training features.
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
        training_loss: VariantLoss,
        decoder: Decoder,
        blank_id: int,
        augment_features: FeatureAugmenter,
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
        self.training_loss = training_loss
        self.decoder = decoder
        self.blank_id = blank_id
        self.augment_features = augment_features
        self.make_optimizer = make_optimizer
        self.make_schedule = make_schedule
        self.normalise = normalise
        self.recipe = recipe
        self.skip_non_finite = skip_non_finite
        self.log_every_steps = log_every_steps
        self.dev_samples: list[DevSample] = []
        self.num_frames_trained = 0
        self.gradient_norms: list[float] = []  # since somebody took them
        self.unlearnable_ids: set[str] = set()
        # Of all batches that the next optimizer step learns from.
        self._step_utterance_ids: list[str] = []
        self._step_labels = 0.0
        self._loss_since_logged = PooledLoss()
        self._parts_since_logged = {name: PooledLoss() for name in training_loss.part_names}
        self._loss_since_validation = PooledLoss()
        self.latest_train_loss = math.nan  # mean since the validation before the latest
        self._reset_dev_totals()

    # ------------------------------------------------------------------ steps

    def shared_step(self, batch: Batch) -> StepResult:
        """Emissions and loss of a batch: the training loss in training mode, else plain CTC.

        Utterances without labels (dev only) and those that turn out to have fewer frames than their
        labels need do not count; the latter are named in ``unlearnable_ids``.
        """
        emissions = self._training_emissions(batch) if self.training else self._emissions(batch)
        num_utterances = len(batch.utterance_ids)
        lengths = emissions.log_prob_lengths[:num_utterances]
        needed = min_frames(batch.targets, batch.target_lengths)
        alignable = needed <= lengths
        for utterance_id, fits in zip(batch.utterance_ids, alignable.tolist(), strict=True):
            if not fits and utterance_id not in self.unlearnable_ids:
                self.unlearnable_ids.add(utterance_id)
                logger.warning("%s has too few frames for its labels: left out of the loss", utterance_id)
        counts = alignable & (batch.target_lengths > 0)
        target_lengths = torch.where(counts, batch.target_lengths, 0)
        if self.training:
            losses, parts = self.training_loss(emissions, batch.targets, target_lengths)
        else:
            losses = self.ctc_loss(emissions.log_probs, batch.targets, lengths, target_lengths)
            parts = {"ctc": losses}
        # An empty target has a loss of its own (every frame blank): it does not count either.
        losses = torch.where(counts, losses, 0.0)
        parts = {name: torch.where(counts, part.detach(), 0.0) for name, part in parts.items()}
        num_labels = target_lengths.sum()
        first_view = Emissions(emissions.log_probs[:num_utterances], lengths)
        return StepResult(losses.sum() / num_labels.clamp(min=1), losses, num_labels, first_view, parts)

    def _emissions(self, batch: Batch) -> Emissions:
        return self.acoustic_model(batch.waveforms, batch.waveform_lengths)

    def _training_emissions(self, batch: Batch) -> Emissions:
        """Augmented, in as many views as the loss compares, and with what it needs of earlier layers."""
        variants, seeds = self.training_loss.variants, batch.seeds.cpu()

        def views(features: Features) -> Features:
            masked = [
                self.augment_features(features, seeds + view * _SECOND_VIEW)
                for view in range(variants.num_views)
            ]
            return masked[0] if len(masked) == 1 else Features(*map(torch.cat, zip(*masked, strict=True)))

        return self.acoustic_model(
            batch.waveforms, batch.waveform_lengths, views, with_intermediate=variants.intermediate > 0
        )

    def training_step(self, batch: Batch, batch_index: int) -> Tensor | None:
        # Dropout and dither are functions of the batch, like all augmentation: a resumed run repeats
        # what the interrupted one would have drawn, and no random state needs to be saved.
        torch.manual_seed(int(batch.seeds[0]) + _STEP_STREAM)
        statistics = [buffer.clone() for buffer in self._running_statistics()]
        result = self.shared_step(batch)
        figures = torch.stack(
            [
                result.losses.detach().sum(),
                result.num_labels,
                result.emissions.log_prob_lengths.sum(),
                *(result.parts[name].sum() for name in self._parts_since_logged),
            ]
        ).tolist()  # one transfer from the device
        is_spoiled = not math.isfinite(figures[0])
        if is_spoiled:
            layer = f" (it begins in {self._first_non_finite_layer(batch)})"
            self._spoiled("loss", _named(batch, ~result.losses.isfinite()), layer)
        if self.skip_non_finite and parallel.any_process(is_spoiled, self.device):
            for buffer, before in zip(self._running_statistics(), statistics, strict=True):
                buffer.copy_(before)
            return None
        self._step_utterance_ids += batch.utterance_ids
        self._step_labels += figures[1]
        for pooled in (self._loss_since_logged, self._loss_since_validation):
            pooled.add(figures[0], figures[1])
        for pooled, part in zip(self._parts_since_logged.values(), figures[3:], strict=True):
            pooled.add(part, figures[1])
        self.num_frames_trained += int(figures[2])
        if self._logs_this_step:
            self._blanks = [float(self._num_blanks(result.emissions)), figures[2]]
        return result.losses.sum()  # divided by the labels of the whole step when all its batches are known

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Divide by the labels of the step, clip, log; gradients that are not finite change no weight.

        The gradients are those of the mean loss per label over all batches and processes of the step:
        however it is divided among them, the step is the same.
        """
        utterance_ids, self._step_utterance_ids = self._step_utterance_ids, []
        num_labels, self._step_labels = parallel.total([self._step_labels], self.device)[0], 0.0
        parameters = [parameter for parameter in self.parameters() if parameter.grad is not None]
        if not parameters:  # every batch of this step was skipped
            return
        # Lightning has divided by the number of batches and averaged over processes.
        num_parts = self.trainer.accumulate_grad_batches * self.trainer.world_size
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        torch._foreach_mul_(gradients, num_parts / max(num_labels, 1.0))
        max_norm = math.inf if gradient_clip_val is None else gradient_clip_val
        norm = float(nn.utils.clip_grad_norm_(parameters, max_norm))
        if not math.isfinite(norm):
            self._spoiled("gradient", utterance_ids, f" (it begins in {self._first_non_finite_gradient()})")
            optimizer.zero_grad(set_to_none=True)
            return
        self.gradient_norms.append(norm)
        if self._logs_this_step:
            loss = self._loss_since_logged.take(self.device)
            num_blanks, num_frames = parallel.total(self._blanks, self.device)
            self.log("train/loss", loss, prog_bar=True, logger=False)
            self._log_figures(
                {
                    "train/loss": loss,
                    **{
                        f"train/loss_{name}": part.take(self.device)
                        for name, part in self._parts_since_logged.items()
                    },
                    "train/gradient_norm": norm,
                    "train/learning_rate": optimizer.param_groups[0]["lr"],
                    "train/blank_rate": num_blanks / max(num_frames, 1),
                }
            )

    def _spoiled(self, what: str, utterance_ids: list[str], where: str) -> None:
        message = f"{what} is not finite at step {self.global_step}{where} for: {', '.join(utterance_ids)}"
        if not self.skip_non_finite:
            raise TrainingError(
                f"{message}. Listen to them and check their text; if they are fine, lower "
                "optimizer.learning_rate or trainer.gradient_clip_norm, or go on without such steps: "
                "trainer.non_finite_loss=skip"
            )
        logger.warning("%s: step skipped", message)

    @torch.no_grad()
    def _first_non_finite_layer(self, batch: Batch) -> str:
        """The first layer, in order of computation, that makes something infinite or undefined of finite input."""
        found: list[str] = []

        def watch(name: str) -> Callable[..., None]:
            def hook(layer: nn.Module, inputs: Any, output: Any) -> None:
                if not found and _is_finite(inputs) and not _is_finite(output):
                    found.append(name)

            return hook

        layers = [item for item in self.acoustic_model.named_modules() if not list(item[1].children())]
        handles = [layer.register_forward_hook(watch(name)) for name, layer in layers]
        try:
            torch.manual_seed(int(batch.seeds[0]) + _STEP_STREAM)
            self._training_emissions(batch)
        finally:
            for handle in handles:
                handle.remove()
        if found:
            return found[0]
        return "the loss" if _is_finite([batch.waveforms]) else "the audio"

    def _first_non_finite_gradient(self) -> str:
        """Gradients come from the output back: the spoiled parameter nearest to it."""
        spoiled = [
            name
            for name, parameter in self.acoustic_model.named_parameters()
            if parameter.grad is not None and not parameter.grad.isfinite().all()
        ]
        return spoiled[-1] if spoiled else "the sum over all parameters"

    def _running_statistics(self) -> list[Tensor]:
        """What a forward pass changes: batch norm's averages, label priors; only kept where a step may be skipped."""
        if not self.skip_non_finite:
            return []
        norms = [module for module in self.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
        return [buffer for module in (*norms, self.training_loss) for buffer in module.buffers()]

    @property
    def _logs_this_step(self) -> bool:
        return self.global_step % self.log_every_steps == 0

    def _log_figures(self, figures: Mapping[str, float]) -> None:
        """To every logger, at once: Lightning's own way is slower and shows the figures of an earlier step."""
        for own_logger in self.loggers:
            own_logger.log_metrics({"epoch": self.current_epoch, **figures}, step=self.global_step)

    # ------------------------------------------------------------------ validation

    def on_validation_epoch_start(self) -> None:
        self._reset_dev_totals()

    def validation_step(self, batch: Batch, batch_index: int) -> None:
        if batch.is_filler:
            return
        with in_float32(self.device):  # the same text as evaluation and transcription give
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
        self._dev_entropy += float(self._entropy(result.emissions))
        self.dev_samples += [
            DevSample(*sample) for sample in zip(batch.utterance_ids, batch.texts, texts, strict=True)
        ]

    def _reset_dev_totals(self) -> None:
        self.dev_samples = []
        self._dev_words = self._dev_characters = total([])
        self._dev_loss = self._dev_entropy = 0.0
        self._dev_labels = self._dev_blanks = self._dev_frames = 0

    def on_validation_epoch_end(self) -> None:
        self._pool_dev_totals()
        self.latest_train_loss = self._loss_since_validation.take(self.device)
        num_frames = max(self._dev_frames, 1)
        figures = {
            "dev/wer": self._dev_words.rate,
            "dev/cer": self._dev_characters.rate,
            "dev/loss": self._dev_loss / max(self._dev_labels, 1),
            "dev/blank_rate": self._dev_blanks / num_frames,
            "dev/entropy": self._dev_entropy / num_frames,
            "dev/length_ratio": self._dev_characters.num_hypothesis
            / max(self._dev_characters.num_reference, 1),
        }
        for name, value in figures.items():
            self.log(name, value, prog_bar=name == "dev/wer", logger=False)
        self._log_figures(figures)

    def _pool_dev_totals(self) -> None:
        """Counts of all processes; rates are divided once, after this."""
        words, characters = list(self._dev_words), list(self._dev_characters)
        others = [self._dev_loss, self._dev_labels, self._dev_blanks, self._dev_frames, self._dev_entropy]
        pooled = parallel.total([*words, *characters, *others], self.device)
        self._dev_words = ErrorCounts(*(int(count) for count in pooled[: len(words)]))
        self._dev_characters = ErrorCounts(*(int(count) for count in pooled[len(words) : -len(others)]))
        self._dev_loss, *counts, self._dev_entropy = pooled[-len(others) :]
        self._dev_labels, self._dev_blanks, self._dev_frames = (int(count) for count in counts)
        self.dev_samples = parallel.gathered(self.dev_samples)

    def _num_blanks(self, emissions: Emissions) -> Tensor:
        mask = length_mask(emissions.log_prob_lengths, emissions.log_probs.shape[1])
        return ((emissions.log_probs.argmax(dim=2) == self.blank_id) & mask).sum()

    @staticmethod
    def _entropy(emissions: Emissions) -> Tensor:
        """Summed over frames, nats."""
        log_probs = emissions.log_probs
        mask = length_mask(emissions.log_prob_lengths, log_probs.shape[1])
        return torch.where(mask.unsqueeze(2), torch.special.entr(log_probs.exp()), 0.0).sum()

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


class PooledLoss:
    """Mean loss per label over all batches since it was last taken."""

    def __init__(self) -> None:
        self._loss = self._num_labels = 0.0

    def add(self, loss: float, num_labels: float) -> None:
        self._loss += loss
        self._num_labels += num_labels

    def take(self, device: torch.device) -> float:
        """The mean over all processes; all of them must ask."""
        loss, num_labels = parallel.total([self._loss, self._num_labels], device)
        self._loss = self._num_labels = 0.0
        return loss / max(num_labels, 1)


def _named(batch: Batch, chosen: Tensor) -> list[str]:
    return [name for name, is_one in zip(batch.utterance_ids, chosen.tolist(), strict=True) if is_one]


def _is_finite(values: Any) -> bool:
    """Whether all numbers in (nested tuples of) tensors are."""
    if isinstance(values, Tensor):
        return bool(values.isfinite().all())
    return not isinstance(values, tuple | list) or all(_is_finite(value) for value in values)
