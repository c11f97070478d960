"""Chooses the fastest of the implementations of a convolution by running them, each first held against the library's answer."""

from __future__ import annotations

import functools
import logging
import statistics
import threading
import time
from collections.abc import Callable, Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from fastcnn.engines.triton.choices import Choice, ChoiceStore
from fastcnn.engines.triton.compile_ahead import CompileJob, compile_jobs, note_jobs
from fastcnn.engines.triton.convolutions import TIMED_CONFIGS, ConvOperands, ConvProblem, ConvWeights, Implementation, implementations
from fastcnn.engines.triton.options import TritonOptions
from fastcnn.errors import BackendError
from fastcnn.kernels.concat import concat_relu
from fastcnn.kernels.convolution_configs import ConvConfig, rank_configs
from fastcnn.kernels.convolution_group import GroupedConv, conv2d_group
from fastcnn.kernels.convolution_problem import Convolution
from fastcnn.kernels.launching import device_limits
from fastcnn.precision import exact_float32

log = logging.getLogger(__name__)

# A wrong index or a missed tile is wrong by far more than this; rounding to the dtype and another order of sums is not.
_LARGEST_ERROR = {torch.float16: 5e-3, torch.bfloat16: 3e-2, torch.float32: 1e-4}
_LARGEST_ERROR_TF32 = 5e-3

# Known of cuDNN's fused ReLU, and no fault of ours.
LOSES_NAN = "it loses NaN"

# Of the time for measuring, what compiling ahead may take at most.
_SHARE_FOR_COMPILING = 0.7

# One capture at a time in a process, and nobody waits for a whole GPU meanwhile: CUDA has both fail.
CAPTURING = threading.RLock()

_RUNS_IN_A_GRAPH, _REPLAYS = 10, 5
# Configurations of a grouped launch that are timed, in the order of their predicted speed.
_GROUP_CONFIGS = 3


