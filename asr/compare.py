"""``python -m asr.compare A B …``: is one system really better than another on the same utterances?"""

import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from asr.cli import launch
from asr.config import CompareConfig
from asr.errors import ConfigError
from asr.report.comparison import NamedReport, compare_reports, short_names
from asr.report.comparison_text import print_comparison, write_comparison
from asr.report.json_report import read_report

REPORT_NAME = "report.json"


def main() -> int:
    return launch(compare, config_name="compare", schema=CompareConfig, plain_arguments_as="reports")


def compare(config: CompareConfig) -> int:
    """Compare the reports that ``config`` names, and print, and write, what was found."""
    paths = find_reports(config.reports)
    names = short_names([path.resolve().parent for path in paths])
    reports = [
        NamedReport(str(path), name, read_report(path)) for path, name in zip(paths, names, strict=True)
    ]
    comparison = compare_reports(
        reports,
        metric=config.metric,  # type: ignore[arg-type]  # checked by CompareConfig
        unit=config.unit,  # type: ignore[arg-type]
        group_seeds=config.group_seeds,
        min_shared=config.min_shared,
        level=config.level,
        num_resamples=config.num_resamples,
        seed=config.seed,
    )
    console = Console(highlight=False)
    print_comparison(comparison, console, max_slices=config.max_slices)
    if config.output is not None:
        for file in write_comparison(comparison, Path(config.output), max_slices=config.max_slices):
            console.print(f"written: {file}", markup=False, soft_wrap=True)
    return 0


def find_reports(arguments: Sequence[str]) -> list[Path]:
    """The report files meant by files and folders.

    Raises:
        ConfigError: there are fewer than two; one does not exist, holds no report or several, or is given twice.
    """
    if len(arguments) < 2:
        raise ConfigError(f"give two reports or more: {REPORT_NAME} files, or folders that hold one")
    paths = [_find_report(Path(argument).expanduser()) for argument in arguments]
    for number, path in enumerate(paths):
        if path.resolve() in {other.resolve() for other in paths[:number]}:
            raise ConfigError(f"{path} is given twice; a report cannot differ from itself")
    return paths


def _find_report(path: Path) -> Path:
    if path.is_file():
        return path
    if not path.is_dir():
        raise ConfigError(
            f"{path} does not exist: give a {REPORT_NAME}, or the folder of an evaluation or run"
        )
    if (path / REPORT_NAME).is_file():
        return path / REPORT_NAME
    found = sorted(path.glob(f"evaluation/*/{REPORT_NAME}"))
    if not found:
        raise ConfigError(f"{path} holds no {REPORT_NAME}: evaluate it first, with asr.evaluate")
    if len(found) > 1:
        raise ConfigError(f"{path} holds several reports, name one: {', '.join(map(str, found))}")
    return found[0]


if __name__ == "__main__":
    sys.exit(main())
