"""Choosing by measuring, with a clock that the test sets: the interpreter's own times say nothing."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from fastcnn.engines.triton.choices import Choice, ChoiceStore
from fastcnn.engines.triton.implementations.group import ConvGroup
from fastcnn.engines.triton.implementations.library import LibraryConvolution
from fastcnn.engines.triton.implementations.ours import TritonConvolution
from fastcnn.engines.triton.options import TritonOptions
from fastcnn.engines.triton.problem import ConvProblem
from fastcnn.engines.triton.tuning import Chooser
from fastcnn.errors import BackendError

from .problems import CPU, PROBLEM, step_of


@pytest.fixture
def clock(monkeypatch):
    """Seconds by the name of what is timed; sets every run's price."""
    prices: dict[str, float] = {}
    timed: list[str] = []

    def time_(self, run, what):
        run()
        timed.append(what)
        return next((price for name, price in prices.items() if name in what), 1.0)

    monkeypatch.setattr(Chooser, "_time", time_)
    monkeypatch.setattr(Chooser, "_can_measure", lambda self: self._has_time())
    return prices, timed


def choose(chooses: Chooser, problem: ConvProblem = PROBLEM) -> Choice:
    return chooses.choose_all([(problem, step_of(problem))])[0]


def chooser(**options: object) -> Chooser:
    made = Chooser(CPU, TritonOptions(use_cache=False, **options), ChoiceStore(CPU, on_disk=False))
    made.start_clock()
    return made


def test_the_fastest_is_kept_and_remembered(clock, caplog):
    prices, timed = clock
    prices["aten::conv2d"] = 0.5
    chooses = chooser()
    with caplog.at_level("INFO", logger="fastcnn"):
        choice = choose(chooses)

    assert "measuring the implementations of 1 convolutions, for at most 40 s" in caplog.text
    assert (choice.implementation, choice.milliseconds) == ("library", 0.5)
    assert "triton 2.00× its time" in choice.why
    count = len(timed)
    assert count > 3
    assert choose(chooses) == choice
    assert len(timed) == count


def test_each_implementation_is_timed_before_anyones_second_variant(clock):
    _, timed = clock
    choose(chooser())

    assert ["aten" in what for what in timed[:2]].count(True) == 1


def test_every_problem_gets_its_best_guesses_before_one_gets_the_rest(clock, monkeypatch):
    _, timed = clock
    problems = [PROBLEM, dataclasses.replace(PROBLEM, batch=3), PROBLEM]
    chooses = chooser(implementations=("triton", "library"))
    monkeypatch.setattr(Chooser, "_has_time", lambda self: len(timed) < 4)
    choices = chooses.choose_all((problem, step_of(problem)) for problem in problems)

    assert ["n3" in what for what in timed] == [False, False, True, True]
    assert ["aten" in what for what in timed] == [False, True, False, True]
    assert [choice.milliseconds for choice in choices] == [1.0, 1.0, 1.0]
    assert choices[0] == choices[2]


def test_when_time_is_over_the_prediction_stands(clock):
    _, timed = clock
    choice = choose(chooser(tuning_seconds=0))

    assert (choice.implementation, choice.milliseconds, choice.why) == ("triton", None, "predicted, not measured")
    assert timed == []


def test_a_stored_variant_that_is_no_longer_offered_is_measured_anew(clock):
    chooses = chooser()
    chooses.store.put(PROBLEM.key, Choice("triton", (7, 7, 7), 0.001, "another version's"))
    choice = choose(chooses)

    assert choice.variant != (7, 7, 7)
    assert choice.milliseconds == 1.0


def test_a_wrong_candidate_is_left_out_and_named(clock, monkeypatch, caplog):
    prices, _ = clock
    prices["aten::conv2d"] = 0.1
    run = LibraryConvolution.run
    monkeypatch.setattr(LibraryConvolution, "run", lambda self, *arguments: run(self, *arguments) * 1.01)

    assert choose(chooser()).implementation == "triton"
    assert "aten::conv2d + relu (input copied) on float32 n2 c6@8" in caplog.text
    assert "is left out: relative error 0.01" in caplog.text


def test_a_candidate_that_loses_nan_is_left_out(clock, monkeypatch, caplog):
    prices, _ = clock
    prices["aten::conv2d"] = 0.1
    caplog.set_level("INFO")
    run = LibraryConvolution.run
    monkeypatch.setattr(LibraryConvolution, "run", lambda self, *arguments: run(self, *arguments).nan_to_num())

    assert choose(chooser()).implementation == "triton"
    assert "it loses NaN" in caplog.text