class Chooser:
    """Chooses for the problems of one network on one device: from the store, by measuring while there is time, by prediction after that."""

    def __init__(self, device: torch.device, options: TritonOptions, store: ChoiceStore) -> None:
        self.device, self.options, self.store = device, options, store
        self._candidates = implementations(options.implementations)
        self._deadline = 0.0

    def start_clock(self) -> None:
        """From now on `tuning_seconds` may be spent."""
        self._deadline = time.monotonic() + self.options.tuning_seconds

    def compile_ahead(self, wanted: Iterable[tuple[ConvProblem, ConvWeights]]) -> None:
        """Compile in parallel what `choose` will measure for these problems, the best guesses for all of them first."""
        if self.device.type == "cuda" and self._can_measure():
            compile_candidates(wanted, self._candidates, self.device, _SHARE_FOR_COMPILING * (self._deadline - time.monotonic()))

    def compile_groups_ahead(self, groups: Iterable[tuple[Sequence[ConvProblem], Sequence[ConvWeights], float | None]]) -> None:
        """Compile in parallel what `choose_group` will measure, its arguments given."""
        jobs: list[CompileJob] = []
        for problems, weights, alone in groups:
            if self.device.type == "cuda" and self._can_measure() and self._measures_group(problems, alone):
                operands = [make_operands(problem, self.device) for problem in problems]
                fresh = [ConvWeights(weight.step) for weight in weights]
                jobs += note_jobs([bind_group(problems, fresh, operands, config) for config in self._group_configs(problems)])
        if jobs:
            compile_jobs(jobs, _SHARE_FOR_COMPILING * (self._deadline - time.monotonic()))

    def choose(self, problem: ConvProblem, weights: ConvWeights) -> Choice:
        """The implementation for one convolution.

        Raises:
            BackendError: none of those that may be used can compute it; names each and its reason.
        """
        return self.choose_all([(problem, weights)])[0]

    def choose_all(self, wanted: Iterable[tuple[ConvProblem, ConvWeights]]) -> list[Choice]:
        """The implementation for each convolution, in order. Each implementation's best guess is measured for all of them before anyone's second for
        the first: what is left undone when time is over matters least. Raises as `choose`."""
        wanted = list(wanted)
        unknown = {problem.key: (problem, weights) for problem, weights in wanted if self._known(problem) is None}
        if unknown and self._can_measure():
            kept = f"; the choices are kept in {self.store.path}" if self.store.path else ""
            log.info("measuring the implementations of %d convolutions, for at most %.0f s%s", len(unknown), self._deadline - time.monotonic(), kept)
        self.compile_ahead(unknown.values())
        timed: dict[str, list[tuple[float, str, tuple[int, ...]]]] = {key: [] for key in unknown}
        variants = {
            key: [(implementation, implementation.variants(problem, self.device)) for implementation in self._able(problem)]
            for key, (problem, _) in unknown.items()
        }
        for rank in range(max((len(some) for pairs in variants.values() for _, some in pairs), default=0)):
            for key, (problem, weights) in unknown.items():
                candidates = [(implementation, some[rank]) for implementation, some in variants[key] if rank < len(some)]
                if candidates and self._can_measure():
                    timed[key] += self._measure(problem, weights, candidates)
        for key, results in timed.items():
            if results:
                self.store.put(key, _fastest(results))
        return [self._known(problem) or self._predicted(problem) for problem, _ in wanted]

    def _known(self, problem: ConvProblem) -> Choice | None:
        """What needs no measuring: a stored choice that can still be had, or the only one that can."""
        able = self._able(problem)
        stored = self.store.get(problem.key)
        if stored is not None and any(stored.implementation == implementation.name for implementation in able):
            return stored
        only = able[0].variants(problem, self.device)
        return Choice(able[0].name, only[0], None, "the only one that can") if len(able) == len(only) == 1 else None

    def _predicted(self, problem: ConvProblem) -> Choice:
        first = self._able(problem)[0]
        return Choice(first.name, first.variants(problem, self.device)[0], None, "predicted, not measured")

    def choose_group(self, problems: Sequence[ConvProblem], weights: Sequence[ConvWeights], alone: float | None) -> Choice | None:
        """A configuration for one launch of several convolutions, or None where they are faster one by one, in `alone` milliseconds together."""
        key = _group_key(problems)
        stored = self.store.get(key)
        if not self._measures_group(problems, alone):
            return stored if self._may_group() and stored is not None and stored.variant else None
        if self.options.grouped == "measured" and not self._can_measure():
            return None
        configs = self._group_configs(problems)
        if not self._can_measure():
            return Choice("triton_group", tuple(configs[0].encode()), None, "asked for")
        operands = [make_operands(problem, self.device) for problem in problems]
        weights = [ConvWeights(weight.step) for weight in weights]
        timed = []
        for config in configs:
            run = bind_group(problems, weights, operands, config)
            milliseconds = self._time(run, f"group with {config}")
            if milliseconds is not None:
                timed.append((milliseconds, tuple(config.encode())))
        if not timed:
            return None
        best, variant = min(timed)
        if alone is not None and best >= alone and self.options.grouped == "measured":
            self.store.put(key, Choice("triton_group", (), best, f"{best / alone:.2f}× the time of {len(problems)} launches"))
            return None
        choice = Choice("triton_group", variant, best, "" if alone is None else f"{alone / best:.2f}× as fast as {len(problems)} launches")
        self.store.put(key, choice)
        return choice

    def _may_group(self) -> bool:
        return self.options.grouped != "never" and "triton" in self.options.implementations

    def _measures_group(self, problems: Sequence[ConvProblem], alone: float | None) -> bool:
        """Whether a group is timed, or taken untimed where that was asked for."""
        if self.options.grouped == "measured" and (alone is None or self.store.get(_group_key(problems)) is not None):
            return False
        return self._may_group()

    def _group_configs(self, problems: Sequence[ConvProblem]) -> list[ConvConfig]:
        capability, multiprocessors = device_limits(self.device)
        sizes = [problem.gemm for problem in problems]
        return rank_configs(sizes, problems[0].dtype, problems[0].precision, capability, multiprocessors)[:_GROUP_CONFIGS]

    def _able(self, problem: ConvProblem) -> list[Implementation]:
        reasons = {implementation.name: implementation.why_not(problem, self.device) for implementation in self._candidates}
        able = [implementation for implementation in self._candidates if reasons[implementation.name] is None]
        if not able:
            raise BackendError(f"backend 'triton' has no implementation for {problem.key}: " + "; ".join(f"{n}: {why}" for n, why in reasons.items()))
        return able

    def _has_time(self) -> bool:
        return time.monotonic() < self._deadline

    def _can_measure(self) -> bool:
        return self.device.type == "cuda" and self._has_time()

    def _measure(
        self, problem: ConvProblem, weights: ConvWeights, candidates: Sequence[tuple[Implementation, tuple[int, ...]]]
    ) -> list[tuple[float, str, tuple[int, ...]]]:
        """Milliseconds, implementation and variant of each candidate that is right, as far as there is time."""
        # Forms that lose are dropped with this; graphs that were captured before hold on to the others.
        weights = ConvWeights(weights.step)
        operands = make_operands(problem, self.device)
        expected = reference(problem, weights, operands)
        timed = []
        for implementation, variant in candidates:
            if not self._has_time():
                break
            what = f"{implementation.label(problem, variant)} on {problem.key}"
            try:
                reason = check_candidate(implementation, problem, variant, weights, operands, expected)
            except Exception as error:
                log.info("%s does not run: %s", what, error)
                continue
            if reason:
                log.log(logging.INFO if reason == LOSES_NAN else logging.WARNING, "%s is left out: %s", what, reason)
                continue
            milliseconds = self._time(lambda i=implementation, v=variant: place_result(i, problem, v, weights, operands), what)  # type: ignore[misc]
            if milliseconds is not None:
                timed.append((milliseconds, implementation.name, variant))
        return timed

    def _time(self, run: Callable[[], object], what: str) -> float | None:
        try:
            return device_milliseconds(run, self.device)
        except torch.cuda.OutOfMemoryError:
            raise
        except Exception as error:
            log.info("%s could not be timed: %s", what, error)
            return None


