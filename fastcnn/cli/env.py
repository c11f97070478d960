"""`fastcnn env`."""

from __future__ import annotations

import os
import platform
import sys
from typing import Any

from fastcnn import __version__
from fastcnn.cli import output
from fastcnn.cli.options import Json
from fastcnn.cores import usable_cores
from fastcnn.errors import BackendError
from fastcnn.runtimes.onnxruntime import import_onnxruntime

# Distributions that a report of a problem should name; the first one found of a group stands for it.
_DISTRIBUTIONS = {
    "torch": ("torch",),
    "torchvision": ("torchvision",),
    "triton": ("triton", "pytorch-triton", "triton-windows"),
    "onnx": ("onnx",),
    "onnxscript": ("onnxscript",),
    "onnxruntime": ("onnxruntime-gpu", "onnxruntime"),
    "openvino": ("openvino",),
    "ncnn": ("ncnn",),
    "timm": ("timm",),
    "safetensors": ("safetensors",),
    "numpy": ("numpy",),
}


def env(as_json: Json = False) -> None:
    """Show versions, devices, the runtimes found, why others were not, and the cache folders."""
    with output.working("looking around"):
        facts = _facts()
    if as_json:
        output.print_json(facts)
    else:
        _print(facts)


def _facts() -> dict[str, Any]:
    import torch

    from fastcnn.bench.records.environment import cpu_model
    from fastcnn.caches import cache_folder
    from fastcnn.engines import available_backends

    return {
        "versions": {"fastcnn": __version__, "python": platform.python_version(), **_versions()},
        "platform": platform.platform(),
        "cpu": {
            "model": cpu_model(),
            "cores": usable_cores(),
            "isa": torch.backends.cpu.get_cpu_capability(),
            "torch_threads": torch.get_num_threads(),
        },
        "cuda": _cuda(),
        "backends": {name: {"available": why is None, "reason": why} for name, why in available_backends().items()},
        "onnxruntime_providers": _providers(),
        "caches": {"torchvision weights": os.path.join(torch.hub.get_dir(), "checkpoints"), "measured choices": str(cache_folder())},
    }


def _versions() -> dict[str, str | None]:
    import importlib.metadata

    versions: dict[str, str | None] = {}
    for name, distributions in _DISTRIBUTIONS.items():
        versions[name] = None
        for distribution in distributions:
            try:
                version = importlib.metadata.version(distribution)
            except importlib.metadata.PackageNotFoundError:
                continue
            versions[name] = version if distribution == name else f"{version} ({distribution})"
            break
    return versions


def _cuda() -> dict[str, Any]:
    """CUDA as this build of PyTorch sees it; `devices` is empty without one, and `why` says why."""
    import torch

    if not torch.backends.cuda.is_built():
        return {"version": None, "devices": [], "why": "this build of PyTorch is for CPUs only"}
    if not torch.cuda.is_available():
        return {"version": torch.version.cuda, "devices": [], "why": "PyTorch finds no NVIDIA GPU or driver"}
    devices = []
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        devices.append(
            {"index": index, "name": properties.name, "capability": f"{properties.major}.{properties.minor}", "memory_bytes": properties.total_memory}
        )
    return {"version": torch.version.cuda, "devices": devices, "why": None}


def _providers() -> list[str]:
    try:
        return list(import_onnxruntime().get_available_providers())
    except BackendError:
        return []


def _print(facts: dict[str, Any]) -> None:
    cpu, cuda = facts["cpu"], facts["cuda"]
    devices = [
        f"{device['name']} (compute capability {device['capability']}, {device['memory_bytes'] / 2**30:.0f} GiB)" for device in cuda["devices"]
    ]
    output.print_fields({name: version or "not installed" for name, version in facts["versions"].items()})
    print(file=sys.stdout)
    output.print_fields(
        {
            "platform": facts["platform"],
            "cpu": f"{cpu['model']}, {cpu['cores']} cores, {cpu['isa']}, {cpu['torch_threads']} threads",
            "cuda": "; ".join(devices) or f"none: {cuda['why']}",
            **{
                f"backend {name}": "can run" if backend["available"] else f"cannot run: {backend['reason']}"
                for name, backend in facts["backends"].items()
            },
            "onnxruntime built with": ", ".join(facts["onnxruntime_providers"]) or "none",
            **{f"cache of {name}": folder for name, folder in facts["caches"].items()},
        }
    )
