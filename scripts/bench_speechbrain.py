"""Training step: this program against SpeechBrain's parts, on the same batches, turn about in one process.

Ours is the whole Lightning step (hooks, metrics, logging). Theirs is ``Brain.fit_batch`` alone, on what its CTC
recipes are made of: ``Fbank``, ``InputNormalization`` per sentence, an encoder, ``Linear``, ``ctc_loss``. Neither
augments; both get whole batches from memory, AdamW and gradient clipping.

--network says what their encoder is: ``same``, layer by layer that of our ``bilstm`` models (strided convolutions,
BiLSTM layers), from ``nnet.CNN.Conv2d`` and ``nnet.RNN.LSTM``; or ``crdnn``, the encoder of their TIMIT and
LibriSpeech recipes, with time pooling to our frame rate and LSTM layers like ours.

    pip install speechbrain==1.1.2          # in an environment of its own, beside this program's packages
    python scripts/bench_speechbrain.py --threads 1 --clock cpu model=small
    python scripts/bench_speechbrain.py --threads 1 --precision bf16 model=small
    python scripts/bench_speechbrain.py --threads 1 --network crdnn model=small
"""

import argparse
import json
import math
import sys
import tempfile
from pathlib import Path
from typing import Any

import bench_train_step as bench
import speechbrain as sb
import torch
from speechbrain.lobes.features import Fbank
from speechbrain.lobes.models.CRDNN import CRDNN
from speechbrain.nnet.CNN import Conv2d
from speechbrain.nnet.linear import Linear
from speechbrain.nnet.losses import ctc_loss
from speechbrain.nnet.normalization import BatchNorm2d
from speechbrain.nnet.RNN import LSTM
from speechbrain.processing.features import InputNormalization
from torch import Tensor, nn

from asr import train
from asr.config import BiLstmConfig, LogMelConfig, TrainConfig
from asr.records import Batch

PRECISIONS = {"32": "fp32", "bf16": "bf16"}


class SameEncoder(nn.Module):
    """Strided convolutions and BiLSTM layers as in ``asr.models.bilstm``, of their parts."""

    def __init__(self, model: BiLstmConfig, num_mels: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels, bins = 1, num_mels
        for out_channels, kernel, stride in zip(
            model.conv_channels, model.conv_kernels, model.conv_strides, strict=True
        ):
            layers += [
                Conv2d(
                    out_channels,
                    tuple(kernel),
                    in_channels=channels,
                    stride=tuple(stride),
                    padding_mode="constant",
                ),
                BatchNorm2d(input_size=out_channels),
                nn.Hardtanh(0, 20),
            ]
            channels, bins = out_channels, math.ceil(bins / stride[1])
        self.convolutions = nn.Sequential(*layers)
        self.rnn = LSTM(
            model.rnn_size,
            input_size=channels * bins,
            num_layers=model.rnn_layers,
            dropout=model.dropout,
            bidirectional=True,
        )

    def forward(self, features: Tensor) -> Tensor:
        states = self.convolutions(features.unsqueeze(3))
        states, _ = self.rnn(states.flatten(2))
        return states


def make_crdnn(model: BiLstmConfig, num_mels: int) -> nn.Module:
    """Recipe's encoder; half of the recipe's convolution channels, one dense block."""
    return CRDNN(
        input_shape=[None, None, num_mels],
        cnn_blocks=2,
        cnn_channels=(64, 128),
        cnn_kernelsize=(3, 3),
        time_pooling=True,
        time_pooling_size=math.prod(stride[0] for stride in model.conv_strides),
        rnn_class=LSTM,
        rnn_layers=model.rnn_layers,
        rnn_neurons=model.rnn_size,
        rnn_bidirectional=True,
        dnn_blocks=1,
        dnn_neurons=2 * model.rnn_size,
        dropout=model.dropout,
    )


class CtcBrain(sb.Brain):
    """Their training loop, as in the CTC recipes."""

    def compute_forward(self, batch: Batch, stage: sb.Stage) -> tuple[Tensor, Tensor]:
        shares = batch.waveform_lengths / batch.waveforms.shape[1]
        features = self.modules.normalize(self.hparams.fbank(batch.waveforms), shares)
        logits = self.modules.output(self.modules.encoder(features))
        return logits.float().log_softmax(dim=-1), shares

    def compute_objectives(self, predictions: tuple[Tensor, Tensor], batch: Batch, stage: sb.Stage) -> Tensor:
        log_probs, shares = predictions
        target_shares = batch.target_lengths / batch.targets.shape[1]
        return ctc_loss(log_probs, batch.targets, shares, target_shares, self.hparams.blank_id)


def make_brain(config: TrainConfig, network: str, vocab_size: int, blank_id: int, precision: str) -> CtcBrain:
    """Their model of the size of ours."""
    model, features = config.model, config.features
    assert isinstance(model, BiLstmConfig)
    assert isinstance(features, LogMelConfig)
    make = SameEncoder if network == "same" else make_crdnn
    encoder = make(model, features.num_mels)
    size = 2 * model.rnn_size
    fbank = Fbank(sample_rate=features.sample_rate, n_mels=features.num_mels, n_fft=512)
    return CtcBrain(
        modules={
            "encoder": encoder,
            "normalize": InputNormalization(norm_type="sentence"),
            "output": Linear(vocab_size, input_size=size),
        },
        opt_class=lambda parameters: torch.optim.AdamW(parameters, lr=config.optimizer.learning_rate),
        hparams={"fbank": fbank, "blank_id": blank_id},
        run_opts={"device": "cpu", "precision": PRECISIONS[precision], "noprogressbar": True},
    )


def count_parameters(module: nn.Module) -> float:
    """Millions."""
    return round(sum(parameter.numel() for parameter in module.parameters()) / 1e6, 3)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--precision", choices=PRECISIONS, default="32", help="of both")
    parser.add_argument("--network", choices=["same", "crdnn"], default="same")
    bench.add_clock(parser)
    parser.add_argument("overrides", nargs="*", help="options of asr.train, such as model=tiny")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    train.quieten_libraries()
    with tempfile.TemporaryDirectory() as folder:
        overrides = ["augment=none", f"trainer.precision={options.precision}", *options.overrides]
        config = bench.compose(overrides, folder)
        batches = bench.make_batches(
            config, options.steps + bench.WARM_UP_STEPS, options.batch_size, options.seconds
        )
        torch.manual_seed(0)
        module = bench.make_module(config, num_steps=len(batches))
        vocab_size = module.acoustic_model.encoder.output.out_features
        brain = make_brain(config, options.network, vocab_size, module.blank_id, options.precision)
        brain.on_fit_start()
        brain.modules.train()

        def their_step(batch: Batch) -> None:
            brain.step += 1
            brain.fit_batch(batch)

        turns = bench.measure(config, module, their_step, batches, Path(folder), bench.CLOCKS[options.clock])
    audio = sum(int(batch.waveform_lengths.sum()) for batch in batches) / len(batches)
    audio_seconds = audio / config.features.sample_rate
    ours, theirs = bench.figures(turns.lightning_seconds), bench.figures(turns.other_seconds)
    result: dict[str, Any] = vars(options) | {
        "ours": ours | rates(ours, audio_seconds, module),
        "speechbrain": theirs | rates(theirs, audio_seconds, brain.modules),
        "speed_up": bench.compare(turns.other_seconds, turns.lightning_seconds),
        "versions": {"torch": torch.__version__, "speechbrain": sb.__version__},
    }
    sys.stdout.write(json.dumps(result, indent=2) + "\n")
    return 0


def rates(figures: dict[str, float], audio_seconds: float, module: nn.Module) -> dict[str, float]:
    return {
        "audio_seconds_per_second": round(1000 * audio_seconds / figures["median_ms"], 1),
        "million_parameters": count_parameters(module),
    }


if __name__ == "__main__":
    sys.exit(main())
