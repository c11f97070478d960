"""Small models with a given forward, and passes held against them in float64."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from support import randomize_weights
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from fastcnn.graph.capture import capture
from fastcnn.graph.ir import CapturedGraph
from fastcnn.graph.passes import run_passes
from fastcnn.graph.plan import PassReport, op_name


class Net(nn.Module):
    """Calls `function(self, x)`; keyword arguments become submodules, or buffers where they are tensors."""

    def __init__(self, function: Callable[[Any, Tensor], Any], **parts: nn.Module | Tensor) -> None:
        super().__init__()
        self.function = function
        for name, part in parts.items():
            if isinstance(part, Tensor):
                self.register_buffer(name, part)
            else:
                self.add_module(name, part)

    def forward(self, x: Tensor) -> Any:
        return self.function(self, x)


def net(function: Callable[[Any, Tensor], Any], **parts: nn.Module | Tensor) -> nn.Module:
    """A `Net` in evaluation mode with random weights and BatchNorm statistics."""
    return randomize_weights(Net(function, **parts)).eval()


def images(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    """Standard normal noise."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def apply_pass(model: nn.Module, example: Tensor, name: str, *before: str) -> tuple[CapturedGraph, PassReport]:
    """Capture `model`, run the passes `before` and then `name`, and check that the float64 result is the model's to 1e-12."""
    graph, reports = run_passes(capture(model, example), (*before, name))
    assert_same_function(graph, model, example)
    return graph, next(report for report in reports if report.name == name)


def assert_same_function(graph: CapturedGraph, model: nn.Module, example: Tensor, tolerance: float = 1e-12) -> None:
    """The relative L2 error of `graph`, run in float64, is within `tolerance` at batches of 1, 2 and 5."""
    graph, reference = graph.copy(), copy.deepcopy(model).double()
    graph.cast_constants(torch.float64)
    for batch in (1, 2, 5):
        x = images(batch, *example.shape[1:], seed=batch, dtype=torch.float64)
        with torch.no_grad():
            outputs, wanted = graph.module(x.clone()), pytree.tree_leaves(reference(x.clone()))
        assert len(outputs) == len(wanted)
        for output, want in zip(outputs, wanted, strict=True):
            assert output.shape == want.shape
            assert (output - want).norm() <= tolerance * want.norm()


def ops(graph: CapturedGraph) -> list[str]:
    """Short names of the calls in a graph, in order."""
    return [op_name(node) for node in graph.calls()]


def relative_error(output: Tensor, reference: Tensor) -> float:
    """Relative L2 error against a float64 reference."""
    return ((output.double() - reference).norm() / reference.norm()).item()
