"""Every YAML that is shipped composes, builds the objects it names, and documents its options."""

import dataclasses
import re
from pathlib import Path
from typing import Any

import cuda_stand_in
import pytest
import torch
import yaml
from conftest import compose_config

from asr import build, optim
from asr.cli import CONFIG_DIR
from asr.config import (
    KINDS,
    AugmentPreviewConfig,
    CompareConfig,
    DoctorConfig,
    DoctorOptions,
    EvaluateConfig,
    ExplainConfig,
    LmConfig,
    PrepareConfig,
    TextConfig,
    TrainConfig,
    TranscribeConfig,
    TuneConfig,
)
from asr.decode.estimate import estimate
from asr.errors import ConfigError
from asr.records import Emissions

ROOT = Path(CONFIG_DIR)
COMMANDS = {
    "train": TrainConfig,
    "doctor": DoctorConfig,
    "augment_preview": AugmentPreviewConfig,
    "evaluate": EvaluateConfig,
    "transcribe": TranscribeConfig,
    "prepare": PrepareConfig,
    "explain": ExplainConfig,
    "lm": LmConfig,
    "tune": TuneConfig,
    "compare": CompareConfig,
}
CHOICES = sorted(str(path.relative_to(ROOT).with_suffix("")) for path in ROOT.glob("*/*.yaml"))
GROUP_CHOICES = [choice for choice in CHOICES if not choice.startswith("experiment/")]
EXPERIMENTS = [choice for choice in CHOICES if choice.startswith("experiment/")]
TEXTS = ["one two three four five", "six seven eight nine ten", "the quick brown fox jumps"]


