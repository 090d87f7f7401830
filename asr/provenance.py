"""Where a result comes from: code version, environment, command."""

import platform
import shlex
import subprocess
import sys
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import asr

_PACKAGES = (
    "torch",
    "torchaudio",
    "lightning",
    "hydra-core",
    "soundfile",
    "sentencepiece",
    "jiwer",
    "numba",
    "numpy",
)


def describe_environment() -> dict[str, Any]:
    """Versions, machine, git revision and the command line, as plain data."""
    import torch

    return {
        "asr": asr.__version__,
        "git_revision": git_revision(),
        "python": platform.python_version(),
        "packages": {name: _package_version(name) for name in _PACKAGES},
        "machine": f"{platform.system()} {platform.machine()}, {torch.get_num_threads()} threads",
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
        "command": command_line(),
    }


def git_revision() -> str:
    """Commit of the checkout that this package runs from, ``+changes`` if edited; empty when installed.

    Empty also when the package lies in a repository of something else, as in a project's virtual environment.
    """
    folder = Path(__file__).resolve().parent
    try:
        _git(folder, "ls-files", "--error-unmatch", Path(__file__).name)
        commit = _git(folder, "rev-parse", "HEAD")
        return commit + ("+changes" if _git(folder, "status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):
        return ""


def command_line() -> str:
    """The command that is running, ready to paste into a shell."""
    program = Path(sys.argv[0])
    is_module = program.suffix == ".py" and program.parent == Path(__file__).parent
    start = ["python", "-m", f"asr.{program.stem}"] if is_module else [program.name]
    return shlex.join([*start, *sys.argv[1:]])


def flatten(options: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested options as ``{"group.option": value}``."""
    flat: dict[str, Any] = {}
    for name, value in options.items():
        flat |= flatten(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {prefix + name: value}
    return flat


def _git(folder: Path, *arguments: str) -> str:
    return subprocess.run(
        ["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True
    ).stdout.strip()


def _package_version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"
