"""Random weights under which a network computes something: every activation keeps the size of the one before."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

SCALED = "scaled so that no layer inflates its signal"
SETTLED = "its library's initialisation, with BatchNorm statistics of noise"
# Scales that begin as nothing: 0 of a branch's last BatchNorm, 1e-6 to 1e-2 of a layer scale.
_NEXT_TO_NOTHING = 0.02


def draw_scaled_weights(model: nn.Module, seed: int) -> None:
    """Gives every convolution, linear layer and BatchNorm of `model` random values, in place, that keep activations near 1.

    The weights that training starts from rely on BatchNorm to repair their scale batch by batch. In eval mode it does not,
    and Inception-v3's logits reach 1e11, which float16 cannot hold and beside which any difference looks large. Here

    - weights are drawn from U(-b, b) with b² = 6 / fan-in (He et al. 2015, arXiv:1502.01852): ReLU layers keep the variance;
    - BatchNorm gets statistics that are not those of a fresh layer, so that folding it has something to get wrong;
    - of N residual blocks, each adds 1/√N of what its branch gives: at full size each would double the variance, and a
      ResNet-152 end at 1e8. A block class names the last layer of its branch in `branch_end`.

    A weight of zeros, as `zero_init_residual` leaves it, stays zero. The same seed gives the same values on every machine;
    the global random state is left alone.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                bound = (6 / module.weight[0].numel()) ** 0.5
                module.weight.uniform_(-bound, bound, generator=generator)
                if module.bias is not None:
                    module.bias.uniform_(-0.1, 0.1, generator=generator)
            elif isinstance(module, nn.BatchNorm2d):
                _draw_batch_norm(module, generator)
        ends = [block.get_submodule(str(block.branch_end)) for block in model.modules() if hasattr(block, "branch_end")]
        for end in ends:
            for parameter in end.parameters():
                parameter.mul_(len(ends) ** -0.5)


def _draw_batch_norm(module: nn.BatchNorm2d, generator: torch.Generator) -> None:
    assert module.running_mean is not None
    assert module.running_var is not None
    starts_at_zero = not module.weight.any()
    module.running_mean.uniform_(-0.5, 0.5, generator=generator)
    module.running_var.uniform_(0.5, 2.0, generator=generator)
    module.weight.uniform_(0.5, 1.5, generator=generator)
    module.bias.uniform_(-0.5, 0.5, generator=generator)
    if starts_at_zero:
        module.weight.zero_()


def settle(model: nn.Module, size: Sequence[int], seed: int) -> None:
    """Makes a freshly built model of any library compute something in eval mode, in place.

    Every library initialises for training: BatchNorm has the statistics of no picture, and branches begin as nothing (a
    BatchNorm weight of 0, a layer scale of 1e-6), so that whatever they compute is not seen. Here the statistics become
    those of two inputs of noise, and such scales are drawn from U(0.1, 0.3). The rest stays as the library drew it.

    Args:
        size: of one input, without the batch. A model that does not take it keeps its statistics.
    """
    generator = torch.Generator().manual_seed(seed)
    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    before = [(norm, norm.momentum) for norm in norms]
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            leaf = name.rpartition(".")[2]
            if leaf in ("weight", "gamma", "ls", "scale", "layer_scale") and parameter.dim() != 2 and parameter.abs().max() < _NEXT_TO_NOTHING:
                parameter.uniform_(0.1, 0.3, generator=generator)
        try:
            for norm in norms:
                norm.train()
                norm.momentum = None  # the mean of all batches seen, and only this one is
            # One input around zero and one of a single sign: a statistic of either alone is far off for the other.
            model(torch.stack([torch.randn(*size, generator=generator), torch.rand(*size, generator=generator)]))
        except Exception:  # what the model does not take is told where it is captured
            pass
        finally:
            for norm, momentum in before:
                norm.eval()
                norm.momentum = momentum
