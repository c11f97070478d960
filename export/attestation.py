"""What an export found out as an in-toto statement beside the file, which others can sign. https://in-toto.io/Statement/v1

Unsigned it vouches for no author: whoever changes a file can write another statement. `model-signing` and sigstore sign such statements.
"""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastcnn.errors import FileFormatError, RequestError
from fastcnn.export.description import read_metadata
from fastcnn.files import write_text
from fastcnn.limits import parse_json

if TYPE_CHECKING:
    from fastcnn.export.report import ExportReport

SUFFIX = ".intoto.json"
_STATEMENT = "https://in-toto.io/Statement/v1"
_PREDICATE = "urn:fastcnn:parity:v1"

# What a file was checked on.
_PICTURES = {
    "int8": "pictures of the calibration that were kept apart, of which the file stores some",
    "other": "two mosaics of hashed cells, stored in the file, and seeded noise in the range of the example",
}

# Sections of a file's description that the statement repeats.
_REPEATED = ("model", "format", "precision", "quantization", "mixed_precision", "input", "runtimes", "left_out", "parity", "versions")


def attestation_path(path: Path) -> Path:
    """Where the statement of a file stands: beside it."""
    return path.with_name(path.name + SUFFIX)


def statement(report: ExportReport) -> dict[str, Any]:
    """The statement of a file that was just exported, with the processor that it was checked on."""
    import torch

    return {
        "_type": _STATEMENT,
        "subject": [{"name": report.path.name, "digest": {"sha256": report.sha256}}],
        "predicateType": _PREDICATE,
        "predicate": {
            **_repeated(report.metadata),
            "data": {
                "pictures": _PICTURES["int8" if report.metadata["precision"] == "int8" else "other"],
                "golden_sha256": _golden_sha256(report.metadata),
                "batch_sizes": list(report.parity.batch_sizes),
            },
            "processor": {
                "system": platform.system(),
                "architecture": platform.machine(),
                "instruction_set": torch.backends.cpu.get_cpu_capability(),
            },
        },
    }


def write_attestation(report: ExportReport) -> Path:
    """Writes the statement beside the file. Raises RequestError where that cannot be done."""
    path = attestation_path(report.path)
    write_text(path, json.dumps(statement(report), indent=2, sort_keys=True, ensure_ascii=False) + "\n")
    return path


def check_attestation(path: Path, attestation: Path, sha256: str) -> list[str]:
    """What a statement says that does not hold for the file at `path`, whose SHA-256 is given; empty where all of it does.

    Raises:
        RequestError: no such statement.
        FileFormatError: it is none of fastcnn's.
    """
    if not attestation.is_file():
        raise RequestError(f"there is no attestation {attestation}")
    try:
        said = parse_json(attestation.read_bytes())
    except ValueError as error:
        raise FileFormatError(f"{attestation} is no in-toto statement: {error}") from error
    if not isinstance(said, dict) or said.get("_type") != _STATEMENT or said.get("predicateType") != _PREDICATE:
        raise FileFormatError(f"{attestation} is no in-toto statement of fastcnn: _type {_STATEMENT} and predicateType {_PREDICATE} were expected")
    if sha256 not in _subjects(said):
        return [f"the attestation is of another file: {path} has the SHA-256 {sha256}"]
    metadata = read_metadata(path)
    predicate = said.get("predicate")
    predicate = predicate if isinstance(predicate, dict) else {}
    data = predicate.get("data")
    wrong = [key for key, value in _repeated(metadata).items() if predicate.get(key) != value]
    wrong += [] if isinstance(data, dict) and data.get("golden_sha256") == _golden_sha256(metadata) else ["data"]
    return [f"the attestation says something else than the file of its {' and '.join(wrong)}"] if wrong else []


def _subjects(said: Mapping[str, Any]) -> list[Any]:
    subjects = said.get("subject")
    digests = [one.get("digest") for one in subjects if isinstance(one, dict)] if isinstance(subjects, list) else []
    return [digest.get("sha256") for digest in digests if isinstance(digest, dict)]


def _repeated(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """As JSON gives it back."""
    return json.loads(json.dumps({key: metadata[key] for key in _REPEATED if key in metadata}, default=str))


def _golden_sha256(metadata: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(metadata["golden"], sort_keys=True).encode()).hexdigest()
