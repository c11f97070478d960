"""A convolution to choose for and to run, and a step that is it, for the tests of this folder."""

from __future__ import annotations

import torch

from fastcnn.engines.triton.problem import ConvProblem, ConvWeights
from fastcnn.engines.triton.steps import ConvolutionStep

CPU = torch.device("cpu")
PROBLEM = ConvProblem(
    dtype=torch.float32,
    batch=2,
    in_channels=6,
    height=7,
    width=5,
    out_channels=9,
    kernel=(3, 1),
    stride=(1, 1),
    padding=(1, 0),
    dilation=(1, 1),
    groups=1,
    bias=True,
    relu=True,
    residual=False,
    in_pitch=8,
    pieces=(4, 5),
    out_pitches=(11, 5),
    concats=(1, 0),
)


class FakeStep:
    """What is read of a `ConvolutionStep`: weight and bias, random ones."""

    def __init__(self, problem: ConvProblem) -> None:
        generator = torch.Generator().manual_seed(1)
        self.weight = torch.randn(problem.out_channels, problem.in_channels // problem.groups, *problem.kernel, generator=generator) / 4
        self.weight = self.weight.to(problem.dtype)
        self.bias = torch.randn(problem.out_channels, generator=generator).to(problem.dtype) if problem.bias else None


def step_of(problem: ConvProblem) -> ConvolutionStep:
    return FakeStep(problem)  # type: ignore[return-value]


def weights_of(problem: ConvProblem) -> ConvWeights:
    return ConvWeights(step_of(problem))
