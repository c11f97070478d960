"""One block of memory for all buffers of a network: two that are never alive at the same time share addresses.

Offsets are given to the largest buffers first, each at the lowest address that is free for its whole life: "greedy by
size for offset calculation", Pisarchyk and Lee, "Efficient Memory Management for Deep Neural Net Inference", 2020,
https://arxiv.org/abs/2001.03288.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

# Descriptors of the tensor memory accelerator want 128; a whole page of the L2's sectors costs nothing beside
# activations.
ALIGNMENT = 1024

Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True)
class Life:
    """A buffer of `size` bytes that is written at `first` and read for the last time at `last`, in any count of
    time."""

    size: int
    first: int
    last: int

    def overlaps(self, other: Life) -> bool:
        """Whether both are alive at one time."""
        return self.first <= other.last and other.first <= self.last


@dataclass(frozen=True)
class ArenaPlan(Generic[Key]):
    """Offsets in bytes, and what the whole arena takes; `least` is the most that is alive at one time, below which no
    plan can go."""

    offsets: dict[Key, int]
    size: int
    least: int


def plan_arena(lives: Mapping[Key, Life]) -> ArenaPlan[Key]:
    """An offset for every buffer."""
    placed: list[tuple[int, int, Life]] = []  # start, end, life
    offsets: dict[Key, int] = {}
    for key, life in sorted(lives.items(), key=lambda item: -item[1].size):
        size = _align(life.size)
        start = 0
        for other_start, other_end, other in sorted(placed, key=lambda entry: entry[0]):
            if not life.overlaps(other):
                continue
            if start + size <= other_start:
                break
            start = max(start, other_end)
        offsets[key] = start
        placed.append((start, start + size, life))
    times = {life.first for life in lives.values()}
    least = max((sum(_align(life.size) for life in lives.values() if life.first <= time <= life.last) for time in times), default=0)
    return ArenaPlan(offsets, max((end for _, end, _ in placed), default=0), least)


def _align(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT
