"""Models of the registry as archives, at batches 1, 2 and 5, and Inception-v3 at its own size. ONNX files of all: test_every_model.py."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from export_networks import EXPORTERS, SUFFIX
from support import randomize_weights
from torch import nn

from fastcnn.export import export_onnx, verify_file
from fastcnn.models import create_model, model_spec

_ARCHIVED = (
    "simple_cnn",
    "inception_mnist",
    "googlenet_cifar10",
    "resnet18_cifar10",
    "squeezenet1_1",
)


def network(name: str) -> tuple[nn.Module, torch.Tensor]:
    """(model with random weights, a picture)."""
    channels, side, _ = model_spec(name).input_size
    model, side = randomize_weights(create_model(name)), min(side, 64)
    return model, torch.rand(1, channels, side, side, generator=torch.Generator().manual_seed(0))


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
