"""The int8 side of `fastcnn.optimize`: one calibration for every engine, and the accuracy gate in place of the parity rules."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn

from fastcnn.errors import InputError
from fastcnn.graph.ir import CapturedGraph
from fastcnn.graph.plan import PassReport
from fastcnn.models.preprocessing_of import preprocessing_of
from fastcnn.models.weights import state_dict_sha256
from fastcnn.optimized_module import OptimizedModule
from fastcnn.parity import Expected, ParityReport, expect, flatten
from fastcnn.precision import Precision
from fastcnn.quantization.build import Quantized, build
from fastcnn.quantization.gate import HeldOut, allowed_in_a_runtime, joined, judge
from fastcnn.quantization.ranges import Ranges, find_ranges
from fastcnn.quantization.request import Int8Request
from fastcnn.quantization.scheme import Scheme

# Pictures at a time: the batch of the reference in float64.
_BATCH = 8


class Int8Builder:
    """Quantizes the graphs of one model.

    Args:
        model: what the graphs were captured from.
        example: [N, C, H, W] float32.
        say: is told each stage.
    """

    def __init__(self, model: nn.Module, example: Tensor, request: Int8Request, say: Callable[[str], None] = lambda stage: None) -> None:
        if example.dtype != torch.float32:
            raise InputError(f"an int8 module takes float32; the example is {example.dtype}")
        self._model, self._request, self._say = model, request, say
        self._ranges: Ranges | None = None
        self._quantized: Quantized | None = None

    def quantize(self, graph: CapturedGraph) -> tuple[CapturedGraph, PassReport]:
        """`graph`, which the passes went over, in 8 bits, and what was done.

        Raises:
            RequestError, InputError: the calibration cannot serve.
            ParityError: the limits do not hold, whatever goes back to float.
        """
        known = preprocessing_of(graph.info) if graph.info.get("preprocessing") is not None else None
        self._ranges = find_ranges(self._request, graph, known, state_dict_sha256(self._model.state_dict()), self._say)
        scheme = Scheme.of(self._request.quantize_for, portable=self._request.portable)
        made = build(graph, self._ranges, scheme, self._request.limits, self._expected, HeldOut(self._pictures), say=self._say)
        self._quantized = made
        return made.graph, made.report

    @property
    def _pictures(self) -> Tensor:
        assert self._ranges is not None
        return self._ranges.held_out.values()

    @functools.cached_property
    def _expected(self) -> Expected:
        count = len(self._pictures)
        slices = [(0, 1), *((start, min(start + _BATCH, count)) for start in range(1, count, _BATCH))]
        return expect(self._model, self._pictures, slices, dtype=torch.float32)

    def report(self, module: OptimizedModule) -> ParityReport:
        """Whether `module` keeps to the limits on the pictures kept apart, and is no further off than eager PyTorch with the same graph."""
        assert self._quantized is not None
        limits, own = self._request.limits, self._quantized.judgement.relative_error
        with torch.no_grad():
            outputs = joined([flatten(module(self._pictures[start:stop])) for start, stop in self._expected.slices])
        found = judge(outputs, joined(self._expected.reference), limits, runtime=module.backend)
        if found.relative_error > allowed_in_a_runtime(own):
            found = replace(found, reason=f"it is off by {found.relative_error:.3g}, and eager PyTorch with the same int8 graph by {own:.3g}")
        return ParityReport.of([found.row(limits)], Precision.int8.value)

    def require(self, module: OptimizedModule) -> None:
        """Raises ParityError where the `report` on `module` fails."""
        self.report(module).require(f"backend {module.backend!r} in int8")
