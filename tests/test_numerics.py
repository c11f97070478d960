"""Folding in float64 and rounding once: an optimized float32 module is about as close to float64 as eager PyTorch is, on every model and engine."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from support import randomize_batch_norm, randomize_weights
from torch import Tensor, nn

from fastcnn.engines import available_backends, get_engine
from fastcnn.models.registry import create_model, list_models, model_spec
from fastcnn.models.weights import load_weights
from fastcnn.optimization import Builder

BACKENDS = [name for name, reason in available_backends().items() if reason is None]
# Small enough for every model to take a second or two; the families that need their own size keep it.
SIZES = {"alexnet": 127, "inception_v3": 139, "inception_v4": 139}
TRUNK = "weights/inception_v3_imagenet_trunk.safetensors"


def pictures(name: str, size: int | None = None) -> Tensor:
    channels, height, width = model_spec(name).input_size
    height = width = size or (SIZES.get(name, 64) if height > 64 else height)
    return torch.rand(4, channels, height, width, generator=torch.Generator().manual_seed(1)) * 2 - 1


def errors(model: nn.Module, x: Tensor) -> tuple[float, dict[str, float]]:
    """(eager float32's relative error against float64, each engine's)."""
    with torch.no_grad():
        truth = copy.deepcopy(model).double()(x.double())
        # Eager PyTorch has two answers: its kernels for the two memory formats sum in different orders. Either is what a user gets.
        channels_last = copy.deepcopy(model).to(memory_format=torch.channels_last)
        eager = [model(x), channels_last(x.to(memory_format=torch.channels_last))]

    def error(output: Tensor) -> float:
        return float((output.double() - truth).norm() / truth.norm())

    builder = Builder(model, x, check=False)
    engines = {}
    for backend in BACKENDS:
        module = builder.build(get_engine(backend))
        engines[backend] = error(module(x))
        assert module.backend == backend
        assert not any("batch_norm" in row.kernel for row in module.plan.rows if "conv" in row.name), (
            "a BatchNorm behind a convolution was not folded"
        )
    return max(map(error, eager)), engines


def check(eager: float, engines: dict[str, float]) -> None:
    # A model of few layers can be exact to less than half a unit in the last place; such an error says nothing.
    floor = 2.0**-24
    for backend, error in engines.items():
        assert error <= 1.5 * max(eager, floor), f"{backend}: {error:.3g}, eager float32: {eager:.3g}"


@pytest.mark.parametrize("name", list_models())
def test_error_is_not_above_eager_by_more_than_half(name: str) -> None:
    model = create_model(name)
    randomize_weights(model)
    randomize_batch_norm(model)
    check(*errors(model, pictures(name)))


@pytest.mark.slow
def test_error_on_the_real_inception_v3_trunk(shared_dir: Path) -> None:
    model = create_model("inception_v3")
    load_weights(model, shared_dir / TRUNK, allow_missing=("fc.*", "AuxLogits.*"))
    check(*errors(model, pictures("inception_v3", size=299)))
