"""How large report.html is and how fast a browser opens it, for a synthetic evaluation of 5000 utterances.

Needs a Chromium on the PATH for the times; without one only the size is measured.

    python scripts/bench_report.py
    python scripts/bench_report.py --utterances 20000 --audio-mib 4
"""

import argparse
import json
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from chromium import Browser, find_chromium  # noqa: E402

from asr.attribution import Attribution, ErrorRegion, TextScore  # noqa: E402
from asr.records import Hypothesis, Utterance, Word  # noqa: E402
from asr.report.examination import Examination, Picture, encode_sound  # noqa: E402
from asr.report.json_report import EvaluationReport, build_report  # noqa: E402
from asr.report.page import write_page  # noqa: E402

READY = "document.querySelectorAll('#list > li').length"
SEARCH = (
    "(() => { const box = document.getElementById('search'); const begun = performance.now(); box.value = 'word7'; "
    "box.dispatchEvent(new Event('input')); document.body.offsetHeight; return performance.now() - begun; })()"
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--utterances", type=int, default=5000)
    parser.add_argument("--words", type=int, default=12, help="words per utterance")
    parser.add_argument("--pictures", type=int, default=40)
    parser.add_argument("--audio-mib", type=float, default=4.0)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path, help="write the figures here too")
    options = parser.parse_args()
    random = np.random.default_rng(0)
    report = synthetic_report(options.utterances, options.words, random)
    examination = synthetic_examination(report, options.pictures, options.audio_mib, random)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        path = Path(folder) / "report.html"
        started = time.perf_counter()
        write_page(report, path, examination)
        figures = {
            "utterances": options.utterances,
            "write_seconds": time.perf_counter() - started,
            "size_mb": path.stat().st_size / 1e6,
        }
        if find_chromium() is None:
            sys.stderr.write("no Chromium on the PATH: only the size is measured\n")
        else:
            figures |= measure(path, Path(folder) / "profile", options.repeats)
    for name, value in figures.items():
        sys.stdout.write(f"{name:28} {value:10.2f}\n")
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    return 0


def measure(path: Path, profile: Path, repeats: int) -> dict[str, float]:
    """Until the list is on the page, and until a search has been answered: the median of some repeats."""
    opening, searching = [], []
    with Browser(profile) as browser:
        browser.resize(1200, 900)
        for _ in range(repeats):
            browser.open(Path("/dev/null"))
            started = time.perf_counter()
            browser.open(path)
            assert browser.run(READY) > 0
            opening.append(time.perf_counter() - started)
            searching.append(browser.run(SEARCH))
        assert not browser.problems, browser.problems
    return {
        "open_seconds_median": float(np.median(opening)),
        "open_seconds_worst": max(opening),
        "search_ms_median": float(np.median(searching)),
    }


def synthetic_report(num_utterances: int, num_words: int, random: np.random.Generator) -> EvaluationReport:
    """Half of the utterances have errors, each with its cause and all words with times."""
    utterances, hypotheses = [], []
    for index in range(num_utterances):
        words = [f"word{number}" for number in random.integers(0, 2000, num_words)]
        heard = list(words)
        if index % 2:
            heard[index % num_words] = "other"
            del heard[(index + 3) % num_words]
        utterances.append(
            Utterance(
                f"utterance-{index:06d}", Path(f"audio/{index}.flac"), 4.0, " ".join(words), f"s{index % 50}"
            )
        )
        times = tuple(Word(word, 0.3 * k, 0.3 * k + 0.25, 0.9) for k, word in enumerate(heard))
        tokens = tuple(random.integers(1, 28, 6 * len(heard)).tolist())
        hypotheses.append(Hypothesis(tokens, " ".join(heard), -7.0, words=times))
    report = build_report(utterances, hypotheses, decode_seconds=100.0)
    region = ErrorRegion("word1", "other", "acoustic_model", -3.0, 0.0)
    blame = Attribution("acoustic_model", "", TextScore(-9.0, 0.0), TextScore(-3.0, 0.0), (region, region))
    results = [
        replace(result, attribution=blame if result.counts.num_errors else None)
        for result in report.utterances
    ]
    return replace(report, utterances=tuple(results))


def synthetic_examination(
    report: EvaluationReport, num_pictures: int, audio_mib: float, random: np.random.Generator
) -> Examination:
    """Noise, which compresses worse than speech."""
    picture = Picture(
        random.integers(0, 256, (80, 400), dtype=np.uint8),
        0.01,
        random.integers(0, 256, (30, 100), dtype=np.uint8),
        0.04,
        tuple("abcdefghijklmnopqrstuvwxyz '-–"),
        (),
    )
    sound = encode_sound(0.1 * random.standard_normal(64_000).astype(np.float32), 16_000)
    num_sounds = min(len(report.utterances), int(audio_mib * 2**20 / len(sound.data)))
    return Examination(
        {}, dict.fromkeys(range(num_pictures), picture), dict.fromkeys(range(num_sounds), sound)
    )


if __name__ == "__main__":
    sys.exit(main())
