"""How many of the transcripts that were damaged on purpose does ``label_errors=true`` find?

Damages a share of a training manifest's transcripts (each kind equally often: exchanged with another
utterance's, a word deleted, replaced, inserted), ranks the damaged manifest with a checkpoint, and counts
the damaged ones by kind in the top of the ranking.

    python scripts/study_label_errors.py damage data/demo/train.jsonl --output study
    python -m asr.train experiment=demo data.train=study/damaged.jsonl run_dir=study/run
    python scripts/study_label_errors.py count study study/run
    python scripts/study_label_errors.py count study study/run --second other/run
"""

import argparse
import json
import random
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from asr.manifest import read_manifest, write_manifest
from asr.records import Utterance

KINDS = ("exchanged", "deleted", "replaced", "inserted")


def damage(
    utterances: Sequence[Utterance], share: float, seed: int
) -> tuple[list[Utterance], dict[str, str]]:
    """``utterances`` with wrong transcripts among them, and the kind of damage by id."""
    chance = random.Random(seed)
    words = sorted({word for utterance in utterances for word in utterance.text.split()})
    texts = [utterance.text for utterance in utterances]
    several_words = [index for index, text in enumerate(texts) if len(text.split()) > 1]
    chosen = chance.sample(several_words, round(share * len(texts)))
    kinds = {index: KINDS[number % len(KINDS)] for number, index in enumerate(chosen)}
    exchanged = [index for index in chosen if kinds[index] == "exchanged"]
    for index, other in zip(exchanged, [*exchanged[1:], exchanged[0]], strict=True):
        texts[index] = utterances[other].text
    for index in chosen:
        if kinds[index] != "exchanged":
            texts[index] = _with_error(texts[index].split(), kinds[index], words, chance)
    damaged = [replace(utterance, text=text) for utterance, text in zip(utterances, texts, strict=True)]
    return damaged, {
        utterances[index].id: kinds[index] for index in chosen if texts[index] != utterances[index].text
    }


def _with_error(spoken: list[str], kind: str, vocabulary: Sequence[str], chance: random.Random) -> str:
    place = chance.randrange(len(spoken))
    other = chance.choice([word for word in vocabulary if word != spoken[place]])
    inside = {"deleted": [], "replaced": [other], "inserted": [other, spoken[place]]}[kind]
    return " ".join([*spoken[:place], *inside, *spoken[place + 1 :]])


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    making = commands.add_parser("damage")
    making.add_argument("manifest", type=Path)
    making.add_argument("--output", type=Path, required=True)
    making.add_argument("--share", type=float, default=0.03)
    making.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    damaged, kinds = damage(read_manifest(arguments.manifest), arguments.share, arguments.seed)
    write_manifest(arguments.output / "damaged.jsonl", damaged)
    (arguments.output / "damaged.json").write_text(json.dumps(kinds, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
