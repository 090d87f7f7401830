"""Whose speech a cross-validation on AN4 gets wrong, and the one published figure that is of the same recordings.

Women and men: a speaker's name in AN4 begins with f or m.

Published figures of AN4 are of CMU's test part, which a recipe is to meet once, at its end. But ESPnet also gives
the word error rate on its dev set, the first 100 of the 948 training recordings in the order of speaker and
recording: 591 words, all that eight women say (egs2/an4/asr1/local/data.sh). In a cross-validation over speakers
each of these recordings is held out once, so that both figures are of the same speech by unheard speakers. Not the
same are the training data: ESPnet trained on the 848 others and chose its weights on these 100; the folds trained
on some 760.

    python scripts/study_an4_speakers.py CV/cross_validation.json
"""

import argparse
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from asr.stats import rate_interval

# https://github.com/espnet/espnet/blob/ae4248130925a322e80198bacb0430bdb75c9e4e/egs2/an4/asr1/README.md:
# Transformer, CTC and attention, a beam of 10, beside the decoder that comes nearest.
ESPNET = {"greedy": 12.9, "beam + LM": 12.7}
_NUM_UTTERANCES, _NUM_WORDS = 100, 591


def espnet_dev(ids: Iterable[str]) -> set[str]:
    """The first 100 of ``recording-speaker-b`` in the order of ``speaker-recording-b``."""

    def by_speaker(name: str) -> str:
        recording, speaker, rest = name.split("-")
        return f"{speaker}-{recording}-{rest}"

    return set(sorted(ids, key=by_speaker)[:_NUM_UTTERANCES])


def rate(utterances: list[Mapping[str, Any]], decoder: str) -> str:
    """With its interval; speakers are the units."""
    errors = np.array([one["errors"][decoder] for one in utterances], np.float64)
    words = np.array([one["words"] for one in utterances], np.float64)
    interval = rate_interval(errors, words, groups=[one["speaker"] for one in utterances])
    bounds = f"{100 * interval.low:.1f}-{100 * interval.high:.1f}"
    return f"{100 * errors.sum() / words.sum():.1f} ({bounds})"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("cross_validation", type=Path, help="what scripts/cross_validate.py wrote")
    content = json.loads(parser.parse_args().cross_validation.read_text(encoding="utf-8"))
    utterances = content["utterances"]
    dev = espnet_dev(one["id"] for one in utterances)
    groups = {
        "women": [one for one in utterances if one["speaker"].startswith("f")],
        "men": [one for one in utterances if one["speaker"].startswith("m")],
        "ESPnet's dev set": [one for one in utterances if one["id"] in dev],
    }
    has_dev = sum(one["words"] for one in groups["ESPnet's dev set"]) == _NUM_WORDS
    if not has_dev:
        print(f"without ESPnet's dev set of {_NUM_WORDS} words: that takes all folds of AN4's training part")
        del groups["ESPnet's dev set"]
    decoders = list(utterances[0]["errors"])
    table = Table(title="AN4, held-out speakers: word error rate, % (95 % by speaker)")
    for column in ("", "speakers", "words", *decoders):
        table.add_column(column, justify="left" if column == "" else "right")
    for name, own in groups.items():
        if own:
            sizes = (len({one["speaker"] for one in own}), sum(one["words"] for one in own))
            table.add_row(name, *map(str, sizes), *(rate(own, decoder) for decoder in decoders))
    if has_dev:
        table.add_row(
            "there ESPnet, without and with its LM",
            "8",
            str(_NUM_WORDS),
            *(f"{ESPNET[decoder]:.1f}" if decoder in ESPNET else "" for decoder in decoders),
        )
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
