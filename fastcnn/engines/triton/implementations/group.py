"""Several independent convolutions in one launch of `fastcnn.kernels.convolution_group`, as against a launch for
each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from fastcnn.engines.triton.choices import Choice
from fastcnn.engines.triton.problem import ConvOperands, ConvProblem, ConvWeights
from fastcnn.engines.triton.steps import ConvolutionStep
from fastcnn.kernels.convolution_configs import ConvConfig, rank_configs
from fastcnn.kernels.convolution_group import GroupedConv, conv2d_group
from fastcnn.kernels.convolution_problem import Convolution
from fastcnn.kernels.launching import device_limits

# What stored choices call it, and the implementation whose use it needs.
_NAME, _KERNEL = "triton_group", "triton"
# Configurations that are timed, in the order of their predicted speed.
_TIMED_CONFIGS = 3


@dataclass(frozen=True)
class ConvGroup:
    """Convolutions of one dependency level that one launch could compute.

    Attributes:
        alone: milliseconds of all of them, launched one after the other; None where one of them has not been measured.
        choices: what each is computed by without the group.
    """

    problems: tuple[ConvProblem, ...]
    steps: tuple[ConvolutionStep, ...]
    alone: float | None
    choices: tuple[Choice, ...] = ()

    @property
    def key(self) -> str:
        """The name of a stored choice."""
        return "group: " + " | ".join(problem.key for problem in self.problems)


@dataclass(frozen=True)
class GroupChoice:
    """How the convolutions of a group are launched: in one launch with `config`, or one by one where it is None."""

    config: ConvConfig | None
    milliseconds: float | None
    why: str

    @classmethod
    def from_stored(cls, choice: Choice) -> GroupChoice:
        """What `to_store` made."""
        return cls(ConvConfig.decode(list(choice.variant)) if choice.variant else None, choice.milliseconds, choice.why)

    def to_store(self) -> Choice:
        """As a choice among implementations; the variant of convolutions that are launched one by one is empty."""
        return Choice(_NAME, () if self.config is None else tuple(self.config.encode()), self.milliseconds, self.why)


def can_group(problem: ConvProblem) -> bool:
    """Whether the kernel takes such a convolution."""
    return problem.groups == 1 and problem.input_channels_last


def may_group(implementations: Sequence[str]) -> bool:
    """Whether grouped launches are among what may be used: their kernel is that of the implementation `triton`."""
    return _KERNEL in implementations


def group_configs(problems: Sequence[ConvProblem], device: torch.device) -> list[ConvConfig]:
    """Worth timing, the one predicted to be fastest first."""
    capability, multiprocessors = device_limits(device)
    sizes = [problem.gemm for problem in problems]
    return rank_configs(sizes, problems[0].dtype, problems[0].precision, capability, multiprocessors)[:_TIMED_CONFIGS]


def run_group(problems: Sequence[ConvProblem], weights: Sequence[ConvWeights], operands: Sequence[ConvOperands], config: ConvConfig) -> None:
    """One launch of all of them, into the destinations of each."""
    conv2d_group(group_members(problems, weights, operands), config, problems[0].precision)


def bind_group(
    problems: Sequence[ConvProblem], weights: Sequence[ConvWeights], operands: Sequence[ConvOperands], config: ConvConfig
) -> Callable[[], object]:
    """`run_group` on the same members again and again."""
    members = group_members(problems, weights, operands)
    return lambda: conv2d_group(members, config, problems[0].precision)


def group_members(problems: Sequence[ConvProblem], weights: Sequence[ConvWeights], operands: Sequence[ConvOperands]) -> list[GroupedConv]:
    """The members of a grouped launch, in order: a convolution of several pieces is one for each."""
    members = []
    for problem, weight, operand in zip(problems, weights, operands, strict=True):
        start = 0
        for destination in operand.destinations:
            stop = start + destination.shape[1]
            bias = None if weight.bias is None else weight.bias[start:stop]
            residual = None if operand.residual is None else operand.residual[:, start:stop]
            geometry = (problem.stride, problem.padding, problem.dilation)
            convolution = Convolution(operand.x, weight.packed[start:stop], bias, *geometry, residual, problem.relu)
            members.append(GroupedConv(convolution, destination))
            start = stop
    return members


def group_label(problems: Sequence[ConvProblem], config: ConvConfig) -> str:
    """For the plan: how many members, and the tile."""
    return f"triton group of {sum(len(problem.pieces) for problem in problems)}, {config.block_m}×{config.block_n}×{config.block_k}"
