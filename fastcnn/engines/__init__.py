"""The engines behind `fastcnn.optimize`; importing this package imports neither torch nor a runtime, `get_engine` imports the one asked for."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from fastcnn.errors import BackendError, UnknownNameError

if TYPE_CHECKING:
    from fastcnn.engines.base import Engine

_ENGINES = {
    "torch": "fastcnn.engines.torch_engine:TorchEngine",
    "triton": "fastcnn.engines.triton.engine:TritonEngine",
    "onnxruntime": "fastcnn.engines.onnxruntime_engine:OnnxRuntimeEngine",
    "openvino": "fastcnn.engines.openvino_engine:OpenVinoEngine",
    "ncnn": "fastcnn.engines.ncnn_engine:NcnnEngine",
}

BACKENDS = tuple(_ENGINES)


def get_engine(name: str) -> Engine:
    """The engine called `name`.

    Raises:
        UnknownNameError: there is none of that name.
        BackendError: it cannot run on this machine; says why.
    """
    if name not in _ENGINES:
        raise UnknownNameError("backend", name, ("auto", *_ENGINES))
    engine = _load(name)
    reason = engine.unavailable()
    if reason:
        raise BackendError(f"backend {name!r} cannot run here: {reason}")
    return engine


def available_backends() -> dict[str, str | None]:
    """Backend name → None where it can run on this machine, else the reason why not."""
    return {name: _load(name).unavailable() for name in _ENGINES}


def _load(name: str) -> Engine:
    module, _, attribute = _ENGINES[name].partition(":")
    engine: Engine = getattr(importlib.import_module(module), attribute)()
    return engine
