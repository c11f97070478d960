from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from fastcnn.bench.measuring.measure import Settings, measure_group, pinned_threads, warm_up
from fastcnn.bench.measuring.timing import HostTimer, Instruments
from fastcnn.bench.peers.subject import Subject
from fastcnn.bench.records.result import GroupResult, RowResult, Status
from fastcnn.errors import RequestError

Measure = Callable[..., GroupResult]


@pytest.fixture
def measure(subject: Subject, settings: Settings, clock: Any, input_shape: tuple[int, ...]) -> Measure:
    def run(*peers: Any, shape: tuple[int, ...] = input_shape, progress: Any = None, **changes: Any) -> GroupResult:
        shown = {} if progress is None else {"progress": progress}
        instruments = Instruments(clock, HostTimer(clock))
        return measure_group("tiny", subject, peers, shape, replace(settings, **changes), instruments=instruments, **shown)

    return run


def _row(group: GroupResult, name: str) -> RowResult:
    return next(row for row in group.rows if row.name == name)


def test_known_delays_give_the_right_ratio_and_interval(measure: Measure, fake_peer: Any) -> None:
    noise = random.Random(0)
    jitter = lambda seconds: lambda run: seconds * noise.lognormvariate(0, 0.05)  # noqa: E731
    group = measure(fake_peer("slow", jitter(0.030)), fake_peer("peer", jitter(0.020)), fake_peer("fast", jitter(0.010), ours=True), rounds=20)
    assert [row.name for row in group.rows] == ["fast", "peer", "slow"]
    assert group.baseline == "peer"
    for name, ratio, seconds in (("fast", 2.0, 0.010), ("peer", 1.0, 0.020), ("slow", 2 / 3, 0.030)):
        row = _row(group, name)
        summary = row.summary()
        assert summary is not None
        assert row.ratio is not None
        assert row.ratio.low is not None
        assert row.ratio.high is not None
        assert summary.count == 100
        assert summary.p50 == pytest.approx(seconds, rel=0.03)
        assert row.ratio.low <= ratio <= row.ratio.high
        assert row.ratio.high - row.ratio.low < 0.2 * ratio


def test_baseline_may_be_chosen(measure: Measure, fake_peer: Any) -> None:
    group = measure(fake_peer("slow", 0.03), fake_peer("fast", 0.01), baseline="slow")
    assert group.baseline == "slow"
    ratio = _row(group, "fast").ratio
    assert ratio is not None
    assert ratio.value == pytest.approx(3.0)


def test_baseline_that_was_not_timed_leaves_no_ratio(measure: Measure, fake_peer: Any) -> None:
    group = measure(fake_peer("gone", 0.03, absent="not installed"), fake_peer("fast", 0.01), baseline="gone")
    assert group.baseline is None
    assert _row(group, "fast").ratio is None


def test_wrong_output_is_failed_and_never_timed(measure: Measure, fake_peer: Any) -> None:
    cheat = fake_peer("cheat", 0.001, wrong=lambda y: y * 1.001)
    group = measure(fake_peer("peer", 0.02), cheat)
    row = _row(group, "cheat")
    assert row.status is Status.FAILED
    assert row.reason is not None
    assert "computes something else: relative error 0.001 is above 1e-05" in row.reason
    assert row.relative_error == pytest.approx(1e-3, rel=0.01)
    assert not row.rounds
    assert cheat.runs == 2
    assert group.baseline == "peer"


@pytest.mark.parametrize(
    "wrong",
    [lambda y: y.clone().fill_(float("nan")), lambda y: y[:1], lambda y: y.flip(1), lambda y: y.bfloat16().float()],
    ids=["nan", "shape", "order", "bfloat16"],
)
def test_other_kinds_of_wrong_output(measure: Measure, fake_peer: Any, wrong: Any) -> None:
    (row,) = measure(fake_peer("cheat", 0.001, wrong=wrong)).rows
    assert row.status is Status.FAILED


def test_row_that_remembers_its_first_output_is_failed(measure: Measure, fake_peer: Any) -> None:
    seen: list[torch.Tensor] = []

    def remember(y: torch.Tensor) -> torch.Tensor:
        seen.append(y)
        return seen[0]

    (row,) = measure(fake_peer("cheat", 0.001, wrong=remember)).rows
    assert row.status is Status.FAILED


