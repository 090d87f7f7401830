"""Tar shards: written so that any tar reader understands them, read like files, visited in windows."""

import io
import json
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from asr.audio import audio_info, file_of, load_audio
from asr.config import PrepareConfig
from asr.corpora.webdataset import pack
from asr.dataset import Example, SpeechDataset, load_utterance
from asr.errors import AudioError, ConfigError, ManifestError
from asr.manifest import read_manifest, write_manifest
from asr.prepare import prepare
from asr.records import Utterance
from asr.sampler import BucketSampler, Share
from asr.tokenizer import CharTokenizer
from asr.train import train

RATE = 8000


def sound(seconds: float, seed: int, channels: int = 1) -> np.ndarray:
    return 0.3 * np.random.default_rng(seed).uniform(-1, 1, (round(seconds * RATE), channels))


@pytest.fixture(scope="module")
def utterances(tmp_path_factory: pytest.TempPathFactory) -> list[Utterance]:
    """Twenty files of three formats, and six segments of a long one."""
    folder = tmp_path_factory.mktemp("files")
    found = []
    for number in range(20):
        path = folder / f"{number}.{('wav', 'flac', 'ogg')[number % 3]}"
        soundfile.write(path, sound(0.3 + 0.05 * number, number), RATE)
        text = f"word {'abcdefghij'[number % 10]}"
        extra = {"channel": "left"} if number % 2 else {}
        found.append(
            Utterance(
                f"utt.{number}/x", path, 0.3 + 0.05 * number, text, speaker=f"s{number % 4}", extra=extra
            )
        )
    soundfile.write(folder / "long.flac", sound(6.0, 99, channels=2), RATE, subtype="PCM_24")
    for number in range(6):
        found.append(
            Utterance(f"call-{number}", folder / "long.flac", 0.75, "yes", offset_seconds=number * 1.0)
        )
    return found


# ------------------------------------------------------------------ writing


def test_any_tar_reader_finds_pairs_of_audio_and_description(
    utterances: list[Utterance], tmp_path: Path
) -> None:
    packed = pack(utterances, tmp_path, "train", 40_000).utterances
    assert sorted(one.id for one in packed) == sorted(one.id for one in utterances)
    originals = {one.id: one for one in utterances}
    seen: list[str] = []
    shards = sorted(tmp_path.iterdir())
    assert [path.name for path in shards] == [f"train-{number:06d}.tar" for number in range(len(shards))]
    assert len(shards) > 3
    for path in shards:
        with tarfile.open(path) as tar:
            names = tar.getnames()
            assert [name.rpartition(".")[0] for name in names[::2]] == [name[:-5] for name in names[1::2]]
            assert all("." not in name.rpartition(".")[0] and "/" not in name for name in names)
            for audio, description in zip(names[::2], names[1::2], strict=True):
                fields = json.load(tar.extractfile(description))  # type: ignore[arg-type]
                seen.append(fields["id"])
                original = originals[fields["id"]]
                assert fields["text"] == original.text
                assert fields.get("speaker", "") == original.speaker
                assert fields.get("channel") == original.extra.get("channel")
                content = tar.extractfile(audio).read()  # type: ignore[union-attr]
                if original.id.startswith("call"):
                    start = round(original.offset_seconds * RATE)
                    whole, _ = soundfile.read(original.audio_path, dtype="int32")
                    piece, rate = soundfile.read(io.BytesIO(content), dtype="int32")
                    assert rate == RATE
                    np.testing.assert_array_equal(piece, whole[start : start + round(0.75 * RATE)])
                else:
                    assert content == original.audio_path.read_bytes()
    assert seen == [one.id for one in packed]  # in the order in which they lie
    assert seen != [one.id for one in utterances]


def test_members_are_read_like_files(utterances: list[Utterance], tmp_path: Path) -> None:
    originals = {one.id: one for one in utterances}
    write_manifest(tmp_path / "train.jsonl", pack(utterances, tmp_path / "shards", "train", 10**6).utterances)
    packed = read_manifest(tmp_path / "train.jsonl")
    moved = tmp_path.rename(tmp_path.with_name(tmp_path.name + "-moved"))  # paths are relative
    for one in read_manifest(moved / "train.jsonl"):
        assert torch.equal(load_utterance(one, 16_000), load_utterance(originals[one.id], 16_000))
        assert audio_info(one.audio_path).duration_seconds == pytest.approx(one.duration_seconds, abs=1e-3)
    assert {file_of(one.audio_path) for one in packed} == {tmp_path / "shards" / "train-000000.tar"}


