"""fastcnn: takes a CNN in PyTorch and gives back the fastest thing that provably computes the same function.

Names are imported when they are first used: `import fastcnn` costs nothing, and works without a GPU, Triton or any runtime.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from fastcnn._version import __version__

if TYPE_CHECKING:
    from fastcnn.models.creation import create_model
    from fastcnn.models.registry import list_models
    from fastcnn.optimization import optimize
    from fastcnn.optimized_module import OptimizedModule
    from fastcnn.parity import ParityReport, verify
    from fastcnn.saving import load, save

_HOMES = {
    "create_model": "fastcnn.models.creation",
    "list_models": "fastcnn.models.registry",
    "optimize": "fastcnn.optimization",
    "OptimizedModule": "fastcnn.optimized_module",
    "verify": "fastcnn.parity",
    "ParityReport": "fastcnn.parity",
    "save": "fastcnn.saving",
    "load": "fastcnn.saving",
}

__all__ = ["OptimizedModule", "ParityReport", "__version__", "create_model", "list_models", "load", "optimize", "save", "verify"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'fastcnn' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
