"""Clocks, and how one run is timed on each device."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch


class Clock(Protocol):
    """What time it is, and a pause; a test has one that only it advances."""

    def now(self) -> float:
        """Seconds from any fixed moment; never goes back."""

    def sleep(self, seconds: float) -> None:
        """Lets that much time pass."""


class MonotonicClock:
    """The machine's own clock."""

    def now(self) -> float:
        """Seconds, to the system's highest resolution."""
        return time.perf_counter()

    def sleep(self, seconds: float) -> None:
        """Gives the thread's core away for that long."""
        time.sleep(seconds)


class Sample(NamedTuple):
    """Seconds of one run. `end_to_end` is the host's clock where `seconds` is the device's."""

    seconds: float
    end_to_end: float | None


class Timer(Protocol):
    """Takes the time of one run on a device."""

    def time(self, run: Callable[[], object]) -> Sample:
        """Runs once, to the end of all its work."""


class HostTimer:
    """For runs that are over when they return."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    def time(self, run: Callable[[], object]) -> Sample:
        """Seconds between call and return."""
        start = self._clock.now()
        run()
        return Sample(self._clock.now() - start, None)


class CudaTimer:
    """Device events around the run, both on the current stream, on a device that was idle before; the host's clock until it is idle again."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._start, self._stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))

    def time(self, run: Callable[[], object]) -> Sample:
        """Seconds between the two events, and from the call until the device is idle."""
        torch.cuda.synchronize()
        start = self._clock.now()
        self._start.record()
        run()
        self._stop.record()
        torch.cuda.synchronize()
        elapsed = self._clock.now() - start
        return Sample(self._start.elapsed_time(self._stop) / 1e3, elapsed)


@dataclass(frozen=True)
class Instruments:
    """What a measurement reads time from; `timer` is by the same clock."""

    clock: Clock
    timer: Timer

    @classmethod
    def of(cls, device: str) -> Instruments:
        """The machine's clock, and the timer that sees the work of `cpu` or `cuda`."""
        clock = MonotonicClock()
        return cls(clock, CudaTimer(clock) if device == "cuda" else HostTimer(clock))
