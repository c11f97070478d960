"""What a launch has to do, and the share of its time that the ceilings allow."""

from __future__ import annotations

import pytest
import torch
from graph_support import images

import fastcnn
from fastcnn.engines.triton import ceilings
from fastcnn.engines.triton.ceilings import GpuCeilings, work_of
from fastcnn.engines.triton.engine import TritonEngine
from fastcnn.engines.triton.executor import Executor
from fastcnn.engines.triton.options import TritonOptions
from fastcnn.optimization import Builder


def test_the_slower_of_the_two_bounds():
    reached = GpuCeilings(bytes_per_second=1e9, flops_per_second=1e12)

    assert reached.milliseconds(2e9, 1e6) == pytest.approx(2.0)
    assert reached.milliseconds(1e6, 3e6) == pytest.approx(3.0)


def test_the_plan_holds_times_and_shares(monkeypatch):
    model = fastcnn.create_model("simple_cnn")
    options = TritonOptions(use_cache=False, implementations=("library",))
    fast = Builder(model, images(2, 1, 28, 28), check=False).build(TritonEngine(options))
    executor = fast.lowered.run.__self__
    program = executor.program(2)
    work = [step for launch in program.launches for step in work_of(launch, 2, 4)]

    # 10 outputs of 24×24 from 25 products each; pools read four values for each that they write.
    assert work[0][0] == 2 * 2 * 10 * 24 * 24 * 25
    assert work[1] == (0, 2 * 4 * 10 * (24 * 24 + 12 * 12))

    monkeypatch.setattr(Executor, "time_launches", lambda self, batch: [2.0] * len(program.launches))
    monkeypatch.setattr(ceilings, "measure_gpu_ceilings", lambda *arguments: GpuCeilings(1e6, 1e9))
    monkeypatch.setattr(executor, "device", torch.device("cuda"))
    rows = fast.plan.rows
    assert rows[0].milliseconds == 2.0
    assert [(row.flops, row.bytes) for row in rows] == work
    assert rows[0].roofline_share == pytest.approx(1e3 * max(work[0][0] / 1e9, work[0][1] / 1e6) / 2.0)
    assert "of roofline" in str(fast.plan)