def _fastest(timed: Sequence[tuple[float, str, tuple[int, ...]]]) -> Choice:
    """The choice among milliseconds, implementation and variant of each candidate."""
    ordered = sorted(timed)
    best, name, variant = ordered[0]
    others = {other: milliseconds for milliseconds, other, _ in reversed(ordered) if other != name}
    why = f"fastest of {len(ordered)}" + "".join(f"; {other} {milliseconds / best:.2f}× its time" for other, milliseconds in others.items())
    return Choice(name, variant, best, why)


def compile_candidates(
    wanted: Iterable[tuple[ConvProblem, ConvWeights]],
    candidates: Sequence[Implementation],
    device: torch.device,
    seconds: float,
    most: int | None = TIMED_CONFIGS,
) -> None:
    """Compile in parallel, for at most `seconds`, our kernels among the candidates for all these problems, the best guesses first.

    Args:
        most: as for `Implementation.variants`.
    """
    ranked: list[tuple[int, CompileJob]] = []
    for problem, weights in {problem.key: (problem, weights) for problem, weights in wanted}.values():
        operands, fresh = make_operands(problem, device), ConvWeights(weights.step)
        for implementation in candidates:
            if implementation.name.startswith("triton") and implementation.why_not(problem, device) is None:
                for rank, variant in enumerate(implementation.variants(problem, device, most)):
                    call = functools.partial(implementation.run, problem, variant, fresh, operands)
                    ranked += [(rank, job) for job in note_jobs([call])]
    ranked.sort(key=lambda item: item[0])
    compile_jobs([job for _, job in ranked], seconds)


def _group_key(problems: Sequence[ConvProblem]) -> str:
    return "group: " + " | ".join(problem.key for problem in problems)


def device_milliseconds(run: Callable[[], object], device: torch.device) -> float:
    """Median time of one run on the GPU, without the launch: replays of a CUDA graph of several runs, timed with events."""
    # The outer stream context: a capture that cannot be ended would leave its own stream the current one.
    with CAPTURING, torch.cuda.device(device), torch.cuda.stream(torch.cuda.current_stream(device)):
        side = _timing_stream(device)
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            run()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=side, capture_error_mode="thread_local"):
            for _ in range(_RUNS_IN_A_GRAPH):
                run()
        graph.replay()
        samples = []
        for _ in range(_REPLAYS):
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            graph.replay()
            end.record()
            end.synchronize()
            samples.append(start.elapsed_time(end) / _RUNS_IN_A_GRAPH)
        return statistics.median(samples)


@functools.lru_cache
def _timing_stream(device: torch.device) -> torch.cuda.Stream:
    """One for all that is timed: PyTorch has 32 streams and deals them out in turn, also to those who want different ones."""
    return torch.cuda.Stream(device)


