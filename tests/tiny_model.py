"""A checkpoint of a small untrained model whose babble depends on every sample it hears."""

from pathlib import Path

import numpy as np
import torch

from asr.build import make_acoustic_model
from asr.checkpoint import MODEL_PREFIX, describe
from asr.config import (
    AdamConfig,
    AugmentConfig,
    BiLstmConfig,
    CharTokenizerConfig,
    ConstantConfig,
    DataConfig,
    GreedyConfig,
    LoggerConfig,
    LogMelConfig,
    LossConfig,
    TrainConfig,
    TrainerConfig,
)
from asr.tokenizer import CharTokenizer

SAMPLE_RATE = 16_000


def train_config() -> TrainConfig:
    return TrainConfig(
        run_dir="unused",
        features=LogMelConfig(num_mels=20),
        augment=AugmentConfig(),
        tokenizer=CharTokenizerConfig(),
        model=BiLstmConfig(
            conv_channels=[8, 8],
            conv_kernels=[[5, 5], [5, 5]],  # the second reaches beyond the end of what the first gives
            conv_strides=[[2, 2], [2, 2]],
            rnn_size=24,
            rnn_layers=2,
        ),
        loss=LossConfig(),
        optimizer=AdamConfig(),
        schedule=ConstantConfig(),
        data=DataConfig(name="unused", train="unused", dev="unused"),
        decoder=GreedyConfig(),
        trainer=TrainerConfig(),
        logger=LoggerConfig(),
    )


def write_checkpoint(path: Path) -> Path:
    config = train_config()
    tokenizer = CharTokenizer(list(" abcdefghijklmnopqrstuvwxyz"))
    torch.manual_seed(0)
    model = make_acoustic_model(config.features, config.model, tokenizer.vocab_size)
    with torch.no_grad():
        for convolution in model.encoder.convolutions:
            convolution.norm.bias.uniform_(0.0, 1.0)  # so that what the masks remove would be heard
        for rnn in model.encoder.rnns:
            for weight in rnn.parameters():
                weight.mul_(3.0)  # else the states of an untrained LSTM hardly move
        model.encoder.output.weight *= 40.0
        model.encoder.output.bias[tokenizer.blank_id] += 3.0
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(
        {
            "state_dict": {MODEL_PREFIX + name: weight for name, weight in model.state_dict().items()},
            "recipe": describe(config, tokenizer, model.features, {}),
        },
        path,
    )
    return path


def babble(seconds: float, seed: int) -> np.ndarray:
    """``(samples,)`` of tones and noise that change every 80 ms."""
    generator = np.random.default_rng(seed)
    num_samples = round(seconds * SAMPLE_RATE)
    time = np.arange(num_samples) / SAMPLE_RATE
    num_parts = num_samples // 1280 + 1
    pitch, level = generator.uniform(150, 3000, num_parts), generator.uniform(0.001, 0.3, num_parts)
    waveform = np.repeat(level, 1280)[:num_samples] * np.sin(
        2 * np.pi * np.repeat(pitch, 1280)[:num_samples] * time
    )
    return (waveform + 0.01 * generator.standard_normal(num_samples)).astype(np.float32)
