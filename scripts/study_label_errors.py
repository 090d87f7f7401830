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

import torch
from rich.console import Console
from rich.table import Table

from asr.checkpoint import load_recogniser
from asr.config import GreedyConfig
from asr.label_errors import find_label_errors
from asr.manifest import read_manifest, write_manifest
from asr.records import Utterance

SHARES = (0.03, 0.05, 0.1)
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


def count(folder: Path, run: str, second: str | None) -> Table:
    """Rank the damaged manifest, and count what was damaged among the first."""
    kinds: dict[str, str] = json.loads((folder / "damaged.json").read_text(encoding="utf-8"))
    utterances = read_manifest(folder / "damaged.jsonl")
    paths = [run, *([second] if second is not None else [])]
    recognisers = [load_recogniser(path, GreedyConfig(), torch.device("cpu")) for path in paths]
    found = find_label_errors(recognisers, utterances, max_batch_utterances=16, max_batch_seconds=240.0)
    ranked = [kinds.get(one.id) for one in found.suspects]
    table = Table(
        "damage", "utterances", *(f"top {share:.0%}" for share in SHARES), title=" and ".join(paths)
    )
    for kind in (*KINDS, "all"):
        wanted = {kind} if kind != "all" else set(KINDS)
        num_damaged = sum(one in wanted for one in kinds.values())
        heads = [ranked[: round(share * len(ranked))] for share in SHARES]
        table.add_row(
            kind,
            str(num_damaged),
            *(f"{sum(one in wanted for one in head) / num_damaged:.1%}" for head in heads),
        )
    return table


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    making = commands.add_parser(
        "damage", help="write damaged.jsonl, and damaged.json: what was done to which"
    )
    making.add_argument("manifest", type=Path)
    making.add_argument("--output", type=Path, required=True)
    making.add_argument("--share", type=float, default=0.03)
    making.add_argument("--seed", type=int, default=0)
    counting = commands.add_parser("count", help="how many of them are in the top of the ranking")
    counting.add_argument("folder", type=Path)
    counting.add_argument("checkpoint")
    counting.add_argument("--second")
    arguments = parser.parse_args()
    if arguments.command == "count":
        Console().print(count(arguments.folder, arguments.checkpoint, arguments.second))
        return 0
    damaged, kinds = damage(read_manifest(arguments.manifest), arguments.share, arguments.seed)
    write_manifest(arguments.output / "damaged.jsonl", damaged)
    (arguments.output / "damaged.json").write_text(json.dumps(kinds, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
