"""What a convolution is asked to do, and the forms of its weight."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn

from fastcnn.engines.triton.problem import ConvProblem, ConvWeights
from fastcnn.kernels import pack_weight

from .problems import PROBLEM, step_of


def test_keys_tell_problems_apart():
    variants = [dataclasses.replace(PROBLEM, **{field.name: value}) for field, value in _other_values()]

    keys = {problem.key for problem in (PROBLEM, *variants)}
    assert len(keys) == len(variants) + 1
    assert PROBLEM.key == "float32 n2 c6@8 in7x5 k4@11+5@5 f3x1 s1x1 p1x0 d1x1 bias relu concats1+0"


def _other_values() -> list[tuple[dataclasses.Field, object]]:
    changed: list[tuple[dataclasses.Field, object]] = []
    for field in dataclasses.fields(ConvProblem):
        value = getattr(PROBLEM, field.name)
        if field.name == "out_channels":  # said by the pieces
            continue
        if isinstance(value, bool):
            changed.append((field, not value))
        elif isinstance(value, int):
            changed.append((field, value + 1))
        elif isinstance(value, tuple):
            changed.append((field, (value[0] + 1, *value[1:])))
        else:
            changed.append((field, torch.float16))
    return changed


@pytest.mark.parametrize(("channels", "kernel", "copied"), [(32, (3, 1), False), (32, (1, 1), False), (6, (3, 1), True)])
def test_a_channels_last_weight_is_not_packed_again(channels, kernel, copied):
    weight = torch.randn(5, channels, *kernel).contiguous(memory_format=torch.channels_last)
    step = step_of(dataclasses.replace(PROBLEM, in_channels=channels, kernel=kernel))
    step.weight = weight
    packed = ConvWeights(step).packed

    wanted = pack_weight(weight)
    torch.testing.assert_close(packed, wanted, rtol=0, atol=0)
    assert packed.stride() == wanted.stride()
    assert (packed.data_ptr() != weight.data_ptr()) == copied


def test_a_convolution_module_agrees_on_the_size():
    conv = nn.Conv2d(6, 9, (3, 1), stride=(2, 3), padding=(1, 0), dilation=(2, 1))
    problem = dataclasses.replace(PROBLEM, stride=(2, 3), dilation=(2, 1))

    assert problem.out_size == tuple(conv(torch.zeros(1, 6, 7, 5)).shape[2:])
    assert problem.flops == 2 * 2 * 9 * 6 * 3 * problem.out_size[0] * problem.out_size[1]


@pytest.mark.parametrize(
    ("changes", "scattered"),
    [
        ({}, True),  # 6 channels in a pitch of 8
        ({"in_pitch": 6}, False),
        ({"in_pitch": 6, "input_channels_last": False}, True),
        ({"in_pitch": 1, "in_channels": 1, "input_channels_last": False}, False),
    ],
    ids=["slice", "whole", "planes", "one plane"],
)
def test_whether_an_input_is_a_channels_last_tensor_of_its_own(changes, scattered):
    assert dataclasses.replace(PROBLEM, **changes).input_is_scattered is scattered


def test_bytes_count_everything_once():
    p, q = PROBLEM.out_size
    inputs, weights, output = 2 * 7 * 5 * 6, 9 * 6 * 3, 2 * p * q * 9

    assert PROBLEM.bytes == 4 * (inputs + weights + output)
    assert dataclasses.replace(PROBLEM, residual=True).bytes == 4 * (inputs + weights + 2 * output)


def test_the_float32_bias_is_zero_where_there_is_none():
    weights = ConvWeights(step_of(dataclasses.replace(PROBLEM, bias=False)))

    assert weights.bias is None
    assert weights.bias_float32.tolist() == [0.0] * 9
    assert weights.bytes() == 9 * 4
