"""Decoding speed and accuracy beside other decoders, on emissions of a trained model and synthetic ones.

Every decoder runs in one process on one thread, turn about; medians of CPU time per utterance are
compared. What is not installed is left out, and the output says so. The others, for example:

    pip install --target PEERS --no-deps fast-ctc-decode pyctcdecode pygtrie flashlight-text
    PYTHONPATH=PEERS python scripts/bench_decode.py --checkpoint best.ckpt --manifest dev.jsonl --arpa lm.arpa

- greedy decoding against batched PyTorch;
- prefix search without a language model against fast-ctc-decode and pyctcdecode. fast-ctc-decode drops
  tokens below an absolute probability, ours below a share of the frame's likeliest: "same cut" gives
  both the same tokens, and the texts must be the same;
- given ``--arpa``, word n-grams with a closed vocabulary against flashlight with KenLM. Both score alike and
  have the weights with which they make the fewest errors together; each tries a grid of beam widths and
  cuts. For every setting of flashlight that no other of its settings beats in both speed and errors, the
  fastest of ours that makes no more errors is named;
- with ``--pipeline``, what a search beside the forward pass costs: recordings per second end to end, of
  greedy decoding and of beam search with the model of ``--arpa``;
- the first call in a new process.

``--parts`` and ``--emissions`` choose some of these. ``--output`` writes it all as JSON.
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
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from asr.checkpoint import load_recogniser, resolve
from asr.config import BeamConfig, BeamLmConfig, DecoderConfig, GreedyConfig
from asr.dataset import load_utterance
from asr.decode.beam import BeamDecoder, Pruning
from asr.decode.greedy import GreedyDecoder
from asr.decode.lexicon import Lexicon
from asr.decode.ngram import NgramModel
from asr.decode.scorer import Scorer, Weights
from asr.device import choose_device
from asr.manifest import read_manifest
from asr.pipeline import recognise_batches
from asr.recogniser import Recogniser
from asr.records import Emissions
from asr.sampler import batches_by_length
from asr.score import count_words, total
from asr.text import normalise
from asr.tokenizer import CharTokenizer, Tokenizer

Texts = list[str]
SLOW_MILLISECONDS = 3000.0
PARTS = ("greedy", "plain", "lm", "first-call")
EMISSIONS = ("trained", "peaky", "flat")
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
        waveform = load_utterance(utterance, recogniser.sample_rate)
        log_probs, lengths = recogniser.emissions([waveform])[:2]
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


def spelled(path: Path) -> Texts:
    """The sentences of a file, as transcripts are written; without those that ``LETTERS`` do not spell."""
    texts = map(normalise, path.read_text(encoding="utf-8").splitlines())
    return [text for text in texts if text and set(text) <= set(LETTERS)]


@dataclass
class Measured:
    name: str
    milliseconds: float
    word_error_rate: float
    texts: Texts


def measure(decoders: dict[str, Callable[[], Texts]], speech: Speech, repeats: int) -> dict[str, Measured]:
    """Every decoder once to warm up, then ``repeats`` times, turn about; very slow ones only once."""
    texts: dict[str, Texts] = {}
    times: dict[str, list[float]] = {}

    def run(name: str) -> None:
        started = time.process_time()
        texts[name] = [" ".join(text.split()) for text in decoders[name]()]
        times.setdefault(name, []).append((time.process_time() - started) / len(speech.emissions) * 1e3)

    for name in decoders:
        run(name)
    is_slow = {name: times[name][0] * len(speech.emissions) > SLOW_MILLISECONDS for name in decoders}
    times = {name: times[name] if is_slow[name] else [] for name in decoders}
    for _ in range(repeats):
        for name in decoders:
            if not is_slow[name]:
                run(name)
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


@dataclass
class Cut:
    """Tokens less probable than ``probability`` are dropped, by all sides or as each of them does it."""

    name: str
    probability: float
    is_same: bool


CUTS = [
    Cut("no cut", 0.0, True),
    Cut("same cut", math.exp(-5.0), True),
    Cut("own cut", math.exp(-5.0), False),
]


def compare_plain(speech: Speech, repeats: int) -> dict[str, Any]:
    results = {}
    for beam_width, cut in itertools.product((50, 100), CUTS):
        decoders = {"ours": plain(speech, beam_width, cut)}
        decoders |= plain_peers(speech, beam_width, cut)
        if not cut.is_same:
            decoders["ours, with word times and confidence"] = with_words(speech, beam_width)
        found = measure(decoders, speech, repeats)
        results[f"beam {beam_width}, {cut.name}"] = report(found, against="ours")
    return {"in short": plain_in_short(results), **results}


def plain_in_short(results: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The least advantage over each of the others, and how many texts equal fast-ctc-decode's."""
    short: dict[str, Any] = {}
    for cut, peer in itertools.product(CUTS, ("fast-ctc-decode", "pyctcdecode")):
        found = [
            measured[peer] for name, measured in results.items() if cut.name in name and peer in measured
        ]
        if found:
            short[f"{cut.name}: times faster than {peer}, least"] = min(one["times ours"] for one in found)
        if found and cut.is_same:
            short[f"{cut.name}: same text as {peer}"] = [one["same text"] for one in found]
    return short


