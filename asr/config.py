"""Typed schema of every option: each YAML in ``conf/`` is checked against these classes.

A wrong type or an unknown key fails when Hydra composes the configuration; values out of range
and contradictions fail in ``__post_init__``, before anything expensive starts. The classes are
plain data: nothing here imports Hydra, and everything below ``build.py`` receives these objects.

Where a choice is made by ``kind`` (features, model, optimizer, …) each kind has its own class, so
that an option which the chosen kind would ignore does not exist.
"""

import dataclasses
import difflib
import re
import unicodedata
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from asr.errors import ConfigError

REQUIRED: Any = "???"
"""Marker for a value that the user or a preset must give (OmegaConf's spelling)."""


def check_choice(option: str, value: str, choices: Collection[str]) -> None:
    if value not in choices:
        close = difflib.get_close_matches(str(value), list(choices), n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise ConfigError(f"{option}={value} is not one of {', '.join(choices)}{hint}")


def check_range(
    option: str,
    value: float,
    *,
    at_least: float | None = None,
    above: float | None = None,
    at_most: float | None = None,
    below: float | None = None,
) -> None:
    bounds = [
        (at_least, lambda bound: value >= bound, "at least"),
        (above, lambda bound: value > bound, "above"),
        (at_most, lambda bound: value <= bound, "at most"),
        (below, lambda bound: value < bound, "below"),
    ]
    for bound, holds, words in bounds:
        if bound is not None and not holds(bound):
            raise ConfigError(f"{option}={value} must be {words} {bound:g}")


NEW_OPTION: Mapping[str, Any] = {"is_new": True}
"""Metadata of a field that older checkpoints lack: its default is what was done before there was a choice."""


# --------------------------------------------------------------------------- front-end


@dataclass
class FeaturesConfig:
    """Short-time spectra, computed on the model's device."""

    kind: str = REQUIRED
    sample_rate: int = 16000
    window_seconds: float = 0.025
    hop_seconds: float = 0.010
    dither: float = 1e-5
    normalise: str = "utterance"

    def __post_init__(self) -> None:
        check_range("features.sample_rate", self.sample_rate, at_least=1000)
        check_range("features.hop_seconds", self.hop_seconds, above=0)
        check_range("features.dither", self.dither, at_least=0)
        check_choice("features.normalise", self.normalise, ["utterance", "utterance_mean", "none"])
        if self.window_seconds < self.hop_seconds:
            raise ConfigError(
                f"features.window_seconds={self.window_seconds} is shorter than features.hop_seconds="
                f"{self.hop_seconds}: samples between the windows would be ignored"
            )


@dataclass
class LogMelConfig(FeaturesConfig):
    kind: str = "logmel"
    num_mels: int = 80
    low_hz: float = 20.0
    high_hz: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("features.num_mels", self.num_mels, at_least=1)
        check_mel_band(self.sample_rate, self.low_hz, self.high_hz)


@dataclass
class MfccConfig(FeaturesConfig):
    kind: str = "mfcc"
    num_mfcc: int = 40
    num_mels: int = 80
    low_hz: float = 20.0
    high_hz: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("features.num_mels", self.num_mels, at_least=1)
        check_mel_band(self.sample_rate, self.low_hz, self.high_hz)
        if not 1 <= self.num_mfcc <= self.num_mels:
            raise ConfigError(
                f"features.num_mfcc={self.num_mfcc} must be between 1 and features.num_mels={self.num_mels}"
            )


@dataclass
class SpectrogramConfig(FeaturesConfig):
    kind: str = "spectrogram"


def check_mel_band(sample_rate: int, low_hz: float, high_hz: float | None) -> None:
    nyquist = sample_rate / 2
    high = nyquist if high_hz is None else high_hz
    if not 0 <= low_hz < high <= nyquist:
        raise ConfigError(
            f"features.low_hz={low_hz:g} and features.high_hz={high:g} must satisfy 0 <= low < high <= "
            f"{nyquist:g} (half of features.sample_rate={sample_rate})"
        )


# --------------------------------------------------------------------------- augmentation


@dataclass
class AugmentConfig:
    """Changes made to training audio only. Seeded per utterance and epoch; see docs/augmentation.md."""

    speed_factors: list[float] = field(default_factory=lambda: [1.0])
    gain_db: float = 0.0
    noise: str | None = None
    noise_probability: float = 0.0
    noise_snr_db: list[float] = field(default_factory=lambda: [5.0, 20.0])
    reverb_probability: float = 0.0
    reverb_responses: str | None = None
    reverb_seconds: list[float] = field(default_factory=lambda: [0.2, 0.8])
    reverb_direct_db: list[float] = field(default_factory=lambda: [0.0, 12.0])
    codec_probability: float = 0.0
    codecs: list[str] = field(default_factory=lambda: ["mu_law", "gsm"])
    sound_cache_gib: float = 0.25
    num_time_masks: int = 0
    seconds_per_time_mask: float | None = None
    time_mask_seconds: float = 0.4
    time_mask_share: float = 0.2
    num_mel_masks: int = 0
    mel_mask_share: float = 0.25
    vtlp_factors: list[float] = field(default_factory=lambda: [1.0, 1.0], metadata=NEW_OPTION)

    def __post_init__(self) -> None:
        if not self.speed_factors:
            raise ConfigError("augment.speed_factors is empty; use [1.0] to leave the speed alone")
        for factor in self.speed_factors:
            check_range("augment.speed_factors", factor, at_least=0.5, at_most=2.0)
        check_range("augment.gain_db", self.gain_db, at_least=0)
        for name in ("noise_probability", "reverb_probability", "codec_probability"):
            check_range(f"augment.{name}", getattr(self, name), at_least=0, at_most=1)
        check_span("augment.noise_snr_db", self.noise_snr_db)
        check_span("augment.reverb_seconds", self.reverb_seconds, at_least=0.05)
        check_span("augment.reverb_direct_db", self.reverb_direct_db)
        for name, probability in (("noise", "noise_probability"), ("reverb_responses", "reverb_probability")):
            if getattr(self, name) is not None and getattr(self, probability) == 0:
                raise ConfigError(
                    f"augment.{name} is not used while augment.{probability}=0: raise it, or take "
                    "augment=noisy, which does"
                )
        for codec in self.codecs:
            check_choice("augment.codecs", codec, ["mu_law", "gsm", "opus", "vorbis", "mp3"])
        if self.codec_probability > 0 and not self.codecs:
            raise ConfigError("augment.codecs is empty; name some, or set augment.codec_probability=0")
        check_span("augment.vtlp_factors", self.vtlp_factors, at_least=0.5)
        check_range("augment.vtlp_factors", self.vtlp_factors[1], at_most=2)
        check_range("augment.sound_cache_gib", self.sound_cache_gib, at_least=0)
        check_range("augment.num_time_masks", self.num_time_masks, at_least=0)
        check_range("augment.num_mel_masks", self.num_mel_masks, at_least=0)
        check_range("augment.time_mask_seconds", self.time_mask_seconds, above=0)
        check_range("augment.time_mask_share", self.time_mask_share, above=0, at_most=1)
        check_range("augment.mel_mask_share", self.mel_mask_share, above=0, at_most=1)
        if self.seconds_per_time_mask is not None:
            check_range("augment.seconds_per_time_mask", self.seconds_per_time_mask, above=0)
            if self.num_time_masks == 0:
                raise ConfigError(
                    "augment.seconds_per_time_mask needs augment.num_time_masks, the most that an utterance gets"
                )


def check_span(option: str, span: list[float], at_least: float | None = None) -> None:
    if len(span) != 2 or span[0] > span[1]:
        raise ConfigError(f"{option}={span} must be two numbers, [lowest, highest]")
    check_range(option, span[0], at_least=at_least)


# --------------------------------------------------------------------------- text


@dataclass
class TextConfig:
    """How transcripts are normalised, for training and scoring alike."""

    case: str = "lower"
    keep_punctuation: bool = False
    wildcard: str | None = field(default=None, metadata=NEW_OPTION)

    def __post_init__(self) -> None:
        check_choice("text.case", self.case, ["lower", "upper", "keep"])
        if self.wildcard is None:
            return
        is_mark = len(self.wildcard) == 1 and unicodedata.category(self.wildcard)[0] in "PS"
        if (
            not is_mark
            or self.wildcard == "'"
            or unicodedata.normalize("NFKC", self.wildcard) != self.wildcard
        ):
            raise ConfigError(
                f"text.wildcard={self.wildcard!r} must be one punctuation mark or symbol that stands between "
                "spaces for missing words, such as '*'"
            )


@dataclass
class TokenizerConfig:
    kind: str = REQUIRED


@dataclass
class CharTokenizerConfig(TokenizerConfig):
    kind: str = "char"


@dataclass
class SentencePieceConfig(TokenizerConfig):
    kind: str = "sentencepiece"
    model_type: str = "unigram"
    vocab_size: int = 256

    def __post_init__(self) -> None:
        check_choice("tokenizer.model_type", self.model_type, ["unigram", "bpe"])
        check_range("tokenizer.vocab_size", self.vocab_size, at_least=3)


# --------------------------------------------------------------------------- model


@dataclass
class ModelConfig:
    """``intermediate_layers`` are numbered from 1; the last layer, which is always read, is not among them."""

    kind: str = REQUIRED
    intermediate_layers: list[int] = field(default_factory=list, metadata=NEW_OPTION)
    self_conditioning: bool = field(default=False, metadata=NEW_OPTION)

    @property
    def num_layers(self) -> int:
        """Layers that an intermediate output can be read from, and the last one."""
        raise TypeError(f"{type(self).__name__} must say how many layers it has")

    def __post_init__(self) -> None:
        for layer in self.intermediate_layers:
            if not 1 <= layer < self.num_layers:
                raise ConfigError(
                    f"model.intermediate_layers={self.intermediate_layers} must lie between 1 and "
                    f"{self.num_layers - 1}: the model has {self.num_layers} layers and the last is always read"
                )
        if sorted(set(self.intermediate_layers)) != self.intermediate_layers:
            raise ConfigError(
                f"model.intermediate_layers={self.intermediate_layers} must ascend without repeats"
            )


@dataclass
class ConvModelConfig(ModelConfig):
    """What all models begin with: 2-D convolutions that shorten the sequence."""

    conv_channels: list[int] = field(default_factory=lambda: [32, 32])
    conv_kernels: list[list[int]] = field(default_factory=lambda: [[11, 21], [11, 11]])
    conv_strides: list[list[int]] = field(default_factory=lambda: [[2, 2], [1, 2]])
    dropout: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.conv_channels:
            raise ConfigError("model.conv_channels is empty: the encoder needs at least one convolution")
        for name in ("conv_channels", "conv_kernels", "conv_strides"):
            if len(getattr(self, name)) != len(self.conv_channels):
                raise ConfigError(
                    f"model.{name} has {len(getattr(self, name))} entries but model.conv_channels has "
                    f"{len(self.conv_channels)}: give one per convolution"
                )
        for name in ("conv_kernels", "conv_strides"):
            for pair in getattr(self, name):
                if len(pair) != 2 or min(pair) < 1:
                    raise ConfigError(f"model.{name}: each entry is [time, mel] with values >= 1, not {pair}")
        if any(size % 2 == 0 for pair in self.conv_kernels for size in pair):
            raise ConfigError(
                f"model.conv_kernels={self.conv_kernels} must be odd, so that frames stay centred"
            )
        for channels in self.conv_channels:
            check_range("model.conv_channels", channels, at_least=1)
        check_range("model.dropout", self.dropout, at_least=0, below=1)


@dataclass
class BiLstmConfig(ConvModelConfig):
    """Bidirectional LSTM layers (Deep Speech 2)."""

    kind: str = "bilstm"
    rnn_size: int = 256
    rnn_layers: int = 3
    rnn_norm: str = "batch"

    @property
    def num_layers(self) -> int:
        return self.rnn_layers

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("model.rnn_size", self.rnn_size, at_least=1)
        check_range("model.rnn_layers", self.rnn_layers, at_least=1)
        check_choice("model.rnn_norm", self.rnn_norm, ["batch", "layer", "none"])


@dataclass
class ConformerConfig(ConvModelConfig):
    """Conformer layers (Gulati et al. 2020)."""

    kind: str = "conformer"
    size: int = 144
    num_layers: int = 16
    num_heads: int = 4
    feed_forward_size: int = 576
    kernel_size: int = 31

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("size", "num_layers", "num_heads", "feed_forward_size", "kernel_size"):
            check_range(f"model.{name}", getattr(self, name), at_least=1)
        if self.size % self.num_heads:
            raise ConfigError(
                f"model.num_heads={self.num_heads} must divide model.size={self.size}: each head gets its share"
            )
        if self.kernel_size % 2 == 0:
            raise ConfigError(
                f"model.kernel_size={self.kernel_size} must be odd, so that frames stay centred"
            )


@dataclass
class ConvGluConfig(ConvModelConfig):
    """Gated convolutions over time (Liptchinsky et al. 2017), dilated as in a time-delay network."""

    kind: str = "conv_glu"
    size: int = 256
    kernel_sizes: list[int] = field(default_factory=lambda: [5, 5, 5, 5, 5, 5])
    dilations: list[int] = field(default_factory=lambda: [1, 1, 2, 2, 4, 4])
    norm: str = "layer"

    @property
    def num_layers(self) -> int:
        return len(self.kernel_sizes)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("model.size", self.size, at_least=1)
        check_choice("model.norm", self.norm, ["batch", "layer", "none"])
        if not self.kernel_sizes or len(self.kernel_sizes) != len(self.dilations):
            raise ConfigError(
                f"model.kernel_sizes has {len(self.kernel_sizes)} entries and model.dilations "
                f"{len(self.dilations)}: give one of each per layer, and at least one"
            )
        for name in ("kernel_sizes", "dilations"):
            for value in getattr(self, name):
                check_range(f"model.{name}", value, at_least=1)
        if any(size % 2 == 0 for size in self.kernel_sizes):
            raise ConfigError(
                f"model.kernel_sizes={self.kernel_sizes} must be odd, so that frames stay centred"
            )


# --------------------------------------------------------------------------- loss, optimizer, schedule


@dataclass
class LossConfig:
    """CTC and what is added to it in training; see docs/loss_variants.md."""

    kind: str = "ctc"
    backend: str = "auto"
    consistency_weight: float = 0.0
    consistency_mask_factor: float = 2.5
    intermediate_weight: float = 0.0
    blank_penalty: float = 0.0
    prior_weight: float = 0.0
    entropy_weight: float = 0.0
    label_smoothing: float = 0.0
    focal_gamma: float = 0.0
    wildcard_penalty: float = 0.3

    def __post_init__(self) -> None:
        check_choice("loss.kind", self.kind, ["ctc"])
        check_choice("loss.backend", self.backend, ["auto", "native", "fused", "reference"])
        for name in ("consistency_weight", "entropy_weight", "focal_gamma", "wildcard_penalty"):
            check_range(f"loss.{name}", getattr(self, name), at_least=0)
        check_range("loss.consistency_mask_factor", self.consistency_mask_factor, at_least=1)
        check_range("loss.blank_penalty", self.blank_penalty, at_least=0)
        check_range("loss.prior_weight", self.prior_weight, at_least=0, at_most=1)
        for name in ("intermediate_weight", "label_smoothing"):
            check_range(f"loss.{name}", getattr(self, name), at_least=0, below=1)
        if self.focal_gamma and self.prior_weight:
            raise ConfigError(
                "loss.focal_gamma weights by the probability of a transcript, which scores divided by "
                "priors are not: set loss.focal_gamma or loss.prior_weight, not both"
            )


@dataclass
class OptimizerConfig:
    kind: str = REQUIRED
    learning_rate: float = 1e-3
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        check_range("optimizer.learning_rate", self.learning_rate, above=0)
        check_range("optimizer.weight_decay", self.weight_decay, at_least=0)


@dataclass
class AdamConfig(OptimizerConfig):
    kind: str = "adam"
    betas: list[float] = field(default_factory=lambda: [0.9, 0.98])
    epsilon: float = 1e-8

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise ConfigError(f"optimizer.betas={self.betas} must be two numbers in [0, 1)")
        check_range("optimizer.epsilon", self.epsilon, above=0)


@dataclass
class AdamWConfig(AdamConfig):
    kind: str = "adamw"
    weight_decay: float = 0.01


@dataclass
class SgdConfig(OptimizerConfig):
    kind: str = "sgd"
    momentum: float = 0.9
    nesterov: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("optimizer.momentum", self.momentum, at_least=0, below=1)
        if self.nesterov and self.momentum == 0:
            raise ConfigError("optimizer.nesterov=true needs optimizer.momentum above 0")


@dataclass
class ScheduleConfig:
    kind: str = REQUIRED


@dataclass
class ConstantConfig(ScheduleConfig):
    kind: str = "constant"
    warmup_share: float = 0.0

    def __post_init__(self) -> None:
        check_range("schedule.warmup_share", self.warmup_share, at_least=0, below=1)


@dataclass
class NoamConfig(ScheduleConfig):
    kind: str = "noam"
    warmup_steps: int = 1000

    def __post_init__(self) -> None:
        check_range("schedule.warmup_steps", self.warmup_steps, at_least=1)


@dataclass
class OneCycleConfig(ScheduleConfig):
    kind: str = "one_cycle"
    warmup_share: float = 0.3
    initial_divisor: float = 25.0
    final_divisor: float = 1e4

    def __post_init__(self) -> None:
        check_range("schedule.warmup_share", self.warmup_share, above=0, below=1)
        check_range("schedule.initial_divisor", self.initial_divisor, at_least=1)
        check_range("schedule.final_divisor", self.final_divisor, at_least=1)


@dataclass
class CosineConfig(ScheduleConfig):
    kind: str = "cosine"
    warmup_share: float = 0.05
    final_share: float = 0.01

    def __post_init__(self) -> None:
        check_range("schedule.warmup_share", self.warmup_share, at_least=0, below=1)
        check_range("schedule.final_share", self.final_share, at_least=0, at_most=1)


# --------------------------------------------------------------------------- data, trainer, logger, decoder


@dataclass
class DataConfig:
    """Where the manifests are and how utterances become batches."""

    name: str = REQUIRED
    train: str = REQUIRED
    dev: str = REQUIRED
    test: str | None = None
    prepare_hint: str = "python -m asr.prepare"
    max_batch_utterances: int = 16
    max_batch_seconds: float = 240.0
    min_seconds: float = 0.0
    max_seconds: float = 30.0
    sortagrad_epochs: int = 0
    shards_per_window: int = field(default=8, metadata=NEW_OPTION)
    num_workers: int = 1
    cache_audio_gib: float = 0.0

    def __post_init__(self) -> None:
        check_range("data.max_batch_utterances", self.max_batch_utterances, at_least=1)
        check_range("data.max_batch_seconds", self.max_batch_seconds, above=0)
        check_range("data.min_seconds", self.min_seconds, at_least=0)
        check_range("data.sortagrad_epochs", self.sortagrad_epochs, at_least=0)
        check_range("data.shards_per_window", self.shards_per_window, at_least=1)
        check_range("data.num_workers", self.num_workers, at_least=0)
        check_range("data.cache_audio_gib", self.cache_audio_gib, at_least=0)
        if self.max_seconds <= self.min_seconds:
            raise ConfigError(
                f"data.max_seconds={self.max_seconds:g} must exceed data.min_seconds={self.min_seconds:g}"
            )
        if self.max_seconds > self.max_batch_seconds:
            raise ConfigError(
                f"data.max_seconds={self.max_seconds:g} exceeds data.max_batch_seconds="
                f"{self.max_batch_seconds:g}: an utterance that long would fit no batch"
            )


@dataclass
class TrainerConfig:
    accelerator: str = "auto"
    devices: int = 1
    precision: str = "auto"
    max_epochs: int = 50
    max_minutes: float | None = None
    gradient_clip_norm: float = 1.0
    accumulate_batches: int = 1
    ema_decay: float | None = None
    average_best: int | None = None
    validate_every_epochs: int = 1
    early_stopping_epochs: int | None = None
    save_every_minutes: float | None = 10.0
    non_finite_loss: str = "stop"
    log_every_steps: int = 10
    num_dev_samples: int = 3
    num_threads: int | None = None
    memory_gib: float | None = None
    profile: bool = False
    progress_bar: bool = True

    def __post_init__(self) -> None:
        check_choice("trainer.accelerator", self.accelerator, ["auto", "cpu", "gpu"])
        check_range("trainer.devices", self.devices, at_least=1)
        check_choice("trainer.precision", self.precision, ["auto", "32", "bf16"])
        check_choice("trainer.non_finite_loss", self.non_finite_loss, ["stop", "skip"])
        check_range("trainer.max_epochs", self.max_epochs, at_least=1)
        check_range("trainer.gradient_clip_norm", self.gradient_clip_norm, above=0)
        check_range("trainer.accumulate_batches", self.accumulate_batches, at_least=1)
        check_range("trainer.validate_every_epochs", self.validate_every_epochs, at_least=1)
        check_range("trainer.log_every_steps", self.log_every_steps, at_least=1)
        check_range("trainer.num_dev_samples", self.num_dev_samples, at_least=0)
        for option in (
            "max_minutes",
            "early_stopping_epochs",
            "save_every_minutes",
            "num_threads",
            "memory_gib",
        ):
            value = getattr(self, option)
            if value is not None:
                check_range(f"trainer.{option}", value, above=0)
        if self.ema_decay is not None:
            check_range("trainer.ema_decay", self.ema_decay, above=0, below=1)
        if self.average_best is not None:
            check_range("trainer.average_best", self.average_best, at_least=2)


@dataclass
class LoggerConfig:
    tensorboard: bool = True
    csv: bool = True
    num_pictures: int = 2
    picture_every_validations: int = 5

    def __post_init__(self) -> None:
        check_range("logger.num_pictures", self.num_pictures, at_least=0)
        check_range("logger.picture_every_validations", self.picture_every_validations, at_least=1)


@dataclass
class DecoderConfig:
    kind: str = REQUIRED


@dataclass
class GreedyConfig(DecoderConfig):
    kind: str = "greedy"


@dataclass
class BeamConfig(DecoderConfig):
    """Prefix beam search; see docs/decoding.md."""

    kind: str = "beam"
    beam_width: int = 50
    score_gap: float = 12.0
    token_gap: float = 8.0
    max_tokens: int | None = None
    num_threads: int | None = None
    lexicon: str | None = None
    hotwords: list[str] = field(default_factory=list)
    hotword_file: str | None = None
    hotword_weight: float = 8.0

    def __post_init__(self) -> None:
        check_range("decoder.beam_width", self.beam_width, at_least=1)
        check_range("decoder.hotword_weight", self.hotword_weight, above=0)
        check_range("decoder.score_gap", self.score_gap, above=0)
        check_range("decoder.token_gap", self.token_gap, above=0)
        for option in ("max_tokens", "num_threads"):
            value = getattr(self, option)
            if value is not None:
                check_range(f"decoder.{option}", value, at_least=1)


@dataclass
class BeamLmConfig(BeamConfig):
    """Prefix beam search with an n-gram language model; see docs/decoding.md."""

    kind: str = "beam_lm"
    lm: str = REQUIRED
    lm_unit: str = "word"
    alpha: float = 0.5
    beta: float = 1.0
    vocabulary: str = "open"
    unknown_penalty: float = -5.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("decoder.lm_unit", self.lm_unit, ["word", "token"])
        check_choice("decoder.vocabulary", self.vocabulary, ["open", "closed"])
        check_range("decoder.alpha", self.alpha, at_least=0)
        check_range("decoder.unknown_penalty", self.unknown_penalty, at_most=0)
        if self.lm_unit == "token" and (self.vocabulary == "closed") != (self.lexicon is not None):
            raise ConfigError(
                "decoder.lm_unit=token knows no words: give decoder.lexicon and decoder.vocabulary=closed "
                "together, or neither"
            )


@dataclass
class FlashlightConfig(DecoderConfig):
    """Beam search of flashlight-text; see docs/decoding.md."""

    kind: str = "flashlight"
    lm: str | None = None
    lm_unit: str = "word"
    lexicon: str | None = None
    alpha: float = 0.5
    beta: float = 0.0
    beam_width: int = 50
    score_gap: float = 12.0
    max_tokens: int | None = None

    def __post_init__(self) -> None:
        check_choice("decoder.lm_unit", self.lm_unit, ["word", "token"])
        check_range("decoder.alpha", self.alpha, at_least=0)
        check_range("decoder.beam_width", self.beam_width, at_least=1)
        check_range("decoder.score_gap", self.score_gap, above=0)
        if self.max_tokens is not None:
            check_range("decoder.max_tokens", self.max_tokens, at_least=1)
        if self.lm_unit == "token" and (self.lm is None or self.lexicon is not None):
            raise ConfigError(
                "decoder.lm_unit=token describes decoder.lm, and flashlight uses it without decoder.lexicon; "
                "decoder=beam_lm takes both"
            )
        if self.beta != 0 and not self.has_words:
            raise ConfigError(
                f"decoder.beta={self.beta:g} is for each word, and without decoder.lexicon or a decoder.lm of "
                "words flashlight knows none"
            )

    @property
    def has_words(self) -> bool:
        """Whether it searches words, not tokens alone."""
        return self.lexicon is not None or (self.lm is not None and self.lm_unit == "word")


@dataclass
class CudaConfig(DecoderConfig):
    """torchaudio's beam search on a GPU; see docs/decoding.md."""

    kind: str = "cuda"
    beam_width: int = 10
    blank_skip_threshold: float = 0.95

    def __post_init__(self) -> None:
        check_range("decoder.beam_width", self.beam_width, at_least=1, at_most=128)
        check_range("decoder.blank_skip_threshold", self.blank_skip_threshold, above=0, at_most=1)


@dataclass
class DoctorOptions:
    """How deeply the audio behind the manifests is looked at before training."""

    depth: str = "auto"
    auto_hours: float = 20.0
    cache: str | None = "runs/.doctor"

    def __post_init__(self) -> None:
        check_choice("doctor.depth", self.depth, ["auto", "full", "quick", "off"])
        check_range("doctor.auto_hours", self.auto_hours, at_least=0)


# --------------------------------------------------------------------------- commands


NO_RESUME = frozenset({"false", "", "none"})


@dataclass
class TrainConfig:
    """``python -m asr.train``."""

    name: str = "default"
    seed: int = 0
    run_dir: str = REQUIRED
    resume: str = "false"
    init_from: str | None = None
    find: str | None = None
    features: FeaturesConfig = REQUIRED
    augment: AugmentConfig = REQUIRED
    text: TextConfig = field(default_factory=TextConfig)
    tokenizer: TokenizerConfig = REQUIRED
    model: ModelConfig = REQUIRED
    loss: LossConfig = REQUIRED
    optimizer: OptimizerConfig = REQUIRED
    schedule: ScheduleConfig = REQUIRED
    data: DataConfig = REQUIRED
    decoder: DecoderConfig = REQUIRED
    trainer: TrainerConfig = REQUIRED
    logger: LoggerConfig = REQUIRED
    doctor: DoctorOptions = field(default_factory=DoctorOptions)

    def __post_init__(self) -> None:
        check_range("seed", self.seed, at_least=0)
        if self.find is not None:
            check_choice("find", self.find, ["learning_rate", "batch_size"])
            if self.trainer.devices > 1:
                raise ConfigError(
                    "find tries one device: give trainer.devices=1 (batches are divided among devices)"
                )
        if self.trainer.devices > self.data.max_batch_utterances:
            raise ConfigError(
                f"trainer.devices={self.trainer.devices} divide batches of data.max_batch_utterances="
                f"{self.data.max_batch_utterances} among them: some would have nothing to do"
            )
        self._check_loss()
        if self.features.normalise == "none" and self.augment.num_time_masks + self.augment.num_mel_masks > 0:
            raise ConfigError(
                "augment.num_time_masks and augment.num_mel_masks replace features by their mean, which "
                "features.normalise=none does not know; use another normalise, or augment=none"
            )

    def _check_loss(self) -> None:
        """What the loss needs of the model, the augmentation and the transcripts."""
        loss, model, masks = self.loss, self.model, self.augment.num_time_masks + self.augment.num_mel_masks
        if loss.consistency_weight and not masks:
            raise ConfigError(
                "loss.consistency_weight compares two differently masked views of an utterance: it needs "
                "augment.num_time_masks or augment.num_mel_masks above 0 (augment=standard)"
            )
        if loss.intermediate_weight and not model.intermediate_layers:
            if model.num_layers < 2:
                raise ConfigError(
                    "loss.intermediate_weight needs a layer before the last; the model has only one"
                )
            model.intermediate_layers = [model.num_layers // 2]  # the papers' choice for a single one
        if model.intermediate_layers and not loss.intermediate_weight:
            raise ConfigError(
                f"model.intermediate_layers={model.intermediate_layers} are read by the loss only: give "
                "loss.intermediate_weight as well (loss=intermediate)"
            )
        if model.self_conditioning and not loss.intermediate_weight:
            raise ConfigError(
                "model.self_conditioning feeds intermediate predictions back, which must be learned: give "
                "loss.intermediate_weight as well (loss=intermediate)"
            )
        unused = {
            "consistency_mask_factor": ("loss.consistency_weight", loss.consistency_weight),
            "wildcard_penalty": ("text.wildcard", self.text.wildcard),
        }
        for name, (needed, given) in unused.items():
            if not given and getattr(loss, name) != getattr(LossConfig, name):
                raise ConfigError(f"loss.{name} has no effect without {needed}")


@dataclass
class DoctorConfig(TrainConfig):
    """``python -m asr.doctor``: every option of training, since they decide what can be learned."""

    output: str = REQUIRED
    fix: str | None = None
    fix_split: str = "train"
    drop: list[str] = field(default_factory=list)
    num_shown: int = 5

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("fix_split", self.fix_split, ["train", "dev", "test"])
        check_range("num_shown", self.num_shown, at_least=0)
        if self.fix is None and (self.drop or self.fix_split != "train"):
            raise ConfigError("drop= and fix_split= say what fix=OUT.jsonl writes: give fix= too")


@dataclass
class AugmentPreviewConfig(TrainConfig):
    """``python -m asr.augment_preview``: a training's options, and what to write of its audio."""

    output: str = "outputs/augment_preview"
    num_utterances: int = 3
    num_versions: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("num_utterances", self.num_utterances, at_least=1)
        check_range("num_versions", self.num_versions, at_least=1)


def check_windows(window_seconds: float, overlap_seconds: float) -> None:
    check_range("window_seconds", window_seconds, at_least=1)
    if not 0 < overlap_seconds <= window_seconds / 2:
        raise ConfigError(
            f"overlap_seconds={overlap_seconds:g} must be above 0 and at most half of "
            f"window_seconds={window_seconds:g}"
        )


OF_PARITY = ("window_seconds", "overlap_seconds", "max_window_difference")


@dataclass
class EvaluateConfig:
    """``python -m asr.evaluate``."""

    checkpoint: str = REQUIRED
    data: DataConfig = REQUIRED
    split: str = "dev"
    manifest: str | None = None
    decoder: DecoderConfig = REQUIRED
    tuned: str | None = None
    normaliser: str = "none"
    compare_greedy: bool = True
    allow_tuned_split: bool = False
    calibration: str = "auto"
    calibrate: bool = False
    output: str | None = None
    html: bool = True
    num_pictures: int = 40
    audio_mib: float = 4.0
    sclite: bool = False
    device: str = "auto"
    num_worst: int = 10
    sweep: str | None = None
    sweep_values: list[float] | None = None
    noise: str | None = None
    noise_seed: int = 0
    check_parity: bool = False
    window_seconds: float = 30.0
    overlap_seconds: float = 4.0
    max_window_difference: float = 0.0
    label_errors: bool = False
    second_checkpoint: str | None = None

    def __post_init__(self) -> None:
        check_range("num_pictures", self.num_pictures, at_least=0)
        check_range("audio_mib", self.audio_mib, at_least=0)
        check_choice("split", self.split, ["train", "dev", "test"])
        check_choice("normaliser", self.normaliser, ["none", "basic", "english"])
        if self.calibrate and self.manifest is None and self.split != "dev":
            raise ConfigError(
                f"calibrate=true with split={self.split}: a temperature is fitted to the dev set, nothing else"
            )
        if self.calibrate and self.calibration != "auto":
            raise ConfigError(f"calibrate=true fits what calibration={self.calibration} reads: leave out one")
        check_choice("device", self.device, ["auto", "cpu", "gpu"])
        check_range("num_worst", self.num_worst, at_least=0)
        self._check_sweep()
        self._check_question()

    def _check_question(self) -> None:
        questions = {
            "check_parity=true": self.check_parity,
            "label_errors=true": self.label_errors,
            "sweep=": self.sweep is not None,
        }
        chosen = [name for name, is_chosen in questions.items() if is_chosen]
        if len(chosen) > 1:
            raise ConfigError(f"{' and '.join(chosen)} are different questions: ask one at a time")
        for name in ("sclite", "calibrate"):
            if getattr(self, name) and chosen:
                raise ConfigError(f"{name}=true goes with a plain evaluation, not with {chosen[0]}")
        if self.second_checkpoint is not None and not self.label_errors:
            raise ConfigError("second_checkpoint= goes with label_errors=true")
        if self.check_parity:
            check_windows(self.window_seconds, self.overlap_seconds)
            check_range("max_window_difference", self.max_window_difference, at_least=0, at_most=1)
        elif any(getattr(self, name) != getattr(EvaluateConfig, name) for name in OF_PARITY):
            raise ConfigError(f"{', '.join(f'{name}=' for name in OF_PARITY)} go with check_parity=true")

    def _check_sweep(self) -> None:
        if self.sweep is not None:
            check_choice("sweep", self.sweep, ["snr", "speed"])
        elif self.sweep_values is not None:
            raise ConfigError("sweep_values= goes with sweep=snr or sweep=speed")
        if self.sweep_values is not None and not self.sweep_values:
            raise ConfigError("sweep_values=[] names no value; leave it out for the usual ones")
        if self.sweep == "speed":
            for factor in self.sweep_values or []:
                check_range("sweep_values", factor, at_least=0.5, at_most=2.0)
        if self.sweep == "snr" and self.noise is None:
            raise ConfigError("sweep=snr needs noise=FOLDER of noise recordings (or a manifest of them)")
        if self.sweep != "snr" and (self.noise is not None or self.noise_seed != 0):
            raise ConfigError("noise= and noise_seed= go with sweep=snr")
        check_range("noise_seed", self.noise_seed, at_least=0)


@dataclass
class TuneConfig:
    """``python -m asr.tune``."""

    checkpoint: str = REQUIRED
    data: DataConfig = REQUIRED
    split: str = "dev"
    manifest: str | None = None
    decoder: DecoderConfig = REQUIRED
    normaliser: str = "none"
    output: str | None = None
    device: str = "auto"
    alphas: list[float] = field(default_factory=lambda: [0.0, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0])
    betas: list[float] = field(default_factory=lambda: [-2.0, -1.0, 0.0, 1.0, 2.0, 3.0, 4.0])
    unknown_penalties: list[float] = field(default_factory=lambda: [-20.0, -10.0, -5.0, -2.0])
    hotword_weights: list[float] = field(default_factory=lambda: [2.0, 4.0, 8.0, 12.0])
    refine_rounds: int = 2
    beam_widths: list[int] = field(default_factory=lambda: [5, 10, 25, 50, 100])
    score_gaps: list[float] = field(default_factory=lambda: [6.0, 9.0, 12.0])
    token_gaps: list[float] = field(default_factory=lambda: [5.0, 8.0, 12.0])
    folds: int = 5
    seed: int = 0
    image_format: str = "png"

    def __post_init__(self) -> None:
        check_choice("split", self.split, ["train", "dev", "test"])
        check_choice("normaliser", self.normaliser, ["none", "basic", "english"])
        check_choice("device", self.device, ["auto", "cpu", "gpu"])
        check_choice("image_format", self.image_format, ["png", "svg"])
        check_range("refine_rounds", self.refine_rounds, at_least=0)
        check_range("folds", self.folds, at_least=2)
        check_range("seed", self.seed, at_least=0)
        pruning = ("beam_widths", "score_gaps", "token_gaps")
        for option in ("alphas", "betas", "unknown_penalties", "hotword_weights", *pruning):
            if not getattr(self, option):
                raise ConfigError(f"{option} is empty: name the values to try, one to leave it alone")
        for option in pruning:
            check_range(option, min(getattr(self, option)), above=0)
        check_range("alphas", min(self.alphas), at_least=0)
        check_range("unknown_penalties", max(self.unknown_penalties), at_most=0)
        check_range("hotword_weights", min(self.hotword_weights), above=0)


@dataclass
class CompareConfig:
    """``python -m asr.compare``."""

    reports: list[str] = field(default_factory=list)
    metric: str = "wer"
    unit: str = "utterance"
    group_seeds: bool = True
    level: float = 0.95
    min_shared: float = 0.5
    num_resamples: int = 10_000
    seed: int = 0
    max_slices: int = 10
    output: str | None = None

    def __post_init__(self) -> None:
        check_choice("metric", self.metric, ["wer", "cer"])
        check_choice("unit", self.unit, ["utterance", "speaker"])
        check_range("level", self.level, at_least=0.5, at_most=0.999)
        check_range("min_shared", self.min_shared, above=0, at_most=1)
        check_range("num_resamples", self.num_resamples, at_least=100)
        check_range("seed", self.seed, at_least=0)
        check_range("max_slices", self.max_slices, at_least=0)


@dataclass
class TranscribeConfig:
    """``python -m asr.transcribe``. ``format`` is one name or, for files, a list of them."""

    checkpoint: str = REQUIRED
    inputs: list[str] = field(default_factory=list)
    decoder: DecoderConfig = REQUIRED
    tuned: str | None = None
    format: Any = "text"
    calibration: str = "auto"
    output: str | None = None
    existing: str = "refuse"
    device: str = "auto"
    max_batch_seconds: float = 240.0
    window_seconds: float = 30.0
    overlap_seconds: float = 4.0

    def __post_init__(self) -> None:
        self.format = [
            str(name) for name in (self.format if isinstance(self.format, list) else [self.format])
        ]
        for name in self.format:
            check_choice("format", name, ["text", "json", "ctm", "srt", "vtt", "textgrid"])
        if not self.format or len(set(self.format)) < len(self.format):
            raise ConfigError("format: name each format once, one at least")
        if len(self.format) > 1 and self.output is None:
            raise ConfigError(
                f"format=[{','.join(self.format)}] makes several files of each recording: add output=FOLDER"
            )
        check_choice("existing", self.existing, ["refuse", "skip", "overwrite"])
        check_choice("device", self.device, ["auto", "cpu", "gpu"])
        check_windows(self.window_seconds, self.overlap_seconds)
        if self.max_batch_seconds < self.window_seconds:
            raise ConfigError(
                f"max_batch_seconds={self.max_batch_seconds:g} must be at least "
                f"window_seconds={self.window_seconds:g}: a window would fit no batch"
            )
        if self.output is None and self.existing != "refuse":
            raise ConfigError(
                f"existing={self.existing} needs output=: on standard output nothing exists yet"
            )


@dataclass
class PrepareConfig:
    """``python -m asr.prepare``. ``None`` leaves the choice to the corpus."""

    corpus: str = REQUIRED
    source: str | None = None
    output: str = REQUIRED
    download_dir: str | None = None
    mirror: str | None = None
    shards: str | None = None
    seed: int | None = None
    dev_fraction: float | None = None
    test_fraction: float | None = None
    folds: int | None = None
    fold: int | None = None
    split_by: str | None = None
    subsets: list[str] | None = None
    dev_speaker: str | None = None
    test_speaker: str | None = None
    connected: bool | None = None
    connected_passes: int | None = None
    min_digits: int | None = None
    max_digits: int | None = None
    audio_column: str | None = None
    text_column: str | None = None
    speaker_column: str | None = None
    speaker_folders: bool | None = None
    num_utterances: int | None = None
    num_speakers: int | None = None
    grammar: str | None = None
    checkpoint: str | None = None

    def __post_init__(self) -> None:
        check_choice(
            "corpus",
            self.corpus,
            ["demo", "an4", "fsdd", "librispeech", "ljspeech", "folder", "lhotse", "webdataset", "spliced"],
        )
        if self.shards is not None and self.shard_bytes == 0:
            raise ConfigError(f"shards={self.shards} must be the size of a shard, such as 500MB or 1GB")

    @property
    def shard_bytes(self) -> int:
        """The largest shard; 0 for none."""
        size = re.fullmatch(r"(\d+(?:\.\d+)?)([MG])B", self.shards or "")
        return int(float(size[1]) * {"M": 10**6, "G": 10**9}[size[2]]) if size else 0


@dataclass
class ExplainConfig:
    """``python -m asr.explain``: a table of probabilities, or a recording under a checkpoint."""

    text: str | None = None
    output: str | None = None
    image_format: str = "png"
    probs: str | None = None
    inputs: str = "auto"
    blank: int | None = None
    symbols: str | None = None
    max_paths: int = 30
    checkpoint: str | None = None
    audio: str | None = None

    def __post_init__(self) -> None:
        check_choice("image_format", self.image_format, ["png", "svg"])
        check_choice("inputs", self.inputs, ["auto", "probs", "logits", "log_probs"])
        check_range("max_paths", self.max_paths, at_least=1)
        if (self.probs is None) == (self.checkpoint is None):
            raise ConfigError("give either probs=TABLE or checkpoint=MODEL audio=FILE; --help shows examples")
        if self.probs is not None and self.audio is not None:
            raise ConfigError("audio= goes with checkpoint=, not with probs=")
        if self.checkpoint is not None:
            if self.audio is None:
                raise ConfigError("checkpoint= needs audio=FILE, the recording to explain")
            if self.blank is not None or self.symbols is not None or self.inputs != "auto":
                raise ConfigError(
                    "blank=, symbols= and inputs= describe a table; a checkpoint knows its own tokens"
                )


@dataclass
class LmConfig:
    """``python -m asr.lm``. ``text`` and ``exclude`` are one file or a list of them."""

    text: Any = REQUIRED
    output: str = REQUIRED
    order: int = 3
    unit: str = "word"
    prune: list[int] = field(default_factory=list)
    vocabulary: str | None = None
    max_words: int | None = None
    discount_fallback: bool = True
    normalise: bool = True
    case: str = "lower"
    keep_punctuation: bool = False
    wildcard: str | None = None
    exclude: Any = field(default_factory=list)
    perplexity: str | None = None
    memory_gib: float = 1.0
    scratch_dir: str | None = None

    def __post_init__(self) -> None:
        self.text, self.exclude = (
            [str(name) for name in (names if isinstance(names, list) else [names])]
            for names in (self.text, self.exclude)
        )
        if not self.text:
            raise ConfigError("text=[] names no file")
        check_range("order", self.order, at_least=1, at_most=10)
        check_choice("unit", self.unit, ["word", "char"])
        check_choice("case", self.case, ["lower", "upper", "keep"])
        if self.wildcard == "":
            raise ConfigError("wildcard= is empty: leave it out, or give the mark of missing words")
        check_range("memory_gib", self.memory_gib, above=0)
        if self.max_words is not None:
            check_range("max_words", self.max_words, at_least=1)
        if not self.normalise and (self.case != "lower" or self.keep_punctuation):
            raise ConfigError(
                "case= and keep_punctuation= are part of normalising: leave out normalise=false"
            )
        if not self.output.endswith((".arpa", ".arpa.gz")):
            raise ConfigError(f"output={self.output} must end in .arpa or .arpa.gz")


KINDS: dict[str, dict[str, type]] = {
    "features": {"logmel": LogMelConfig, "mfcc": MfccConfig, "spectrogram": SpectrogramConfig},
    "tokenizer": {"char": CharTokenizerConfig, "sentencepiece": SentencePieceConfig},
    "model": {"bilstm": BiLstmConfig, "conformer": ConformerConfig, "conv_glu": ConvGluConfig},
    "optimizer": {"adam": AdamConfig, "adamw": AdamWConfig, "sgd": SgdConfig},
    "schedule": {
        "constant": ConstantConfig,
        "noam": NoamConfig,
        "one_cycle": OneCycleConfig,
        "cosine": CosineConfig,
    },
    "decoder": {
        "greedy": GreedyConfig,
        "beam": BeamConfig,
        "beam_lm": BeamLmConfig,
        "flashlight": FlashlightConfig,
        "cuda": CudaConfig,
    },
    "augment": {"augment": AugmentConfig},
    "loss": {"ctc": LossConfig},
    "data": {"data": DataConfig},
    "trainer": {"trainer": TrainerConfig},
    "logger": {"logger": LoggerConfig},
}
"""Group → kind → schema. The YAML files of a group name theirs as ``<kind>_schema`` in their defaults."""


ConfigT = TypeVar("ConfigT")


def from_plain(schema: type[ConfigT], values: Mapping[str, Any], where: str) -> ConfigT:
    """Rebuild a flat config object from plain data (a checkpoint's), rejecting unknown or missing keys.

    Raises:
        ConfigError: naming the keys, prefixed by ``where``.
    """
    fields = {item.name: item for item in dataclasses.fields(schema)}  # type: ignore[arg-type]
    unknown = sorted(set(values) - set(fields))
    missing = sorted(name for name in set(fields) - set(values) if "is_new" not in fields[name].metadata)
    if unknown or missing:
        raise ConfigError(
            f"{where}: options do not fit this version (unknown: {unknown or 'none'}; missing: {missing or 'none'})"
        )
    return schema(**values)


def from_plain_kind(group: str, values: Mapping[str, Any], where: str) -> Any:
    """Like :func:`from_plain`, for a group whose schema is chosen by the ``kind`` among its values."""
    kind = values.get("kind")
    if kind not in KINDS[group]:
        raise ConfigError(f"{where}: unknown {group} kind {kind!r} (known: {', '.join(KINDS[group])})")
    return from_plain(KINDS[group][kind], values, where)
