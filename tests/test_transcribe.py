"""``asr.transcribe`` as its user meets it: arguments in; lines, files, messages and exit codes out."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_model import SAMPLE_RATE, babble, write_checkpoint

from asr import transcribe
from asr.audio import load_audio
from asr.checkpoint import load_recogniser
from asr.config import GreedyConfig
from asr.longform import recognise_long
from asr.recogniser import Recogniser
from asr.records import Hypothesis
from asr.report.transcripts import Source, beside, inside


@pytest.fixture(scope="module")
def checkpoint_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("model") / "best.ckpt")


@pytest.fixture(scope="module")
def recogniser(checkpoint_path: Path) -> Recogniser:
    return load_recogniser(checkpoint_path, GreedyConfig(), torch.device("cpu"))


@dataclass(frozen=True)
class Outcome:
    code: int
    lines: list[str]
    messages: list[str]

    @property
    def errors(self) -> list[str]:
        return [message for message in self.messages if message.startswith("error: ")]


Command = Callable[..., Outcome]


@pytest.fixture
def run(
    checkpoint_path: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> Command:
    """The command, in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def run_command(*arguments: object) -> Outcome:
        given_checkpoint = any(str(argument).startswith("checkpoint=") for argument in arguments)
        options = [] if given_checkpoint else [f"checkpoint={checkpoint_path}"]
        monkeypatch.setattr(sys, "argv", ["asr.transcribe", *map(str, arguments), *options])
        code = transcribe.main()
        captured = capfd.readouterr()
        return Outcome(code, captured.out.splitlines(), captured.err.splitlines())

    return run_command


def write(path: str | Path, seconds: float = 1.0, seed: int = 0, **options: object) -> Path:
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, babble(seconds, seed), SAMPLE_RATE, **options)
    return path


def text_of(recogniser: Recogniser, path: str | Path) -> str:
    text = recogniser.recognise([load_audio(path, SAMPLE_RATE)])[0].text
    assert text
    return text


# --------------------------------------------------------------------------- standard output


def test_one_file_gives_its_bare_text(run: Command, recogniser: Recogniser) -> None:
    write("a.wav")
    assert run("a.wav") == Outcome(0, [text_of(recogniser, "a.wav")], [])


def test_several_files_give_a_line_each_in_their_order(run: Command, recogniser: Recogniser) -> None:
    """Not in the order of the batches, which go by length."""
    names = ["d.wav", "a.wav", "c.wav", "b.wav"]
    for number, name in enumerate(names):
        write(name, seconds=[0.5, 3.0, 0.8, 2.0][number], seed=number)
    outcome = run(*names, "max_batch_seconds=5", "window_seconds=2.5", "overlap_seconds=1")
    long = recognise_long(
        recogniser, Path("a.wav"), window_seconds=2.5, overlap_seconds=1, max_batch_seconds=5
    )
    texts = [long.text if name == "a.wav" else text_of(recogniser, name) for name in names]
    assert outcome.code == 0
    assert outcome.lines == [f"{name}\t{text}" for name, text in zip(names, texts, strict=True)]


def test_groups_keep_the_order(run: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transcribe, "GROUP_FILES", 3)
    names = [f"{number}.wav" for number in range(8)]
    for number, name in enumerate(names):
        write(name, seconds=0.2 + 0.1 * (number * 5 % 8), seed=number)
    Path("3.wav").write_bytes(b"")
    outcome = run(*names)
    assert outcome.code == 1
    assert [line.split("\t")[0] for line in outcome.lines] == [name for name in names if name != "3.wav"]


def test_folders_are_searched(run: Command) -> None:
    for name in ("rec/b.flac", "rec/deep/er/a.WAV", "rec/.hidden.wav", "rec/.trash/x.wav", "rec/._b.flac"):
        write(name, format="WAV" if name.lower().endswith("wav") else "FLAC")
    Path("rec/notes.txt").write_text("not audio")
    (Path("rec") / "ring").symlink_to(Path("rec").absolute(), target_is_directory=True)
    outcome = run("rec")
    assert outcome.code == 0
    assert [line.split("\t")[0] for line in outcome.lines] == ["rec/b.flac", "rec/deep/er/a.WAV"]


