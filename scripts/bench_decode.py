"""Decoding speed and accuracy beside other decoders, on emissions of a trained model and synthetic ones.

Every decoder runs in one process on one thread, turn about; medians of CPU time per utterance are
compared. What is not installed is left out, and the output says so. The others, for example:

    pip install --target PEERS --no-deps fast-ctc-decode pyctcdecode pygtrie flashlight-text kenlm
    PYTHONPATH=PEERS python scripts/bench_decode.py --checkpoint best.ckpt --manifest dev.jsonl --arpa lm.arpa

Three comparisons: greedy decoding against batched PyTorch; prefix search without a language model against
fast-ctc-decode and pyctcdecode, with the share of equal texts; and, given ``--arpa``, word n-grams with a
closed vocabulary against flashlight with KenLM. In the last one each side tries the same grid of weights,
beam widths and thresholds, and the fastest setting of ours is named that makes no more errors than each
of theirs. ``--output`` writes it all as JSON.
"""

import argparse
import itertools
import json
import math
import pickle
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch

from asr.audio import load_audio
from asr.checkpoint import load_recogniser, resolve
from asr.config import GreedyConfig
from asr.decode.beam import BeamDecoder, Pruning
from asr.decode.greedy import GreedyDecoder
from asr.decode.lexicon import Lexicon
from asr.decode.ngram import NgramModel
from asr.decode.scorer import Scorer, Weights
from asr.manifest import read_manifest
from asr.records import Emissions
from asr.score import count_words, total
from asr.tokenizer import CharTokenizer, Tokenizer

Texts = list[str]
LETTERS = " abcdefghijklmnopqrstuvwxyz'"


@dataclass
class Speech:
    """Emissions of some utterances, each ``(frames, vocab)`` float32, and what was said."""

    name: str
    emissions: list[np.ndarray]
    references: Texts
    tokenizer: Tokenizer


def recognised(checkpoint: Path, manifest: Path) -> Speech:
    recogniser = load_recogniser(resolve(checkpoint), GreedyConfig(), torch.device("cpu"))
    emissions, references = [], []
    for utterance in read_manifest(manifest):
        waveform = load_audio(
            utterance.audio_path,
            recogniser.sample_rate,
            offset_seconds=utterance.offset_seconds,
            duration_seconds=utterance.duration_seconds,
        )
        log_probs, lengths = recogniser.emissions([waveform])
        emissions.append(log_probs[0, : int(lengths[0])].float().numpy().copy())
        references.append(recogniser.normalise(utterance.text))
    return Speech("trained", emissions, references, recogniser.tokenizer)


def synthetic(name: str, texts: Texts, *, margin: float, blank: float, confusion: float, seed: int) -> Speech:
    """Frames of noise in which each letter stands out by ``margin``, sometimes beside another one."""
    rng = np.random.default_rng(seed)
    tokenizer = CharTokenizer(LETTERS)
    emissions = []
    for text in texts:
        letters = tokenizer.encode(text)
        logits = rng.normal(size=(4 * len(letters) + 4, tokenizer.vocab_size))
        logits[:, tokenizer.blank_id] += blank
        for index, letter in enumerate(letters):
            frame = 4 * index + int(rng.integers(3))
            logits[frame, tokenizer.blank_id] -= blank
            logits[frame, letter] += rng.normal(margin, 1.5)
            if rng.random() < confusion:
                logits[frame, rng.integers(1, tokenizer.vocab_size)] += rng.normal(0.9 * margin, 1.5)
        emissions.append(torch.from_numpy(logits).log_softmax(-1).float().numpy())
    return Speech(name, emissions, list(texts), tokenizer)


@dataclass
class Measured:
    name: str
    milliseconds: float
    word_error_rate: float
    texts: Texts


def measure(decoders: dict[str, Callable[[], Texts]], speech: Speech, repeats: int) -> dict[str, Measured]:
    """Every decoder once to warm up, then ``repeats`` times, turn about."""
    texts = {name: [" ".join(text.split()) for text in decode()] for name, decode in decoders.items()}
    times: dict[str, list[float]] = {name: [] for name in decoders}
    for _ in range(repeats):
        for name, decode in decoders.items():
            started = time.process_time()
            decode()
            times[name].append((time.process_time() - started) / len(speech.emissions) * 1e3)
    return {
        name: Measured(
            name, statistics.median(times[name]), word_error_rate(speech.references, texts[name]), texts[name]
        )
        for name in decoders
    }