def test_a_candidate_that_does_not_run_is_passed_over(clock, monkeypatch):
    def fails(self, *arguments):
        raise RuntimeError("out of resource: shared memory")

    monkeypatch.setattr(TritonConvolution, "run", fails)

    assert choose(chooser()).implementation == "library"


def test_an_implementation_that_cannot_be_captured_is_measured_no_further(monkeypatch, caplog):
    tried: list[str] = []

    def fails(run, device):
        tried.append(run.args[0].name)
        if run.args[0].name == "triton":
            raise RuntimeError("CUDA error: operation failed due to a previous error during capture")
        return 1.0

    monkeypatch.setattr("fastcnn.engines.triton.tuning.device_milliseconds", fails)
    monkeypatch.setattr(Chooser, "_can_measure", lambda self: self._has_time())

    assert choose(chooser(implementations=("triton", "library"))).implementation == "library"
    assert tried.count("triton") == 1
    assert "triton is measured no further" in caplog.text


def test_where_a_trial_does_not_fit_into_memory_the_prediction_stands(clock, monkeypatch, caplog):
    def full(problem, device):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 9.00 GiB.")

    monkeypatch.setattr("fastcnn.engines.triton.trial.make_operands", full)
    chooses = chooser()
    choice = choose(chooses)

    assert choice.why == "predicted, not measured"
    assert "is measured no further: CUDA out of memory. Tried to allocate 9.00 GiB." in caplog.text
    assert chooses.choose_group(ConvGroup((PROBLEM, PROBLEM), (step_of(PROBLEM), step_of(PROBLEM)), alone=3.0)) is None


def test_no_implementation_left():
    grouped = dataclasses.replace(PROBLEM, groups=3)
    with pytest.raises(BackendError, match=r"no implementation for float32 n2 .* g3 .*triton: grouped convolution"):
        choose(chooser(implementations=("triton",)), grouped)


def test_groups_are_kept_where_they_are_faster(clock):
    prices, _ = clock
    chooses = chooser()
    group = ConvGroup((PROBLEM, PROBLEM), (step_of(PROBLEM), step_of(PROBLEM)), alone=1.4)
    prices["group"] = 1.5

    assert chooses.choose_group(group) is None
    assert chooses.choose_group(dataclasses.replace(group, alone=9.0)) is None  # remembered
    slow = dataclasses.replace(group, alone=3.0)
    better = chooser().choose_group(slow)
    assert better is not None
    assert better.why == "2.00× as fast as 2 launches"
    assert chooser(grouped="never").choose_group(slow) is None


def test_a_group_is_held_against_launches_that_run_side_by_side(clock):
    prices, _ = clock
    prices |= {"side by side": 1.2, "group": 1.5}
    choices = (Choice("library", (1,), 1.0), Choice("triton", TritonConvolution().variants(PROBLEM, CPU)[0], 1.0))
    group = ConvGroup((PROBLEM, PROBLEM), (step_of(PROBLEM), step_of(PROBLEM)), alone=2.0, choices=choices)

    assert chooser().choose_group(group) is None
    in_turn = chooser(concurrent=False).choose_group(group)
    assert in_turn is not None
    assert in_turn.why == "1.33× as fast as 2 launches"


def test_groups_have_time_of_their_own(clock, monkeypatch):
    now = [0.0]
    monkeypatch.setattr("fastcnn.engines.triton.tuning.time.monotonic", lambda: now[0])
    chooses = chooser(tuning_seconds=60)
    without = chooser(tuning_seconds=60, grouped="never")
    now[0] = 41.0  # the convolutions have used up what is theirs
    assert choose(chooses).why == "predicted, not measured"
    assert choose(without).milliseconds == 1.0

    chooses.start_groups()
    clock[0]["group"] = 0.5
    group = ConvGroup((PROBLEM, PROBLEM), (step_of(PROBLEM), step_of(PROBLEM)), alone=2.0)
    assert chooses.choose_group(group) is not None
    now[0] = 61.0
    other = dataclasses.replace(PROBLEM, batch=3)
    assert chooses.choose_group(ConvGroup((other, other), group.steps, alone=2.0)) is None
