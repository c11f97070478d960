"""Our kernels as implementations: what they refuse, and what the plan says of them. That they compute the convolution
is in test_trial.py."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from fastcnn.engines.triton.implementations import ours
from fastcnn.engines.triton.implementations.ours import TritonConvolution, TritonStem, TritonTma
from fastcnn.engines.triton.trial import Trial

from ..problems import CPU, PROBLEM, step_of

HALF = dataclasses.replace(PROBLEM, dtype=torch.float16, in_channels=16, in_pitch=16)


@pytest.fixture(autouse=True)
def hopper(monkeypatch):
    monkeypatch.setattr(ours, "device_limits", lambda device: (90, 132))


@pytest.mark.parametrize(
    ("implementation", "changes", "reason"),
    [
        (TritonConvolution(), {}, None),
        (TritonConvolution(), {"groups": 2}, "grouped convolution"),
        (TritonConvolution(), {"input_channels_last": False}, "the input is not channels_last"),
        (TritonTma(), {}, None),
        (TritonTma(), {"stride": (2, 1)}, "a stride"),
        (TritonTma(), {"in_aligned": False}, "multiples of 16 bytes"),
        (TritonTma(), {"in_channels": 4}, "multiples of 16 bytes"),
        (TritonTma(), {"dtype": torch.float32}, r"torch.float32 (ieee) on compute capability 9.0"),
        (TritonStem(), {"in_channels": 3, "pieces": (9,), "input_channels_last": False}, None),
        (TritonStem(), {}, "more than 4 input channels"),
        (TritonStem(), {"in_channels": 3}, "several destinations"),
    ],
)
def test_why_not(implementation, changes, reason):
    found = implementation.why_not(dataclasses.replace(HALF, **changes), CPU)

    assert found is None if reason is None else reason in found


def test_the_reduction_is_tried_in_parts():
    variants = TritonConvolution().variants(dataclasses.replace(HALF, in_channels=512), CPU, 1)
    parts = [variant[-1] for variant in variants]

    assert parts == [parts[0], parts[0] // 2, 1]
    assert f"split-K {parts[0]}" in TritonConvolution().label(HALF, variants[0])
    assert "split-K" not in TritonConvolution().label(HALF, variants[-1])


def test_all_configurations_are_more_than_those_that_are_timed():
    for implementation in (TritonConvolution(), TritonTma()):
        assert len(implementation.variants(HALF, CPU, None)) > len(implementation.variants(HALF, CPU))


def test_the_stem_reads_planes():
    problem = dataclasses.replace(PROBLEM, in_channels=3, in_pitch=3, pieces=(9,), out_pitches=(20,), concats=(0,), input_channels_last=False)
    trial = Trial(problem, step_of(problem), CPU)

    assert trial.operands.x.is_contiguous()
    assert trial.check(TritonStem(), ()) is None
    assert TritonStem().label(problem, ()) == "triton stem"


def test_no_kernel_leaves_its_epilogue():
    assert not any(implementation.leaves_epilogue((2,)) for implementation in (TritonConvolution(), TritonTma(), TritonStem()))
