"""Reference models: plain, readable modules, one file per architecture. They are the specification that everything else is checked against.

Importing this package does not import torch; that happens when a model is created. `layer_table` lives in the module of the same
name: `from fastcnn.models.layer_table import layer_table`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from fastcnn.models.creation import create_model, create_untrained_model
from fastcnn.models.registry import ModelInfo, ModelSpec, list_models, model_spec

if TYPE_CHECKING:
    from fastcnn.models.weights import load_weights, state_dict_sha256

__all__ = ["ModelInfo", "ModelSpec", "create_model", "create_untrained_model", "list_models", "load_weights", "model_spec", "state_dict_sha256"]

_NEEDS_TORCH = {"load_weights", "state_dict_sha256"}


def __getattr__(name: str) -> Any:
    if name not in _NEEDS_TORCH:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module("fastcnn.models.weights"), name)
