"""A whole benchmark: every model at every batch size, and what is asked for besides."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from typing import Any

import torch

from fastcnn.bench.measuring.measure import ProgressCallback, Settings, make_inputs, measure_group, no_progress, one_line, pinned_threads, warm_up
from fastcnn.bench.measuring.timing import Instruments
from fastcnn.bench.peers.base import Peer
from fastcnn.bench.peers.runtimes import FromFile
from fastcnn.bench.peers.subject import WEIGHTS, FileSubject, Subject, subject_of
from fastcnn.bench.records.environment import environment, gpu
from fastcnn.bench.records.result import BenchmarkReport, GroupResult, check_baseline
from fastcnn.bench.studies.ceilings import measure_machine_ceilings
from fastcnn.bench.studies.cold_start import ColdStartRequest, cold_start
from fastcnn.bench.studies.ladder import ladder_of, rungs_of
from fastcnn.bench.studies.plan_roofline import roofline_of
from fastcnn.engines import available_backends
from fastcnn.errors import BackendError, FastcnnError, RequestError
from fastcnn.models.request import ModelRequest
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
    models: Sequence[str | ModelRequest],
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
        models: names of the registry, which get seeded random weights; or requests for a model of any kind, or for an ONNX file, of which
            only the rows that run plain ONNX files are measured.
        precision: what all of them compute in; int8 stands for rows in 8 bits beside those in float32.
        progress_of: makes the progress display of one model and batch size from its title.

    Raises UnknownNameError for a model or a baseline that does not exist, RequestError for a wrong number, and BackendError if no peer
    can run on `device` in `precision`. Ctrl-C ends the run; the report then holds what was finished.
    """
    check_settings(settings, batch_sizes)
    check_baseline(settings.baseline, [peer.name for peer in peers])
    check_device(device, peers, precision)
    requests = [ModelRequest(model) if isinstance(model, str) else model for model in models]
    titles = [request.read().title for request in requests]
    chosen = {"device": device, "precision": precision.value, "peers": [peer.name for peer in peers], "weights": WEIGHTS, **asdict(extras)}
    if settings.calibration is not None:
        chosen["calibration"] = settings.calibration.name
    report = BenchmarkReport(environment(device), asdict(settings) | chosen)
    for title, request in zip(titles, requests, strict=True):
        subject, sizes = subject_of(request, precision, device, settings.calibration)
        _note_weights(report, title, subject)
        run = _Run(report, _rows_for(subject, peers, title), settings, device, extras, request)
        with subject:
            for batch_size in batch_sizes:
                _check_batch(subject, batch_size, title)
                with progress_of(f"{title}, batch {batch_size}") if progress_of else nullcontext(no_progress) as progress:
                    run.measure(title, subject, (batch_size, *sizes), progress)
                if report.interrupted:
                    return report
    if device == "cuda":
        report.environment = {**report.environment, "gpu_after_run": gpu()}
    return report


def _note_weights(report: BenchmarkReport, title: str, subject: Subject) -> None:
    """Beside the settings, where a model has other weights than those that the models of the registry get."""
    described: Any = getattr(subject.model, "fastcnn_info", None)
    weights = described.weights if described is not None else f"those of {title}"
    if weights != WEIGHTS:
        noted = report.settings["weights"]
        report.settings = {**report.settings, "weights": {**(noted if isinstance(noted, dict) else {}), title: weights}}


def _rows_for(subject: Subject, peers: Sequence[Peer], title: str) -> Sequence[Peer]:
    """All rows; of an ONNX file those that run one as it is."""
    if not isinstance(subject, FileSubject):
        return peers
    rows = [peer for peer in peers if isinstance(peer, FromFile) and not peer.ours and "cpu" in peer.devices]
    if not rows:
        raise RequestError(f"{title} is an ONNX file, which onnxruntime and openvino run: name one of them with --peers, or leave it out")
    return rows


def _check_batch(subject: Subject, batch_size: int, title: str) -> None:
    fixed = subject.taken[0] if isinstance(subject, FileSubject) else None
    if fixed not in (None, batch_size):
        raise RequestError(f"{title} takes a batch of {fixed} alone: give --batch-size {fixed}")


@dataclass(frozen=True)
class _Run:
    """What is the same for every model and batch size."""

    report: BenchmarkReport
    peers: Sequence[Peer]
    settings: Settings
    device: str
    extras: Extras
    request: ModelRequest

    def measure(self, model: str, subject: Subject, shape: tuple[int, ...], progress: ProgressCallback) -> None:
        """Appends a group to the report. What is finished before a Ctrl-C stays in it."""
        group = measure_group(model, subject, self.peers, shape, self.settings, progress=progress)
        self.report.groups.append(group)
        if group.interrupted:
            return
        with _ending_at_ctrl_c(group):
            if self.extras.ladder and not isinstance(subject, FileSubject):
                self._climb(model, subject, group, progress)
            if self.extras.roofline and not isinstance(subject, FileSubject) and not group.interrupted:
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
            request = ColdStartRequest(
                model, name, self.device, subject.precision.value, group.input_shape, self.settings.threads, asdict(self.request)
            )
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
