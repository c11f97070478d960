"""A schedule that runs."""

from __future__ import annotations

import pytest
import torch
from graph_support import images, net

from fastcnn.engines.triton.problem import ConvWeights
from fastcnn.engines.triton.program import Program

from .networks import block_parts, inception_block, network_of
from .test_schedule import schedule_of

IMPLEMENTATIONS = (("triton",), ("library",))


@pytest.mark.parametrize("implementations", IMPLEMENTATIONS, ids=str)
def test_levels_in_order_give_the_models_answer(implementations):
    model = net(inception_block, **block_parts())
    network = network_of(model)
    schedule = schedule_of(network, implementations=implementations)
    program = Program(schedule, {step: ConvWeights(step) for step in network.convolutions})
    memory = torch.full((schedule.arena.size,), 0xFF, dtype=torch.uint8)  # NaN: what is read before it is written shows
    values = program.bind(memory)
    x = images(2, 4, 8, 8)
    sizes: list[int] = []

    def backwards(calls):
        sizes.append(len(calls))
        for call in reversed(calls):
            call()

    with torch.no_grad():
        (y,) = program.run(values, x.contiguous(memory_format=torch.channels_last), backwards)
        torch.testing.assert_close(y, model(x), rtol=1e-4, atol=1e-5)
    assert sizes == [len(stage) for stage in program.stages]
    assert sum(sizes) == len(program.launches)
    assert values.others == {}


def test_buffers_are_views_of_one_memory():
    network = network_of(net(inception_block, **block_parts()))
    schedule = schedule_of(network, implementations=("triton",))
    memory = torch.zeros(schedule.arena.size, dtype=torch.uint8)
    values = Program(schedule, {step: ConvWeights(step) for step in network.convolutions}).bind(memory)

    for node, tensor in values.arena.items():
        place = schedule.placement.places[node]
        assert tensor.shape == (2, place.channels, place.buffer.height, place.buffer.width)
        offset = schedule.arena.offsets[place.buffer] + place.first * tensor.element_size()
        assert tensor.data_ptr() - memory.data_ptr() == offset
