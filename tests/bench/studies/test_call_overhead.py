"""The study of what a call costs around the engine."""

from __future__ import annotations

import json

import pytest
import torch

from fastcnn.bench.studies import call_overhead


@pytest.fixture(autouse=True)
def threads_as_before():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def test_it_measures_says_and_keeps(tmp_path, capsys):
    kept = tmp_path / "overhead.json"
    call_overhead.main(["simple_cnn", "--rounds", "3", "--json", str(kept)])

    line = capsys.readouterr().out
    times = json.loads(kept.read_text())["microseconds"]["simple_cnn"]
    assert line.startswith("simple_cnn: session ")
    assert line.count("µs") == 5
    assert {way: len(of_way) for way, of_way in times.items()} == {"session": 3, "session_on_tensors": 3, "module": 3}
    assert all(time > 0 for of_way in times.values() for time in of_way)


def test_differences_are_of_the_rounds():
    line = call_overhead.describe("net", {"session": [10.0, 20.0, 30.0], "module": [15.0, 26.0, 37.0]})

    assert line == "net: session 20.0 µs, module 26.0 µs; module above session 6.0 (5.0 to 7.0) µs"
