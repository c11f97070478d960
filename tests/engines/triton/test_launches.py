"""The calls of a schedule."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from graph_support import net
from torch import Tensor, nn

from fastcnn.engines.triton.launches import Values, _runs, make_launches
from fastcnn.engines.triton.problem import ConvWeights
from fastcnn.engines.triton.steps import Network
from fastcnn.kernels.concat import MAX_BRANCHES

from .networks import block_parts, inception_block, network_of
from .test_schedule import schedule_of


def launches_of(network: Network, **options: object):
    schedule = schedule_of(network, **options)
    weights = {step: ConvWeights(step) for step in network.convolutions}
    return schedule, [launch for stage in make_launches(schedule, weights) for launch in stage]


def test_every_step_is_in_one_launch_of_its_level():
    network = network_of(net(inception_block, **block_parts()))
    schedule, launches = launches_of(network, implementations=("triton",), grouped="always")

    assert sorted(step.path for launch in launches for step in launch.steps) == sorted(step.path for step in network.steps)
    assert all(schedule.levels[step] == launch.level for launch in launches for step in launch.steps)


def test_the_plan_names_what_runs():
    def forward(s, x: Tensor) -> Tensor:
        y = F.max_pool2d(F.relu(s.a(x)), 2)
        return F.adaptive_avg_pool2d(F.silu(F.relu(s.bn(y))), 1)

    _, launches = launches_of(network_of(net(forward, a=nn.Conv2d(4, 3, 3), bn=nn.BatchNorm2d(3))), implementations=("library",))

    assert [launch.kernel for launch in launches] == [
        "aten::conv2d + relu",
        "triton max_pool2d",
        "triton scale_bias_relu",
        "aten::silu",
        "triton global_avg_pool2d",
    ]


@pytest.mark.parametrize(("size", "kernel"), [(1, ""), (2, "aten::flatten")])
def test_a_flatten_of_one_pixel_is_no_launch(size, kernel):
    network = network_of(net(lambda s, x: F.adaptive_avg_pool2d(s.a(x), size).flatten(1), a=nn.Conv2d(4, 3, 3)))
    _, launches = launches_of(network, implementations=("library",))

    assert launches[-1].kernel == kernel


def test_a_library_that_copies_its_input_says_so():
    """A slice of a convolution's output is read by another; both are the library's."""
    network = network_of(net(lambda s, x: s.b(F.silu(s.a(x))[:, 1:]), a=nn.Conv2d(4, 5, 3), b=nn.Conv2d(4, 2, 1)))
    _, launches = launches_of(network, implementations=("library",))

    assert launches[0].kernel == "aten::conv2d"
    assert launches[-1].kernel == "aten::conv2d (input copied)"


def test_the_copy_into_a_concat_says_how_many():
    network = network_of(net(inception_block, **block_parts()))
    _, in_place = launches_of(network, implementations=("triton",))
    _, copied = launches_of(network, implementations=("library",))

    assert (in_place[-1].kernel, in_place[-1].why) == ("", "every member is written in place")
    assert copied[-1].kernel == "triton concat_relu"
    assert copied[-1].why.endswith("of 4 members are copied")


def test_values_are_found_in_the_arena_elsewhere_and_behind_views():
    network = network_of(net(lambda s, x: F.gelu(s.a(x)) + s.b(x)[:, 1:], a=nn.Conv2d(4, 3, 1), b=nn.Conv2d(4, 4, 3, padding=1)))
    (view,) = network.views
    base = network.base(view)
    y = torch.rand(2, 4, 8, 8)

    torch.testing.assert_close(Values(network, {base: y})[view], y[:, 1:])
    torch.testing.assert_close(Values(network, {}, {base: y})[view], y[:, 1:])
    with pytest.raises(KeyError):
        Values(network, {})[base]


def test_runs_are_neighbours_of_one_kind():
    assert _runs((0, 1, 3, 4, 5), lambda index: index >= 4) == [[0, 1], [3], [4, 5]]
    assert [len(run) for run in _runs(tuple(range(MAX_BRANCHES + 2)), lambda index: True)] == [MAX_BRANCHES, 2]
