"""Language models: time to estimate, parse, map and query; against KenLM where it is at hand.

    python scripts/bench_lm.py text=TEXT [dev=TEXT] [order=3] [kenlm=FOLDER]   estimation, from real text
    python scripts/bench_lm.py text=TEXT held_out=20 [order=3] [kenlm=FOLDER]   every 20th sentence held out
    python scripts/bench_lm.py num_ngrams=5000000                              loading and queries, made up

Sentences that are evaluated are left out of the text. KenLM's programs lmplz and query are taken from the
folder ``kenlm``, else from the PATH. With lmplz both estimate from the same text, turn about; the models must
hold the same n-grams, and the greatest difference is shown. With evaluated sentences the perplexities
stand side by side: asr.lm's model by asr.lm, and lmplz's by query. When the ``kenlm`` package is
importable, the scores of each word are compared too. Seconds are processor time of this
process (of the child process, for lmplz), so a busy machine disturbs them less.
"""

import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numba
import numpy as np

from asr.decode import ngram
from asr.decode.arpa import NgramBlock, read_arpa, write_arpa
from asr.decode.estimate import estimate
from asr.decode.ngram import NgramModel
from asr.text import normalise

NUM_REPEATS = 3


def cpu_seconds(task: Callable[[], Any], children: bool = False) -> tuple[Any, float]:
    def now() -> float:
        usage = resource.getrusage(resource.RUSAGE_CHILDREN if children else resource.RUSAGE_SELF)
        return usage.ru_utime + usage.ru_stime

    begin = now()
    result = task()
    return result, now() - begin


