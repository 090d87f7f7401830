"""Averages of weights: over the steps of a training, or over its best checkpoints."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor
from torch.optim.swa_utils import AveragedModel

from asr.errors import CheckpointError
from asr.models.acoustic import MODEL_PREFIX, AcousticModel
from asr.module import CtcModule

# Where a checkpoint keeps the weights that training goes on with; its state_dict holds the averages.
TRAINED_WEIGHTS = "trained_weights"
_NUM_AVERAGED = "num_averaged"


class MovingAverage(Callback):
    """Exponential moving average of weights and normalisation statistics (Polyak & Juditsky 1992).

    Validation and whoever loads a checkpoint see the averages, training goes on with its own weights.
    The decay grows with the steps, ``min(decay, (1 + steps) / (10 + steps))``, so that the first,
    random weights are soon forgotten. (Lightning's own callback copies the whole module, decoder and
    language model included.)

    Args:
        decay: share of the old average that is kept at each step.
    """

    def __init__(self, decay: float) -> None:
        self.decay = decay
        self._latest_step = 0
        self._average: AveragedModel | None = None

    def _mix(self, average: Tensor, current: Tensor, num_averaged: Any) -> Tensor:
        if not average.is_floating_point():  # the number of batches that a batch norm has seen
            return current
        steps = int(num_averaged)
        return torch.lerp(current, average, min(self.decay, (1 + steps) / (10 + steps)))

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self._average = AveragedModel(_model(pl_module), avg_fn=self._mix, use_buffers=True)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert self._average is not None
        self._average.to(pl_module.device)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *unused: Any) -> None:
        if trainer.global_step > self._latest_step:
            assert self._average is not None
            self._average.update_parameters(_model(pl_module))
            self._latest_step = trainer.global_step

    def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._swap(pl_module)

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._swap(pl_module)

    @torch.no_grad()
    def _swap(self, pl_module: pl.LightningModule) -> None:
        assert self._average is not None
        pairs = zip(
            _tensors(self._average.module).values(), _tensors(_model(pl_module)).values(), strict=True
        )
        for one, other in pairs:
            kept = one.clone()
            one.copy_(other)
            other.copy_(kept)

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        assert self._average is not None
        weights = checkpoint["state_dict"]
        checkpoint[TRAINED_WEIGHTS] = weights
        checkpoint["state_dict"] = weights | {
            f"{MODEL_PREFIX}{name}": tensor for name, tensor in _tensors(self._average.module).items()
        }

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Called after the averages have been loaded as if they were the weights."""
        assert self._average is not None
        self._average.module.load_state_dict(_model(pl_module).state_dict())
        pl_module.load_state_dict(checkpoint[TRAINED_WEIGHTS])

    def state_dict(self) -> dict[str, Any]:
        assert self._average is not None
        return {"latest_step": self._latest_step, _NUM_AVERAGED: int(self._average.n_averaged)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        assert self._average is not None
        self._latest_step = state_dict["latest_step"]
        self._average.n_averaged.fill_(state_dict[_NUM_AVERAGED])


def mean_of_weights(paths: Sequence[Path]) -> dict[str, Tensor]:
    """The ``state_dict`` of checkpoints of one run, averaged (in float64, so that order does not matter).

    Raises:
        CheckpointError: they are not of one model.
    """
    total: dict[str, Tensor] = {}
    for path in paths:
        weights = torch.load(path, map_location="cpu", weights_only=True)["state_dict"]
        if total and {name: tensor.shape for name, tensor in weights.items()} != {
            name: tensor.shape for name, tensor in total.items()
        }:
            raise CheckpointError(f"{path} and {paths[0]} are of different models: they have no average")
        for name, tensor in weights.items():
            total[name] = tensor.double() + total[name] if name in total else tensor.double()
        kinds = {name: tensor.dtype for name, tensor in weights.items()}
    return {name: (tensor / len(paths)).to(kinds[name]) for name, tensor in total.items()}


def _model(module: pl.LightningModule) -> AcousticModel:
    assert isinstance(module, CtcModule)
    return module.acoustic_model


def _tensors(module: torch.nn.Module) -> dict[str, Tensor]:
    return dict(module.state_dict(keep_vars=True))
