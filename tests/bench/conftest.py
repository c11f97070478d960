"""A machine without haste: a clock that only fake rows advance, and a model small enough to check in float64 at once."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from fastcnn.bench.measuring.measure import Settings
from fastcnn.bench.peers.base import Peer, Prepared
from fastcnn.bench.peers.subject import Subject

INPUT_SHAPE = (2, 3, 8, 8)


class FakeClock:
    """Time passes only when a row runs or somebody sleeps; `slept` lists the pauses."""

    def __init__(self) -> None:
        self.time = 0.0
        self.slept: list[float] = []

    def now(self) -> float:
        return self.time

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.time += seconds


class FakePeer(Peer):
    """Computes the model and takes `delay(run number)` seconds of the fake clock.

    Args:
        wrong: what it does to the right output.
        absent: why it is missing.
        before_run: called with the number of each run.
    """

    name = "fake"

    def __init__(
        self,
        name: str,
        clock: FakeClock,
        delay: float | Callable[[int], float],
        *,
        ours: bool = False,
        wrong: Callable[[Tensor], Tensor] | None = None,
        absent: str | None = None,
        before_run: Callable[[int], None] | None = None,
        devices: tuple[str, ...] = ("cpu",),
    ) -> None:
        self.name, self.ours, self.devices = name, ours, devices  # type: ignore[misc]
        self.clock, self.delay, self.wrong, self.absent, self.before_run = clock, delay, wrong, absent, before_run
        self.runs = 0
        self.released = 0
        self.threads: int | None = None

    def missing(self) -> str | None:
        return self.absent

    def prepare(self, subject: Subject, example: Tensor, threads: int) -> Prepared:
        self.threads = threads
        self.clock.time += 2.0

        def run(x: Tensor) -> Tensor:
            self.runs += 1
            if self.before_run is not None:
                self.before_run(self.runs)
            self.clock.time += self.delay(self.runs) if callable(self.delay) else self.delay
            with torch.inference_mode():
                output = subject.model(x)
            return output if self.wrong is None else self.wrong(output)

        return Prepared(run, {"where": "fake"}, reused_seconds=3.0)

    def release(self) -> None:
        self.released += 1


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def fake_peer(clock: FakeClock) -> Callable[..., FakePeer]:
    """`fake_peer("slow", 0.02)`: a row that takes 20 ms of the fake clock."""
    return lambda name, delay, **options: FakePeer(name, clock, delay, **options)


@pytest.fixture
def subject() -> Subject:
    torch.manual_seed(0)
    return Subject(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5)).eval())


@pytest.fixture
def settings() -> Settings:
    return Settings(threads=torch.get_num_threads(), rounds=8, timed_runs=5)


@pytest.fixture
def input_shape() -> tuple[int, ...]:
    return INPUT_SHAPE
