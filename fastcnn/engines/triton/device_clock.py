"""How long work takes on the GPU, without its launch from Python."""

from __future__ import annotations

import contextlib
import functools
import statistics
import threading
from collections.abc import Callable, Iterator
from typing import Any

import torch

# One capture at a time in a process, and nobody waits for a whole GPU meanwhile: CUDA has both fail.
CAPTURING = threading.RLock()

_RUNS_IN_A_GRAPH, _REPLAYS = 10, 5


def device_milliseconds(run: Callable[[], object], device: torch.device) -> float:
    """Median time of one run on the GPU, without the launch: replays of a CUDA graph of several runs, timed with
    events."""
    # The outer stream context: a capture that cannot be ended would leave its own stream the current one.
    with CAPTURING, torch.cuda.device(device), torch.cuda.stream(torch.cuda.current_stream(device)):
        side = _timing_stream(device)
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            run()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with capture(graph, side, torch.cuda.graph_pool_handle()):
            for _ in range(_RUNS_IN_A_GRAPH):
                run()
        graph.replay()
        samples = []
        for _ in range(_REPLAYS):
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            graph.replay()
            end.record()
            end.synchronize()
            samples.append(start.elapsed_time(end) / _RUNS_IN_A_GRAPH)
        return statistics.median(samples)


@contextlib.contextmanager
def capture(graph: torch.cuda.CUDAGraph, stream: torch.cuda.Stream, pool: Any) -> Iterator[None]:
    """What runs on the current device inside becomes `graph`, with its memory from `pool`; other threads may allocate
    and launch meanwhile. After an error neither the graph nor the pool is to be used again."""
    try:
        with torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
            yield
    except BaseException:
        # A capture that CUDA cannot end leaves PyTorch's allocator recording into the pool, for the whole process; one
        # that it can end does not, and then there is nothing to end here.
        with contextlib.suppress(RuntimeError):
            torch._C._cuda_endAllocateToPool(torch.cuda.current_device(), pool)
        raise


@functools.lru_cache
def _timing_stream(device: torch.device) -> torch.cuda.Stream:
    """One for all that is timed: PyTorch has 32 streams and deals them out in turn, also to those who want different
    ones."""
    return torch.cuda.Stream(device)
