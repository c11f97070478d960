"""One convolution on random operands, on which candidates are held against PyTorch and timed."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from fastcnn.engines.triton.choices import Variant
from fastcnn.engines.triton.compile_ahead import CompileJob, compile_jobs, note_jobs
from fastcnn.engines.triton.implementations.base import TIMED_CONFIGS, Implementation
from fastcnn.engines.triton.problem import ConvOperands, ConvProblem, ConvWeights
from fastcnn.engines.triton.steps import ConvolutionStep
from fastcnn.kernels.concat import concat_relu
from fastcnn.precision import exact_float32

# A wrong index or a missed tile is wrong by far more than this; rounding to the dtype and another order of sums is not.
_LARGEST_ERROR = {torch.float16: 5e-3, torch.bfloat16: 3e-2, torch.float32: 1e-4}
_LARGEST_ERROR_TF32 = 5e-3

# Known of cuDNN's fused ReLU, and no fault of ours.
LOSES_NAN = "it loses NaN"
_SPREADS_NAN = "NaN comes out where none can come from"


class Trial:
    """A convolution with the weights of a step and random operands.

    Forms of the weights that it packs are dropped with it; CUDA graphs that were captured before hold on to theirs.
    """

    def __init__(self, problem: ConvProblem, step: ConvolutionStep, device: torch.device) -> None:
        self.problem = problem
        self.weights = ConvWeights(step, tf32=problem.tf32)
        self.operands = make_operands(problem, device)

    @functools.cached_property
    def expected(self) -> Tensor:
        """The answer by PyTorch's own operations in float32: [N, K, P, Q]."""
        problem, operands, bias = self.problem, self.operands, self.weights.bias
        weight = self.weights.step.weight.float()
        geometry = (problem.stride, problem.padding, problem.dilation, problem.groups)
        with exact_float32():
            y = F.conv2d(operands.x.float(), weight, None if bias is None else bias.float(), *geometry)
        if operands.residual is not None:
            y += operands.residual.float()
        return F.relu(y) if problem.relu else y

    def check(self, implementation: Implementation, variant: Variant) -> str | None:
        """Why a candidate does not compute the convolution, or None: its error on random numbers, and whether NaN comes
        out where it must and nowhere else."""
        problem, operands = self.problem, self.operands
        # What memory held before must not show: 0 times an old NaN is NaN, and so is what was not written. The first
        # free block that fits is reused.
        for destination in operands.destinations:
            destination.fill_(torch.nan)
        torch.full_like(self.expected, torch.nan, dtype=problem.dtype, memory_format=torch.channels_last)
        self.run(implementation, variant, everything=True)
        y = torch.cat(operands.destinations, dim=1).float()
        error = float((y - self.expected).norm() / self.expected.norm().clamp_min(1e-30))
        bound = _LARGEST_ERROR_TF32 if problem.tf32 else _LARGEST_ERROR[problem.dtype]
        if not error <= bound:
            return f"relative error {error:.2g}, more than {bound:.2g}"
        first = operands.x[:1, :, :1, :1].clone()
        operands.x[:1, :, :1, :1] = torch.nan
        self.run(implementation, variant, everything=True)
        operands.x[:1, :, :1, :1] = first
        touched = torch.zeros(problem.batch, 1, problem.height, problem.width, device=operands.x.device)
        touched[:1, :, :1, :1] = 1
        window = torch.ones(1, 1, *problem.kernel, device=operands.x.device)
        reached = F.conv2d(touched, window, None, problem.stride, problem.padding, problem.dilation) > 0
        kept = torch.cat(operands.destinations, dim=1).isnan()
        must = reached.expand_as(kept)
        if not bool(kept[must].all()):
            return LOSES_NAN
        return _SPREADS_NAN if bool(kept[~must].any()) else None

    def run(self, implementation: Implementation, variant: Variant, *, everything: bool = False) -> None:
        """Run a candidate and copy what the network would copy, so that it is part of the price; `everything` copies
        all of it to the destinations."""
        y = implementation.run(self.problem, variant, self.weights, self.operands)
        if y is None:
            return
        start = 0
        for index, destination in enumerate(self.operands.destinations):
            part = y[:, start : start + destination.shape[1]]
            start += destination.shape[1]
            if self.problem.bare:
                concat_relu([part], [self.weights.bias], self.problem.relu, out=destination)
            elif everything or (self.problem.concats and self.problem.concats[index]):
                concat_relu([part], None, False, out=destination)

    def bind(self, implementation: Implementation, variant: Variant) -> Callable[[], None]:
        """`run` as a call without arguments, to be timed."""
        return functools.partial(self.run, implementation, variant)

    def compile_jobs(self, implementation: Implementation, variant: Variant) -> list[CompileJob]:
        """What Triton would have to compile for a candidate."""
        return note_jobs([lambda: implementation.run(self.problem, variant, self.weights, self.operands)])


def make_operands(problem: ConvProblem, device: torch.device, seed: int = 0) -> ConvOperands:
    """Random input, residual and destinations with the pitches of the problem; an input that is not aligned starts one
    channel into its pitch where there is room, as a slice may."""
    generator = torch.Generator(device).manual_seed(seed)

    def activation(channels: int, size: tuple[int, int], pitch: int, *, random: bool, first: int = 0) -> Tensor:
        shape = (problem.batch, *size, pitch)
        memory = torch.randn(shape, generator=generator, device=device) if random else torch.zeros(shape, device=device)
        return memory.to(problem.dtype).permute(0, 3, 1, 2)[:, first : first + channels]

    first = int(not problem.in_aligned and problem.in_pitch > problem.in_channels)
    x = activation(problem.in_channels, (problem.height, problem.width), problem.in_pitch, random=True, first=first)
    residual = activation(problem.out_channels, problem.out_size, problem.out_channels, random=True) if problem.residual else None
    destinations = tuple(
        activation(channels, problem.out_size, pitch, random=False) for channels, pitch in zip(problem.pieces, problem.out_pitches, strict=True)
    )
    return ConvOperands(x if problem.input_channels_last else x.contiguous(), residual, destinations)


def compile_candidates(
    wanted: Iterable[tuple[ConvProblem, ConvolutionStep]],
    candidates: Sequence[Implementation],
    device: torch.device,
    seconds: float,
    most: int | None = TIMED_CONFIGS,
) -> None:
    """Compile in parallel, for at most `seconds`, our kernels among the candidates for all these problems, the best
    guesses first.

    Args:
        most: as for `Implementation.variants`.
    """
    ranked: list[tuple[int, CompileJob]] = []
    for problem, step in {problem.key: (problem, step) for problem, step in wanted}.values():
        try:
            trial = Trial(problem, step, device)
        except torch.cuda.OutOfMemoryError:  # whoever measures meets it again, and says so
            continue
        for implementation in candidates:
            if implementation.compiles_ahead and implementation.why_not(problem, device) is None:
                for rank, variant in enumerate(implementation.variants(problem, device, most)):
                    ranked += [(rank, job) for job in trial.compile_jobs(implementation, variant)]
    ranked.sort(key=lambda item: item[0])
    compile_jobs([job for _, job in ranked], seconds)
