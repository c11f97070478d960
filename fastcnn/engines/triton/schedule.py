"""What a network does at one batch size, settled before anything runs: `make_schedule` gives a `Schedule`, which
nothing changes afterwards.

The dependency level of a step is one more than the highest among the steps it reads from. Steps of one level are
independent of each other: they may share a launch (`conv2d_group`) or run at the same time, and memory is given out by
levels, so that nothing is overwritten while another step of the level may still read it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace

import torch

from fastcnn.engines.triton.arena import ArenaPlan, plan_arena
from fastcnn.engines.triton.choices import Choice
from fastcnn.engines.triton.implementations.group import ConvGroup, GroupChoice, can_group
from fastcnn.engines.triton.implementations.ours import TritonStem
from fastcnn.engines.triton.implementations.table import BY_NAME
from fastcnn.engines.triton.lifetimes import buffer_lives
from fastcnn.engines.triton.options import TritonOptions
from fastcnn.engines.triton.placement import Buffer, Place, Placement, place_activations
from fastcnn.engines.triton.problem import ConvProblem
from fastcnn.engines.triton.steps import ConcatStep, ConvolutionStep, Network, Step, is_activation
from fastcnn.engines.triton.tuning import Chooser
from fastcnn.kernels.convolution_group import MAX_CONVOLUTIONS

Choices = dict[ConvolutionStep, Choice]
Problems = dict[ConvolutionStep, ConvProblem]


@dataclass(frozen=True)
class ScheduledGroup:
    """Convolutions of one level that are computed by one launch."""

    steps: tuple[ConvolutionStep, ...]
    choice: GroupChoice


@dataclass(frozen=True)
class Schedule:
    """A network at one batch size.

    Attributes:
        input_as_it_is: the network's input is read in any memory format; else it must be channels_last where it is an
            activation.
        problems, choices: of every convolution, those in groups too.
        levels: of every step; a concat whose members are all written in place has that of the last of them, and no
            launch.
        placement: where every activation lies.
        arena: offsets of the buffers that are not external.
    """

    network: Network
    batch: int
    dtype: torch.dtype
    input_as_it_is: bool
    problems: Mapping[ConvolutionStep, ConvProblem]
    choices: Mapping[ConvolutionStep, Choice]
    groups: tuple[ScheduledGroup, ...]
    levels: Mapping[Step, int]
    placement: Placement
    arena: ArenaPlan[Buffer]

    def as_it_lies(self, step: ConvolutionStep) -> ConvProblem:
        """The problem with the pitch that the input has in this placement; it was chosen for before all placements were
        known."""
        return replace(self.problems[step], in_pitch=self.placement.places[step.convolution.input].buffer.channels)

    def leaves_epilogue(self, step: Step | None) -> bool:
        """Whether a convolution leaves bias and ReLU to the copy of its result into a concat. One that a group computes
        has a place of ours and does not, whatever was chosen for it alone."""
        if not isinstance(step, ConvolutionStep) or not self.placement.places[step.pieces[0].node].buffer.external:
            return False
        choice = self.choices[step]
        return BY_NAME[choice.implementation].leaves_epilogue(choice.variant)


def make_schedule(network: Network, batch: int, dtype: torch.dtype, tf32: bool, chooser: Chooser) -> Schedule:
    """Choose an implementation for every convolution and lay out memory for what was chosen.

    Args:
        tf32: float32 products may round their operands to 10 bits.

    Raises:
        BackendError: a convolution that none of the implementations in the options can compute.
    """
    options = chooser.options
    input_as_it_is, problems = convolution_problems(network, batch, dtype, tf32, options, chooser.device)
    choices = _choose(problems, chooser)
    while True:
        bringing_memory = {step for step, choice in choices.items() if not BY_NAME[choice.implementation].in_place}
        levels = find_levels(network, _place(network, bringing_memory, options))
        groups = _find_groups(network, levels, problems, choices, chooser)
        grouped = {step for group in groups for step in group.steps}
        placement = _place(network, bringing_memory - grouped, options)
        unreadable = _unreadable(problems, choices, placement, chooser.device, grouped)
        if not unreadable:
            break
        # What is chosen instead may bring its memory and be read by others that cannot: everything is laid out anew.
        # It ends, for no problem is found unaligned twice.
        problems |= unreadable
        choices |= _choose(unreadable, chooser)
    arena = plan_arena(buffer_lives(network, placement, levels, batch, dtype.itemsize))
    return Schedule(network, batch, dtype, input_as_it_is, problems, choices, groups, levels, placement, arena)


# -- problems ----------------------------------------------------------------------------------------------------------


def convolution_problems(
    network: Network, batch: int, dtype: torch.dtype, tf32: bool, options: TritonOptions, device: torch.device
) -> tuple[bool, Problems]:
    """Whether the network's input is read as it comes, and what each convolution has to do where every result lies in
    its place in the arena."""
    alone = {step: _alone(step, batch, dtype, tf32) for step in network.convolutions}
    input_as_it_is = TritonStem.name in options.implementations and _input_is_for_stems(network, alone, device)
    ideal = _place(network, (), options)
    problems = {}
    for step, problem in alone.items():
        as_it_comes = input_as_it_is and step.convolution.input is network.captured.input_node
        problems[step] = replace(_among_others(network, step, problem, ideal, options), input_channels_last=not as_it_comes)
    return input_as_it_is, problems


def _alone(step: ConvolutionStep, batch: int, dtype: torch.dtype, tf32: bool) -> ConvProblem:
    """The problem of a step without what its surroundings make of it."""
    convolution = step.convolution
    _, in_channels, height, width = convolution.input.meta["shape"]
    pieces = tuple(piece.stop - piece.start for piece in step.pieces)
    return ConvProblem(
        dtype=dtype,
        batch=batch,
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
        tf32=dtype == torch.float32 and tf32,
    )


def _input_is_for_stems(network: Network, alone: Problems, device: torch.device) -> bool:
    """Whether only convolutions of few channels read the network's input: they take it in any memory format."""
    node = network.captured.input_node
    is_viewed = node in network.views or any(base is node for base, _ in network.views.values())
    if not is_activation(node) or node in network.captured.output_nodes or is_viewed:
        return False
    return all(
        isinstance(step, ConvolutionStep) and step.residual is None and TritonStem().why_not(alone[step], device) is None
        for step in network.steps
        if node in step.reads
    )


