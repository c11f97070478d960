"""Predictors of modules: what runs in PyTorch, or was optimized from it."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
from torch import nn

from fastcnn.errors import RequestError
from fastcnn.models.preprocessing_of import preprocessing_of
from fastcnn.optimized_module import OptimizedModule
from fastcnn.prediction.predictor import Predictor, agreed, check_shape, class_names
from fastcnn.preprocessing import Preprocessing
from fastcnn.saving import check_device


def of_saved(
    path: Path, backend: str | None, preprocessing: Preprocessing | None, categories: Sequence[str] | None, device: str | None = None
) -> Predictor:
    """A module that `fastcnn.save` wrote, or the model of a checkpoint that `fastcnn train` wrote. Errors as in `load_predictor`."""
    return of_module(_load(path, backend, device), backend, preprocessing, categories, device)


def of_module(
    module: nn.Module, backend: str | None, preprocessing: Preprocessing | None, categories: Sequence[str] | None, device: str | None = None
) -> Predictor:
    """A module as it is, optimized first unless `backend` is "reference". Arguments and errors as in `load_predictor`."""
    if device is not None and check_device(device) != _device(module):
        moved: nn.Module = copy.deepcopy(module).to(device)
        module = moved
    info: Any = module.info if isinstance(module, OptimizedModule) else getattr(module, "fastcnn_info", None)
    info = info if isinstance(info, dict) else vars(info) if info is not None else {}
    name = str(info.get("name") or type(module).__name__.lower())
    wanted = agreed(name, preprocessing_of(module), preprocessing)
    if not isinstance(module, OptimizedModule) and module.training:
        raise RequestError(f"{name} is in training mode: call model.eval() first")
    if not isinstance(module, OptimizedModule) and backend != "reference":
        from fastcnn.optimization import optimize

        low, high = (torch.tensor(bounds).view(-1, 1, 1) for bounds in zip(*wanted.bounds(), strict=True))
        example = torch.rand((1, *wanted.output_shape), generator=torch.Generator().manual_seed(0)) * (high - low) + low
        module = optimize(module, example.to(_device(module)), backend=backend or "torch")
    if isinstance(module, OptimizedModule):
        expected = module.source.graph.input_shape[1:]
        check_shape(name, expected, wanted.output_shape)
    runtime = module.backend if isinstance(module, OptimizedModule) else "reference"
    network, place = module, _device(module)

    def forward(batch: NDArray) -> NDArray:
        with torch.inference_mode():
            outputs = torch.utils._pytree.tree_leaves(network(torch.from_numpy(batch).to(place)))
        return outputs[0].float().cpu().numpy()

    return Predictor(name, runtime, wanted, "none", class_names(categories, info.get("categories")), False, None, forward, info.get("weights"))


def _device(module: nn.Module) -> torch.device:
    if isinstance(module, OptimizedModule):
        return module.source.target.device
    return next((tensor.device for tensor in module.parameters()), torch.device("cpu"))


def _load(path: Path, backend: str | None, device: str | None) -> nn.Module:
    from fastcnn.models import create_model
    from fastcnn.models.weights import describe_weights
    from fastcnn.saving import load

    model = describe_weights(path).get("model")
    if isinstance(model, str):
        return create_model(model, path)  # its caller moves it
    return load(path, backend=backend, device=device or "cpu")
