"""How long memory is needed."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from graph_support import net
from torch import nn

from fastcnn.engines.triton.lifetimes import buffer_lives, last_reads
from fastcnn.engines.triton.placement import place_activations
from fastcnn.engines.triton.schedule import find_levels
from fastcnn.engines.triton.steps import AtenStep, ConcatStep

from .networks import block_parts, inception_block, network_of


def test_a_buffer_lives_from_its_first_writer_to_its_last_reader():
    network = network_of(net(lambda s, x: s.c(F.relu(s.b(F.relu(s.a(x))))), a=nn.Conv2d(4, 3, 3), b=nn.Conv2d(3, 5, 1), c=nn.Conv2d(5, 6, 1)))
    placement = place_activations(network)
    lives = buffer_lives(network, placement, find_levels(network, placement), 2, 4)

    sizes = {life.size: (life.first, life.last) for life in lives.values()}
    assert sizes[2 * 36 * 3 * 4] == (0, 1)
    assert sizes[2 * 36 * 5 * 4] == (1, 2)
    first, last = sizes[2 * 36 * 6 * 4]
    assert first == 2
    assert last > len(network.steps)  # an output is never overwritten


def test_members_of_a_concat_are_alive_until_it_is_read():
    network = network_of(net(lambda s, x: s.d(inception_block(s, x)), **block_parts(), d=nn.Conv2d(14, 2, 1)))
    placement = place_activations(network)
    levels = find_levels(network, placement)
    (concat,) = (step for step in network.steps if isinstance(step, ConcatStep))
    life = buffer_lives(network, placement, levels, 1, 4)[placement.places[concat.node].buffer]

    assert life.first == 0
    assert life.last == levels[network.convolutions[-1]]


def test_memory_behind_a_view_of_pytorchs_is_kept_while_the_view_is_read():
    network = network_of(net(lambda s, x: s.b(F.relu(s.a(x)).transpose(2, 3)), a=nn.Conv2d(4, 3, 3), b=nn.Conv2d(3, 5, 1)))
    placement = place_activations(network)
    levels = find_levels(network, placement)
    first, last = network.convolutions
    life = buffer_lives(network, placement, levels, 1, 4)[placement.places[first.node].buffer]

    assert any(isinstance(step, AtenStep) for step in network.steps)
    assert life.last == levels[last]


def test_values_are_let_go_after_their_last_reader_and_outputs_never():
    network = network_of(net(lambda s, x: torch.tanh(torch.sin(s.a(x).flatten(1))), a=nn.Conv2d(4, 3, 3)))
    levels = find_levels(network, place_activations(network))
    reads = last_reads(network, levels)

    assert len(reads) == max(levels.values()) + 1
    for level, nodes in enumerate(reads):
        for node in nodes:
            assert max(levels[step] for step in network.steps if node in (*step.reads, *step.writes)) == level
    (output,) = network.captured.output_nodes
    assert all(output not in nodes for nodes in reads)
