"""What an optimized module costs around its engine: one picture through a small network, where it shows.

    python -m fastcnn.bench.studies.call_overhead [MODEL ...] [--rounds N] [--json FILE]

Three ways to the same answer take turns, on one thread: ONNX Runtime's `session.run` from array to array; the same as a user of tensors writes it,
with `Tensor.numpy` before and `torch.from_numpy` behind; and the module. The times hold what each costs between two runs of the network, when the
caches are cold: a loop over the Python code alone makes it look several times cheaper.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

import fastcnn
from fastcnn.bench.records.environment import environment
from fastcnn.export.onnx_lowering import lower_to_onnx
from fastcnn.models import model_spec
from fastcnn.runtimes.onnxruntime import open_session

_CALLS = 20


def measure(model: str, rounds: int) -> dict[str, list[float]]:
    """Microseconds per call of each way, a median of `_CALLS` calls for each round, batch 1."""
    reference = fastcnn.create_model(model).eval()
    x = torch.rand(1, *model_spec(model).input_size)
    module = fastcnn.optimize(reference, x, backend="onnxruntime")
    session = open_session(lower_to_onnx(module.source.graph).SerializeToString(), threads=torch.get_num_threads())
    name, array = session.get_inputs()[0].name, x.numpy()

    ways: dict[str, Callable[[], object]] = {
        "session": lambda: session.run(None, {name: array}),
        "session_on_tensors": lambda: torch.from_numpy(session.run(None, {name: x.numpy()})[0]),
        "module": lambda: module(x),
    }
    times: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(rounds):
        for way, call in ways.items():
            of_calls = []
            for _ in range(_CALLS):
                start = time.perf_counter()
                call()
                of_calls.append(time.perf_counter() - start)
            times[way].append(statistics.median(of_calls) * 1e6)
    return times


def describe(model: str, times: dict[str, list[float]]) -> str:
    """One line: the medians, and by how much the module is above the others in the median of the rounds, with its quartiles."""
    parts = [f"{way} {statistics.median(of_way):.1f} µs" for way, of_way in times.items()]
    above = []
    for way in [way for way in times if way != "module"]:
        low, middle, high = statistics.quantiles([ours - its for ours, its in zip(times["module"], times[way], strict=True)])
        above.append(f"{way} {middle:.1f} ({low:.1f} to {high:.1f}) µs")
    return f"{model}: {', '.join(parts)}; module above {', '.join(above)}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures and prints; see the module."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", default=["simple_cnn"])
    parser.add_argument("--rounds", type=int, default=300)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    measured = {model: measure(model, options.rounds) for model in options.models}
    for model, times in measured.items():
        print(describe(model, times))
    if options.json:
        options.json.write_text(json.dumps({"environment": environment(), "microseconds": measured}), encoding="utf-8")


if __name__ == "__main__":
    main()
