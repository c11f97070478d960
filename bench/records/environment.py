"""Where a result comes from: versions, processor, device, threads and commit, so that a row explains itself later."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from fastcnn import __version__
from fastcnn.cores import usable_cores

# The first distribution found stands for its group: the builds of onnxruntime share one import name.
_DISTRIBUTIONS = {
    "torch": ("torch",),
    "torchvision": ("torchvision",),
    "onnx": ("onnx",),
    "onnxscript": ("onnxscript",),
    "onnxruntime": ("onnxruntime-gpu", "onnxruntime"),
    "openvino": ("openvino",),
    "ncnn": ("ncnn",),
    "triton": ("triton", "pytorch-triton", "triton-windows"),
    "tensorrt": ("tensorrt",),
    "numpy": ("numpy",),
}

# They change how many threads a runtime starts or how long these spin, or which kernels a GPU gets.
_VARIABLES = (
    *("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME", "KMP_AFFINITY", "LD_PRELOAD"),
    *("CUDA_VISIBLE_DEVICES", "CUDA_LAUNCH_BLOCKING", "CUDA_MODULE_LOADING", "NVIDIA_TF32_OVERRIDE", "TORCHINDUCTOR_FREEZING"),
)

# nvidia-smi's name → ours; see `nvidia-smi --help-query-gpu`.
_SENSORS = {
    "driver_version": "driver",
    "clocks.current.sm": "sm_mhz",
    "clocks.current.memory": "memory_mhz",
    "clocks.max.sm": "max_sm_mhz",
    "clocks.max.memory": "max_memory_mhz",
    "power.limit": "power_limit_watts",
    "power.draw": "power_watts",
    "temperature.gpu": "temperature_celsius",
}


def environment(device: str = "cpu") -> dict[str, Any]:
    """Plain data for JSON. `load_average` is over the last minute before the run: on a busy machine figures mean little."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": _commit(),
        "versions": {"fastcnn": __version__, "python": platform.python_version(), **_versions()},
        "platform": platform.platform(),
        "cpu": {
            "model": cpu_model(),
            "cores": usable_cores(),
            "isa": torch.backends.cpu.get_cpu_capability(),
        },
        "gpu": gpu() if device == "cuda" else None,
        "load_average": load_average(),
        "variables": {name: os.environ[name] for name in _VARIABLES if name in os.environ},
    }


def load_average() -> float | None:
    """Processes that wanted a core, on average over the last minute; None where the system does not count them."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None


def busy(load: float | None, cores: int) -> str | None:
    """A warning in one line where other processes took more than half of the cores; None where they did not, or nobody knows."""
    if load is None or load <= cores / 2:
        return None
    return f"the machine was busy before the run (load average {load:.1f} on {cores} cores): expect wide intervals"


def cpu_model() -> str:
    """The processor's own name where the system tells it, else its architecture."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()


def gpu() -> dict[str, Any]:
    """PyTorch's current CUDA device, and its state at this moment as far as nvidia-smi tells it; nothing is set."""
    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    sensors = _sensors(f"GPU-{properties.uuid}")
    clocks = ("sm_mhz", "memory_mhz", "max_sm_mhz", "max_memory_mhz")
    return {
        "name": properties.name,
        "compute_capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "memory_bytes": properties.total_memory,
        "l2_bytes": properties.L2_cache_size,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "clocks": {name: sensors[name] for name in clocks},
        **{name: value for name, value in sensors.items() if name not in clocks},
    }


def _sensors(uuid: str) -> dict[str, str | float | None]:
    """By their names in a result; None for what nvidia-smi does not tell, or where there is none."""
    query = ["nvidia-smi", f"--id={uuid}", f"--query-gpu={','.join(_SENSORS)}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return dict.fromkeys(_SENSORS.values())
    cells = [cell.strip() for cell in done.stdout.strip().split(",")]
    if len(cells) != len(_SENSORS):
        return dict.fromkeys(_SENSORS.values())
    return {name: cell if name == "driver" else _number(cell) for name, cell in zip(_SENSORS.values(), cells, strict=True)}


def _number(cell: str) -> float | None:
    try:
        return float(cell)
    except ValueError:  # "[N/A]"
        return None


def _versions() -> dict[str, str | None]:
    return {name: next((version for distribution in group if (version := _version(distribution))), None) for name, group in _DISTRIBUTIONS.items()}


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    """The commit of the checkout that this file is tracked in, with "+changes" for a tree that differs from it; None outside of one."""
    if _git("ls-files", "--error-unmatch", Path(__file__).name) is None:  # an environment may lie inside a stranger's repository
        return None
    commit = _git("rev-parse", "HEAD")
    return f"{commit}+changes" if commit and _git("status", "--porcelain", "--untracked-files=no") else commit


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", str(Path(__file__).parent), *arguments], capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