def build_everything(config: TrainConfig) -> None:
    """Each object of a training, and one step of it on half a second of noise."""
    if config.tokenizer.kind == "sentencepiece":
        config.tokenizer.vocab_size = 28  # type: ignore[attr-defined]  # three sentences give no 256 pieces
    tokenizer = build.make_tokenizer(config.tokenizer, TEXTS)
    model = build.make_acoustic_model(config.features, config.model, tokenizer.vocab_size)
    _, augment_features = build.make_augmenters(config.augment, model.features)
    optimizer = optim.make_optimizer(config.optimizer, model)
    schedule = optim.make_schedule(config.schedule, optimizer, num_steps=10)
    loss = build.make_loss(config.loss, tokenizer.blank_id)
    decoder = build.make_decoder(config.decoder, tokenizer, model.seconds_per_frame)
    lengths = torch.tensor([config.features.sample_rate // 2])
    training_loss = build.make_training_loss(config.loss, config.text, tokenizer)
    emissions = model(
        torch.randn(1, int(lengths)),
        lengths,
        lambda features: augment_features(features, torch.tensor([1])),
        with_intermediate=True,
    )
    target = torch.tensor([tokenizer.encode("one")])
    num_views = training_loss.variants.num_views
    views = Emissions(*(torch.cat([values] * num_views) for values in emissions[:2]), emissions.intermediate)
    assert training_loss(views, target, torch.tensor([target.shape[1]])).total.isfinite().all()
    loss(
        emissions.log_probs, target, emissions.log_prob_lengths, torch.tensor([target.shape[1]])
    ).sum().backward()
    optimizer.step()
    schedule.step()
    assert len(decoder.decode(emissions)) == 1


@pytest.fixture(scope="module")
def language_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("lm") / "words.arpa"
    estimate([text.split() for text in TEXTS], output, order=2)
    return output


@pytest.mark.parametrize("choice", GROUP_CHOICES)
def test_every_choice_composes_and_builds(
    choice: str, language_model: Path, noise_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    group, name = choice.split("/")
    if name == "flashlight":
        pytest.importorskip("flashlight")
    if name == "cuda":
        monkeypatch.setattr("asr.decode.cuda.make_search", cuda_stand_in.make_search)
    needs = {
        "decoder/beam_lm": [f"decoder.lm={language_model}"],
        "augment/noisy": [f"augment.noise={noise_folder}"],
    }
    needed = needs.get(choice, [])
    small = [] if group == "model" else ["model=tiny"]
    config = compose_config("train", TrainConfig, [f"{group}={name}", *small, *needed])
    chosen = getattr(config, group)
    assert type(chosen) in KINDS[group].values()
    build_everything(config)


@pytest.mark.parametrize("choice", EXPERIMENTS)
def test_every_experiment_composes_and_builds(choice: str) -> None:
    config = compose_config("train", TrainConfig, [f"experiment={choice.split('/')[1]}"])
    build_everything(config)
    assert config.run_dir.startswith(f"runs/{config.name}/")


def test_there_are_experiments() -> None:
    assert {"experiment/demo", "experiment/an4", "experiment/fsdd"} <= set(EXPERIMENTS)


@pytest.mark.parametrize(
    ("command", "needed"),
    [
        ("evaluate", ["checkpoint=a"]),
        ("transcribe", ["checkpoint=a", "inputs=[a.wav]"]),
        ("prepare", ["corpus=demo"]),
        ("explain", ["probs=a.csv"]),
        ("tune", ["checkpoint=a", "decoder.lm=a.arpa"]),
        ("lm", ["text=a.txt", "output=a.arpa"]),
        ("augment_preview", ["experiment=fsdd"]),
    ],
)
def test_every_other_command_composes(command: str, needed: list[str]) -> None:
    assert isinstance(compose_config(command, COMMANDS[command], needed), COMMANDS[command])


def options_of(path: Path) -> dict[str, Any]:
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    return {name: value for name, value in content.items() if name not in {"defaults", "hydra"}}


def documented(path: Path) -> set[str]:
    """Options with a comment on their own line."""
    lines = path.read_text(encoding="utf-8").splitlines()
    matches = [re.match(r"\s*(\w+):.*\S\s+# \S", line) for line in lines]
    return {match.group(1) for match in matches if match}


@pytest.mark.parametrize("group", sorted({choice.split("/")[0] for choice in GROUP_CHOICES}))
def test_every_option_of_a_group_is_shown_and_explained(group: str) -> None:
    """A preset built on another need not repeat its comments."""
    files = sorted((ROOT / group).glob("*.yaml"))
    explained = set().union(*(documented(path) for path in files))
    shown = set().union(*(options_of(path) for path in files))
    known = {field.name for schema in KINDS[group].values() for field in dataclasses.fields(schema)} - {
        "kind"
    }
    assert known <= shown, f"not shown: {known - shown}"
    obvious = {"kind", "name", "dev", "test"}  # named by the group itself, or explained together with train
    assert shown - obvious <= explained, f"not explained: {shown - obvious - explained}"


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_every_option_of_a_command_is_shown_and_explained(command: str) -> None:
    path = ROOT / f"{command}.yaml"
    groups = {name for name in KINDS if (ROOT / name).is_dir()}
    inherited = {  # shown where the command that has them shows them
        field.name for base in COMMANDS[command].__mro__[1:-1] for field in dataclasses.fields(base)
    }
    known = {field.name for field in dataclasses.fields(COMMANDS[command])} - groups - inherited
    shown = set(options_of(path)) - inherited
    assert known == shown
    if command in {"prepare", "lm"}:  # their --help explains each option at length
        template = yaml.safe_load(path.read_text(encoding="utf-8"))["hydra"]["help"]["template"]
        assert shown <= set(re.findall(r"\w+", template))
    else:
        assert shown - {"text", "doctor"} <= documented(path)
    if command == "train":
        for part in (TextConfig, DoctorOptions):
            assert {field.name for field in dataclasses.fields(part)} <= documented(path)


def test_masks_need_features_whose_mean_is_known() -> None:
    with pytest.raises(ConfigError, match=r"features\.normalise=none") as caught:
        compose_config("train", TrainConfig, ["augment=standard", "features.normalise=none"])
    assert "augment.num_time_masks" in str(caught.value)
    compose_config("train", TrainConfig, ["augment=none", "features.normalise=none"])
