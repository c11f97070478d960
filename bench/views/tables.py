"""A benchmark for a person (tables) and for a program (JSON)."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastcnn.bench.records.environment import busy
from fastcnn.bench.records.result import BenchmarkReport, GroupResult, LadderRung, RooflineStep, RooflineTotal, RowResult, Status
from fastcnn.bench.records.rows import PRECISION_TITLES, words_of
from fastcnn.bench.records.statistics import FEWEST_ROUNDS, Summary
from fastcnn.bench.views import units
from fastcnn.files import write_text

if TYPE_CHECKING:
    from rich.console import Console

_COLUMNS = ("row", "median", "p10 – p90", "images/s", "speed", "95 % interval", "rel. error", "set-up")
# Left out on a terminal where they do not fit; the JSON has them.
_DISPENSABLE = ("p10 – p90", "set-up")
_FULL_WIDTH = 110
# Only where they were measured.
_AGREEMENT = ("agreement",)
_COLD = ("cold start", "memory")


def print_report(report: BenchmarkReport, console: Console) -> None:
    """One table per model and batch size, then the rows that have no time and why; last what the words in them mean."""
    cpu, versions = report.environment["cpu"], report.environment["versions"]
    _say(console, f"{cpu['model']}, {cpu['cores']} cores, {report.settings['threads']} threads, {report.environment['platform']}")
    gpu = report.environment.get("gpu")
    if gpu:
        limit = gpu.get("power_limit_watts")
        state = [f"driver {gpu['driver']}" if gpu.get("driver") else "", f"{limit:.0f} W" if limit else ""]
        _say(console, ", ".join([gpu["name"], f"CUDA {gpu['cuda']}", f"cuDNN {gpu['cudnn']}", *filter(None, state)]))
    _say(console, ", ".join(f"{name} {version}" for name, version in versions.items() if version))
    if warning := busy(report.environment["load_average"], cpu["cores"]):
        _say(console, warning, "yellow")
    if report.ceilings is not None:
        copy, gemm = units.bandwidth(report.ceilings.copy_bytes_per_second), units.rate(report.ceilings.gemm_flops_per_second)
        _say(console, f"ceilings: copies {copy}, matrix products {gemm} ({report.ceilings.how})")
    for group in report.groups:
        console.print()
        print_group(group, console)
    _print_words(report, console)


def print_group(group: GroupResult, console: Console) -> None:
    """The table of one model and batch size, then the rows that have no time, and what was measured besides."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    shape = "×".join(map(str, group.input_shape))
    title = f"{group.model} · {shape} {group.dtype if group.precision != 'tf32' else 'tf32'} · {group.device} · {group.scenario}"
    _say(console, title, "bold")
    if group.lowered_because:
        _say(console, f"batch {group.batch_size} instead of {group.requested_batch_size}, for want of memory: {group.lowered_because}", "yellow")
    timed = group.timed()
    if timed:
        table = Table(box=box.SIMPLE_HEAD if console.is_terminal else None, pad_edge=False)
        columns = _columns(console)
        if any(row.agreement is not None for row in timed):
            columns += _AGREEMENT
        if any(row.cold_start_phases is not None for row in timed):
            columns += _COLD
        for column in columns:
            table.add_column(column, justify="left" if column == "row" else "right", no_wrap=True)
        for row in timed:
            if (summary := row.summary()) is not None:
                cells = dict(zip((*_COLUMNS, *_AGREEMENT, *_COLD), _cells(row, summary, group.batch_size), strict=True))
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
    _print_precisions(group, console)
    if group.ladder:
        _print_ladder(group.ladder, console)
    if group.roofline and group.roofline_total:
        _print_roofline(group, group.roofline, group.roofline_total, console)
    if group.interrupted:
        _say(console, "interrupted: the figures are of the rounds that were complete", "yellow")


def _print_precisions(group: GroupResult, console: Console) -> None:
    """From float32 to int8 at a glance, where rows of several precisions were timed."""
    rows = [group.rows[position] for position in group.one_of_each_precision()]
    if not rows:
        return
    _say(console, "precision: " + " → ".join(PRECISION_TITLES.get(str(row.precision), str(row.precision)) for row in rows), "bold")
    lines = [
        (
            PRECISION_TITLES.get(str(row.precision), str(row.precision)),
            row.name,
            "" if row.ratio is None else f"{row.ratio.value:.2f}×",
            "" if row.size_bytes is None else units.volume(row.size_bytes),
            "" if row.relative_error is None else units.error(row.relative_error),
            "" if row.agreement is None else f"{row.agreement:.1%}",
        )
        for row in rows
    ]
    _print_table(("in", "fastest row", "speed", "size", "rel. error", "agreement"), lines, console)


