"""Memory, input buffers, device events and precisions of `measure_group`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from fastcnn.bench.measuring.measure import Settings, measure_group
from fastcnn.bench.measuring.timing import CudaTimer, Sample
from fastcnn.bench.peers.base import Prepared
from fastcnn.bench.peers.subject import Subject
from fastcnn.bench.records.result import GroupResult, RowResult, Status
from fastcnn.errors import RequestError
from fastcnn.precision import Precision

Measure = Callable[..., GroupResult]


@pytest.fixture
def measure(subject: Subject, settings: Settings, clock: Any) -> Measure:
    def run(*peers: Any, shape: tuple[int, ...] = (2, 3, 8, 8), timer: Any = None, **changes: Any) -> GroupResult:
        return measure_group("tiny", subject, peers, shape, replace(settings, **changes), clock=clock, timer=timer)

    return run


def _row(group: GroupResult, name: str) -> RowResult:
    return next(row for row in group.rows if row.name == name)


@pytest.mark.parametrize("moment", [1, 20], ids=["in set-up", "while timed"])
def test_batch_is_halved_for_all_rows_when_one_runs_out_of_memory(measure: Measure, fake_peer: Any, moment: int) -> None:
    sizes: list[int] = []
    runs = 0

    def fill(number: int) -> None:
        nonlocal runs
        runs += 1
        if runs >= moment and sizes[-1] > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    greedy = fake_peer("greedy", 0.01, before_run=fill)
    prepare = greedy.prepare

    def noted(subject: Subject, example: torch.Tensor, threads: int) -> Prepared:
        nonlocal runs
        runs = 0
        sizes.append(len(example))
        return prepare(subject, example, threads)

    greedy.prepare = noted
    group = measure(greedy, fake_peer("modest", 0.02), shape=(8, 3, 8, 8))
    assert sizes == [8, 4, 2]
    assert (group.batch_size, group.requested_batch_size, group.input_shape) == (2, 8, (2, 3, 8, 8))
    assert group.lowered_because == "greedy: OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB, at batch 8"
    assert [(row.status, len(row.rounds)) for row in group.rows] == [(Status.TIMED, 8)] * 2
    assert group.to_dict()["rows"][0]["images_per_second"] == pytest.approx(200.0)
    assert greedy.released == 3


def test_out_of_memory_at_a_batch_of_one_is_a_failed_row(measure: Measure, fake_peer: Any) -> None:
    def fill(number: int) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")

    group = measure(fake_peer("greedy", 0.01, before_run=fill), fake_peer("modest", 0.02), shape=(1, 3, 8, 8))
    assert _row(group, "greedy").status is Status.FAILED
    assert _row(group, "modest").status is Status.TIMED
    assert (group.batch_size, group.requested_batch_size, group.lowered_because) == (1, 1, None)


def test_inputs_take_turns(measure: Measure, fake_peer: Any) -> None:
    peer = fake_peer("peer", 0.01)
    prepare, seen = peer.prepare, list[int]()

    def watched(subject: Subject, example: torch.Tensor, threads: int) -> Prepared:
        prepared = prepare(subject, example, threads)

        def run(x: torch.Tensor) -> torch.Tensor:
            seen.append(x.data_ptr())
            return prepared.run(x)

        return replace(prepared, run=run)

    peer.prepare = watched
    measure(peer, inputs=3, rounds=1, timed_runs=5)
    untimed, *timed = seen[-6:]
    assert len(set(timed)) == 3
    assert timed[:2] == timed[3:]
    assert untimed != timed[0]


class EventTimer:
    """As on a GPU: events see `share` of what the host's clock sees."""

    def __init__(self, clock: Any, share: float) -> None:
        self.clock, self.share = clock, share

    def time(self, run: Callable[[], object]) -> Sample:
        start = self.clock.now()
        run()
        elapsed = self.clock.now() - start
        return Sample(elapsed * self.share, elapsed)


def test_device_events_are_the_samples_and_the_hosts_clock_is_kept(measure: Measure, fake_peer: Any, clock: Any) -> None:
    (row,) = measure(fake_peer("peer", 0.010), timer=EventTimer(clock, 0.9)).rows
    plain = row.to_dict(1)
    assert plain["seconds"]["p50"] == pytest.approx(0.009)
    assert plain["end_to_end_seconds"]["p50"] == pytest.approx(0.010)
    assert plain["images_per_second"] == pytest.approx(1 / 0.009)
    assert [len(visit) for visit in row.end_to_end_rounds] == [len(visit) for visit in row.rounds]


def test_work_that_the_events_do_not_see_is_a_failed_row(measure: Measure, fake_peer: Any, clock: Any) -> None:
    (row,) = measure(fake_peer("sly", 0.010), timer=EventTimer(clock, 0.1)).rows
    assert (row.status, row.summary()) == (Status.FAILED, None)
    assert row.reason == "device events saw 1.000 ms of a run of 10.000 ms: its work is on another stream"


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


@pytest.mark.parametrize("precision", [Precision.bf16, Precision.fp16])
def test_narrow_precision_has_its_own_tolerance(settings: Settings, subject: Subject, clock: Any, fake_peer: Any, precision: Precision) -> None:
    seen: set[torch.dtype] = set()

    def scaled(y: torch.Tensor) -> torch.Tensor:
        seen.add(y.dtype)
        return y * 1.05

    peers = [fake_peer("honest", 0.01), fake_peer("wrong", 0.01, wrong=scaled)]
    group = measure_group("tiny", Subject(subject.model, precision), peers, (2, 3, 8, 8), settings, clock=clock)
    assert seen == {precision.dtype}
    assert (group.precision, group.dtype) == (precision.value, str(precision.dtype).removeprefix("torch."))
    assert 1e-4 < group.tolerance < 0.02
    assert _row(group, "honest").status is Status.TIMED
    assert _row(group, "wrong").status is Status.FAILED


def test_reference_that_overflows_is_a_wrong_request(settings: Settings, clock: Any, fake_peer: Any) -> None:
    layer = torch.nn.Conv2d(3, 4, 3)
    torch.nn.init.constant_(layer.weight, 6e4)
    subject = Subject(torch.nn.Sequential(layer, torch.nn.Flatten()).eval(), Precision.fp16)
    with pytest.raises(RequestError, match="no finite output in float16"):
        measure_group("tiny", subject, [fake_peer("peer", 0.01)], (1, 3, 8, 8), settings, clock=clock)


@pytest.mark.parametrize("name", ["inception_v3", "simple_cnn"])
def test_weights_under_test_keep_the_signal_within_float16(name: str) -> None:
    from fastcnn.bench.peers.subject import WEIGHTS, model_under_test
    from fastcnn.models import model_spec

    channels, height, _ = model_spec(name).input_size
    size = 75 if height > 100 else height
    model = model_under_test(name)
    assert model.fastcnn_info.weights == WEIGHTS
    with torch.no_grad():
        output = model(torch.rand(2, channels, size, size, generator=torch.Generator().manual_seed(0)))
        again = model_under_test(name)(torch.rand(2, channels, size, size, generator=torch.Generator().manual_seed(0)))
    assert 0.01 < output.std() < 1000
    torch.testing.assert_close(output, again, rtol=0, atol=0)
