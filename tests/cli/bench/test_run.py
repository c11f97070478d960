"""`fastcnn bench` from the command line, on a model that takes a fraction of a millisecond."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner, Result

from fastcnn.bench.peers.base import Peer, Prepared
from fastcnn.bench.peers.subject import Subject
from fastcnn.bench.peers.table import PEERS
from fastcnn.bench.peers.torch import Eager, EagerChannelsLast
from fastcnn.engines import available_backends

Command = Callable[..., Result]
INT8_ROWS = {"fastcnn_int8_onnxruntime": "onnxruntime", "fastcnn_int8_openvino": "openvino"}


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    """`bench("--rounds", "1")` times `simple_cnn` in an empty folder."""
    from fastcnn.cli.app import app

    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FASTCNN_DEBUG", raising=False)
    return lambda *args: CliRunner().invoke(app, ["bench", *args], prog_name="fastcnn")


def _row(name: str, runner: Callable[[Subject], Callable[[Tensor], Tensor]], ours: bool = False) -> type[Peer]:
    def prepare(self: Peer, subject: Subject, example: Tensor, threads: int) -> Prepared:
        return Prepared(runner(subject), {})

    return type("Row", (Peer,), {"name": name, "ours": ours, "prepare": prepare})


def test_table_and_json_tell_the_same(bench: Command, tmp_path: Path) -> None:
    result = bench("simple_cnn", "--batch-size", "1,3", "--peers", "eager*", "--rounds", "5", "--threads", "1", "--seed", "7", "--json", "r.json")
    assert result.exit_code == 0, result.output
    data = json.loads((tmp_path / "r.json").read_text())
    assert [(group["model"], group["batch_size"], group["scenario"]) for group in data["groups"]] == [
        ("simple_cnn", 1, "single-stream"),
        ("simple_cnn", 3, "offline"),
    ]
    assert data["settings"]["threads"] == 1
    assert data["settings"]["seed"] == 7
    for group in data["groups"]:
        assert {row["name"] for row in group["rows"]} == {"eager", "eager_channels_last"}
        for row in group["rows"]:
            assert row["status"] == "timed"
            assert [len(visit) for visit in row["rounds"]] == [5] * 5
            assert row["ratio"]["low"] <= row["ratio"]["value"] <= row["ratio"]["high"]
            assert row["relative_error"] <= 1e-5
        assert f"simple_cnn · {group['batch_size']}×1×28×28 float32" in result.stdout
    assert "everything measured is in r.json" in result.stderr
    assert "measuring simple_cnn, batch 1" in result.stderr


def test_json_on_stdout_is_nothing_but_json(bench: Command) -> None:
    result = bench("simple_cnn", "--batch-size", "1", "--peers", "eager", "--rounds", "1", "--json", "-")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["groups"][0]["rows"][0]["name"] == "eager"


def test_default_model_and_batch_sizes() -> None:
    from fastcnn.cli.app import app

    text = CliRunner().invoke(app, ["bench", "--help"]).output
    assert "inception_v3" in text
    assert "1,8" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["simple_cn"], "did you mean simple_cnn"),
        (["simple_cnn", "--peers", "eagre"], "did you mean eager"),
        (["simple_cnn", "--peers", ""], "--peers"),
        (["simple_cnn", "--peers", "eager", "--baseline", "openvino"], "unknown baseline 'openvino'"),
        (["simple_cnn", "--batch-size", "0"], "--batch-size"),
        (["simple_cnn", "--batch-size", "a"], "--batch-size"),
        (["simple_cnn", "--rounds", "0"], "rounds must be at least 1"),
        (["simple_cnn", "--threads", "0"], "threads must be at least 1"),
        (["simple_cnn", "--json", "missing/r.json"], "there is no folder missing"),
        (["simple_cnn", "--device", "tpu"], "device"),
    ],
)
def test_wrong_requests_end_with_2_and_one_line(bench: Command, tmp_path: Path, arguments: list[str], message: str) -> None:
    result = bench(*arguments)
    assert result.exit_code == 2, result.output
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert not result.stdout
    assert not list(tmp_path.iterdir())


def test_existing_json_is_kept_without_force(bench: Command, tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    path.write_text("precious")
    options = ["simple_cnn", "--batch-size", "1", "--peers", "eager", "--rounds", "1", "--json", "r.json"]
    refused = bench(*options)
    assert (refused.exit_code, path.read_text()) == (2, "precious")
    assert "--force" in refused.stderr
    assert bench(*options, "--force").exit_code == 0
    assert json.loads(path.read_text())["schema"]


def test_cuda_without_a_gpu_ends_with_2_and_one_line(bench: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    result = bench("simple_cnn", "--device", "cuda")
    assert result.exit_code == 2
    assert len(result.stderr.splitlines()) == 1
    assert "no CUDA device" in result.stderr
    assert not result.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--device", "cuda", "--peers", "openvino"], "no row can run on cuda: openvino: measured on cpu only"),
        (["--device", "cuda", "--peers", "onnxruntime_tensorrt"], "no row can run on cuda: onnxruntime_tensorrt: measured in tf32, fp16, bf16 only"),
        (["--precision", "bf16", "--peers", "onnxruntime"], "no row can run on cpu: onnxruntime: measured in fp32, fp16 only"),
        (["--precision", "tf32"], "tf32 is a mode of NVIDIA GPUs"),
    ],
)
def test_rows_that_do_not_go_with_the_device_or_precision(
    bench: Command, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    result = bench("simple_cnn", *arguments)
    assert result.exit_code == 2
    assert len(result.stderr.splitlines()) == 1
    assert message in result.stderr


def test_absent_row_is_listed(bench: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(EagerChannelsLast, "missing", lambda self: "it has left")
    result = bench("simple_cnn", "--batch-size", "1", "--peers", "eager*", "--rounds", "1")
    assert result.exit_code == 0, result.output
    assert "absent  eager_channels_last: it has left" in result.stdout


def test_nothing_but_absent_rows_is_a_wrong_request(bench: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Eager, "missing", lambda self: "it has left")
    result = bench("simple_cnn", "--peers", "eager")
    assert result.exit_code == 2
    assert "no row can run on cpu: eager: it has left" in result.stderr


@pytest.mark.parametrize(("ours", "code"), [(False, 0), (True, 1)], ids=["a peer", "ours"])
def test_row_that_computes_something_else_is_shown_as_failed(bench: Command, monkeypatch: pytest.MonkeyPatch, ours: bool, code: int) -> None:
    monkeypatch.setitem(PEERS, "cheat", _row("cheat", lambda subject: lambda x: torch.zeros(len(x), 10), ours))
    result = bench("simple_cnn", "--batch-size", "1", "--peers", "eager,cheat", "--rounds", "1")
    assert result.exit_code == code, result.output
    assert "failed  cheat: computes something else" in result.stdout


def test_ctrl_c_reports_what_is_finished_and_ends_with_130(bench: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def runner(subject: Subject) -> Callable[[Tensor], Tensor]:
        runs = 0

        def run(x: Tensor) -> Tensor:
            nonlocal runs
            runs += 1
            if len(x) == 2 and runs == 80:  # in the second group, well after its warm-up of a few runs and one round of six
                raise KeyboardInterrupt
            with torch.inference_mode():
                return subject.model(x)

        return run

    monkeypatch.setitem(PEERS, "impatient", _row("impatient", runner))
    result = bench("simple_cnn", "resnet18", "--batch-size", "1,2", "--peers", "eager,impatient", "--rounds", "20", "--json", "r.json")
    assert result.exit_code == 130, result.output
    assert "interrupted" in result.stdout
    data = json.loads((tmp_path / "r.json").read_text())
    assert data["interrupted"] is True
    finished, stopped = data["groups"]  # and no group of the second model
    assert not finished["interrupted"]
    assert stopped["interrupted"]
    assert all(len(row["rounds"]) == 20 for row in finished["rows"])
    assert all(row["status"] == "timed" and 1 <= len(row["rounds"]) < 20 for row in stopped["rows"])


def test_progress_bar_shows_both_phases_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    from rich.console import Console

    from fastcnn.cli.bench import run as module

    screen = Console(file=io.StringIO(), force_terminal=True, width=120)
    monkeypatch.setattr(module.output, "console", lambda stderr=False: screen)
    with module._progress("tiny, batch 1") as show:
        show("preparing", 0, 2, "eager")
        show("preparing", 1, 2, "openvino")
        show("timing", 3, 20, "round 1 of 10")
    text = screen.file.getvalue()  # type: ignore[attr-defined]
    assert "tiny, batch 1: " in text
    assert "timing (round 1 of 10)" in text


def test_help_does_not_import_torch() -> None:
    code = """
