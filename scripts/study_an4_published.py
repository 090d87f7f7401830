"""A cross-validation on AN4 beside the one published figure that is of the same recordings.

Published figures of AN4 are of CMU's test part, which a recipe is to meet once, at its end. But ESPnet also gives
the word error rate on its dev set, the first 100 of the 948 training recordings in the order of speaker and
recording: 591 words, all that eight women say (egs2/an4/asr1/local/data.sh). In a cross-validation over speakers
each of these recordings is held out once, so that both figures are of the same speech by unheard speakers. Not the
same are the training data: ESPnet trained on the 848 others and chose its weights on these 100; the folds trained
on some 760.

    python scripts/study_an4_published.py CV/cross_validation.json
"""

import argparse
import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from asr.stats import rate_interval

# https://github.com/espnet/espnet/blob/ae4248130925a322e80198bacb0430bdb75c9e4e/egs2/an4/asr1/README.md
PUBLISHED = {
    "ESPnet2 (0.10.5a1) Transformer, CTC and attention, beam of 10": (12.9, 7.6),
    "the same with its language model": (12.7, 7.4),
}
_NUM_UTTERANCES, _NUM_WORDS = 100, 591


def espnet_dev(ids: Iterable[str]) -> set[str]:
    """The first 100 of ``recording-speaker-b`` in the order of ``speaker-recording-b``."""

    def by_speaker(name: str) -> str:
        recording, speaker, rest = name.split("-")
        return f"{speaker}-{recording}-{rest}"

    return set(sorted(ids, key=by_speaker)[:_NUM_UTTERANCES])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("cross_validation", type=Path, help="what scripts/cross_validate.py wrote, all folds")
    content = json.loads(parser.parse_args().cross_validation.read_text(encoding="utf-8"))
    names = espnet_dev(one["id"] for one in content["utterances"])
    utterances = [one for one in content["utterances"] if one["id"] in names]
    words = np.array([one["words"] for one in utterances], np.float64)
    if words.sum() != _NUM_WORDS:
        raise SystemExit(
            f"{len(utterances)} recordings of {words.sum():.0f} words are not ESPnet's dev set of "
            f"{_NUM_UTTERANCES} and {_NUM_WORDS}: all folds of AN4's training part are needed"
        )
    table = Table(title="AN4, word error rate, %")
    for column in ("", "ESPnet's dev set", "95 %, by speaker", "test"):
        table.add_column(column, justify="left" if column == "" else "right")
    for name, (dev, test) in PUBLISHED.items():
        table.add_row(name, f"{dev:.1f}", "", f"{test:.1f}")
    speakers = [one["speaker"] for one in utterances]
    for decoder in utterances[0]["errors"]:
        errors = np.array([one["errors"][decoder] for one in utterances], np.float64)
        interval = rate_interval(errors, words, groups=speakers)
        bounds = f"{100 * interval.low:.1f}-{100 * interval.high:.1f}"
        table.add_row(f"held out, {decoder}", f"{100 * errors.sum() / words.sum():.1f}", bounds, "not run")
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
