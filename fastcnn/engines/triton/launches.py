"""The launches of a schedule: for each step, or group of steps, a call that reads and writes the values of a run, and
how the plan tells of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx

from fastcnn.engines.triton.implementations.group import group_label, run_group
from fastcnn.engines.triton.implementations.table import BY_NAME
from fastcnn.engines.triton.problem import ConvOperands, ConvProblem, ConvWeights
from fastcnn.engines.triton.schedule import Schedule, ScheduledGroup
from fastcnn.engines.triton.steps import AffineStep, AtenStep, ConcatStep, ConvolutionStep, GlobalPoolStep, Network, PoolStep, Step, is_activation
from fastcnn.kernels.affine import scale_bias_relu
from fastcnn.kernels.concat import MAX_BRANCHES, concat_relu
from fastcnn.kernels.global_pooling import global_avg_pool2d
from fastcnn.kernels.pooling import PoolWindow, avg_pool2d, max_pool2d

Weights = Mapping[ConvolutionStep, ConvWeights]


@dataclass
class Values:
    """The values of one run: those in the arena lie where they always do, the others come and go. `values[node]` finds
    constants and views too."""

    network: Network
    arena: dict[fx.Node, Tensor]
    others: dict[fx.Node, Tensor] = field(default_factory=dict)

    def __getitem__(self, node: fx.Node) -> Tensor:
        if node in self.arena:
            return self.arena[node]
        if node in self.others:
            return self.others[node]
        captured = self.network.captured
        if captured.is_constant(node):
            return captured.raw_constant(node)
        base, start = self.network.views[node]
        return self[base][:, start : start + node.meta["shape"][1]]


Run = Callable[[Values], None]


@dataclass(eq=False)
class Launch:
    """What runs as one call: the steps it computes, and how the plan tells of it.

    `problems` are the convolutions in it, `run` computes them. `kernel` is empty for steps that need no launch.
    """

    steps: tuple[Step, ...]
    level: int
    kernel: str
    why: str
    run: Run
    problems: tuple[ConvProblem, ...] = ()


def make_launches(schedule: Schedule, weights: Weights) -> list[list[Launch]]:
    """The launches of each dependency level, which are independent of each other."""
    stages: list[list[Launch]] = [[] for _ in range(max(schedule.levels.values(), default=-1) + 1)]
    group_of = {step: group for group in schedule.groups for step in group.steps}
    for step in schedule.network.steps:
        group = group_of.get(step) if isinstance(step, ConvolutionStep) else None
        if group is None:
            launch = _make_launch(schedule, step, weights)
        elif step is group.steps[0]:
            launch = _group_launch(schedule, group, weights)
        else:
            continue
        stages[launch.level].append(launch)
    return stages


def _make_launch(schedule: Schedule, step: Step, weights: Weights) -> Launch:
    if isinstance(step, ConvolutionStep):
        return _convolution_launch(schedule, step, weights[step])
    if isinstance(step, ConcatStep):
        return _concat_launch(schedule, step)
    if isinstance(step, PoolStep):
        kernel, run = f"triton {step.reduction}_pool2d", _pool(step)
    elif isinstance(step, GlobalPoolStep):
        kernel, run = "triton global_avg_pool2d", _global_pool(step)
    elif isinstance(step, AffineStep):
        kernel, run = "triton scale_bias_relu", _affine(step)
    else:
        assert isinstance(step, AtenStep), step
        if _is_view(step.node):
            return Launch((step,), schedule.levels[step], "", f"{_aten_name(step.node.target)} is a view", _aten(step))
        kernel, run = _aten_name(step.node.target), _aten(step)
    return Launch((step,), schedule.levels[step], kernel, "", run)


# -- convolutions ------------------------------------------------------------------------------------------------------


def _convolution_launch(schedule: Schedule, step: ConvolutionStep, weights: ConvWeights) -> Launch:
    choice, problem = schedule.choices[step], schedule.problems[step]
    implementation = BY_NAME[choice.implementation]

    def run(values: Values) -> None:
        y = implementation.run(problem, choice.variant, weights, _operands(values, step, in_place=implementation.in_place))
        if y is not None:
            for piece in step.pieces:
                values.others[piece.node] = y[:, piece.start : piece.stop]

    label = implementation.label(schedule.as_it_lies(step), choice.variant)
    return Launch((step,), schedule.levels[step], label, choice.why, run, (problem,))


def _group_launch(schedule: Schedule, group: ScheduledGroup, weights: Weights) -> Launch:
    config = group.choice.config
    assert config is not None
    problems = tuple(schedule.problems[step] for step in group.steps)
    packed = [weights[step] for step in group.steps]

    def run(values: Values) -> None:
        run_group(problems, packed, [_operands(values, step) for step in group.steps], config)

    return Launch(group.steps, schedule.levels[group.steps[0]], group_label(problems, config), group.choice.why, run, problems)


def _operands(values: Values, step: ConvolutionStep, *, in_place: bool = True) -> ConvOperands:
    destinations = tuple(values[piece.node] for piece in step.pieces) if in_place else ()
    return ConvOperands(values[step.convolution.input], None if step.residual is None else values[step.residual], destinations)


# -- concats -----------------------------------------------------------------------------------------------------------


def _concat_launch(schedule: Schedule, step: ConcatStep) -> Launch:
    late, level = schedule.placement.late[step], schedule.levels[step]
    if not late:
        return Launch((step,), level, "", "every member is written in place", lambda values: None)
    copies = [_copy_members(schedule, step, indices) for indices in _runs(late, lambda index: _finishes(schedule, step.reads[index]))]

    def run(values: Values) -> None:
        for copy in copies:
            copy(values)

    return Launch((step,), level, "triton concat_relu", f"{len(late)} of {len(step.reads)} members are copied", run)


def _copy_members(schedule: Schedule, step: ConcatStep, indices: list[int]) -> Run:
    """One launch that copies neighbouring members and finishes them."""
    places = [schedule.placement.member_place(step, index) for index in indices]
    members = [step.reads[index] for index in indices]
    biases = [None if (convolution := _unfinished(schedule, member)) is None else convolution.bias for member in members]
    relu = _finishes(schedule, members[0])
    start = places[0].first - schedule.placement.places[step.node].first
    stop = start + sum(place.channels for place in places)

    def copy(values: Values) -> None:
        concat_relu([values[member] for member in members], biases, relu, out=values[step.node][:, start:stop])

    return copy


def _unfinished(schedule: Schedule, member: fx.Node) -> ConvolutionStep | None:
    """The convolution behind a member that is still without bias and ReLU."""
    step = schedule.network.writers.get(member)
    return step if isinstance(step, ConvolutionStep) and schedule.leaves_epilogue(step) else None


def _finishes(schedule: Schedule, member: fx.Node) -> bool:
    """Whether the copy of this member applies the ReLU of the convolution that computed it."""
    step = _unfinished(schedule, member)
    return step is not None and step.relu


def _runs(indices: tuple[int, ...], kind: Callable[[int], bool]) -> list[list[int]]:
    """Neighbouring indices of one kind, as many as one launch takes."""
    runs: list[list[int]] = []
    for index in indices:
        if runs and runs[-1][-1] == index - 1 and len(runs[-1]) < MAX_BRANCHES and kind(runs[-1][-1]) == kind(index):
            runs[-1].append(index)
        else:
            runs.append([index])
    return runs


# -- the other steps ---------------------------------------------------------------------------------------------------


def _pool(step: PoolStep) -> Run:
    pool = max_pool2d if step.reduction == "max" else avg_pool2d
    window = PoolWindow(**step.window)
    (source,), (result,) = step.reads, step.writes

    def run(values: Values) -> None:
        pool(values[source], window, step.bias, step.relu, out=values[result])

    return run


def _global_pool(step: GlobalPoolStep) -> Run:
    (source,), (result,) = step.reads, step.writes

    def run(values: Values) -> None:
        global_avg_pool2d(values[source], out=values[result].flatten(1))

    return run


def _affine(step: AffineStep) -> Run:
    (source,), (result,) = step.reads, step.writes

    def run(values: Values) -> None:
        scale_bias_relu(values[source], step.scale, step.shift, step.relu, out=values[result])

    return run


def _aten(step: AtenStep) -> Run:
    node = step.node

    def run(values: Values) -> None:
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), values.__getitem__)
        y = node.target(*args, **kwargs)  # type: ignore[operator]
        values.others[node] = y.contiguous(memory_format=torch.channels_last) if is_activation(node) else y

    return run


def _is_view(node: fx.Node) -> bool:
    """Whether an operation moves nothing: a view of what has no memory format, having one pixel at most."""
    target = node.target
    one_pixel = all(math.prod(source.meta["shape"][2:]) == 1 for source in node.all_input_nodes)
    return isinstance(target, torch._ops.OpOverload) and target.is_view and one_pixel and not is_activation(node)


def _aten_name(target: Any) -> str:
    return target._schema.name if isinstance(target, torch._ops.OpOverload) else getattr(target, "__name__", str(target))
