"""Batches under way at the same time give what the same batches give one after another."""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_model import babble, write_checkpoint
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

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


class LateDevice:
    """A device that computes nothing before it is waited for, as a stand-in for :class:`SideStream`."""

    def __init__(self) -> None:
        self.asked: list[Callable[[], None]] = []
        self.done = 0
        self.thread_beside: int | None = None  # the thread whose work goes to the stream beside the model's

    def __call__(self, device: torch.device) -> "LateDevice":
        return self

    def mark(self) -> int:
        return len(self.asked)

    @contextmanager
    def after(self, mark: int) -> Iterator[None]:
        for compute in self.asked[self.done : mark]:
            compute()
        self.done = max(self.done, mark)
        self.thread_beside = threading.get_ident()
        try:
            yield
        finally:
            self.thread_beside = None


class LateModel:
    """Leaves NaN where its results will be, once ``device`` is waited for."""

    def __init__(self, inner: torch.nn.Module, device: LateDevice) -> None:
        self.inner, self.device = inner, device

    def __getattr__(self, name):
        return getattr(self.inner, name)

    def __call__(self, waveforms: Tensor, lengths: Tensor) -> Emissions:
        emissions = self.inner(waveforms, lengths)
        late = emissions.log_probs.clone()
        emissions.log_probs.fill_(torch.nan)
        self.device.asked.append(torch.inference_mode()(lambda: emissions.log_probs.copy_(late)))
        read_beside = emissions.log_prob_lengths.as_subclass(ReadBeside)
        read_beside.of_device = self.device
        return emissions._replace(log_prob_lengths=read_beside)


class ReadBeside(Tensor):
    """Whoever reads it on the model's stream waits for all that the model has been asked for meanwhile."""

    of_device: LateDevice

    def tolist(self) -> list[int]:
        assert self.of_device.thread_beside == threading.get_ident(), "waits for the next batches"
        return self.as_subclass(Tensor).tolist()


@pytest.mark.parametrize("decoder", [GreedyConfig(), BeamConfig(beam_width=8)])
def test_what_arrives_late_is_waited_for_and_nothing_else(
    checkpoint: Path, decoder: DecoderConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    recogniser = load_recogniser(checkpoint, decoder, CPU)
    expected = run(recogniser)
    device = LateDevice()
    monkeypatch.setattr("asr.pipeline.SideStream", device)
    late = replace(recogniser, acoustic_model=LateModel(recogniser.acoustic_model, device))
    for batch, same in zip(run(late), expected, strict=True):
        assert [one.result for one in batch] == [one.result for one in same]
        for one, other in zip(batch, same, strict=True):
            assert torch.equal(one.log_probs, other.log_probs)
    emissions = (late.emissions([waveform]) for waveform in AUDIO)
    assert list(decode_ahead(late, emissions)) == [recogniser.recognise([waveform]) for waveform in AUDIO]


def test_a_second_decoder_reads_the_same(checkpoint: Path, recogniser: Recogniser) -> None:
    beam = load_recogniser(checkpoint, BeamConfig(beam_width=8), CPU)
    results = recognise_batches(beam, BATCHES, AUDIO.__getitem__, str, compare=recogniser.decoder)
    for batch, alone, greedy in zip(results, run(beam), run(recogniser), strict=True):
        assert [one.result for one in batch] == [one.result for one in alone]
        assert [one.compared for one in batch] == [one.result for one in greedy]


def test_nothing_of_a_model_is_waited_for_before_its_results(recogniser: Recogniser) -> None:
    """It runs with shapes alone: no value is looked at, which on a GPU would stop the next batch."""
    with torch.inference_mode(), FakeTensorMode(allow_non_fake_inputs=True) as fake:
        waveforms, lengths = torch.zeros(2, 6400), torch.tensor([6400, 3000])
        emissions = recogniser.acoustic_model(fake.from_tensor(waveforms), fake.from_tensor(lengths))
    assert emissions.log_probs.shape[0] == 2


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("decoder", [GreedyConfig(), BeamConfig(beam_width=8)])
def test_results_on_a_gpu(checkpoint: Path, decoder: DecoderConfig) -> None:
    recogniser = load_recogniser(checkpoint, decoder, torch.device("cuda"))
    slow = Hooked(recogniser.acoustic_model, lambda *_: torch.cuda._sleep(10**7))
    results = run(replace(recogniser, acoustic_model=slow), BATCHES * 20)
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
