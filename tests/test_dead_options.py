"""Every option is read by the program: an option that is accepted and then ignored does not exist.

Small runs of every command record which fields of the configuration are read, and by whom. A copy (into a
checkpoint, into a report) and a range check are no use. Where a class is made from all options of its kind
(a model, a front-end), each must be a parameter that the class's constructor uses.

A new option that fails here is either read nowhere, or only under a condition that no run below meets: then
switch it on in one of them. A new command needs a run of its own.
"""

import ast
import dataclasses
import inspect
import re
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, get_type_hints

import cuda_stand_in
import numpy as np
import pytest
import soundfile
import torch
from conftest import TINY_OPTIONS, TINY_RATE, TinyCorpus, compose_config
from test_configs_compose import COMMANDS

import asr.config
from asr import build, optim, prepare
from asr.augment_preview import augment_preview
from asr.cli import CONFIG_DIR
from asr.compare import compare
from asr.config import KINDS, LossConfig, TextConfig
from asr.doctor import examine
from asr.errors import ManifestError, TrainingError
from asr.evaluate import evaluate
from asr.explain import explain
from asr.lm import estimate_model
from asr.train import train
from asr.transcribe import transcribe
from asr.tune import tune

Leaf = tuple[str, str]
"""Class of the configuration, and field."""

TASKS: dict[str, Callable[[Any], int | None]] = {
    "train": train,
    "doctor": examine,
    "augment_preview": augment_preview,
    "evaluate": evaluate,
    "transcribe": transcribe,
    "prepare": prepare.prepare,
    "explain": explain,
    "lm": estimate_model,
    "tune": tune,
    "compare": compare,
}
TEXTS = ["ab cd dc ba", "dc ba aa bb", "aa bb ab cd"]
_COPIERS = ("dataclasses.py", "copy.py", "config.py", "cli.py", "conftest.py")
_WHOLE = "build.py"  # passes all options of a kind on, by name
_BY_NAME = "corpus_options"  # of asr.prepare, which passes on what a corpus knows


def owner(schema: type, name: str) -> str:
    """A field of a command counts where it is declared; one of a kind in each kind, which may ignore it."""
    if schema in {node for kinds in KINDS.values() for node in kinds.values()}:
        return schema.__name__
    return next(base.__name__ for base in schema.__mro__ if name in vars(base).get("__annotations__", {}))


def leaves() -> set[Leaf]:
    """All options. ``kind`` is what chooses the class, ``name`` and ``prepare_hint`` are options like others."""
    found: set[Leaf] = set()
    waiting: list[type] = [*COMMANDS.values(), *(node for kinds in KINDS.values() for node in kinds.values())]
    seen: set[type] = set()
    while waiting:
        schema = waiting.pop()
        if schema in seen:
            continue
        seen.add(schema)
        hints = get_type_hints(schema)
        for item in dataclasses.fields(schema):
            if dataclasses.is_dataclass(hints[item.name]):
                nested = hints[item.name]
                if nested not in {
                    base for kinds in KINDS.values() for node in kinds.values() for base in node.__mro__
                }:
                    waiting.append(nested)  # type: ignore[arg-type]
            elif item.name != "kind":
                found.add((owner(schema, item.name), item.name))
    return found


@contextmanager
def recorded_reads() -> Iterator[set[Leaf]]:
    """Fields read meanwhile, by anything but copies and the checks of the configuration itself."""
    reads: set[Leaf] = set()
    schemas = [node for node in vars(asr.config).values() if dataclasses.is_dataclass(node)]

    def read(self: Any, name: str) -> Any:
        code = sys._getframe(1).f_code
        file = Path(code.co_filename).name
        fields = type(self).__dataclass_fields__
        if name in fields and file not in _COPIERS and code.co_name != _BY_NAME:
            reads.add((owner(type(self), name), name))
        elif name == "__dict__" and file == _WHOLE:
            reads.update((owner(type(self), each), each) for each in fields)
        return object.__getattribute__(self, name)

    with pytest.MonkeyPatch.context() as patch:
        for schema in schemas:
            patch.setattr(schema, "__getattribute__", read, raising=False)
        yield reads


