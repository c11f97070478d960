"""Check a file again from what is stored in it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fastcnn.errors import FileFormatError, ParityError
from fastcnn.export import golden
from fastcnn.export.container import read_container
from fastcnn.export.runtimes import runtimes_for
from fastcnn.export.seal import changed_sections
from fastcnn.parity import BatchParity, Expected, ParityReport, compare
from fastcnn.precision import Precision


def verify_file(path: str | os.PathLike[str]) -> ParityReport:
    """Run a file in its own runtimes on the golden pictures stored in it, and compare outputs and digests with what is stored; needs no reference.

    A file whose digests fail is not run: what a damaged network does to a runtime is anybody's guess.

    Returns a report, passed or not; its `failures` say whether weights, graph, description or output changed, its `notes` what could not be checked.

    Raises:
        RequestError: no such file.
        FileFormatError: truncated, of another format, or not exported by fastcnn.
    """
    path = Path(path)
    container, metadata = read_container(path)
    pair = _golden_pair(path, metadata)
    found = container.digests()
    failures = [f"the {part} changed since the export (SHA-256)" for part, digest in found.items() if digest != metadata["digests"].get(part)]
    failures += [f"record {record} is damaged" for record in container.damaged]
    changed = changed_sections(metadata)
    if changed is None:
        failures.append("damaged: the description has no digest: nothing says whether it was edited; export the file again")
    elif changed:
        failures.append(f"damaged: {' and '.join(changed)} in the description changed since the export (SHA-256)")
    if failures:
        return ParityReport.of([], pair.dtype, failures, ["a file that changed is not run: what it computes now is not what was exported"])
    notes: list[str] = []
    if metadata.get("precision") == Precision.int8.value:
        return _judged(path, metadata, pair, failures, notes)
    batches = [pair.inputs(batch) for batch in pair.batches]
    expected = Expected(pair.dtype, tuple((0, len(batch)) for batch in pair.batches), pair.outputs)
    rows: list[BatchParity] = []
    left_out = metadata.get("left_out", {})
    for name, run in runtimes_for(container.format).items():
        if name in left_out:
            notes.append(f"the file is not for {name}: {left_out[name]}")
            continue
        try:
            results = run(path, batches)
        except ParityError as error:
            failures.append(str(error))
            continue
        kept = [golden.first_rows(outputs, batch) for outputs, batch in zip(results, pair.batches, strict=True)]
        rows += compare(kept, expected, tolerance=pair.tolerance, runtime=name).rows
    return ParityReport.of(rows, pair.dtype, failures, notes)


def _judged(path: Path, metadata: Mapping[str, Any], pair: golden.GoldenPair, failures: list[str], notes: list[str]) -> ParityReport:
    """The report on an int8 file: the gate of its export, on the pictures of it that the file keeps."""
    from fastcnn.export.quantized import judge_again

    try:
        judgements, limits = judge_again(path, metadata, pair, failures)
    except (KeyError, TypeError, ValueError) as error:
        raise FileFormatError(f"{path} has damaged metadata: {type(error).__name__}: {error}") from error
    return ParityReport.of([judgement.row(limits) for judgement in judgements], pair.dtype, failures, notes)


def _golden_pair(path: Path, metadata: dict[str, Any]) -> golden.GoldenPair:
    try:
        return golden.decode(metadata["golden"])
    except FileFormatError as error:
        raise FileFormatError(f"{path}: {error}") from error
