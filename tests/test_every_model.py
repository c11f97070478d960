"""Every model of the registry, from one capture: folded in float64 and rounded once, so that each engine is about as close to float64 as eager
PyTorch is; and as a file that its runtimes compute rightly at batches 1, 2 and 5. Random weights and BatchNorm statistics."""

from __future__ import annotations

import copy
import logging
from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path

import pytest
import torch
from support import CPU_BACKENDS, randomize_batch_norm, randomize_weights
from torch import Tensor, nn

from fastcnn.engines import available_backends, get_engine
from fastcnn.export import export_onnx, exporter
from fastcnn.models import create_model, list_models, model_spec
from fastcnn.models.weights import load_weights
from fastcnn.optimization import Builder

BACKENDS = [name for name in CPU_BACKENDS if available_backends()[name] is None]
# Small pictures: the graph is the same, and pixels cost time. The Inceptions and AlexNet need some before their last pool.
SIZES = {"alexnet": 127, "inception_v3": 107, "inception_v4": 107}
# Deeper and wider relatives of a model that is here go through PyTorch's engine alone: their files are held against float64 in both runtimes anyway.
RELATIVES = (
    *("vgg11*", "vgg13*", "vgg16", "vgg19*", "squeezenet1_0", "densenet1[67]*", "densenet201"),
    *("resnet34", "resnet101", "resnet152", "preact_resnet34", "preact_resnet101", "preact_resnet152"),
)
FAST = {*list_models("*mnist"), *list_models("*cifar10"), "simple_cnn", "googlenet", "resnet18", "squeezenet1_1"}
TRUNK = "weights/inception_v3_imagenet_trunk.safetensors"


def network(name: str) -> nn.Module:
    model = create_model(name)
    randomize_weights(model)
    randomize_batch_norm(model)
    if name == "alexnet" or (name.startswith("vgg") and "cifar10" not in name):
        narrow_classifier(model)
    return model


def narrow_classifier(model: nn.Module) -> None:
    """Gives the classifier of AlexNet and VGG 64 hidden channels in place of 4096: half a gigabyte of weights says no more than this."""
    linear = [index for index, layer in enumerate(model.classifier) if isinstance(layer, nn.Linear)]
    for index, (inputs, outputs) in zip(linear, [(model.classifier[linear[0]].in_features, 64), (64, 64), (64, 1000)], strict=True):
        model.classifier[index] = nn.Linear(inputs, outputs)
    model.eval()


def pictures(name: str, size: int | None = None) -> Tensor:
    channels, height, width = model_spec(name).input_size
    height = width = size or (SIZES.get(name, 64) if height > 64 else height)
    return torch.rand(4, channels, height, width, generator=torch.Generator().manual_seed(1)) * 2 - 1


def relative_error(output: Tensor, truth: Tensor) -> float:
    return float((output.double() - truth).norm() / truth.norm())


def check(builder: Builder, backends: Sequence[str]) -> None:
    """Each engine's error is at most 1.5 times that of the same kernels without our passes."""
    model, x = builder.model, builder.examples[0]
    with torch.no_grad():
        truth = copy.deepcopy(model).double()(x.double())
        # Eager PyTorch has two answers: its kernels for the two memory formats sum in different orders. Either is what a user gets.
        channels_last = copy.deepcopy(model).to(memory_format=torch.channels_last)
        eager = max(relative_error(output, truth) for output in (model(x), channels_last(x.to(memory_format=torch.channels_last))))
    # A model of few layers can be exact to less than half a unit in the last place; such an error says nothing.
    eager = max(eager, 2.0**-24)
    for backend in backends:
        module = builder.build(get_engine(backend))
        assert module.backend == backend
        error, allowed = relative_error(module(x), truth), 1.5 * eager
        if backend == "openvino" and error > allowed:
            # OpenVINO's convolutions err up to twice as much as eager PyTorch's on the plain graph too: that is not the passes' doing.
            plain = builder.captured.copy()
            plain.cast_constants(torch.float32)
            allowed = 1.5 * relative_error(get_engine(backend).lower(plain, builder.target).run(x)[0], truth)
        assert error <= allowed, f"{backend}: {error:.3g}, at most {allowed:.3g}; eager float32: {eager:.3g}"


@pytest.mark.parametrize("name", [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in list_models()])
def test_every_model(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, logger="fastcnn.export")
    x = pictures(name)
    builder = Builder(network(name), x, check=False)
    is_relative = any(fnmatch(name, pattern) for pattern in RELATIVES)
    check(builder, ["torch"] if is_relative else BACKENDS)

    monkeypatch.setattr(exporter, "capture", lambda model, example: builder.captured)
    report = export_onnx(builder.model, tmp_path / "model.onnx", x[:1])
    assert "is traced again" not in caplog.text
    assert report.parity.passed
    assert not report.left_out
    assert report.parity.batch_sizes == (1, 2, 5)
    assert report.parity.top1_agreement == 1.0
    assert sum(row.decisive for row in report.parity.rows) > 0


@pytest.mark.slow
def test_error_on_the_real_inception_v3_trunk(shared_dir: Path) -> None:
    model = create_model("inception_v3")
    load_weights(model, shared_dir / TRUNK, allow_missing=("fc.*", "AuxLogits.*"))
    check(Builder(model, pictures("inception_v3", size=299), check=False), BACKENDS)
