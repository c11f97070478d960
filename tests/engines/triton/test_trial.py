"""One convolution on random operands."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from fastcnn.engines.triton import trial as trial_module
from fastcnn.engines.triton.implementations.library import LibraryVariant
from fastcnn.engines.triton.implementations.table import BY_NAME, implementations
from fastcnn.engines.triton.trial import Trial, compile_candidates, make_operands

from .problems import CPU, PROBLEM, step_of


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"residual": True, "pieces": (9,), "out_pitches": (9,), "concats": (0,)},
        {"pieces": (9,), "out_pitches": (20,), "concats": (1,), "bare": True},
        {"relu": False, "bias": False},
        {"kernel": (1, 1), "padding": (0, 0), "dtype": torch.float16},
        {"stride": (2, 1), "dilation": (2, 1)},
    ],
    ids=["pieces", "residual", "bare", "plain", "1×1 fp16", "stride"],
)
@pytest.mark.parametrize("name", ["triton", "library"])
def test_every_implementation_gives_the_reference(name, changes):
    problem = dataclasses.replace(PROBLEM, **changes)
    implementation, trial = BY_NAME[name], Trial(problem, step_of(problem), CPU)

    for variant in implementation.variants(problem, CPU)[-1:]:
        assert trial.check(implementation, variant) is None
        torch.testing.assert_close(torch.cat(trial.operands.destinations, 1)[1:].float(), trial.expected[1:], rtol=5e-3, atol=5e-3)


@pytest.mark.parametrize("name", ["triton", "library"])
def test_what_memory_held_before_does_not_show(name, monkeypatch):
    problem = dataclasses.replace(PROBLEM, concats=(0, 0))
    implementation, trial = BY_NAME[name], Trial(problem, step_of(problem), CPU)
    run = type(implementation).run

    def adds_what_was_there(self, problem, variant, weights, operands):
        before = [destination.clone() for destination in operands.destinations]
        y = run(self, problem, variant, weights, operands)
        for destination, old in zip(operands.destinations, before, strict=True):
            destination += 0 * old
        return y + 0 * torch.cat(before, 1) if y is not None else None

    variant = implementation.variants(problem, CPU)[-1]
    assert trial.check(implementation, variant) is None
    monkeypatch.setattr(type(implementation), "run", adds_what_was_there)
    assert trial.check(implementation, variant) == "relative error nan, more than 0.0001"


def test_nan_must_come_out_where_it_must_and_nowhere_else(monkeypatch):
    implementation, trial = BY_NAME["library"], Trial(PROBLEM, step_of(PROBLEM), CPU)
    run = type(implementation).run

    def spreads(self, problem, variant, weights, operands):
        y = run(self, problem, variant, weights, operands)
        return torch.where(y.isnan().any(), torch.nan, y)

    monkeypatch.setattr(type(implementation), "run", spreads)
    assert trial.check(implementation, (LibraryVariant.SEPARATE,)) == "NaN comes out where none can come from"


def test_operands_lie_as_the_problem_says():
    operands = make_operands(PROBLEM, CPU)

    assert operands.x.shape == (2, 6, 7, 5)
    assert operands.x.stride(3) == 8
    assert [tuple(out.shape) for out in operands.destinations] == [(2, 4, 7, 5), (2, 5, 7, 5)]
    assert [out.stride(3) for out in operands.destinations] == [11, 5]


@pytest.mark.parametrize(
    ("pitch", "aligned", "starts"), [(24, True, 0), (24, False, 2), (6, False, 0)], ids=["slice", "slice at odd channels", "whole"]
)
def test_an_unaligned_input_is_measured_as_one(pitch, aligned, starts):
    """A tensor of 6 channels of its own needs no shift: every other pixel is unaligned."""
    problem = dataclasses.replace(PROBLEM, dtype=torch.float16, in_pitch=pitch, in_aligned=aligned)
    x = make_operands(problem, CPU).x

    assert x.storage_offset() * x.element_size() == starts
    assert x.stride(3) == pitch


def test_what_the_network_would_copy_is_copied():
    trial = Trial(PROBLEM, step_of(PROBLEM), CPU)  # the first piece goes to a concat, the second is read where the library left it
    first, second = trial.operands.destinations
    trial.run(BY_NAME["library"], (LibraryVariant.SEPARATE,))

    torch.testing.assert_close(first, trial.expected[:, :4], rtol=1e-4, atol=1e-5)
    assert not second.any()


def test_only_our_kernels_are_compiled_ahead(monkeypatch):
    asked = []
    monkeypatch.setattr(Trial, "compile_jobs", lambda self, implementation, variant: asked.append(implementation.name) or [])
    monkeypatch.setattr(trial_module, "compile_jobs", lambda jobs, seconds: None)
    compile_candidates([(PROBLEM, step_of(PROBLEM))], implementations(("library", "triton", "triton_stem")), CPU, 1.0)

    assert set(asked) == {"triton"}  # the stem takes no more than 4 channels
