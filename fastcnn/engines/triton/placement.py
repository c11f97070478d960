"""Where every activation of a network lies: which buffer, and which of its channels.

A buffer is memory for [N, H, W, channels]. A place is some channels of a buffer that stand next to each other, so a
member of a concat, a prefix of a dense block and an output of merged siblings are all places, read and written where
they lie. Whatever computes a member of a concat writes it there, unless it stands in two concats at once or is the
result of a library, which brings its own memory.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

from torch import fx

from fastcnn.engines.triton.steps import AtenStep, ConcatStep, ConvolutionStep, Network, Step, is_activation


@dataclass(eq=False)
class Buffer:
    """Memory of [N, height, width, channels]; `external` if it comes from PyTorch or the caller in every run instead of
    the arena."""

    name: str
    channels: int
    height: int
    width: int
    external: bool = False

    def elements(self, batch: int) -> int:
        """How many it holds at this batch size."""
        return batch * self.height * self.width * self.channels


@dataclass(frozen=True)
class Place:
    """Channels first … first + channels of a buffer."""

    buffer: Buffer
    first: int
    channels: int

    def part(self, start: int, channels: int) -> Place:
        """So many of its channels, the first of them `start`."""
        return Place(self.buffer, self.first + start, channels)


@dataclass
class Placement:
    """The place of every activation, and which members of which concat must still be copied into theirs."""

    places: dict[fx.Node, Place] = field(default_factory=dict)
    late: dict[ConcatStep, tuple[int, ...]] = field(default_factory=dict)

    def member_place(self, concat: ConcatStep, index: int) -> Place:
        """Where member `index` of the concat belongs."""
        first = sum(_channels(member) for member in concat.reads[:index])
        return self.places[concat.node].part(first, _channels(concat.reads[index]))


def place_activations(network: Network, *, external: Collection[Step] = (), in_place: bool = True) -> Placement:
    """Give every activation its place.

    Args:
        external: steps whose results come in memory of their own, beside those that PyTorch computes.
        in_place: False gives every member of a concat a buffer of its own, to be copied.
    """
    writer = {node: step for step in network.steps for node in step.writes}
    placement = Placement()
    places = placement.places

    def new_buffer(node: fx.Node, *, outside: bool = False) -> Place:
        _, channels, height, width = node.meta["shape"]
        buffer = Buffer(node.name, channels, height, width, external=outside)
        return Place(buffer, 0, channels)

    for step in network.steps:
        if isinstance(step, AtenStep) or (step in external and not isinstance(step, ConvolutionStep)):
            places.update({node: new_buffer(node, outside=True) for node in step.writes if is_activation(node)})
        elif step in external and isinstance(step, ConvolutionStep):
            whole = new_buffer(step.node, outside=True)
            places.update({piece.node: whole.part(piece.start, piece.stop - piece.start) for piece in step.pieces})
    if is_activation(network.captured.input_node):
        places[network.captured.input_node] = new_buffer(network.captured.input_node, outside=True)

    # The last concat first: what an outer concat has placed, an inner one fills, and a prefix of a dense block is a
    # part of the longest.
    for step in reversed(network.steps):
        if not isinstance(step, ConcatStep):
            continue
        if step.node not in places:
            places[step.node] = _as_they_lie(step, places) or new_buffer(step.node)
        late = []
        for index, member in enumerate(step.reads):
            goal = placement.member_place(step, index)
            mine = in_place and member in writer and member not in places and member not in step.reads[:index]
            if mine:
                places[member] = goal
            elif places.get(member) != goal:
                late.append(index)
        placement.late[step] = tuple(late)

    for step in network.steps:
        for node in step.writes:
            if is_activation(node) and node not in places:
                places[node] = new_buffer(node)
    for node, (base, start) in network.views.items():
        places[node] = places[base].part(start, node.meta["shape"][1])
    return placement


def _as_they_lie(concat: ConcatStep, places: dict[fx.Node, Place]) -> Place | None:
    """The place that holds all members already, side by side and in order, in a buffer of ours."""
    found = [places.get(member) for member in concat.reads]
    first = found[0]
    if first is None or first.buffer.external:
        return None
    end = first.first
    for place in found:
        if place is None or place.buffer is not first.buffer or place.first != end:
            return None
        end += place.channels
    return Place(first.buffer, first.first, end - first.first)


def _channels(node: fx.Node) -> int:
    return int(node.meta["shape"][1])