def test_unusual_audio_survives_too(tmp_path: Path) -> None:
    """Samples in float beyond full scale, and a WAV whose writer never filled in its size."""
    soundfile.write(tmp_path / "float.wav", 3 * sound(1.0, 1), RATE, subtype="FLOAT")
    soundfile.write(tmp_path / "open.wav", sound(1.0, 2), RATE)
    content = bytearray((tmp_path / "open.wav").read_bytes())
    content[4:8] = content[40:44] = bytes(4)
    (tmp_path / "open.wav").write_bytes(content)
    (tmp_path / "bad.wav").write_bytes(b"no audio")
    segment = Utterance("segment", tmp_path / "float.wav", 0.5, "a", offset_seconds=0.25)
    whole = Utterance("open", tmp_path / "open.wav", 1.0, "a")
    packed = pack(
        [segment, whole, Utterance("bad", tmp_path / "bad.wav", 1.0, "a")], tmp_path / "s", "dev", 10**6
    )
    assert [one.id for one in packed.utterances] == ["segment", "open"]  # only train is shuffled
    assert [(one.id, one.reason.value) for one in packed.excluded] == [("bad", "unreadable audio")]
    for one, original in zip(packed.utterances, (segment, whole), strict=True):
        assert torch.equal(load_utterance(one, RATE), load_utterance(original, RATE))


def test_shards_depend_on_the_seed_alone(utterances: list[Utterance], tmp_path: Path) -> None:
    for name, seed in (("one", 1), ("again", 1), ("other", 2)):
        pack(utterances, tmp_path / name, "train", 40_000, seed=seed)
    read = {name: [p.read_bytes() for p in sorted((tmp_path / name).iterdir())] for name in ("one", "again")}
    assert read["one"] == read["again"]
    assert read["one"][0] != (tmp_path / "other" / "train-000000.tar").read_bytes()
    # Fewer and larger ones replace what was there.
    pack(utterances, tmp_path / "one", "train", 10**6)
    assert [path.name for path in (tmp_path / "one").iterdir()] == ["train-000000.tar"]


def test_shards_are_not_written_over_themselves(utterances: list[Utterance], tmp_path: Path) -> None:
    packed = pack(utterances, tmp_path, "train", 10**6).utterances
    before = (tmp_path / "train-000000.tar").read_bytes()
    with pytest.raises(ConfigError, match="already"):
        pack(packed, tmp_path, "train", 10**5)
    assert (tmp_path / "train-000000.tar").read_bytes() == before


def test_a_shard_cut_short_is_named(utterances: list[Utterance], tmp_path: Path) -> None:
    last = pack(utterances, tmp_path, "train", 10**6).utterances[-1]
    shard = file_of(last.audio_path)
    shard.write_bytes(shard.read_bytes()[:-12_000])
    with pytest.raises(AudioError, match=r"train-000000\.tar.*archive ends"):
        load_audio(last.audio_path, RATE)
    shard.unlink()
    with pytest.raises(AudioError, match="no such audio file"):
        load_audio(last.audio_path, RATE)


# ------------------------------------------------------------------ the command


def add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


def audio_bytes(seed: int) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, sound(0.5, seed), RATE, format="FLAC")
    return buffer.getvalue()


