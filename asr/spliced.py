"""A prepared corpus with more training utterances, spliced from its own; see :mod:`asr.corpora.splicing`.

A model says where the words are: forced alignment of the transcripts, cut at the quietest place between the
last label of a word and the first of the next. A rough model is good enough for that.
"""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import torch

from asr.checkpoint import load_recogniser
from asr.config import GreedyConfig
from asr.corpora.collect import SPLITS, PreparedCorpus, Progress
from asr.corpora.splicing import CutUtterance, is_spliced, quietest_sample, splice
from asr.corpora.written import manifest_path, remove_written
from asr.ctc.align import AlignmentError, WordSpan, forced_align, word_spans
from asr.dataset import Example, select_readable
from asr.errors import AudioError, ConfigError, ManifestError, TextError
from asr.manifest import read_manifest
from asr.pipeline import Recognised, recognise_examples
from asr.recogniser import Recogniser
from asr.records import Utterance

_MAX_BATCH_UTTERANCES = 16
_MAX_BATCH_SECONDS = 240.0
_MAX_IDS_SHOWN = 3


def prepare(
    source: Path,
    output: Path,
    *,
    checkpoint: str | None = None,
    num_utterances: int | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> PreparedCorpus:
    """All splits of the prepared corpus ``source``; train has ``num_utterances`` (None: as many again) spliced ones.

    Audio goes to ``output``/audio. What cannot be cut stays as it is, and a note names it.

    Raises:
        ConfigError: no checkpoint, or no utterances wanted.
        ManifestError: no train manifest, nothing in it can be cut or it is spliced already, ``output`` is
            ``source`` or cannot be written.
    """
    if checkpoint is None:
        raise ConfigError("corpus=spliced needs checkpoint=: a model that can find the words, a run or .ckpt")
    manifests = {split: manifest_path(source, split) for split in SPLITS}
    if not manifests["train"].is_file():
        raise ManifestError(f"{source} has no train.jsonl: give the folder that asr.prepare wrote")
    if num_utterances is not None and num_utterances < 1:
        raise ConfigError(f"num_utterances={num_utterances} must be at least 1")
    if output.resolve() == source.resolve():
        raise ManifestError(f"{source} would be overwritten by its own result: choose another output")
    splits = {split: read_manifest(path) for split, path in manifests.items() if path.is_file()}
    already = next((utterance.id for utterance in splits["train"] if is_spliced(utterance)), None)
    if already is not None:
        raise ManifestError(
            f"{manifests['train']} is spliced already ({already}): give the corpus that it was spliced from"
        )
    recogniser = load_recogniser(checkpoint, GreedyConfig(), torch.device("cpu"))
    cut, uncut = cut_between_words(recogniser, splits["train"], progress)
    if not cut:
        raise ManifestError(f"no utterance of {manifests['train']} can be cut: {next(iter(uncut.values()))}")
    remove_written(output)
    spliced = splice(
        cut,
        len(splits["train"]) if num_utterances is None else num_utterances,
        output / "audio",
        sample_rate=recogniser.sample_rate,
        seed=seed,
        progress=progress,
    )
    notes = [
        f"train has {len(spliced):,} utterances spliced from {len(cut):,} of its {len(splits['train']):,}"
    ]
    if uncut:
        named = ", ".join(f"{name}: {reason}" for name, reason in list(uncut.items())[:_MAX_IDS_SHOWN])
        notes.append(f"{len(uncut):,} could not be cut and are only there whole ({named})")
    if any(not one.utterance.speaker for one in cut):
        notes.append("utterances without a speaker were joined as if all had the same")
    return PreparedCorpus({**splits, "train": [*splits["train"], *spliced]}, [], notes)


def cut_between_words(
    recogniser: Recogniser, utterances: Sequence[Utterance], progress: Progress | None = None
) -> tuple[list[CutUtterance], dict[str, str]]:
    """Where the words of each utterance are, and why some cannot be cut, by id."""
    readable = select_readable(utterances, recogniser.normalise)
    uncut = {one.id: one.reason for one in readable.exclusions}
    examples = readable.examples
    cut: dict[int, CutUtterance] = {}
    num_done = 0
    for batch in recognise_examples(
        recogniser,
        examples,
        max_batch_utterances=_MAX_BATCH_UTTERANCES,
        max_batch_seconds=_MAX_BATCH_SECONDS,
    ):
        for one in batch:
            example = examples[one.item]
            try:
                cut[one.item] = _cut(recogniser, example, one)
            except (AlignmentError, AudioError, TextError) as error:
                uncut[example.utterance.id] = str(error)
        num_done += len(batch)
        if progress is not None:
            progress("finding the words", num_done, len(examples))
    return [cut[item] for item in sorted(cut)], uncut


def _cut(recogniser: Recogniser, example: Example, recognised: Recognised[int]) -> CutUtterance:
    if isinstance(recognised.result, AudioError):
        raise recognised.result
    if recogniser.wildcard is not None and recogniser.wildcard in example.text:
        raise TextError(f"words are missing from its text (wildcard {recogniser.wildcard!r})")
    assert recognised.log_probs is not None
    assert recognised.waveform is not None
    tokenizer = recogniser.tokenizer
    labels = tokenizer.encode(example.text)
    if not labels:
        raise TextError("it has no words")
    alignment = forced_align(recognised.log_probs, labels, blank=tokenizer.blank_id)
    spans = word_spans(alignment.token_spans(), vocabulary=tokenizer.tokens)
    waveform = recognised.waveform.cpu().numpy()
    rate = recogniser.sample_rate
    frame_samples = recogniser.acoustic_model.seconds_per_frame * rate

    def border(before: WordSpan, after: WordSpan) -> float:
        # A label is known by its peak, somewhere within the sound: the border is between two peaks.
        start = min(round((before.tokens[-1].start_frame + 0.5) * frame_samples), len(waveform) - 1)
        stop = min(max(round((after.tokens[0].start_frame + 0.5) * frame_samples), start + 1), len(waveform))
        return quietest_sample(waveform, start, stop, rate) / rate

    borders = [0.0, *(border(*pair) for pair in pairwise(spans)), len(waveform) / rate]
    return CutUtterance(example.utterance, tuple(span.text for span in spans), tuple(borders))
