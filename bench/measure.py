"""Proves every row against the reference, warms it up, and times all rows in turns.

How the turns are taken, and why. Rows share two things that make them disturb one another: the caches, where each finds the weights of
the row before it in place of its own, and the cores, on which the thread pools of other runtimes go on spinning for a while after their last
run. Timed one run after another in random order (Inception-v3, batch 1, two cores of an AMD EPYC, torch 2.15), the fast rows paid most:
onnxruntime went from 26.8 ms alone to 32.4, OpenVINO from 25.9 to 30.4, while the quartiles of eager PyTorch were 30 ms apart instead of 1.
Switching off onnxruntime's spinning did not bring the fast rows back, and is not what its users have. One untimed run before the timed
ones did (26.6 and 26.3), and a pause of 50 ms before it halved the spread of what was left (26.2 ± 0.5 and 25.6 ± 0.3). Hence a visit is a
pause, one untimed run and a few timed ones, and each round visits every row once, in an order drawn anew: drift of the machine meets all rows alike.
"""

from __future__ import annotations

import gc
import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median
from typing import Protocol

import torch
from torch import Tensor

from fastcnn.bench.peers import Peer, Runner, Subject
from fastcnn.bench.results import BEST_PEER, GroupResult, RowResult, Status, WarmUp
from fastcnn.errors import ParityError
from fastcnn.parity import TOLERANCE, Expected, compare, expect, flatten


class Clock(Protocol):
    def now(self) -> float:
        """Seconds from any fixed moment; never goes back."""

    def sleep(self, seconds: float) -> None: ...


class MonotonicClock:
    def now(self) -> float:
        return time.perf_counter()

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)


@dataclass(frozen=True)
class Settings:
    """How to measure.

    Attributes:
        threads: for every runtime alike.
        rounds: visits to each row.
        timed_runs: per visit; two at least, and no more than fit in `visit_seconds`, so that a slow model does not take all day.
        settle_seconds: the pause at the start of a visit, in which the threads of the row before fall asleep.
        seed: of the inputs and of the order of rows.
        warm_up_window: runs that are compared with as many before them; a row is steady when they are not faster by 3 %.
        warm_up_seconds: the most that the warm-up of a row takes.
        tolerance: the largest relative L2 error of a row that still computes the reference's function.
        baseline: the row that ratios refer to, or `best-peer`.
    """

    threads: int
    rounds: int = 10
    timed_runs: int = 5
    visit_seconds: float = 0.5
    settle_seconds: float = 0.05
    seed: int = 0
    warm_up_window: int = 3
    warm_up_seconds: float = 10.0
    tolerance: float = TOLERANCE["float32"]
    baseline: str = BEST_PEER


# phase, steps done, steps in all, what comes next
Progress = Callable[[str, int, int, str], None]


def no_progress(phase: str, done: int, total: int, what: str) -> None:
    """Shows nothing."""


def measure_group(
    name: str,
    subject: Subject,
    peers: Sequence[Peer],
    input_shape: Sequence[int],
    settings: Settings,
    *,
    device: str = "cpu",
    clock: Clock | None = None,
    progress: Progress = no_progress,
) -> GroupResult:
    """Times every peer on one model and one input shape, in this process.

    Args:
        name: of the model, for the report.
        input_shape: (N, C, H, W).
        clock: another one for tests.
        progress: called before each step.

    A peer that is missing, raises, or differs from the reference becomes a row that says so. Ctrl-C ends the measuring and keeps every
    complete visit; the result then has `interrupted` set.

    Raises RequestError if the model cannot take such an input.
    """
    shape = tuple(input_shape)
    clock = clock or MonotonicClock()
    group = GroupResult(name, shape[0], shape, "float32", device, settings.tolerance, [RowResult(peer.name, peer.ours) for peer in peers])
    runners: dict[str, Runner] = {}
    with pinned_threads(settings.threads):
        try:
            progress("preparing", 0, len(peers), "the reference in float64")
            inputs = _inputs(shape, settings.seed)
            expected = expect(subject.model, torch.cat(inputs), [(0, shape[0]), (shape[0], 2 * shape[0])], dtype=torch.float32)
            for step, (peer, row) in enumerate(zip(peers, group.rows, strict=True)):
                progress("preparing", step, len(peers), peer.name)
                run = _prepare(peer, row, device, subject, inputs, expected, settings, clock)
                if run is not None:
                    runners[peer.name] = run
            _take_turns(group, runners, inputs[0], settings, clock, progress)
        except KeyboardInterrupt:
            group.interrupted = True
        finally:
            runners.clear()
            for peer in peers:
                peer.release()
    for row in group.rows:
        if row.rounds and row.status is not Status.FAILED:
            row.status = Status.TIMED
        elif row.status is Status.INTERRUPTED:
            row.reason = "stopped before its first round was complete"
    group.finish(settings.baseline)
    return group


