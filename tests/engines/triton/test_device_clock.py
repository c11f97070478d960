"""The clock of what is measured: a stand-in for the GPU here, the GPU itself with `-m cuda`."""

from __future__ import annotations

import contextlib
from typing import ClassVar

import pytest
import torch

from fastcnn.engines.triton import device_clock
from fastcnn.engines.triton.device_clock import CAPTURING, capture, device_milliseconds

CUDA = torch.device("cuda", 0)


class FakeGpu:
    """Graphs that count what they hold and what is replayed; the n-th replay between two events takes `times[n]`."""

    def __init__(self, times: list[float]) -> None:
        self.times, self.events, self.replays = iter(times), 0, 0

    def replay(self) -> None:
        self.replays += 1

    def record(self) -> None:
        self.events += 1

    def synchronize(self) -> None: ...

    def elapsed_time(self, end: object) -> float:
        return next(self.times)

    def wait_stream(self, stream: object) -> None: ...


def test_the_median_of_replays_of_several_runs(monkeypatch):
    gpu = FakeGpu([50.0, 20.0, 10.0, 30.0, 40.0])
    captured: list[str] = []

    @contextlib.contextmanager
    def graph(*arguments: object, **options: object):
        captured.append("begin")
        yield
        captured.append("end")

    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: (0, 1))
    for name in ("CUDAGraph", "current_stream"):
        monkeypatch.setattr(torch.cuda, name, lambda *arguments: gpu)
    monkeypatch.setattr(torch.cuda, "Event", lambda enable_timing: gpu)
    monkeypatch.setattr(torch.cuda, "graph", graph)
    for name in ("device", "stream"):
        monkeypatch.setattr(torch.cuda, name, lambda *arguments: contextlib.nullcontext())
    monkeypatch.setattr(device_clock, "_timing_stream", lambda device: gpu)

    # Ten runs in a graph: the median of 50, 20, 10, 30 and 40, a tenth of it.
    assert device_milliseconds(lambda: captured.append("run"), CUDA) == pytest.approx(3.0)
    assert captured == ["run", "begin", *["run"] * 10, "end"]
    assert (gpu.replays, gpu.events) == (6, 10)


class UnendableGraph:
    """As PyTorch's where CUDA cannot end a capture: the allocator goes on recording into the pool."""

    recording: ClassVar[set[tuple[int, int]]] = set()

    def capture_begin(self, pool: tuple[int, int], **options: object) -> None:
        if pool in self.recording:
            raise RuntimeError("beginAllocateToPool: already recording to mempool_id")
        self.recording.add(pool)

    def capture_end(self) -> None:
        raise RuntimeError("CUDA error: operation failed due to a previous error during capture")


@pytest.fixture
def unendable(monkeypatch) -> set[tuple[int, int]]:
    """The pools that the allocator records into; no capture can be ended."""

    @contextlib.contextmanager
    def graph(graph: UnendableGraph, pool: tuple[int, int], **options: object):
        graph.capture_begin(pool)
        try:
            yield
        finally:
            graph.capture_end()

    monkeypatch.setattr(UnendableGraph, "recording", set())
    monkeypatch.setattr(torch.cuda, "graph", graph)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch._C, "_cuda_endAllocateToPool", lambda device, pool: UnendableGraph.recording.remove(pool), raising=False)
    return UnendableGraph.recording


def test_a_capture_that_cannot_be_ended_leaves_no_allocator_recording(unendable):
    for _ in range(2):
        with pytest.raises(RuntimeError, match="operation failed due to a previous error"), capture(UnendableGraph(), None, (0, 1)):
            assert unendable == {(0, 1)}
    assert unendable == set()


def test_a_capture_that_was_ended_after_an_error_is_not_ended_twice(monkeypatch, unendable):
    def not_recording(device: int, pool: tuple[int, int]) -> None:
        raise RuntimeError("endAllocatePool: not currently recording to mempool_id")

    monkeypatch.setattr(torch._C, "_cuda_endAllocateToPool", not_recording, raising=False)
    monkeypatch.setattr(UnendableGraph, "capture_end", lambda self: None)
    with pytest.raises(ValueError, match="the kernel's own"), capture(UnendableGraph(), None, (0, 1)):
        raise ValueError("the kernel's own")


def test_captures_may_be_nested_in_one_thread():
    with CAPTURING:
        assert CAPTURING.acquire(blocking=False)
        CAPTURING.release()


@pytest.mark.cuda
def test_twice_the_work_takes_longer():
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    x = torch.rand(2**26, device=CUDA)
    times = [device_milliseconds(lambda: x[:size].mul_(1.0), CUDA) for size in (2**10, 2**26)]  # noqa: B023

    assert times[0] > 0
    assert all(time > 0 for time in times)
