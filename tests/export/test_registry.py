"""Every model of the registry as a file: at batches 1, 2 and 5, in every runtime of its format, with random weights and BatchNorm statistics."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from export_networks import EXPORTERS, SUFFIX
from support import randomize_weights
from torch import nn

from fastcnn.export import export_onnx, verify_file
from fastcnn.models import create_model, list_models, model_spec

# Small pictures: the graph is the same, and pixels are what costs time. The Inceptions need some before their last pool.
_SIDE = {"inception_v3": 107, "inception_v4": 107}
_FAST = {*list_models("*mnist"), *list_models("*cifar10"), "simple_cnn", "googlenet", "resnet18", "squeezenet1_1"}
_ARCHIVED = (
    "simple_cnn",
    "inception_mnist",
    "googlenet_cifar10",
    "resnet18_cifar10",
    "squeezenet1_1",
)


def network(name: str) -> tuple[nn.Module, torch.Tensor]:
    """(model with random weights, a picture)."""
    spec = model_spec(name)
    channels, side, _ = spec.input_size
    model = randomize_weights(create_model(name))
    if spec.family == "imagenet":
        side = _SIDE.get(name, 64)
    return model, torch.rand(1, channels, side, side, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", [name if name in _FAST else pytest.param(name, marks=pytest.mark.slow) for name in list_models()])
def test_onnx(name: str, tmp_path: Path) -> None:
    model, picture = network(name)
    if name.startswith("vgg") and name != "vgg16" and "cifar10" not in name:
        _narrow(model)
    report = export_onnx(model, tmp_path / "model.onnx", picture)
    assert report.parity.passed
    assert report.parity.batch_sizes == (1, 2, 5)
    assert report.parity.top1_agreement == 1.0
    assert sum(row.decisive for row in report.parity.rows) > 0


def _narrow(model: nn.Module) -> None:
    """Gives VGG's classifier 64 hidden channels in place of 4096: of half a gigabyte of weights, vgg16 alone is enough."""
    linear = [index for index, layer in enumerate(model.classifier) if isinstance(layer, nn.Linear)]
    for index, (inputs, outputs) in zip(linear, [(512 * 49, 64), (64, 64), (64, 1000)], strict=True):
        model.classifier[index] = nn.Linear(inputs, outputs)
    model.eval()


@pytest.mark.parametrize("format_", ["torchscript", "pt2"])
@pytest.mark.parametrize("name", _ARCHIVED)
def test_archives(name: str, format_: str, tmp_path: Path) -> None:
    model, picture = network(name)
    report = EXPORTERS[format_](model, tmp_path / f"model{SUFFIX[format_]}", picture)
    assert report.parity.passed
    assert report.parity.batch_sizes == (1, 2, 5)


@pytest.mark.slow
def test_inception_v3_at_its_own_size(tmp_path: Path) -> None:
    """The file of the README: transform_input folded into the first convolution, pools moved, nothing above the float32 bound."""
    model = randomize_weights(create_model("inception_v3", transform_input=True))
    path = tmp_path / "inception_v3.onnx"
    report = export_onnx(model, path, torch.rand(1, 3, 299, 299, generator=torch.Generator().manual_seed(0)))
    assert report.parity.passed
    fired = {pass_report.name: pass_report.fired for pass_report in report.passes}
    assert (fired["fold_batch_norm"], fired["fold_input_normalization"]) == (94, 1)
    assert fired["move_pool_behind_projection"] > 0
    assert verify_file(path).passed
