"""What is settled before a network runs at one batch size."""

from __future__ import annotations

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from graph_support import net
from torch import Tensor, nn

from fastcnn.engines.triton.choices import Choice, ChoiceStore
from fastcnn.engines.triton.implementations.table import BY_NAME
from fastcnn.engines.triton.options import TritonOptions
from fastcnn.engines.triton.schedule import Schedule, convolution_problems, make_schedule
from fastcnn.engines.triton.steps import ConcatStep, Network
from fastcnn.engines.triton.tuning import Chooser

from .networks import block_parts, inception_block, network_of
from .problems import CPU


def schedule_of(network: Network, *, dtype: torch.dtype = torch.float32, known: dict[str, Choice] | None = None, **options: object) -> Schedule:
    """With predicted choices, but for those that are `known` by the key of their problem."""
    store = ChoiceStore(CPU, on_disk=False)
    for key, choice in (known or {}).items():
        store.put(key, choice)
    return make_schedule(network, 2, dtype, False, Chooser(CPU, TritonOptions(use_cache=False, tuning_seconds=0, **options), store))


@pytest.fixture
def block() -> Network:
    return network_of(net(inception_block, **block_parts()))


def test_nothing_changes_a_schedule(block):
    with pytest.raises(dataclasses.FrozenInstanceError):
        schedule_of(block).batch = 3  # type: ignore[misc]


def test_a_step_comes_after_those_it_reads_from(block):
    schedule = schedule_of(block, implementations=("library",))

    for step, level in schedule.levels.items():
        assert all(schedule.levels[source] < level for source in block.sources(step))


def test_a_concat_that_is_written_in_place_takes_no_level(block):
    (concat,) = (step for step in block.steps if isinstance(step, ConcatStep))
    in_place, copied = schedule_of(block, implementations=("triton",)), schedule_of(block, implementations=("library",))

    assert in_place.levels[concat] == max(in_place.levels[source] for source in block.sources(concat))
    assert copied.levels[concat] == 1 + max(copied.levels[source] for source in block.sources(concat))


def test_problems_are_those_of_the_place_in_a_concat(block):
    is_for_stems, problems = convolution_problems(block, 2, torch.float16, True, TritonOptions(), CPU)
    siblings, last, _ = problems.values()

    assert not is_for_stems  # the pools read the input too
    assert (siblings.pieces, siblings.out_pitches, siblings.concats) == ((3, 2), (14, 2), (1, 0))
    assert (last.in_channels, last.out_pitches, last.bare) == (2, (14,), True)
    assert not last.tf32  # there is none for float16
    assert convolution_problems(block, 2, torch.float32, True, TritonOptions(), CPU)[1][block.convolutions[0]].tf32


def test_an_input_of_few_channels_is_read_as_it_comes():
    network = network_of(net(lambda s, x: F.relu(s.a(x)), a=nn.Conv2d(3, 4, 3)), channels=3)

    assert schedule_of(network).input_as_it_is
    assert not schedule_of(network, implementations=("library",)).input_as_it_is


def test_a_library_leaves_its_epilogue_to_the_copy_unless_a_group_computes_it(block):
    alone = schedule_of(block, implementations=("library",))
    grouped = schedule_of(
        network_of(net(two_branches, a=nn.Conv2d(4, 3, 3, padding=1), b=nn.Conv2d(4, 5, 3, padding=1))),
        implementations=("library", "triton"),
        grouped="always",
    )

    assert [alone.leaves_epilogue(step) for step in block.convolutions] == [False, True, False]
    assert not alone.leaves_epilogue(None)
    (group,) = grouped.groups
    assert len(group.steps) == 2
    assert {grouped.choices[step].implementation for step in group.steps} == {"library"}
    assert not any(grouped.leaves_epilogue(step) for step in group.steps)
    assert set(grouped.placement.late.values()) == {()}


def two_branches(s, x: Tensor) -> Tensor:
    return torch.cat([F.relu(s.a(x)), F.relu(s.b(x))], 1)


def test_what_does_not_fit_into_one_grouped_launch_becomes_two():
    count = 18
    parts = {f"c{index}": nn.Conv2d(4, 2, 3, padding=1) for index in range(count)}
    network = network_of(net(lambda s, x: torch.cat([F.relu(getattr(s, name)(x)) for name in parts], 1), **parts))
    groups = schedule_of(network, grouped="always", implementations=("triton",)).groups

    assert len(groups) > 1
    assert sum(len(group.steps) for group in groups) == count


