"""Which operation an engine computes wrongly."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from fastcnn.engines.base import Lowered
from fastcnn.errors import ParityError, RequestError
from fastcnn.graph.ir import CapturedGraph, aten
from fastcnn.optimization import Builder
from fastcnn.target import Target


class Branches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3)
        self.left, self.right = nn.Tanh(), nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        stem = self.stem(x)
        left = F.avg_pool2d(self.left(stem), 2)
        right = F.max_pool2d(torch.sigmoid(self.right(stem)), 2)
        return torch.cat([left, right], 1).flatten(1)


class Wrong:
    """An engine on PyTorch that misses one operation by a tenth, and refuses graphs that end in another."""

    name, passes = "torch", ()

    def __init__(self, misses: object, refuses: object = None, breaks_in_pieces: bool = False) -> None:
        self.misses, self.refuses, self.breaks_in_pieces, self.lowered = misses, refuses, breaks_in_pieces, 0

    def unsupported(self, target: Target) -> str | None:
        return None

    def lower(self, captured: CapturedGraph, target: Target, artifact: bytes | None = None) -> Lowered:
        self.lowered += 1
        if captured.output_nodes[0].target is self.refuses:
            raise RequestError("cannot be lowered")
        if self.breaks_in_pieces and self.lowered > 1:
            raise RuntimeError("out of memory")
        misses = self.misses

        class Runner(fx.Interpreter):
            def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
                value = super().call_function(target, args, kwargs)
                return value * 1.1 if target is misses else value

        return Lowered(lambda x: list(Runner(captured.module).run(x)), tuple)


@pytest.fixture(scope="module")
def builder() -> Builder:
    torch.manual_seed(0)
    return Builder(Branches().eval(), torch.randn(2, 3, 8, 8))


@pytest.mark.parametrize(
    ("operation", "place"),
    [
        (aten.conv2d.default, "aten.conv2d (stem)"),
        (aten.tanh.default, "aten.tanh (left)"),
        (aten.sigmoid.default, "aten.sigmoid"),
        (aten.avg_pool2d.default, "aten.avg_pool2d"),
        (aten.cat.default, "aten.cat"),
    ],
)
def test_the_error_names_the_operation(builder: Builder, operation: object, place: str) -> None:
    """One of two branches that join, and what lies on the way to both."""
    engine = Wrong(operation)
    with pytest.raises(ParityError) as error:
        builder.build(engine)
    assert f"backend 'torch', from {place} on, does not compute what its reference computes" in str(error.value)
    assert engine.lowered < 12


def test_what_cannot_be_lowered_alone_is_passed_over(builder: Builder) -> None:
    with pytest.raises(ParityError, match=r"from aten.max_pool2d on"):
        builder.build(Wrong(aten.sigmoid.default, refuses=aten.sigmoid.default))


def test_a_search_that_fails_leaves_the_first_error(builder: Builder) -> None:
    with pytest.raises(ParityError, match=r"^backend 'torch' does not compute"):
        builder.build(Wrong(aten.tanh.default, breaks_in_pieces=True))


def test_auto_does_not_search(builder: Builder) -> None:
    engine = Wrong(aten.tanh.default)
    with pytest.raises(ParityError, match=r"^backend 'torch' does not compute"):
        builder.build(engine, locate=False)
    assert engine.lowered == 1
