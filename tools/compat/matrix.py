"""Run the files in the runtimes, judge what they answer, and put it into a record and a table."""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from compat.environments import LEFT_OUT, Runtime
from compat.files import COLUMNS, Case
from compat.runner import decode

_LIMIT = 300  # seconds for the files of one runtime that are left
_LONGEST = 160  # characters of a reason


def run(command: Sequence[str], folder: Path, cases: Sequence[Case]) -> list[dict[str, Any]]:
    """What a runtime makes of each file. One that ends the process, or does not come to an end, is told apart from those behind it."""
    found: list[dict[str, Any]] = []
    while len(found) < len(cases):
        waiting = cases[len(found) :]
        jobs = json.dumps([case.job() for case in waiting])
        with tempfile.TemporaryFile("w+") as answers, tempfile.TemporaryFile("w+") as complaints:
            try:
                process = subprocess.run(command, input=jobs, stdout=answers, stderr=complaints, text=True, cwd=folder, timeout=_LIMIT, check=False)
                ending = f"the process ended with code {process.returncode}"
            except subprocess.TimeoutExpired:
                ending = f"not done after {_LIMIT} s"
            answers.seek(0)
            lines = [line for line in answers if line.endswith("\n")]
            complaints.seek(0)
            ending += "".join(f": {line.strip()}" for line in complaints.readlines()[-1:])
        found += [judge(case, json.loads(line)) for case, line in zip(waiting, lines, strict=False)]
        if len(lines) < len(waiting):
            found.append({"verdict": "refused", "reason": _short(ending)})
    return found


def judge(case: Case, line: dict[str, Any]) -> dict[str, Any]:
    """{"verdict": "right", "coarse" (another error, the same best classes), "wrong" or "refused", …} for a line of a runner."""
    if "refused" in line:
        return {"verdict": "refused", "reason": _short(line["refused"])}
    errors, same = [], True
    for answer, expected in zip(map(decode, line["answers"]), case.expected, strict=True):
        given = answer[: len(expected)]
        if given.shape != expected.shape:
            return {"verdict": "wrong", "reason": f"it answers {list(answer.shape)} where {list(expected.shape)} is expected"}
        if not np.isfinite(given).all():
            return {"verdict": "wrong", "reason": "it answers NaN or infinity"}
        errors.append(float(np.linalg.norm(given - expected) / np.linalg.norm(expected)))
        same = same and bool((given.argmax(1) == expected.argmax(1)).all())
    error = max(errors)
    if error <= case.tolerance:
        return {"verdict": "right", "error": error}
    return {"verdict": "coarse" if same else "wrong", "error": error, "reason": f"relative error {error:.1e}"}


def _short(reason: str) -> str:
    """One line, without folders."""
    words = [word.rsplit("/", 1)[-1] if word.count("/") > 1 else word for word in reason.split()]
    text = " ".join(words)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"


def record(runtimes: Sequence[Runtime], cases: Sequence[Case], rows: dict[str, list[dict[str, Any]] | str], made: dict[str, Any]) -> dict[str, Any]:
    """The JSON of one run: `rows` holds, by name of the runtime, what `run` returned, or why it was not tried."""
    files = [{"column": case.column, "model": case.model, "opset": case.opset, "tolerance": case.tolerance} for case in cases]
    found = []
    for one in runtimes:
        row: dict[str, Any] = {"runtime": one.title, "version": one.version}
        tried = rows[one.name]
        found.append(row | ({"not_tried": tried} if isinstance(tried, str) else {"files": tried}))
    return {"made": made, "files": files, "rows": found, "left_out": LEFT_OUT}


def table(data: dict[str, Any]) -> list[str]:
    """The record as lines of Markdown: right out of tried for each column, then what was not right and why."""
    columns = list(dict.fromkeys(file["column"] for file in data["files"]))
    lines = [f"| runtime | {' | '.join(columns)} |", f"|---|{'---|' * len(columns)}"]
    reasons: dict[str, list[str]] = {}
    for row in data["rows"]:
        name = f"{row['runtime']} {row['version']}"
        if "not_tried" in row:
            lines.append(f"| {name} | {' | '.join('–' for _ in columns)} |")
            reasons.setdefault(f"not tried: {row['not_tried']}", []).append(name)
            continue
        cells = []
        for column in columns:
            cell = [(file, found) for file, found in zip(data["files"], row["files"], strict=True) if file["column"] == column]
            right = sum(found["verdict"] == "right" for _, found in cell)
            cells.append(f"{right}/{len(cell)}")
            for file, found in cell:
                if found["verdict"] != "right":
                    reasons.setdefault(f"{name}, {column}, {found['verdict']}: {found['reason']}", []).append(file["model"])
        lines.append(f"| {name} | {' | '.join(cells)} |")
    lines += ["", "What is not right, and why:" if reasons else "All of it is right.", ""]
    lines += [f"- {reason} ({', '.join(who)})" for reason, who in reasons.items()]
    return lines


def document(data: dict[str, Any], source: str) -> str:
    """The page `docs/compatibility.md`."""
    made, options = data["made"], {name: given for name, (_, given) in COLUMNS.items()}
    models = {column: [file for file in data["files"] if file["column"] == column] for column in options}
    said = [
        f"- **{column}**: {', '.join(file['model'] for file in files)}; opset {', '.join(sorted({str(file['opset']) for file in files}))}"
        + (f"; {', '.join(f'{key}={value!r}' for key, value in options[column].items())}" if options[column] else "")
        for column, files in models.items()
        if files
    ]
    versions = ", ".join(f"{name} {version}" for name, version in made["versions"].items())
    return "\n".join(
        [
            "# Which runtimes read our ONNX files",
            "",
            f"Made by `make compat` on {made['date']} with {versions}, from `{source}`. Each runtime runs in an environment of its own, on a CPU;",
            "a file is right where all batches of its golden pair come out within the error that the file states for itself. Cells: right / tried.",
            "",
            *table(data),
            "",
            "## The files",
            "",
            *said,
            "",
            "## What is not in the table",
            "",
            *(f"- {name}: {why}" for name, why in data["left_out"].items()),
            "",
            "`fastcnn export --for opencv|tensorrt|tract|ncnn|web|triton` writes what these rows read, or says why it cannot. OpenVINO computes in",
            'bfloat16 by itself on CPUs that have it: it ran here with `INFERENCE_PRECISION_HINT` "f32".',
            "",
        ]
    )