def own_pruning(beam_width: int) -> Pruning:
    return Pruning(beam_width, score_gap=15.0, token_gap=5.0)


def with_words(speech: Speech, beam_width: int) -> Callable[[], Texts]:
    decoder = BeamDecoder(speech.tokenizer, 0.04, pruning=own_pruning(beam_width), num_threads=1)
    one_by_one = [
        Emissions(torch.from_numpy(frames)[None], torch.tensor([len(frames)])) for frames in speech.emissions
    ]
    return lambda: [decoder.decode(emissions)[0].text for emissions in one_by_one]


def plain(speech: Speech, beam_width: int, cut: Cut) -> Callable[[], Texts]:
    tokenizer = speech.tokenizer
    pruning = Pruning.none(beam_width) if cut.is_same else own_pruning(beam_width)
    decoder = BeamDecoder(tokenizer, 0.04, pruning=pruning, num_threads=1)
    if not (cut.is_same and cut.probability):
        return lambda: [
            tokenizer.decode(decoder.search(frames, 1)[0].token_ids) for frames in speech.emissions
        ]
    least, never = np.float32(math.log(cut.probability)), np.float32(-np.inf)
    return lambda: [
        tokenizer.decode(decoder.search(np.where(frames >= least, frames, never), 1)[0].token_ids)
        for frames in speech.emissions
    ]


def plain_peers(speech: Speech, beam_width: int, cut: Cut) -> dict[str, Callable[[], Texts]]:
    peers: dict[str, Callable[[], Texts]] = {}
    labels, blank = speech.tokenizer.tokens, speech.tokenizer.blank_id
    if find_spec("fast_ctc_decode") and blank == 0:
        import fast_ctc_decode

        alphabet = "_" + "".join(labels[1:])
        probs = [np.exp(frames) for frames in speech.emissions]
        peers["fast-ctc-decode"] = lambda: [
            fast_ctc_decode.beam_search(frames, alphabet, beam_width, cut.probability)[0] for frames in probs
        ]
    if find_spec("pyctcdecode") and not cut.is_same:  # with the cuts that it comes with
        import pyctcdecode

        decoder = pyctcdecode.build_ctcdecoder(
            ["" if index == blank else label for index, label in enumerate(labels)]
        )
        peers["pyctcdecode"] = lambda: [
            decoder.decode(frames, beam_width=beam_width) for frames in speech.emissions
        ]
    return peers


# --------------------------------------------------------------------------- with a language model


class TokenCut(NamedTuple):
    """Which tokens of a frame are considered: the likeliest ``most``, none of them ``gap`` nats behind the first."""

    most: int
    gap: float = math.inf


MakeDecoder = Callable[[float, float, int, float, TokenCut], Callable[[], Texts]]
"""alpha, beta, beam width, score gap and what is considered → a decoder."""

ALPHAS, BETAS = (0.3, 0.5, 0.7, 0.9, 1.2, 1.5), (-4.5, -3.0, -1.5, 0.0, 1.5, 3.0)
WIDTHS, SCORE_GAPS = (5, 10, 20, 50, 100, 200, 400), (6.0, 8.0, 12.0, 16.0)


