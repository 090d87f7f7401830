"""Which definition of a word's confidence says most about whether the word is right.

The same hypotheses of beam search, with and without a language model, and several definitions of the
confidence of their words, judged on a dev set by normalised cross-entropy and expected calibration error
(asr/calibration.py), as they are and after temperature scaling, cross-fitted over utterances:

- ``product``, ``minimum``, ``mean``: of the highest probabilities of the word's tokens, the emissions
  taken at several softmax temperatures;
- ``share``: the posterior share of the N best texts that have the word in the same place;
- ``share + w product``: ``(1 - w)`` of the share and ``w`` of the product; beam search uses w = 0.1.

    python scripts/study_confidence.py --checkpoint RUN --manifest data/an4/dev.jsonl --arpa lm.arpa

``--output`` writes the same as JSON.
"""

import argparse
import json
import math
import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from asr.build import make_decoder
from asr.calibration import ConfidenceReport, fit, judge
from asr.checkpoint import load_recogniser, resolve
from asr.config import BeamConfig, BeamLmConfig, GreedyConfig
from asr.dataset import load_utterance
from asr.decode.beam import BeamDecoder
from asr.decode.confidence import NUM_RIVALS, Rival, word_shares
from asr.decode.token_times import token_times
from asr.manifest import read_manifest
from asr.records import Word
from asr.tokenizer import Tokenizer

TEMPERATURES = (1.0, 2.0)
PRODUCT_WEIGHTS = (0.05, 0.1, 0.2, 0.3, 0.5)
OF_TOKENS: dict[str, Callable[[Sequence[float]], float]] = {
    "product": math.prod,
    "minimum": min,
    "mean": statistics.fmean,
}


def of_tokens(
    tokenizer: Tokenizer, log_probs: NDArray[np.float32], token_ids: Sequence[int]
) -> dict[str, list[float]]:
    """Confidences of the words of a labelling that look at their own tokens alone."""
    groups = tokenizer.word_groups(token_ids)
    found = {}
    for temperature in TEMPERATURES:
        softened = torch.from_numpy(log_probs / temperature).log_softmax(-1).numpy()
        peaks = token_times(softened, token_ids, tokenizer.blank_id).peaks.tolist()
        for name, combine in OF_TOKENS.items():
            label = name if temperature == 1.0 else f"{name}, softmax temperature {temperature:g}"
            found[label] = [combine(peaks[group.first : group.last + 1]) for group in groups]
    return found


def definitions(
    decoder: BeamDecoder, log_probs: NDArray[np.float32]
) -> tuple[list[str], dict[str, list[float]]]:
    """The words of the best labelling of ``log_probs`` ``(frames, vocab)`` and their confidences by definition."""
    tokenizer = decoder.tokenizer
    labellings = decoder.search(log_probs, NUM_RIVALS)
    rivals = [Rival(tokenizer.decode(one.token_ids).split(), one.score) for one in labellings]
    words = list(rivals[0].words)
    found = of_tokens(tokenizer, log_probs, labellings[0].token_ids)
    shares = word_shares(words, rivals)
    found["share"] = shares
    for weight in PRODUCT_WEIGHTS:
        found[f"share + {weight:g} product"] = [
            (1 - weight) * share + weight * product
            for share, product in zip(shares, found["product"], strict=True)
        ]
    return words, found


def study(
    decoder: BeamDecoder, emissions: Sequence[NDArray[np.float32]], references: Sequence[str]
) -> dict[str, ConfidenceReport]:
    """Each definition, judged."""
    words: dict[str, list[list[Word]]] = {}
    for log_probs in emissions:
        texts, confidences = definitions(decoder, log_probs)
        for name, values in confidences.items():
            words.setdefault(name, []).append(
                [Word(text, 0.0, 0.0, value) for text, value in zip(texts, values, strict=True)]
            )
    return {name: fit(judge(hypotheses, references)) for name, hypotheses in words.items()}


def table(title: str, found: dict[str, ConfidenceReport]) -> Table:
    first = next(iter(found.values()))
    shown = Table(title=f"{title}: {first.num_words} words, {first.num_words - first.num_correct} wrong")
    shown.add_column("confidence")
    for name in ("NCE", "ECE, %", "NCE calibrated", "ECE calibrated, %", "temperature"):
        shown.add_column(name, justify="right")
    for name, report in found.items():
        after = report.calibrated
        assert after is not None
        before = report.uncalibrated
        figures = (before.nce, 100 * before.ece, after.nce, 100 * after.ece, report.temperature or 1.0)
        shown.add_row(
            name, *(f"{value:.{digits}f}" for value, digits in zip(figures, (3, 1, 3, 1, 2), strict=True))
        )
    return shown


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checkpoint", type=Path, required=True, help="a run directory or a checkpoint")
    parser.add_argument("--manifest", type=Path, required=True, help="its dev set")
    parser.add_argument("--arpa", type=Path, help="word n-gram model for beam_lm")
    parser.add_argument("--output", type=Path, help="JSON file")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    recogniser = load_recogniser(resolve(arguments.checkpoint), GreedyConfig(), torch.device("cpu"))
    utterances = read_manifest(arguments.manifest)
    emissions = [
        recogniser.emissions([load_utterance(one, recogniser.sample_rate)]).log_probs[0].numpy()
        for one in utterances
    ]
    references = [recogniser.normalise(one.text) for one in utterances]
    configs = {"beam": BeamConfig()}
    if arguments.arpa is not None:
        configs["beam_lm"] = BeamLmConfig(lm=str(arguments.arpa))
    results = {}
    for name, config in configs.items():
        decoder = make_decoder(config, recogniser.tokenizer, recogniser.acoustic_model.seconds_per_frame)
        assert isinstance(decoder, BeamDecoder)
        results[name] = study(decoder, emissions, references)
        Console(width=110).print(table(name, results[name]))
    if arguments.output is not None:
        plain = {
            name: {
                definition: {
                    "nce": report.uncalibrated.nce,
                    "ece": report.uncalibrated.ece,
                    "nce_calibrated": report.calibrated and report.calibrated.nce,
                    "ece_calibrated": report.calibrated and report.calibrated.ece,
                    "temperature": report.temperature,
                }
                for definition, report in found.items()
            }
            for name, found in results.items()
        }
        arguments.output.write_text(json.dumps(plain, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
