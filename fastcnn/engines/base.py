"""What every engine is: a way to lower a passed graph to something that runs, and to tell what it made of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from numpy.typing import NDArray
from torch import Tensor

from fastcnn.errors import BackendError
from fastcnn.graph.ir import CapturedGraph
from fastcnn.graph.plan import PassReport, PlanRow
from fastcnn.target import Target


@dataclass
class Lowered:
    """A graph made ready to run.

    Attributes:
        run: inputs [N, …] of any memory format, floating-point ones in the graph's dtype → flat list of outputs. N ≥ 1. May be called from several
            threads.
        run_array: the same from NumPy array to NumPy arrays, of a runtime that works on them: a call through it needs two calls of PyTorch.
        rows: computes the plan's rows, from the runtime's own account of what it runs where it gives one.
        reports: passes that the engine ran beyond those of the graph it was given.
        propagates_nan: whether a NaN or an infinity in the input comes out as eager PyTorch would give it.
        input_dtype: what floating-point inputs `run` takes, where that is not the graph's dtype.
        converts: `run` takes an input of any floating-point dtype, and gives its floating-point outputs in the same.
        memory: bytes that it holds at present, by what for, where it plans its memory.
        artifact: the file that the runtime loads, if it is one; `save` stores it, so that `load` need not make it again.
    """

    run: Callable[..., list[Tensor]]
    rows: Callable[[], tuple[PlanRow, ...]]
    reports: tuple[PassReport, ...] = ()
    propagates_nan: bool = False
    input_dtype: torch.dtype | None = None
    converts: bool = False
    artifact: bytes | None = field(default=None, repr=False)
    memory: Callable[[], dict[str, int]] = dict
    run_array: Callable[..., list[NDArray[Any]]] | None = None


def on_tensors(run_array: Callable[..., list[NDArray[Any]]]) -> Callable[..., list[Tensor]]:
    """A function of NumPy arrays as one of CPU tensors; memory is shared, nothing is copied."""

    def run(*inputs: Tensor) -> list[Tensor]:
        return [torch.from_numpy(array) for array in run_array(*(x.numpy() for x in inputs))]

    return run


def require_one_picture(captured: CapturedGraph, engine: str) -> None:
    """Raises BackendError where a graph takes something else than one floating-point tensor, which this engine is made for."""
    inputs = captured.input_nodes
    if len(inputs) > 1 or not captured.input_dtype.is_floating_point:
        takes = f"{len(inputs)} inputs" if len(inputs) > 1 else f"{captured.input_dtype} input"
        raise BackendError(
            f"backend {engine!r} runs models of one floating-point input, this one takes {takes}: torch, onnxruntime and openvino run it"
        )


class Engine(Protocol):
    """One backend of `fastcnn.optimize`."""

    name: str

    @property
    def passes(self) -> Sequence[str]:
        """The passes that run over a graph before it is lowered."""

    def unavailable(self) -> str | None:
        """Why the engine cannot run on this machine, or None where it can."""

    def unsupported(self, target: Target) -> str | None:
        """Why the engine cannot run on the target's device or in its dtype, or None where it can."""

    def unfit_for_auto(self) -> str | None:
        """Why `auto` should not even try the engine here, though it runs when asked for by name."""

    def lower(self, captured: CapturedGraph, target: Target, artifact: bytes | None = None) -> Lowered:
        """Lower a graph that `passes` went over, its constants in the target's dtype and on its device.

        `artifact` is what an earlier lowering of the same graph left.

        Raises:
            BackendError: the engine or its runtime cannot run this graph.
        """
