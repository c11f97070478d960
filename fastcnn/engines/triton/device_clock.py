"""How long work takes on the GPU, without its launch from Python."""

from __future__ import annotations

import functools
import statistics
import threading
from collections.abc import Callable

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
        with torch.cuda.graph(graph, stream=side, capture_error_mode="thread_local"):
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


@functools.lru_cache
def _timing_stream(device: torch.device) -> torch.cuda.Stream:
    """One for all that is timed: PyTorch has 32 streams and deals them out in turn, also to those who want different
    ones."""
    return torch.cuda.Stream(device)