def _columns(console: Console) -> list[str]:
    return [column for column in _COLUMNS if console.width >= _FULL_WIDTH or column not in _DISPENSABLE]


def _print_words(report: BenchmarkReport, console: Console) -> None:
    words = words_of({row.name for group in report.groups for row in group.timed()}, {group.scenario for group in report.groups})
    words = {word: meaning for word, meaning in words.items() if word in _columns(console) or word not in _DISPENSABLE}
    if not words:
        return
    console.print()
    _say(console, "what the words mean", "bold")
    width = max(map(len, words))
    for word, meaning in words.items():
        _say(console, f"{word:<{width}}  {meaning}", "dim")


def _print_ladder(ladder: Sequence[LadderRung], console: Console) -> None:
    console.print()
    _say(console, "ladder: each technique on top of those before it", "bold")
    lines = []
    for rung in ladder:
        summary, ratio = rung.summary(), rung.ratio
        if summary is None:
            lines.append((rung.title, rung.status.value, "", "", rung.reason or ""))
            continue
        interval = f"{ratio.low:.2f} – {ratio.high:.2f}" if ratio and ratio.low is not None and ratio.high is not None else ""
        error = "" if rung.relative_error is None else f"{rung.relative_error:.0e}"
        lines.append((rung.title, milliseconds(summary.p50), f"{ratio.value:.2f}×" if ratio else "", interval, error))
    _print_table(("technique", "median", "speed", "95 % interval", "rel. error"), lines, console)


def _print_roofline(group: GroupResult, steps: Sequence[RooflineStep], total: RooflineTotal, console: Console) -> None:
    console.print()
    _say(console, f"roofline: {total.steps} steps of the backend {total.backend}, slowest first", "bold")
    order = sorted(steps, key=lambda step: -(step.seconds or step.bound_seconds))
    lines = [
        (
            step.name,
            step.kernel or step.op,
            units.operations(step.flops),
            units.volume(step.bytes),
            "" if step.seconds is None else milliseconds(step.seconds),
            milliseconds(step.bound_seconds),
            step.bound,
            "" if step.share is None else units.share(step.share),
        )
        for step in order
        if step.bound_seconds
    ]
    _print_table(("step", "kernel", "work", "traffic", "time", "bound", "by", "share"), lines, console)
    whole = f"the whole: {units.operations(total.flops)}, {units.volume(total.bytes)}, bound {milliseconds(total.bound_seconds)}"
    shares = [f"{row.name} {units.share(total.bound_seconds / summary.p50)}" for row in group.timed() if (summary := row.summary()) is not None]
    _say(console, whole + (f"; share reached: {', '.join(shares)}" if shares else ""))


def _print_table(columns: Sequence[str], lines: Sequence[Sequence[str]], console: Console) -> None:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD if console.is_terminal else None, pad_edge=False)
    for position, column in enumerate(columns):
        text = position == 0 or column in ("kernel", "by", "fastest row")
        table.add_column(column, justify="left" if text else "right", no_wrap=not text, overflow="fold")
    for line in lines:
        table.add_row(*(Text(cell) for cell in line))
    console.print(table)


def write_json(report: BenchmarkReport, path: Path) -> None:
    """Writes the whole report. Raises RequestError where it cannot be written."""
    write_text(path, to_json(report) + "\n")


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
        milliseconds(summary.p50),
        f"{milliseconds(summary.p10, unit='')} – {milliseconds(summary.p90, unit='')}",
        f"{batch_size / summary.p50:.1f}",
        speed,
        interval,
        f"{row.relative_error:.0e}" if row.relative_error is not None else "",
        f"{row.setup_seconds:.1f} s" if row.setup_seconds is not None else "",
        f"{row.agreement:.1%}" if row.agreement is not None else "",
        f"{row.cold_start_seconds:.1f} s" if row.cold_start_seconds is not None else "",
        units.memory(row.peak_memory_bytes) if row.peak_memory_bytes is not None else "",
    )


def milliseconds(seconds: float, unit: str = " ms") -> str:
    """A time for a table."""
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
