"""Copies from a device and work beside it, with a stand-in for CUDA's streams that works only when waited for."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from asr.device import SideStream, in_float32, to_device, to_host

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


class Stream:
    """A queue of work; an event is the length that it had."""

    def __init__(self, device: torch.device = CUDA) -> None:
        self.device = device
        self.work: list[Callable[[], None]] = []
        self.num_done = 0

    def record_event(self) -> "Event":
        return Event(self, len(self.work))

    def wait_event(self, event: "Event") -> None:
        self.work.append(event.synchronize)

    def synchronize(self) -> None:
        self.work_through(len(self.work))

    def work_through(self, num: int) -> None:
        while self.num_done < num:
            self.num_done += 1
            self.work[self.num_done - 1]()


class Event:
    def __init__(self, stream: Stream, place: int) -> None:
        self.stream, self.place = stream, place

    def synchronize(self) -> None:
        self.stream.work_through(self.place)


class OnDevice:
    """A tensor of the device: copying it is work for the current stream."""

    is_cuda, device, dtype = True, CUDA, torch.float32

    def __init__(self, gpu: "Gpu", values: torch.Tensor) -> None:
        self.gpu, self.values, self.shape = gpu, values, values.shape


class OnHost:
    """Page-locked memory, which a copy reaches when its stream gets there."""

    def __init__(self, values: torch.Tensor) -> None:
        self.values = values

    def copy_(self, source: OnDevice, non_blocking: bool) -> None:
        source.gpu.current.work.append(lambda: self.values.copy_(source.values))
        if not non_blocking:
            source.gpu.current.synchronize()


class Gpu:
    """``torch.cuda`` as far as it is used here."""

    Stream = Stream

    def __init__(self) -> None:
        self.current = Stream()

    def current_stream(self, device: torch.device) -> Stream:
        assert device == CUDA
        return self.current

    @contextmanager
    def stream(self, stream: Stream) -> Iterator[None]:
        before, self.current = self.current, stream
        try:
            yield
        finally:
            self.current = before


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Gpu:
    def empty(shape: torch.Size, *, dtype: torch.dtype, pin_memory: bool) -> OnHost:
        assert pin_memory
        return OnHost(torch.full(shape, torch.nan, dtype=dtype))

    stand_in = Gpu()
    for name in ("Stream", "current_stream", "stream"):
        monkeypatch.setattr(torch.cuda, name, getattr(stand_in, name))
    monkeypatch.setattr("asr.device.torch.empty", empty)
    return stand_in


def test_a_copy_has_arrived_when_it_is_returned(gpu: Gpu) -> None:
    values = torch.zeros(3)
    gpu.current.work.append(lambda: values.copy_(torch.tensor([1.0, 2.0, 3.0])))  # the model
    copied: Any = to_host(OnDevice(gpu, values))  # type: ignore[arg-type]
    assert copied.values.tolist() == [1.0, 2.0, 3.0]


def test_beside_the_model_its_results_are_waited_for_and_nothing_later(gpu: Gpu) -> None:
    main, side = gpu.current, SideStream(CUDA)
    values, started = torch.zeros(1), []
    main.work.append(lambda: values.fill_(7.0))
    ready = side.mark()
    main.work.append(lambda: started.append("the next batch"))
    with side.after(ready):
        assert gpu.current is not main
        copied: Any = to_host(OnDevice(gpu, values))  # type: ignore[arg-type]
    assert copied.values.tolist() == [7.0]
    assert not started
    with pytest.raises(RuntimeError, match="spoiled"), side.after(side.mark()):
        raise RuntimeError("spoiled")
    assert gpu.current is main


def test_on_a_cpu_there_is_nothing_to_wait_for(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("Stream", "current_stream", "stream"):
        monkeypatch.delattr(torch.cuda, name)
    side, values = SideStream(CPU), torch.ones(2)
    assert side.mark() is None
    with side.after(side.mark()):
        assert torch.equal(to_host(values), values)
    assert to_device(values, CPU) is values


@pytest.mark.parametrize("is_allowed", [True, False])
def test_float32_is_neither_bf16_nor_tf32(monkeypatch: pytest.MonkeyPatch, is_allowed: bool) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", is_allowed)
    weights = torch.eye(2)
    with torch.autocast("cpu", torch.bfloat16):
        assert (weights @ weights).dtype == torch.bfloat16
        with in_float32(CPU):
            assert (weights @ weights).dtype == torch.float32
            assert not torch.backends.cudnn.allow_tf32
        assert (weights @ weights).dtype == torch.bfloat16
    assert torch.backends.cudnn.allow_tf32 == is_allowed


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu() -> None:
    side = SideStream(CUDA)
    values = to_device(torch.arange(1000.0), CUDA)
    torch.cuda._sleep(10**8)
    values.mul_(2)
    ready = side.mark()
    with side.after(ready):
        assert torch.equal(to_host(values), 2 * torch.arange(1000.0))
