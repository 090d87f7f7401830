"""``asr.explain`` from the command line to its files."""

import dataclasses
import json
import math
import sys
from pathlib import Path
from xml.etree import ElementTree

import matplotlib.image
import numpy as np
import pytest
import soundfile
import torch

from asr import explain
from asr.build import make_acoustic_model
from asr.checkpoint import MODEL_PREFIX, SCHEMA_VERSION, front_end_fingerprint, load_recogniser
from asr.config import BiLstmConfig, GreedyConfig, LogMelConfig, TextConfig
from asr.ctc.paths import collapse
from asr.ctc.tables import EmissionTable, read_table
from asr.errors import ConfigError, TextError
from asr.explain import analyse_table, labels_of, split_symbols
from asr.report.ctc_text import format_probability
from asr.tokenizer import CharTokenizer

CAT_TABLE = Path(__file__).parents[1] / "docs" / "examples" / "cat.csv"
LETTERS = "-ABCDEFGHIJKLMNOPQRSTUVWXYZ"


@pytest.fixture
def cat() -> EmissionTable:
    return read_table(CAT_TABLE)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Run the command; returns (exit code, standard output, standard error)."""

    def run_command(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["asr.explain", *arguments])
        monkeypatch.setenv("COLUMNS", "120")
        code = explain.main()
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run_command


def assert_is_a_picture(path: Path) -> None:
    pixels = matplotlib.image.imread(path)
    assert min(pixels.shape[:2]) > 300
    assert pixels[..., :3].std() > 0.05


# --------------------------------------------------------------------------- tables


def test_the_worked_example(run, tmp_path: Path) -> None:
    code, out, _ = run("text=CAT", f"probs={CAT_TABLE}", "blank=0", f"output={tmp_path}")
    assert code == 0
    assert "1.366e-06" in out
    assert "13.5036" in out
    assert "'THO'" in out
    plain = json.loads((tmp_path / "explanation.json").read_text())
    assert plain["num_paths"] == len(plain["paths"]) == 28
    assert math.fsum(path["probability"] for path in plain["paths"]) == pytest.approx(1.366e-6, abs=5e-10)
    assert plain["loss"] == pytest.approx(13.50364304, abs=5e-7)
    assert plain["paths"][0]["symbols"] == list("-CATT")
    assert {tuple(path["labels"]) for path in plain["paths"]} == {(3, 1, 20)}
    assert math.fsum(plain["frame_losses"]) == pytest.approx(plain["loss"])
    assert [sum(row) for row in plain["occupancy"]] == pytest.approx([1.0] * 5)
    assert plain["best_path"]["symbols"] == list("VLQHV")
    assert plain["best_labelling"]["symbols"] == list("THO")
    assert plain["best_labelling"]["exact"]
    assert [token["symbol"] for token in plain["alignment"]["tokens"]] == list("CAT")
    for name in ("trellis.png", "posteriors.png"):
        assert_is_a_picture(tmp_path / name)


def test_vector_pictures_carry_the_numbers_as_text(run, tmp_path: Path) -> None:
    code, _, _ = run("text=CAT", f"probs={CAT_TABLE}", f"output={tmp_path}", "image_format=svg")
    assert code == 0
    texts = {
        "".join(node.itertext()).strip()
        for node in ElementTree.parse(tmp_path / "trellis.svg").iter()
        if node.tag.endswith("}text")
    }
    assert {"C", "A", "T", "0.72", "0.78", "best path"} <= texts


def test_large_tables_are_drawn_as_images(run, tmp_path: Path) -> None:
    logits = np.random.default_rng(0).normal(size=(120, 30)) * 3
    np.save(tmp_path / "t.npy", logits)
    labels = " ".join(str(1 + i % 20) for i in range(30))
    code, out, _ = run(f"text={labels}", f"probs={tmp_path / 't.npy'}", f"output={tmp_path}", "max_paths=3")
    assert code == 0
    assert "of about 10^" in out
    assert len(json.loads((tmp_path / "explanation.json").read_text())["paths"]) == 3
    for name in ("trellis.png", "posteriors.png"):
        assert_is_a_picture(tmp_path / name)


def test_an_impossible_text_is_explained_without_a_trellis(run, tmp_path: Path) -> None:
    code, out, _ = run("text=AAAA", f"probs={CAT_TABLE}", f"output={tmp_path}")
    assert code == 0
    assert "the loss is infinite: 4 labels with 3 adjacent repeats need at least 7 frames" in " ".join(
        out.split()
    )
    plain = json.loads((tmp_path / "explanation.json").read_text())
    assert plain["loss"] is None
    assert plain["num_paths"] == 0
    assert plain["paths"] == []
    assert not (tmp_path / "trellis.png").exists()
    assert_is_a_picture(tmp_path / "posteriors.png")


def test_scores_without_softmax_are_found_out(run, tmp_path: Path) -> None:
    logits = CAT_TABLE.with_name("cat_logits.csv")
    code, out, _ = run("text=CAT", f"probs={logits}", "inputs=log_probs", f"output={tmp_path}")
    assert code == 0
    assert "after a log_softmax it is 13.5036 instead of -5.6662" in " ".join(out.split())
    code, out, _ = run("text=CAT", f"probs={logits}", "inputs=logits", "output=null")
    assert code == 0
    assert "13.5036" in out


def test_without_text_the_most_probable_labelling_is_explained(cat: EmissionTable) -> None:
    found = analyse_table(cat, None)
    assert found.spell(found.diagnosis.labels) == "THO"
    assert found.diagnosis.loss == pytest.approx(-found.best_labelling.log_prob)


def test_the_blank_may_be_any_column(cat: EmissionTable) -> None:
    order = [*range(1, 27), 0]
    moved = EmissionTable(cat.log_probs[:, order], "probs", tuple(LETTERS[token] for token in order))
    for blank in (26, -1):
        found = analyse_table(moved, "CAT", blank=blank)
        assert found.diagnosis.loss == pytest.approx(13.50364304, abs=5e-7)
        assert found.spell(found.best_labelling.labels) == "THO"
    unnamed = EmissionTable(cat.log_probs, "probs", ())
    assert analyse_table(unnamed, "CAT", symbols=LETTERS).diagnosis.loss == pytest.approx(13.5036, abs=1e-4)
    assert analyse_table(unnamed, "3 1 20").diagnosis.labels == (3, 1, 20)


def test_texts_become_labels() -> None:
    pieces = ("<b>", "th", "e", "t", "h")
    assert labels_of("th e", pieces, 0, 5) == (1, 2)
    assert labels_of("the", pieces, 0, 5) == (3, 4, 2)
    assert labels_of("a b", ("-", "a", " ", "b"), 0, 4) == (1, 2, 3)
    assert labels_of("", pieces, 0, 5) == ()
    assert labels_of("1, 2", (), 0, 5) == (1, 2)
    assert split_symbols("-ab", 3) == ("-", "a", "b")
    assert split_symbols("<b> th e", 3) == ("<b>", "th", "e")
    with pytest.raises(TextError, match=r"no column is named 'x'; the columns are <b> th e t h"):
        labels_of("xt", pieces, 0, 5)
    with pytest.raises(TextError, match="contains the blank"):
        labels_of("0 1", (), 0, 5)
    with pytest.raises(TextError, match="token 7 is outside the table's 5 columns"):
        labels_of("1 7", (), 0, 5)
    with pytest.raises(TextError, match="does not name its columns"):
        labels_of("CAT", (), 0, 5)
    with pytest.raises(ConfigError, match="symbols names 2 tokens but the table has 3"):
        split_symbols("-a", 3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "give either probs=TABLE or checkpoint=MODEL audio=FILE"),
        (("probs=a.csv", "checkpoint=b"), "give either"),
        (("probs=a.csv", "audio=b.wav"), "audio= goes with checkpoint="),
        (("checkpoint=b",), "needs audio=FILE"),
        (("checkpoint=b", "audio=a.wav", "blank=0"), "a checkpoint knows its own tokens"),
        (("probs=absent.csv", "text=CAT"), "absent.csv: no such file"),
        ((f"probs={CAT_TABLE}", "text=cat"), "no column is named 'a', 'c', 't'"),
        ((f"probs={CAT_TABLE}", "text=CAT", "blank=27"), "blank=27 is outside the table's 27 columns"),
        ((f"probs={CAT_TABLE}", "text=CAT", "inputs=prob"), "did you mean 'probs'?"),
        ((f"probs={CAT_TABLE}", "text=CAT", "imageformat=svg"), "did you mean 'image_format'?"),
        ((f"probs={CAT_TABLE}", "text=CAT", f"output={CAT_TABLE}"), "cannot be written"),
        (("checkpoint=absent", "audio=a.wav"), "absent does not exist"),
    ],
)
def test_mistakes_get_one_line_and_exit_code_two(run, arguments: tuple[str, ...], message: str) -> None:
    code, _, err = run(*arguments)
    assert code == 2
    assert message in err
    assert len(err.strip().splitlines()) == 1


def test_text_needs_no_quoting_for_hydra(run, tmp_path: Path) -> None:
    symbols = "".join(["-", *"ITS'{},= \"\\"])
    np.save(tmp_path / "t.npy", np.full((8, len(symbols)), 1 / len(symbols)))
    (tmp_path / "t.json").write_text(
        json.dumps({"symbols": symbols, "probs": np.load(tmp_path / "t.npy").tolist()})
    )
    for text in ("IT'S", "{IT,S}", "I = T", 'S"T', "I\\T", "I\\"):
        code, out, err = run(f"text={text}", f"probs={tmp_path / 't.json'}", "output=null")
        assert (code, err) == (0, "")
        assert f"Paths that collapse to {text!r}" in out


def test_probabilities_of_any_size_can_be_written() -> None:
    assert format_probability(math.log(1.366e-6)) == "1.366e-06"
    assert format_probability(math.log(0.99996)) == "1.000e+00"
    assert format_probability(-5000.0).endswith("e-2172")
    assert format_probability(-math.inf) == "0"
    assert format_probability(900.0) == "e^900.0"


# --------------------------------------------------------------------------- recordings


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A small untrained checkpoint and a second of sound."""
    folder = tmp_path_factory.mktemp("recording")
    torch.manual_seed(0)
    tokenizer = CharTokenizer.train(["the cat sat", "'"])
    features = LogMelConfig(num_mels=16)
    model = BiLstmConfig(conv_channels=[4, 4], rnn_size=8, rnn_layers=1, dropout=0.0)
    acoustic_model = make_acoustic_model(features, model, tokenizer.vocab_size)
    weights = {MODEL_PREFIX + name: weight for name, weight in acoustic_model.state_dict().items()}
    recipe = {
        "schema_version": SCHEMA_VERSION,
        "config": {
            "features": dataclasses.asdict(features),
            "model": dataclasses.asdict(model),
            "text": dataclasses.asdict(TextConfig()),
        },
        "tokenizer": tokenizer.state(),
        "front_end_fingerprint": front_end_fingerprint(acoustic_model.features),
        "provenance": {},
    }
    torch.save({"state_dict": weights, "recipe": recipe}, folder / "model.ckpt")
    time = np.arange(16000) / 16000
    noise = np.random.default_rng(0).normal(size=16000)
    soundfile.write(folder / "a.wav", 0.1 * np.sin(2 * np.pi * 440 * time) + 0.01 * noise, 16000)
    return folder / "model.ckpt", folder / "a.wav"