def test_a_folder_of_one_file_still_names_it(run: Command) -> None:
    """Scripts must not meet another format when a folder happens to hold a single file."""
    write("rec/a.wav")
    assert run("rec").lines[0].startswith("rec/a.wav\t")


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("rec/*.wav", ["rec/a.wav", "rec/b.wav"]),
        ("rec/*", ["rec/a.wav", "rec/b.wav", "rec/deep/c.wav"]),
        ("rec/**", ["rec/a.wav", "rec/b.wav", "rec/deep/c.wav"]),
        ("rec/**/c.*", ["rec/deep/c.wav"]),
        ("r?c/[ab].wav", ["rec/a.wav", "rec/b.wav"]),
        ("rec/*.audio", ["rec/odd.audio"]),
    ],
)
def test_patterns(run: Command, pattern: str, expected: list[str]) -> None:
    for name in ("rec/a.wav", "rec/b.wav", "rec/deep/c.wav"):
        write(name)
    Path("rec/notes.txt").write_text("not audio")
    Path("rec/odd.audio").write_bytes(Path("rec/a.wav").read_bytes())  # WAV under another name
    outcome = run(pattern)
    assert outcome.code == 0
    assert [line.split("\t")[0] for line in outcome.lines] == expected


def test_each_file_once(run: Command) -> None:
    write("rec/a.wav")
    assert len(run("rec/a.wav", "rec", "rec/*.wav", "./rec/../rec/a.wav").lines) == 1


def test_json_lines(run: Command, recogniser: Recogniser, checkpoint_path: Path) -> None:
    write("a.wav", 2.0)
    outcome = run("a.wav", "format=json")
    result = json.loads(outcome.lines[0])
    hypothesis = recogniser.recognise([load_audio("a.wav", SAMPLE_RATE)])[0]
    assert result["path"] == "a.wav"
    assert result["duration_seconds"] == 2.0
    assert result["text"] == hypothesis.text
    assert result["score"] == pytest.approx(hypothesis.score, abs=1e-3)
    assert result["checkpoint"] == str(checkpoint_path)
    assert result["decoder"] == {"kind": "greedy"}
    assert result["decoder_files"] == {}
    assert result["decoder_weights"]["origin"] == "none"
    assert " ".join(word["text"] for word in result["words"]) == hypothesis.text
    for word, expected in zip(result["words"], hypothesis.words, strict=True):
        assert word["start_seconds"] == pytest.approx(expected.start_seconds, abs=1e-3)
        assert word["start_seconds"] < word["end_seconds"] <= 2.0
        assert word["confidence"] == pytest.approx(expected.confidence, abs=1e-3)


def test_long_files_go_through_windows_and_others_do_not(run: Command, recogniser: Recogniser) -> None:
    write("fits.wav", 3.0, seed=1)
    write("longer.wav", 3.01, seed=1)
    options = ["window_seconds=3", "overlap_seconds=1"]
    assert run("fits.wav", *options).lines == [text_of(recogniser, "fits.wav")]
    expected = recognise_long(
        recogniser, Path("longer.wav"), window_seconds=3, overlap_seconds=1, max_batch_seconds=240
    )
    assert run("longer.wav", *options).lines == [expected.text]


def test_difficult_names(run: Command) -> None:
    names = ["naïve – 日本.wav", "x=1.wav", "a [b] *.wav", "tab\there.wav", "x" * 251 + ".wav"]
    for name in names:
        write(name)
    outcome = run(*names)
    assert outcome.code == 0
    assert [line.split("\t")[0] for line in outcome.lines] == [name.replace("\t", "\\t") for name in names]
    assert run(*names, "output=texts").code == 0
    assert {path.stem for path in Path("texts").iterdir()} == {Path(name).stem for name in names}


