"""Graphs as the engine's steps, for the tests of this folder."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from graph_support import images
from torch import Tensor, nn

from fastcnn.engines.triton.engine import match_network
from fastcnn.engines.triton.options import TritonOptions
from fastcnn.engines.triton.steps import Network
from fastcnn.graph.capture import capture
from fastcnn.graph.passes import STANDARD_PASSES, run_passes

PASSES = [name for name in STANDARD_PASSES if name != "pool_to_depthwise_convolution"]


def network_of(model: nn.Module, channels: int = 4, size: int = 8, dtype: torch.dtype = torch.float32) -> Network:
    """The steps of a model that takes [N, channels, size, size]."""
    passed, _ = run_passes(capture(model, images(2, channels, size, size)), PASSES)
    passed.cast_constants(dtype)
    return match_network(passed, dtype, TritonOptions())[0]


def kinds(network: Network) -> list[str]:
    return [type(step).__name__.removesuffix("Step") for step in network.steps]


def inception_block(s, x: Tensor) -> Tensor:
    branches = [F.relu(s.a(x)), F.relu(s.b2(F.relu(s.b1(x)))), F.relu(s.c(F.avg_pool2d(x, 3, 1, 1))), F.max_pool2d(x, 3, 1, 1)]
    return torch.cat(branches, 1)


def block_parts() -> dict[str, nn.Module]:
    return {"a": nn.Conv2d(4, 3, 1), "b1": nn.Conv2d(4, 2, 1), "b2": nn.Conv2d(2, 5, 3, padding=1), "c": nn.Conv2d(4, 2, 1)}
