"""What tables hold besides the rows: the GPU, ceilings, roofline, ladder, cold start."""

from __future__ import annotations

import io
import json

import pytest
from rich.console import Console

from fastcnn.bench.records.result import (
    BenchmarkReport,
    GroupResult,
    LadderRung,
    MachineCeilings,
    RooflineStep,
    RooflineTotal,
    RowResult,
    Status,
    WarmUp,
)
from fastcnn.bench.records.statistics import speed_ratio
from fastcnn.bench.views.tables import print_report, to_json


@pytest.fixture
def report() -> BenchmarkReport:
    rows = [
        RowResult("peer", False, Status.TIMED, None, 1.5, {}, 1e-6, WarmUp(6, 0.1, 0.02, True), [[0.020]] * 6),
        RowResult("ours", True, Status.TIMED, None, 9.5, {}, 2e-6, WarmUp(6, 0.1, 0.01, True), [[0.010]] * 6),
    ]
    rows[1].cold_start_phases, rows[1].peak_memory_bytes = {"import": 2.0, "build": 1.0, "first_answer": 0.5}, 3 * 2**20
    group = GroupResult("tiny", 4, (4, 3, 8, 8), "float32", "cpu", 1e-5, rows)
    group.requested_batch_size, group.lowered_because = 8, "peer: out of memory, at batch 8"
    group.finish("best-peer")
    group.roofline = [
        RooflineStep(0, "stem", "conv2d", "oneDNN convolution", 2_000_000, 1000, 4e-5, 2e-5, "compute", 0.5),
        RooflineStep(1, "flatten", "flatten", "aten::flatten", 0, 0, 1e-6, 0.0, "memory", None),
    ]
    group.roofline_total = RooflineTotal("torch", 2, 2_000_000, 1000, 2e-3, 1e-2, 0.2)
    group.ladder = [
        LadderRung("eager", "plain", Status.TIMED, rounds=[[0.02]] * 6, relative_error=1e-7),
        LadderRung("fast", "quick", Status.FAILED, "broke"),
        LadderRung("last", "quicker", Status.TIMED, rounds=[[0.01]] * 6, ratio=speed_ratio([[0.01]] * 6, [[0.02]] * 6, "eager")),
    ]
    gpu = {"name": "NVIDIA H100", "cuda": "13.2", "cudnn": 91900, "driver": "570.1", "power_limit_watts": 700.0}
    place = {"cpu": {"model": "Abacus", "cores": 2}, "versions": {"torch": "2.11"}, "platform": "Linux", "load_average": 0.1, "gpu": gpu}
    return BenchmarkReport(place, {"threads": 2}, [group], MachineCeilings(2e10, 1e11, "float32", "medians"))


def test_tables_show_what_was_measured_besides(report: BenchmarkReport) -> None:
    screen = Console(file=io.StringIO(), width=160)
    print_report(report, screen)
    text = screen.file.getvalue().replace("\N{NARROW NO-BREAK SPACE}", " ")  # type: ignore[attr-defined]

    def line(start: str) -> str:
        (found,) = [line for line in text.splitlines() if line.startswith(start)]
        return found

    assert "NVIDIA H100, CUDA 13.2, cuDNN 91900, driver 570.1, 700 W" in text
    assert "ceilings: copies 20.0 GB/s, matrix products 100 GFLOP/s (medians)" in text
    assert "batch 4 instead of 8, for want of memory: peer: out of memory, at batch 8" in text
    assert line("ours").split()[-4:] == ["3.5", "s", "3.00", "MiB"]
    assert "compute" in line("stem")
    assert "50 %" in line("stem")
    assert not [line for line in text.splitlines() if line.startswith("flatten")]
    assert "share reached: ours 20 %, peer 10 %" in text
    assert "2.00×" in line("quicker")
    assert "broke" in line("quick ")


def test_json_holds_what_was_measured_besides(report: BenchmarkReport) -> None:
    data = json.loads(to_json(report))
    assert data["ceilings"] == {"copy_bytes_per_second": 2e10, "gemm_flops_per_second": 1e11, "dtype": "float32", "how": "medians"}
    (group,) = data["groups"]
    assert (group["batch_size"], group["requested_batch_size"]) == (4, 8)
    assert [step["share"] for step in group["roofline"]] == [0.5, None]
    assert group["roofline_total"]["bound_seconds"] == 2e-3
    assert [rung["seconds"]["p50"] if rung["seconds"] else None for rung in group["ladder"]] == [0.02, None, 0.01]
    assert group["ladder"][2]["ratio"]["baseline"] == "eager"
    ours, peer = group["rows"]
    assert (ours["cold_start_seconds"], ours["peak_memory_bytes"], ours["allocator_peak_bytes"]) == (3.5, 3 * 2**20, None)
    assert (peer["cold_start_seconds"], peer["cold_start_phases"], peer["end_to_end_seconds"]) == (None, None, None)