def test_a_name_that_is_not_unicode(run: Command) -> None:
    name = os.fsdecode(b"caf\xe9.wav")
    try:
        write("plain.wav").rename(name)
    except OSError:
        pytest.skip("this file system allows Unicode names only")
    assert json.loads(run(name, "format=json").lines[0])["path"] == "caf\ufffd.wav"
    assert run(name, "output=texts").code == 0


def test_subtitles_of_one_file_on_standard_output(run: Command) -> None:
    write("a.wav", 2.0)
    assert run("a.wav", "format=vtt").lines[:2] == ["WEBVTT", ""]


def test_time_marked_words_of_several_files(run: Command, recogniser: Recogniser) -> None:
    for name in ("x/a.wav", "y/a.wav"):
        write(name, 2.0)
    rows = [line.split(" ") for line in run("x", "y", "format=ctm").lines]
    assert {row[0] for row in rows} == {"x/a", "y/a"}
    assert [row[4] for row in rows if row[0] == "x/a"] == text_of(recogniser, "x/a.wav").split()


def test_several_formats_at_once(run: Command) -> None:
    write("rec/a.wav", 2.0)
    write("rec/b.wav", 2.0, seed=1)
    assert run("rec", "format=[srt,json,textgrid]", "output=out").code == 0
    names = [f"{stem}{suffix}" for stem in "ab" for suffix in (".TextGrid", ".json", ".srt")]
    assert sorted(path.name for path in Path("out").iterdir()) == names
    Path("out/a.srt").unlink()
    kept = Path("out/a.json").stat().st_mtime_ns
    assert run("rec", "format=[srt,json,textgrid]", "output=out", "existing=skip").code == 0
    assert Path("out/a.srt").exists()
    assert Path("out/a.json").stat().st_mtime_ns == kept


def test_words_follow_each_other_through_the_windows_of_a_long_file(run: Command) -> None:
    write("long.wav", 20.0)
    options = ["window_seconds=3", "overlap_seconds=1", "format=json"]
    result = json.loads(run("long.wav", *options).lines[0])
    times = [word[key] for word in result["words"] for key in ("start_seconds", "end_seconds")]
    assert times == sorted(times)
    assert " ".join(word["text"] for word in result["words"]) == result["text"]


def test_a_named_file_that_is_missing_counts_among_the_files(run: Command) -> None:
    write("a.wav")
    write("b.wav", seed=1)
    outcome = run("a.wav", "b.wav", "missing.wav")
    assert outcome.code == 1
    assert any(message.startswith("2 of 3 files transcribed") for message in outcome.messages)


# --------------------------------------------------------------------------- audio of all kinds


def test_formats_and_channels_give_the_same_text(run: Command) -> None:
    samples = np.round(babble(1.5, 0) * 2**15) / 2**15  # exact in every one of them
    subtypes = {
        "wav": ["PCM_16", "PCM_24", "FLOAT", "DOUBLE"],
        "flac": ["PCM_24"],
        "aiff": ["PCM_16", "FLOAT"],
    }
    for suffix, subtypes_of in subtypes.items():
        for subtype, num_channels in product(subtypes_of, (1, 2, 6)):
            name = f"{subtype}-{num_channels}.{suffix}"
            soundfile.write(name, np.tile(samples[:, None], num_channels), SAMPLE_RATE, subtype=subtype)
    outcome = run(".")
    assert outcome.code == 0
    assert len(outcome.lines) == 21
    assert len({line.split("\t")[1] for line in outcome.lines}) == 1


def test_any_rate_and_lossy_formats(run: Command) -> None:
    for rate in (8000, 11025, 22050, 44100, 48000, 96000):
        soundfile.write(f"{rate}.wav", babble(1.0, 0), rate)
    soundfile.write("8bit.wav", babble(1.0, 0), SAMPLE_RATE, subtype="PCM_U8")
    soundfile.write("mulaw.au", babble(1.0, 0), 8000, subtype="ULAW")
    soundfile.write("vorbis.ogg", babble(1.0, 0), SAMPLE_RATE)
    soundfile.write("opus.opus", babble(1.0, 0), 48000, format="OGG", subtype="OPUS")
    soundfile.write("layer3.mp3", babble(1.0, 0), SAMPLE_RATE)
    outcome = run(".")
    assert outcome.code == 0
    assert len(outcome.lines) == 11


