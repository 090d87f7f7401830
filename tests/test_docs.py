"""README and docs are true of the program: each command in them is accepted, each file and link is there."""

import re
import shlex
from pathlib import Path

import pytest
from conftest import compose_config
from test_configs_compose import COMMANDS

from asr.cli import split_plain_arguments

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
HELPS = sorted((ROOT / "conf").rglob("*.yaml"))
_CONTINUED = re.compile(r"\s*\\\n\s*")
_COMMAND = re.compile(r"python -m asr\.(\w+)(?![\w.])([^`\n]*)")
_EXPLANATION = re.compile(r"\s{2,}.*")
_SCRIPT = re.compile(r"python (scripts/\w+\.py)([^`\n]*)")
_LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)]*)?\)")


def found(pattern: re.Pattern[str]) -> list[tuple[str, str]]:
    """What the pattern's two groups, a name and arguments, say in all documents, each pair once."""
    texts = (_CONTINUED.sub(" ", path.read_text(encoding="utf-8")) for path in [*DOCUMENTS, *HELPS])
    pairs = {(match[1], match[2]) for text in texts for match in pattern.finditer(text)}
    return sorted({(name, _EXPLANATION.sub("", arguments).strip()) for name, arguments in pairs})


def commands() -> list[tuple[str, str]]:
    """Command lines; a command that is only mentioned has no options."""
    return [(name, arguments) for name, arguments in found(_COMMAND) if "=" in arguments]


def test_commands_are_found() -> None:
    assert {name for name, _ in commands()} == set(COMMANDS)
    assert any(
        "--first" in arguments and "experiment=an4-best" in arguments for _, arguments in found(_SCRIPT)
    )


@pytest.mark.parametrize(("command", "arguments"), commands(), ids=lambda value: value[:60])
def test_command_is_accepted(command: str, arguments: str) -> None:
    given = [word for word in shlex.split(arguments.replace("…/", "RUN/"), comments=True) if word != "…"]
    if "-m" in given:  # a sweep: the first value of each
        given = [re.sub(r"=([^\[,]*),.*", r"=\1", word) for word in given]
    if command in ("compare", "transcribe"):
        _, given = split_plain_arguments(given)
    compose_config(command, COMMANDS[command], [word for word in given if not word.startswith("-")])


@pytest.mark.parametrize(("script", "arguments"), found(_SCRIPT), ids=lambda value: value[:60])
def test_script_knows_its_options(script: str, arguments: str) -> None:
    source = (ROOT / script).read_text(encoding="utf-8")
    helpers = [
        ROOT / "scripts" / f"{name}.py" for name in re.findall(r"^(?:from|import) (\w+)", source, re.M)
    ]
    source += "".join(path.read_text(encoding="utf-8") for path in helpers if path.exists())
    for option in re.findall(r"(?<!\S)--[\w-]+", arguments):
        assert f'"{option}"' in source, f"{script} has no {option}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document: Path) -> None:
    targets = [
        target for target in _LINK.findall(document.read_text(encoding="utf-8")) if "://" not in target
    ]
    assert [target for target in targets if not (document.parent / target).exists()] == []