def test_absent_row_is_listed_with_its_reason(measure: Measure, fake_peer: Any) -> None:
    absent = fake_peer("gone", 0.01, absent="gone is not installed")
    group = measure(absent, fake_peer("peer", 0.02))
    row = _row(group, "gone")
    assert (row.status, row.reason, absent.runs) == (Status.ABSENT, "gone is not installed", 0)
    assert group.rows[-1] is row


def test_row_for_another_device_is_absent(measure: Measure, fake_peer: Any) -> None:
    (row,) = measure(fake_peer("peer", 0.02, devices=("cuda",))).rows
    assert row.status is Status.ABSENT
    assert row.reason is not None
    assert row.reason == "measured on cuda only"


@pytest.mark.parametrize("run", [1, 20], ids=["in set-up", "while timed"])
def test_row_that_raises_is_failed_with_one_line(measure: Measure, fake_peer: Any, run: int) -> None:
    def crash(number: int) -> None:
        if number == run:
            raise RuntimeError("\nout of cheese\nand a long trace")

    group = measure(fake_peer("broken", 0.01, before_run=crash), fake_peer("peer", 0.02))
    row = _row(group, "broken")
    assert (row.status, row.reason) == (Status.FAILED, "RuntimeError: out of cheese")
    assert row.summary() is None
    assert len(_row(group, "peer").rounds) == 8


def test_ctrl_c_keeps_complete_rounds(measure: Measure, fake_peer: Any) -> None:
    def stop(number: int) -> None:
        if number == 2 + 6 + 3 * 6 + 4:  # in the fourth visit: parity and warm-up take 8 runs, a visit 6
            raise KeyboardInterrupt

    group = measure(fake_peer("a", 0.01), fake_peer("b", 0.02, before_run=stop), baseline="b")
    assert group.interrupted
    assert [row.status for row in group.rows] == [Status.TIMED, Status.TIMED]
    assert [len(row.rounds) for row in group.rows] == [3, 3]
    assert all(len(visit) == 5 for row in group.rows for visit in row.rounds)
    ratio = _row(group, "a").ratio
    assert ratio is not None
    assert ratio.value == pytest.approx(2.0)


def test_figures_of_an_interrupted_run_agree_with_each_other(measure: Measure, fake_peer: Any) -> None:
    """Rows that were visited in the round that Ctrl-C stopped had a sample more in their medians than in their ratios."""

    def stop(number: int) -> None:
        if number == 8 + 2 * 6 + 1:  # at the start of the third visit
            raise KeyboardInterrupt

    slower = lambda run: 0.01 if run <= 8 + 2 * 6 else 5.0  # noqa: E731
    others = [fake_peer(name, slower) for name in "acde"]
    group = measure(*others, fake_peer("b", 0.02, before_run=stop), baseline="b", seed=1)
    assert group.interrupted
    assert max(peer.runs for peer in others) == 8 + 3 * 6  # one was visited in the third round
    assert [len(row.rounds) for row in group.rows] == [2] * 5
    for row in group.rows:
        summary, ratio, baseline = row.summary(), row.ratio, _row(group, "b").summary()
        assert summary is not None
        assert ratio is not None
        assert baseline is not None
        assert ratio.value == pytest.approx(baseline.p50 / summary.p50)
        assert summary.p99 <= 0.021


def test_ctrl_c_before_the_first_round_is_complete_leaves_no_times(measure: Measure, fake_peer: Any) -> None:
    def stop(number: int) -> None:
        if number == 8 + 1:
            raise KeyboardInterrupt

    group = measure(*(fake_peer(name, 0.01) for name in "acde"), fake_peer("b", 0.02, before_run=stop))
    assert {(row.status, row.reason) for row in group.rows} == {(Status.INTERRUPTED, "stopped before the first round of all rows was complete")}


def test_ctrl_c_in_set_up_says_what_was_not_timed(measure: Measure, fake_peer: Any) -> None:
    def stop(number: int) -> None:
        raise KeyboardInterrupt

    group = measure(fake_peer("a", 0.01), fake_peer("b", 0.02, before_run=stop))
    assert group.interrupted
    assert [row.status for row in group.rows] == [Status.INTERRUPTED, Status.INTERRUPTED]
    assert all(row.reason for row in group.rows)


