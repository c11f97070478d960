"""What a row of a benchmark is.

A row takes a contiguous NCHW tensor in the dtype of the run, on its device, and gives back a tensor, as an application would hand them
over: what a runtime needs besides (a memory format, a numpy array, a static buffer) is part of its time. Nothing is ever installed; a row
that cannot run says why.
"""

from __future__ import annotations

import copy
import importlib.util
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from fastcnn.bench.peers.subject import Accuracy, Subject
from fastcnn.errors import BackendError
from fastcnn.precision import Precision

Runner = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Prepared:
    """A row that is ready to be timed.

    Attributes:
        run: takes and returns a tensor. On CUDA its work is on the current stream, so that device events see it.
        proof: where and how it runs, read back from the runtime.
        reused_seconds: set-up work that an earlier row did for this one too.
        accuracy: of a row that rounds by pictures: how far it is off on those kept apart, which stands in place of the rule for exact rows.
        size_bytes: what its file takes, or its weights; None where nobody counted.
    """

    run: Runner
    proof: Mapping[str, str]
    reused_seconds: float = 0.0
    accuracy: Accuracy | None = None
    size_bytes: int | None = None


class Peer(ABC):
    """One row. Subclasses set `name` and say in `prepare` how the model is run.

    Attributes:
        ours: one of fastcnn's own.
        devices, precisions: where the row can run at all, and in what.
    """

    name: ClassVar[str]
    ours: ClassVar[bool] = False
    devices: ClassVar[tuple[str, ...]] = ("cpu",)
    # A run in int8 is one of rows in int8 and bfloat16 beside rows in float32, which they are held against.
    precisions: ClassVar[tuple[Precision, ...]] = tuple(precision for precision in Precision if precision is not Precision.int8)

    def available(self, device: str = "cpu", precision: Precision = Precision.fp32) -> str | None:
        """None if the row can run on `device` in `precision`, else the reason in one line."""
        if device not in self.devices:
            return f"measured on {' and '.join(self.devices)} only"
        if not {precision, Precision.fp32 if precision is Precision.int8 else precision} & set(self.precisions):
            return f"measured in {', '.join(self.precisions)} only"
        return self.missing()

    def computes_in(self, precision: Precision) -> Precision:
        """What the row computes in, in a run of that precision."""
        return Precision.fp32 if precision is Precision.int8 else precision

    def missing(self) -> str | None:
        """What the row needs and this machine lacks, in one line."""
        return None

    @abstractmethod
    def prepare(self, subject: Subject, example: Tensor, threads: int) -> Prepared:
        """Everything that comes before the first useful run.

        Args:
            example: an input as the row will get it, (N, C, H, W).
            threads: how many CPU threads the runtime may use; `torch.set_num_threads` was already called with it.

        Raises BackendError where the runtime does not run as the row's name says; whatever the runtime itself raises comes through.
        """

    def release(self) -> None:  # noqa: B027 (most rows have nothing to drop)
        """Called when the last run is over: drops what would otherwise live on in the process."""


def inference(module: Callable[[Tensor], Tensor]) -> Runner:
    """`module` called in inference mode."""

    def run(x: Tensor) -> Tensor:
        with torch.inference_mode():
            return module(x)

    return run


def channels_last(model: nn.Module) -> nn.Module:
    """A copy whose convolution weights are channels_last; activations follow the weights from the first convolution on."""
    return copy.deepcopy(model).to(memory_format=torch.channels_last)


def placed(model: nn.Module, example: Tensor) -> dict[str, str]:
    """The proof that PyTorch runs a model on the example's device in its dtype: PyTorch never moves a weight or an input by itself.

    Raises BackendError where a weight lies elsewhere.
    """
    weights = [tensor for tensor in (*model.parameters(), *model.buffers()) if tensor.is_floating_point()]
    found = {(tensor.device, tensor.dtype) for tensor in weights} - {(example.device, example.dtype)}
    if found:
        where = ", ".join(f"{dtype} on {device}" for device, dtype in sorted(found, key=str))
        raise BackendError(f"weights are {where} where {example.dtype} on {example.device} was asked for")
    return {"device": str(example.device), "dtype": str(example.dtype).removeprefix("torch.")}


def not_importable(package: str) -> str | None:
    """Why a package cannot be used, in one line; None where it is installed. Nothing is imported."""
    return None if importlib.util.find_spec(package) else f"{package} is not installed"