# --------------------------------------------------------------------------- what goes wrong


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def make_bad(kind: str) -> str:
    """Make a bad file; returns a part of the message it deserves."""
    if kind == "empty.wav":
        Path(kind).write_bytes(b"")
        return "0 bytes"
    if kind in {"truncated.wav", "truncated.flac"}:
        truncate(write(kind, 2.0))
        return "truncated"
    if kind == "text.wav":
        Path(kind).write_text("This is no audio, whatever its name says.\n" * 20)
        return "cannot be decoded"
    if kind == "no_samples.wav":
        soundfile.write(kind, np.zeros(0), SAMPLE_RATE)
        return "no samples"
    if kind == "nan.wav":
        samples = babble(1.0, 0)
        samples[5000] = np.nan
        soundfile.write(kind, samples, SAMPLE_RATE, subtype="FLOAT")
        return "NaN"
    assert kind == "missing.wav"
    return "no such audio file"


BAD = ["empty.wav", "truncated.wav", "truncated.flac", "text.wav", "no_samples.wav", "nan.wav", "missing.wav"]


def test_bad_files_are_named_and_the_others_go_through(run: Command) -> None:
    parts = {name: make_bad(name) for name in BAD}
    write("a.wav")
    write("z.wav", seed=1)
    outcome = run("a.wav", *BAD, "z.wav")
    assert outcome.code == 1
    assert [line.split("\t")[0] for line in outcome.lines] == ["a.wav", "z.wav"]
    assert len(outcome.errors) == len(BAD)
    for name, part in parts.items():
        assert any(error.startswith(f"error: {name}") and part in error for error in outcome.errors), name


def test_a_long_file_that_breaks_in_the_middle(run: Command) -> None:
    samples = babble(9.0, 0)
    samples[120_000] = np.inf
    soundfile.write("long.wav", samples, SAMPLE_RATE, subtype="FLOAT")
    write("a.wav")
    outcome = run("long.wav", "a.wav", "window_seconds=2", "overlap_seconds=1")
    assert outcome.code == 1
    assert [line.split("\t")[0] for line in outcome.lines] == ["a.wav"]
    assert "long.wav" in outcome.errors[0]
    assert "7.500 s" in outcome.errors[0]


def test_all_bad(run: Command) -> None:
    make_bad("empty.wav")
    outcome = run("empty.wav")
    assert (outcome.code, outcome.lines, len(outcome.errors)) == (1, [], 1)


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        ([], "no audio given"),
        (["missing.wav"], "missing.wav: no such audio file"),
        (["empty_folder"], "empty_folder: this folder holds no audio files"),
        (["*.wav"], "*.wav: no audio file matches"),
        (["a.flac", "checkpoint=nowhere"], "nowhere does not exist"),
        (["a.flac", "checkpoint=a.flac"], "a.flac is damaged or is not a checkpoint"),
        (["a.flac", "output=a.flac"], "output=a.flac is a file"),
        (["a.flac", "output=a.flac/x"], "output=a.flac/x: the folder cannot be made"),
        (["a.flac", "format=srtt"], "format=srtt is not one of"),
        (["a.flac", "b.flac", "format=srt"], "format=srt makes a file of each recording: add output=FOLDER"),
        (["a.flac", "format=[srt,json]"], "format=[srt,json] makes several files"),
        (["a.flac", "format=[]"], "name each format once, one at least"),
        (["a.flac", "window_seconds=0.5"], "window_seconds=0.5 must be at least 1"),
        (["a.flac", "overlap_seconds=0"], "overlap_seconds=0 must be above 0"),
        (["a.flac", "overlap_seconds=20"], "at most half of window_seconds=30"),
        (["a.flac", "max_batch_seconds=10"], "max_batch_seconds=10 must be at least window_seconds=30"),
        (["a.flac", "existing=skip"], "existing=skip needs output="),
        (["a.flac", "fromat=json"], "unknown option 'fromat'; did you mean 'format'?"),
    ],
)
def test_user_mistakes(run: Command, arguments: list[str], part: str) -> None:
    Path("empty_folder").mkdir()
    write("a.flac")
    write("b.flac")
    outcome = run(*arguments)
    assert outcome.code == 2
    assert outcome.lines == []
    assert len(outcome.messages) == 1
    assert part in outcome.messages[0]