class Runs:
    """Small runs of every command, with every condition met under which an option is read."""

    def __init__(self, corpus: TinyCorpus, run_dir: Path, noise: Path, folder: Path) -> None:
        self.corpus, self.run_dir, self.noise, self.folder = corpus, run_dir, noise, folder
        self.manifests = [f"data.{split}={corpus.manifest(split)}" for split in ("train", "dev")]
        self.audio = corpus.folder / "dev-0.wav"
        self.text = folder / "text.txt"
        self.text.write_text("ab cd\ndc ba\naa bb\n" * 3)
        self.arpa = folder / "lm.arpa"

    def run(self, command: str, *overrides: str) -> None:
        config = compose_config(command, COMMANDS[command], overrides)
        assert TASKS[command](config) in (0, 1, None)

    def all(self) -> None:
        self.run("lm", f"text={self.text}", f"output={self.arpa}", "order=2", f"perplexity={self.text}")
        self.train()
        self.kinds()
        noise = [f"augment.noise={self.noise}", "augment=noisy"]
        preview = ["num_utterances=1", "num_versions=1", f"output={self.folder / 'preview'}"]
        self.run("augment_preview", *TINY_OPTIONS, *self.manifests, *noise, *preview)
        doctor = [f"output={self.folder / 'doctor'}", f"fix={self.folder / 'fixed.jsonl'}", "augment=none"]
        self.run("doctor", *TINY_OPTIONS, *self.manifests, *doctor)
        self.evaluate()
        self.transcribe()
        self.explain()
        tuning = ["alphas=[0.5]", "betas=[0.0]", "beam_widths=[4]", "score_gaps=[9]", "token_gaps=[8]"]
        tuning += ["refine_rounds=0", "unknown_penalties=[-5]", f"output={self.folder / 'tuned'}", "folds=2"]
        lm = ["decoder=beam_lm", f"decoder.lm={self.arpa}", "decoder.hotwords=[ab]", "hotword_weights=[8]"]
        self.run("tune", f"checkpoint={self.run_dir}", *self.manifests, *tuning, *lm)
        self.run("prepare", "corpus=folder", f"source={self.transcribed()}", f"output={self.folder / 'out'}")
        reports = ",".join(
            str(path) for path in (self.run_dir, self.folder / "copy" / "evaluation" / "tiny-dev")
        )
        self.run("compare", f"reports=[{reports}]", f"output={self.folder / 'compared'}")

    def train(self) -> None:
        options = ["model.rnn_layers=2", "loss=intermediate", "trainer.ema_decay=0.9", "logger.csv=true"]
        options += [f"run_dir={self.folder / 'run'}", "trainer.max_epochs=1", "doctor.depth=auto"]
        options += ["logger.tensorboard=true", "logger.num_pictures=1"]
        self.run("train", *TINY_OPTIONS, *self.manifests, *options, "trainer.num_dev_samples=1")
        find = ["find=batch_size", "trainer.memory_gib=1e-3", f"run_dir={self.folder / 'found'}"]
        with pytest.raises(TrainingError, match="needs more than"):
            self.run("train", *TINY_OPTIONS, *self.manifests, *find)

    def kinds(self) -> None:
        """The objects of every kind, made as training makes them."""
        small = compose_config("train", COMMANDS["train"], [*TINY_OPTIONS, *self.manifests])
        tokenizer = build.make_tokenizer(small.tokenizer, TEXTS)
        network = torch.nn.Linear(2, 2)
        for features in KINDS["features"].values():
            build.make_features(features())
        for kind in KINDS["tokenizer"].values():
            config = kind()
            config.vocab_size = 8
            build.make_tokenizer(config, TEXTS)
        for model in KINDS["model"].values():
            build.make_acoustic_model(small.features, model(), tokenizer.vocab_size)
        for optimizer in KINDS["optimizer"].values():
            made = optim.make_optimizer(optimizer(), network)
            for schedule in KINDS["schedule"].values():
                optim.make_schedule(schedule(), made, num_steps=10)
        build.make_training_loss(LossConfig(), TextConfig(wildcard="*"), tokenizer)
        masked = dataclasses.replace(small.augment, num_time_masks=1)
        build.masks_of_views(masked, LossConfig(consistency_weight=0.1))
        front_end = build.make_features(small.features)
        rooms = {"reverb_probability": 0.5, "codec_probability": 0.5}
        build.make_augmenters(dataclasses.replace(small.augment, **rooms), front_end)
        rooms["reverb_responses"] = str(self.noise)
        build.make_augmenters(dataclasses.replace(small.augment, **rooms), front_end)
        for decoder in KINDS["decoder"].values():
            needed = (
                {"lm": str(self.arpa)} if "lm" in {item.name for item in dataclasses.fields(decoder)} else {}
            )
            if decoder.__name__ == "FlashlightConfig":
                pytest.importorskip("flashlight")
            with pytest.MonkeyPatch.context() as patch:
                if not torch.cuda.is_available():
                    patch.setattr("asr.decode.cuda.make_search", cuda_stand_in.make_search)
                build.make_decoder(decoder(**needed), tokenizer, 0.04)

    def evaluate(self) -> None:
        common = [f"checkpoint={self.copy()}", *self.manifests, "data.name=tiny"]
        self.run("evaluate", *common)
        sweep = ["sweep=snr", f"noise={self.noise}", "sweep_values=[10]", f"output={self.folder / 'swept'}"]
        self.run("evaluate", *common, *sweep)
        self.run("evaluate", *common, "check_parity=true", "window_seconds=1", "overlap_seconds=0.2")
        self.run("evaluate", *common, "label_errors=true", f"second_checkpoint={self.run_dir}")
        with pytest.raises(ManifestError, match="make it with"):
            self.run("evaluate", *common, "data.dev=gone.jsonl")

    def transcribe(self) -> None:
        samples, _ = soundfile.read(self.audio)
        long = self.folder / "long.wav"
        soundfile.write(long, np.tile(samples, 4), TINY_RATE)
        windows = ["window_seconds=1", "overlap_seconds=0.2", f"output={self.folder / 'texts'}"]
        self.run("transcribe", f"checkpoint={self.run_dir}", f"inputs=[{long}]", *windows)

    def copy(self) -> Path:
        """The trained model where reports may be written beside it."""
        copied = self.folder / "copy" / "best.ckpt"
        copied.parent.mkdir()
        shutil.copy(self.run_dir / "checkpoints" / "best.ckpt", copied)
        return copied

    def explain(self) -> None:
        table = self.folder / "table.csv"
        table.write_text("-,a\n0.5,0.5\n0.4,0.6\n")
        self.run("explain", f"probs={table}", "text=a", f"output={self.folder / 'explained'}")
        self.run("explain", f"checkpoint={self.run_dir}", f"audio={self.audio}", "output=null")

    def transcribed(self) -> Path:
        source = self.folder / "recordings"
        source.mkdir()
        samples, _ = soundfile.read(self.audio)
        for number in range(10):
            soundfile.write(source / f"{number}.wav", samples, TINY_RATE)
            (source / f"{number}.txt").write_text(TEXTS[number % 3])
        return source