def word_error_rate(references: Texts, hypotheses: Texts) -> float:
    return total(count_words(references, hypotheses)).rate


# --------------------------------------------------------------------------- greedy


def compare_greedy(speech: Speech, repeats: int) -> dict[str, Any]:
    """Collapsed token ids of a padded batch, and whole hypotheses with word times."""
    lengths = torch.tensor([len(frames) for frames in speech.emissions])
    padded = torch.nn.utils.rnn.pad_sequence(
        [torch.from_numpy(frames) for frames in speech.emissions], batch_first=True
    )
    emissions, blank = Emissions(padded, lengths), speech.tokenizer.blank_id
    decoder = GreedyDecoder(speech.tokenizer, 0.04)

    def batched_torch() -> list[list[int]]:
        labels = padded.argmax(dim=2)
        spoken = labels != blank
        spoken[:, 1:] &= labels[:, 1:] != labels[:, :-1]
        spoken &= torch.arange(labels.shape[1]) < lengths[:, None]
        found, counts = labels[spoken].tolist(), spoken.sum(dim=1).tolist()
        ends = list(itertools.accumulate(counts))
        return [found[end - count : end] for count, end in zip(counts, ends, strict=True)]

    def ours() -> list[list[int]]:
        return [path.token_ids for path in decoder.best_paths(emissions)]

    if batched_torch() != ours():
        raise SystemExit("greedy decoding differs from PyTorch's best path")
    variants = {"batched torch": batched_torch, "ours": ours, "ours, with text and word times": None}
    times: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(5 * repeats):
        for name, variant in variants.items():
            started = time.process_time()
            (variant or (lambda: decoder.decode(emissions)))()
            times[name].append((time.process_time() - started) / len(lengths) * 1e3)
    medians = {name: statistics.median(values) for name, values in times.items()}
    return {
        **{f"{name}, ms per utterance": round(value, 4) for name, value in medians.items()},
        "times faster than batched torch": round(medians["batched torch"] / medians["ours"], 2),
    }


# --------------------------------------------------------------------------- without a language model


def compare_plain(speech: Speech, repeats: int) -> dict[str, Any]:
    results = {}
    for beam_width in (50, 100):
        decoders = {"ours": plain(speech, beam_width, with_times=False)}
        decoders["ours, with times"] = plain(speech, beam_width, with_times=True)
        decoders |= plain_peers(speech, beam_width)
        found = measure(decoders, speech, repeats)
        results[f"beam {beam_width}"] = report(found, against="ours")
    return results


def plain(speech: Speech, beam_width: int, *, with_times: bool) -> Callable[[], Texts]:
    decoder = BeamDecoder(speech.tokenizer, 0.04, pruning=Pruning(beam_width, 15.0, 5.0), num_threads=1)
    if not with_times:
        return lambda: [
            speech.tokenizer.decode(decoder.search(frames, 1)[0].token_ids) for frames in speech.emissions
        ]
    batches = [
        Emissions(torch.from_numpy(frames)[None], torch.tensor([len(frames)])) for frames in speech.emissions
    ]
    return lambda: [decoder.decode(batch)[0].text for batch in batches]


def plain_peers(speech: Speech, beam_width: int) -> dict[str, Callable[[], Texts]]:
    peers: dict[str, Callable[[], Texts]] = {}
    labels, blank = speech.tokenizer.tokens, speech.tokenizer.blank_id
    if find_spec("fast_ctc_decode") and blank == 0:
        import fast_ctc_decode

        alphabet = "_" + "".join(labels[1:])
        probs = [np.exp(frames) for frames in speech.emissions]
        peers["fast-ctc-decode"] = lambda: [
            fast_ctc_decode.beam_search(frames, alphabet, beam_width, math.exp(-5.0))[0] for frames in probs
        ]
    if find_spec("pyctcdecode"):
        import pyctcdecode

        decoder = pyctcdecode.build_ctcdecoder(
            ["" if index == blank else label for index, label in enumerate(labels)]
        )
        peers["pyctcdecode"] = lambda: [
            decoder.decode(frames, beam_width=beam_width) for frames in speech.emissions
        ]
    return peers


# --------------------------------------------------------------------------- with a language model


