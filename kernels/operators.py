"""One way to register an operator: a schema, a record of its arguments, a check and a launch, each written once.

They make `fastcnn::name`, which gives a new tensor, `fastcnn::name_out`, which writes where it is told, and the fakes by which
torch.export and torch.compile trace both. A fake makes the same check and launches nothing, so a trace refuses what a call
refuses, but for what only real tensors have: an address, and a device that is there.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Generic, NamedTuple, TypeVar

import torch
from torch import Tensor

from fastcnn.kernels.launching import check_output

Arguments = TypeVar("Arguments")


class Result(NamedTuple):
    """What an operator computes: its public name for errors, the shape, and a tensor of that dtype and device."""

    operator: str
    shape: list[int]
    like: Tensor

    def empty(self) -> Tensor:
        """A new tensor for it, channels_last if it is an activation."""
        layout = torch.channels_last if len(self.shape) == 4 else torch.contiguous_format
        return torch.empty(self.shape, dtype=self.like.dtype, device=self.like.device, memory_format=layout)


class Outputs(NamedTuple):
    """How `name_out` is told where to write.

    Attributes:
        schema: the arguments for it.
        check: `check(operator, *destination, shape, like)` refuses a destination that does not fit.
        whole: the arguments that stand for one tensor which takes everything.
    """

    schema: str = "Tensor(a!) out"
    check: Callable[..., None] = check_output
    whole: Callable[[Tensor], tuple[Any, ...]] = lambda out: (out,)


ONE_TENSOR = Outputs()


def register(name: str, schema: str, real: Callable[..., Any], fake: Callable[..., Any]) -> torch._ops.OpOverload:
    """`fastcnn::name` with this schema; `fake` traces it, with tensors that have no memory."""
    mutated = re.findall(r"Tensor\(a!\)\S* (\w+)", schema)
    operator = torch.library.custom_op(f"fastcnn::{name}", real, mutates_args=mutated, schema=schema)
    operator.register_fake(fake)
    # Calls through what custom_op returns look the name up each time.
    overload: torch._ops.OpOverload = getattr(torch.ops.fastcnn, name).default
    return overload


class Operator(Generic[Arguments]):
    """`fastcnn::name` and `fastcnn::name_out`.

    Args:
        name: for torch.library.
        schema: the arguments as torch.library writes them. The destination comes last, or where `{out}` stands.
        record: made of the arguments in this order.
        check: refuses arguments that the kernel cannot read, fake ones too, and says what comes out.
        run: `run(arguments, *destination)`, the launch.
        outputs: what `name_out` writes to.
    """

    def __init__(
        self,
        name: str,
        schema: str,
        record: Callable[..., Arguments],
        check: Callable[[Arguments], Result],
        run: Callable[..., None],
        outputs: Outputs = ONE_TENSOR,
    ) -> None:
        before, _, after = schema.partition(", {out}")
        start = before.count(", ") + 1
        stop = start + outputs.schema.count(", ") + 1

        def real(*values: Any) -> Tensor:
            arguments = record(*values)
            out = check(arguments).empty()
            run(arguments, *outputs.whole(out))
            return out

        def checked(*values: Any) -> Arguments:
            arguments = record(*values[:start], *values[stop:])
            operator, shape, like = check(arguments)
            outputs.check(operator, *values[start:stop], shape, like)
            return arguments

        def real_into(*values: Any) -> None:
            run(checked(*values), *values[start:stop])

        def fake_into(*values: Any) -> None:
            checked(*values)

        self.name, self._start = name, start
        self._new = register(name, f"({before}{after}) -> Tensor", real, lambda *values: check(record(*values)).empty())
        self._into = register(f"{name}_out", f"({before}, {outputs.schema}{after}) -> ()", real_into, fake_into)

    def __call__(self, values: tuple[Any, ...], out: Tensor | None = None) -> Tensor:
        """The result for the arguments `values`: `out`, or a new tensor."""
        if out is not None:
            self.into(values, out)
            return out
        result: Tensor = self._new(*values)
        return result

    def into(self, values: tuple[Any, ...], *destination: Any) -> None:
        """Writes to the destination."""
        self._into(*values[: self._start], *destination, *values[self._start :])
