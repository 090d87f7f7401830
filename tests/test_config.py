"""The schema refuses what contradicts itself, naming the options; plain data comes back as it was."""

import dataclasses
from typing import Any

import pytest

from asr.config import (
    KINDS,
    AdamConfig,
    AugmentConfig,
    BiLstmConfig,
    DataConfig,
    EvaluateConfig,
    FeaturesConfig,
    LogMelConfig,
    MfccConfig,
    NoamConfig,
    OneCycleConfig,
    SentencePieceConfig,
    SgdConfig,
    SpectrogramConfig,
    TextConfig,
    TrainerConfig,
    check_choice,
    from_plain,
    from_plain_kind,
)
from asr.errors import ConfigError

DATA: dict[str, Any] = {"name": "x", "train": "t", "dev": "d"}


@pytest.mark.parametrize(
    ("schema", "options", "named"),
    [
        (LogMelConfig, {"window_seconds": 0.005}, ["features.window_seconds", "features.hop_seconds"]),
        (LogMelConfig, {"high_hz": 9000.0}, ["features.high_hz", "features.sample_rate=16000"]),
        (LogMelConfig, {"low_hz": 8000.0}, ["features.low_hz"]),
        (LogMelConfig, {"num_mels": 0}, ["features.num_mels=0"]),
        (LogMelConfig, {"normalise": "uterance"}, ["features.normalise", "did you mean 'utterance'"]),
        (LogMelConfig, {"dither": float("nan")}, ["features.dither=nan"]),
        (MfccConfig, {"num_mfcc": 41, "num_mels": 40}, ["features.num_mfcc=41", "features.num_mels=40"]),
        (SpectrogramConfig, {"hop_seconds": 0.0}, ["features.hop_seconds=0.0 must be above 0"]),
        (AugmentConfig, {"speed_factors": []}, ["augment.speed_factors"]),
        (AugmentConfig, {"speed_factors": [1.0, 11.0]}, ["augment.speed_factors=11.0"]),
        (AugmentConfig, {"time_mask_share": 1.5}, ["augment.time_mask_share=1.5 must be at most 1"]),
        (TextConfig, {"case": "title"}, ["text.case=title"]),
        (SentencePieceConfig, {"model_type": "word"}, ["tokenizer.model_type=word"]),
        (BiLstmConfig, {"conv_channels": [8]}, ["model.conv_kernels has 2", "model.conv_channels has 1"]),
        (BiLstmConfig, {"conv_kernels": [[4, 5], [5, 5]]}, ["model.conv_kernels", "odd"]),
        (BiLstmConfig, {"conv_strides": [[2, 0], [1, 1]]}, ["model.conv_strides"]),
        (BiLstmConfig, {"conv_strides": [[2], [1, 1]]}, ["model.conv_strides", "[time, mel]"]),
        (BiLstmConfig, {"dropout": 1.0}, ["model.dropout=1.0 must be below 1"]),
        (AdamConfig, {"betas": [0.9]}, ["optimizer.betas=[0.9]"]),
        (AdamConfig, {"learning_rate": float("nan")}, ["optimizer.learning_rate=nan"]),
        (SgdConfig, {"momentum": 0.0}, ["optimizer.nesterov=true", "optimizer.momentum"]),
        (NoamConfig, {"warmup_steps": 0}, ["schedule.warmup_steps=0"]),
        (OneCycleConfig, {"warmup_share": 1.0}, ["schedule.warmup_share=1.0"]),
        (DataConfig, {**DATA, "min_seconds": 40.0}, ["data.max_seconds=30", "data.min_seconds=40"]),
        (
            DataConfig,
            {**DATA, "max_batch_seconds": 20.0},
            ["data.max_seconds=30", "data.max_batch_seconds=20"],
        ),
        (DataConfig, {**DATA, "num_workers": -1}, ["data.num_workers=-1"]),
        (TrainerConfig, {"max_minutes": 0.0}, ["trainer.max_minutes=0.0 must be above 0"]),
        (TrainerConfig, {"precision": "16"}, ["trainer.precision=16", "bf16"]),
        (TrainerConfig, {"non_finite_loss": "ignore"}, ["trainer.non_finite_loss=ignore"]),
        (EvaluateConfig, {"split": "eval"}, ["split=eval"]),
    ],
)
def test_refused_in_one_line_that_names_the_options(
    schema: type, options: dict[str, Any], named: list[str]
) -> None:
    with pytest.raises(ConfigError) as caught:
        schema(**options)
    for words in named:
        assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_nearest_choice_is_suggested_only_when_it_is_near() -> None:
    with pytest.raises(ConfigError, match="did you mean 'native'"):
        check_choice("loss.backend", "natve", ["auto", "native"])
    with pytest.raises(ConfigError) as caught:
        check_choice("loss.backend", "zzz", ["auto", "native"])
    assert "did you mean" not in str(caught.value)


@pytest.mark.parametrize(
    ("group", "schema"), [(group, schema) for group, kinds in KINDS.items() for schema in kinds.values()]
)
def test_plain_data_comes_back_as_it_was(group: str, schema: type) -> None:
    config = schema(**(DATA if schema is DataConfig else {}))
    plain = dataclasses.asdict(config)
    assert from_plain(schema, plain, "here") == config
    if "kind" in plain and group != "loss":
        assert from_plain_kind(group, plain, "here") == config


def test_plain_data_of_another_version_is_refused() -> None:
    plain = dataclasses.asdict(LogMelConfig())
    with pytest.raises(ConfigError, match=r"best\.ckpt: .*unknown: \['colour'\]"):
        from_plain(LogMelConfig, {**plain, "colour": 1}, "best.ckpt")
    del plain["dither"]
    with pytest.raises(ConfigError, match=r"missing: \['dither'\]"):
        from_plain(LogMelConfig, plain, "best.ckpt")
    with pytest.raises(ConfigError, match=r"unknown features kind 'os\.system'"):
        from_plain_kind("features", {"kind": "os.system"}, "best.ckpt")


def test_each_kind_is_its_own_class_with_its_own_name() -> None:
    for group in ("features", "tokenizer", "model", "optimizer", "schedule", "decoder"):
        for kind, schema in KINDS[group].items():
            defaults = {field.name: field.default for field in dataclasses.fields(schema)}
            assert defaults["kind"] == kind
    assert issubclass(LogMelConfig, FeaturesConfig)