def compare_lm(speech: Speech, arpa: Path, repeats: int) -> dict[str, Any]:
    """Both sides over the same grid: the weights first, then width and threshold at their best weights."""
    words = sorted(set(NgramModel.load(arpa).vocabulary) - {"<unk>", "<s>", "</s>"})
    sides: dict[str, Callable[..., Callable[[], Texts]]] = {"ours": ours_with_lm(speech, arpa, words)}
    if find_spec("flashlight"):
        sides["flashlight"] = flashlight_with_kenlm(speech, arpa, words)
    points = {}
    for side, make in sides.items():
        weights = min(
            itertools.product((0.3, 0.5, 0.8), (0.0, 0.75, 1.5, 3.0)),
            key=lambda pair: word_error_rate(speech.references, make(*pair, 50, 12.0)()),
        )
        for width, gap in itertools.product((10, 20, 50, 100), (6.0, 8.0, 12.0)):
            name = f"{side} alpha {weights[0]} beta {weights[1]} width {width} gap {gap:g}"
            points[name] = make(*weights, width, gap)
    found = measure(points, speech, repeats)
    result = report(found)
    ours = [point for name, point in found.items() if name.startswith("ours")]
    for name, peer in found.items():
        as_good = [point for point in ours if point.word_error_rate <= peer.word_error_rate]
        if name.startswith("flashlight") and as_good:
            fastest = min(as_good, key=lambda point: point.milliseconds)
            result[name] |= {
                "ours at no more errors": fastest.name,
                "times faster": round(peer.milliseconds / fastest.milliseconds, 2),
            }
    return result


def ours_with_lm(speech: Speech, arpa: Path, words: Sequence[str]) -> Callable[..., Callable[[], Texts]]:
    lm, lexicon = NgramModel.load(arpa), Lexicon.build(words, speech.tokenizer, str(arpa))

    def make(alpha: float, beta: float, width: int, gap: float) -> Callable[[], Texts]:
        scorer = Scorer(
            speech.tokenizer, lexicon=lexicon, vocabulary="closed", lm=lm, weights=Weights(alpha, beta)
        )
        pruning = Pruning(width, score_gap=gap, token_gap=8.0)
        decoder = BeamDecoder(speech.tokenizer, 0.04, pruning=pruning, scorer=scorer, num_threads=1)
        return lambda: [
            speech.tokenizer.decode(decoder.search(frames, 1)[0].token_ids) for frames in speech.emissions
        ]

    return make


def flashlight_with_kenlm(
    speech: Speech, arpa: Path, words: Sequence[str]
) -> Callable[..., Callable[[], Texts]]:
    from flashlight.lib.text import decoder as flashlight
    from flashlight.lib.text.decoder.kenlm import KenLM
    from flashlight.lib.text.dictionary import Dictionary, create_word_dict

    tokens = Dictionary(["|" if token == " " else token for token in speech.tokenizer.tokens])
    entries = create_word_dict({**{word: [] for word in words}, "<unk>": []})
    lm = KenLM(str(arpa), entries)
    space, blank = tokens.get_index("|"), speech.tokenizer.blank_id
    trie = flashlight.Trie(tokens.index_size(), space)
    start = lm.start(False)
    for word in words:
        spelling = [tokens.get_index(character) for character in word] + [space]
        index = entries.get_index(word)
        trie.insert(spelling, index, lm.score(start, index)[1])
    trie.smear(flashlight.SmearingMode.MAX)
    frames_of = [np.ascontiguousarray(frames) for frames in speech.emissions]

    def make(alpha: float, beta: float, width: int, gap: float) -> Callable[[], Texts]:
        options = flashlight.LexiconDecoderOptions(
            beam_size=width,
            beam_size_token=tokens.index_size(),
            beam_threshold=gap,
            lm_weight=alpha * math.log(10),
            word_score=beta,
            unk_score=-math.inf,
            sil_score=0.0,
            log_add=True,
            criterion_type=flashlight.CriterionType.CTC,
        )
        searcher = flashlight.LexiconDecoder(
            options, trie, lm, space, blank, entries.get_index("<unk>"), [], False
        )

        def decode() -> Texts:
            best = (searcher.decode(frames.ctypes.data, *frames.shape)[0] for frames in frames_of)
            return [" ".join(entries.get_entry(word) for word in one.words if word >= 0) for one in best]

        return decode

    return make


