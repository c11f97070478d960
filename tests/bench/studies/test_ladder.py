from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

import pytest
import torch
from support import randomize_batch_norm
from torch import Tensor, nn

from fastcnn.bench.measuring.measure import Settings, measure_group
from fastcnn.bench.peers.subject import Subject
from fastcnn.bench.records.result import GroupResult, RowResult, Status
from fastcnn.bench.studies import ladder as ladder_module
from fastcnn.bench.studies.ladder import RUNGS, TritonRung, ladder_of, rungs_of


class Branches(nn.Module):
    """[N, 3, 8, 8] → [N, 5]: BatchNorm, sibling 1×1 convolutions and a pool before a projection, one thing for each rung."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, bias=False), nn.BatchNorm2d(16), nn.ReLU())
        self.left, self.right, self.pooled = (nn.Sequential(nn.Conv2d(16, 4, 1, bias=False), nn.BatchNorm2d(4), nn.ReLU()) for _ in range(3))
        self.head = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        pooled = self.pooled(nn.functional.avg_pool2d(x, 3, stride=1, padding=1))
        return self.head(torch.cat([self.left(x), self.right(x), pooled], 1).mean((2, 3)))


@pytest.fixture
def branches() -> Subject:
    torch.manual_seed(0)
    return Subject(randomize_batch_norm(Branches()).eval())


def test_every_rung_computes_the_model_and_says_what_it_did(branches: Subject, settings: Settings) -> None:
    rungs = rungs_of("cpu")
    with branches:
        group = measure_group("branches", branches, rungs, (2, 3, 8, 8), replace(settings, rounds=1, timed_runs=2, settle_seconds=0.0))
    ladder = ladder_of(group, rungs)
    names = [rung.name for rung in RUNGS["cpu"]]
    assert [rung.technique for rung in ladder] == names
    assert [(rung.status, rung.reason) for rung in ladder] == [(Status.TIMED, None)] * len(ladder)
    assert [rung.ratio.baseline if rung.ratio else None for rung in ladder] == [None, *names[:-1]]
    proof = {rung.technique: rung.proof for rung in ladder}
    assert "fold_batch_norm 4×" in proof["folded"]["passes"]
    assert int(proof["fused_epilogue"]["fused steps"]) > 0
    assert "move_pool_behind_projection" not in proof["fused_epilogue"]["passes"]
    assert "move_pool_behind_projection 1×" in proof["pools_moved"]["passes"]
    assert "merge_sibling_projections" not in proof["pools_moved"]["passes"]
    assert "merge_sibling_projections 1×" in proof["siblings_merged"]["passes"]


def test_each_rung_is_compared_with_the_timed_one_before_it() -> None:
    rungs = rungs_of("cpu")[:4]
    times = (8e-3, None, 4e-3, 1e-3)
    rows = [
        RowResult(rung.name, rung.ours, Status.FAILED, "broken")
        if seconds is None
        else RowResult(rung.name, False, Status.TIMED, rounds=[[seconds]] * 6)
        for rung, seconds in zip(rungs, times, strict=True)
    ]
    group = GroupResult("tiny", 1, (1, 3, 8, 8), "float32", "cpu", 1e-5, rows[::-1])
    ladder = ladder_of(group, rungs)
    assert [rung.technique for rung in ladder] == ["eager", "channels_last", "folded", "fused_epilogue"]
    assert [(rung.ratio.baseline, rung.ratio.value) if rung.ratio else None for rung in ladder] == [None, None, ("eager", 2.0), ("folded", 4.0)]
    assert (ladder[1].status, ladder[1].reason, ladder[1].summary()) == (Status.FAILED, "broken", None)
    plain = ladder[3].to_dict()
    assert plain["seconds"]["p50"] == 1e-3
    assert ladder[1].to_dict()["seconds"] is None


def test_model_without_a_fusable_step_fails_the_engine_rungs(settings: Settings, clock: Any, fake_peer: Callable[..., Any]) -> None:
    subject = Subject(nn.Sequential(nn.Flatten(), nn.Linear(12, 3)).eval())
    rungs = rungs_of("cpu")
    group = measure_group("linear", subject, rungs, (1, 3, 2, 2), replace(settings, rounds=1))
    failed = {rung.technique: rung.reason for rung in ladder_of(group, rungs) if rung.status is Status.FAILED}
    assert list(failed) == ["fused_epilogue", "pools_moved", "siblings_merged"]
    assert all(reason is not None and "fused no step" in reason for reason in failed.values())


def test_rungs_of_a_gpu_add_one_technique_each() -> None:
    options = [asdict(rung.options) for rung in RUNGS["cuda"] if issubclass(rung, TritonRung)]
    changed = [{name for name in after if before[name] != after[name]} for before, after in itertools.pairwise(options)]

    assert changed[:-1] == [{"concat_in_place", "implementations"}, {"move_pools"}, {"merge_siblings"}, {"grouped"}, {"cuda_graph"}, {"concurrent"}]
    assert changed[-1] == {"grouped", "tuning_seconds", "use_cache"}
    names = [rung.name for rung in RUNGS["cuda"]]
    assert len(set(names)) == len(names)


def test_rungs_of_a_gpu_say_that_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ladder_module, "available_backends", lambda: {"triton": "there is no CUDA device"})

    assert {rung.available("cuda") for rung in rungs_of("cuda") if isinstance(rung, TritonRung)} == {"there is no CUDA device"}
