"""``python -m asr.transcribe``: the text of audio files, folders and patterns.

Recordings up to ``window_seconds`` are batched by length and go through the same function as in
evaluation; longer ones go through :mod:`asr.longform`. Standard output carries results and
nothing else.
"""

import dataclasses
import glob
import io
import logging
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import takewhile
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.progress import Progress

from asr import calibration, checkpoint, tuned_decoder
from asr.audio import AUDIO_EXTENSIONS, AudioInfo, audio_info, describe_problems, files_below, load_audio
from asr.calibration import Calibration
from asr.cli import fail, given_options, launch, setup_logging
from asr.config import TranscribeConfig
from asr.device import choose_device
from asr.errors import AsrError, AudioError, ConfigError
from asr.longform import recognise_long
from asr.pipeline import Recognised, recognise_batches
from asr.recogniser import Recogniser
from asr.records import Hypothesis
from asr.report.transcripts import (
    FORMATS,
    LINE_FORMATS,
    Source,
    Transcript,
    beside,
    inside,
    make_transcript,
    write_file,
)
from asr.sampler import batches_by_length
from asr.tuned_decoder import FileIdentity

logger = logging.getLogger("asr.transcribe")  # __name__ is "__main__" under python -m

GROUP_FILES = 256
"""So many files are batched by length together; results come in the order of the files."""

SOME_FAILED = 1


def main() -> int:
    """Entry point; returns the exit code."""
    return launch(transcribe, config_name="transcribe", schema=TranscribeConfig, plain_arguments_as="inputs")


def transcribe(config: TranscribeConfig) -> int:
    """Transcribe as configured. Exit code 1 when some inputs could not be transcribed."""
    setup_logging()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8")
    inputs = find_inputs(config.inputs)
    if config.output is None and not inputs.is_single_file:
        check_lines(config.format)
    jobs = plan_jobs(config, inputs.files)
    for problem in inputs.problems:
        fail(problem)
    if not jobs:
        logger.info("nothing to do: all %d transcripts exist", len(inputs.files))
        return SOME_FAILED if inputs.problems else 0
    device = choose_device(config.device)
    path = checkpoint.resolve(config.checkpoint)
    identity = checkpoint.identify(path)
    resolved = tuned_decoder.resolve(
        config.tuned,
        config.decoder,
        given_options(),
        checkpoint=FileIdentity(identity.path, identity.sha256),
        tokenizer=identity.tokenizer,
    )
    recogniser = checkpoint.load_recogniser(path, resolved.decoder, device)
    origin = {"checkpoint_sha256": identity.sha256, **resolved.description}
    options = dataclasses.asdict(resolved.decoder)
    run = Run(
        config,
        str(path),
        origin,
        jobs,
        calibration=calibration.choose(config.calibration, checkpoint.home(path), path, options),
        alone=inputs.is_single_file,
        num_not_found=len(inputs.problems),
    )
    try:
        with run.progress:
            for start in range(0, len(jobs), GROUP_FILES):
                recognise_group(recogniser, config, range(start, min(start + GROUP_FILES, len(jobs))), run)
    except BrokenPipeError:  # the reader of our results, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return SOME_FAILED
    run.summarise()
    return SOME_FAILED if inputs.problems or run.num_failed else 0


# --------------------------------------------------------------------------- what to transcribe


class AudioFile(NamedTuple):
    """``shown`` is the path in the user's terms; ``source`` says where the file lies."""

    shown: str
    source: Source


class Inputs(NamedTuple):
    """The audio files of all arguments, each once; ``problems``: one line per argument without any."""

    files: list[AudioFile]
    problems: list[str]
    is_single_file: bool


def find_inputs(arguments: Sequence[str]) -> Inputs:
    """Resolve files, folders and patterns.

    Folders are searched at any depth for files with a known suffix.

    Raises:
        ConfigError: there is nothing to transcribe.
    """
    if not arguments:
        raise ConfigError("no audio given: name files, folders or patterns; --help shows examples")
    files: dict[Path, AudioFile] = {}
    problems: list[str] = []
    for argument in arguments:
        path = os.path.expanduser(argument)
        try:
            expanded = list(_expanded(path))
        except OSError as error:
            problems.append(f"{error.filename}: cannot be searched ({error.strerror})")
            continue
        if not expanded:
            problems.append(_why_nothing(path))
        for file in expanded:
            files.setdefault(file.source.path, file)
    if not files:
        raise ConfigError("; ".join(problems))
    is_single_file = len(arguments) == 1 and os.path.isfile(os.path.expanduser(arguments[0]))
    return Inputs(list(files.values()), problems, is_single_file)


def _expanded(path: str) -> Iterator[AudioFile]:
    if os.path.isdir(path):
        yield from _in_folder(Path(path), Path())
    elif os.path.exists(path):
        yield _audio_file(Path(path), Path(Path(path).name))
    elif glob.has_magic(path):
        yield from _matching(path)


