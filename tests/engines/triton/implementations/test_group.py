"""Several convolutions in one launch."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from fastcnn.engines.triton.choices import Choice
from fastcnn.engines.triton.implementations.group import ConvGroup, GroupChoice, can_group, group_configs, group_label, may_group, run_group
from fastcnn.engines.triton.trial import Trial
from fastcnn.kernels import count_launches

from ..problems import CPU, PROBLEM, step_of

OTHER = dataclasses.replace(PROBLEM, kernel=(1, 1), padding=(0, 0), relu=False, residual=True, pieces=(9,), out_pitches=(9,), concats=(0,))


def test_one_launch_gives_what_each_gives_alone():
    trials = [Trial(problem, step_of(problem), CPU) for problem in (PROBLEM, OTHER)]
    config = group_configs([PROBLEM, OTHER], CPU)[0]
    with count_launches() as launches:
        run_group([PROBLEM, OTHER], [trial.weights for trial in trials], [trial.operands for trial in trials], config)

    assert launches == {"conv2d_group": 1}
    for trial in trials:
        torch.testing.assert_close(torch.cat(trial.operands.destinations, 1), trial.expected, rtol=1e-4, atol=1e-5)
    # Two pieces of the one and the other as a whole.
    assert group_label([PROBLEM, OTHER], config) == f"triton group of 3, {config.block_m}×{config.block_n}×{config.block_k}"


@pytest.mark.parametrize("together", [True, False])
def test_a_choice_is_stored_as_one_among_implementations(together):
    config = group_configs([PROBLEM], CPU)[0] if together else None
    stored = GroupChoice(config, 0.5, "2.00× as fast as 2 launches").to_store()

    assert stored == Choice("triton_group", tuple(config.encode()) if config else (), 0.5, "2.00× as fast as 2 launches")
    assert GroupChoice.from_stored(stored).config == config


def test_the_key_names_all_problems():
    steps = (step_of(PROBLEM), step_of(OTHER))

    assert ConvGroup((PROBLEM, OTHER), steps, None).key == f"group: {PROBLEM.key} | {OTHER.key}"


def test_what_can_be_grouped():
    assert can_group(PROBLEM)
    assert not can_group(dataclasses.replace(PROBLEM, groups=3))
    assert not can_group(dataclasses.replace(PROBLEM, input_channels_last=False))
    assert may_group(("library", "triton"))
    assert not may_group(("library", "triton_tma"))
