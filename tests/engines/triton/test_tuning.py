"""Choosing by measuring, with a clock that the test sets: the interpreter's own times say nothing."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn

from fastcnn.engines.triton import tuning
from fastcnn.engines.triton.choices import ChoiceStore
from fastcnn.engines.triton.convolutions import BY_NAME, ConvProblem, ConvWeights, LibraryConvolution, TritonConvolution
from fastcnn.engines.triton.options import TritonOptions
from fastcnn.engines.triton.tuning import Chooser, check_candidate, make_operands, reference
from fastcnn.errors import BackendError
from fastcnn.kernels import pack_weight

CPU = torch.device("cpu")
PROBLEM = ConvProblem(
    dtype=torch.float32,
    batch=2,
    in_channels=6,
    height=7,
    width=5,
    out_channels=9,
    kernel=(3, 1),
    stride=(1, 1),
    padding=(1, 0),
    dilation=(1, 1),
    groups=1,
    bias=True,
    relu=True,
    residual=False,
    in_pitch=8,
    pieces=(4, 5),
    out_pitches=(11, 5),
    concats=(1, 0),
)


class FakeStep:
    def __init__(self, problem: ConvProblem) -> None:
        generator = torch.Generator().manual_seed(1)
        self.weight = torch.randn(problem.out_channels, problem.in_channels // problem.groups, *problem.kernel, generator=generator) / 4
        self.weight = self.weight.to(problem.dtype)
        self.bias = torch.randn(problem.out_channels, generator=generator).to(problem.dtype) if problem.bias else None


def weights_of(problem: ConvProblem) -> ConvWeights:
    return ConvWeights(FakeStep(problem))  # type: ignore[arg-type]


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


def chooser(**options: object) -> Chooser:
    made = Chooser(CPU, TritonOptions(use_cache=False, **options), ChoiceStore(CPU, on_disk=False))
    made.start_clock()
    return made


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
    implementation, weights, operands = BY_NAME[name], weights_of(problem), make_operands(problem, CPU)
    expected = reference(problem, weights, operands)

    for variant in implementation.variants(problem, CPU)[-1:]:
        assert check_candidate(implementation, problem, variant, weights, operands, expected) is None
        torch.testing.assert_close(torch.cat(operands.destinations, 1)[1:].float(), expected[1:], rtol=5e-3, atol=5e-3)


def test_the_fastest_is_kept_and_remembered(clock, caplog):
    prices, timed = clock
    prices["aten::conv2d"] = 0.5
    chooses = chooser()
    with caplog.at_level("INFO", logger="fastcnn"):
        choice = chooses.choose(PROBLEM, weights_of(PROBLEM))

    assert "measuring the implementations of 1 convolutions, for at most 60 s" in caplog.text
    assert (choice.implementation, choice.milliseconds) == ("library", 0.5)
    assert "triton 2.00× its time" in choice.why
    count = len(timed)
    assert count > 3
    assert chooses.choose(PROBLEM, weights_of(PROBLEM)) == choice
    assert len(timed) == count


def test_each_implementation_is_timed_before_anyones_second_variant(clock):
    _, timed = clock
    chooser().choose(PROBLEM, weights_of(PROBLEM))

    assert ["aten" in what for what in timed[:2]].count(True) == 1


def test_every_problem_gets_its_best_guesses_before_one_gets_the_rest(clock, monkeypatch):
    _, timed = clock
    problems = [PROBLEM, dataclasses.replace(PROBLEM, batch=3), PROBLEM]
    chooses = chooser(implementations=("triton", "library"))
    monkeypatch.setattr(Chooser, "_has_time", lambda self: len(timed) < 4)
    choices = chooses.choose_all((problem, weights_of(problem)) for problem in problems)

    assert ["n3" in what for what in timed] == [False, False, True, True]
    assert ["aten" in what for what in timed] == [False, True, False, True]
    assert [choice.milliseconds for choice in choices] == [1.0, 1.0, 1.0]
    assert choices[0] == choices[2]


def test_when_time_is_over_the_prediction_stands(clock):
    _, timed = clock
    choice = chooser(tuning_seconds=0).choose(PROBLEM, weights_of(PROBLEM))

    assert (choice.implementation, choice.milliseconds, choice.why) == ("triton", None, "predicted, not measured")
    assert timed == []


def test_a_wrong_candidate_is_left_out_and_named(clock, monkeypatch, caplog):
    prices, _ = clock
    prices["aten::conv2d"] = 0.1
    run = LibraryConvolution.run
    monkeypatch.setattr(LibraryConvolution, "run", lambda self, *arguments: run(self, *arguments) * 1.01)

    assert chooser().choose(PROBLEM, weights_of(PROBLEM)).implementation == "triton"
    assert "aten::conv2d + relu on float32 n2 c6@8" in caplog.text
    assert "is left out: relative error 0.01" in caplog.text


def test_a_candidate_that_loses_nan_is_left_out(clock, monkeypatch, caplog):
    prices, _ = clock
    prices["aten::conv2d"] = 0.1
    caplog.set_level("INFO")
    run = LibraryConvolution.run
    monkeypatch.setattr(LibraryConvolution, "run", lambda self, *arguments: run(self, *arguments).nan_to_num())

    assert chooser().choose(PROBLEM, weights_of(PROBLEM)).implementation == "triton"
    assert "it loses NaN" in caplog.text


@pytest.mark.parametrize("name", ["triton", "library"])
def test_what_memory_held_before_does_not_show(name, monkeypatch):
    problem = dataclasses.replace(PROBLEM, concats=(0, 0))
    implementation, weights, operands = BY_NAME[name], weights_of(problem), make_operands(problem, CPU)
    run = type(implementation).run

    def adds_what_was_there(self, problem, variant, weights, operands):
        before = [destination.clone() for destination in operands.destinations]
        y = run(self, problem, variant, weights, operands)
        for destination, old in zip(operands.destinations, before, strict=True):
            destination += 0 * old
        return y + 0 * torch.cat(before, 1) if y is not None else None

    expected = reference(problem, weights, operands)
    variant = implementation.variants(problem, CPU)[-1]
    assert check_candidate(implementation, problem, variant, weights, operands, expected) is None
    monkeypatch.setattr(type(implementation), "run", adds_what_was_there)
    assert check_candidate(implementation, problem, variant, weights, operands, expected) == "relative error nan, more than 0.0001"


def test_a_candidate_that_does_not_run_is_passed_over(clock, monkeypatch):
    def fails(self, *arguments):
        raise RuntimeError("out of resource: shared memory")

    monkeypatch.setattr(TritonConvolution, "run", fails)

    assert chooser().choose(PROBLEM, weights_of(PROBLEM)).implementation == "library"


def test_no_implementation_left():
    grouped = dataclasses.replace(PROBLEM, groups=3)
    with pytest.raises(BackendError, match=r"no implementation for float32 n2 .* g3 .*triton: grouped convolution"):
        chooser(implementations=("triton",)).choose(grouped, weights_of(grouped))


def test_groups_are_kept_where_they_are_faster(clock):
    prices, _ = clock
    chooses = chooser()
    problems, weights = [PROBLEM, PROBLEM], [weights_of(PROBLEM), weights_of(PROBLEM)]
    prices["group"] = 1.5

    assert chooses.choose_group(problems, weights, alone=1.4) is None
    assert chooses.choose_group(problems, weights, alone=9.0) is None  # remembered
    better = chooser().choose_group(problems, weights, alone=3.0)
    assert better is not None
    assert better.why == "2.00× as fast as 2 launches"
    assert chooser(grouped="never").choose_group(problems, weights, alone=3.0) is None


def test_keys_tell_problems_apart():
    variants = [dataclasses.replace(PROBLEM, **{field.name: value}) for field, value in _other_values()]

    keys = {problem.key for problem in (PROBLEM, *variants)}
    assert len(keys) == len(variants) + 1
    assert PROBLEM.key == "float32 n2 c6@8 in7x5 k4@11+5@5 f3x1 s1x1 p1x0 d1x1 bias relu concats1+0"


def _other_values() -> list[tuple[dataclasses.Field, object]]:
    changed: list[tuple[dataclasses.Field, object]] = []
    for field in dataclasses.fields(ConvProblem):
        value = getattr(PROBLEM, field.name)
        if field.name in ("out_channels", "in_aligned"):  # said by the pieces; a matter of who can, not of which is fastest
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
    step = FakeStep(dataclasses.replace(PROBLEM, in_channels=channels, kernel=kernel))
    step.weight = weight
    packed = ConvWeights(step).packed  # type: ignore[arg-type]

    wanted = pack_weight(weight)
    torch.testing.assert_close(packed, wanted, rtol=0, atol=0)
    assert packed.stride() == wanted.stride()
    assert (packed.data_ptr() != weight.data_ptr()) == copied


def test_operands_lie_as_the_problem_says():
    operands = make_operands(PROBLEM, CPU)

    assert operands.x.shape == (2, 6, 7, 5)
    assert operands.x.stride(3) == 8
    assert [tuple(out.shape) for out in operands.destinations] == [(2, 4, 7, 5), (2, 5, 7, 5)]
    assert [out.stride(3) for out in operands.destinations] == [11, 5]


def test_a_convolution_module_agrees_on_the_size():
    conv = nn.Conv2d(6, 9, (3, 1), stride=(2, 3), padding=(1, 0), dilation=(2, 1))
    problem = dataclasses.replace(PROBLEM, stride=(2, 3), dilation=(2, 1))

    assert problem.out_size == tuple(conv(torch.zeros(1, 6, 7, 5)).shape[2:])
    assert problem.flops == 2 * 2 * 9 * 6 * 3 * problem.out_size[0] * problem.out_size[1]
    assert tuning.device_milliseconds is not None
