"""The import ranks and the bans of the design, read from the source."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "asr"
SOURCES = sorted(path for path in PACKAGE.rglob("*.py") if "conf" not in path.relative_to(PACKAGE).parts)

RANKS = {
    0: ["records", "config", "errors", "text", "compiling"],
    1: [
        *("audio", "manifest", "tokenizer", "features", "augment", "ctc", "device", "parallel", "provenance"),
        *("english",),
    ],
    2: ["coach", "corpora", "dataset", "sampler", "models", "decode", "score", "stats", "optim", "firewall"],
    3: [
        *("datamodule", "module", "callbacks", "averaging", "profiling", "recogniser", "warm_start"),
        *("attribution", "calibration", "dev_pictures", "inspection", "findings"),
    ],
    4: ["build", "finders", "pipeline", "report"],
    5: [
        "checkpoint",
        "cli",
        "evaluation",
        "label_errors",
        "longform",
        "parity",
        "runs",
        "selection",
        "spliced",
        "sweep",
        "training_corpus",
        "tuned_decoder",
        "tuning",
    ],
    6: [
        *("train", "evaluate", "transcribe", "prepare", "doctor", "tune", "lm", "explain", "compare"),
        *("augment_preview",),
    ],
}
RANK = {"": 0} | {name: rank for rank, names in RANKS.items() for name in names}
ENTRY_POINTS = set(RANKS[6])
# Siblings of one rank of which the first may know the second.
SIBLINGS = {("config", "errors"), ("dataset", "sampler"), ("callbacks", "module"), ("averaging", "module")}
SIBLINGS |= {("augment", "audio"), ("augment", "manifest"), ("sweep", "evaluation")}
SIBLINGS |= {("parity", "longform"), ("spliced", "checkpoint")}
SIBLINGS |= {("runs", "checkpoint"), ("runs", "cli"), ("training_corpus", "selection")}
SIBLINGS |= {("dev_pictures", "module"), ("profiling", "module"), ("findings", "inspection")}

MAY_IMPORT = {
    "hydra": {"build", "cli", *ENTRY_POINTS},
    "omegaconf": {"build", "cli", *ENTRY_POINTS},
    "lightning": {
        "module",
        "datamodule",
        "callbacks",
        "averaging",
        "dev_pictures",
        "profiling",
        "build",
        *ENTRY_POINTS,
    },
}


def unit(path: Path) -> str:
    """``asr/ctc/loss.py`` belongs to ``ctc``, ``asr/train.py`` is ``train``, ``asr/__init__.py`` is empty."""
    first = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    return "" if first == "__init__" else first


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def label(path: Path) -> str:
    return str(path.relative_to(PACKAGE))


def test_every_module_has_a_rank() -> None:
    assert {unit(path) for path in SOURCES} <= set(RANK)


@pytest.mark.parametrize("path", SOURCES, ids=label)
def test_imports_go_down(path: Path) -> None:
    own = unit(path)
    for name in imports(path):
        if name.split(".")[0] != "asr":
            continue
        other = [*name.split("."), ""][1]
        if other == own or other not in RANK:  # its own package, or a name of asr itself
            continue
        allowed = RANK[other] < RANK[own] or (own, other) in SIBLINGS
        assert allowed, f"{own} (rank {RANK[own]}) imports {other} (rank {RANK[other]})"


@pytest.mark.parametrize("path", SOURCES, ids=label)
def test_frameworks_stay_at_the_edge(path: Path) -> None:
    for name in imports(path):
        top = name.split(".")[0]
        assert unit(path) in MAY_IMPORT.get(top, {unit(path)}), f"{label(path)} imports {top}"


@pytest.mark.parametrize("path", SOURCES, ids=label)
def test_nothing_banned(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        where = f"{label(path)}:{getattr(node, 'lineno', 0)}"
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id != "print", f"{where}: print in library code"
        if isinstance(node, ast.ExceptHandler):
            assert node.type is not None, f"{where}: bare except"
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
            call = node.exc
            empty = not call.args and not call.keywords
            assert not empty, f"{where}: an error without a message"
        if isinstance(node, ast.Name):
            assert node.id != "NotImplementedError", f"{where}: unfinished"


def test_score_never_sees_tensors() -> None:
    for name in ("score", "stats"):
        assert not any(found.split(".")[0] == "torch" for found in imports(PACKAGE / f"{name}.py"))


def test_models_and_losses_never_see_the_tokenizer() -> None:
    for path in SOURCES:
        if unit(path) in {"models", "ctc", "features"}:
            assert not any(name.startswith("asr.tokenizer") for name in imports(path)), label(path)


def test_no_file_is_a_drawer_for_odds_and_ends() -> None:
    names = {path.stem for folder in ("asr", "scripts", "tests") for path in (ROOT / folder).rglob("*.py")}
    assert not names & {"utils", "util", "common", "helpers", "helper", "misc"}


def test_every_package_has_its_files_in_the_wheel() -> None:
    """setuptools takes the packages that pyproject.toml lists, and no others."""
    try:
        import tomllib
    except ModuleNotFoundError:  # Python 3.10
        import tomli as tomllib

    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    folders = {path.parent for path in SOURCES}
    expected = {".".join(folder.relative_to(ROOT).parts) for folder in folders}
    assert set(settings["tool"]["setuptools"]["packages"]) == expected


def test_configs_are_reached_through_the_package() -> None:
    assert (PACKAGE / "conf").resolve() == ROOT / "conf"
    assert not (PACKAGE / "conf").readlink().is_absolute()
