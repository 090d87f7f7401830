"""The prepare command: what it writes, says and refuses."""

import hashlib
import io
import json
import re
import sys
import tarfile
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import soundfile
from omegaconf import OmegaConf

from asr.config import PrepareConfig
from asr.corpora.synth import DEFAULT_NUM_SPEAKERS, DEFAULT_NUM_UTTERANCES
from asr.errors import ConfigError, ManifestError
from asr.manifest import read_manifest
from asr.prepare import corpus_options, main, prepare


@pytest.fixture
def table(tmp_path) -> Path:
    """Ten good recordings of five speakers, one without text and one that is not there."""
    rows = ["path,text,speaker"]
    for number in range(10):
        soundfile.write(tmp_path / f"{number}.wav", np.full(8000, 0.1), 8000)
        rows.append(f"{number}.wav,word {number},s{number // 2}")
    rows += ["0.wav,,s0", "gone.wav,text,s1"]
    (tmp_path / "my.csv").write_text("\n".join(rows) + "\n")
    return tmp_path / "my.csv"


def run(capsys, monkeypatch, *arguments: str) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["asr.prepare", *arguments])
    code = main()
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_command_writes_manifests_and_accounts_for_everything(table, tmp_path, capsys, monkeypatch):
    out = tmp_path / "out"
    code, shown, _ = run(capsys, monkeypatch, "corpus=folder", f"source={table}", f"output={out}")
    assert code == 0
    parts = {split: read_manifest(out / f"{split}.jsonl") for split in ("train", "dev", "test")}
    assert {split: len(part) for split, part in parts.items()} == {"train": 6, "dev": 2, "test": 2}
    assert len({u.id for part in parts.values() for u in part}) == 10
    excluded = [json.loads(line) for line in (out / "excluded.jsonl").read_text().splitlines()]
    assert [(item["id"], item["reason"]) for item in excluded] == [
        ("0", "duplicate id"),
        ("gone", "missing audio"),
    ]
    assert all(str(table) in item["where"] for item in excluded)
    cells = [
        [cell.strip() for cell in line.split("│")] for line in shown.splitlines() if "train.jsonl" in line
    ]
    assert cells[0][1:7] == ["train", "6", "0:00:06", "3", "7", "train.jsonl"]
    assert "left out: 1 missing audio (gone)" in shown
    assert f"data.train={out / 'train.jsonl'}" in shown.replace("\n", "")


def test_summary_holds_hashes_and_options(table, tmp_path):
    out = tmp_path / "out"
    prepare(PrepareConfig(corpus="folder", source=str(table), output=str(out), dev_fraction=0.2, seed=3))
    summary = json.loads((out / "prepare.json").read_text())
    assert summary["options"] == {"dev_fraction": 0.2, "seed": 3}
    assert summary["excluded"] == {"duplicate id": 1, "missing audio": 1}
    for name, described in summary["manifests"].items():
        content = (out / f"{name}.jsonl").read_bytes()
        assert described["sha256"] == hashlib.sha256(content).hexdigest()
        assert described["num_utterances"] == len(content.splitlines())
        assert described["duration_seconds"] == described["num_utterances"]


