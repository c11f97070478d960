"""What can go wrong, by whose fault: the command line turns `RequestError` into exit code 2 and `ParityError` into exit code 1."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from typing import Any


class FastcnnError(Exception):
    """Base of every error that fastcnn raises on purpose. Its text is one line that says what was wrong, where, and what to do."""


class RequestError(FastcnnError, ValueError):
    """The request itself was wrong: nothing was computed and nothing was written."""


# Of difflib's ratio. Names of other architectures reach 0.6 (shufflenet and alexnet); a typing error in six letters leaves 0.8.
_ALIKE = 0.65


def nearest_names(name: str, known: Iterable[str]) -> list[str]:
    """Those that are spelled like `name`, the most alike first, or begin like it, four at most; whatever the capitals."""
    known = list(known)
    spelled = {one.lower(): one for one in known}
    alike = [spelled[one] for one in difflib.get_close_matches(name.lower(), spelled, n=4, cutoff=_ALIKE)]
    begun = [one for one in known if len(name) > 2 and one.lower().startswith(name.lower())]
    return list(dict.fromkeys([*alike, *begun]))[:4]


class UnknownNameError(RequestError):
    """A name that no table holds; the text lists the nearest ones: those in `near`, or by default of those in `known`."""

    def __init__(self, kind: str, name: str, known: Iterable[str], hint: str = "", near: Sequence[str] | None = None) -> None:
        known = list(known)
        near = nearest_names(name, known) if near is None else list(near)
        suggestion = f"did you mean {' or '.join(near)}?" if near else (hint or f"known: {', '.join(known)}")
        super().__init__(f"unknown {kind} {name!r}: {suggestion}")
        self.name = name
        self.near = near


class Terminated(KeyboardInterrupt):
    """SIGTERM reached work that stops as on Ctrl-C, where somebody arranged for that: the command line, and training."""


class WeightsError(RequestError):
    """A weight file is missing, damaged, or belongs to another model."""


class InputError(RequestError):
    """An input tensor has the wrong rank, size, channel count, dtype or device."""


class CaptureError(RequestError):
    """`torch.export` could not capture the model; names the operation and its line."""


class BackendError(RequestError):
    """The backend asked for cannot run here, or cannot run this graph."""


class DeviceMemoryError(FastcnnError):
    """The GPU has no room for a batch of this size; the module still runs smaller ones."""


class FileFormatError(RequestError):
    """A file is not what its name or its metadata says."""


class ParityError(FastcnnError):
    """A candidate does not compute the same function as its reference.

    `report`, a `fastcnn.parity.ParityReport` where there is one, holds the figures; the largest difference is also in the text.
    """

    def __init__(self, message: str, report: Any = None) -> None:
        super().__init__(message)
        self.report = report