def test_the_problem_as_it_lies_has_the_pitch_of_what_was_chosen():
    def forward(s, x: Tensor) -> Tensor:
        a, b = F.relu(s.a(x)), F.relu(s.b(x))
        return s.c(torch.cat([a, b], 1)) + s.d(a)

    parts = {"a": nn.Conv2d(4, 3, 3, padding=1), "b": nn.Conv2d(4, 5, 3, padding=1), "c": nn.Conv2d(8, 6, 1), "d": nn.Conv2d(3, 6, 1)}
    network = network_of(net(forward, **parts))
    in_place, brought = schedule_of(network, implementations=("triton",)), schedule_of(network, implementations=("library",))
    reader = next(step for step in network.convolutions if step.weight.shape[1] == 3)

    assert in_place.problems[reader].in_pitch == brought.problems[reader].in_pitch == 8  # a slice of the concat
    assert in_place.as_it_lies(reader).in_pitch == 8
    assert brought.as_it_lies(reader).in_pitch == 3


def unaligned_readers(s, x: Tensor) -> tuple[Tensor, ...]:
    """12 + 4 channels are aligned in their concat, 12 channels of a library's are not; so again behind the convolution
    that reads them."""
    p = F.relu(s.p(x))
    a, b = F.relu(s.a(p)), F.relu(s.b(p))
    c, d = F.relu(s.c(a)), F.relu(s.d(s.q(a)))
    return torch.cat([a, b], 1), torch.cat([c, d], 1), s.e(c)


def unaligned_network() -> Network:
    parts = {
        "p": nn.Conv2d(3, 16, 3, padding=1),
        "a": nn.Conv2d(16, 12, 3, stride=2, padding=1),
        "b": nn.Conv2d(16, 4, 3, stride=2, padding=1),
        "c": nn.Conv2d(12, 12, 3, padding=1),
        "q": nn.Conv2d(12, 8, 1),
        "d": nn.Conv2d(8, 4, 3, padding=1),
        "e": nn.Conv2d(12, 5, 1),
    }
    return network_of(net(unaligned_readers, **parts), channels=3, dtype=torch.float16)


@pytest.mark.parametrize("grouped", ["never", "always"])
@pytest.mark.parametrize("implementations", [("triton_tma", "library"), ("triton_tma", "triton", "library")], ids=str)
def test_memory_is_laid_out_for_what_was_chosen_last(implementations, grouped):
    network = unaligned_network()
    schedule = schedule_of(network, dtype=torch.float16, implementations=implementations, grouped=grouped)
    in_groups = {step for group in schedule.groups for step in group.steps}

    for step in network.convolutions:
        name = schedule.choices[step].implementation
        place = schedule.placement.places[step.pieces[0].node]
        assert place.buffer.external == (not BY_NAME[name].in_place and step not in in_groups), step.path
        assert step in in_groups or BY_NAME[name].why_not(schedule.problems[step], CPU) is None
        if name == "triton_tma" and step not in in_groups:
            source = schedule.placement.places[step.convolution.input]
            assert source.first % 8 == source.buffer.channels % 8 == 0, step.path
    if implementations == ("triton_tma", "library"):
        # e is aligned in the concat of c, which became the library's since a had been from the start.
        assert [schedule.choices[step].implementation for step in network.convolutions if step.path in "ace"] == ["library"] * 3
    for step in network.steps:
        if not isinstance(step, ConcatStep):
            assert all(schedule.levels[source] < schedule.levels[step] for source in network.sources(step))


def test_an_unaligned_input_has_a_choice_of_its_own():
    network = unaligned_network()
    _, problems = convolution_problems(network, 2, torch.float16, False, TritonOptions(), CPU)
    step = next(step for step in network.convolutions if step.path == "c")
    # One that is offered today: a stored variant that is not is measured again.
    variant = BY_NAME["triton_tma"].variants(problems[step], CPU)[0]
    known = {problems[step].key: Choice("triton_tma", variant, 0.5, "aligned")}
    schedule = schedule_of(network, dtype=torch.float16, implementations=("library", "triton_tma"), known=known)

    assert schedule.problems[step].key == f"{problems[step].key} unaligned"
    assert schedule.choices[step].implementation == "library"