def token_cuts(vocab_size: int) -> tuple[list[TokenCut], list[TokenCut]]:
    """Five for us and five for flashlight, which knows no gap; the widest is last."""
    few, quarter, half, most = (int(share * vocab_size) for share in (0.15, 0.25, 0.5, 0.75))
    ours = [
        TokenCut(few, 12.0),
        TokenCut(quarter, 10.0),
        *(TokenCut(vocab_size, gap) for gap in (6.0, 8.0, 12.0)),
    ]
    return ours, [TokenCut(number) for number in (few, quarter, half, most, vocab_size)]


def compare_lm(speech: Speech, arpa: Path, repeats: int) -> dict[str, Any]:
    """Weights that suit both sides, which score alike; then each side over its grid of widths and cuts."""
    words = sorted(set(NgramModel.load(arpa).vocabulary) - {"<unk>", "<s>", "</s>"})
    our_cuts, their_cuts = token_cuts(speech.tokenizer.vocab_size)
    sides = {"ours": (ours_with_lm(speech, arpa, words), our_cuts)}
    if find_spec("flashlight"):
        sides["flashlight"] = (flashlight_with_kenlm(speech, arpa), their_cuts)

    def wide_errors(alpha: float, beta: float) -> float:
        searches = [make(alpha, beta, 50, 12.0, cuts[-1]) for make, cuts in sides.values()]
        return sum(word_error_rate(speech.references, search()) for search in searches)

    alpha, beta = min(itertools.product(ALPHAS, BETAS), key=lambda pair: wide_errors(*pair))
    points: dict[str, Callable[[], Texts]] = {}
    for side, (make, cuts) in sides.items():
        for width, gap, cut in itertools.product(WIDTHS, SCORE_GAPS, cuts):
            name = f"{side} alpha {alpha} beta {beta} width {width} gap {gap:g} tokens {cut.most}"
            name += f" within {cut.gap:g}" if cut.gap < math.inf else ""
            points[name] = make(alpha, beta, width, gap, cut)
    found = measure(points, speech, repeats)
    ours = [point for name, point in found.items() if name.startswith("ours")]
    theirs = unbeaten([point for name, point in found.items() if name.startswith("flashlight")])
    result = report({point.name: point for point in unbeaten(ours) + theirs})
    ratios = []
    for peer in theirs:
        as_good = [point for point in ours if point.word_error_rate <= peer.word_error_rate]
        if as_good:
            fastest = min(as_good, key=lambda point: point.milliseconds)
            ratios.append(peer.milliseconds / fastest.milliseconds)
            result[peer.name] |= {
                "ours at no more errors": fastest.name,
                "times faster": round(ratios[-1], 2),
            }
    if theirs:
        result["matched"] = {
            "settings of flashlight": len(theirs),
            "of these reached": len(ratios),
            "times faster, least": round(min(ratios), 2) if ratios else None,
            "times faster, median": round(statistics.median(ratios), 2) if ratios else None,
        }
    return result


def unbeaten(points: list[Measured]) -> list[Measured]:
    """Those that no other one beats in time without making more errors."""
    kept: list[Measured] = []
    for point in sorted(points, key=lambda point: (point.milliseconds, point.word_error_rate)):
        if not kept or point.word_error_rate < kept[-1].word_error_rate:
            kept.append(point)
    return kept


def ours_with_lm(speech: Speech, arpa: Path, words: Sequence[str]) -> MakeDecoder:
    lm, lexicon = NgramModel.load(arpa), Lexicon.build(words, speech.tokenizer, str(arpa))

    def make(alpha: float, beta: float, width: int, gap: float, cut: TokenCut) -> Callable[[], Texts]:
        scorer = Scorer(
            speech.tokenizer, lexicon=lexicon, vocabulary="closed", lm=lm, weights=Weights(alpha, beta)
        )
        pruning = Pruning(width, score_gap=gap, token_gap=cut.gap, max_tokens=cut.most)
        return searching(
            BeamDecoder(speech.tokenizer, 0.04, pruning=pruning, scorer=scorer, num_threads=1), speech
        )

    return make