@pytest.fixture(scope="module")
def reads(
    tiny_corpus: TinyCorpus, tiny_run: Path, noise_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> set[Leaf]:
    with recorded_reads() as found:
        Runs(tiny_corpus, tiny_run, noise_folder, tmp_path_factory.mktemp("runs")).all()
    return found


def test_every_command_is_run() -> None:
    assert TASKS.keys() == COMMANDS.keys()


def test_every_option_is_read(reads: set[Leaf]) -> None:
    dead = sorted(".".join(leaf) for leaf in leaves() - reads - read_otherwise())
    assert not dead, f"accepted, and read by nothing: {', '.join(dead)}"


def read_otherwise() -> set[Leaf]:
    """What corpora take by name, and what other options are made from."""
    in_train_yaml = re.findall(r"\$\{(\w+)\}", (Path(CONFIG_DIR) / "train.yaml").read_text(encoding="utf-8"))
    return {("PrepareConfig", name) for name in corpus_parameters()} | {
        ("TrainConfig", name) for name in in_train_yaml
    }


def corpus_parameters() -> set[str]:
    """Options that some corpus takes by name and uses."""
    readers = [*prepare._READERS.values()]
    used = {name for reader in readers for name in inspect.signature(reader).parameters if uses(reader, name)}
    return used | prepare._DEMO_OPTIONS


def uses(function: Callable[..., Any], parameter: str) -> bool:
    tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    return any(
        isinstance(node, ast.Name) and node.id == parameter and isinstance(node.ctx, ast.Load)
        for node in ast.walk(tree)
    )


@pytest.mark.parametrize(
    "made", [*build._FEATURES.items(), *build._ENCODERS.items()], ids=lambda made: made[1].__name__
)
def test_what_takes_all_options_uses_each(made: tuple[type, type]) -> None:
    schema, built = made
    for name in {item.name for item in dataclasses.fields(schema)} - {"kind"}:
        constructors = [vars(base)["__init__"] for base in built.__mro__ if "__init__" in vars(base)]
        takers = [init for init in constructors if name in inspect.signature(init).parameters]
        assert any(uses(init, name) for init in takers), f"{built.__name__} ignores {name}"


def test_an_option_that_nothing_reads_is_found(monkeypatch: pytest.MonkeyPatch, reads: set[Leaf]) -> None:
    fields = [("shininess", float, dataclasses.field(default=0.5))]
    shiny = dataclasses.make_dataclass("BiLstmConfig", fields, bases=(KINDS["model"]["bilstm"],))
    monkeypatch.setitem(KINDS["model"], "bilstm", shiny)
    assert leaves() - reads - read_otherwise() == {("BiLstmConfig", "shininess")}
