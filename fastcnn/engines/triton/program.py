"""A schedule that runs: its launches, and its buffers as views of one block of memory."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from fastcnn.engines.triton.launches import Launch, Values, Weights, make_launches
from fastcnn.engines.triton.lifetimes import last_reads
from fastcnn.engines.triton.placement import Buffer, Place
from fastcnn.engines.triton.schedule import Schedule


class Program:
    """Made once for each batch size; holds no memory but packed weights.

    Attributes:
        stages: the launches of each dependency level.
    """

    def __init__(self, schedule: Schedule, weights: Weights) -> None:
        self.schedule = schedule
        self.stages = make_launches(schedule, weights)
        self._last_reads = last_reads(schedule.network, schedule.levels)

    @property
    def launches(self) -> list[Launch]:
        """All of them, in an order in which they can run."""
        return [launch for stage in self.stages for launch in stage]

    def bind(self, memory: Tensor) -> Values:
        """Views of every buffer in the arena. memory: at least `schedule.arena.size` bytes, uint8, aligned as
        `arena.ALIGNMENT` says."""
        schedule = self.schedule
        bases: dict[Buffer, Tensor] = {}
        for buffer, offset in schedule.arena.offsets.items():
            size = buffer.elements(schedule.batch) * schedule.dtype.itemsize
            flat = memory[offset : offset + size].view(schedule.dtype)
            bases[buffer] = flat.view(schedule.batch, buffer.height, buffer.width, buffer.channels).permute(0, 3, 1, 2)
        places = schedule.placement.places
        return Values(schedule.network, {node: _part(bases[place.buffer], place) for node, place in places.items() if place.buffer in bases})

    def run(self, values: Values, x: Tensor, run_stage: Callable[[list[Callable[[], None]]], None]) -> list[Tensor]:
        """All launches in order; `run_stage` runs the calls of one level. The results may lie in the arena.

        x: [batch, …] contiguous if `schedule.input_as_it_is`, else channels_last where it is an activation.
        """
        captured = self.schedule.network.captured
        values.others[captured.input_node] = x
        for stage, done in zip(self.stages, self._last_reads, strict=True):
            run_stage([lambda launch=launch: launch.run(values) for launch in stage])  # type: ignore[misc]
            for node in done:
                values.others.pop(node, None)
        outputs = [values[node] for node in captured.output_nodes]
        values.others.clear()
        return outputs


def _part(base: Tensor, place: Place) -> Tensor:
    return base[:, place.first : place.first + place.channels]
