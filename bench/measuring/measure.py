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
import itertools
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np
import torch
from torch import Tensor

from fastcnn.bench.measuring.timing import Instruments, Sample
from fastcnn.bench.peers.base import Peer, Runner
from fastcnn.bench.peers.subject import Accuracy, Subject
from fastcnn.bench.records.result import BEST_PEER, GroupResult, RowResult, Status, WarmUp
from fastcnn.errors import BackendError, DeviceMemoryError, ParityError, RequestError
from fastcnn.parity import Expected, bound, compare, expect, flatten
from fastcnn.precision import Precision


@dataclass(frozen=True)
class Settings:
    """How to measure.

    Attributes:
        threads: for every runtime alike.
        rounds: visits to each row.
        timed_runs: per visit; two at least, and no more than fit in `visit_seconds`, so that a slow model does not take all day.
        settle_seconds: the pause at the start of a visit, in which the threads of the row before fall asleep.
        seed: of the inputs and of the order of rows.
        inputs: how many input buffers the runs take in turns, so that none finds its input in a cache because the last run left it there.
        warm_up_window: runs that are compared with as many before them; a row is steady when they are not faster by 3 %.
        warm_up_seconds: the most that the warm-up of a row takes.
        baseline: the row that ratios refer to, or `best-peer`.
        calibration: of rows in int8: a folder of pictures, or a .npy or .npz file of preprocessed ones; they are then the input of every row.
    """

    threads: int
    rounds: int = 10
    timed_runs: int = 5
    visit_seconds: float = 0.5
    settle_seconds: float = 0.05
    seed: int = 0
    inputs: int = 4
    warm_up_window: int = 3
    warm_up_seconds: float = 10.0
    baseline: str = BEST_PEER
    calibration: Path | None = None


# phase, steps done, steps in all, what comes next
ProgressCallback = Callable[[str, int, int, str], None]


def no_progress(phase: str, done: int, total: int, what: str) -> None:
    """Shows nothing."""


def measure_group(
    name: str,
    subject: Subject,
    peers: Sequence[Peer],
    input_shape: Sequence[int],
    settings: Settings,
    *,
    instruments: Instruments | None = None,
    progress: ProgressCallback = no_progress,
) -> GroupResult:
    """Times every peer on one model and one input shape, in this process and on the subject's device.

    Args:
        name: of the model, for the report.
        input_shape: (N, C, H, W). Where a row or the reference runs out of memory at N, all of them run at half of it, and so on.
        instruments: those of the device for None.
        progress: called before each step.

    A peer that is missing, raises, or differs from the reference becomes a row that says so. Ctrl-C ends the measuring and keeps the
    rounds that all rows completed; the result then has `interrupted` set.

    Raises RequestError if the model cannot take such an input.
    """
    requested, *sizes = input_shape
    batch_size, lowered_because = requested, None
    device = subject.device.type
    while True:
        measuring = _Measuring(name, subject, peers, (batch_size, *sizes), settings, instruments or Instruments.of(device), progress)
        try:
            group = measuring.run()
        except _OutOfMemoryError as problem:
            lowered_because = lowered_because or f"{problem}, at batch {batch_size}"
            batch_size //= 2
        else:
            group.requested_batch_size, group.lowered_because = requested, lowered_because
            return group
        progress("preparing", 0, len(peers), f"out of memory: on with batch {batch_size}")
        del measuring
        _free_memory(device)  # only now: the error held on to all that was allocated


def _free_memory(device: str) -> None:
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()


class _OutOfMemoryError(Exception):
    """A batch that could be smaller did not fit; the text says what did not."""


