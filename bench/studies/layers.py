"""Every implementation of every convolution of a network, timed one by one on a GPU: what the choices that ship with the package come from.

Unlike the engine, which stops when its time is over, this runs every variant. Each is first held against PyTorch in float32; times are those of
replays of a CUDA graph, so launches from Python are not in them, and inputs are in the L2 cache as they are behind the layer before.
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
from fastcnn.engines.triton.choices import SCHEMA as CHOICES_SCHEMA
from fastcnn.engines.triton.choices import Choice, ChoiceStore, describe_environment
from fastcnn.engines.triton.convolutions import BY_NAME, ConvProblem, ConvWeights, Implementation, implementations
from fastcnn.engines.triton.engine import TritonEngine
from fastcnn.engines.triton.options import IMPLEMENTATIONS, TritonOptions
from fastcnn.engines.triton.program import Program
from fastcnn.engines.triton.steps import ConvolutionStep, build_network
from fastcnn.engines.triton.tuning import Chooser, check_candidate, compile_candidates, device_milliseconds, make_operands, place_result, reference
from fastcnn.errors import RequestError
from fastcnn.files import write_text
from fastcnn.graph.capture import capture
from fastcnn.graph.passes import run_passes
from fastcnn.models.registry import model_spec
from fastcnn.precision import Precision
from fastcnn.target import Target

SCHEMA = "fastcnn-layers/1"

# The most that compiling all variants takes before the first is timed; what is left is compiled when its turn comes.
_COMPILE_SECONDS = 300.0


@dataclass
class Candidate:
    """One variant of one implementation on one convolution; `milliseconds` is None where `reason` says why it has no time."""

    implementation: str
    variant: tuple[int, ...]
    label: str
    milliseconds: float | None = None
    reason: str | None = None


@dataclass
class Layer:
    """One convolution as the engine would run it.

    Attributes:
        names: of all layers of the network that are this same problem.
        flops, bytes: of one of them, for the whole batch.
    """

    key: str
    names: list[str]
    batch_size: int
    flops: int
    bytes: int
    candidates: list[Candidate] = field(default_factory=list)

    def best(self, implementation: str | None = None) -> Candidate | None:
        """The fastest, of one implementation where it is named."""
        timed = [c for c in self.candidates if c.milliseconds is not None and implementation in (None, c.implementation)]
        return min(timed, key=lambda candidate: candidate.milliseconds or 0.0, default=None)


@dataclass
class LayerReport:
    """What `time_layers` found."""

    model: str
    precision: str
    environment: dict[str, Any]
    interrupted: bool
    layers: list[Layer]

    def to_dict(self) -> dict[str, Any]:
        return {"schema": SCHEMA, **asdict(self)}

    def choices(self, device: torch.device) -> dict[str, Any]:
        """The fastest of each layer, as the engine reads them: a file for `fastcnn/engines/triton/shipped`."""
        found = {}
        for layer in self.layers:
            best, library = layer.best(), layer.best("library")
            if best is None:
                continue
            compared = (
                "" if library is None or library is best else f"; library {(library.milliseconds or 0) / (best.milliseconds or 1):.2f}× its time"
            )
            why = f"fastest of {sum(c.milliseconds is not None for c in layer.candidates)}{compared}"
            found[layer.key] = asdict(Choice(best.implementation, best.variant, best.milliseconds, why))
        return {"schema": CHOICES_SCHEMA, "environment": describe_environment(device), "choices": dict(sorted(found.items()))}


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
        progress: called before each layer with layers done, layers in all and the layer's name. Ctrl-C ends the run and keeps what is finished.

    Raises:
        UnknownNameError: no such model or implementation.
        RequestError: a batch size below 1.
        BackendError: the engine cannot run on the device.
    """
    if not batch_sizes or min(batch_sizes) < 1:
        raise RequestError(f"batch sizes must be whole numbers from 1; they are {tuple(batch_sizes)}")
    chosen = implementations(names)
    place = torch.device(device)
    problems = [(problem, weights, paths) for batch in batch_sizes for problem, weights, paths in _problems(model, batch, precision, place)]
    report = LayerReport(model, precision.value, environment(device), False, [])
    try:
        if place.type == "cuda":
            progress(0, len(problems), "compiling")
            compile_candidates([(problem, weights) for problem, weights, _ in problems], chosen, place, _COMPILE_SECONDS, None)
        for done, (problem, weights, paths) in enumerate(problems):
            progress(done, len(problems), paths[0])
            layer = Layer(problem.key, paths, problem.batch, problem.flops, problem.bytes)
            layer.candidates = _time_candidates(problem, weights, chosen, place)
            report.layers.append(layer)
    except KeyboardInterrupt:
        report.interrupted = True
    return report


def _problems(model: str, batch: int, precision: Precision, device: torch.device) -> list[tuple[ConvProblem, ConvWeights, list[str]]]:
    """The different convolutions of a model, with the weights of the first that is each, and the names of all."""
    example = torch.rand(batch, *model_spec(model).input_size, dtype=precision.dtype, device=device)
    captured = capture(model_under_test(model).to(device, precision.dtype), example)
    options = TritonOptions(tuning_seconds=0, use_cache=False, grouped="never")
    passed, _ = run_passes(captured, [*TritonEngine(options).passes, "merge_sibling_projections", "fuse_convolution_epilogue"])
    passed.cast_constants(precision.dtype)
    network = build_network(passed, Target(device, precision.dtype, batch, allow_tf32=precision is Precision.tf32))
    weights = {step: ConvWeights(step) for step in network.convolutions}
    program = Program(network, batch, precision.dtype, Chooser(device, options, ChoiceStore(device, on_disk=False)), weights)
    found: dict[str, tuple[ConvProblem, ConvolutionStep, list[str]]] = {}
    for step, problem in program.problems.items():
        found.setdefault(problem.key, (problem, step, []))[2].append(step.path)
    return [(problem, ConvWeights(step), names) for problem, step, names in found.values()]


def _time_candidates(problem: ConvProblem, weights: ConvWeights, chosen: Sequence[Implementation], device: torch.device) -> list[Candidate]:
    operands = make_operands(problem, device)
    expected = reference(problem, weights, operands)
    candidates = []
    for implementation in chosen:
        reason = implementation.why_not(problem, device)
        if reason is not None:
            candidates.append(Candidate(implementation.name, (), "", None, reason))
            continue
        for variant in implementation.variants(problem, device, None):
            candidate = Candidate(implementation.name, variant, implementation.label(problem, variant))
            try:
                candidate.reason = check_candidate(implementation, problem, variant, weights, operands, expected)
                if candidate.reason is None:
                    run = _runner(implementation, problem, variant, weights, operands)
                    candidate.milliseconds = device_milliseconds(run, device)
            except Exception as error:  # a configuration that does not fit the device is a finding
                candidate.reason = f"{type(error).__name__}: {str(error).splitlines()[0][:200] if str(error) else ''}"
            candidates.append(candidate)
    return candidates


def _runner(
    implementation: Implementation, problem: ConvProblem, variant: tuple[int, ...], weights: ConvWeights, operands: Any
) -> Callable[[], None]:
    return lambda: place_result(implementation, problem, variant, weights, operands)


def write_layers(report: LayerReport, path: Path) -> None:
    """Everything that was measured, as JSON, in one move."""
    write_text(path, json.dumps(report.to_dict(), indent=1, ensure_ascii=False) + "\n")


def table_of(report: LayerReport) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Columns and rows for a person: each layer, the best time of each implementation in µs, and the winner's rate."""
    names = [name for name in BY_NAME if any(layer.best(name) for layer in report.layers)]
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