def _in_folder(folder: Path, relative: Path) -> Iterator[AudioFile]:
    """Its audio files, in order."""
    for path in files_below(folder):
        if path.suffix.lower() in AUDIO_EXTENSIONS:
            yield _audio_file(path, relative / path.relative_to(folder))


def _matching(pattern: str) -> Iterator[AudioFile]:
    """What matches: with a known suffix, unless the pattern itself names one; folders with their content."""
    suffix = Path(pattern).suffix
    names_suffix = suffix != "" and not glob.has_magic(suffix)
    base = Path(*takewhile(lambda part: not glob.has_magic(part), Path(pattern).parts))
    for match in sorted(glob.glob(pattern, recursive=True)):
        path = Path(match)
        if path.is_dir():
            if Path(pattern).name != "**":  # which matches the folders' content by itself
                yield from _in_folder(path, path.relative_to(base))
        elif names_suffix or path.suffix.lower() in AUDIO_EXTENSIONS:
            yield _audio_file(path, path.relative_to(base))


def _audio_file(path: Path, relative: Path) -> AudioFile:
    return AudioFile(str(path), Source(Path(os.path.abspath(path)), relative))


def _why_nothing(path: str) -> str:
    if os.path.isdir(path):
        return f"{path}: this folder holds no audio files (.wav, .flac, .ogg, .mp3, …)"
    if glob.has_magic(path):
        return f"{path}: no audio file matches this pattern"
    return f"{path}: no such audio file; correct the path or restore the file"


class Target(NamedTuple):
    """A file to be written; ``format`` is a name in ``FORMATS``."""

    path: Path
    format: str


class Job(NamedTuple):
    """An audio file and where its transcript goes (nowhere: to standard output)."""

    file: AudioFile
    targets: tuple[Target, ...]


def plan_jobs(config: TranscribeConfig, files: Sequence[AudioFile]) -> list[Job]:
    """Give every file a target of its own; leave out those that ``existing=skip`` skips.

    Raises:
        ConfigError: a target exists and ``existing=refuse``, or the output folder cannot be used.
    """
    if config.output is None:
        return [Job(file, ()) for file in files]
    sources = [file.source for file in files]
    folder = None if config.output == "beside" else _writable_folder(config.output)
    columns = []
    for name in config.format:
        suffix = FORMATS[name].suffix
        paths = beside(sources, suffix) if folder is None else inside(folder, sources, suffix)
        columns.append([Target(path, name) for path in paths])
    rows = list(zip(*columns, strict=True))
    existing = {target.path for row in rows for target in row if target.path.exists()}
    if existing and config.existing == "refuse":
        others = f" and {len(existing) - 1} more exist" if len(existing) > 1 else " exists"
        raise ConfigError(f"{min(existing)}{others} already: add existing=skip or existing=overwrite")
    if config.existing == "skip":
        rows = [tuple(target for target in row if target.path not in existing) for row in rows]
    return [Job(file, row) for file, row in zip(files, rows, strict=True) if row]


def check_lines(formats: Sequence[str]) -> None:
    """Refuse formats that make a file of each recording where there is none to write.

    Raises:
        ConfigError: naming the first of them.
    """
    for name in formats:
        if name not in LINE_FORMATS:
            raise ConfigError(
                f"format={name} makes a file of each recording: add output=FOLDER or output=beside"
            )


def _writable_folder(output: str) -> Path:
    folder = Path(os.path.expanduser(output))
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise ConfigError(f"output={output} is a file; give a folder, or beside") from None
    except OSError as error:
        raise ConfigError(f"output={output}: the folder cannot be made ({error.strerror})") from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise ConfigError(f"output={output}: the folder is not writable; choose another")
    return folder


# --------------------------------------------------------------------------- recognition


class Readable(NamedTuple):
    """A job (by its number) whose file has a good header."""

    number: int
    path: Path
    duration_seconds: float


def recognise_group(recogniser: Recogniser, config: TranscribeConfig, numbers: range, run: "Run") -> None:
    """Recognise some jobs of a run, short recordings in batches, long ones one by one."""
    readable = list(_readable(numbers, run))
    short = [item for item in readable if item.duration_seconds <= config.window_seconds]
    batches = batches_by_length(
        [item.duration_seconds for item in short],
        max_utterances=len(short),
        max_seconds=config.max_batch_seconds,
    )
    for batch in recognise_batches(
        recogniser,
        [[short[index] for index in batch] for batch in batches],
        load=lambda item: load_audio(item.path, recogniser.sample_rate),
        name=lambda item: str(item.path),
    ):
        for recognised in batch:
            _take(recognised, run)
    for item in readable:
        if item.duration_seconds > config.window_seconds:
            _recognise_long(recogniser, config, item, run)


def _readable(numbers: range, run: "Run") -> Iterator[Readable]:
    def header(number: int) -> AudioInfo | AudioError:
        try:
            return audio_info(run.jobs[number].file.shown)
        except AudioError as error:
            return error

    with ThreadPoolExecutor() as pool:
        for number, info in zip(numbers, pool.map(header, numbers), strict=True):
            if isinstance(info, AudioError):
                run.failed(number, info)
            else:
                yield Readable(number, info.path, info.duration_seconds)