def _among_others(network: Network, step: ConvolutionStep, alone: ConvProblem, placement: Placement, options: TritonOptions) -> ConvProblem:
    """The problem with the pitches of its tensors, and with the concats that its results go to."""
    place = placement.places[step.convolution.input]
    readers = [[user for user in piece.node.users if isinstance(network.writers.get(user), ConcatStep)] for piece in step.pieces]
    in_place = options.concat_in_place
    return replace(
        alone,
        in_pitch=alone.in_channels if place.buffer.external else place.buffer.channels,
        out_pitches=tuple(placement.places[piece.node].buffer.channels for piece in step.pieces),
        in_aligned=_is_aligned(place, alone.dtype),
        concats=tuple(map(len, readers)) if in_place else (),
        bare=in_place and len(step.pieces) == 1 and step.residual is None and len(readers[0]) == len(step.pieces[0].node.users) == 1,
    )


# -- choices -----------------------------------------------------------------------------------------------------------


def _choose(problems: Problems, chooser: Chooser) -> Choices:
    return dict(zip(problems, chooser.choose_all((problem, step) for step, problem in problems.items()), strict=True))


def _unreadable(problems: Problems, choices: Choices, placement: Placement, device: torch.device, grouped: Collection[Step]) -> Problems:
    """The convolutions whose implementation cannot read its input where it has come to lie, as the problems that they
    are there: a library's result may be less well aligned than its place in the arena would have been."""
    found = {}
    for step, choice in choices.items():
        problem = replace(problems[step], in_aligned=_is_aligned(placement.places[step.convolution.input], problems[step].dtype))
        worse = problems[step].in_aligned and not problem.in_aligned
        if worse and step not in grouped and BY_NAME[choice.implementation].why_not(problem, device) is not None:
            found[step] = problem
    return found


# -- placement, levels and groups --------------------------------------------------------------------------------------


def _place(network: Network, external: Iterable[Step], options: TritonOptions) -> Placement:
    return place_activations(network, external=set(external), in_place=options.concat_in_place)


def _is_aligned(place: Place, dtype: torch.dtype) -> bool:
    """Whether every pixel starts at a multiple of 16 bytes."""
    return all(count * dtype.itemsize % 16 == 0 for count in (place.first, place.buffer.channels))


def find_levels(network: Network, placement: Placement) -> dict[Step, int]:
    """The dependency level of every step."""
    levels: dict[Step, int] = {}
    for step in network.steps:
        before = max((levels[writer] for writer in network.sources(step)), default=-1)
        levels[step] = before if isinstance(step, ConcatStep) and not placement.late[step] else before + 1
    return levels


def _find_groups(network: Network, levels: Mapping[Step, int], problems: Problems, choices: Choices, chooser: Chooser) -> tuple[ScheduledGroup, ...]:
    """Which convolutions of one level share a launch."""
    by_level = defaultdict(list)
    for step in network.convolutions:
        if can_group(problems[step]):
            by_level[levels[step]].append(step)
    groups = []
    for chunk in (chunk for steps in by_level.values() for chunk in _chunks(steps) if len(chunk) > 1):
        times = [choices[step].milliseconds for step in chunk]
        alone = None if None in times else sum(time for time in times if time is not None)
        groups.append(ConvGroup(tuple(problems[step] for step in chunk), tuple(chunk), alone, tuple(choices[step] for step in chunk)))
    chooser.start_groups()
    chooser.compile_groups_ahead(groups)
    chosen = [(group.steps, chooser.choose_group(group)) for group in groups]
    return tuple(ScheduledGroup(steps, choice) for steps, choice in chosen if choice is not None)


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
