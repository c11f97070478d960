"""Pre-activation ResNets have no published twin: they are checked against the equations of their paper and against plain ResNets."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from support import randomize_weights
from torch import nn

from fastcnn.models.preact_resnet import PreActBottleneck, PreActResNet, preact_resnet18
from fastcnn.models.registry import model_spec


def parameters_of(model: nn.Module, kinds: tuple[type[nn.Module], ...]) -> list[tuple[int, ...]]:
    return sorted(tuple(parameter.shape) for module in model.modules() if isinstance(module, kinds) for parameter in module.parameters())


@pytest.mark.parametrize("depth", [18, 34, 50, 101, 152])
def test_only_batch_norm_differs_from_resnet(depth):
    """The same convolutions and classifier as the ResNet of that depth."""
    with torch.device("meta"):
        ours = model_spec(f"preact_resnet{depth}").load_builder()()
        plain = model_spec(f"resnet{depth}").load_builder()()
    kinds = (nn.Conv2d, nn.Linear)
    assert parameters_of(ours, kinds) == parameters_of(plain, kinds)


def test_blocks_are_identities_when_their_residual_is_zero():
    """Nothing stands on the shortcut and nothing after the addition: with zero residuals a stage passes its input through."""
    model = randomize_weights(preact_resnet18(num_classes=5)).eval()
    for module in model.modules():
        if hasattr(module, "conv2"):
            nn.init.zeros_(module.conv2.weight)
    x = torch.randn(2, 64, 8, 8)
    torch.testing.assert_close(model.layer1(x), x, rtol=0, atol=0)
    torch.testing.assert_close(model.layer3[1](y := torch.randn(2, 256, 4, 4)), y, rtol=0, atol=0)


def batch_norm_relu(norm: nn.BatchNorm2d, x: torch.Tensor) -> torch.Tensor:
    scale = norm.weight / (norm.running_var + norm.eps).sqrt()
    return torch.clamp((x - norm.running_mean[:, None, None]) * scale[:, None, None] + norm.bias[:, None, None], min=0)


@pytest.mark.parametrize("preactivated", [True, False])
def test_bottleneck_is_the_papers_unit(preactivated):
    block = randomize_weights(PreActBottleneck(64, 32, stride=2, preactivated=preactivated)).double().eval()
    x = torch.randn(2, 64, 8, 8, dtype=torch.float64)
    activated = x if preactivated else batch_norm_relu(block.bn1, x)
    out = F.conv2d(activated, block.conv1.weight)
    out = F.conv2d(batch_norm_relu(block.bn2, out), block.conv2.weight, stride=2, padding=1)
    out = F.conv2d(batch_norm_relu(block.bn3, out), block.conv3.weight)
    torch.testing.assert_close(block(x), out + F.conv2d(activated, block.downsample.weight, stride=2))


def test_stem_activates_the_first_block_and_the_head_the_last():
    model = PreActResNet(PreActBottleneck, (1, 1, 2, 1), num_classes=5)
    has_own_activation = [block.bn1 is not None for block in model.modules() if isinstance(block, PreActBottleneck)]
    assert has_own_activation == [False] + [True] * 4
    randomize_weights(model).double().eval()
    x = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    stem = F.max_pool2d(batch_norm_relu(model.bn1, model.conv1(x)), 3, 2, 1)
    features = model.layer4(model.layer3(model.layer2(model.layer1(stem))))
    torch.testing.assert_close(model(x), model.fc(batch_norm_relu(model.norm, features).mean((2, 3))))


def test_gradients_reach_everything():
    model = preact_resnet18(num_classes=5).train()
    model(torch.randn(2, 3, 32, 32)).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
