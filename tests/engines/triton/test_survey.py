"""The door for those who study the engine from outside; `fastcnn bench layers` stands behind it
(tests/bench/test_layers.py)."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from graph_support import images, net
from torch import nn

from fastcnn.engines.triton import survey as module
from fastcnn.engines.triton.choices import parse_choices
from fastcnn.engines.triton.implementations.library import LibraryConvolution
from fastcnn.engines.triton.survey import Survey, VariantTiming, fastest, to_choices
from fastcnn.errors import UnknownNameError
from fastcnn.graph.capture import capture

from .problems import CPU


def make_survey(names: tuple[str, ...] = ("library",)) -> Survey:
    """Of four convolutions; the second and the third are the same problem, the last one has no ReLU."""
    convolutions = {name: nn.Conv2d(4 if name == "a" else 6, 6, 3, padding=1) for name in "abcd"}
    model = net(lambda s, x: s.d(F.relu(s.c(F.relu(s.b(F.relu(s.a(x))))))), **convolutions)
    survey = Survey(CPU, names)
    survey.add(capture(model, images(2, 4, 8, 8)), 2, torch.float32)
    return survey


def test_equal_problems_are_timed_once():
    survey = make_survey()

    assert [surveyed.names for surveyed in survey.problems] == [["a"], ["b", "c"], ["d"]]
    assert {surveyed.problem.batch for surveyed in survey.problems} == {2}


def test_what_does_not_run_has_its_reason(monkeypatch):
    monkeypatch.setattr(module, "device_milliseconds", lambda run, device: 2.0)
    survey = make_survey(("library", "triton_stem"))
    library, stem = survey.time(survey.problems[1])
    assert (library.implementation, library.milliseconds, library.reason) == ("library", 2.0, None)
    assert (stem.milliseconds, stem.reason) == (None, "more than 4 input channels, or groups")

    def fails(self, *arguments):
        raise RuntimeError("out of resource: shared memory\nand more")

    monkeypatch.setattr(LibraryConvolution, "run", fails)
    assert survey.time(survey.problems[1])[0].reason == "RuntimeError: out of resource: shared memory"


def test_the_fastest_becomes_the_choice():
    timings = [
        VariantTiming("triton", (1,), "", 1.0),
        VariantTiming("library", (0,), "", 3.0),
        VariantTiming("triton", (2,), "", None, "it loses NaN"),
    ]
    choices = parse_choices(to_choices({"a": timings, "b": timings[2:]}, CPU))

    assert fastest(timings, "library") is timings[1]
    assert fastest(timings[2:]) is None
    assert choices.keys() == {"a"}
    assert (choices["a"].implementation, choices["a"].why) == ("triton", "fastest of 2; library 3.00× its time")


def test_an_unknown_implementation():
    with pytest.raises(UnknownNameError, match="unknown convolution implementation"):
        Survey(CPU, ("tritn",))
