"""Where a result comes from is stated truly, or not at all."""

import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import asr
from asr import provenance

IDENTITY = ["-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false"]


def git(folder: Path, *arguments: str) -> str:
    return subprocess.run(
        ["git", "-C", str(folder), *IDENTITY, *arguments], check=True, capture_output=True, text=True
    ).stdout.strip()


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with a copy of the module in ``package/``, not yet added; the module believes to be there."""
    git(tmp_path, "init", "-q")
    (tmp_path / "package").mkdir()
    shutil.copy(provenance.__file__, tmp_path / "package" / "provenance.py")
    (tmp_path / "README").write_text("something else")
    git(tmp_path, "add", "README")
    git(tmp_path, "commit", "-qm", "foreign")
    monkeypatch.setattr(provenance, "__file__", str(tmp_path / "package" / "provenance.py"))
    return tmp_path


def test_revision_of_the_own_checkout(checkout: Path) -> None:
    git(checkout, "add", ".")
    git(checkout, "commit", "-qm", "own")
    assert provenance.git_revision() == git(checkout, "rev-parse", "HEAD")
    (checkout / "README").write_text("edited")
    assert provenance.git_revision() == git(checkout, "rev-parse", "HEAD") + "+changes"


def test_no_revision_of_a_repository_that_merely_contains_the_package(checkout: Path) -> None:
    """As with a virtual environment inside somebody's project."""
    assert provenance.git_revision() == ""


def test_no_revision_without_a_repository_or_without_git(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(provenance, "__file__", str(tmp_path / "provenance.py"))
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert provenance.git_revision() == ""
    monkeypatch.setenv("PATH", str(tmp_path))
    assert provenance.git_revision() == ""


def test_command_line_can_be_pasted(monkeypatch: pytest.MonkeyPatch) -> None:
    module = str(Path(asr.__file__).parent / "train.py")
    monkeypatch.setattr(sys, "argv", [module, "data.train=my calls.jsonl", "seed=1"])
    line = provenance.command_line()
    assert shlex.split(line) == ["python", "-m", "asr.train", "data.train=my calls.jsonl", "seed=1"]
    monkeypatch.setattr(sys, "argv", ["/somewhere/bin/asr-train", "seed=1"])
    assert provenance.command_line() == "asr-train seed=1"


def test_environment_is_plain_and_complete() -> None:
    described = provenance.describe_environment()
    assert described["python"] == ".".join(str(part) for part in sys.version_info[:3])
    assert described["asr"] == asr.__version__
    assert "not installed" not in described["packages"].values()
