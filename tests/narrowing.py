"""Narrow copies of real architectures: every block, a fraction of the channels."""

from __future__ import annotations

from torch import nn


def narrow(model: nn.Module, divisor: int, num_classes: int = 10) -> nn.Module:
    """Divides the channels of every convolution, BatchNorm and linear layer of `model` by `divisor`, in place.

    The input keeps its channels, and the outputs of linear layers of 1000 become `num_classes`. For architectures all of whose widths are multiples
    of `divisor`, so that what is concatenated or added still fits.
    """

    def part(channels: int) -> int:
        assert channels % divisor == 0, f"{channels} channels cannot be divided by {divisor}"
        return channels // divisor

    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Conv2d):
                inputs = child.in_channels if child.in_channels <= 4 else part(child.in_channels)
                geometry = (child.kernel_size, child.stride, child.padding, child.dilation, child.groups)
                setattr(parent, name, nn.Conv2d(inputs, part(child.out_channels), *geometry, bias=child.bias is not None))
            elif isinstance(child, nn.BatchNorm2d):
                setattr(parent, name, nn.BatchNorm2d(part(child.num_features), child.eps))
            elif isinstance(child, nn.Linear):
                outputs = num_classes if child.out_features == 1000 else part(child.out_features)
                setattr(parent, name, nn.Linear(part(child.in_features), outputs))
    return model.eval()
