"""Which implementation a convolution gets: choices that were measured, on disk, and those that ship with the package.

A file of choices belongs to one GPU with one driver and one set of libraries, whose names are its name. Shipped choices
are looked at last: they were measured on the same GPU with other libraries, where what they name is as right and
perhaps not as fast.
"""

from __future__ import annotations

import functools
import json
import logging
import platform
import re
import threading
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

import torch

from fastcnn.caches import cache_folder
from fastcnn.errors import RequestError
from fastcnn.files import replacing

log = logging.getLogger(__name__)

SCHEMA = "fastcnn-choices/1"


# What tells one way of running an implementation from its others: whole numbers, so that a choice can be stored. Only
# the implementation reads them.
Variant = tuple[int, ...]


@dataclass(frozen=True)
class Choice:
    """An implementation and its variant; `milliseconds` as measured, None where it was predicted. `why` is for the
    plan."""

    implementation: str
    variant: Variant
    milliseconds: float | None = None
    why: str = ""


class ChoiceStore:
    """The measured choices of one device, in memory and on disk. Several threads and processes may use it: a file is
    replaced whole, and what another process has added since is kept."""

    def __init__(self, device: torch.device, *, on_disk: bool = True) -> None:
        self.environment = describe_environment(device)
        name = "-".join(re.sub(r"[^A-Za-z0-9.]+", "_", value) for value in self.environment.values())
        self.path = cache_folder() / f"convolutions-{name}.json" if on_disk else None
        self._lock = threading.Lock()
        self._shipped = _shipped(self.environment["gpu"], self.environment.get("architecture", ""))
        self._measured = self._read()
        self._new: dict[str, Choice] = {}

    def get(self, key: str) -> Choice | None:
        """What was measured for this key, here or where the shipped choices come from."""
        with self._lock:
            return self._measured.get(key) or self._shipped.get(key)

    def put(self, key: str, choice: Choice) -> None:
        """Remember a choice; `save` writes it to disk."""
        with self._lock:
            self._measured[key] = self._new[key] = choice

    def save(self) -> None:
        """Write what was put; a folder that cannot be written to costs the next process its time, and is no error."""
        with self._lock:
            if self.path is None or not self._new:
                return
            merged = {**self._read(), **self._new}
            document = choices_document(self.environment, merged)
            try:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                with replacing(self.path) as draft:
                    draft.write_text(json.dumps(document, indent=1), encoding="utf-8")
                self._new.clear()
            except (OSError, RequestError) as error:
                log.warning("the choices of implementations could not be written to %s: %s", self.path, error)

    def _read(self) -> dict[str, Choice]:
        if self.path is None or not self.path.exists():
            return {}
        try:
            return parse_choices(json.loads(self.path.read_text(encoding="utf-8")))
        except (OSError, ValueError, KeyError, TypeError) as error:
            log.warning("%s cannot be read and is ignored: %s", self.path, error)
            return {}


def choices_document(environment: Mapping[str, str], choices: Mapping[str, Choice]) -> dict[str, Any]:
    """A file of choices as plain data for JSON."""
    return {"schema": SCHEMA, "environment": dict(environment), "choices": {key: asdict(choices[key]) for key in sorted(choices)}}


def parse_choices(document: Mapping[str, Any]) -> dict[str, Choice]:
    """What `choices_document` made. Raises ValueError, KeyError or TypeError for anything else."""
    if document["schema"] != SCHEMA:
        raise ValueError(f"its schema is {document['schema']!r}, not {SCHEMA!r}")
    return {
        key: Choice(str(entry["implementation"]), tuple(int(number) for number in entry["variant"]), entry["milliseconds"], str(entry["why"]))
        for key, entry in document["choices"].items()
    }


def describe_environment(device: torch.device) -> dict[str, str]:
    """What a measured choice depends on."""
    import triton

    if device.type != "cuda":
        return {"gpu": f"none ({platform.machine()})", "torch": torch.__version__, "triton": triton.__version__}
    return {
        "gpu": torch.cuda.get_device_name(device),
        "architecture": _architecture(device),
        "driver": _driver_version(),
        "torch": torch.__version__,
        "triton": triton.__version__,
        "cudnn": str(torch.backends.cudnn.version()),
    }


def _architecture(device: torch.device) -> str:
    """What the predictions know of a GPU: its compute capability and the number of its multiprocessors."""
    properties = torch.cuda.get_device_properties(device)
    return f"sm_{properties.major}{properties.minor} with {properties.multi_processor_count} multiprocessors"


def _driver_version() -> str:
    try:
        found = re.search(r"\b\d+\.\d+(?:\.\d+)?\b", Path("/proc/driver/nvidia/version").read_text(encoding="utf-8"))
    except OSError:
        return "unknown"
    return found.group() if found else "unknown"


@functools.cache
def _shipped(gpu: str, architecture: str) -> dict[str, Choice]:
    """The choices that came with the package for this GPU."""
    return read_shipped(resources.files("fastcnn.engines.triton").joinpath("shipped"), gpu, architecture)


def read_shipped(folder: Traversable, gpu: str, architecture: str = "") -> dict[str, Choice]:
    """The choices of all files `*.json` in a folder that were measured on a GPU of this name or, where there is none
    for a problem, of this architecture; of two for one problem the one in the file that comes last by name.

    A GPU that is sold under several names, or with other memory, has the same multiprocessors, and what was fastest on
    one is a better guess than a prediction.

    Raises as `parse_choices`: such files are part of the package, and a damaged one is a damaged package.
    """
    same, similar = dict[str, Choice](), dict[str, Choice]()
    for file in sorted((entry for entry in folder.iterdir() if entry.name.endswith(".json")), key=lambda entry: entry.name):
        document = json.loads(file.read_text(encoding="utf-8"))
        environment = document["environment"]
        if environment["gpu"] == gpu:
            same |= parse_choices(document)
        elif architecture and environment.get("architecture") == architecture:
            similar |= parse_choices(document)
    return similar | same
