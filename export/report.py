"""What an exporter returns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastcnn.graph.plan import PassReport
    from fastcnn.parity import ParityReport


@dataclass(frozen=True)
class ExportReport:
    """A file that was written, and the proof that it computes what its reference computes.

    Attributes:
        format: "onnx", "torchscript" or "pt2".
        bytes, sha256: of the file.
        seconds: from the call to the file in its place.
        parity: over all runtimes; `parity.rows` has each of them at each batch size.
        passes: what each graph pass did.
        metadata: what `read_metadata` reads from the file.
    """

    path: Path
    format: str
    bytes: int
    sha256: str
    seconds: float
    parity: ParityReport
    passes: Sequence[PassReport]
    metadata: dict[str, Any]

    @property
    def runtimes(self) -> tuple[str, ...]:
        """Those that the file was found right in."""
        return tuple(self.metadata["runtimes"])

    @property
    def left_out(self) -> dict[str, str]:
        """Runtime → why the file is not for it."""
        return dict(self.metadata.get("left_out", {}))

    def __str__(self) -> str:
        """One line: the file and its verdict."""
        return f"{self.path}: {self.format}, {self.bytes:,} bytes, {self.parity.summary()}"

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON; the golden pair stays in the file."""
        return {
            "path": str(self.path),
            "format": self.format,
            "bytes": self.bytes,
            "sha256": self.sha256,
            "seconds": self.seconds,
            "runtimes": list(self.runtimes),
            "left_out": self.left_out,
            "parity": self.parity.to_dict(),
            "passes": [str(report) for report in self.passes],
            "metadata": {key: value for key, value in self.metadata.items() if key != "golden"},
        }
