"""The model as it is given: out of the wrappers that others put around it, ready to be traced, and left as it was."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fastcnn.errors import CaptureError
from fastcnn.graph.output_structure import flatten

log = logging.getLogger(__name__)


def unwrap(model: nn.Module) -> nn.Module:
    """The module inside `torch.compile`, `DataParallel` and `DistributedDataParallel`, in any order; says in the log what it took off.

    Raises:
        CaptureError: a TorchScript module, which holds no Python code to follow.
    """
    while True:
        if isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            inner: Any = model.module
        elif isinstance(model, nn.Module) and isinstance(getattr(model, "_orig_mod", None), nn.Module):
            inner = model._orig_mod
        else:
            break
        log.info("took the %s out of its %s", type(inner).__name__, type(model).__name__)
        model = inner
    scripted = isinstance(model, nn.Module) and next((path for path, part in model.named_modules() if isinstance(part, torch.jit.ScriptModule)), None)
    if isinstance(scripted, str):
        what = f"its part {scripted!r}" if scripted else "the model"
        raise CaptureError(f"{what} is a TorchScript module, which cannot be captured: give the Python module that it was made from")
    return model


@dataclass
class Seen:
    """What tracing saw beside the operations.

    Attributes:
        structure: of the outputs, as `output_structure.flatten` writes it.
        assigned: plain attributes that held a tensor and were given another one.
    """

    structure: str = ""
    assigned: tuple[str, ...] = ()


class FlatModel(nn.Module):
    """The model with its tensors in a flat tuple, since torch.export knows fewer containers than people return, and with its state in sight.

    torch.export sees what is written into a buffer in place, but not that another tensor is assigned to it.
    """

    PREFIX = "model."

    def __init__(self, model: nn.Module, seen: Seen) -> None:
        super().__init__()
        self.model = model
        self.train(model.training)
        self._seen = seen

    def forward(self, x: Tensor, *more: Tensor) -> tuple[Tensor, ...]:
        """x and further inputs: [N, …] → the output tensors of the model, in order."""
        modules = list(self.model.named_modules())
        buffers = [(module, name, buffer) for _, module in modules for name, buffer in module._buffers.items() if buffer is not None]
        plain = [(f"{path}.{name}".lstrip("."), vars(module), name, value) for path, module in modules for name, value in _tensors(module)]
        tensors, structure = flatten(self.model(x, *more), type(self.model).__name__)
        self._seen.structure = structure
        self._seen.assigned = tuple(full for full, attributes, name, value in plain if attributes.get(name) is not value)
        for module, name, buffer in buffers:
            assigned = module._buffers.get(name)
            if assigned is not buffer:
                module._buffers[name] = buffer
                if assigned is not None and assigned.shape == buffer.shape:
                    buffer.copy_(assigned)
        return tuple(tensors)


def _tensors(module: nn.Module) -> list[tuple[str, Tensor]]:
    return [(name, value) for name, value in vars(module).items() if isinstance(value, Tensor)]


@contextmanager
def attributes_kept(model: nn.Module) -> Iterator[None]:
    """Undo what a forward assigns to plain attributes: tracing would leave tensors there that hold no values."""
    before = [(module, dict(vars(module))) for module in model.modules()]
    try:
        yield
    finally:
        for module, attributes in before:
            now = vars(module)
            for name in [name for name in now if name not in attributes]:
                del now[name]
            now.update(attributes)
