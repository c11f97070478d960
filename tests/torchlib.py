"""PyTorch's table of ONNX operators, which its exporter makes from source in every export: half a second, where a small network takes a quarter."""

from __future__ import annotations

import contextlib
import functools


@functools.cache
def make_table_once() -> None:
    """In this process, from now on. A private name: where PyTorch has another one, the table is made as ever."""
    with contextlib.suppress(ImportError, AttributeError):
        from torch.onnx._internal.exporter import _registration

        registry = _registration.ONNXRegistry
        registry.from_torchlib = staticmethod(functools.cache(registry.from_torchlib))
