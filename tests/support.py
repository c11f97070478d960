"""What tests of several folders share."""

from __future__ import annotations

import torch
from torch import nn

# The engines that compute on a CPU. `triton` has tests of its own: its kernels are interpreted there, in minutes for what takes milliseconds.
CPU_BACKENDS = ("torch", "onnxruntime", "openvino")


def randomize_batch_norm(model: nn.Module, seed: int = 0) -> nn.Module:
    """Gives every BatchNorm of `model` random statistics, weight and bias, in place: as constructed, it is nearly the identity.

    Running variances lie in [0.5, 2], weights in [0.5, 1.5]. The same seed gives the same values.
    """
    generator = torch.Generator().manual_seed(seed)

    def uniform(like: torch.Tensor, low: float, high: float) -> torch.Tensor:
        return torch.empty(like.shape).uniform_(low, high, generator=generator)

    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.running_mean.copy_(uniform(module.running_mean, -0.5, 0.5))
                module.running_var.copy_(uniform(module.running_var, 0.5, 2.0))
                module.weight.copy_(uniform(module.weight, 0.5, 1.5))
                module.bias.copy_(uniform(module.bias, -0.5, 0.5))
    return model


def randomize_weights(model: nn.Module, seed: int = 0) -> nn.Module:
    """Gives every parameter and BatchNorm statistic of `model` a random value, in place, such that no layer inflates its signal.

    Random weights as the models draw them take Inception-v3's logits to 1e11; these keep them near 1.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                bound = (6 / module.weight[0].numel()) ** 0.5
                module.weight.uniform_(-bound, bound, generator=generator)
                if module.bias is not None:
                    module.bias.uniform_(-0.1, 0.1, generator=generator)
    return randomize_batch_norm(model, seed)