def test_rounds_visit_every_row_in_a_new_order_with_pause_and_untimed_run(measure: Measure, fake_peer: Any, clock: Any) -> None:
    visits: list[str] = []
    peers = [fake_peer(name, 0.01, before_run=lambda number, name=name: visits.append(name) if number > 8 else None) for name in "abcd"]
    group = measure(*peers)
    assert clock.slept == [0.05] * 4 * 8
    blocks = [visits[start : start + 6] for start in range(0, len(visits), 6)]
    assert all(len(set(block)) == 1 for block in blocks)
    orders = [tuple(block[0] for block in blocks[start : start + 4]) for start in range(0, len(blocks), 4)]
    assert all(sorted(order) == list("abcd") for order in orders)
    assert len(set(orders)) > 3
    assert all(len(row.rounds) == 8 for row in group.rows)


def test_order_depends_on_the_seed_alone(measure: Measure, fake_peer: Any) -> None:
    def order(seed: int) -> list[str]:
        steps: list[str] = []
        peers = [fake_peer(name, 0.01, before_run=lambda number, name=name: steps.append(name)) for name in "abcd"]
        measure(*peers, seed=seed)
        return steps

    assert order(1) == order(1) != order(2)


def test_set_up_counts_shared_work_and_first_run(measure: Measure, fake_peer: Any) -> None:
    (row,) = measure(fake_peer("peer", lambda number: 4.0 if number == 1 else 0.01)).rows
    assert row.setup_seconds == pytest.approx(2.0 + 4.0 + 3.0)


def test_threads_are_pinned_handed_on_and_restored(measure: Measure, fake_peer: Any) -> None:
    before, seen = torch.get_num_threads(), []
    peer = fake_peer("peer", 0.01, before_run=lambda number: seen.append(torch.get_num_threads()))
    measure(peer, threads=1)
    assert set(seen) == {1}
    assert peer.threads == 1
    assert peer.released == 1
    assert torch.get_num_threads() == before


def test_threads_are_restored_after_an_error() -> None:
    before = torch.get_num_threads()
    with pytest.raises(RuntimeError, match="boom"), pinned_threads(1):
        raise RuntimeError("boom")
    assert torch.get_num_threads() == before


def test_input_that_the_model_does_not_take(measure: Measure, fake_peer: Any) -> None:
    with pytest.raises(RequestError, match="cannot run in float64"):
        measure(fake_peer("peer", 0.01), shape=(1, 4, 8, 8))


def test_progress_counts_up_to_the_end(measure: Measure, fake_peer: Any) -> None:
    steps: list[tuple[str, int, int]] = []
    measure(fake_peer("a", 0.01), fake_peer("b", 0.01), progress=lambda phase, done, total, what: steps.append((phase, done, total)))
    assert [step for step in steps if step[0] == "preparing"] == [("preparing", 0, 2), ("preparing", 0, 2), ("preparing", 1, 2)]
    assert [done for phase, done, _ in steps if phase == "timing"] == list(range(17))
    assert steps[-1] == ("timing", 16, 16)


def test_slow_row_gets_fewer_runs_a_visit(measure: Measure, fake_peer: Any) -> None:
    group = measure(fake_peer("quick", 0.01), fake_peer("slow", 0.17), fake_peer("slower", 3.0))
    assert {row.name: len(row.rounds[0]) for row in group.rows} == {"quick": 5, "slow": 3, "slower": 2}
    assert all(len(row.rounds) == 8 for row in group.rows)


def test_warm_up_goes_on_until_steady(settings: Settings, clock: Any) -> None:
    times = iter([8.0, 4.0, 2.0, 1.0, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5])

    def run() -> None:
        clock.time += next(times)

    done = warm_up(run, replace(settings, warm_up_seconds=100.0), Instruments(clock, HostTimer(clock)))
    assert done.steady
    assert done.seconds_per_run == 0.5
    assert done.runs == 9  # the first window of three whose median is no longer below that of the three before it


def test_warm_up_has_a_limit(settings: Settings, clock: Any) -> None:
    times = (2.0 * 0.8**number for number in range(1000))

    def run() -> None:
        clock.time += next(times)

    done = warm_up(run, replace(settings, warm_up_seconds=5.0), Instruments(clock, HostTimer(clock)))
    assert not done.steady
    assert done.seconds > 5.0
    assert done.runs == 4
