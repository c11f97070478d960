from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from fastcnn.bench.records import environment as environment_module
from fastcnn.bench.records.environment import environment


def test_environment_explains_a_row() -> None:
    facts = environment()
    assert facts["versions"]["torch"]
    assert facts["cpu"]["cores"] >= 1
    assert facts["cpu"]["model"]
    assert facts["date"].endswith("+00:00")
    json.dumps(facts)


def test_commit_is_none_where_the_code_is_not_in_a_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment_module, "__file__", str(tmp_path / "environment.py"))
    assert environment()["commit"] is None


class Properties:
    """What torch.cuda.get_device_properties gives."""

    name, major, minor, multi_processor_count, total_memory, L2_cache_size = "NVIDIA H100", 9, 0, 132, 85 * 10**9, 52 * 10**6
    uuid = "1234"


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: Properties)


@pytest.mark.usefixtures("device")
def test_environment_of_a_gpu_has_its_state(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[str]] = []

    def run(command: list[str], **options: Any) -> SimpleNamespace:
        asked.append(command)
        return SimpleNamespace(stdout="570.1, 1980, 2619, 1980, 2619, 700.00, 123.4, [N/A]\n" if command[0] == "nvidia-smi" else "")

    monkeypatch.setattr(environment_module.subprocess, "run", run)
    gpu = environment("cuda")["gpu"]
    assert (gpu["name"], gpu["compute_capability"], gpu["driver"]) == ("NVIDIA H100", "9.0", "570.1")
    assert gpu["clocks"] == {"sm_mhz": 1980, "memory_mhz": 2619, "max_sm_mhz": 1980, "max_memory_mhz": 2619}
    assert (gpu["power_limit_watts"], gpu["power_watts"], gpu["temperature_celsius"]) == (700.0, 123.4, None)
    (query,) = [command for command in asked if command[0] == "nvidia-smi"]
    assert query[1] == "--id=GPU-1234"
    assert all(argument.startswith(("--id=", "--query-gpu=", "--format=")) for argument in query[1:])  # it reads, and sets nothing


@pytest.mark.usefixtures("device")
def test_environment_of_a_gpu_without_nvidia_smi(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(command: list[str], **options: Any) -> None:
        raise FileNotFoundError(command[0])

    monkeypatch.setattr(environment_module.subprocess, "run", missing)
    gpu = environment("cuda")["gpu"]
    assert (gpu["name"], gpu["driver"], set(gpu["clocks"].values())) == ("NVIDIA H100", None, {None})


def test_environment_of_a_cpu_run_has_no_gpu() -> None:
    assert environment()["gpu"] is None