def test_same_command_same_bytes(table, tmp_path):
    for name in ("a", "b"):
        prepare(PrepareConfig(corpus="folder", source=str(table), output=str(tmp_path / name)))
    for file in ("train.jsonl", "dev.jsonl", "test.jsonl", "excluded.jsonl"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_manifests_of_an_earlier_run_do_not_survive(table, tmp_path):
    out = tmp_path / "out"
    config = partial(PrepareConfig, corpus="folder", source=str(table), output=str(out))
    prepare(config())
    (out / "mine.jsonl").write_text("not written by prepare")
    prepare(config(test_fraction=0.0))
    assert sorted(p.name for p in out.glob("*.jsonl")) == [
        "dev.jsonl",
        "excluded.jsonl",
        "mine.jsonl",
        "train.jsonl",
    ]


def write_tones(recordings: Path) -> Path:
    """FSDD of three speakers; returns its folder."""
    recordings.mkdir(parents=True)
    for speaker in ("ann", "ben", "cas"):
        for digit in range(6):
            soundfile.write(recordings / f"{digit}_{speaker}_0.wav", np.full(800, 0.1), 8000)
    return recordings.parent


def write_raw_an4(root: Path) -> Path:
    (root / "etc").mkdir(parents=True)
    for speaker in "abcde":
        path = root / "wav" / "an4_clstk" / speaker / f"{speaker}1.raw"
        path.parent.mkdir(parents=True)
        path.write_bytes(bytes(1600))
    (root / "etc" / "an4_train.fileids").write_text("".join(f"an4_clstk/{s}/{s}1\n" for s in "abcde"))
    (root / "etc" / "an4_train.transcription").write_text("".join(f"YES ({s}1)\n" for s in "abcde"))
    return root


@pytest.mark.parametrize("corpus", ["fsdd", "an4", "folder"])
def test_an_interruption_leaves_no_manifest_of_audio_that_was(corpus, table, tmp_path, monkeypatch):
    out = tmp_path / "out"
    sources = {
        "fsdd": lambda: write_tones(tmp_path / "fsdd" / "recordings"),
        "an4": lambda: write_raw_an4(tmp_path / "an4"),
        "folder": lambda: table,
    }
    options = {"fsdd": {"connected": True}, "an4": {}, "folder": {"shards": "1MB"}}[corpus]
    config = partial(PrepareConfig, corpus=corpus, source=str(sources[corpus]()), output=str(out), **options)
    prepare(config())
    before = {path: path.read_bytes() for path in out.glob("*.json*")}
    (out / "mine.jsonl").write_text("not written by prepare")
    with pytest.raises(ConfigError):  # a mistake that is noticed first changes nothing
        prepare(config(**({"dev_speaker": "zoe"} if corpus == "fsdd" else {"folds": 5, "fold": 9})))
    assert {path: path.read_bytes() for path in before} == before

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(
        "asr.corpora.webdataset._content" if corpus == "folder" else "soundfile.write", interrupted
    )
    with pytest.raises(KeyboardInterrupt):
        prepare(config(seed=1))
    assert {path.name for path in out.glob("*.json*")} == {"mine.jsonl", "excluded.jsonl"}
    monkeypatch.undo()
    prepare(config(seed=1))
    assert {path for path in before if not path.exists()} == set()


def test_audio_below_the_manifest_is_relative_so_that_the_folder_can_move(tmp_path):
    source = str(write_tones(tmp_path / "fsdd" / "recordings"))
    out = tmp_path / "out"
    prepare(PrepareConfig(corpus="fsdd", source=source, output=str(out), connected=True))
    out.rename(tmp_path / "moved")
    [first, *_] = read_manifest(tmp_path / "moved" / "train.jsonl")
    assert soundfile.info(first.audio_path).duration == pytest.approx(first.duration_seconds)
    prepare(PrepareConfig(corpus="fsdd", source=source, output=str(out)))
    line = json.loads((out / "train.jsonl").read_text().splitlines()[0])
    assert Path(line["audio_filepath"]).is_absolute()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["corpus=an5", "source=."], "did you mean 'an4'?"),
        (["corpus=an4", "source=.", "connected=true"], "connected is no option of corpus=an4, which knows"),
        (["corpus=an4", "source=.", "dev_fracton=0.2"], "did you mean 'dev_fraction'?"),
        (["corpus=an4", "source=.", "dev_fraction=many"], "dev_fraction"),
        (["corpus=an4", "source=/no/such/folder"], "source=/no/such/folder does not exist"),
        (["corpus=folder"], "corpus=folder needs source="),
        (["corpus=demo", "source=."], "source has no use for corpus=demo"),
        (["corpus=an4", "source=.", "mirror=http://127.0.0.1:9"], "leave them out, or leave out source"),
        (["corpus=librispeech", "subsets=[dev-dirty]"], "LibriSpeech has no dev-dirty"),
        (["corpus=an4", "folds=5", "source=."], "folds and fold go together"),
    ],
)
def test_user_mistakes_are_one_line_and_code_2(tmp_path, capsys, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    code, shown, error = run(capsys, monkeypatch, *arguments)
    assert code == 2
    assert message in error
    assert error.startswith("error: ")
    assert len(error.strip().splitlines()) == 1
    assert shown == ""
    assert list(tmp_path.iterdir()) == []


def test_nothing_usable_is_an_error_that_says_why(tmp_path):
    (tmp_path / "t.csv").write_text("path,text\ngone.wav,yes\nalso.wav,\n")
    config = PrepareConfig(corpus="folder", source=str(tmp_path / "t.csv"), output=str(tmp_path / "out"))
    with pytest.raises(ManifestError, match=r"no utterance is usable .*1 missing audio, 1 empty text"):
        prepare(config)
    assert len((tmp_path / "out" / "excluded.jsonl").read_text().splitlines()) == 2


def test_a_source_is_not_removed_as_of_an_earlier_run(table, tmp_path):
    out = tmp_path / "out"
    prepare(PrepareConfig(corpus="folder", source=str(table), output=str(out)))
    source = out / "test.jsonl"
    before = source.read_text()
    whole = {"dev_fraction": 0.0, "test_fraction": 0.0}  # the new result has no test split
    with pytest.raises(ManifestError, match="would be overwritten"):
        prepare(PrepareConfig(corpus="folder", source=str(source), output=str(out), **whole))
    assert source.read_text() == before


def test_a_source_is_never_overwritten_by_its_result(table, tmp_path):
    train = table.rename(tmp_path / "train.csv")
    lines = [json.dumps({"audio_filepath": f"{number}.wav", "text": "yes"}) for number in range(10)]
    source = tmp_path / "train.jsonl"
    source.write_text("\n".join(lines))
    with pytest.raises(ManifestError, match="would be overwritten"):
        prepare(PrepareConfig(corpus="folder", source=str(source), output=str(tmp_path)))
    with pytest.raises(ManifestError, match="would be overwritten"):
        prepare(PrepareConfig(corpus="folder", source=str(source), output=str(tmp_path), shards="1MB"))
    assert not (tmp_path / "shards").exists()
    assert source.read_text() == "\n".join(lines)
    with pytest.raises(ConfigError, match="source folder itself"):
        prepare(PrepareConfig(corpus="folder", source=str(tmp_path), output=str(tmp_path)))
    assert train.exists()


def test_every_option_belongs_to_some_corpus():
    values = {"connected": True, "subsets": ["x"], "split_by": "auto", "audio_column": "x"}
    taken = set()
    for corpus in ("demo", "an4", "fsdd", "librispeech", "ljspeech", "folder", "spliced"):
        for name in PrepareConfig.__dataclass_fields__:
            if name in ("corpus", "source", "output", "download_dir", "mirror", "shards"):
                continue
            try:
                corpus_options(PrepareConfig(corpus=corpus, output="out", **{name: values.get(name, 1)}))
            except ConfigError:
                continue
            taken.add(name)
    assert taken == PrepareConfig.__dataclass_fields__.keys() - {
        "corpus",
        "source",
        "output",
        "download_dir",
        "mirror",
        "shards",
    }


def test_without_source_the_corpus_is_downloaded(tmp_path, capsys, monkeypatch):
    """A made-up corpus on AN4's layout, served from this machine."""
    served = tmp_path / "served"
    served.mkdir()
    buffer = io.BytesIO()
    soundfile.write(buffer, np.full(2205, 0.1), 22050, format="WAV")
    members = {f"an4/wav/an4_clstk/f{n}/a{n}.wav": buffer.getvalue() for n in range(5)}
    members["an4/etc/an4_train.fileids"] = "".join(f"an4_clstk/f{n}/a{n}\n" for n in range(5)).encode()
    members["an4/etc/an4_train.transcription"] = "".join(f"<s> YES </s> (a{n})\n" for n in range(5)).encode()
    with tarfile.open(served / "an4_sphere.tar.gz", "w:gz") as tar:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    listener = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(served)))
    thread = threading.Thread(target=listener.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    mirror = f"http://127.0.0.1:{listener.server_port}"
    try:
        arguments = ["corpus=an4", f"output={tmp_path / 'out'}", f"mirror={mirror}"]
        code, shown, _ = run(capsys, monkeypatch, *arguments)
    finally:
        listener.shutdown()
        thread.join()
        listener.server_close()
    assert code == 0
    assert len(read_manifest(tmp_path / "out" / "train.jsonl")) == 4
    assert "no test set" in shown
    # Everything is below the output folder now, so a second run needs no network.
    code, _, _ = run(capsys, monkeypatch, *arguments)
    assert code == 0
    line = json.loads((tmp_path / "out" / "train.jsonl").read_text().splitlines()[0])
    assert line["audio_filepath"].startswith("download/unpacked/an4_sphere/an4/wav/")


def test_demo_corpus(tmp_path, capsys, monkeypatch):
    arguments = ["corpus=demo", f"output={tmp_path}", "num_utterances=24", "num_speakers=12", "seed=1"]
    code, shown, error = run(capsys, monkeypatch, *arguments)
    assert code == 0, error
    assert sum(len(read_manifest(tmp_path / f"{s}.jsonl")) for s in ("train", "dev", "test")) == 24
    code, shown, _ = run(capsys, monkeypatch, *arguments)
    assert code == 0
    assert "holds this corpus already" in shown


def test_help_explains_every_option():
    config = OmegaConf.load(Path(__file__).parents[1] / "conf" / "prepare.yaml")
    explained = set(re.findall(r"\w+", config.hydra.help.template))
    assert set(PrepareConfig.__dataclass_fields__) <= explained
    assert {str(DEFAULT_NUM_UTTERANCES), str(DEFAULT_NUM_SPEAKERS)} <= explained
