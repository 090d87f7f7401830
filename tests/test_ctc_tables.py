"""Emission tables: every format gives the same numbers, and nothing ambiguous is guessed."""

import json
from pathlib import Path

import numpy as np
import pytest

from asr.ctc.tables import TableError, read_table

PROBS = np.array([[0.5, 0.25, 0.25], [0.125, 0.75, 0.125]])


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_every_format_gives_the_same_table(tmp_path: Path) -> None:
    csv = write(tmp_path / "t.csv", "-,A,B\n0.5,0.25,0.25\n\n0.125,0.75,0.125\n")
    semicolons = write(tmp_path / "s.csv", "\ufeff-;A;B\n0.5;0.25;0.25\n0.125;0.75;0.125\n")
    tsv = write(tmp_path / "t.tsv", "-\tA\tB\n0.5\t0.25\t0.25\n0.125\t0.75\t0.125\n")
    named = {"symbols": ["-", "A", "B"], "probs": PROBS.tolist()}
    json_path = write(tmp_path / "t.json", json.dumps(named))
    for path in (csv, semicolons, tsv, json_path):
        table = read_table(path)
        assert table.symbols == ("-", "A", "B")
        assert table.inputs == "probs"
        assert np.exp(table.log_probs) == pytest.approx(PROBS)
    np.save(tmp_path / "t.npy", PROBS[:, None, :].astype(np.float32))
    for path in (tmp_path / "t.npy", write(tmp_path / "plain.json", json.dumps([PROBS.tolist()]))):
        table = read_table(path)
        assert table.symbols == ()
        assert np.exp(table.log_probs) == pytest.approx(PROBS)


def test_contents_are_recognised_where_they_can_be_nothing_else(tmp_path: Path) -> None:
    logits = np.log(PROBS) + np.array([[3.0], [-1.0]])
    for name, values in (("probs", PROBS), ("log_probs", np.log(PROBS)), ("logits", logits)):
        np.save(tmp_path / "t.npy", values)
        table = read_table(tmp_path / "t.npy")
        assert table.inputs == name
        assert np.exp(table.log_probs) == pytest.approx(PROBS)


def test_explicit_kinds_are_taken_at_their_word(tmp_path: Path) -> None:
    np.save(tmp_path / "t.npy", 2 * PROBS)
    assert np.exp(read_table(tmp_path / "t.npy", "probs").log_probs) == pytest.approx(2 * PROBS)
    assert read_table(tmp_path / "t.npy", "log_probs").log_probs == pytest.approx(2 * PROBS)
    softmax = np.exp(2 * PROBS) / np.exp(2 * PROBS).sum(axis=1, keepdims=True)
    assert np.exp(read_table(tmp_path / "t.npy", "logits").log_probs) == pytest.approx(softmax)
    np.save(tmp_path / "zero.npy", [[1.0, 0.0]])
    assert read_table(tmp_path / "zero.npy").log_probs.tolist() == [[0.0, -np.inf]]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.txt", "1,2", "tables are .csv, .tsv, .npy, .json files, not '.txt'"),
        ("t.csv", "0.5,0.5\n0.5,0.25,0.25\n", "line 2: 3 values where line 1 has 2"),
        ("t.csv", "-,A\n0.5,0.5\n0.5,half\n", "line 3: 'half' is not a number"),
        ("t.csv", "-,A\n0.5,nan\n", "frame 0, column 1 is nan"),
        ("t.csv", "-,A,A\n0.5,0.25,0.25\n", "'A' names more than one column"),
        ("t.csv", "", "one row per frame"),
        ("t.csv", "-,A\n", "one row per frame"),
        ("t.csv", "1\n1\n", "one column only"),
        ("t.csv", "0.5,0.75\n0.25,0.125\n0.25,0.125\n", "transpose it"),
        ("t.csv", "0.5,0.9\n0.1,0.2\n", "could be several things (rows sum to 0.3 … 1.4"),
        ("t.csv", "-5,-9\n-1,-2\n", "say inputs=logits"),
        ("t.json", "{", "not valid JSON"),
        (
            "t.json",
            '{"values": [[1]]}',
            "exactly one of the keys probs, logits, log_probs; it has only 'values'",
        ),
        ("t.json", '{"probs": [[1, 0]], "logits": [[1, 0]]}', "it has probs and logits"),
        ("t.json", '{"symbols": "-AB", "probs": [[1, 0]]}', "3 symbols for 2 columns"),
        ("t.json", "[[1, 0], [1]]", "all equally long"),
        ("t.npy", "not numpy", "not a NumPy array"),
    ],
)
def test_bad_files_get_one_clear_line(tmp_path: Path, name: str, content: str, message: str) -> None:
    path = write(tmp_path / name, content)
    with pytest.raises(TableError) as caught:
        read_table(path)
    assert message in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_contradictions_are_named(tmp_path: Path) -> None:
    path = write(tmp_path / "t.json", '{"logits": [[1, 0]]}')
    with pytest.raises(TableError, match="calls its values 'logits' but inputs=probs"):
        read_table(path, "probs")
    np.save(tmp_path / "t.npy", [[-1.0, 2.0]])
    with pytest.raises(TableError, match="column 0 is -1, which no probability is"):
        read_table(tmp_path / "t.npy", "probs")
    np.save(tmp_path / "t.npy", [[0.0, 0.0]])
    with pytest.raises(TableError, match="no token possible"):
        read_table(tmp_path / "t.npy", "probs")
    with pytest.raises(TableError, match="no such file"):
        read_table(tmp_path / "absent.csv")
