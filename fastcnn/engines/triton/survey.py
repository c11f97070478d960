"""Every variant of every implementation on the convolutions of networks: what there is no time for when a network is
first used.

This is the engine's door for those who study it from outside; what they need of its insides comes through here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from fastcnn.engines.triton.choices import Choice, Variant, choices_document, describe_environment
from fastcnn.engines.triton.device_clock import device_milliseconds
from fastcnn.engines.triton.engine import TritonEngine, match_network
from fastcnn.engines.triton.implementations.table import implementations
from fastcnn.engines.triton.options import IMPLEMENTATIONS
from fastcnn.engines.triton.problem import ConvProblem
from fastcnn.engines.triton.schedule import convolution_problems
from fastcnn.engines.triton.steps import ConvolutionStep
from fastcnn.engines.triton.trial import Trial, compile_candidates
from fastcnn.graph.ir import CapturedGraph
from fastcnn.graph.passes import run_passes


@dataclass
class VariantTiming:
    """One variant of one implementation on one convolution; `milliseconds` is None where `reason` says why it has no
    time."""

    implementation: str
    variant: Variant
    label: str
    milliseconds: float | None = None
    reason: str | None = None


@dataclass(frozen=True)
class SurveyedProblem:
    """A convolution as the engine would run it, the first step that is it, and the names of all steps that are."""

    problem: ConvProblem
    step: ConvolutionStep
    names: list[str]


class Survey:
    """Times implementations on one device.

    Args:
        names: implementations to time.

    Attributes:
        problems: the different convolutions of all networks that were added.

    Raises:
        UnknownNameError: no implementation of that name.
    """

    def __init__(self, device: torch.device, names: Sequence[str] = IMPLEMENTATIONS) -> None:
        self.device = device
        self.problems: list[SurveyedProblem] = []
        self._implementations = implementations(names)

    def add(self, captured: CapturedGraph, batch: int, dtype: torch.dtype, *, tf32: bool = False) -> None:
        """Add the convolutions of a graph, lowered as the engine does by default, at one batch size.

        Raises:
            BackendError: the engine cannot place an operation of the graph.
        """
        engine = TritonEngine()
        passed, _ = run_passes(captured, engine.passes)
        passed.cast_constants(dtype)
        network, _ = match_network(passed, dtype, engine.options)
        _, problems = convolution_problems(network, batch, dtype, tf32, engine.options, self.device)
        found: dict[str, SurveyedProblem] = {}
        for step, problem in problems.items():
            found.setdefault(problem.key, SurveyedProblem(problem, step, [])).names.append(step.path)
        self.problems += found.values()

    def compile(self, seconds: float) -> None:
        """Compile all variants in parallel, for at most so long; what is left is compiled when its turn comes. Does
        nothing without a GPU."""
        if self.device.type == "cuda":
            wanted = [(surveyed.problem, surveyed.step) for surveyed in self.problems]
            compile_candidates(wanted, self._implementations, self.device, seconds, None)

    def time(self, surveyed: SurveyedProblem) -> list[VariantTiming]:
        """Hold every variant against PyTorch and time it."""
        problem = surveyed.problem
        trial = Trial(problem, surveyed.step, self.device)
        timings = []
        for implementation in self._implementations:
            reason = implementation.why_not(problem, self.device)
            if reason is not None:
                timings.append(VariantTiming(implementation.name, (), "", None, reason))
                continue
            for variant in implementation.variants(problem, self.device, None):
                timing = VariantTiming(implementation.name, variant, implementation.label(problem, variant))
                try:
                    timing.reason = trial.check(implementation, variant)
                    if timing.reason is None:
                        timing.milliseconds = device_milliseconds(trial.bind(implementation, variant), self.device)
                except Exception as error:  # a configuration that does not fit the device is a finding
                    timing.reason = f"{type(error).__name__}: {str(error).splitlines()[0][:200] if str(error) else ''}"
                timings.append(timing)
        return timings


def fastest(timings: Sequence[VariantTiming], implementation: str | None = None) -> VariantTiming | None:
    """The fastest, of one implementation where it is named; None where none has a time."""
    timed = [timing for timing in timings if timing.milliseconds is not None and implementation in (None, timing.implementation)]
    return min(timed, key=lambda timing: timing.milliseconds or 0.0, default=None)


def to_choices(timings: Mapping[str, Sequence[VariantTiming]], device: torch.device) -> dict[str, Any]:
    """The fastest for each key of a problem, as `choices.ChoiceStore` reads them."""
    found = {}
    for key, some in timings.items():
        best, library = fastest(some), fastest(some, "library")
        if best is None:
            continue
        why = f"fastest of {sum(timing.milliseconds is not None for timing in some)}"
        if library is not None and library is not best:
            why += f"; library {(library.milliseconds or 0) / (best.milliseconds or 1):.2f}× its time"
        found[key] = Choice(best.implementation, best.variant, best.milliseconds, why)
    return choices_document(describe_environment(device), found)
