"""Batches under way at the same time give what the same batches give one after another."""

import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_model import babble, write_checkpoint
from torch import Tensor

from asr.checkpoint import load_recogniser
from asr.config import BeamConfig, DecoderConfig, GreedyConfig
from asr.decode.decoder import DecodeError
from asr.decode.greedy import GreedyDecoder
from asr.errors import AudioError
from asr.pipeline import DECODE_AHEAD, Recognised, decode_ahead, recognise_batches
from asr.recogniser import Recogniser
from asr.records import Emissions, Hypothesis

CPU = torch.device("cpu")
AUDIO = [
    torch.from_numpy(babble(seconds, seed)) for seed, seconds in enumerate([0.9, 0.3, 1.3, 0.5, 0.7, 0.4])
]
BATCHES = [[2, 0], [4], [3, 5, 1]]
PATIENCE_SECONDS = 30


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("model") / "tiny.ckpt")


@pytest.fixture(scope="module")
def recogniser(checkpoint: Path) -> Recogniser:
    return load_recogniser(checkpoint, GreedyConfig(), CPU)


def run(recogniser: Recogniser, batches: Sequence[Sequence[int]] = BATCHES) -> list[list[Recognised[int]]]:
    return list(recognise_batches(recogniser, batches, AUDIO.__getitem__, "recording {}".format))


class Hooked:
    """Something called that first does something else, with the number of the call."""

    def __init__(self, inner, before) -> None:
        self.inner, self.before, self.num_calls = inner, before, 0

    def __getattr__(self, name):
        return getattr(self.inner, name)

    def _call(self, function, *arguments):
        self.num_calls += 1
        self.before(self.num_calls, *arguments)
        return function(*arguments)

    def decode(self, emissions: Emissions) -> list[Hypothesis]:
        return self._call(self.inner.decode, emissions)

    def __call__(self, *arguments):
        return self._call(self.inner, *arguments)


@pytest.mark.parametrize("decoder", [GreedyConfig(), BeamConfig(beam_width=8), BeamConfig(num_threads=1)])
def test_results_are_those_of_one_batch_after_another(checkpoint: Path, decoder: DecoderConfig) -> None:
    recogniser = load_recogniser(checkpoint, decoder, CPU)
    results = run(recogniser)
    assert [[one.item for one in batch] for batch in results] == BATCHES
    for batch, indices in zip(results, BATCHES, strict=True):
        assert [one.result for one in batch] == recogniser.recognise([AUDIO[index] for index in indices])
        assert all(one.waveform is AUDIO[one.item] for one in batch)
        emissions = recogniser.emissions([AUDIO[index] for index in indices])
        lengths = emissions.log_prob_lengths.tolist()
        for one, frames, length in zip(batch, emissions.log_probs, lengths, strict=True):
            assert torch.equal(one.log_probs, frames[:length])
    texts = [one.result.text for batch in results for one in batch]
    assert len(set(texts)) == len(AUDIO)  # so that a wrong order would show


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("decoder", [GreedyConfig(), BeamConfig(beam_width=8)])
def test_results_on_a_gpu(checkpoint: Path, decoder: DecoderConfig) -> None:
    recogniser = load_recogniser(checkpoint, decoder, torch.device("cuda"))
    results = run(recogniser, BATCHES * 20)
    for batch, indices in zip(results, BATCHES * 20, strict=True):
        alone = recogniser.recognise([AUDIO[index] for index in indices])
        assert [one.result.text for one in batch] == [one.text for one in alone]


def test_the_model_goes_on_while_a_batch_is_decoded(recogniser: Recogniser) -> None:
    second_forward = threading.Event()

    def wait(call: int, *_: object) -> None:
        assert call > 1 or second_forward.wait(PATIENCE_SECONDS), "decoding kept the model waiting"

    model = Hooked(recogniser.acoustic_model, lambda call, *_: second_forward.set() if call == 2 else None)
    decoder = Hooked(recogniser.decoder, wait)
    overlapping = replace(recogniser, acoustic_model=model, decoder=decoder)
    overlapped, expected = (
        [[(one.item, one.result) for one in batch] for batch in run(system)]
        for system in (overlapping, recogniser)
    )
    assert overlapped == expected


def test_few_batches_are_under_way(recogniser: Recogniser) -> None:
    model = Hooked(recogniser.acoustic_model, lambda *_: None)
    loaded: list[int] = []

    def load(index: int) -> Tensor:
        loaded.append(index)
        return AUDIO[index]

    batches = [[index] for index in range(6)] * 4
    results = recognise_batches(replace(recogniser, acoustic_model=model), batches, load, str)
    for num_taken in range(1, 4):
        next(results)
        assert model.num_calls == num_taken + DECODE_AHEAD
    assert len(loaded) <= model.num_calls + 1
    results.close()


def test_what_cannot_be_read_is_a_result_of_its_own(recogniser: Recogniser) -> None:
    def load(index: int) -> Tensor:
        if index in {0, 4}:
            raise AudioError(f"recording {index} is damaged")
        return AUDIO[index]

    results = list(recognise_batches(recogniser, BATCHES, load, str))
    expected = recogniser.recognise([AUDIO[2]]) + recogniser.recognise([AUDIO[index] for index in BATCHES[2]])
    found = [one for batch in results for one in batch]
    assert [one.result for one in found if isinstance(one.result, Hypothesis)] == expected
    failures = {one.item: str(one.result) for one in found if isinstance(one.result, AudioError)}
    assert failures == {0: "recording 0 is damaged", 4: "recording 4 is damaged"}


def test_no_batches_give_no_results(recogniser: Recogniser) -> None:
    assert run(recogniser, []) == []


def test_what_cannot_be_decoded_is_named(recogniser: Recogniser) -> None:
    def spoil(call: int, emissions: Emissions) -> None:
        if call == 3:
            with torch.inference_mode():
                emissions.log_probs[1, 2] = torch.nan

    spoiled = replace(recogniser, decoder=Hooked(recogniser.decoder, spoil))
    with pytest.raises(DecodeError, match=r"^recording 5: .* frame 2 hold NaN"):
        run(spoiled)


@pytest.mark.parametrize("where", ["load", "forward", "decode", "consumer"])
@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_errors_end_all_threads(recogniser: Recogniser, where: str, error: type[BaseException]) -> None:
    def fail_late(call: int, *_: object) -> None:
        if call == 2:
            raise error("stop here")

    load = Hooked(AUDIO.__getitem__, fail_late if where == "load" else lambda *_: None)
    model = Hooked(recogniser.acoustic_model, fail_late if where == "forward" else lambda *_: None)
    decoder = Hooked(recogniser.decoder, fail_late if where == "decode" else lambda *_: None)
    broken = replace(recogniser, acoustic_model=model, decoder=decoder)
    before = set(threading.enumerate())

    def consume() -> None:
        for number, _ in enumerate(recognise_batches(broken, BATCHES, load, str), start=1):
            if where == "consumer":
                fail_late(number)

    with pytest.raises(error, match="stop here"):
        consume()
    assert set(threading.enumerate()) <= before


def test_emissions_are_decoded_in_order(recogniser: Recogniser) -> None:
    emissions = [recogniser.emissions([waveform]) for waveform in AUDIO]
    found = list(decode_ahead(recogniser, iter(emissions)))
    assert found == [recogniser.recognise([waveform]) for waveform in AUDIO]
    assert isinstance(recogniser.decoder, GreedyDecoder)
