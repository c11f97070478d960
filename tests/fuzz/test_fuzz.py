"""Random networks through every engine, and the fuzzer itself. `make fuzz` tries thousands."""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from multiprocessing.connection import Connection

import pytest
import torch
from fuzz import sweep as sweeping
from fuzz.__main__ import table
from fuzz.generator import network
from fuzz.network import NoNetworkError, Recipe, Step, assemble, pictures
from fuzz.registry import OPERATIONS
from fuzz.shrink import shrink
from fuzz.sweep import Result, groups_of, sweep
from fuzz.verdict import Verdict, judge, operation_named

from fastcnn.errors import ParityError, RequestError

# A capture costs a quarter of a second, a lowering to ONNX a whole one: the runtimes get fewer, and files the fewest.
SEEDS = {("torch",): range(60), ("onnxruntime", "openvino"): range(100, 120), ("onnx",): range(130, 135)}


@pytest.mark.slow
@pytest.mark.parametrize("engines", SEEDS, ids=",".join)
def test_random_networks_are_right_or_refused_by_name(engines: tuple[str, ...]) -> None:
    for engine in engines:
        pytest.importorskip({"onnx": "onnxruntime"}.get(engine, engine))
    results = list(sweep(SEEDS[engines], engines))
    bad = [f"seed {result.seed}: {verdict}\n{result.smallest}" for result in results for verdict in result.verdicts if not verdict.good]
    assert not bad, "\n".join(bad)
    assert len(results) == len(SEEDS[engines])
    refused = sum(verdict.kind != "right" for result in results for verdict in result.verdicts)
    assert refused <= 0.03 * len(results) * len(engines), table(results, engines)


def test_a_seed_is_one_network() -> None:
    first, again = network(7), network(7)
    assert first.source == again.source
    assert torch.equal(first(pictures(first.recipe.shape, 2)), again(pictures(first.recipe.shape, 2)))
    assert first.source != network(8).source


def test_every_operation_is_drawn() -> None:
    """And a network may have several outputs, a module that is called twice, and branches."""
    made = [network(seed) for seed in range(150)]
    sources = [one.source for one in made]
    assert len(OPERATIONS) > 50
    for called in (
        "ConvTranspose2d",
        "adaptive_max_pool2d",
        "interpolate",
        "circular",
        "chunk",
        "relu_",
        "divisor_override",
        "InstanceNorm2d",
        "torch.cat",
    ):
        assert any(called in source for source in sources), called
    assert any(source.splitlines()[-1].count(",") for source in sources)
    assert any(step.shares is not None for one in made for step in one.recipe.steps)


def chain(*codes: str) -> Recipe:
    return Recipe(tuple(Step(number, code, (number - 1,)) for number, code in enumerate(codes, 1)), (len(codes),), (3, 6, 6))


def test_a_network_reads_as_python() -> None:
    recipe = chain("F.relu({0})", "{m}({0})")
    recipe = replace(
        recipe, steps=(recipe.steps[0], replace(recipe.steps[1], module="nn.Conv2d({c}, 2, {options})", options=(("kernel_size", "3"),)))
    )
    made = assemble(recipe)
    scope = {"torch": torch, "nn": torch.nn, "F": torch.nn.functional}
    exec(made.source, scope)
    other = scope["Net"]()
    other.load_state_dict(made.state_dict())
    x = pictures((3, 6, 6), 2)
    assert torch.equal(other(x), made(x))
    assert "v2 = self.m2(v1)" in made.source


def test_a_failure_shrinks_to_its_cause() -> None:
    recipe = chain("F.relu({0})", "F.avg_pool2d({0}, 2, {options})", "torch.tanh({0})", "{0} * 2")
    recipe = replace(
        recipe,
        steps=tuple(replace(step, options=(("stride", "1"), ("divisor_override", "3"))) if step.number == 2 else step for step in recipe.steps),
    )
    smallest = shrink(recipe, lambda made: "divisor_override" in made.source, 100)
    assert len(smallest.steps) == 1
    assert assemble(smallest).source.splitlines()[-2:] == ["        v2 = F.avg_pool2d(v0, 2, divisor_override=3)", "        return v2"]
    assert max(smallest.shape) == 2


def test_steps_that_fit_nowhere_make_no_network() -> None:
    with pytest.raises(NoNetworkError):
        assemble(chain("F.max_pool2d({0}, 9)"))
    with pytest.raises(NoNetworkError):
        assemble(chain("{0} / 0"))


def test_verdicts(monkeypatch: pytest.MonkeyPatch) -> None:
    made = assemble(chain("F.relu({0})"))

    def verdict_on(answer: object) -> Verdict:
        def build(self: object, engine: object, locate: bool) -> object:
            if isinstance(answer, Exception):
                raise answer
            return answer

        monkeypatch.setattr("fuzz.verdict.Builder.build", build)
        (verdict,) = judge(made, ("torch",))
        return verdict

    assert verdict_on(made).kind == "right"
    assert verdict_on(lambda x: made(x) + 1e-3).kind == "wrong"
    assert verdict_on(lambda x: made(x)[:1]).kind == "wrong"
    assert verdict_on(RequestError("operation aten.relu.default is not known")).kind == "refused"
    assert verdict_on(RequestError("something went wrong")).kind == "unnamed"
    assert verdict_on(ParityError("backend 'torch', from aten.relu (stem) on, does not compute what its reference computes")).kind == "differs"
    assert verdict_on(ParityError("backend 'torch' does not compute what its reference computes")).kind == "unnamed"
    assert verdict_on(KeyError("relu")).kind == "traceback"


def test_what_names_an_operation() -> None:
    made = assemble(chain("F.avg_pool2d({0}, 2)"))
    assert operation_named("ONNX has no standard operators for aten.avg_pool2d.default", made) == "avg_pool2d"
    assert operation_named("operation AveragePool (pool): too large", made) == "AveragePool"
    assert operation_named("the network has 3 outputs", made) is None


def _dies_at_the_second(outgoing: Connection, groups: list[list[int]], *rest: object) -> None:
    for group in groups:
        outgoing.send("onnxruntime")
        if 2 in group:
            os.kill(os.getpid(), signal.SIGKILL)
        for seed in group:
            outgoing.send(Result(seed, (Verdict("onnxruntime", "right"),)))
        outgoing.send(None)


def test_a_dead_process_costs_one_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweeping, "_work", _dies_at_the_second)
    kinds = {result.seed: result.verdicts[0].kind for result in sweep([1, 2, 3], ("onnxruntime",), attempts=0)}
    assert kinds == {1: "right", 2: "crash", 3: "right"}


def test_groups_share_the_shape_of_their_pictures() -> None:
    assert groups_of(range(5, 25)) == [[5, 6, 7, 8, 9], list(range(10, 20)), [20, 21, 22, 23, 24]]
    for group in groups_of(range(40)):
        assert len({network(seed).recipe.shape for seed in group}) == 1


def test_the_table() -> None:
    results = [
        Result(0, (Verdict("torch", "right"), Verdict("onnx", "refused", "…", "onnx: refused grid_sampler"))),
        Result(1, (Verdict("torch", "right"), Verdict("onnx", "crash"))),
    ]
    lines = [line.split() for line in table(results, ("torch", "onnx")).splitlines() if line]
    assert lines[0] == ["engine", "right", "refused", "differs", "unnamed", "wrong", "traceback", "crash"]
    assert lines[1:3] == [["torch", "2", "0", "0", "0", "0", "0", "0"], ["onnx", "0", "1", "0", "0", "0", "0", "1"]]
    assert lines[3] == ["1", "onnx:", "refused", "grid_sampler"]