def test_a_gpu_that_is_not_there(run: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    write("a.wav")
    outcome = run("a.wav", "device=gpu")
    assert outcome.code == 2
    assert outcome.messages == ["error: device=gpu but no GPU is usable here; use device=auto or device=cpu"]
    assert run("a.wav", "device=auto").code == 0


def test_no_words_are_a_result_with_a_warning(run: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        Recogniser,
        "hypotheses",
        lambda self, emissions: [Hypothesis((), "", 0.0) for _ in emissions.log_probs],
    )
    soundfile.write("silent.wav", np.zeros(SAMPLE_RATE), SAMPLE_RATE)
    write("tiny.wav", 0.01)
    outcome = run("silent.wav", "tiny.wav")
    assert (outcome.code, outcome.lines) == (0, ["silent.wav\t", "tiny.wav\t"])
    assert "warning: tiny.wav: no words recognised" in outcome.messages
    assert any(
        message.startswith("warning: silent.wav: no words recognised; it is silent")
        for message in outcome.messages
    )


# --------------------------------------------------------------------------- files


def files_below(folder: str) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in Path(folder).rglob("*") if path.is_file())


def test_an_output_folder_mirrors_the_input(run: Command, recogniser: Recogniser) -> None:
    for number, name in enumerate(("rec/a.wav", "rec/x/b.wav", "single.wav", "calls/1/c.wav")):
        write(name, seed=number)
    outcome = run("rec", "single.wav", "calls/*/c.wav", "output=out/texts")
    assert outcome.code == 0
    assert outcome.lines == []
    assert files_below("out/texts") == ["1/c.txt", "a.txt", "single.txt", "x/b.txt"]
    assert Path("out/texts/x/b.txt").read_text() == text_of(recogniser, "rec/x/b.wav") + "\n"
    assert Path("out/texts/1/c.txt").read_text() == text_of(recogniser, "calls/1/c.wav") + "\n"


def test_no_result_overwrites_another(run: Command, recogniser: Recogniser) -> None:
    paths = ["mon/a.wav", "tue/a.wav", "b.wav", "b.flac", "c.wav"]
    for number, path in enumerate(paths):
        write(path, seed=number)
    assert run(*paths, "output=out").code == 0
    expected = {
        "mon/a.wav.txt": "mon/a.wav",
        "tue/a.wav.txt": "tue/a.wav",
        "b.wav.txt": "b.wav",
        "b.flac.txt": "b.flac",
        "c.txt": "c.wav",
    }
    assert files_below("out") == sorted(expected)
    for name, path in expected.items():
        assert (Path("out") / name).read_text() == text_of(recogniser, path) + "\n"


def test_beside_the_input(run: Command, recogniser: Recogniser) -> None:
    for path in ("rec/a.wav", "rec/x/b.wav", "rec/x/b.flac"):
        write(path)
    assert run("rec", "output=beside", "format=json").code == 0
    assert [name for name in files_below("rec") if name.endswith("json")] == [
        "a.json",
        "x/b.flac.json",
        "x/b.wav.json",
    ]
    assert json.loads(Path("rec/a.json").read_text())["text"] == text_of(recogniser, "rec/a.wav")