class _Measuring:
    """One attempt at one batch size. Parameters as in `measure_group`."""

    def __init__(
        self,
        name: str,
        subject: Subject,
        peers: Sequence[Peer],
        shape: tuple[int, ...],
        settings: Settings,
        instruments: Instruments,
        progress: ProgressCallback,
    ) -> None:
        self.subject, self.peers, self.settings, self.device = subject, peers, settings, subject.device.type
        self.instruments, self.progress = instruments, progress
        dtype = str(subject.precision.dtype).removeprefix("torch.")
        rows = [RowResult(peer.name, peer.ours) for peer in peers]
        self.group = GroupResult(name, shape[0], shape, dtype, self.device, 0.0, rows, precision=subject.precision.value)

    def run(self) -> GroupResult:
        group, runners = self.group, dict[str, Runner]()
        with ExitStack() as stack:
            stack.enter_context(pinned_threads(self.settings.threads))
            stack.enter_context(self.subject.precision.switches())
            if self.device == "cuda":
                # Not the default stream: a runtime that is given its number 0 takes that for none, and starts one of its own.
                torch.cuda.synchronize()  # the model came to the device on another stream
                stack.enter_context(torch.cuda.stream(torch.cuda.Stream()))
            try:
                self._prepare_all(runners)
                self._take_turns(runners)
            except KeyboardInterrupt:
                group.interrupted = True
            finally:
                runners.clear()
                for peer in self.peers:
                    peer.release()
                if self.device == "cuda":
                    _free_memory(self.device)
        self._keep_common_rounds()
        for row in group.rows:
            if row.rounds and row.status is not Status.FAILED:
                row.status = Status.TIMED
            elif row.status is Status.INTERRUPTED:
                row.reason = "stopped before the first round of all rows was complete"
        group.finish(self.settings.baseline)
        return group

    def _prepare_all(self, runners: dict[str, Runner]) -> None:
        count = len(self.peers)
        self.progress("preparing", 0, count, "the reference in float64")
        try:
            self.inputs = make_inputs(self.group.input_shape, self.subject, self.settings)
            expected, self.group.tolerance = expect_of(self.subject, self.inputs[:2])
        except (RequestError, RuntimeError, MemoryError) as problem:
            self._lower_batch("the reference", problem)
            raise
        for step, (peer, row) in enumerate(zip(self.peers, self.group.rows, strict=True)):
            self.progress("preparing", step, count, peer.name)
            run = self._prepare(peer, row, expected)
            if run is not None:
                runners[peer.name] = run

    def _prepare(self, peer: Peer, row: RowResult, expected: Expected) -> Runner | None:
        """Set-up, parity and warm-up of one row; None, and the reason in the row, where it has nothing to time."""
        first = self.inputs[0]
        try:
            row.precision = peer.computes_in(self.subject.precision).value
            row.reason = peer.available(self.device, self.subject.precision)
            if row.reason is not None:
                row.status = Status.ABSENT
                return None
            start = self.instruments.clock.now()
            prepared = peer.prepare(self.subject, first, self.settings.threads)
            outputs = [flatten(prepared.run(first))]
            row.setup_seconds = self.instruments.clock.now() - start + prepared.reused_seconds
            row.proof, row.size_bytes = prepared.proof, prepared.size_bytes
            outputs += [flatten(prepared.run(x)) for x in self.inputs[1:2]]
            report = compare(outputs, expected, tolerance=self.group.tolerance)
            row.relative_error = report.relative_error
            if prepared.accuracy is not None:
                _judge(row, report.relative_error, prepared.accuracy)
            elif not report.passed:
                raise ParityError("computes something else: " + next(batch.reason for batch in report.rows if batch.reason), report)
            turns = itertools.cycle(self.inputs)
            row.warm_up = warm_up(lambda: prepared.run(next(turns)), self.settings, self.instruments)
        except Exception as problem:
            self._lower_batch(peer.name, problem)
            _fail(row, problem)
            return None
        return prepared.run

    def _take_turns(self, runners: dict[str, Runner]) -> None:
        settings, rows = self.settings, {row.name: row for row in self.group.rows}
        order, shuffle = list(runners), random.Random(settings.seed).shuffle
        runs = {row.name: _timed_runs(row.warm_up, settings) for row in self.group.rows if row.warm_up is not None}
        for turn in range(settings.rounds):
            shuffle(order)
            for position, name in enumerate(order):
                row = rows[name]
                if row.status is Status.FAILED:
                    continue
                self.progress("timing", turn * len(order) + position, settings.rounds * len(order), f"round {turn + 1} of {settings.rounds}")
                try:
                    samples = self._visit(runners[name], runs[name])
                except Exception as problem:
                    self._lower_batch(name, problem)
                    _fail(row, problem)
                    continue
                row.rounds.append([sample.seconds for sample in samples])
                if samples[0].end_to_end is not None:
                    row.end_to_end_rounds.append([sample.end_to_end for sample in samples if sample.end_to_end is not None])
        self.progress("timing", settings.rounds * len(order), settings.rounds * len(order), "done")
        for row in self.group.rows:
            _require_events_to_see_the_work(row)

    def _keep_common_rounds(self) -> None:
        """Drops what an interrupted round measured: all figures of all rows are then of the same rounds, and agree with each other."""
        timed = [row for row in self.group.rows if row.warm_up is not None and row.status is not Status.FAILED]
        complete = min((len(row.rounds) for row in timed), default=0)
        for row in timed:
            del row.rounds[complete:], row.end_to_end_rounds[complete:]

    def _visit(self, run: Runner, timed_runs: int) -> list[Sample]:
        self.instruments.clock.sleep(self.settings.settle_seconds)
        run(self.inputs[-1])
        turns = itertools.cycle(self.inputs)
        collecting = gc.isenabled()
        gc.disable()  # a collection would be charged to whichever row happens to run
        try:
            return [self.instruments.timer.time(lambda: run(next(turns))) for _ in range(timed_runs)]
        finally:
            if collecting:
                gc.enable()

    def _lower_batch(self, what: str, problem: BaseException) -> None:
        """Raises _OutOfMemoryError if that is the problem and a smaller batch is left to try."""
        if is_out_of_memory(problem) and self.group.batch_size > 1:
            raise _OutOfMemoryError(f"{what}: {one_line(problem)}") from problem


