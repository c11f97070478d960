"""Offsets in the arena."""

from __future__ import annotations

import random

import pytest

from fastcnn.engines.triton.arena import ALIGNMENT, Life, plan_arena


@pytest.mark.parametrize("seed", range(20))
def test_buffers_alive_together_do_not_overlap(seed):
    draw = random.Random(seed)
    lives = {}
    for name in range(draw.randrange(1, 60)):
        first = draw.randrange(30)
        lives[name] = Life(draw.randrange(1, 50_000), first, first + draw.randrange(6))
    plan = plan_arena(lives)

    assert plan.offsets.keys() == lives.keys()
    assert all(offset % ALIGNMENT == 0 for offset in plan.offsets.values())
    assert plan.least <= plan.size <= sum(-(-life.size // ALIGNMENT) * ALIGNMENT for life in lives.values())
    for a, life in lives.items():
        assert plan.offsets[a] + life.size <= plan.size
        for b, other in lives.items():
            apart = plan.offsets[a] + life.size <= plan.offsets[b] or plan.offsets[b] + other.size <= plan.offsets[a]
            assert a == b or apart or not life.overlaps(other)


def test_a_chain_takes_two_buffers():
    lives = {step: Life(ALIGNMENT, step, step + 1) for step in range(10)}

    assert plan_arena(lives).size == plan_arena(lives).least == 2 * ALIGNMENT


def test_nothing_takes_nothing():
    assert plan_arena({}).size == 0
