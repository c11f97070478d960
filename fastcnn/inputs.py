"""What a model takes: one tensor or several, each with the batch first."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeAlias

from fastcnn.errors import InputError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

# One tensor [N, …], or a tuple of them in the order of the model's arguments, with one N.
Inputs: TypeAlias = "Tensor | Sequence[Tensor]"


def as_inputs(inputs: Inputs) -> tuple[Tensor, ...]:
    """The tensors in order.

    Raises:
        InputError: one of them is no tensor of real numbers with a batch, or they differ in its size or their device; it names which.
    """
    import torch

    tensors = tuple(inputs) if isinstance(inputs, (tuple, list)) else (inputs,)
    if not tensors:
        raise InputError("the example holds no tensor: give one for each argument of the model")
    for position, tensor in enumerate(tensors):
        what = "the example input" if len(tensors) == 1 else f"example input {position}"
        if not isinstance(tensor, torch.Tensor) or tensor.is_complex() or tensor.dim() < 1:
            shown = f"{tensor.dtype} {list(tensor.shape)}" if isinstance(tensor, torch.Tensor) else type(tensor).__name__
            raise InputError(f"{what} must be a tensor of real numbers with the batch first, such as [1, 3, 224, 224]; it is {shown}")
        if tensor.shape[0] != tensors[0].shape[0]:
            raise InputError(
                f"{what} is {list(tensor.shape)}, and the first is a batch of {tensors[0].shape[0]}: every input has the batch first; "
                "what is the same for every picture belongs into a buffer of the model"
            )
        if tensor.device != tensors[0].device:
            raise InputError(f"{what} is on {tensor.device}, the first on {tensors[0].device}: move one of them")
    return tensors


def cut(inputs: Sequence[Tensor], start: int, stop: int) -> tuple[Tensor, ...]:
    """Pictures `start` to `stop` of each."""
    return tuple(tensor[start:stop] for tensor in inputs)


def copies(inputs: Sequence[Tensor], dtype: torch.dtype | None = None) -> tuple[Tensor, ...]:
    """In memory of their own, since a model may write into its input; floating-point ones in `dtype`, where one is given."""
    return tuple(tensor.to(dtype, copy=True) if dtype is not None and tensor.is_floating_point() else tensor.clone() for tensor in inputs)
