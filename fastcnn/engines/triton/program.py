"""A network at one batch size: which launch computes what, in which order, and where every buffer lies in the arena.

The dependency level of a step is one more than the highest among the steps it reads from. Steps of one level are independent of each other: they may
share a launch (`conv2d_group`) or run at the same time, and memory is given out by levels, so that nothing is overwritten while another step of the
level may still read it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, fx

from fastcnn.engines.triton.arena import ArenaPlan, Life, plan_arena
from fastcnn.engines.triton.choices import Choice
from fastcnn.engines.triton.convolutions import BY_NAME, ConvOperands, ConvProblem, ConvWeights, LibraryConvolution, TritonStem, TritonTma
from fastcnn.engines.triton.placement import Buffer, Place, Placement, place_pictures
from fastcnn.engines.triton.steps import (
    AffineStep,
    AtenStep,
    ConcatStep,
    ConvolutionStep,
    GlobalPoolStep,
    Network,
    PoolStep,
    Step,
    is_picture,
)
from fastcnn.engines.triton.tuning import Chooser, group_members
from fastcnn.kernels.affine import scale_bias_relu
from fastcnn.kernels.concat import MAX_BRANCHES, concat_relu
from fastcnn.kernels.convolution_configs import ConvConfig
from fastcnn.kernels.convolution_group import MAX_CONVOLUTIONS, conv2d_group
from fastcnn.kernels.global_pooling import global_avg_pool2d
from fastcnn.kernels.pooling import PoolWindow, avg_pool2d, max_pool2d

_FOREVER = 1 << 30


@dataclass
class Values:
    """The values of one run: those in the arena lie where they always do, the others come and go."""

    arena: dict[fx.Node, Tensor]
    others: dict[fx.Node, Tensor] = field(default_factory=dict)

    def __getitem__(self, node: fx.Node) -> Tensor:
        return self.arena[node] if node in self.arena else self.others[node]


@dataclass(eq=False)
class Launch:
    """What runs as one call: the steps it computes, and how the plan tells of it.

    `problems` are the convolutions in it, `run` computes them. `kernel` is empty for steps that need no launch.
    """

    steps: tuple[Step, ...]
    level: int
    kernel: str
    why: str
    run: Callable[[Values], None]
    problems: tuple[ConvProblem, ...] = ()


class Program:
    """Made once for each batch size; holds no memory but packed weights."""

    def __init__(self, network: Network, batch: int, dtype: torch.dtype, chooser: Chooser, weights: dict[ConvolutionStep, ConvWeights]) -> None:
        self.network, self.batch, self.dtype = network, batch, dtype
        self._weights, self._options, self._chooser = weights, chooser.options, chooser
        self._writers = {node: step for step in network.steps for node in step.writes}
        self.input_as_it_is = self._input_is_for_stems()

        ideal = self._place(())
        self.problems = {step: self._problem(step, ideal) for step in network.convolutions}
        choices = chooser.choose_all((problem, weights[step]) for step, problem in self.problems.items())
        self.choices = dict(zip(self.problems, choices, strict=True))
        bringing_memory = {step for step, choice in self.choices.items() if not BY_NAME[choice.implementation].in_place}
        self.levels = self._find_levels(self._place(bringing_memory))
        self.groups = self._find_groups()
        grouped = {step for steps, _ in self.groups for step in steps}
        self.placement = self._place(bringing_memory - grouped)
        self._choose_again_where_unaligned()
        self.arena: ArenaPlan[Buffer] = plan_arena(self._lives())
        self.stages = self._make_stages()
        self._frees = self._make_frees()

    @property
    def launches(self) -> list[Launch]:
        return [launch for stage in self.stages for launch in stage]

    def bind(self, memory: Tensor) -> Values:
        """Views of every buffer in the arena. memory: at least `arena.size` bytes, uint8, aligned as `arena.ALIGNMENT` says."""
        bases: dict[Buffer, Tensor] = {}
        for buffer, offset in self.arena.offsets.items():
            size = buffer.elements(self.batch) * self.dtype.itemsize
            flat = memory[offset : offset + size].view(self.dtype)
            bases[buffer] = flat.view(self.batch, buffer.height, buffer.width, buffer.channels).permute(0, 3, 1, 2)
        places = self.placement.places
        return Values({node: _part(bases[place.buffer], place) for node, place in places.items() if place.buffer in bases})

    def run(self, values: Values, x: Tensor, run_stage: Callable[[list[Callable[[], None]]], None]) -> list[Tensor]:
        """All launches in order; `run_stage` runs the calls of one level. The results may lie in the arena.

        x: [batch, …] contiguous if `input_as_it_is`, else channels_last where it is a picture.
        """
        values.others[self.network.captured.input_node] = x
        for level, stage in enumerate(self.stages):
            run_stage([lambda launch=launch: launch.run(values) for launch in stage])  # type: ignore[misc]
            for node in self._frees[level]:
                values.others.pop(node, None)
        outputs = [self._value(values, node) for node in self.network.captured.output_nodes]
        values.others.clear()
        return outputs

    # -- planning ------------------------------------------------------------------------------------------------------

    def _place(self, external: Iterable[Step]) -> Placement:
        return place_pictures(self.network, external=set(external), in_place=self._options.concat_in_place)

    def _input_is_for_stems(self) -> bool:
        """Whether only convolutions of few channels read the network's input: they take it in any memory format."""
        node = self.network.captured.input_node
        readers = [step for step in self.network.steps if node in step.reads]
        if TritonStem.name not in self._options.implementations or not is_picture(node) or node in self.network.captured.output_nodes:
            return False
        return all(
            isinstance(step, ConvolutionStep)
            and step.residual is None
            and node not in self.network.views
            and TritonStem().why_not(self._bare_problem(step), self._chooser.device) is None
            for step in readers
        ) and not any(base is node for base, _ in self.network.views.values())

    def _bare_problem(self, step: ConvolutionStep) -> ConvProblem:
        """The problem of a step without what its surroundings make of it."""
        convolution = step.convolution
        _, in_channels, height, width = convolution.input.meta["shape"]
        pieces = tuple(piece.stop - piece.start for piece in step.pieces)
        return ConvProblem(
            dtype=self.dtype,
            batch=self.batch,
            in_channels=in_channels,
            height=height,
            width=width,
            out_channels=step.weight.shape[0],
            kernel=convolution.kernel,
            stride=convolution.stride,
            padding=convolution.padding,
            dilation=convolution.dilation,
            groups=convolution.groups,
            bias=step.bias is not None,
            relu=step.relu,
            residual=step.residual is not None,
            in_pitch=in_channels,
            pieces=pieces,
            out_pitches=pieces,
            tf32=self.dtype == torch.float32 and self.network.captured.allow_tf32,
        )

    def _problem(self, step: ConvolutionStep, ideal: Placement) -> ConvProblem:
        bare = self._bare_problem(step)
        source = ideal.places[step.convolution.input].buffer
        readers = [[user for user in piece.node.users if isinstance(self._writers.get(user), ConcatStep)] for piece in step.pieces]
        in_place = self._options.concat_in_place
        return replace(
            bare,
            in_pitch=bare.in_channels if source.external else source.channels,
            out_pitches=tuple(ideal.places[piece.node].buffer.channels for piece in step.pieces),
            in_aligned=self._is_aligned(ideal.places[step.convolution.input]),
            input_channels_last=not (self.input_as_it_is and step.convolution.input is self.network.captured.input_node),
            concats=tuple(map(len, readers)) if in_place else (),
            bare=in_place and len(step.pieces) == 1 and step.residual is None and len(readers[0]) == len(step.pieces[0].node.users) == 1,
        )

    def _is_aligned(self, place: Place) -> bool:
        """Whether every pixel starts at a multiple of 16 bytes."""
        return all(count * self.dtype.itemsize % 16 == 0 for count in (place.first, place.buffer.channels))

    def _choose_again_where_unaligned(self) -> None:
        """A library's result may lie less well than its place in the arena would have: what reads it there must be able to."""
        for step, choice in self.choices.items():
            if choice.implementation == TritonTma.name and not self._is_aligned(self.placement.places[step.convolution.input]):
                self.problems[step] = replace(self.problems[step], in_aligned=False)
                self.choices[step] = self._chooser.choose(self.problems[step], self._weights[step])

    def _find_levels(self, placement: Placement) -> dict[Step, int]:
        levels: dict[Step, int] = {}
        for step in self.network.steps:
            before = max((levels[writer] for writer in self._sources(step)), default=-1)
            levels[step] = before if isinstance(step, ConcatStep) and not placement.late[step] else before + 1
        return levels

    def _sources(self, step: Step) -> list[Step]:
        """The steps whose results `step` reads."""
        return [self._writers[base] for base in map(self._base, step.reads) if base in self._writers]

    def _base(self, node: fx.Node) -> fx.Node:
        while node in self.network.views:
            node = self.network.views[node][0]
        return node

    def _find_groups(self) -> list[tuple[tuple[ConvolutionStep, ...], Choice]]:
        by_level = defaultdict(list)
        for step in self.network.convolutions:
            problem = self.problems[step]
            if problem.groups == 1 and problem.input_channels_last:
                by_level[self.levels[step]].append(step)
        chunks = [chunk for steps in by_level.values() for chunk in _chunks(steps) if len(chunk) > 1]
        wanted = []
        for chunk in chunks:
            times = [self.choices[step].milliseconds for step in chunk]
            alone = None if None in times else sum(time for time in times if time is not None)
            wanted.append(([self.problems[step] for step in chunk], [self._weights[step] for step in chunk], alone))
        self._chooser.compile_groups_ahead(wanted)
        choices = [self._chooser.choose_group(*arguments) for arguments in wanted]
        return [(tuple(chunk), choice) for chunk, choice in zip(chunks, choices, strict=True) if choice is not None]

    def _lives(self) -> dict[Buffer, Life]:
        first: dict[Buffer, int] = {}
        last: dict[Buffer, int] = {}

        def touch(place: Place, level: int) -> None:
            if not place.buffer.external:
                first[place.buffer] = min(level, first.get(place.buffer, level))
                last[place.buffer] = max(level, last.get(place.buffer, level))

        behind = self._memory_behind()
        for step in self.network.steps:
            level = self.levels[step]
            if isinstance(step, ConcatStep):
                for index in self.placement.late[step]:
                    touch(self.placement.member_place(step, index), level)
                if not self.placement.late[step]:
                    continue
            for node in step.writes:
                for place in behind.get(node, ()):
                    touch(place, level)
            for node in step.reads:
                for place in behind.get(node, ()):
                    touch(place, level)
        for node in self.network.captured.output_nodes:
            for place in behind.get(node, ()):
                touch(place, _FOREVER)
        item = self.dtype.itemsize
        return {buffer: Life(buffer.elements(self.batch) * item, first[buffer], last[buffer]) for buffer in first}

    def _memory_behind(self) -> dict[fx.Node, tuple[Place, ...]]:
        """For each value the places whose memory it may show: its own, and for a view that PyTorch made, those of what it views."""
        behind: dict[fx.Node, tuple[Place, ...]] = {node: (place,) for node, place in self.placement.places.items()}
        for step in self.network.steps:
            if isinstance(step, AtenStep) and _may_alias(step.node):
                viewed = [place for node in step.reads for place in behind.get(node, ())]
                behind[step.node] = (*behind.get(step.node, ()), *viewed)
        return behind

    def _make_frees(self) -> list[list[fx.Node]]:
        """For each level the values outside the arena that are read there for the last time."""
        kept = {self._base(node) for node in self.network.captured.output_nodes}
        last: dict[fx.Node, int] = {}
        for step in self.network.steps:
            for node in (*step.writes, *step.reads):
                last[node] = max(last.get(node, 0), self.levels[step])
                base = self._base(node)
                last[base] = max(last.get(base, 0), self.levels[step])
        # What is copied into a concat is read when the concat is, and that may be a level with no launch of its own.
        frees: list[list[fx.Node]] = [[] for _ in range(len(self.stages))]
        for node, level in last.items():
            if node not in kept and node not in self.network.captured.output_nodes and level < len(frees):
                frees[level].append(node)
        return frees

    # -- launches ------------------------------------------------------------------------------------------------------

    def _make_stages(self) -> list[list[Launch]]:
        stages: list[list[Launch]] = [[] for _ in range(max(self.levels.values(), default=-1) + 1)]
        grouped: dict[Step, tuple[tuple[ConvolutionStep, ...], Choice]] = {step: group for group in self.groups for step in group[0]}
        for step in self.network.steps:
            if step not in grouped:
                stages[self.levels[step]].append(self._make_launch(step))
            elif step is grouped[step][0][0]:
                stages[self.levels[step]].append(self._group_launch(*grouped[step]))
        return stages

    def _make_launch(self, step: Step) -> Launch:
        if isinstance(step, ConvolutionStep):
            return self._convolution_launch(step)
        if isinstance(step, ConcatStep):
            return self._concat_launch(step)
        run, kernel = self._simple_run(step)
        return Launch((step,), self.levels[step], kernel, "", run)

    def _simple_run(self, step: Step) -> tuple[Callable[[Values], None], str]:
        (result,) = step.writes
        if isinstance(step, PoolStep):
            pool = max_pool2d if step.reduction == "max" else avg_pool2d
            window = PoolWindow(**step.window)

            def run_pool(values: Values) -> None:
                pool(self._value(values, step.reads[0]), window, step.bias, step.relu, out=values[result])

            return run_pool, f"triton {step.reduction}_pool2d"
        if isinstance(step, GlobalPoolStep):

            def run_global(values: Values) -> None:
                global_avg_pool2d(self._value(values, step.reads[0]), out=values[result].flatten(1))

            return run_global, "triton global_avg_pool2d"
        if isinstance(step, AffineStep):

            def run_affine(values: Values) -> None:
                scale_bias_relu(self._value(values, step.reads[0]), step.scale, step.shift, step.relu, out=values[result])

            return run_affine, "triton scale_bias_relu"
        assert isinstance(step, AtenStep), step

        def run_aten(values: Values) -> None:
            node, captured = step.node, self.network.captured

            def value(argument: fx.Node) -> Any:
                return captured.raw_constant(argument) if captured.is_constant(argument) else self._value(values, argument)

            args, kwargs = fx.node.map_arg((node.args, node.kwargs), value)
            y = node.target(*args, **kwargs)  # type: ignore[operator]
            if is_picture(node):
                y = y.contiguous(memory_format=torch.channels_last)
            values.others[node] = y

        target = step.node.target
        name = target._schema.name if isinstance(target, torch._ops.OpOverload) else getattr(target, "__name__", str(target))
        return run_aten, name

    def _convolution_launch(self, step: ConvolutionStep) -> Launch:
        choice, problem, weights = self.choices[step], self.problems[step], self._weights[step]
        implementation = BY_NAME[choice.implementation]

        def run(values: Values) -> None:
            destinations = tuple(values[piece.node] for piece in step.pieces) if implementation.in_place else ()
            y = implementation.run(problem, choice.variant, weights, self._operands(values, step, destinations))
            if y is not None:
                for piece in step.pieces:
                    values.others[piece.node] = y[:, piece.start : piece.stop]

        return Launch((step,), self.levels[step], implementation.label(problem, choice.variant), choice.why, run, (problem,))

    def _group_launch(self, steps: tuple[ConvolutionStep, ...], choice: Choice) -> Launch:
        config = ConvConfig.decode(list(choice.variant))
        problems = tuple(self.problems[step] for step in steps)
        weights = [self._weights[step] for step in steps]

        def run(values: Values) -> None:
            operands = [self._operands(values, step, tuple(values[piece.node] for piece in step.pieces)) for step in steps]
            conv2d_group(group_members(problems, weights, operands), config, problems[0].precision)

        members = sum(len(step.pieces) for step in steps)
        kernel = f"triton group of {members}, {config.block_m}×{config.block_n}×{config.block_k}"
        return Launch(steps, self.levels[steps[0]], kernel, choice.why, run, problems)

    def _operands(self, values: Values, step: ConvolutionStep, destinations: tuple[Tensor, ...]) -> ConvOperands:
        residual = None if step.residual is None else self._value(values, step.residual)
        return ConvOperands(self._value(values, step.convolution.input), residual, destinations)

    def _concat_launch(self, step: ConcatStep) -> Launch:
        late = self.placement.late[step]
        level = self.levels[step]
        if not late:
            return Launch((step,), level, "", "every member is written in place", lambda values: None)
        runs = [self._copy_members(step, run) for run in _runs(late, lambda index: self._finishes(step.reads[index]))]

        def run(values: Values) -> None:
            for copy in runs:
                copy(values)

        return Launch((step,), level, "triton concat_relu", f"{len(late)} of {len(step.reads)} members are copied", run)

    def _finishes(self, member: fx.Node) -> bool:
        """Whether the copy of this member applies the ReLU of the convolution that computed it."""
        step = self._bare(member)
        return step is not None and step.relu

    def _bare(self, member: fx.Node) -> ConvolutionStep | None:
        """The convolution behind a member that is still without bias and ReLU."""
        step = self._writers.get(member)
        if not isinstance(step, ConvolutionStep) or not self.placement.places[member].buffer.external:
            return None
        return step if self.choices[step].variant == (LibraryConvolution.BARE,) else None

    def _copy_members(self, step: ConcatStep, indices: list[int]) -> Callable[[Values], None]:
        places = [self.placement.member_place(step, index) for index in indices]
        whole = Place(places[0].buffer, places[0].first, sum(place.channels for place in places))
        members = [step.reads[index] for index in indices]
        biases = [None if (conv := self._bare(member)) is None else conv.bias for member in members]
        relu = self._finishes(members[0])
        mine = self.placement.places[step.node]

        def copy(values: Values) -> None:
            out = values[step.node][:, whole.first - mine.first : whole.first - mine.first + whole.channels]
            concat_relu([self._value(values, member) for member in members], biases, relu, out=out)

        return copy

    def _value(self, values: Values, node: fx.Node) -> Tensor:
        if node in values.arena or node in values.others:
            return values[node]
        captured = self.network.captured
        if captured.is_constant(node):
            return captured.raw_constant(node)
        base, start = self.network.views[node]
        return self._value(values, base)[:, start : start + node.meta["shape"][1]]