def memory_mib(kind: str) -> float:
    """Of this process: ``RssAnon``, what no file backs, or ``VmHWM``, the most it has had."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(f"{kind}:"))


def sentences(path: Path) -> list[list[str]]:
    lines = (normalise(line).split() for line in path.read_text("utf-8").splitlines())
    return [words for words in lines if words]


def bench_estimation(
    text: Path, dev: Path | None, held_out: int, order: int, kenlm: str | None, folder: Path
) -> dict[str, Any]:
    lmplz, query = (shutil.which(name, path=kenlm) for name in ("lmplz", "query"))
    if kenlm is not None and (lmplz is None or query is None):
        raise SystemExit(f"kenlm={kenlm}: no programs lmplz and query there")
    everything = sentences(text)
    evaluation = sentences(dev) if dev else everything[held_out - 1 :: held_out] if held_out else []
    excluded = {tuple(words) for words in evaluation}
    training = [words for words in everything if tuple(words) not in excluded]
    plain = folder / "text.txt"
    plain.write_text("".join(" ".join(words) + "\n" for words in training))
    ours, theirs = folder / "ours.arpa", folder / "theirs.arpa"
    command = [str(lmplz), "-o", str(order), "-S", "1G", "-T", str(folder), "--discount_fallback"]

    def run_ours() -> Any:
        return estimate(training, ours, order=order)

    def run_lmplz() -> None:
        with plain.open() as source, theirs.open("w") as target:
            subprocess.run(command, stdin=source, stdout=target, stderr=subprocess.DEVNULL, check=True)

    seconds: dict[str, list[float]] = {"first call": [cpu_seconds(run_ours)[1]], "asr.lm": []}
    for _ in range(NUM_REPEATS):
        summary, spent = cpu_seconds(run_ours)
        seconds["asr.lm"].append(spent)
        if lmplz:
            seconds.setdefault("lmplz", []).append(cpu_seconds(run_lmplz, children=True)[1])
    result: dict[str, Any] = {
        "num_sentences": summary.num_sentences,
        "num_tokens": summary.num_tokens,
        "num_ngrams": [level.num_kept for level in summary.orders],
        "cpu_seconds_median": {name: round(float(np.median(values)), 3) for name, values in seconds.items()},
    }
    if evaluation:
        result["perplexity"] = {"asr.lm": NgramModel.load(ours, cache=False).perplexity(evaluation)._asdict()}
    if lmplz:
        result["against lmplz"] = compare(as_table(ours), as_table(theirs))
        if evaluation:
            other = NgramModel.load(theirs, cache=False)
            if query:
                result["perplexity"]["lmplz and query"] = kenlm_perplexity(query, theirs, evaluation)
            result |= against_kenlm_queries(other, theirs, evaluation)
    return result


def kenlm_perplexity(query: str, arpa: Path, evaluation: Sequence[Sequence[str]]) -> dict[str, float]:
    text = "".join(" ".join(words) + "\n" for words in evaluation)
    done = subprocess.run(
        [query, "-v", "summary", str(arpa)], input=text, capture_output=True, text=True, check=True
    )
    figures = dict(line.split(":\t") for line in done.stdout.splitlines() if ":\t" in line)
    return {
        "including_unknown": float(figures["Perplexity including OOVs"]),
        "excluding_unknown": float(figures["Perplexity excluding OOVs"]),
        "num_tokens": int(figures["Tokens"]),
        "num_unknown": int(figures["OOVs"]),
    }


def as_table(path: Path) -> dict[tuple[str, ...], tuple[float, float]]:
    arpa = read_arpa(path)
    return {
        tuple(arpa.words[word_id] for word_id in word_ids): (log10_prob, backoff)
        for order in arpa.orders
        for word_ids, log10_prob, backoff in zip(*(column.tolist() for column in order), strict=True)
    }


def compare(ours: dict[Any, tuple[float, float]], theirs: dict[Any, tuple[float, float]]) -> dict[str, Any]:
    common = ours.keys() & theirs.keys()
    differences = np.array([np.subtract(ours[key], theirs[key]) for key in common])
    return {
        "same n-grams": ours.keys() == theirs.keys(),
        "greatest difference, log10": {
            "probability": float(np.abs(differences[:, 0]).max()),
            "back-off": float(np.abs(differences[:, 1]).max()),
        },
    }


def against_kenlm_queries(
    model: NgramModel, path: Path, evaluation: Sequence[Sequence[str]]
) -> dict[str, Any]:
    try:
        import kenlm
    except ImportError:
        return {}
    reference = kenlm.Model(str(path))
    worst = 0.0
    for words in evaluation:
        expected = [log10_prob for log10_prob, _, _ in reference.full_scores(" ".join(words))]
        worst = max(
            worst, float(np.abs(np.subtract(model.score_sentence(words).token_log10_probs, expected)).max())
        )
    return {"greatest difference of a word's score from KenLM's, log10": worst}


def make_model(path: Path, num_ngrams: int, seed: int) -> None:
    """A 3-gram model with a vocabulary and contexts of realistic sizes; its numbers mean nothing."""
    rng = np.random.default_rng(seed)
    num_words = max(100, num_ngrams // 50)
    words = ["<unk>", "<s>", "</s>", *(f"word{number}" for number in range(num_words - 3))]
    ids = [np.arange(num_words)[:, None]]
    for share in (0.35, 0.63):
        contexts = ids[-1][(len(ids[-1]) * rng.random(int(num_ngrams * share)) ** 3).astype(int)]
        following = (num_words * rng.random(len(contexts)) ** 3).astype(int)
        ids.append(np.unique(np.column_stack([contexts, following]), axis=0))
    blocks = []
    for order_ids in ids:
        probs, backoffs = -5 * rng.random((2, len(order_ids)))
        blocks.append(
            NgramBlock(order_ids.astype(np.int32), probs.astype(np.float32), backoffs.astype(np.float32))
        )
    write_arpa(path, words, [len(block.word_ids) for block in blocks], [[block] for block in blocks])


@numba.njit
def _query(tables, state, word_ids):
    total = 0.0
    for word_id in word_ids:
        log10_prob, state = ngram.score(tables, state, word_id)
        total += log10_prob
    return total


def bench_queries(num_ngrams: int, folder: Path) -> dict[str, Any]:
    path = folder / "big.arpa"
    make_model(path, num_ngrams, seed=0)
    in_subprocess = [sys.executable, __file__]
    parsed = json.loads(subprocess.check_output([*in_subprocess, f"load={path}"]))
    mapped = [
        json.loads(subprocess.check_output([*in_subprocess, f"load={path}"])) for _ in range(NUM_REPEATS)
    ]
    model = NgramModel.load(path)
    rng = np.random.default_rng(1)
    word_ids = (len(model.vocabulary) * rng.random(1_000_000) ** 3).astype(np.int64)
    _query(model.tables, model.start_state, word_ids)
    spent = [
        cpu_seconds(lambda: _query(model.tables, model.start_state, word_ids))[1] for _ in range(NUM_REPEATS)
    ]
    return {
        "num_ngrams": model.num_ngrams,
        "arpa_mib": round(path.stat().st_size / 2**20, 1),
        "copy_mib": round(path.with_name(path.name + ".cache").stat().st_size / 2**20, 1),
        "first load, which parses": parsed,
        "later load, which maps": mapped[-1],
        "nanoseconds per query in compiled code": round(1e9 * float(np.median(spent)) / len(word_ids)),
    }


def load_alone(path: Path) -> dict[str, float]:
    """In a process of its own: time and memory of one load, and of the first score after it."""
    before = memory_mib("RssAnon")
    begin = time.perf_counter()
    model, spent = cpu_seconds(lambda: NgramModel.load(path))
    wall = time.perf_counter() - begin
    _, first = cpu_seconds(lambda: model.score_sentence(["word1", "word2"]))
    return {
        "cpu_seconds": round(spent, 3),
        "wall_seconds": round(wall, 3),
        "first_score_cpu_seconds": round(first, 3),
        "memory_mib": round(memory_mib("RssAnon") - before, 1),
        "peak_mib": round(memory_mib("VmHWM"), 1),
    }


def main() -> int:
    options = dict(argument.split("=", 1) for argument in sys.argv[1:])
    known = {"text", "dev", "held_out", "order", "kenlm", "num_ngrams", "load"}
    if not options or not options.keys() <= known:
        sys.stderr.write(f"{__doc__}\n")
        return 2
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    result: dict[str, Any]
    with tempfile.TemporaryDirectory() as folder:
        if "load" in options:
            result = load_alone(Path(options["load"]))
        elif "text" in options:
            result = bench_estimation(
                Path(options["text"]),
                Path(options["dev"]) if "dev" in options else None,
                int(options.get("held_out", "0")),
                int(options.get("order", "3")),
                options.get("kenlm"),
                Path(folder),
            )
        else:
            result = bench_queries(int(options["num_ngrams"]), Path(folder))
    sys.stdout.write(json.dumps(result, indent=2) + "\n")
    return 0 if result.get("against lmplz", {}).get("same n-grams", True) else 1


if __name__ == "__main__":
    sys.exit(main())