def test_shards_of_others_are_accepted(tmp_path: Path) -> None:
    """Made by hand: text in .txt or .json, keys that repeat from shard to shard, folders, things missing."""
    source = tmp_path / "source"
    source.mkdir()
    for shard in range(2):
        with tarfile.open(source / f"books-train-{shard}.tar", "w") as tar:
            for number in range(3):
                add(tar, f"{number:04d}.flac", audio_bytes(10 * shard + number))
                add(tar, f"{number:04d}.txt", f"line {number}\n".encode())
    with tarfile.open(source / "books-valid-0.tar", "w") as tar:
        fields = {"transcript": "Good Day", "speaker_id": 7, "accent": "scots", "duration": 99}
        add(tar, "./a/one.json", json.dumps(fields).encode())
        add(tar, "./a/one.flac", audio_bytes(40))
        add(tar, "./a/two.flac", audio_bytes(41))  # no text
        add(tar, "./a/three.txt", b"no audio")
        add(tar, "./a/four.json", b"{not json")
        add(tar, "./a/four.flac", audio_bytes(42))
        add(tar, "./a/five.txt", b"not audio")
        add(tar, "./a/five.wav", b"xyz")
    out = tmp_path / "out"
    prepare(PrepareConfig(corpus="webdataset", source=str(source), output=str(out)))
    trained = read_manifest(out / "train.jsonl")
    assert [one.text for one in trained] == ["line 0", "line 1", "line 2"] * 2
    assert len({one.id for one in trained}) == 6
    expected, _ = soundfile.read(io.BytesIO(audio_bytes(11)), dtype="float32")
    assert torch.equal(load_utterance(trained[4], RATE), torch.from_numpy(expected))
    (dev,) = read_manifest(out / "dev.jsonl")
    assert (dev.text, dev.speaker, dict(dev.extra)) == ("good day", "7", {"accent": "scots"})
    assert dev.duration_seconds == 0.5  # the file's, whatever the description says
    excluded = [json.loads(line) for line in (out / "excluded.jsonl").read_text().splitlines()]
    assert {(line["id"].rpartition("/")[2], line["reason"]) for line in excluded} == {
        ("two", "missing transcript"),
        ("three", "missing audio"),
        ("four", "bad line"),
        ("five", "unreadable audio"),
    }


def test_shards_that_cannot_be_read(tmp_path: Path) -> None:
    def reading(source: Path) -> None:
        prepare(PrepareConfig(corpus="webdataset", source=str(source), output=str(tmp_path / "out")))

    (tmp_path / "empty").mkdir()
    with pytest.raises(ManifestError, match=r"no \.tar shards"):
        reading(tmp_path / "empty")
    with tarfile.open(tmp_path / "zipped.tar", "w:gz") as tar:
        add(tar, "a.txt", b"text")
    with pytest.raises(ManifestError, match="uncompressed"):
        reading(tmp_path / "zipped.tar")


def test_a_prepared_corpus_becomes_shards(tiny_corpus: Any, tmp_path: Path) -> None:
    out = tmp_path / "out"
    prepare(PrepareConfig(corpus="folder", source=str(tiny_corpus.folder), output=str(out), shards="0.05MB"))
    for split in ("train", "dev"):
        before = {one.id: one for one in read_manifest(tiny_corpus.manifest(split))}
        after = {one.id: one for one in read_manifest(out / f"{split}.jsonl")}
        assert before.keys() == after.keys()
        assert {one.text for one in before.values()} == {one.text for one in after.values()}
        assert all(file_of(one.audio_path).parent == out / "shards" for one in after.values())
    assert len(list((out / "shards").glob("train-*.tar"))) > 1
    again = tmp_path / "again"  # the manifests of shards are manifests like any other
    prepare(PrepareConfig(corpus="folder", source=str(out), output=str(again)))
    assert len(read_manifest(again / "train.jsonl")) == len(read_manifest(out / "train.jsonl"))


@pytest.mark.parametrize("size", ["1", "big", "-1GB", "0GB", "1 TB"])
def test_sizes_that_cannot_be_meant(size: str) -> None:
    with pytest.raises(ConfigError, match="shards="):
        PrepareConfig(corpus="an4", output="out", shards=size)


# ------------------------------------------------------------------ training


