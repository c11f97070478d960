"""A whole benchmark: every model at every batch size, and what is asked for besides."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass

import torch

from fastcnn.bench.measuring.measure import ProgressCallback, Settings, make_inputs, measure_group, no_progress, one_line, pinned_threads, warm_up
from fastcnn.bench.measuring.timing import Instruments
from fastcnn.bench.peers.base import Peer
from fastcnn.bench.peers.subject import WEIGHTS, Subject, model_under_test
from fastcnn.bench.records.environment import environment, gpu
from fastcnn.bench.records.result import BenchmarkReport, GroupResult, check_baseline
from fastcnn.bench.studies.ceilings import measure_machine_ceilings
from fastcnn.bench.studies.cold_start import ColdStartRequest, cold_start
from fastcnn.bench.studies.ladder import ladder_of, rungs_of
from fastcnn.bench.studies.plan_roofline import roofline_of
from fastcnn.engines import available_backends
from fastcnn.errors import BackendError, FastcnnError, RequestError
from fastcnn.models import model_spec
from fastcnn.precision import Precision

log = logging.getLogger(__name__)

ProgressCallbackOf = Callable[[str], AbstractContextManager[ProgressCallback]]


@dataclass(frozen=True)
class Extras:
    """What is measured besides the rows.

    Attributes:
        cold_start: a fresh process for each timed row, for its first answer and its memory.
        roofline: the machine's ceilings, and what they allow each step of the plan.
        ladder: the techniques one on top of the other.
    """

    cold_start: bool = False
    roofline: bool = False
    ladder: bool = False


def benchmark(
    models: Sequence[str],
    batch_sizes: Sequence[int],
    peers: Sequence[Peer],
    settings: Settings,
    *,
    device: str = "cpu",
    precision: Precision = Precision.fp32,
    extras: Extras = Extras(),
    progress_of: ProgressCallbackOf | None = None,
) -> BenchmarkReport:
    """Times all peers on every model and batch size, one after the other in this process.

    Args:
        models: names of the registry; they get seeded random weights.
        precision: what all of them compute in.
        progress_of: makes the progress display of one model and batch size from its title.

    Raises UnknownNameError for a model or a baseline that does not exist, RequestError for a wrong number, and BackendError if no peer
    can run on `device` in `precision`. Ctrl-C ends the run; the report then holds what was finished.
    """
    check_settings(settings, batch_sizes)
    check_baseline(settings.baseline, [peer.name for peer in peers])
    check_device(device, peers, precision)
    specs = [model_spec(name) for name in models]
    chosen = {"device": device, "precision": precision.value, "peers": [peer.name for peer in peers], "weights": WEIGHTS, **asdict(extras)}
    report = BenchmarkReport(environment(device), asdict(settings) | chosen)
    run = _Run(report, peers, settings, device, extras)
    for spec in specs:
        with Subject(model_under_test(spec.name), precision, device) as subject:
            for batch_size in batch_sizes:
                with progress_of(f"{spec.name}, batch {batch_size}") if progress_of else nullcontext(no_progress) as progress:
                    run.measure(spec.name, subject, (batch_size, *spec.input_size), progress)
                if report.interrupted:
                    return report
    if device == "cuda":
        report.environment = {**report.environment, "gpu_after_run": gpu()}
    return report


@dataclass(frozen=True)
class _Run:
    """What is the same for every model and batch size."""

    report: BenchmarkReport
    peers: Sequence[Peer]
    settings: Settings
    device: str
    extras: Extras

    def measure(self, model: str, subject: Subject, shape: tuple[int, ...], progress: ProgressCallback) -> None:
        """Appends a group to the report. What is finished before a Ctrl-C stays in it."""
        group = measure_group(model, subject, self.peers, shape, self.settings, progress=progress)
        self.report.groups.append(group)
        if group.interrupted:
            return
        with _ending_at_ctrl_c(group):
            if self.extras.ladder:
                self._climb(model, subject, group, progress)
            if self.extras.roofline and not group.interrupted:
                self._compare_with_ceilings(subject, group, progress)
            if self.extras.cold_start and not group.interrupted:
                self._start_cold(model, subject, group, progress)

    def _climb(self, model: str, subject: Subject, group: GroupResult, progress: ProgressCallback) -> None:
        rungs = rungs_of(self.device)

        def climbing(phase: str, done: int, total: int, what: str) -> None:
            progress(f"ladder: {phase}", done, total, what)

        climbed = measure_group(model, subject, rungs, group.input_shape, self.settings, progress=climbing)
        group.ladder, group.interrupted = ladder_of(climbed, rungs), climbed.interrupted

    def _compare_with_ceilings(self, subject: Subject, group: GroupResult, progress: ProgressCallback) -> None:
        import fastcnn

        threads, precision = self.settings.threads, subject.precision
        progress("roofline", 0, 2, "ceilings of the machine")
        if self.report.ceilings is None:
            self.report.ceilings = measure_machine_ceilings(self.device, precision, threads)
        # The engines whose plan is run as it stands: every step can be timed. The others are held against the same sum.
        backend = "triton" if self.device == "cuda" and available_backends()["triton"] is None else "torch"
        progress("roofline", 1, 2, f"steps of the {backend} engine")
        try:
            with pinned_threads(threads), precision.switches():
                x = make_inputs(group.input_shape, subject, self.settings)[0]
                module = fastcnn.optimize(subject.model, x, backend=backend, allow_tf32=precision is Precision.tf32)
                alone = warm_up(lambda: module(x), self.settings, Instruments.of(self.device)).seconds_per_run
                timed = next((summary.p50 for row in group.timed() if row.name == f"fastcnn_{backend}" and (summary := row.summary())), alone)
                group.roofline, group.roofline_total = roofline_of(module, x, self.report.ceilings, timed)
        except (FastcnnError, RuntimeError) as problem:  # the rows that are timed by now are worth more than this
            log.warning("no roofline of %s at batch %d: %s", group.model, group.batch_size, one_line(problem))
        progress("roofline", 2, 2, "done")

    def _start_cold(self, model: str, subject: Subject, group: GroupResult, progress: ProgressCallback) -> None:
        rungs = {rung.technique: rung for rung in group.ladder or [] if rung.summary()}
        rows = {row.name: row for row in group.timed()}
        jobs = [*rows, *(name for name in rungs if name not in rows)]
        for step, name in enumerate(jobs):
            progress("cold start", step, len(jobs), name)
            request = ColdStartRequest(model, name, self.device, subject.precision.value, group.input_shape, self.settings.threads)
            try:
                found = cold_start(request)
            except BackendError as problem:
                if name in rows:
                    rows[name].proof = {**rows[name].proof, "cold start": one_line(problem)}
                continue
            if name in rungs:
                rungs[name].peak_memory_bytes = found.peak_memory_bytes
            if name in rows:
                row = rows[name]
                row.cold_start_phases = found.phases
                row.peak_memory_bytes, row.allocator_peak_bytes = found.peak_memory_bytes, found.allocator_peak_bytes
                if found.kernels is not None:
                    row.proof = {**row.proof, "CUDA kernels a run": str(found.kernels)}
        progress("cold start", len(jobs), len(jobs), "done")


@contextmanager
def _ending_at_ctrl_c(group: GroupResult) -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        group.interrupted = True


def check_settings(settings: Settings, batch_sizes: Sequence[int]) -> None:
    """Raises RequestError for a number that makes no sense."""
    for name, value in (("threads", settings.threads), ("rounds", settings.rounds), *(("batch size", size) for size in batch_sizes)):
        if value < 1:
            raise RequestError(f"the {name} must be at least 1, not {value}")


def check_device(device: str, peers: Sequence[Peer], precision: Precision = Precision.fp32) -> None:
    """Raises BackendError if there is no such device here, or no peer that runs on it in that precision."""
    if device == "cuda" and not torch.cuda.is_available():
        why = "PyTorch finds no NVIDIA GPU or driver" if torch.backends.cuda.is_built() else "this build of PyTorch is for CPUs only"
        raise BackendError(f"no CUDA device: {why}; leave out --device, or take --device cpu")
    if precision is Precision.tf32 and device != "cuda":
        raise BackendError("tf32 is a mode of NVIDIA GPUs: take --device cuda, or --precision fp32")
    names_of: dict[str | None, list[str]] = {}
    for peer in peers:
        names_of.setdefault(peer.available(device, precision), []).append(peer.name)
    if None not in names_of:
        raise BackendError(f"no row can run on {device}: " + "; ".join(f"{', '.join(names)}: {reason}" for reason, names in names_of.items()))