# --------------------------------------------------------------------------- first call, output


FIRST_CALL = """
import pickle, sys, time
started = time.perf_counter()
import numpy, torch
from asr.records import Emissions
imported = time.perf_counter()
from asr.decode.beam import BeamDecoder
from asr.decode.scorer import Scorer
tokenizer, frames = pickle.load(open(sys.argv[1], "rb"))
batch = Emissions(torch.from_numpy(frames)[None], torch.tensor([len(frames)]))
BeamDecoder(tokenizer, 0.04).decode(batch)
plain = time.perf_counter()
BeamDecoder(tokenizer, 0.04, scorer=Scorer(tokenizer)).decode(batch)
print(plain - imported, time.perf_counter() - plain)
"""


def first_call(speech: Speech, folder: Path) -> dict[str, float]:
    """Seconds in a new process, PyTorch already loaded, the compiled code on disk."""
    path = folder / "first_call.pickle"
    path.write_bytes(pickle.dumps((speech.tokenizer, speech.emissions[0])))
    runs = [
        subprocess.run(
            [sys.executable, "-c", FIRST_CALL, str(path)], capture_output=True, text=True, check=True
        )
        for _ in range(4)
    ]
    path.unlink()
    seconds = [[float(value) for value in run.stdout.split()] for run in runs[1:]]
    plain_seconds, scored_seconds = zip(*seconds, strict=True)
    return {
        "import and plain search, s": round(statistics.median(plain_seconds), 3),
        "then search with scores, s": round(statistics.median(scored_seconds), 3),
    }


def report(found: dict[str, Measured], against: str | None = None) -> dict[str, Any]:
    results: dict[str, Any] = {}
    for name, measured in found.items():
        results[name] = {
            "ms per utterance": round(measured.milliseconds, 4),
            "WER": round(measured.word_error_rate, 4),
        }
        if against is not None:
            same = np.mean([a == b for a, b in zip(measured.texts, found[against].texts, strict=True)])
            ratio = measured.milliseconds / found[against].milliseconds
            results[name] |= {f"times {against}": round(ratio, 2), "same text": round(float(same), 4)}
    return results


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checkpoint", type=Path, help="a trained model with one token per character")
    parser.add_argument(
        "--manifest", type=Path, help="what it recognises; its texts make synthetic emissions too"
    )
    parser.add_argument("--texts", type=Path, help="sentences to make synthetic emissions of, one a line")
    parser.add_argument("--arpa", type=Path, help="word n-gram model; leaves out the comparison when missing")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--utterances", type=int, default=60, help="how many of each set")
    parser.add_argument("--output", type=Path, help="JSON file")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if (arguments.checkpoint is None) != (arguments.manifest is None):
        parser.error("--checkpoint and --manifest go together")
    texts = ["one two three four five"] * arguments.utterances
    sets = []
    if arguments.checkpoint is not None:
        trained = recognised(arguments.checkpoint, arguments.manifest)
        del trained.emissions[arguments.utterances :], trained.references[arguments.utterances :]
        texts = trained.references
        sets.append(trained)
    if arguments.texts is not None:
        texts = arguments.texts.read_text(encoding="utf-8").splitlines()[: arguments.utterances]
    sets.append(synthetic("peaky", texts, margin=9.0, blank=11.0, confusion=0.15, seed=0))
    sets.append(synthetic("flat", texts, margin=4.0, blank=4.0, confusion=0.15, seed=1))
    results: dict[str, Any] = {
        "machine": platform.processor() or platform.machine(),
        "missing": [name for name in ("fast_ctc_decode", "pyctcdecode", "flashlight") if not find_spec(name)],
    }
    for speech in sets:
        results[speech.name] = {
            "greedy": compare_greedy(speech, arguments.repeats),
            "no language model": compare_plain(speech, arguments.repeats),
        }
        if arguments.arpa is not None:
            results[speech.name]["language model"] = compare_lm(speech, arguments.arpa, arguments.repeats)
    results["first call"] = first_call(
        sets[0], Path.cwd() if arguments.output is None else arguments.output.parent
    )
    text = json.dumps(results, indent=1, ensure_ascii=False)
    if arguments.output is not None:
        arguments.output.write_text(text + "\n", encoding="utf-8")
    sys.stdout.write(text + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