def test_a_recording_is_explained_from_its_emissions(run, recording, tmp_path: Path) -> None:
    checkpoint, audio = recording
    code, out, _ = run(
        f"checkpoint={checkpoint}", f"audio={audio}", "text=The CAT, sat!", f"output={tmp_path}"
    )
    assert code == 0
    for word in ("the", "cat", "sat", "normalisation", "lengths"):
        assert word in out
    recogniser = load_recogniser(checkpoint, GreedyConfig(), torch.device("cpu"))
    waveform = torch.tensor(soundfile.read(audio, dtype="float32")[0])
    log_probs = recogniser.emissions([waveform]).log_probs[0]
    labels = recogniser.tokenizer.encode("the cat sat")
    expected = torch.nn.functional.ctc_loss(
        log_probs[:, None].double(),
        torch.tensor([labels]),
        (len(log_probs),),
        (len(labels),),
        blank=recogniser.tokenizer.blank_id,
        reduction="sum",
    )
    plain = json.loads((tmp_path / "explanation.json").read_text())
    assert plain["loss"] == pytest.approx(float(expected), rel=1e-6)
    assert plain["num_frames"] == len(plain["frame_losses"]) == len(log_probs)
    assert math.fsum(plain["frame_losses"]) == pytest.approx(plain["loss"])
    assert [word["text"] for word in plain["words"]] == ["the", "cat", "sat"]
    starts = [word["start_seconds"] for word in plain["words"]]
    assert starts == sorted(starts)
    assert 0 <= starts[0] < plain["words"][-1]["end_seconds"] <= 1.0 + plain["seconds_per_frame"]
    assert plain["alignment"]["tokens"][0]["start_frame"] * plain["seconds_per_frame"] == starts[0]
    assert_is_a_picture(tmp_path / "utterance.png")


