"""How often do the tests of ``asr.compare`` claim a difference where there is none, and find one that is there?

Simulates test sets of two systems that make errors in the same hard utterances. ``factor`` is how many
times as many errors the second one makes: 1 is no difference, and the share of claims must be near 5 %.

    python scripts/study_comparison.py --sets 2000
"""

import argparse
import sys

import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

from asr.stats import SegmentErrors, compare_groups, compare_paired, matched_pairs_test, mcnemar_test

SETTINGS = [  # runs of each, utterances, factor, luck of a seed (log standard deviation)
    (1, 50, 1.0, 0.0),
    (1, 120, 1.0, 0.0),
    (1, 500, 1.0, 0.0),
    (1, 500, 1.2, 0.0),
    (2, 200, 1.0, 0.1),
    (3, 200, 1.0, 0.1),
    (5, 200, 1.0, 0.1),
    (2, 200, 1.0, 0.4),
    (3, 200, 1.0, 0.4),
    (5, 200, 1.0, 0.4),
    (3, 200, 1.0, 0.0),
    (5, 500, 1.2, 0.1),
]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sets", type=int, default=1000)
    parser.add_argument("--resamples", type=int, default=1000)
    arguments = parser.parse_args()
    headings = (
        "runs",
        "utterances",
        "factor",
        "seed luck",
        "claimed",
        "paired p",
        "MAPSSWE",
        "McNemar",
        "one run",
    )
    table = Table(*headings, title=f"Share of {arguments.sets} sets with a claim at 5 %")
    for setting in track(SETTINGS, transient=True):
        shares = claims(*setting, arguments.sets, arguments.resamples)
        table.add_row(
            *map(str, setting), *(f"{100 * share:.1f} %" if share is not None else "" for share in shares)
        )
    Console().print(table)
    return 0


def claims(
    num_runs: int, num_utterances: int, factor: float, luck: float, num_sets: int, num_resamples: int
) -> list[float | None]:
    """Shares of sets in which each test finds a difference; the last one looks at a single run of each."""
    rng = np.random.default_rng(0)
    found = np.zeros(5)
    for seed in range(num_sets):
        lengths = rng.integers(1, 12, num_utterances)
        difficulty = rng.beta(0.3, 6, num_utterances)
        rates = np.exp(luck * rng.standard_normal((2 * num_runs, 1))) * difficulty
        rates[num_runs:] *= factor
        errors = rng.binomial(lengths, np.minimum(1, rates))
        a, b = errors[:num_runs], errors[num_runs:]
        compared = compare_groups(a, b, lengths, num_resamples=num_resamples, seed=seed).comparison
        pairs = [SegmentErrors(int(one), int(other)) for one, other in zip(a[0], b[0], strict=True)]
        single = compare_paired(a[0], b[0], lengths, num_resamples=num_resamples, seed=seed)
        found += [
            compared.is_supported,
            compared.p_value < 0.05,
            matched_pairs_test(pairs).p_value < 0.05,
            mcnemar_test((a[0] == 0).tolist(), (b[0] == 0).tolist()).p_value < 0.05,
            single.is_supported,
        ]
    shares = (found / num_sets).tolist()
    return [*shares[:2], None, None, shares[4]] if num_runs > 1 else [*shares[:4], None]


if __name__ == "__main__":
    sys.exit(main())
