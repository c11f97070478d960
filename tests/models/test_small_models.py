"""The models that the lectures train, against the lectures' equations; and what every small model must do in training."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from fastcnn.models import create_model, list_models, model_spec
from fastcnn.models.googlenet import GoogLeNetOutputs
from fastcnn.models.inception_mnist import InceptionA

SMALL = [name for name in list_models() if model_spec(name).family == "small"]


def image(name: str, batch: int = 2) -> torch.Tensor:
    return torch.randn(batch, *model_spec(name).input_size, generator=torch.Generator().manual_seed(1))


def conv(x, layer, **options):
    return F.conv2d(x, layer.weight, layer.bias, **options)


def inception_a(x, block):
    pooled = F.conv2d(x, torch.full((x.shape[1], 1, 3, 3), 1 / 9), padding=1, groups=x.shape[1])  # counts the padding
    return torch.cat(
        [
            conv(x, block.branch1x1),
            conv(conv(x, block.branch5x5_1), block.branch5x5_2, padding=2),
            conv(conv(conv(x, block.branch3x3_1), block.branch3x3_2, padding=1), block.branch3x3_3, padding=1),
            conv(pooled, block.branch_pool),
        ],
        1,
    )


def simple_cnn(model, x):
    x = F.max_pool2d(conv(x, model.conv1), 2).relu()
    return F.linear(F.max_pool2d(conv(x, model.conv2), 2).relu().reshape(-1, 320), model.fc.weight, model.fc.bias)


def inception_mnist(model, x):
    x = inception_a(F.max_pool2d(conv(x, model.conv1), 2).relu(), model.inception1)
    x = inception_a(F.max_pool2d(conv(x, model.conv2), 2).relu(), model.inception2)
    return F.linear(x.reshape(-1, 1408), model.fc.weight, model.fc.bias)


def residual_mnist(model, x):
    def residual(x, block):
        return (x + conv(conv(x, block.conv1, padding=1).relu(), block.conv2, padding=1)).relu()

    x = residual(F.max_pool2d(conv(x, model.conv1).relu(), 2), model.residual1)
    x = residual(F.max_pool2d(conv(x, model.conv2).relu(), 2), model.residual2)
    return F.linear(x.reshape(-1, 512), model.fc.weight, model.fc.bias)


@pytest.mark.parametrize("reference", [simple_cnn, inception_mnist, residual_mnist], ids=lambda reference: reference.__name__)
def test_mnist_models_are_what_the_lectures_define(reference):
    name = reference.__name__
    model = create_model(name, seed=5)
    with torch.no_grad():
        torch.testing.assert_close(model(image(name)), reference(model, image(name)))


def test_inception_block_a_is_linear():
    """No BatchNorm and no ReLU inside: doubling the input doubles what the output has above its value at zero."""
    block, x = InceptionA(10).double(), torch.randn(2, 10, 6, 6, dtype=torch.float64)
    at_zero = block(torch.zeros_like(x))
    assert at_zero.shape == (2, 88, 6, 6)
    torch.testing.assert_close(block(2 * x) - at_zero, 2 * (block(x) - at_zero))


@pytest.mark.parametrize("name", SMALL)
def test_gradients_reach_everything(name):
    model = create_model(name).train()
    outputs = model(image(name, batch=4))
    (sum(output.sum() for output in outputs) if isinstance(outputs, tuple) else outputs.sum()).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_googlenet_cifar10_training_outputs():
    """The heads stand after 4a and 4d, take those activations, and act in training mode only."""
    model = create_model("googlenet_cifar10", dropout_aux=0.0).train()
    x = image("googlenet_cifar10")
    outputs = model(x)
    assert isinstance(outputs, GoogLeNetOutputs)
    after_4a = model.inception3a_to_4a(model.stem(x))
    torch.testing.assert_close(outputs.aux_logits1, model.aux1(after_4a))
    torch.testing.assert_close(outputs.aux_logits2, model.aux2(model.inception4b_to_4d(after_4a)))
    torch.testing.assert_close(model.eval()(x), outputs.logits)
    assert isinstance(create_model("googlenet_cifar10", aux_logits=False).train()(x), torch.Tensor)


def test_googlenet_cifar10_has_a_true_5x5_branch():
    kernels = [module.b3_2.kernel_size for module in create_model("googlenet_cifar10").modules() if hasattr(module, "b3_2")]
    assert kernels == [(5, 5)] * 9
    imagenet = create_model("googlenet")
    assert imagenet.inception3a.branch3[1].conv.kernel_size == (3, 3)


def test_resnet18_cifar10_shortcuts_and_biases():
    model = create_model("resnet18_cifar10")
    convolutions = [module for module in model.modules() if isinstance(module, torch.nn.Conv2d)]
    assert all(convolution.bias is not None for convolution in convolutions)
    assert [type(block.conv3).__name__ for stage in (model.b2, model.b3, model.b4, model.b5) for block in stage] == ["NoneType"] * 2 + [
        "Conv2d",
        "NoneType",
    ] * 3
