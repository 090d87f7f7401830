"""Recordings of any length → one hypothesis, in bounded memory.

The recording is read in overlapping windows that begin on whole emission frames. Where two windows
overlap, both have emissions for the same frames, and one frame is chosen from which on the later
window counts; so the windows are stitched before decoding, and the decoder (and a language model)
sees one continuous sequence. Its times are exact: frame ``t`` is ``t`` frames into the recording.

Features that are normalised per utterance are normalised per window here, so the emissions differ
slightly from those of the whole recording in one piece. Recordings that fit into one window need
none of this: they go through :func:`asr.pipeline.recognise_batches` as every utterance does.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby, islice, takewhile
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from asr.audio import Window, seconds_to_samples, stream_audio
from asr.decode.decoder import DecodeError
from asr.decode.greedy import GreedyDecoder
from asr.pipeline import decode_ahead
from asr.recogniser import Recogniser, normalised
from asr.records import Emissions, Hypothesis, Word
from asr.tokenizer import Tokenizer

MAX_DECODED_SECONDS = 240.0
"""A decoder gets at most this much at once; what it gets ends in the longest pause of the second half."""

MIN_PAUSE_SECONDS = 0.5
"""Blank for so long around a seam between windows, and the words on either side are two."""


@dataclass(frozen=True)
class WindowPlan:
    """Windows in whole emission frames; ``frame_samples`` waveform samples make one."""

    frame_samples: int
    sample_rate: int
    window_frames: int
    hop_frames: int

    @classmethod
    def for_recogniser(
        cls, recogniser: Recogniser, window_seconds: float, overlap_seconds: float
    ) -> "WindowPlan":
        """The largest windows and overlaps of whole frames within the wanted ones."""
        frame_samples = seconds_to_samples(
            recogniser.acoustic_model.seconds_per_frame, recogniser.sample_rate
        )
        window_frames = seconds_to_samples(window_seconds, recogniser.sample_rate) // frame_samples
        overlap_frames = seconds_to_samples(overlap_seconds, recogniser.sample_rate) // frame_samples
        return cls(
            frame_samples=frame_samples,
            sample_rate=recogniser.sample_rate,
            window_frames=max(window_frames, 2),
            hop_frames=max(window_frames - max(overlap_frames, 1), 1),
        )

    @property
    def window_seconds(self) -> float:
        return self.window_frames * self.frame_samples / self.sample_rate

    @property
    def hop_seconds(self) -> float:
        return self.hop_frames * self.frame_samples / self.sample_rate


class PlacedWaveform(NamedTuple):
    """``waveform`` ``(samples,)`` begins at emission frame ``first_frame`` of the recording."""

    first_frame: int
    waveform: Tensor


class PlacedEmissions(NamedTuple):
    """``log_probs`` ``(frames, vocab)`` begin at emission frame ``first_frame`` of the recording."""

    first_frame: int
    log_probs: Tensor


def recognise_long(
    recogniser: Recogniser,
    path: Path,
    *,
    window_seconds: float,
    overlap_seconds: float,
    max_batch_seconds: float,
    on_progress: Callable[[float], None] = lambda done_seconds: None,
) -> Hypothesis:
    """One hypothesis for a recording of any length.

    Args:
        max_batch_seconds: so much audio goes through the model at once (one window at least).
        on_progress: called with the seconds of the recording that are done.

    Raises:
        AudioError: see :func:`asr.audio.stream_audio`.
    """
    plan = WindowPlan.for_recogniser(recogniser, window_seconds, overlap_seconds)
    windows_per_batch = max(1, int(max_batch_seconds / plan.window_seconds))
    windows = place_windows(
        stream_audio(
            path, plan.sample_rate, window_seconds=plan.window_seconds, hop_seconds=plan.hop_seconds
        ),
        plan,
    )
    seconds_per_frame = plan.frame_samples / plan.sample_rate

    def emissions() -> Iterator[PlacedEmissions]:
        while batch := list(islice(windows, windows_per_batch)):
            log_probs, lengths = recogniser.emissions([window.waveform for window in batch])[:2]
            for window, frames, length in zip(batch, log_probs.cpu(), lengths.tolist(), strict=True):
                yield PlacedEmissions(window.first_frame, frames[:length])
                on_progress((window.first_frame + length) * seconds_per_frame)

    tokenizer = recogniser.tokenizer
    stretches = decodable_stretches(
        stitch(emissions(), tokenizer, min_pause_frames=round(MIN_PAUSE_SECONDS / seconds_per_frame)),
        tokenizer,
        max_frames=int(MAX_DECODED_SECONDS / seconds_per_frame),
    )
    first_frames: list[int] = []

    def batches() -> Iterator[Emissions]:
        for first_frame, log_probs in stretches:
            first_frames.append(first_frame)
            yield as_batch(log_probs)

    try:
        hypotheses = [decoded[0] for decoded in decode_ahead(recogniser, batches())]
    except DecodeError as error:
        raise error.named(str(path)) from error
    return joined(zip(first_frames, hypotheses, strict=True), seconds_per_frame, recogniser.normalise)


def place_windows(windows: Iterable[Window], plan: WindowPlan) -> Iterator[PlacedWaveform]:
    """Windows with their first frames; a short last one is extended backwards.

    A few words without context are recognised badly, and what little there is would also be
    normalised by itself.
    """
    previous: Tensor | None = None
    for number, window in enumerate(windows):
        first_frame, waveform = number * plan.hop_frames, window.waveform
        num_missing = plan.window_frames - len(waveform) // plan.frame_samples
        if window.is_last and previous is not None and num_missing > 0:
            num_frames = min(num_missing, plan.hop_frames - 1)  # each window begins after the one before
            hop_samples = plan.hop_frames * plan.frame_samples
            before = previous[hop_samples - num_frames * plan.frame_samples : hop_samples]
            first_frame, waveform = first_frame - num_frames, torch.cat([before, waveform])
        yield PlacedWaveform(first_frame, waveform)
        previous = window.waveform


# --------------------------------------------------------------------------- stitching


class Stretch(NamedTuple):
    """``log_probs`` ``(frames, vocab)`` that go on where the stretch before ends, or ``after_pause``."""

    log_probs: Tensor
    after_pause: bool = False


def stitch(
    windows: Iterable[PlacedEmissions], tokenizer: Tokenizer, min_pause_frames: int
) -> Iterator[Stretch]:
    """Overlapping windows, in order → consecutive stretches, each frame once.

    A model writes no space where its window begins or ends, so a pause that reaches beyond the overlap
    is a space for neither window. There, the later stretch is marked as ``after_pause``.
    """
    held: PlacedEmissions | None = None
    after_pause = False
    for window in windows:
        if held is None:
            held = window
            continue
        first = max(held.first_frame, window.first_frame)
        end = held.first_frame + len(held.log_probs)
        cut = first + choose_cut(
            held.log_probs[first - held.first_frame :],
            window.log_probs[first - window.first_frame : end - window.first_frame],
            tokenizer.blank_id,
        )
        done, rest = held.log_probs[: cut - held.first_frame], window.log_probs[cut - window.first_frame :]
        yield Stretch(done, after_pause)
        after_pause = lacks_space(done, rest, tokenizer, min_pause_frames)
        held = PlacedEmissions(cut, rest)
    if held is not None:
        yield Stretch(held.log_probs, after_pause)


def choose_cut(earlier: Tensor, later: Tensor, blank_id: int) -> int:
    """The frame of an overlap from which on the later window counts.

    Both ``(frames, vocab)`` are log-probabilities of the same frames. A window knows little about
    what surrounds its own edges, so the middle half of the overlap is looked at first. The cut goes

    1. to the centre of the longest run of frames that both windows call blank and around which they
       read the same tokens. This keeps a token from being lost or doubled where the windows place
       it some frames apart; when there is no such run in the middle half, it may be anywhere;
    2. without one, to the centre of the longest common blank run in the middle half;
    3. without any, to the frame there where the two distributions differ least.

    Of equal ones, the nearest to the middle is taken.
    """
    num_frames = len(earlier)
    labels = earlier.argmax(dim=1).tolist(), later.argmax(dim=1).tolist()
    middle = range(num_frames // 4, num_frames - num_frames // 4)
    runs = _common_blank_runs(*labels, blank_id, middle)
    candidates = (
        [run for run in runs if _reads_the_same(*labels, blank_id, run)]
        or [
            run
            for run in _common_blank_runs(*labels, blank_id, range(num_frames))
            if _reads_the_same(*labels, blank_id, run)
        ]
        or runs
    )
    if candidates:
        best = max(candidates, key=lambda run: (len(run), -abs(run.start + run.stop - num_frames)))
        return (best.start + best.stop) // 2
    differences = (earlier.exp() - later.exp()).abs().sum(dim=1).tolist()
    return min(middle, key=lambda frame: (differences[frame], abs(2 * frame + 1 - num_frames)))


def _common_blank_runs(earlier: list[int], later: list[int], blank_id: int, frames: range) -> list[range]:
    """Runs of ``frames`` where both label sequences are blank."""
    runs: list[range] = []
    for both_blank, group in groupby(frames, key=lambda frame: earlier[frame] == later[frame] == blank_id):
        run = list(group)
        if both_blank:
            runs.append(range(run[0], run[-1] + 1))
    return runs


def _reads_the_same(earlier: list[int], later: list[int], blank_id: int, run: range) -> bool:
    """Whether the tokens around a common blank run agree.

    Where the earlier window reads nothing more up to its end, the later one decides what comes
    after the run; where the later one has read nothing yet, the earlier one decides what was
    before. With both, one and the same token on either side could be a single one that the
    windows place differently.
    """
    before = _last_token(earlier[: run.start], blank_id)
    after = _first_token(later[run.stop :], blank_id)
    earlier_after = _first_token(earlier[run.stop :], blank_id)
    later_before = _last_token(later[: run.start], blank_id)
    if later_before is None and earlier_after is None:
        return before != after or before is None
    return later_before in (None, before) and earlier_after in (None, after)


def lacks_space(done: Tensor, rest: Tensor, tokenizer: Tokenizer, min_pause_frames: int) -> bool:
    """Whether a pause lies at the seam of two ``(frames, vocab)`` and yet their words would run together."""
    done_labels, rest_labels = done.argmax(dim=1).tolist(), rest.argmax(dim=1).tolist()
    is_blank = tokenizer.blank_id.__eq__
    blanks_before = sum(1 for _ in takewhile(is_blank, reversed(done_labels)))
    blanks_after = sum(1 for _ in takewhile(is_blank, rest_labels))
    if blanks_before + blanks_after < min_pause_frames:
        return False
    before = _last_token(done_labels, tokenizer.blank_id)
    after = _first_token(rest_labels, tokenizer.blank_id)
    if before is None or after is None:
        return True
    separate = len(tokenizer.word_groups([before])) + len(tokenizer.word_groups([after]))
    return len(tokenizer.word_groups([before, after])) < separate


def _first_token(labels: Iterable[int], blank_id: int) -> int | None:
    return next((label for label in labels if label != blank_id), None)


def _last_token(labels: Sequence[int], blank_id: int) -> int | None:
    return _first_token(reversed(labels), blank_id)


# --------------------------------------------------------------------------- decoding in stretches


def decodable_stretches(
    stretches: Iterable[Stretch], tokenizer: Tokenizer, max_frames: int
) -> Iterator[PlacedEmissions]:
    """Regroup consecutive stretches: as long as possible, cut in pauses.

    Each has at most ``max_frames`` and, but for the last and those before a marked pause, at least
    half as many.
    """
    first_frame = 0
    held: Tensor | None = None
    for log_probs, after_pause in stretches:
        if after_pause and held is not None and len(held) > 0:
            yield PlacedEmissions(first_frame, held)
            first_frame, held = first_frame + len(held), None
        held = log_probs if held is None else torch.cat([held, log_probs])
        while len(held) > max_frames:
            cut = choose_pause(held, tokenizer, max_frames // 2, max_frames)
            yield PlacedEmissions(first_frame, held[:cut])
            first_frame, held = first_frame + cut, held[cut:]
    if held is not None and len(held) > 0:
        yield PlacedEmissions(first_frame, held)


def choose_pause(log_probs: Tensor, tokenizer: Tokenizer, low: int, high: int) -> int:
    """The middle of the longest gap between two words, from frame ``low`` to ``high``.

    ``log_probs`` are ``(frames, vocab)``. A script without spaces has no such gap; it is cut at the
    likeliest blank.
    """
    # With one "second" per frame the decoder's word times are frames.
    words = GreedyDecoder(tokenizer, seconds_per_frame=1).decode(as_batch(log_probs))[0].words
    ends = [0, *(round(word.end_seconds) for word in words)]
    starts = [*(round(word.start_seconds) for word in words), len(log_probs)]
    gaps = [range(max(end, low), min(start, high)) for end, start in zip(ends, starts, strict=True)]
    longest = max(gaps, key=len)
    if len(longest):
        return (longest.start + longest.stop) // 2
    return low + int(log_probs[low:high, tokenizer.blank_id].argmax())


def as_batch(log_probs: Tensor) -> Emissions:
    """``(frames, vocab)`` as a batch of one."""
    return Emissions(log_probs.unsqueeze(0), torch.tensor([len(log_probs)]))


def joined(
    parts: Iterable[tuple[int, Hypothesis]], seconds_per_frame: float, normalise: Callable[[str], str]
) -> Hypothesis:
    """Hypotheses of consecutive stretches, each with its first frame, as one."""
    token_ids: list[int] = []
    token_frames: list[int] = []
    words: list[Word] = []
    texts: list[str] = []
    score = 0.0
    for first_frame, part in parts:
        offset_seconds = first_frame * seconds_per_frame
        token_ids += part.token_ids
        token_frames += [frame + first_frame for frame in part.token_frames]
        words += [
            replace(
                word,
                start_seconds=word.start_seconds + offset_seconds,
                end_seconds=word.end_seconds + offset_seconds,
            )
            for word in part.words
        ]
        texts.append(part.text)
        score += part.score
    whole = Hypothesis(
        token_ids=tuple(token_ids),
        text=" ".join(texts),
        score=score,
        token_frames=tuple(token_frames),
        words=tuple(words),
    )
    return normalised(whole, normalise)