def flashlight_with_kenlm(speech: Speech, arpa: Path) -> MakeDecoder:
    from asr.decode.flashlight import FlashlightDecoder, make_search

    def make(alpha: float, beta: float, width: int, gap: float, cut: TokenCut) -> Callable[[], Texts]:
        search = make_search(
            speech.tokenizer,
            beam_width=width,
            score_gap=gap,
            max_tokens=cut.most,
            lm_path=str(arpa),
            alpha=alpha,
            beta=beta,
        )
        return searching(FlashlightDecoder(speech.tokenizer, 0.04, search), speech)

    return make


def searching(decoder: Any, speech: Speech) -> Callable[[], Texts]:
    """The search alone: no word times on either side."""
    return lambda: [
        speech.tokenizer.decode(decoder.search(frames, 1)[0].token_ids) for frames in speech.emissions
    ]


# --------------------------------------------------------------------------- beside the forward pass


def compare_pipeline(
    checkpoint: Path, manifest: Path, arpa: Path | None, repeats: int, threads: int
) -> dict[str, Any]:
    """Utterances per second of ``asr.pipeline``, audio in memory; ``one by one``: nothing at once.

    Where other programs use the same cores, CPU time is what can be compared.
    """
    device = choose_device("auto")
    decoders: dict[str, DecoderConfig] = {"greedy": GreedyConfig(), "beam": BeamConfig()}
    if arpa is not None:
        decoders["beam and language model"] = BeamLmConfig(lm=str(arpa))
    recognisers = {
        name: load_recogniser(resolve(checkpoint), decoder, device) for name, decoder in decoders.items()
    }
    rate = recognisers["greedy"].sample_rate
    utterances = read_manifest(manifest)
    audio = [load_utterance(utterance, rate) for utterance in utterances]
    batches = batches_by_length([len(one) / rate for one in audio], max_utterances=16, max_seconds=120.0)

    def at_once(recogniser: Recogniser) -> None:
        for _ in recognise_batches(recogniser, batches, audio.__getitem__, str):
            pass

    def one_by_one(recogniser: Recogniser) -> None:
        for batch in batches:
            recogniser.recognise([audio[index] for index in batch])

    ways = {"at once": at_once, "one by one": one_by_one}
    seconds: dict[tuple[str, str], list[float]] = {}
    busy: dict[tuple[str, str], list[float]] = {}
    torch.set_num_threads(threads)
    for repeat in range(repeats + 1):
        for (name, recogniser), (way, run) in itertools.product(recognisers.items(), ways.items()):
            started, started_busy = time.perf_counter(), time.process_time()
            run(recogniser)
            if repeat:  # the first time is to warm up
                seconds.setdefault((name, way), []).append(time.perf_counter() - started)
                busy.setdefault((name, way), []).append(time.process_time() - started_busy)
    torch.set_num_threads(1)
    rates = {key: len(audio) / statistics.median(values) for key, values in seconds.items()}
    costs = {key: statistics.median(values) / len(audio) * 1e3 for key, values in busy.items()}
    return {
        "device": torch.cuda.get_device_name() if device.type == "cuda" else f"CPU, {threads} threads",
        "million parameters": round(
            sum(one.numel() for one in recognisers["greedy"].acoustic_model.parameters()) / 1e6, 2
        ),
        "batches": len(batches),
        **{
            name: {
                **{f"{way}, utterances per second": round(rates[name, way], 2) for way in ways},
                "at once, share of greedy": round(rates[name, "at once"] / rates["greedy", "at once"], 3),
                "CPU ms per utterance": round(costs[name, "at once"], 3),
                "share of greedy by CPU time": round(costs["greedy", "at once"] / costs[name, "at once"], 3),
            }
            for name in recognisers
        },
    }


# --------------------------------------------------------------------------- first call, output


FIRST_CALL = """
import pickle, sys, time
import numpy, torch
from asr.records import Emissions
def now():
    return numpy.array([time.perf_counter(), time.process_time()])
imported = now()
from asr.decode.beam import BeamDecoder
from asr.decode.scorer import Scorer
tokenizer, frames = pickle.load(open(sys.argv[1], "rb"))
batch = Emissions(torch.from_numpy(frames)[None], torch.tensor([len(frames)]))
BeamDecoder(tokenizer, 0.04).decode(batch)
plain = now()
BeamDecoder(tokenizer, 0.04, scorer=Scorer(tokenizer)).decode(batch)
print(*(plain - imported), *(now() - plain))
"""


