"""PyTorch's own convolution as an implementation."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from fastcnn.engines.triton.implementations.library import LibraryConvolution, LibraryVariant
from fastcnn.engines.triton.trial import Trial

from ..problems import CPU, PROBLEM, step_of

CUDA = torch.device("cuda", 0)
BARE = dataclasses.replace(PROBLEM, pieces=(9,), out_pitches=(20,), concats=(1,), bare=True)
LIBRARY = LibraryConvolution()


def test_cudnns_fused_call_is_for_relu_on_a_gpu():
    assert LIBRARY.variants(PROBLEM, CUDA) == [(LibraryVariant.FUSED,), (LibraryVariant.SEPARATE,)]
    assert LIBRARY.variants(dataclasses.replace(PROBLEM, relu=False), CUDA) == [(LibraryVariant.SEPARATE,)]
    assert LIBRARY.variants(PROBLEM, CPU) == [(LibraryVariant.SEPARATE,)]


def test_bias_and_relu_are_left_to_the_copy_that_is_the_only_reader():
    (variant,) = LIBRARY.variants(BARE, CUDA)
    trial = Trial(BARE, step_of(BARE), CPU)
    bare = LIBRARY.run(BARE, variant, trial.weights, trial.operands)

    assert [LIBRARY.leaves_epilogue((number,)) for number in LibraryVariant] == [False, False, True]
    torch.testing.assert_close(torch.relu(bare + trial.weights.bias[:, None, None]), trial.expected, rtol=1e-4, atol=1e-5)
    assert LIBRARY.label(BARE, variant).startswith("aten::conv2d (")


def test_what_stands_in_several_concats_is_written_in_place_instead():
    dense = dataclasses.replace(PROBLEM, concats=(3, 0))

    assert LIBRARY.why_not(dense, CUDA) == "its result would be copied into 3 concats"
    assert LIBRARY.why_not(dataclasses.replace(dense, groups=3), CUDA) is None  # nothing else computes groups
    assert LIBRARY.why_not(PROBLEM, CUDA) is None


@pytest.mark.parametrize(("pitch", "copied"), [(6, False), (8, True)], ids=["whole", "slice"])
def test_a_copy_of_the_input_is_told_and_made_where_it_is_measured(monkeypatch, pitch, copied):
    problem = dataclasses.replace(PROBLEM, in_pitch=pitch)
    trial = Trial(problem, step_of(problem), CPU)
    read: list[torch.Tensor] = []
    conv2d = torch.nn.functional.conv2d
    monkeypatch.setattr(torch.nn.functional, "conv2d", lambda x, *others: read.append(x) or conv2d(x, *others))
    trial.run(LIBRARY, (LibraryVariant.SEPARATE,))

    assert (read[0].data_ptr() != trial.operands.x.data_ptr()) is copied
    assert LIBRARY.label(problem, (LibraryVariant.SEPARATE,)) == "aten::conv2d + relu" + " (input copied)" * copied
    assert LIBRARY.label(problem, (LibraryVariant.FUSED,)) == "cudnn_convolution_relu" + " (input copied)" * copied
