"""Manifests → loaders of training and dev batches, for Lightning."""

import signal
from collections.abc import Sequence
from typing import Any

import lightning.pytorch as pl
from torch.utils.data import DataLoader, Sampler

from asr.augment import WaveformAugmenter
from asr.dataset import Example, SpeechDataset
from asr.records import Batch
from asr.sampler import BucketSampler, Pick, SequentialSampler, Share
from asr.tokenizer import Tokenizer


class SpeechDataModule(pl.LightningDataModule):
    """Training batches in duration buckets, dev batches in order of length; each process has its share of each.

    Its state is the epoch and the number of batches done in it, so that a run interrupted in the
    middle of an epoch goes on with the next batch.
    """

    def __init__(
        self,
        train: Sequence[Example],
        dev: Sequence[Example],
        *,
        sample_rate: int,
        tokenizer: Tokenizer,
        augment: WaveformAugmenter,
        max_batch_utterances: int,
        max_batch_seconds: float,
        num_workers: int,
        cache_bytes: int,
        seed: int,
        sortagrad_epochs: int = 0,
        shards_per_window: int = 8,
    ) -> None:
        super().__init__()
        options: dict[str, Any] = {
            "sample_rate": sample_rate,
            "tokenizer": tokenizer,
            "cache_bytes": cache_bytes,
        }
        self.train_set = SpeechDataset(train, augment=augment, **options)
        self.dev_set = SpeechDataset(dev, **options)
        limits: dict[str, Any] = {"max_utterances": max_batch_utterances, "max_seconds": max_batch_seconds}
        slowest = min(augment.speed_factors)
        stretched = self.train_set.durations / slowest
        self.train_sampler = BucketSampler(
            stretched,
            seed=seed,
            shards=self.train_set.shards,
            shards_per_window=shards_per_window,
            sortagrad_epochs=sortagrad_epochs,
            **limits,
        )
        self.dev_sampler = SequentialSampler(self.dev_set.durations, **limits)
        self.num_workers = num_workers

    @property
    def num_train_batches(self) -> int:
        """Batches per epoch, the same in every epoch."""
        return len(self.train_sampler)

    def setup(self, stage: str) -> None:
        assert self.trainer is not None
        share = Share(self.trainer.global_rank, self.trainer.world_size)
        self.train_sampler.share = self.dev_sampler.share = share

    def train_dataloader(self) -> DataLoader[Batch]:
        return self._loader(self.train_set, self.train_sampler)

    def val_dataloader(self) -> DataLoader[Batch]:
        return self._loader(self.dev_set, self.dev_sampler)

    def _loader(self, dataset: SpeechDataset, sampler: Sampler[list[Pick]]) -> DataLoader[Batch]:
        # batch_size=None: the sampler's list of picks is the index, the dataset returns whole batches.
        return DataLoader(
            dataset,
            sampler=sampler,
            batch_size=None,
            collate_fn=as_it_is,  # torch's own goes through every string of the batch
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            worker_init_fn=leave_signals_to_trainer,
            pin_memory=self.trainer is not None
            and self.trainer.accelerator.auto_device_count() > 0
            and self.trainer.strategy.root_device.type == "cuda",
        )

    def state_dict(self) -> dict[str, int]:
        assert self.trainer is not None
        epoch = self.train_sampler.epoch
        num_ready = self.trainer.fit_loop.epoch_loop.batch_progress.current.ready
        if num_ready >= self.num_train_batches:
            return {"epoch": epoch + 1, "num_done": 0}
        return {"epoch": epoch, "num_done": num_ready}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        # Lightning makes the first iterator before it tells the sampler the epoch.
        self.train_sampler.set_epoch(state_dict["epoch"])
        self.train_sampler.skip(state_dict["num_done"])


def as_it_is(batch: Any) -> Any:
    return batch


def leave_signals_to_trainer(worker_id: int) -> None:
    """Ctrl-C reaches every process of the terminal, and many a scheduler sends SIGTERM to all of them: loaders
    live on until the trainer has saved its state. A second SIGTERM ends them.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda number, frame: signal.signal(number, signal.SIG_DFL))