def test_without_text_a_recording_is_explained_by_what_was_heard(run, recording, tmp_path: Path) -> None:
    checkpoint, audio = recording
    code, out, _ = run(f"checkpoint={checkpoint}", f"audio={audio}", f"output={tmp_path}")
    assert code == 0
    assert "not given" in out
    plain = json.loads((tmp_path / "explanation.json").read_text())
    assert plain["reference"] is None
    assert plain["labels"] == list(collapse(plain["best_path"]["path"], plain["blank"]))


def test_a_reference_too_long_for_the_recording_is_drawn_without_alignment(
    run, recording, tmp_path: Path
) -> None:
    checkpoint, audio = recording
    code, out, _ = run(
        f"checkpoint={checkpoint}", f"audio={audio}", f"text={'the cat sat ' * 30}", f"output={tmp_path}"
    )
    assert code == 0
    assert "the loss is infinite" in out
    assert json.loads((tmp_path / "explanation.json").read_text())["words"] == []
    assert_is_a_picture(tmp_path / "utterance.png")


def test_characters_unknown_to_the_tokenizer_are_named(run, recording) -> None:
    checkpoint, audio = recording
    code, _, err = run(f"checkpoint={checkpoint}", f"audio={audio}", "text=the dog", "output=null")
    assert code == 2
    assert "'d'" in err
