"""A whole benchmark: every model at every batch size."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict

import torch

from fastcnn.bench.environment import environment
from fastcnn.bench.measure import Progress, Settings, measure_group, no_progress
from fastcnn.bench.peers import Peer, Subject
from fastcnn.bench.results import BenchmarkReport, check_baseline
from fastcnn.errors import BackendError, RequestError
from fastcnn.models.registry import create_model, model_spec

ProgressOf = Callable[[str], AbstractContextManager[Progress]]


def benchmark(
    models: Sequence[str],
    batch_sizes: Sequence[int],
    peers: Sequence[Peer],
    settings: Settings,
    *,
    device: str = "cpu",
    progress_of: ProgressOf | None = None,
) -> BenchmarkReport:
    """Times all peers on every model and batch size, one after the other in this process.

    Args:
        models: names of the registry; they get seeded random weights.
        progress_of: makes the progress display of one model and batch size from its title.

    Raises UnknownNameError for a model or a baseline that does not exist, RequestError for a wrong number, and BackendError if no peer
    can run on `device`. Ctrl-C ends the run; the report then holds what was finished.
    """
    check_settings(settings, batch_sizes)
    check_baseline(settings.baseline, [peer.name for peer in peers])
    check_device(device, peers)
    specs = [model_spec(name) for name in models]
    report = BenchmarkReport(
        environment(), asdict(settings) | {"device": device, "peers": [peer.name for peer in peers], "weights": "random (seed 0)"}
    )
    for spec in specs:
        with Subject(create_model(spec.name)) as subject:
            for batch_size in batch_sizes:
                with progress_of(f"{spec.name}, batch {batch_size}") if progress_of else nullcontext(no_progress) as progress:
                    shape = (batch_size, *spec.input_size)
                    report.groups.append(measure_group(spec.name, subject, peers, shape, settings, device=device, progress=progress))
                if report.interrupted:
                    return report
    return report


def check_settings(settings: Settings, batch_sizes: Sequence[int]) -> None:
    """Raises RequestError for a number that makes no sense."""
    for name, value in (("threads", settings.threads), ("rounds", settings.rounds), *(("batch size", size) for size in batch_sizes)):
        if value < 1:
            raise RequestError(f"the {name} must be at least 1, not {value}")


def check_device(device: str, peers: Sequence[Peer]) -> None:
    """Raises BackendError if there is no such device here or no peer that runs on it."""
    if device == "cuda" and not torch.cuda.is_available():
        why = "PyTorch finds no NVIDIA GPU or driver" if torch.backends.cuda.is_built() else "this build of PyTorch is for CPUs only"
        raise BackendError(f"no CUDA device: {why}; leave out --device, or take --device cpu")
    names_of: dict[str | None, list[str]] = {}
    for peer in peers:
        names_of.setdefault(peer.available(device), []).append(peer.name)
    if None not in names_of:
        raise BackendError(f"no row can run on {device}: " + "; ".join(f"{', '.join(names)}: {reason}" for reason, names in names_of.items()))
