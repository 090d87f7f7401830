"""Loading, forward pass and decoding of consecutive batches, all at the same time.

Threads read the audio of the batch to come, the calling thread runs the model, and one more thread decodes
what the model has done (a search has threads of its own, one per utterance, that hold no lock). On a GPU
that thread has its own stream, which waits for the emissions that it needs and for nothing else. Few
batches are under way at a time, so memory stays bounded.

The results are those of :meth:`asr.recogniser.Recogniser.recognise`, batch by batch, in order.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import chain, islice
from typing import Generic, NamedTuple, TypeVar

import torch
from torch import Tensor

from asr.dataset import Example, load_utterance
from asr.decode.decoder import DecodeError, Decoder
from asr.device import SideStream
from asr.errors import AudioError
from asr.recogniser import Recogniser
from asr.records import Emissions, Hypothesis
from asr.sampler import batches_by_length

LOADER_THREADS = 2
DECODE_AHEAD = 2
"""So many batches may wait for the decoder while the model goes on."""

ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")


class Recognised(NamedTuple, Generic[ItemT]):
    """A recording and what was heard in its ``waveform`` ``(samples,)``, or why it has none.

    ``log_probs``: ``(frames, vocab)``, what the hypothesis was decoded from, on the model's device;
    ``compared``: what a second decoder makes of them.
    """

    item: ItemT
    result: Hypothesis | AudioError
    waveform: Tensor | None = None
    log_probs: Tensor | None = None
    compared: Hypothesis | None = None


class _Pending(NamedTuple):
    """Emissions that the device may still be computing, and the mark that it reaches when they are there."""

    emissions: Emissions
    ready: torch.cuda.Event | None


class _Decoded(NamedTuple):
    """What is found in one utterance's emissions; see :class:`Recognised`."""

    hypothesis: Hypothesis
    log_probs: Tensor
    compared: Hypothesis | None


@dataclass(frozen=True)
class _Batch(Generic[ItemT]):
    """A batch that the model has seen; ``pending`` are the emissions of the recordings that could be read."""

    items: list[ItemT]
    audio: list[Tensor | AudioError]
    pending: _Pending | None


def recognise_examples(
    recogniser: Recogniser,
    examples: Sequence[Example],
    *,
    max_batch_utterances: int,
    max_batch_seconds: float,
) -> Iterator[list[Recognised[int]]]:
    """:func:`recognise_batches` of a manifest's examples, batched by length; an item is an example's position."""
    batches = batches_by_length(
        [example.utterance.duration_seconds for example in examples],
        max_utterances=max_batch_utterances,
        max_seconds=max_batch_seconds,
    )
    return recognise_batches(
        recogniser,
        batches,
        load=lambda position: load_utterance(examples[position].utterance, recogniser.sample_rate),
        name=lambda position: examples[position].utterance.id,
    )


def recognise_batches(
    recogniser: Recogniser,
    batches: Sequence[Sequence[ItemT]],
    load: Callable[[ItemT], Tensor],
    name: Callable[[ItemT], str],
    compare: Decoder | None = None,
) -> Iterator[list[Recognised[ItemT]]]:
    """Recognise batches of recordings; yields the results of each batch, in order.

    Args:
        load: one recording, ``(samples,)``; called in threads. An ``AudioError`` is that recording's result.
        name: what a recording is called in messages.
        compare: another decoder for the same emissions.

    Raises:
        DecodeError: the log-probabilities of a recording cannot be decoded; names it.
    """

    def load_or_fail(item: ItemT) -> Tensor | AudioError:
        try:
            return load(item)
        except AudioError as error:
            return error

    def forward(audio: Iterator[Tensor | AudioError]) -> Iterator[_Batch[ItemT]]:
        for batch in batches:
            loaded = list(islice(audio, len(batch)))
            waveforms = [one for one in loaded if not isinstance(one, AudioError)]
            pending = None
            if waveforms:
                emissions = recogniser.emissions(waveforms)
                pending = _Pending(emissions, side.mark())
            yield _Batch(list(batch), loaded, pending)

    def decode(batch: _Batch[ItemT]) -> list[Recognised[ItemT]]:
        decoded: Iterator[_Decoded] = iter(())
        if batch.pending is not None:
            try:
                with side.after(batch.pending.ready):
                    decoded = iter(_decoded(recogniser, compare, batch.pending.emissions))
            except DecodeError as error:
                read = zip(batch.items, batch.audio, strict=True)
                items = [item for item, one in read if not isinstance(one, AudioError)]
                raise error.named(name(items[error.index])) from error
        return [
            Recognised(item, one) if isinstance(one, AudioError) else _recognised(item, one, next(decoded))
            for item, one in zip(batch.items, batch.audio, strict=True)
        ]

    side = SideStream(recogniser.device)
    largest = max(map(len, batches), default=0)
    with _threads(LOADER_THREADS) as loaders, _threads(1) as decoders:
        audio = in_threads(loaders, load_or_fail, chain.from_iterable(batches), ahead=largest)
        yield from in_threads(decoders, decode, forward(audio), ahead=DECODE_AHEAD)


def _decoded(recogniser: Recogniser, compare: Decoder | None, emissions: Emissions) -> list[_Decoded]:
    hypotheses = recogniser.hypotheses(emissions)
    compared: Sequence[Hypothesis | None] = [None] * len(hypotheses)
    if compare is not None:
        compared = replace(recogniser, decoder=compare).hypotheses(emissions)
    lengths = emissions.log_prob_lengths.tolist()
    log_probs = [frames[:length] for frames, length in zip(emissions.log_probs, lengths, strict=True)]
    return [_Decoded(*found) for found in zip(hypotheses, log_probs, compared, strict=True)]


def _recognised(item: ItemT, waveform: Tensor, decoded: _Decoded) -> Recognised[ItemT]:
    return Recognised(item, decoded.hypothesis, waveform, decoded.log_probs, decoded.compared)


def decode_ahead(recogniser: Recogniser, emissions: Iterable[Emissions]) -> Iterator[list[Hypothesis]]:
    """The hypotheses of each batch of emissions, decoded while the next is made; in order.

    Raises:
        DecodeError: see :meth:`asr.decode.decoder.Decoder.decode`.
    """

    def decode(pending: _Pending) -> list[Hypothesis]:
        with side.after(pending.ready):
            return recogniser.hypotheses(pending.emissions)

    side = SideStream(recogniser.device)
    with _threads(1) as decoders:
        pending = (_Pending(one, side.mark()) for one in emissions)
        yield from in_threads(decoders, decode, pending, ahead=DECODE_AHEAD)


def in_threads(
    pool: ThreadPoolExecutor, function: Callable[[ItemT], ResultT], items: Iterable[ItemT], ahead: int
) -> Iterator[ResultT]:
    """``function`` of each item, in order, up to ``ahead`` items beyond the one that is waited for.

    ``items`` are drawn in the calling thread. What ``function`` raises is raised here in its turn.
    """
    under_way: deque[Future[ResultT]] = deque()
    for item in items:
        under_way.append(pool.submit(function, item))
        if len(under_way) > ahead:
            yield under_way.popleft().result()
    while under_way:
        yield under_way.popleft().result()


@contextmanager
def _threads(num_threads: int) -> Iterator[ThreadPoolExecutor]:
    """A pool that drops what has not begun when it is left, also by an exception or an interrupt."""
    pool = ThreadPoolExecutor(num_threads)
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)