def _judge(row: RowResult, error: float, accuracy: Accuracy) -> None:
    """The figures of pictures kept apart become the row's. Raises ParityError where it is further off on these inputs than it may be on any."""
    if not error <= max(accuracy.bound, 2 * accuracy.relative_error):
        raise ParityError(f"computes something else: relative error {error:.3g}, above {accuracy.bound:g}")
    row.relative_error, row.agreement = accuracy.relative_error, accuracy.agreement


def make_inputs(shape: tuple[int, ...], subject: Subject, settings: Settings) -> list[Tensor]:
    """At least two inputs on the subject's device: a row that gives the first one's output back whatever it is asked is caught.

    They are random, or calibration pictures where the subject has some.
    """
    count = max(2, settings.inputs)
    pictures = subject.pictures(count * shape[0], shape[1:])
    if pictures is not None:
        return list(pictures.split(shape[0]))
    generator = torch.Generator().manual_seed(settings.seed)
    return [torch.rand(shape, generator=generator).to(subject.device, subject.precision.dtype) for _ in range(count)]


def expect_of(subject: Subject, inputs: Sequence[Tensor]) -> tuple[Expected, float]:
    """What the reference gives for each of `inputs`, and the largest relative L2 error of a row that computes the same.

    Raises RequestError where the reference has no finite output in its own dtype: nothing could be compared then.
    """
    ends = list(itertools.accumulate(len(x) for x in inputs))
    slices = list(zip([0, *ends], ends, strict=False))
    precision = subject.precision
    expected = expect(subject.model, torch.cat(list(inputs)), slices, dtype=precision.dtype, tf32=precision is Precision.tf32)
    assert expected.eager is not None
    pairs = list(zip(itertools.chain(*expected.reference), itertools.chain(*expected.eager), strict=True))
    if not all(np.isfinite(eager).any() for _, eager in pairs):
        raise RequestError(f"the reference has no finite output in {expected.dtype}, and nothing can be compared: take another --precision")
    return expected, max(bound(expected.dtype, truth, eager) for truth, eager in pairs)


def is_out_of_memory(problem: BaseException | None) -> bool:
    """Whether an error, or the one that it was raised from, says that memory was short; each runtime says it in its own way."""
    if problem is None:
        return False
    words = ("out of memory", "can't allocate memory", "bad_alloc", "failed to allocate memory", "alloc_failed")
    known = isinstance(problem, (torch.OutOfMemoryError, MemoryError, DeviceMemoryError))
    return known or any(word in str(problem).lower() for word in words) or is_out_of_memory(problem.__cause__)


def warm_up(run: Callable[[], object], settings: Settings, instruments: Instruments) -> WarmUp:
    """Runs until the last few runs are not faster than those before them, or the time for it is over."""
    clock, timer = instruments.clock, instruments.timer
    window, times = settings.warm_up_window, list[float]()
    start = clock.now()
    while True:
        times.append(timer.time(run).seconds)
        steady = len(times) >= 2 * window and median(times[-window:]) > 0.97 * median(times[-2 * window : -window])
        elapsed = clock.now() - start
        if steady or elapsed > settings.warm_up_seconds:
            return WarmUp(len(times), elapsed, median(times[-window:]), steady)


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


def _timed_runs(warm: WarmUp, settings: Settings) -> int:
    fitting = settings.visit_seconds / max(warm.seconds_per_run, 1e-9)
    return min(settings.timed_runs, max(2, round(fitting)))


def _require_events_to_see_the_work(row: RowResult) -> None:
    """Fails a row whose work went on after the second event: it runs on a stream that the events are not on, and its times mean nothing."""
    if row.status is Status.FAILED or not row.end_to_end_rounds:
        return
    seconds, end_to_end = (median(itertools.chain.from_iterable(rounds)) for rounds in (row.rounds, row.end_to_end_rounds))
    # Recording two events and waiting for the device takes some tens of microseconds.
    if end_to_end > 1.5 * seconds + 200e-6:
        _fail(row, BackendError(f"device events saw {seconds * 1e3:.3f} ms of a run of {end_to_end * 1e3:.3f} ms: its work is on another stream"))


def _fail(row: RowResult, problem: Exception) -> None:
    row.status = Status.FAILED
    row.reason = str(problem) if isinstance(problem, (ParityError, BackendError)) else one_line(problem)
