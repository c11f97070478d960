"""Every implementation of every convolution of a network, timed one by one on a GPU: what the choices that ship with
the package come from.

Unlike the engine, which stops when its time is over, this runs every variant. Each is first held against PyTorch in
float32; times are those of replays of a CUDA graph, so launches from Python are not in them, and inputs are in the L2
cache as they are behind the layer before.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from fastcnn.bench.peers.subject import model_under_test
from fastcnn.bench.records.environment import environment
from fastcnn.engines.triton.options import IMPLEMENTATIONS
from fastcnn.engines.triton.survey import Survey, VariantTiming, fastest, to_choices
from fastcnn.errors import RequestError
from fastcnn.files import write_text
from fastcnn.graph.capture import capture
from fastcnn.models.registry import model_spec
from fastcnn.precision import Precision

SCHEMA = "fastcnn-layers/1"

# The most that compiling all variants takes before the first is timed; what is left is compiled when its turn comes.
_COMPILE_SECONDS = 300.0


@dataclass
class Layer:
    """One convolution as the engine would run it.

    Attributes:
        names: of all layers of the network that are this same problem.
        flops, bytes: of one of them, for the whole batch.
        candidates: every variant of every implementation.
    """

    key: str
    names: list[str]
    batch_size: int
    flops: int
    bytes: int
    candidates: list[VariantTiming] = field(default_factory=list)

    def best(self, implementation: str | None = None) -> VariantTiming | None:
        """The fastest, of one implementation where it is named."""
        return fastest(self.candidates, implementation)


@dataclass
class LayerReport:
    """What `time_layers` found."""

    model: str
    precision: str
    environment: dict[str, Any]
    interrupted: bool
    layers: list[Layer]

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {"schema": SCHEMA, **asdict(self)}

    def choices(self, device: torch.device) -> dict[str, Any]:
        """The fastest of each layer, as the engine reads them: what belongs into `fastcnn/engines/triton/shipped`."""
        return to_choices({layer.key: layer.candidates for layer in self.layers}, device)


def no_progress(done: int, total: int, what: str) -> None:
    """Shows nothing."""


def time_layers(
    model: str,
    batch_sizes: Sequence[int],
    precision: Precision,
    *,
    device: str = "cuda",
    names: Sequence[str] = IMPLEMENTATIONS,
    progress: Callable[[int, int, str], None] = no_progress,
) -> LayerReport:
    """Time every variant on every convolution of a model.

    Args:
        model: a name of the registry; it gets seeded random weights.
        names: implementations to time.
        progress: called before each layer with layers done, layers in all and the layer's name. Ctrl-C ends the run and
            keeps what is finished.

    Raises:
        UnknownNameError: no such model or implementation.
        RequestError: a batch size below 1.
        BackendError: the engine cannot run on the device.
    """
    if not batch_sizes or min(batch_sizes) < 1:
        raise RequestError(f"batch sizes must be whole numbers from 1; they are {tuple(batch_sizes)}")
    survey = Survey(torch.device(device), names)
    for batch in batch_sizes:
        example = torch.rand(batch, *model_spec(model).input_size, dtype=precision.dtype, device=device)
        captured = capture(model_under_test(model).to(device, precision.dtype), example)
        survey.add(captured, batch, precision.dtype, tf32=precision is Precision.tf32)
    report = LayerReport(model, precision.value, environment(device), False, [])
    try:
        if survey.device.type == "cuda":
            progress(0, len(survey.problems), "compiling")
            survey.compile(_COMPILE_SECONDS)
        for done, surveyed in enumerate(survey.problems):
            problem, names_of_all = surveyed.problem, surveyed.names
            progress(done, len(survey.problems), names_of_all[0])
            layer = Layer(problem.key, names_of_all, problem.batch, problem.flops, problem.bytes, survey.time(surveyed))
            report.layers.append(layer)
    except KeyboardInterrupt:
        report.interrupted = True
    return report


def write_layers(report: LayerReport, path: Path) -> None:
    """Everything that was measured, as JSON, in one move."""
    write_text(path, json.dumps(report.to_dict(), indent=1, ensure_ascii=False) + "\n")


def table_of(report: LayerReport) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Columns and rows for a person: each layer, the best time of each implementation in µs, and the winner's rate."""
    names = [name for name in IMPLEMENTATIONS if any(layer.best(name) for layer in report.layers)]
    columns = ("layer", "batch", "times", *(f"{name} µs" for name in names), "fastest", "TFLOP/s")
    rows = []
    for layer in report.layers:
        best = layer.best()
        times = [layer.best(name) for name in names]
        rows.append(
            (
                layer.names[0],
                str(layer.batch_size),
                f"{len(layer.names)}×",
                *("" if time is None or time.milliseconds is None else f"{time.milliseconds * 1e3:.1f}" for time in times),
                "" if best is None else best.label,
                "" if best is None or not best.milliseconds else f"{layer.flops / best.milliseconds / 1e9:.1f}",
            )
        )
    return columns, rows
