"""Pictures of a few dev utterances in TensorBoard, to watch a model learn to align."""

import logging
from collections.abc import Callable, Sequence
from itertools import count
from typing import Any

import lightning.pytorch as pl
import numpy as np
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import TensorBoardLogger
from numpy.typing import NDArray

from asr.dataset import Example
from asr.errors import AudioError, TextError
from asr.module import spread

logger = logging.getLogger(__name__)

MAX_SECONDS = 20.0
"""Longer recordings are not drawn while training: it would take too long, and show too little."""

Draw = Callable[[Example], NDArray[np.uint8] | None]
"""Makes a picture ``(height, width, 3)`` of an utterance, or None where there is nothing to see."""


class DevPictures(Callback):
    """Draws the same utterances after the first validation and after every ``every_validations``-th.

    It must come before a callback that exchanges the weights for validation: the pictures are then of the
    model that was validated.

    Args:
        dev: what to choose from; the chosen are spread over the lengths.
    """

    def __init__(
        self, draw: Draw, dev: Sequence[Example], *, num_pictures: int, every_validations: int
    ) -> None:
        self.draw = draw
        short = [example for example in dev if example.utterance.duration_seconds <= MAX_SECONDS]
        short.sort(key=lambda example: (example.utterance.duration_seconds, example.utterance.id))
        self.chosen = spread(short, num_pictures)
        self.every_validations = every_validations
        self._num_validations = 0

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.sanity_checking:
            return
        self._num_validations += 1
        if self._num_validations > 1 and self._num_validations % self.every_validations:
            return
        writers = [own.experiment for own in trainer.loggers if isinstance(own, TensorBoardLogger)]
        for writer in writers if trainer.is_global_zero else []:
            for number, example in zip(count(1), self.chosen, strict=False):
                self._show(writer, f"dev/{number}", example, trainer.global_step)

    def _show(self, writer: Any, name: str, example: Example, step: int) -> None:
        try:
            picture = self.draw(example)
        except (AudioError, TextError) as error:  # a picture is no reason to end a training
            logger.warning("no picture of %s: %s", example.utterance.id, error)
            return
        if picture is not None:
            writer.add_image(name, picture, step, dataformats="HWC")

    def state_dict(self) -> dict[str, int]:
        return {"num_validations": self._num_validations}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        self._num_validations = state_dict["num_validations"]