def warm_up(run: Callable[[], object], settings: Settings, clock: Clock) -> WarmUp:
    """Runs until the last few runs are not faster than those before them, or the time for it is over."""
    window, times = settings.warm_up_window, []
    start = clock.now()
    while True:
        times.append(timed(run, clock))
        steady = len(times) >= 2 * window and median(times[-window:]) > 0.97 * median(times[-2 * window : -window])
        elapsed = clock.now() - start
        if steady or elapsed > settings.warm_up_seconds:
            return WarmUp(len(times), elapsed, median(times[-window:]), steady)


def timed(run: Callable[[], object], clock: Clock) -> float:
    """Seconds that one run takes."""
    start = clock.now()
    run()
    return clock.now() - start


@contextmanager
def pinned_threads(threads: int) -> Iterator[None]:
    """PyTorch's threads within the block; the former count comes back after it."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def one_line(problem: BaseException) -> str:
    """An error's type and the first line of its text that says something."""
    text = next((line.strip() for line in str(problem).splitlines() if line.strip()), "")
    kind = type(problem).__name__
    return f"{kind}: {text[:300]}" if text else kind


def _inputs(shape: tuple[int, ...], seed: int) -> list[Tensor]:
    """Two inputs: the first is timed; the second catches a row that gives the first one's output back whatever it is asked."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.rand(shape, generator=generator) for _ in range(2)]


def _prepare(
    peer: Peer,
    row: RowResult,
    device: str,
    subject: Subject,
    inputs: Sequence[Tensor],
    expected: Expected,
    settings: Settings,
    clock: Clock,
) -> Runner | None:
    """Set-up, parity and warm-up of one row; None, and the reason in the row, where it has nothing to time."""
    try:
        row.reason = peer.available(device)
        if row.reason is not None:
            row.status = Status.ABSENT
            return None
        start = clock.now()
        prepared = peer.prepare(subject, inputs[0], settings.threads)
        outputs = [prepared.run(inputs[0])]
        row.setup_seconds = clock.now() - start + prepared.reused_seconds
        row.proof = prepared.proof
        outputs += [prepared.run(x) for x in inputs[1:]]
        report = compare([flatten(output) for output in outputs], expected, tolerance=settings.tolerance)
        row.relative_error = report.relative_error
        if not report.passed:
            raise ParityError("computes something else: " + next(batch.reason for batch in report.rows if batch.reason), report)
        row.warm_up = warm_up(lambda: prepared.run(inputs[0]), settings, clock)
    except Exception as problem:
        _fail(row, problem)
        return None
    return prepared.run


def _take_turns(group: GroupResult, runners: dict[str, Runner], x: Tensor, settings: Settings, clock: Clock, progress: Progress) -> None:
    rows = {row.name: row for row in group.rows}
    order = list(runners)
    runs = {row.name: _timed_runs(row.warm_up, settings) for row in group.rows if row.warm_up is not None}
    shuffle = random.Random(settings.seed).shuffle
    for turn in range(settings.rounds):
        shuffle(order)
        for position, name in enumerate(order):
            if rows[name].status is Status.FAILED:
                continue
            progress("timing", turn * len(order) + position, settings.rounds * len(order), f"round {turn + 1} of {settings.rounds}")
            try:
                rows[name].rounds.append(_visit(runners[name], x, runs[name], settings, clock))
            except Exception as problem:
                _fail(rows[name], problem)
    progress("timing", settings.rounds * len(order), settings.rounds * len(order), "done")


def _timed_runs(warm: WarmUp, settings: Settings) -> int:
    fitting = settings.visit_seconds / max(warm.seconds_per_run, 1e-9)
    return min(settings.timed_runs, max(2, round(fitting)))


def _visit(run: Runner, x: Tensor, timed_runs: int, settings: Settings, clock: Clock) -> list[float]:
    clock.sleep(settings.settle_seconds)
    run(x)
    collecting = gc.isenabled()
    gc.disable()  # a collection would be charged to whichever row happens to run
    try:
        return [timed(lambda: run(x), clock) for _ in range(timed_runs)]
    finally:
        if collecting:
            gc.enable()


def _fail(row: RowResult, problem: Exception) -> None:
    row.status = Status.FAILED
    row.reason = str(problem) if isinstance(problem, ParityError) else one_line(problem)
