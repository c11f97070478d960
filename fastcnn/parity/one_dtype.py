"""A floating-point dtype for every operation below it, whatever the code above says."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode


class OneDtype(TorchDispatchMode):
    """Brings floating-point operands to `dtype`, and gives it to operations that were to convert or create in another.

    Raises:
        NotImplementedError: an operation writes to a tensor of another dtype, which the write would not reach.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self._dtype = dtype

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        given = (args, dict(kwargs or {}))
        brought = pytree.tree_map(self._bring, given)
        if isinstance(func, torch._ops.OpOverload) and func._schema.is_mutable and self._loses_a_write(func, *given):
            raise NotImplementedError(f"{func} writes to a tensor that is not {self._dtype}")
        return func(*brought[0], **brought[1])

    def _bring(self, value: Any) -> Any:
        if isinstance(value, torch.Tensor) and value.is_floating_point():
            return value.to(self._dtype)
        return self._dtype if isinstance(value, torch.dtype) and value.is_floating_point else value

    def _loses_a_write(self, func: torch._ops.OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        written = [
            args[position] if position < len(args) else kwargs.get(argument.name)
            for position, argument in enumerate(func._schema.arguments)
            if argument.is_write
        ]
        return any(leaf is not self._bring(leaf) for leaf in pytree.tree_leaves(written) if isinstance(leaf, torch.Tensor))
