"""A benchmark for a person (tables) and for a program (JSON)."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastcnn.bench.results import BenchmarkReport, GroupResult, RowResult, Status
from fastcnn.bench.statistics import FEWEST_ROUNDS, Summary

if TYPE_CHECKING:
    from rich.console import Console

_COLUMNS = ("row", "median", "p10 – p90", "images/s", "speed", "95 % interval", "rel. error", "set-up")
# Left out on a terminal where they do not fit; the JSON has them.
_DISPENSABLE = ("p10 – p90", "set-up")
_FULL_WIDTH = 110


def print_report(report: BenchmarkReport, console: Console) -> None:
    """One table per model and batch size, then the rows that have no time and why."""
    cpu, versions = report.environment["cpu"], report.environment["versions"]
    _say(console, f"{cpu['model']}, {cpu['cores']} cores, {report.settings['threads']} threads, {report.environment['platform']}")
    _say(console, ", ".join(f"{name} {version}" for name, version in versions.items() if version))
    load = report.environment["load_average"]
    if load is not None and load > cpu["cores"] / 2:
        _say(console, f"the machine was busy before the run (load average {load:.1f} on {cpu['cores']} cores): expect wide intervals", "yellow")
    for group in report.groups:
        console.print()
        print_group(group, console)


def print_group(group: GroupResult, console: Console) -> None:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    shape = "×".join(map(str, group.input_shape))
    title = f"{group.model} · {shape} {group.dtype} · {group.device} · {group.scenario}"
    _say(console, title, "bold")
    timed = group.timed()
    if timed:
        table = Table(box=box.SIMPLE_HEAD if console.is_terminal else None, pad_edge=False)
        columns = [column for column in _COLUMNS if console.width >= _FULL_WIDTH or column not in _DISPENSABLE]
        for column in columns:
            table.add_column(column, justify="left" if column == "row" else "right", no_wrap=True)
        for row in timed:
            if (summary := row.summary()) is not None:
                cells = dict(zip(_COLUMNS, _cells(row, summary, group.batch_size), strict=True))
                table.add_row(*(Text(cells[column]) for column in columns), style="green" if row.ours else None)
        console.print(table)
        runs = [sum(map(len, row.rounds)) for row in timed]
        counted = f"{min(runs)} to {max(runs)}" if min(runs) < max(runs) else f"{max(runs)}"
        reference = f"speed: times as fast as {group.baseline}; " if group.baseline else ""
        _say(console, f"{reference}{counted} timed runs a row")
        if min(len(row.rounds) for row in timed) < FEWEST_ROUNDS:
            _say(console, f"intervals need at least {FEWEST_ROUNDS} rounds")
    for row in group.rows:
        if row.status is not Status.TIMED:
            _say(console, f"{row.status.value}  {row.name}: {row.reason}", "red" if row.status is Status.FAILED else "dim")
        elif row.warm_up is not None and not row.warm_up.steady:
            _say(console, f"note  {row.name} was still getting faster after {row.warm_up.seconds:.0f} s of warm-up", "yellow")
    if group.interrupted:
        _say(console, "interrupted: the figures are of the rounds that were complete", "yellow")


def write_json(report: BenchmarkReport, path: Path) -> None:
    """Writes the whole report, in one move: nobody finds half a file. Raises OSError where the folder cannot be written to."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_text(to_json(report) + "\n", encoding="utf-8")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def to_json(report: BenchmarkReport) -> str:
    """RFC 8259 has no NaN and no infinity: they become null."""
    return json.dumps(_finite(report.to_dict()), indent=1, ensure_ascii=False, allow_nan=False)


def _cells(row: RowResult, summary: Summary, batch_size: int) -> tuple[str, ...]:
    ratio = row.ratio
    speed = interval = ""
    if ratio is not None:
        speed = f"{ratio.value:.2f}×"
        if ratio.low is not None and ratio.high is not None and ratio.baseline != row.name:
            interval = f"{ratio.low:.2f} – {ratio.high:.2f}"
    return (
        row.name,
        _milliseconds(summary.median),
        f"{_milliseconds(summary.p10, unit='')} – {_milliseconds(summary.p90, unit='')}",
        f"{batch_size / summary.median:.1f}",
        speed,
        interval,
        f"{row.relative_error:.0e}" if row.relative_error is not None else "",
        f"{row.setup_seconds:.1f} s" if row.setup_seconds is not None else "",
    )


def _milliseconds(seconds: float, unit: str = " ms") -> str:
    value = seconds * 1e3
    return f"{value:.{1 if value >= 10 else 3 if value < 1 else 2}f}{unit}"


def _say(console: Console, text: str, style: str | None = None) -> None:
    console.print(text, style=style, markup=False, soft_wrap=True)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return value
