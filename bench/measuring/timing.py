"""Clocks, and how one run is timed on each device."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch


class Clock(Protocol):
    def now(self) -> float:
        """Seconds from any fixed moment; never goes back."""

    def sleep(self, seconds: float) -> None: ...


class MonotonicClock:
    def now(self) -> float:
        return time.perf_counter()

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)


class Sample(NamedTuple):
    """Seconds of one run. `end_to_end` is the host's clock where `seconds` is the device's."""

    seconds: float
    end_to_end: float | None


class Timer(Protocol):
    def time(self, run: Callable[[], object]) -> Sample:
        """Runs once, to the end of all its work."""


class HostTimer:
    """For runs that are over when they return."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    def time(self, run: Callable[[], object]) -> Sample:
        start = self._clock.now()
        run()
        return Sample(self._clock.now() - start, None)


class CudaTimer:
    """Device events around the run, both on the current stream, on a device that was idle before; the host's clock until it is idle again."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._start, self._stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))

    def time(self, run: Callable[[], object]) -> Sample:
        torch.cuda.synchronize()
        start = self._clock.now()
        self._start.record()
        run()
        self._stop.record()
        torch.cuda.synchronize()
        elapsed = self._clock.now() - start
        return Sample(self._start.elapsed_time(self._stop) / 1e3, elapsed)


def make_timer(device: str, clock: Clock) -> Timer:
    return CudaTimer(clock) if device == "cuda" else HostTimer(clock)
