"""How long values are needed, counted in dependency levels: what the arena may overwrite, and what can be let go of."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import fx

from fastcnn.engines.triton.arena import Life
from fastcnn.engines.triton.placement import Buffer, Place, Placement
from fastcnn.engines.triton.steps import AtenStep, ConcatStep, Network, Step

_FOREVER = 1 << 30


def buffer_lives(network: Network, placement: Placement, levels: Mapping[Step, int], batch: int, itemsize: int) -> dict[Buffer, Life]:
    """Of every buffer of ours: the levels of its first and last use, and its bytes."""
    first: dict[Buffer, int] = {}
    last: dict[Buffer, int] = {}

    def touch(place: Place, level: int) -> None:
        if not place.buffer.external:
            first[place.buffer] = min(level, first.get(place.buffer, level))
            last[place.buffer] = max(level, last.get(place.buffer, level))

    behind = _memory_behind(network, placement)
    for step in network.steps:
        level = levels[step]
        if isinstance(step, ConcatStep):
            for index in placement.late[step]:
                touch(placement.member_place(step, index), level)
            if not placement.late[step]:
                continue
        for node in (*step.writes, *step.reads):
            for place in behind.get(node, ()):
                touch(place, level)
    for node in network.captured.output_nodes:
        for place in behind.get(node, ()):
            touch(place, _FOREVER)
    return {buffer: Life(buffer.elements(batch) * itemsize, first[buffer], last[buffer]) for buffer in first}


def last_reads(network: Network, levels: Mapping[Step, int]) -> list[list[fx.Node]]:
    """For each level the values that are read there for the last time; outputs, and what they are views of, are
    kept."""
    kept = {network.base(node) for node in network.captured.output_nodes} | set(network.captured.output_nodes)
    last: dict[fx.Node, int] = {}
    for step in network.steps:
        for node in (*step.writes, *step.reads):
            for value in (node, network.base(node)):
                last[value] = max(last.get(value, 0), levels[step])
    reads: list[list[fx.Node]] = [[] for _ in range(max(levels.values(), default=-1) + 1)]
    for node, level in last.items():
        if node not in kept:
            reads[level].append(node)
    return reads


def _memory_behind(network: Network, placement: Placement) -> dict[fx.Node, tuple[Place, ...]]:
    """For each value the places whose memory it may show: its own, and for a view that PyTorch made, those of what it
    views."""
    behind: dict[fx.Node, tuple[Place, ...]] = {node: (place,) for node, place in placement.places.items()}
    for step in network.steps:
        if isinstance(step, AtenStep) and _may_alias(step.node):
            viewed = [place for node in step.reads for place in behind.get(node, ())]
            behind[step.node] = (*behind.get(step.node, ()), *viewed)
    return behind


def _may_alias(node: fx.Node) -> bool:
    """Whether the result of an operation may be a view of its argument, or the argument itself."""
    target = node.target
    if not isinstance(target, torch._ops.OpOverload):
        return True
    schema = target._schema
    fresh = all(result.alias_info is None and str(result.type) == "Tensor" for result in schema.returns)
    return not fresh or "dropout" in schema.name
