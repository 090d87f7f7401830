"""docs/ctc.md: every example runs, and every number in it is one that the examples compute."""

import doctest
import importlib
import re
import runpy
import shlex
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from asr.ctc.diagnosis import diagnose
from asr.ctc.tables import read_table
from asr.report.ctc_plots import save_figure, trellis_figure

ROOT = Path(__file__).parents[1]
CHAPTER = ROOT / "docs" / "ctc.md"
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
NUMBER = re.compile(r"(?<![\w.])-?\d+(?:\.\d+)?(?:e[+-]?\d+)?(?![\w])")


@pytest.fixture(autouse=True)
def _at_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("COLUMNS", "100")


def blocks(language: str) -> list[str]:
    return [body for found, body in FENCE.findall(CHAPTER.read_text()) if found == language]


def test_python_examples_print_what_the_chapter_says() -> None:
    results = doctest.testfile(str(CHAPTER), module_relative=False, verbose=False)
    assert results.attempted > 50
    assert results.failed == 0


@pytest.mark.parametrize("block", blocks("console"), ids=lambda block: block.split("\n")[0][:60])
def test_commands_print_what_the_chapter_says(
    block: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command, _, expected = block.partition("\n")
    prompt, program, *arguments = shlex.split(command)
    assert (prompt, program) == ("$", "python")
    if arguments[0] == "-m":
        monkeypatch.setattr(sys, "argv", arguments[1:])
        assert importlib.import_module(arguments[1]).main() == 0
    else:
        runpy.run_path(arguments[0], run_name="__main__")
    printed = [line.rstrip() for line in capsys.readouterr().out.rstrip().split("\n")]
    assert printed == expected.rstrip().split("\n")


def test_every_number_in_the_prose_is_computed_by_an_example() -> None:
    text = CHAPTER.read_text()
    computed = {
        number.lstrip("-")
        for language in ("python", "console")
        for block in blocks(language)
        for number in re.findall(r"\d+(?:\.\d+)?(?:e[+-]?\d+)?", block)
    }
    prose = FENCE.sub("", text.split("\n## Sources")[0])
    prose = re.sub(r"\]\([^)]*\)", "]", prose)
    numbers = [number.lstrip("-") for number in NUMBER.findall(prose)]
    assert len(numbers) > 40
    assert [number for number in numbers if number not in computed] == []


def test_the_trellis_picture_is_what_the_code_draws(tmp_path: Path) -> None:
    def words_in(path: Path) -> list[str]:
        return ["".join(node.itertext()).strip() for node in ElementTree.parse(path).iter() if is_text(node)]

    def is_text(node: ElementTree.Element) -> bool:
        return node.tag.endswith("}text")

    table = read_table("docs/examples/cat.csv")
    diagnosis = diagnose(table.log_probs, [3, 1, 20], blank=0, symbols=table.symbols)
    save_figure(trellis_figure(diagnosis, table.symbols, "CAT: loss 13.5036 nats"), tmp_path / "trellis.svg")
    drawn = words_in(tmp_path / "trellis.svg")
    assert "0.72" in drawn
    assert words_in(ROOT / "docs" / "images" / "trellis.svg") == drawn


def test_links_and_commands_lead_somewhere() -> None:
    from asr.config import ExplainConfig

    text = CHAPTER.read_text()
    targets = re.findall(r"\]\(([^)#]+)\)", text)
    assert targets
    assert [target for target in targets if not (CHAPTER.parent / target).exists()] == []
    for command in re.findall(r"python -m asr\.explain (.*)", text):
        for argument in shlex.split(command):
            assert argument.partition("=")[0] in ExplainConfig.__dataclass_fields__