def first_call(speech: Speech) -> dict[str, float]:
    """Seconds in a new process, PyTorch already loaded, the compiled code on disk; medians of five."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "first_call.pickle")
        path.write_bytes(pickle.dumps((speech.tokenizer, speech.emissions[0])))
        command = [sys.executable, "-c", FIRST_CALL, str(path)]
        runs = [subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True) for _ in range(6)]
    seconds = np.median([[float(value) for value in run.stdout.split()] for run in runs[1:]], axis=0)
    names = [
        f"{what}, {clock}"
        for what in ("import and plain search", "then search with scores")
        for clock in ("s", "s of CPU time")
    ]
    return dict(zip(names, seconds.round(3).tolist(), strict=True))


def report(found: dict[str, Measured], against: str | None = None) -> dict[str, Any]:
    results: dict[str, Any] = {}
    for name, measured in found.items():
        results[name] = {
            "ms per utterance": round(measured.milliseconds, 4),
            "WER": round(measured.word_error_rate, 4),
        }
        if against is not None:
            num_same = sum(a == b for a, b in zip(measured.texts, found[against].texts, strict=True))
            ratio = measured.milliseconds / found[against].milliseconds
            results[name] |= {
                f"times {against}": round(ratio, 2),
                "same text": f"{num_same} of {len(measured.texts)}",
            }
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
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="what is measured")
    parser.add_argument("--emissions", nargs="+", choices=EMISSIONS, default=EMISSIONS, help="on what")
    parser.add_argument("--pipeline", action="store_true", help="measure the pipeline alone")
    parser.add_argument("--threads", type=int, default=2, help="of PyTorch, for --pipeline on a CPU")
    parser.add_argument("--output", type=Path, help="JSON file")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if (arguments.checkpoint is None) != (arguments.manifest is None):
        parser.error("--checkpoint and --manifest go together")
    if arguments.pipeline:
        if arguments.checkpoint is None:
            parser.error("--pipeline needs --checkpoint and --manifest")
        pipeline = compare_pipeline(
            arguments.checkpoint, arguments.manifest, arguments.arpa, arguments.repeats, arguments.threads
        )
        return write({"pipeline": pipeline}, arguments.output)
    texts = ["one two three four five"] * arguments.utterances
    sets = []
    if arguments.checkpoint is not None:
        trained = recognised(arguments.checkpoint, arguments.manifest)
        del trained.emissions[arguments.utterances :], trained.references[arguments.utterances :]
        texts = trained.references
        sets.append(trained)
    if arguments.texts is not None:
        texts = spelled(arguments.texts)[: arguments.utterances]
    sets.append(synthetic("peaky", texts, margin=9.0, blank=11.0, confusion=0.15, seed=0))
    sets.append(synthetic("flat", texts, margin=4.0, blank=4.0, confusion=0.15, seed=1))
    results: dict[str, Any] = {
        "machine": platform.processor() or platform.machine(),
        "missing": [name for name in ("fast_ctc_decode", "pyctcdecode", "flashlight") if not find_spec(name)],
    }
    for speech in sets:
        if speech.name not in arguments.emissions:
            continue
        found = results[speech.name] = {}
        if "greedy" in arguments.parts:
            found["greedy"] = compare_greedy(speech, arguments.repeats)
        if "plain" in arguments.parts:
            found["no language model"] = compare_plain(speech, arguments.repeats)
        if "lm" in arguments.parts and arguments.arpa is not None:
            found["language model"] = compare_lm(speech, arguments.arpa, arguments.repeats)
    if "first-call" in arguments.parts:
        results["first call"] = first_call(sets[0])
    return write(results, arguments.output)


def write(results: dict[str, Any], output: Path | None) -> int:
    text = json.dumps(results, indent=1, ensure_ascii=False)
    if output is not None:
        output.write_text(text + "\n", encoding="utf-8")
    sys.stdout.write(text + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
