"""The int8 side of `fastcnn.optimize`: one calibration for every engine, and the accuracy gate in place of the parity rules."""

from __future__ import annotations

import functools

import torch
from torch import Tensor, nn

from fastcnn.errors import InputError, ParityError
from fastcnn.graph.ir import CapturedGraph
from fastcnn.graph.plan import PassReport
from fastcnn.models.preprocessing_of import preprocessing_of
from fastcnn.models.weights import state_dict_sha256
from fastcnn.optimized_module import OptimizedModule
from fastcnn.parity import Expected, expect, flatten
from fastcnn.quantization.build import Quantized, build
from fastcnn.quantization.gate import allowed_in_a_runtime, joined, judge
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
    """

    def __init__(self, model: nn.Module, example: Tensor, request: Int8Request) -> None:
        if example.dtype != torch.float32:
            raise InputError(f"an int8 module takes float32; the example is {example.dtype}")
        self._model, self._example, self._request = model, example, request
        self._ranges: Ranges | None = None
        self._quantized: Quantized | None = None

    def quantize(self, graph: CapturedGraph) -> tuple[CapturedGraph, PassReport]:
        """`graph`, which the passes went over, in 8 bits, and what was done.

        Raises:
            RequestError, InputError: the calibration cannot serve.
            ParityError: the limits do not hold, whatever goes back to float.
        """
        known = preprocessing_of(graph.info) if graph.info.get("preprocessing") is not None else None
        self._ranges = find_ranges(self._request, graph, known, state_dict_sha256(self._model.state_dict()), lambda stage: None)
        scheme = Scheme.of(self._request.quantize_for, portable=self._request.portable)
        made = build(graph, self._ranges, scheme, self._request.limits, self._expected, self._pictures)
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

    def require(self, module: OptimizedModule) -> None:
        """Raises ParityError where `module` misses the limits, or is further off than eager PyTorch with the same graph."""
        assert self._quantized is not None
        with torch.no_grad():
            outputs = joined([flatten(module(self._pictures[start:stop])) for start, stop in self._expected.slices])
        found = judge(outputs, joined(self._expected.reference), self._request.limits, runtime=module.backend)
        own = self._quantized.judgement.relative_error
        if found.relative_error > allowed_in_a_runtime(own):
            raise ParityError(
                f"backend {module.backend!r} computes the int8 graph wrongly: it is off by {found.relative_error:.3g}, eager PyTorch by {own:.3g}"
            )
        if not found.passed:
            raise ParityError(f"backend {module.backend!r} misses the limits of int8: {found.reason}")
