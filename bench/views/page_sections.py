"""What a benchmark's page shows of each model and batch size: plots, tables, notes, and what was not measured."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from markupsafe import Markup

from fastcnn.bench.records.result import Status, first_of_each_precision
from fastcnn.bench.records.rows import PRECISION_TITLES
from fastcnn.bench.views import plots, units
from fastcnn.bench.views.page_numbers import Column, ResultNumbers, Table, group_kind, group_title, plain_title

# From this many batch sizes on a line shows more than bars side by side.
_LINE_FROM = 3


@dataclass(frozen=True)
class Figure:
    """A plot between its heading and its caption."""

    title: str
    svg: Markup
    caption: str


@dataclass
class Section:
    """What the page says about one model at one batch size; `missing` has a line for each part that was not measured."""

    title: str | Markup
    kind: str
    figures: list[Figure] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)


_ROW_COLUMNS = (
    Column("median, ms", "seconds.p50", units.milliseconds),
    Column("images/s", "images_per_second", units.plain),
    Column("speed", "ratio.value", units.ratio),
    Column("95 % interval", "ratio.low", units.bound, "ratio.high"),
    Column("relative error", "relative_error", units.error),
    Column("p10 – p90, ms", "seconds.p10", units.milliseconds, "seconds.p90"),
    Column("p99, ms", "seconds.p99", units.milliseconds),
    Column("fastest, ms", "seconds.fastest", units.milliseconds),
    Column("spread (MAD), ms", "seconds.mad", units.milliseconds),
    Column("end to end, ms", "end_to_end_seconds.p50", units.milliseconds),
    Column("set-up", "setup_seconds", units.seconds),
    Column("cold start", "cold_start_seconds", units.seconds),
    Column("peak memory", "peak_memory_bytes", units.memory),
    Column("allocator peak", "allocator_peak_bytes", units.memory),
    Column("timed runs", "seconds.count", units.count),
    Column("warm-up runs", "warm_up.runs", units.count),
    Column("warm-up", "warm_up.seconds", units.seconds),
    Column("how it ran", "proof"),
)

_PRECISION_COLUMNS = (
    Column("row", "name"),
    Column("speed", "ratio.value", units.ratio),
    Column("95 % interval", "ratio.low", units.bound, "ratio.high"),
    Column("size", "size_bytes", units.volume),
    Column("relative error", "relative_error", units.error),
    Column("agreement", "agreement", units.share),
)

_LADDER_COLUMNS = (
    Column("median, ms", "seconds.p50", units.milliseconds),
    Column("p10 – p90, ms", "seconds.p10", units.milliseconds, "seconds.p90"),
    Column("against the rung before", "ratio.value", units.ratio),
    Column("95 % interval", "ratio.low", units.bound, "ratio.high"),
    Column("relative error", "relative_error", units.error),
    Column("peak memory", "peak_memory_bytes", units.memory),
    Column("how it ran", "proof"),
)

_ROOFLINE_COLUMNS = (
    Column("operation", "op"),
    Column("kernel", "kernel"),
    Column("work", "flops", units.operations),
    Column("bytes moved", "bytes", units.volume),
    Column("time", "seconds", units.seconds),
    Column("least time", "bound_seconds", units.seconds),
    Column("bound by", "bound"),
    Column("share of the roof", "share", units.share),
)


def overviews(numbers: ResultNumbers, models: Sequence[str]) -> Iterator[Figure]:
    """A plot over batch sizes for each model that has enough of them."""
    for index, model in enumerate(models):
        groups = [g for g in range(len(numbers.data["groups"])) if numbers.value(f"groups.{g}.model") == model]
        if len({numbers.value(f"groups.{g}.batch_size") for g in groups}) < _LINE_FROM:
            continue
        found: dict[str, list[tuple[int, dict[str, Any]]]] = {}
        for g in groups:
            for row in numbers.value(f"groups.{g}.rows"):
                if row.get("seconds"):
                    found.setdefault(row["name"], []).append((numbers.value(f"groups.{g}.batch_size"), row))
        lines = []
        for name, measured in found.items():
            measured.sort(key=lambda pair: pair[0])
            low, high = ([batch / row["seconds"][end] for batch, row in measured] for end in ("p90", "p10"))
            rates = [row["images_per_second"] for _, row in measured]
            lines.append(plots.Line(name, [batch for batch, _ in measured], rates, low, high, measured[0][1]["ours"]))
        title = f"{model}: images per second by batch size"
        svg = plots.lines(lines, "images/s", title, key=f"m{index}")
        yield Figure(model, Markup(svg), "Images per second. Bands reach from the 10th to the 90th percentile; fastcnn's rows are blue.")


def section_of(numbers: ResultNumbers, group: int) -> Section:
    """Everything the page shows of the group with that index."""
    base = f"groups.{group}"
    rows = numbers.value(f"{base}.rows")
    section = Section(group_title(numbers, group), group_kind(numbers, group))
    section.notes += _notes(numbers, group)
    _speed_figures(numbers, group, section)
    _cost_figures(numbers, group, section)
    names = {f"{base}.rows.{r}": row["name"] for r, row in enumerate(rows) if row["status"] == Status.TIMED}
    if names:
        strong = [row["ours"] for row in rows if row["status"] == Status.TIMED]
        baseline = numbers.value(f"{base}.baseline")
        caption = "All rows that were timed." + (f" Speed: times as fast as {baseline}." if baseline else "")
        section.tables.append(numbers.table(caption, "row", names, _ROW_COLUMNS, strong))
    _precisions(numbers, group, section)
    _ladder(numbers, group, section)
    _roofline(numbers, group, section)
    return section


def _precisions(numbers: ResultNumbers, group: int, section: Section) -> None:
    """From float32 to int8 at a glance, where rows of several precisions were timed."""
    base = f"groups.{group}"
    rows = numbers.value(f"{base}.rows")
    chosen = first_of_each_precision([(row.get("precision"), row["ours"]) if row["status"] == Status.TIMED else (None, False) for row in rows])
    if chosen:
        titles = [PRECISION_TITLES.get(rows[r]["precision"], str(rows[r]["precision"])) for r in chosen]
        names = dict(zip((f"{base}.rows.{r}" for r in chosen), titles, strict=True))
        caption = f"{' → '.join(titles)}: the fastest row in each. Speed: times as fast as {numbers.value(f'{base}.baseline')}."
        section.tables.append(numbers.table(caption, "precision", names, _PRECISION_COLUMNS, [False] * len(chosen)))


def _speed_figures(numbers: ResultNumbers, group: int, section: Section) -> None:
    base, about = f"groups.{group}", plain_title(numbers, group)
    rows = list(enumerate(numbers.value(f"{base}.rows")))
    timed = [(r, row) for r, row in rows if row["status"] == Status.TIMED]
    if timed:
        batch = numbers.value(f"{base}.batch_size")
        bars = [
            plots.Bar(
                row["name"],
                row["images_per_second"],
                f"{base}.rows.{r}.images_per_second",
                batch / row["seconds"]["p90"],
                batch / row["seconds"]["p10"],
                emphasis=row["ours"],
            )
            for r, row in timed
        ]
        svg = plots.bars(bars, units.plain, "images/s", f"{about}: images per second of each row", key=f"g{group}-speed")
        section.figures.append(Figure("Speed", Markup(svg), "Longer is better; strokes reach from the 10th to the 90th percentile of the runs."))
        strips = []
        for r, row in timed:
            samples = [sample * 1e3 for visit in row["rounds"] for sample in visit]
            place, median = numbers.find(f"{base}.rows.{r}.seconds.p50")
            low, high = row["seconds"]["p10"] * 1e3, row["seconds"]["p90"] * 1e3
            strips.append(plots.Bar(row["name"], median * 1e3, place, low, high, emphasis=row["ours"], samples=samples))
        svg = plots.strips(strips, "ms a run", f"{about}: distribution of the time of a run", key=f"g{group}-time")
        section.figures.append(
            Figure(
                "Latency",
                Markup(svg),
                "Each timed run is a stroke, the band spans the 10th to 90th percentile, the bold stroke is the median.",
            )
        )
    measured = [(r, row) for r, row in rows if row.get("relative_error") is not None]
    if measured:
        dots = [
            plots.Bar(row["name"], row["relative_error"], f"{base}.rows.{r}.relative_error", emphasis=row["ours"], bad=row["status"] == Status.FAILED)
            for r, row in measured
        ]
        title = f"{about}: relative error of each row"
        svg = plots.errors(dots, numbers.value(f"{base}.tolerance"), "relative L2 error against float64", title, key=f"g{group}-error")
        section.figures.append(Figure("Parity", Markup(svg), "How far the answers are from the reference in float64; rows in the order of speed."))


def _cost_figures(numbers: ResultNumbers, group: int, section: Section) -> None:
    """What comes before the first answer, and what stays in memory."""
    base, about = f"groups.{group}", plain_title(numbers, group)
    rows = [(r, row) for r, row in enumerate(numbers.value(f"{base}.rows")) if row["status"] == Status.TIMED]

    def bars(key: str, scale: float = 1.0) -> list[plots.Bar]:
        known = [(r, row) for r, row in rows if row.get(key) is not None]
        return [plots.Bar(row["name"], row[key] / scale, f"{base}.rows.{r}.{key}", emphasis=row["ours"]) for r, row in known]

    cold = [(r, row) for r, row in rows if row.get("cold_start_seconds") is not None]
    if cold:
        phases = list(dict.fromkeys(phase for _, row in cold for phase in row.get("cold_start_phases") or ()))
        parts = {row["name"]: [(row.get("cold_start_phases") or {}).get(phase) or 0.0 for phase in phases] for _, row in cold}
        stacks = [
            plots.Bar(row["name"], row["cold_start_seconds"], f"{base}.rows.{r}.cold_start_seconds", emphasis=row["ours"], parts=parts[row["name"]])
            for r, row in cold
        ]
        legend = [phase.replace("_", " ") for phase in phases]
        svg = plots.stacked(stacks, legend, units.seconds, "seconds", f"{about}: cold start of each row", key=f"g{group}-cold")
        section.figures.append(Figure("Cold start", Markup(svg), "From a fresh process with empty caches to the first answer."))
    else:
        section.missing.append("Cold start was not measured: fastcnn bench --cold-start does.")
        if setups := bars("setup_seconds"):
            svg = plots.bars(setups, units.seconds, "seconds", f"{about}: set-up time of each row", key=f"g{group}-setup")
            section.figures.append(Figure("Set-up", Markup(svg), "From the model to the first answer, in a process that had everything imported."))
    if peaks := bars("peak_memory_bytes", 2**20):
        unit = lambda value: units.memory(value * 2**20)  # noqa: E731
        svg = plots.bars(peaks, unit, "MiB", f"{about}: peak memory of each row", key=f"g{group}-memory")
        section.figures.append(Figure("Peak memory", Markup(svg), "What a row needs beyond the model itself, building included."))
    else:
        section.missing.append("Peak memory was not measured.")


def _ladder(numbers: ResultNumbers, group: int, section: Section) -> None:
    base = f"groups.{group}.ladder"
    rungs = numbers.value(base) or []
    timed = [(r, rung) for r, rung in enumerate(rungs) if rung.get("seconds")]
    if not timed:
        section.missing.append("The ladder of techniques was not measured: fastcnn bench --ladder does.")
        return
    bars = []
    for r, rung in timed:
        seconds = rung["seconds"]
        gain = f"  ({units.ratio(rung['ratio']['value'])})" if rung.get("ratio") else ""
        place, median = numbers.find(f"{base}.{r}.seconds.p50")
        low, high = seconds["p10"] * 1e3, seconds["p90"] * 1e3
        bars.append(plots.Bar(rung["title"], median * 1e3, place, low, high, emphasis=r == timed[-1][0], note=gain))
    title = f"{plain_title(numbers, group)}: time of a run as techniques are added"
    svg = plots.bars(bars, lambda value: units.seconds(value / 1e3), "ms a run", title, key=f"g{group}-ladder")
    caption = "Each technique is added to those above it; shorter is better. In brackets: times as fast as the rung before."
    section.figures.append(Figure("Ladder of techniques", Markup(svg), caption))
    names = {f"{base}.{r}": rung["title"] for r, rung in timed}
    section.tables.append(numbers.table("The ladder of techniques.", "technique", names, _LADDER_COLUMNS, [False] * len(names)))
    section.notes += [f"{rung['title']}: {rung.get('status')}, {rung['reason']}" for rung in rungs if rung.get("reason")]


def _roofline(numbers: ResultNumbers, group: int, section: Section) -> None:
    base = f"groups.{group}"
    steps, ceilings = numbers.value(f"{base}.roofline"), numbers.value("ceilings")
    if not steps or not ceilings:
        section.missing.append("The roofline was not measured: fastcnn bench --roofline does.")
        return
    points = [plots.Point(step["flops"], step["bytes"], step.get("seconds"), step["bound"]) for step in steps]
    whole = numbers.value(f"{base}.roofline_total")
    total = plots.Point(whole["flops"], whole["bytes"], whole.get("seconds"), "") if whole else None
    title = f"{plain_title(numbers, group)}: roofline, a point for each layer"
    svg = plots.roofline(points, ceilings["copy_bytes_per_second"], ceilings["gemm_flops_per_second"], total, title, key=f"g{group}-roofline")
    untimed = any(point.seconds is None and point.flops for point in points)
    backend = f" of the backend {whole['backend']}" if whole and whole.get("backend") else ""
    caption = (
        "Each layer's speed, below what memory and arithmetic of this machine were measured to allow"
        f"{'; hollow points were not timed apart and stand on the roof' if untimed else '; the larger a point, the longer it takes'}."
    )
    section.figures.append(Figure(f"Roofline{backend}", Markup(svg), caption))
    names = {f"{base}.roofline.{s}": str(step["name"]) for s, step in enumerate(steps)}
    if whole:
        names[f"{base}.roofline_total"] = "whole model"
    section.tables.append(numbers.table("The roofline: each step of the plan.", "step", names, _ROOFLINE_COLUMNS, [False] * len(names)))


def _notes(numbers: ResultNumbers, group: int) -> Iterator[str]:
    base = f"groups.{group}"
    for row in numbers.value(f"{base}.rows"):
        if row["status"] != Status.TIMED:
            yield f"{row['name']}: {row['status']}, {row.get('reason') or 'no reason was given'}"
        elif row.get("warm_up") and not row["warm_up"]["steady"]:
            yield f"{row['name']} was still getting faster when its warm-up ended."
    if reason := numbers.value(f"{base}.lowered_because"):
        asked, batch = numbers.value(f"{base}.requested_batch_size"), numbers.value(f"{base}.batch_size")
        yield f"The batch size was lowered from {asked} to {batch}: {reason}"
    if numbers.value(f"{base}.interrupted"):
        yield "Interrupted: the figures are of the rounds that were complete."
