"""Where a result comes from: versions, processor, threads and commit, so that a row explains itself later."""

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

# The first distribution found stands for its group: the builds of onnxruntime share one import name.
_DISTRIBUTIONS = {
    "torch": ("torch",),
    "torchvision": ("torchvision",),
    "onnx": ("onnx",),
    "onnxscript": ("onnxscript",),
    "onnxruntime": ("onnxruntime-gpu", "onnxruntime"),
    "openvino": ("openvino",),
    "numpy": ("numpy",),
}

# They change how many threads a runtime starts or how long these spin.
_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME", "KMP_AFFINITY", "LD_PRELOAD")


def environment() -> dict[str, Any]:
    """Plain data for JSON. `load_average` is over the last minute before the run: on a busy machine figures mean little."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": _commit(),
        "versions": {"fastcnn": __version__, "python": platform.python_version(), **_versions()},
        "platform": platform.platform(),
        "cpu": {
            "model": cpu_model(),
            "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
            "isa": torch.backends.cpu.get_cpu_capability(),
        },
        "load_average": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "variables": {name: os.environ[name] for name in _VARIABLES if name in os.environ},
    }


def cpu_model() -> str:
    """The processor's own name where the system tells it, else its architecture."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()


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