def make_operands(problem: ConvProblem, device: torch.device, seed: int = 0) -> ConvOperands:
    """Random input, residual and destinations with the pitches of the problem."""
    generator = torch.Generator(device).manual_seed(seed)

    def picture(channels: int, size: tuple[int, int], pitch: int, *, random: bool) -> Tensor:
        shape = (problem.batch, *size, pitch)
        memory = torch.randn(shape, generator=generator, device=device) if random else torch.zeros(shape, device=device)
        return memory.to(problem.dtype).permute(0, 3, 1, 2)[:, :channels]

    x = picture(problem.in_channels, (problem.height, problem.width), problem.in_pitch, random=True)
    residual = picture(problem.out_channels, problem.out_size, problem.out_channels, random=True) if problem.residual else None
    destinations = tuple(
        picture(channels, problem.out_size, pitch, random=False) for channels, pitch in zip(problem.pieces, problem.out_pitches, strict=True)
    )
    return ConvOperands(x if problem.input_channels_last else x.contiguous(), residual, destinations)


def reference(problem: ConvProblem, weights: ConvWeights, operands: ConvOperands) -> Tensor:
    """The answer by PyTorch's own operations in float32: [N, K, P, Q]."""
    bias = None if weights.bias is None else weights.bias.float()
    with exact_float32():
        y = F.conv2d(operands.x.float(), weights.step.weight.float(), bias, problem.stride, problem.padding, problem.dilation, problem.groups)
    if operands.residual is not None:
        y += operands.residual.float()
    return F.relu(y) if problem.relu else y


def check_candidate(
    implementation: Implementation,
    problem: ConvProblem,
    variant: Sequence[int],
    weights: ConvWeights,
    operands: ConvOperands,
    expected: Tensor,
) -> str | None:
    """Why a candidate does not compute the convolution, or None: its error on random numbers, and whether NaN comes out where it must and nowhere
    else."""
    # What memory held before must not show: 0 times an old NaN is NaN, and so is what was not written. The first free block that fits is reused.
    for destination in operands.destinations:
        destination.fill_(torch.nan)
    torch.full_like(expected, torch.nan, dtype=problem.dtype, memory_format=torch.channels_last)
    place_result(implementation, problem, variant, weights, operands, everything=True)
    y = torch.cat(operands.destinations, dim=1).float()
    error = float((y - expected).norm() / expected.norm().clamp_min(1e-30))
    bound = _LARGEST_ERROR_TF32 if problem.tf32 else _LARGEST_ERROR[problem.dtype]
    if not error <= bound:
        return f"relative error {error:.2g}, more than {bound:.2g}"
    first = operands.x[:1, :, :1, :1].clone()
    operands.x[:1, :, :1, :1] = torch.nan
    place_result(implementation, problem, variant, weights, operands, everything=True)
    operands.x[:1, :, :1, :1] = first
    touched = torch.zeros(problem.batch, 1, problem.height, problem.width, device=operands.x.device)
    touched[:1, :, :1, :1] = 1
    window = torch.ones(1, 1, *problem.kernel, device=operands.x.device)
    reached = F.conv2d(touched, window, None, problem.stride, problem.padding, problem.dilation) > 0
    kept = torch.cat(operands.destinations, dim=1).isnan()
    return None if bool(kept[reached.expand_as(kept)].all()) else LOSES_NAN


def place_result(
    implementation: Implementation,
    problem: ConvProblem,
    variant: Sequence[int],
    weights: ConvWeights,
    operands: ConvOperands,
    *,
    everything: bool = False,
) -> None:
    """Run a candidate and copy what the network would copy, so that it is part of the price; `everything` copies all of it to the destinations."""
    y = implementation.run(problem, variant, weights, operands)
    if y is None:
        return
    start = 0
    for index, destination in enumerate(operands.destinations):
        part = y[:, start : start + destination.shape[1]]
        start += destination.shape[1]
        if problem.bare:
            concat_relu([part], [weights.bias], problem.relu, out=destination)
        elif everything or (problem.concats and problem.concats[index]):
            concat_relu([part], None, False, out=destination)


def bind_group(
    problems: Sequence[ConvProblem], weights: Sequence[ConvWeights], operands: Sequence[ConvOperands], config: ConvConfig
) -> Callable[[], object]:
    """One launch of all of them; a convolution of several pieces is one member for each piece."""
    members = group_members(problems, weights, operands)
    return lambda: conv2d_group(members, config, problems[0].precision)


def group_members(problems: Sequence[ConvProblem], weights: Sequence[ConvWeights], operands: Sequence[ConvOperands]) -> list[GroupedConv]:
    """The members of a grouped launch, in order."""
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