import sys
from fastcnn.cli import main
sys.argv = ["fastcnn", "bench", "--help"]
try:
    main()
finally:
    assert "torch" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_extras_are_in_the_json_and_ctrl_c_in_them_keeps_the_rows(bench: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fastcnn.bench import run
    from fastcnn.bench.studies import ceilings
    from fastcnn.bench.studies.cold_start import ColdStart, ColdStartRequest

    monkeypatch.setattr(ceilings, "_copy_bytes", lambda device: 2**20)
    monkeypatch.setattr(ceilings, "_LARGEST_GEMM", 256)
    started: list[str] = []

    def start(request: ColdStartRequest) -> ColdStart:
        if len(started) == 3:
            raise KeyboardInterrupt
        started.append(request.row)
        return ColdStart({"import": 1.0, "build": 0.5, "first_answer": 0.25}, 12345)

    monkeypatch.setattr(run, "cold_start", start)
    options = ["--peers", "eager,fastcnn_torch", "--rounds", "1", "--cold-start", "--roofline", "--ladder", "--json", "r.json"]
    result = bench("simple_cnn", "--batch-size", "1", *options)
    assert result.exit_code == 130, result.output
    data = json.loads((tmp_path / "r.json").read_text())
    (group,) = data["groups"]
    assert group["interrupted"]
    assert [(row["status"], row["cold_start_seconds"], row["peak_memory_bytes"]) for row in group["rows"]] == [("timed", 1.75, 12345)] * 2
    assert started[2] == "channels_last"
    assert [rung["technique"] for rung in group["ladder"]][:2] == ["eager", "channels_last"]
    assert [rung["peak_memory_bytes"] for rung in group["ladder"]][:3] == [12345, 12345, None]
    assert data["ceilings"]["copy_bytes_per_second"] > 0
    assert group["roofline_total"]["backend"] == "torch"
    assert all(step["seconds"] > 0 for step in group["roofline"])
    assert "roofline: " in result.stdout
    assert "ladder: " in result.stdout


def test_bfloat16_run(bench: Command, tmp_path: Path) -> None:
    peers = "eager*,fastcnn_torch"
    result = bench("simple_cnn", "--batch-size", "2", "--peers", peers, "--rounds", "1", "--precision", "bf16", "--json", "r.json")
    assert result.exit_code == 0, result.output
    (group,) = json.loads((tmp_path / "r.json").read_text())["groups"]
    assert (group["dtype"], group["precision"]) == ("bfloat16", "bf16")
    assert [row["status"] for row in group["rows"]] == ["timed"] * 3
    assert 1e-3 < group["tolerance"] < 0.1
    assert "2×1×28×28 bfloat16" in result.stdout


def test_int8_rows_beside_float32_ones(bench: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastcnn.bench.peers.fastcnn.has_bfloat16", lambda: True)  # PyTorch emulates it elsewhere
    pictures = torch.nn.functional.interpolate(torch.rand(60, 1, 7, 7, generator=torch.Generator().manual_seed(0)), size=28, mode="bilinear")
    np.save(tmp_path / "pictures.npy", pictures.numpy())
    options = ["--batch-size", "2", "--peers", "eager,fastcnn_int8_*,fastcnn_bf16_torch", "--rounds", "1", "--json", "r.json"]
    result = bench("simple_cnn", "--precision", "int8", "--calibration", "pictures.npy", *options)
    assert result.exit_code == 0, result.output
    data = json.loads((tmp_path / "r.json").read_text())
    assert data["settings"]["calibration"] == "pictures.npy"
    rows = {row["name"]: row for row in data["groups"][0]["rows"]}
    exact = rows.pop("eager")
    assert (exact["status"], exact["agreement"], exact["precision"]) == ("timed", None, "fp32")
    bfloat16 = rows.pop("fastcnn_bf16_torch")
    assert (bfloat16["status"], bfloat16["precision"]) == ("timed", "bf16"), bfloat16["reason"]
    assert 1e-4 < bfloat16["relative_error"] < 0.05
    assert bfloat16["agreement"] > 0.9
    here = [name for name, backend in INT8_ROWS.items() if available_backends()[backend] is None]
    assert sorted(name for name, row in rows.items() if row["status"] == "timed") == sorted(here)
    for name in here:
        assert exact["relative_error"] < 1e-5 < rows[name]["relative_error"] < 0.1
        assert rows[name]["agreement"] > 0.9
        assert rows[name]["precision"] == "int8"
        assert rows[name]["size_bytes"] > 0
    assert "precision: float32 → bfloat16 → INT8" in result.stdout
    assert "agree" in result.stdout  # a narrow terminal cuts the head of the column


@pytest.mark.parametrize("options", [["--precision", "int8"], ["--calibration", "pictures.npy"]])
def test_int8_and_its_pictures_go_together(bench: Command, options: list[str]) -> None:
    result = bench("simple_cnn", *options)
    assert result.exit_code == 2
    assert "--precision int8 and --calibration go together" in " ".join(result.stderr.split())