def test_what_exists_is_never_overwritten_unasked(run: Command, recogniser: Recogniser) -> None:
    """A text beside a recording may well be what a person wrote."""
    for name in ("a", "b"):
        write(f"rec/{name}.wav")
    Path("rec/a.txt").write_text("written by hand")
    outcome = run("rec", "output=beside")
    assert outcome.code == 2
    assert outcome.messages == [
        f"error: {Path('rec/a.txt').absolute()} exists already: add existing=skip or existing=overwrite"
    ]
    assert not Path("rec/b.txt").exists()
    assert run("rec", "output=beside", "existing=skip").code == 0
    assert Path("rec/a.txt").read_text() == "written by hand"
    assert Path("rec/b.txt").read_text() == text_of(recogniser, "rec/b.wav") + "\n"
    outcome = run("rec", "output=beside", "existing=skip", "checkpoint=not_even_looked_at")
    assert outcome == Outcome(0, [], ["nothing to do: all 2 transcripts exist"])
    assert run("rec", "output=beside", "existing=overwrite").code == 0
    assert Path("rec/a.txt").read_text() == text_of(recogniser, "rec/a.wav") + "\n"


def test_a_file_that_cannot_be_written_is_named_and_leaves_nothing(run: Command) -> None:
    for path in ("rec/a/x.wav", "rec/b.wav"):
        write(path)
    Path("out").mkdir()
    Path("out/a").write_text("a file where a folder should be")
    outcome = run("rec", "output=out")
    assert outcome.code == 1
    assert len(outcome.errors) == 1
    assert "out/a/x.txt: cannot be written" in outcome.errors[0]
    assert files_below("out") == ["a", "b.txt"]


names = st.sampled_from(
    ["a.wav", "A.wav", "a.flac", "a.wav.txt", "a.txt", "b.ogg", "b-2.ogg", "a", "a.wav.wav"]
)
folders = st.sampled_from(["", "x", "y", "x/y", "X"])


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(folders, folders, names), min_size=1, max_size=14, unique=True), st.booleans())
def test_targets_are_distinct_whatever_the_inputs(places: list[tuple[str, str, str]], next_to: bool) -> None:
    """``(folder, folder within, name)``: the first is what was asked for, the rest the place below it."""
    sources = {Path("/", *place): Source(Path("/", *place), Path(*place[1:])) for place in places}
    found = list(sources.values())
    targets = beside(found, ".txt") if next_to else inside(Path("/out"), found, ".txt")
    assert len({str(target).casefold() for target in targets}) == len(sources)
    assert not set(targets) & set(sources)
    if next_to:
        assert [target.parent for target in targets] == [source.path.parent for source in found]
    else:
        assert all(target.is_relative_to("/out") and ".." not in target.parts for target in targets)


# --------------------------------------------------------------------------- the process


def test_as_a_program(checkpoint_path: Path, tmp_path: Path) -> None:
    """Start, text, end, without what would make starting slow."""
    write(tmp_path / "a.wav")
    program = (
        "import sys; sys.argv = ['asr.transcribe', *sys.argv[1:]]\n"
        "from asr.transcribe import main\n"
        "code = main()\n"
        "slow = {'lightning', 'pytorch_lightning', 'matplotlib', 'tensorboard', 'jiwer', 'scipy', 'numba', 'jinja2'}\n"
        "print('loaded:', *sorted(slow & set(sys.modules)), file=sys.stderr)\n"
        "sys.exit(code)"
    )
    result = subprocess.run(
        [sys.executable, "-c", program, "a.wav", f"checkpoint={checkpoint_path}"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), "PYTHONIOENCODING": "ascii"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert len(result.stdout.splitlines()) == 1
    assert result.stderr.strip() == "loaded:"


def test_a_reader_that_stops_early_is_no_error(checkpoint_path: Path, tmp_path: Path) -> None:
    for number in range(3):
        write(tmp_path / f"{number}.wav")
    read_end, write_end = os.pipe()
    os.close(read_end)
    try:
        result = subprocess.run(
            [sys.executable, "-m", "asr.transcribe", ".", f"checkpoint={checkpoint_path}"],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
            stdout=write_end,
            stderr=subprocess.PIPE,
            text=True,
            timeout=300,
            check=False,
        )
    finally:
        os.close(write_end)
    assert result.returncode == 1
    assert "Error" not in result.stderr