def _take(recognised: Recognised[Readable], run: "Run") -> None:
    item, result, waveform = recognised.item, recognised.result, recognised.waveform
    if isinstance(result, AudioError):
        run.failed(item.number, result)
        return
    if not result.text:
        problems = [] if waveform is None else describe_problems(waveform)
        reasons = "".join(f"; it {problem.detail}" for problem in problems)
        run.warn(f"{item.path}: no words recognised{reasons}")
    run.done(item, result)


def _recognise_long(recogniser: Recogniser, config: TranscribeConfig, item: Readable, run: "Run") -> None:
    try:
        hypothesis = recognise_long(
            recogniser,
            item.path,
            window_seconds=config.window_seconds,
            overlap_seconds=config.overlap_seconds,
            max_batch_seconds=config.max_batch_seconds,
            on_progress=lambda done_seconds: run.show_share(done_seconds / item.duration_seconds),
        )
    except AudioError as error:
        run.failed(item.number, error)
        return
    if not hypothesis.text:
        run.warn(f"{item.path}: no words recognised")
    run.done(item, hypothesis)


# --------------------------------------------------------------------------- results and messages


class Run:
    """Takes results and failures of jobs in any order; writes files at once and lines in order."""

    def __init__(
        self,
        config: TranscribeConfig,
        checkpoint_path: str,
        origin: Mapping[str, Any],
        jobs: Sequence[Job],
        *,
        calibration: Calibration | None,
        alone: bool,
        num_not_found: int,
    ):
        self.jobs = jobs
        self._calibration = calibration
        self._num_not_found = num_not_found
        self.num_failed = 0
        self.progress = Progress(
            console=Console(stderr=True),
            transient=True,
            redirect_stdout=False,  # results go to standard output, wherever that leads
            redirect_stderr=False,
            disable=not sys.stderr.isatty(),
        )
        self._alone = alone
        self._shown_format = config.format[0]
        self._checkpoint_path = checkpoint_path
        self._origin = origin
        self._output = config.output
        self._task = self.progress.add_task("transcribing", total=len(jobs))
        self._started = time.perf_counter()
        self._audio_seconds = 0.0
        self._num_finished = 0
        self._waiting: dict[int, Transcript | None] = {}
        self._next = 0

    def done(self, item: Readable, hypothesis: Hypothesis) -> None:
        """Take a result."""
        job = self.jobs[item.number]
        transcript = make_transcript(
            job.file.shown,
            item.duration_seconds,
            hypothesis,
            self._checkpoint_path,
            self._origin,
            self._calibration,
        )
        try:
            for target in job.targets:
                write_file(target.path, FORMATS[target.format].render(transcript))
        except AsrError as error:
            self.failed(item.number, error)
            return
        self._audio_seconds += item.duration_seconds
        self._finish(item.number, transcript)

    def failed(self, number: int, error: AsrError) -> None:
        """Report what is wrong with a job's file."""
        self.num_failed += 1
        with self._bar_hidden():
            fail(str(error))
        self._finish(number, None)

    def warn(self, message: str) -> None:
        with self._bar_hidden():
            logger.warning("warning: %s", message)

    def show_share(self, share: float) -> None:
        """Show how far a long recording is done, in [0, 1]."""
        self.progress.update(self._task, completed=self._num_finished + min(share, 1.0))

    def summarise(self) -> None:
        """Say what was done, where that is not plain to see."""
        if len(self.jobs) == 1 and self._output is None:
            return
        seconds = time.perf_counter() - self._started
        where = {None: "", "beside": ", written beside their audio"}.get(
            self._output, f", written to {self._output}"
        )
        logger.info(
            "%d of %d files transcribed%s: %.1f minutes of audio in %.1f s",
            len(self.jobs) - self.num_failed,
            len(self.jobs) + self._num_not_found,
            where,
            self._audio_seconds / 60,
            seconds,
        )

    def _finish(self, number: int, transcript: Transcript | None) -> None:
        self._num_finished += 1
        self.progress.update(self._task, completed=self._num_finished)
        if self._output is None:
            self._waiting[number] = transcript
            self._write_lines()

    def _write_lines(self) -> None:
        """Print the results whose turn it is."""
        ready = []
        while self._next in self._waiting:
            ready.append(self._waiting.pop(self._next))
            self._next += 1
        lines = [self._shown(transcript) for transcript in ready if transcript is not None]
        if lines:
            with self._bar_hidden():
                sys.stdout.write("".join(lines))
                sys.stdout.flush()

    def _shown(self, transcript: Transcript) -> str:
        # A single file's JSON is one line too, for programs that read lines.
        if self._alone and self._shown_format != "json":
            return FORMATS[self._shown_format].render(transcript)
        return LINE_FORMATS[self._shown_format](transcript)

    @contextmanager
    def _bar_hidden(self) -> Iterator[None]:
        self.progress.stop()
        try:
            yield
        finally:
            self.progress.start()


if __name__ == "__main__":
    sys.exit(main())
