from __future__ import annotations

from typing import Any

import pytest
import torch

from fastcnn.bench.measuring.timing import CudaTimer


def test_cuda_timer_waits_before_and_after(monkeypatch: pytest.MonkeyPatch, clock: Any) -> None:
    steps: list[str] = []

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            steps.append("event")

        def elapsed_time(self, stop: Any) -> float:
            return 2.5

    def run() -> None:
        steps.append("run")
        clock.time += 0.003

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: steps.append("wait"))
    assert CudaTimer(clock).time(run) == (0.0025, pytest.approx(0.003))
    assert steps == ["wait", "event", "run", "event", "wait"]
