"""Run a float graph over calibration pictures and keep how each activation that will be rounded is spread."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, fx

from fastcnn.errors import RequestError
from fastcnn.graph.ir import CapturedGraph
from fastcnn.quantization.histogram import Histogram


def observe(captured: CapturedGraph, values: Iterable[fx.Node], batches: Iterable[Tensor], seen: Callable[[int], None]) -> dict[str, Histogram]:
    """Name of each of `values` → its histogram over all of `batches` [N, …]; `seen` hears how many pictures each batch had.

    Raises:
        RequestError: an activation is not finite.
    """
    histograms = {value.name: Histogram() for value in values}
    interpreter = _Observer(captured, histograms)
    with torch.no_grad():
        for batch in batches:
            interpreter.run(batch)
            seen(len(batch))
    return histograms


class _Observer(fx.Interpreter):
    def __init__(self, captured: CapturedGraph, histograms: dict[str, Histogram]) -> None:
        super().__init__(captured.module)
        self._histograms, self._name = histograms, captured.info["name"]

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        histogram = self._histograms.get(n.name)
        if histogram is not None:
            if not bool(result.isfinite().all()):
                raise RequestError(f"calibration: {self._name} gives NaN or infinity at {n.meta.get('path') or n.name}: look at its weights")
            histogram.add(result)
        return result