def _part(base: Tensor, place: Place) -> Tensor:
    return base[:, place.first : place.first + place.channels]


def _chunks(steps: list[ConvolutionStep]) -> list[list[ConvolutionStep]]:
    """Steps that fit into one grouped launch each, in order."""
    chunks: list[list[ConvolutionStep]] = []
    room = 0
    for step in steps:
        if len(step.pieces) > room:
            chunks.append([])
            room = MAX_CONVOLUTIONS
        chunks[-1].append(step)
        room -= len(step.pieces)
    return chunks


def _runs(indices: tuple[int, ...], kind: Callable[[int], bool]) -> list[list[int]]:
    """Neighbouring indices of one kind, as many as one launch takes."""
    runs: list[list[int]] = []
    for index in indices:
        if runs and runs[-1][-1] == index - 1 and len(runs[-1]) < MAX_BRANCHES and kind(runs[-1][-1]) == kind(index):
            runs[-1].append(index)
        else:
            runs.append([index])
    return runs


def _may_alias(node: fx.Node) -> bool:
    """Whether the result of an operation may be a view of its argument, or the argument itself."""
    target = node.target
    if not isinstance(target, torch._ops.OpOverload):
        return True
    schema = target._schema
    fresh = all(result.alias_info is None and str(result.type) == "Tensor" for result in schema.returns)
    return not fresh or "dropout" in schema.name
