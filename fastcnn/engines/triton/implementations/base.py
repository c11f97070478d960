"""What an implementation of convolutions offers to those who choose, measure and launch it."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from fastcnn.engines.triton.choices import Variant
from fastcnn.engines.triton.problem import ConvOperands, ConvProblem, ConvWeights

# Configurations of one kernel that are timed, those predicted to be the fastest.
TIMED_CONFIGS = 4


class Implementation(Protocol):
    """One way to compute a convolution.

    Attributes:
        name: in `TritonOptions.implementations` and in stored choices.
        in_place: it computes into the destinations that it is given, whatever lies between their pixels.
        compiles_ahead: its launches are those of our kernels, whose binaries `compile_ahead` can make before they
            start.
    """

    name: str
    in_place: bool
    compiles_ahead: bool

    def why_not(self, problem: ConvProblem, device: torch.device) -> str | None:
        """Why it cannot compute this problem there, or None."""

    def variants(self, problem: ConvProblem, device: torch.device, most: int | None = TIMED_CONFIGS) -> list[Variant]:
        """Worth timing, the one predicted to be fastest first; of kernel configurations at most so many, or all of
        them."""

    def leaves_epilogue(self, variant: Variant) -> bool:
        """Whether bias and ReLU are left to the launch that copies the result into a concat."""

    def run(self, problem: ConvProblem, variant: Variant, weights: ConvWeights, operands: ConvOperands) -> Tensor | None:
        """Computes into the destinations and gives None, or gives a new tensor [N, K, P, Q]."""

    def label(self, problem: ConvProblem, variant: Variant) -> str:
        """For the plan."""
