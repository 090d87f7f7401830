"""How far the word times of every decoder are from forced alignment of the true text, and from the truth.

The model aligns the texts of a manifest with its own emissions (Viterbi, asr/ctc/align.py), and the spikes
become word times by the rule that decoders use (``words_from_tokens``). Both are compared with the times
of correct words, and the alignment, with and without that rule, with true times where the manifest knows
them (the synthetic corpus does).

    python scripts/bench_times.py --checkpoint RUN --manifest data/demo/dev.jsonl --arpa RUN/words.arpa

Mean absolute distances in milliseconds; ``late`` is the mean, positive where we are late. ``--output``
writes the same as JSON.
"""

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

from asr.build import make_decoder
from asr.checkpoint import load_recogniser, resolve
from asr.config import BeamConfig, BeamLmConfig, DecoderConfig, FlashlightConfig, GreedyConfig
from asr.ctc.align import AlignmentError, TokenSpan, forced_align, word_spans
from asr.dataset import load_utterance
from asr.decode.decoder import words_from_tokens
from asr.manifest import read_manifest
from asr.recogniser import Recogniser, normalised
from asr.records import Emissions, Hypothesis, Word
from asr.report.word_times import WordTimes, compare_times

Words = Sequence[Word]


def aligned_words(recogniser: Recogniser, emissions: Emissions, text: str) -> tuple[Words, Words]:
    """Words of the true text: from spike to spike, and as decoders would time the same spikes.

    Raises:
        AlignmentError: the audio is too short for the text.
    """
    tokenizer = recogniser.tokenizer
    seconds_per_frame = recogniser.acoustic_model.seconds_per_frame
    labels = tokenizer.encode(text)
    spans = forced_align(emissions.log_probs[0], labels, blank=tokenizer.blank_id).token_spans()
    timed = words_from_tokens(
        tokenizer,
        labels,
        [span.start_frame for span in spans],
        [span.end_frame - 1 for span in spans],
        [span.score for span in spans],
        seconds_per_frame,
        emissions.log_probs.shape[1],
    )
    spelt = Hypothesis(tuple(labels), tokenizer.decode(labels), 0.0, words=timed)
    return bare_words(recogniser, spans), normalised(spelt, recogniser.normalise).words


def bare_words(recogniser: Recogniser, spans: Sequence[TokenSpan]) -> list[Word]:
    """From the first frame of a word's first token to the last frame of its last one."""
    seconds_per_frame = recogniser.acoustic_model.seconds_per_frame
    return [
        Word(
            recogniser.normalise(span.text),
            span.start_frame * seconds_per_frame,
            span.end_frame * seconds_per_frame,
            span.score,
        )
        for span in word_spans(spans, vocabulary=recogniser.tokenizer.tokens)
    ]


def as_truth(words: Words) -> list[list[str | float]]:
    return [[word.text, word.start_seconds, word.end_seconds] for word in words]


def decoders_of(arpa: Path | None) -> dict[str, DecoderConfig]:
    decoders: dict[str, DecoderConfig] = {"greedy": GreedyConfig(), "beam": BeamConfig()}
    if arpa is not None:
        decoders["beam_lm"] = BeamLmConfig(lm=str(arpa))
        if find_spec("flashlight"):
            decoders["flashlight"] = FlashlightConfig(lm=str(arpa))
    return decoders


def measure(checkpoint: Path, manifest: Path, arpa: Path | None) -> dict[str, dict[str, WordTimes | None]]:
    """By whose times are judged, the distances from each reference."""
    recogniser = load_recogniser(resolve(checkpoint), GreedyConfig(), torch.device("cpu"))
    seconds_per_frame = recogniser.acoustic_model.seconds_per_frame
    recognisers = {
        name: dataclasses.replace(
            recogniser, decoder=make_decoder(config, recogniser.tokenizer, seconds_per_frame)
        )
        for name, config in decoders_of(arpa).items()
    }
    found: dict[str, list[Words]] = {
        name: [] for name in ("alignment, bare spikes", "alignment", *recognisers)
    }
    truths = []
    utterances = read_manifest(manifest)
    for utterance in track(utterances, "recognising", console=Console(stderr=True), transient=True):
        emissions = recogniser.emissions([load_utterance(utterance, recogniser.sample_rate)])
        try:
            bare, timed = aligned_words(recogniser, emissions, recogniser.normalise(utterance.text))
        except AlignmentError as error:
            sys.stderr.write(f"{utterance.id} is left out: {error}\n")
            continue
        found["alignment, bare spikes"].append(bare)
        found["alignment"].append(timed)
        for name, one in recognisers.items():
            found[name].append(one.hypotheses(emissions)[0].words)
        truths.append(utterance.extra.get("words"))
    alignments = [as_truth(words) for words in found["alignment"]]
    results = {}
    for name, words in found.items():
        results[name] = {
            "forced alignment": compare_times(words, alignments) if name in recognisers else None,
            "true times": compare_times(words, truths),
        }
    return results


def table(results: dict[str, dict[str, WordTimes | None]]) -> Table:
    shown = Table(title="Mean absolute distance of correct words, ms")
    for name in ("times of", "from", "words", "starts", "ends", "starts late", "ends late", "90 % within"):
        shown.add_column(name, justify="left" if name in {"times of", "from"} else "right")
    for name, references in results.items():
        for reference, times in references.items():
            if times is not None:
                seconds = (
                    times.start_error_seconds,
                    times.end_error_seconds,
                    times.start_bias_seconds,
                    times.end_bias_seconds,
                    times.p90_error_seconds,
                )
                figures = [f"{1000 * value:.1f}" for value in seconds]
                shown.add_row(name, reference, str(times.num_words), *figures)
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
    results = measure(arguments.checkpoint, arguments.manifest, arguments.arpa)
    Console(width=110).print(table(results))
    if arguments.output is not None:
        plain = {
            name: {
                of: None if times is None else dataclasses.asdict(times) for of, times in references.items()
            }
            for name, references in results.items()
        }
        arguments.output.write_text(json.dumps(plain, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
