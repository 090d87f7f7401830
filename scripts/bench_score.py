"""Scoring speed against jiwer, with identical counts.

Both sides score the same sentences in one process, turn about; medians are compared. Words alone
(``count_words`` against ``jiwer.process_words``) and words with characters (``score`` against
``process_words`` and ``process_characters``, which is what an evaluation needs). The counts of
every run are compared, and a difference ends the benchmark with exit code 1.

    python scripts/bench_score.py --sentences 10000 --error-rate 0.05
"""

import argparse
import json
import platform
import random
import string
import sys
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from statistics import median
from typing import Any

import jiwer

from asr.score import ErrorCounts, Score, count_words, score, total

Texts = Sequence[str]


def make_sentences(num_sentences: int, error_rate: float, seed: int) -> tuple[list[str], list[str]]:
    """Random sentences of 5 to 40 words, and the same with words replaced, left out and put in."""
    rng = random.Random(seed)
    vocabulary = ["".join(rng.choices(string.ascii_lowercase, k=rng.randint(1, 9))) for _ in range(5000)]
    references, hypotheses = [], []
    for _ in range(num_sentences):
        words = rng.choices(vocabulary, k=rng.randint(5, 40))
        heard: list[str] = []
        for word in words:
            if rng.random() >= error_rate:
                heard.append(word)
                continue
            kind = rng.random()  # three in five substitutions, one deletion, one insertion
            if kind < 0.6:
                heard.append(rng.choice(vocabulary))
            elif kind < 0.8:
                heard += [word, rng.choice(vocabulary)]
        references.append(" ".join(words))
        hypotheses.append(" ".join(heard))
    return references, hypotheses


def jiwer_words(references: Texts, hypotheses: Texts) -> list[ErrorCounts]:
    return [_jiwer_counts(jiwer.process_words(list(references), list(hypotheses)))]


def jiwer_words_and_characters(references: Texts, hypotheses: Texts) -> list[ErrorCounts]:
    characters = jiwer.process_characters(list(references), list(hypotheses))
    return [*jiwer_words(references, hypotheses), _jiwer_counts(characters)]


def _jiwer_counts(output: Any) -> ErrorCounts:
    return ErrorCounts(output.hits, output.substitutions, output.deletions, output.insertions)


def our_words(references: Texts, hypotheses: Texts) -> list[ErrorCounts]:
    return [total(count_words(references, hypotheses))]


def our_words_and_characters(references: Texts, hypotheses: Texts) -> list[ErrorCounts]:
    counted: Score = score(references, hypotheses)
    return [counted.word_total, counted.character_total]


def compare(
    ours: Callable[[Texts, Texts], list[ErrorCounts]],
    theirs: Callable[[Texts, Texts], list[ErrorCounts]],
    sentences: tuple[Texts, Texts],
    num_repeats: int,
) -> dict[str, Any]:
    """Time both sides turn about, after one unmeasured run each."""
    seconds: dict[str, list[float]] = {"ours": [], "jiwer": []}
    results: dict[str, list[ErrorCounts]] = {}
    for repeat in range(num_repeats + 1):
        for name, function in (("ours", ours), ("jiwer", theirs)):
            start = time.perf_counter()
            results[name] = function(*sentences)
            if repeat:
                seconds[name].append(time.perf_counter() - start)
    return {
        "seconds_median": {name: round(median(times), 4) for name, times in seconds.items()},
        "seconds_minimum": {name: round(min(times), 4) for name, times in seconds.items()},
        "times_jiwer": round(median(seconds["jiwer"]) / median(seconds["ours"]), 2),
        "identical_counts": results["ours"] == results["jiwer"],
        "rates": [round(counts.rate, 5) for counts in results["ours"]],
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--sentences", type=int, default=10_000)
    parser.add_argument("--error-rate", type=float, default=0.05)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    sentences = make_sentences(options.sentences, options.error_rate, options.seed)
    result = {
        "sentences": options.sentences,
        "error_rate": options.error_rate,
        "words": compare(our_words, jiwer_words, sentences, options.repeats),
        "words_and_characters": compare(
            our_words_and_characters, jiwer_words_and_characters, sentences, options.repeats
        ),
        "versions": {name: version(name) for name in ("jiwer", "rapidfuzz")}
        | {"python": platform.python_version()},
    }
    sys.stdout.write(json.dumps(result, indent=2) + "\n")
    identical = result["words"]["identical_counts"] and result["words_and_characters"]["identical_counts"]
    return 0 if identical else 1


if __name__ == "__main__":
    sys.exit(main())