def test_training_on_shards_goes_on_where_it_stopped(
    tiny_corpus: Any, tiny_train_config: Callable[..., Any], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    source = str(tiny_corpus.folder)
    prepare(PrepareConfig(corpus="folder", source=source, output=str(out), shards="0.05MB"))
    options = [f"data.train={out / 'train.jsonl'}", f"data.dev={out / 'dev.jsonl'}", "doctor.depth=full"]
    options += ["data.shards_per_window=1", "schedule=constant"]
    assert train(tiny_train_config(tmp_path / "run", *options)) == 0
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert {one["id"] for one in report["utterances"]} == {f"dev-{number}" for number in range(4)}
    half = tmp_path / "half"
    assert train(tiny_train_config(half, *options, "trainer.max_epochs=1")) == 0
    assert train(tiny_train_config(half, *options, f"resume={half}")) == 0
    weights = [
        torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
        for run in (tmp_path / "run", half)
    ]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def make_sampler(num_shards: int = 12, per_shard: int = 50, **options: Any) -> BucketSampler:
    random = np.random.default_rng(3)
    return BucketSampler(
        random.uniform(1, 20, num_shards * per_shard),
        max_utterances=8,
        max_seconds=100.0,
        shards=np.repeat(np.arange(num_shards), per_shard),
        **{"seed": 5, "shards_per_window": 4, **options},
    )


@pytest.mark.parametrize("shards_per_window", [1, 4, 5, 12, 100])
def test_every_utterance_once_and_only_a_few_shards_at_a_time(shards_per_window: int) -> None:
    sampler = make_sampler(shards_per_window=shards_per_window)
    for epoch in range(3):
        plan = sampler.plan(epoch)
        assert len(plan) == len(sampler)
        visited = [pick.position for batch in plan for pick in batch]
        assert sorted(visited) == list(range(600))
        shards = [position // 50 for position in visited]
        # From the first to the last visit a shard is open: never more than a window of them are.
        first = {shard: shards.index(shard) for shard in set(shards)}
        last = {shard: len(shards) - 1 - shards[::-1].index(shard) for shard in set(shards)}
        most = max(sum(first[s] <= place <= last[s] for s in first) for place in range(0, 600, 7))
        assert most <= shards_per_window


def test_windows_come_in_another_order_each_epoch_and_nothing_else_decides() -> None:
    sampler = make_sampler()
    plans = [sampler.plan(epoch) for epoch in range(4)]
    assert plans == [make_sampler().plan(epoch) for epoch in range(4)]
    assert make_sampler(seed=6).plan(0) != plans[0]
    orders = [tuple(dict.fromkeys(batch[0].position // 50 for batch in plan)) for plan in plans]
    assert len(set(orders)) == 4
    assert len({pick.seed for plan in plans for batch in plan for pick in batch}) == 4 * 600
    # Two processes together see each batch, and a resumed run the rest of it.
    parts = []
    for rank in range(2):
        sampler.share = Share(rank, 2)
        parts.append(list(sampler))
    for batch, *shares in zip(plans[0], *parts, strict=True):
        real = [pick for share in shares for pick in share if not pick.is_filler]
        assert sorted(real) == sorted(batch)
    resumed = make_sampler()
    resumed.set_epoch(2)
    resumed.skip(11)
    assert list(resumed) == plans[2][11:]


def test_first_epochs_may_still_go_from_short_to_long() -> None:
    sampler = make_sampler(sortagrad_epochs=1)
    durations = np.random.default_rng(3).uniform(1, 20, 600)
    plan = sampler.plan(0)
    assert len(plan) == len(sampler.plan(1))
    assert sorted(pick.position for batch in plan for pick in batch) == list(range(600))
    longest = [max(durations[pick.position] for pick in batch) for batch in plan]
    assert longest == sorted(longest)


def test_one_window_of_all_shards_is_the_usual_plan() -> None:
    random = np.random.default_rng(3)
    usual = BucketSampler(random.uniform(1, 20, 600), max_utterances=8, max_seconds=100.0, seed=5)
    assert make_sampler(shards_per_window=12).plan(3) == usual.plan(3)


def test_the_dataset_knows_its_shards(utterances: list[Utterance], tmp_path: Path) -> None:
    packed = pack(utterances, tmp_path, "train", 40_000).utterances
    tokenizer = CharTokenizer(list("abc"))

    def shards_of(of: list[Utterance]) -> Any:
        examples = [Example(one, one.text) for one in of]
        return SpeechDataset(examples, sample_rate=RATE, tokenizer=tokenizer).shards

    names = sorted({file_of(one.audio_path).name for one in packed})
    assert shards_of(packed).tolist() == [names.index(file_of(one.audio_path).name) for one in packed]
    assert shards_of(utterances) is None
    assert shards_of([]) is None
    assert shards_of([packed[0], replace(utterances[0]), packed[1]]).tolist() == [0, 1, 0]
