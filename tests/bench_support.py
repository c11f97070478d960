"""A benchmark report with everything in it that a benchmark can find, made up from a seed; and the numbers that a page shows of it."""

from __future__ import annotations

import random
import re
from dataclasses import dataclass, replace
from html.parser import HTMLParser
from typing import Any

from fastcnn.bench.records.result import (
    BenchmarkReport,
    GroupResult,
    LadderRung,
    MachineCeilings,
    RooflineStep,
    RooflineTotal,
    RowResult,
    Status,
    WarmUp,
)
from fastcnn.bench.records.statistics import speed_ratio

# Every character that means something to HTML, SVG or a URL, in a place where data stands.
HOSTILE = """<script>alert(1)</script>&"'`%{{ 7*7 }}#"""


def report(batch_sizes: tuple[int, ...] = (1, 8), *, rounds: int = 6, everything: bool = True, slower: float = 1.0, seed: int = 0) -> BenchmarkReport:
    """Two of fastcnn's rows beside three peers, one failed row and one absent one, for each batch size.

    Args:
        everything: with cold start, memory, ladder, roofline and ceilings.
        slower: what the times of `fastcnn` are multiplied by.
    """
    groups = [_group(batch, rounds, everything, slower, random.Random(f"{seed} {batch}")) for batch in batch_sizes]
    environment = {
        "date": "2026-03-04T05:06:07+00:00",
        "commit": "0123456789abcdef",
        "versions": {"fastcnn": "0.1.0", "torch": "2.15.0", "openvino": None},
        "platform": HOSTILE,
        "cpu": {"model": "Abacus & Sons", "cores": 2, "isa": "AVX512"},
        "load_average": 0.25,
        "variables": {},
        "gpu": None,
    }
    settings = {"threads": 2, "rounds": rounds, "timed_runs": 5, "seed": seed, "baseline": "best-peer", "device": "cpu", "weights": "random (seed 0)"}
    ceilings = MachineCeilings(2.2e10, 4.8e11, "float32", f"copied and multiplied on this machine {HOSTILE}") if everything else None
    return BenchmarkReport(environment, settings, groups, ceilings)


def with_precisions(report: BenchmarkReport) -> BenchmarkReport:
    """The report with a row in bfloat16 and two in int8 in its first group."""
    group = report.groups[0]
    for row in group.timed():
        row.precision = "fp32"
        row.size_bytes = 95_400_000 if row.ours else None
    slowest = group.timed()[-1]
    for name, precision, factor, size, error, agreement in (
        ("fastcnn_bf16_openvino", "bf16", 2.0, 47_700_000, 6.5e-3, 1.0),
        ("fastcnn_int8_openvino", "int8", 3.6, 24_800_000, 0.038, 0.984),
        ("fastcnn_int8_onnxruntime", "int8", 3.1, 24_800_000, 0.039, 0.984),
    ):
        rounds = [[sample / factor for sample in visit] for visit in slowest.rounds]
        group.rows.append(replace(slowest, name=name, ours=True, rounds=rounds, precision=precision, size_bytes=size, relative_error=error))
        group.rows[-1].agreement = agreement
    group.finish("best-peer")
    return report


def _group(batch: int, rounds: int, everything: bool, slower: float, noise: random.Random) -> GroupResult:
    def samples(seconds: float) -> list[list[float]]:
        return [[seconds * noise.lognormvariate(0, 0.04) for _ in range(5)] for _ in range(rounds)]

    def row(name: str, ours: bool, seconds: float, error: float) -> RowResult:
        extra: dict[str, Any] = {}
        if everything:
            phases = {"import": 2.0 + noise.random(), "build": seconds * 100, "first_answer": seconds * 3}
            extra = {"cold_start_phases": phases, "peak_memory_bytes": int(2e8 + 1e8 * noise.random())}
        proof = {"backend": "openvino", "note": HOSTILE}
        return RowResult(
            name, ours, Status.TIMED, None, seconds * 90, proof, error, WarmUp(6, 0.2, seconds, name != "eager"), samples(seconds), **extra
        )

    time = 0.025 * batch**0.9
    rows = [
        row("fastcnn", True, time * slower, 8.6e-7),
        row("fastcnn_torch", True, time * 1.3, 6.8e-7),
        row("openvino", False, time * 1.12, 1.3e-6),
        row("torch_compile_freezing", False, time * 1.4, 1.3e-6),
        row("eager", False, time * 2.8, 9.9e-7),
        RowResult(f"cheat {HOSTILE}", False, Status.FAILED, f"computes something else {HOSTILE}", 1.0, relative_error=3e-3),
        RowResult("onnxruntime", False, Status.ABSENT, "onnxruntime is not installed"),
    ]
    group = GroupResult("inception_v3", batch, (batch, 3, 299, 299), "float32", "cpu", 1e-5, rows)
    group.finish("best-peer")
    if everything:
        group.requested_batch_size = batch
        group.ladder = _ladder(time, samples)
        group.roofline, group.roofline_total = _roofline(batch, time, noise)
    return group


def _ladder(time: float, samples: Any) -> list[LadderRung]:
    rungs: list[LadderRung] = []
    steps = (("eager", "eager", 2.8), ("channels_last", "channels last", 1.9), ("folded", "BatchNorm folded", 1.6), ("fused_epilogue", "fused", 1.3))
    for technique, title, factor in steps:
        rung = LadderRung(technique, title, Status.TIMED, None, samples(time * factor), None, 9e-7, 10**8, {"layout": "channels_last"})
        if rungs:
            rung.ratio = speed_ratio(rung.rounds, rungs[-1].rounds, rungs[-1].technique)
        rungs.append(rung)
    return [*rungs, LadderRung("siblings_merged", "siblings merged", Status.FAILED, f"RuntimeError: {HOSTILE}")]


def _roofline(batch: int, time: float, noise: random.Random) -> tuple[list[RooflineStep], RooflineTotal]:
    steps = []
    for number in range(40):
        flops, moved = int(batch * 10 ** noise.uniform(7, 9)), int(batch * 10 ** noise.uniform(5.5, 7))
        if number % 10 == 9:
            flops = 0  # a copy
        bound = max(flops / 4.8e11, moved / 2.2e10)
        seconds = bound * noise.uniform(1.05, 3)
        kind = "compute" if flops / 4.8e11 > moved / 2.2e10 else "memory"
        steps.append(
            RooflineStep(number, f"Mixed_5b.branch{number}.conv", "convolution", "oneDNN", flops, moved, seconds, bound, kind, bound / seconds)
        )
    least = sum(step.bound_seconds for step in steps)
    return steps, RooflineTotal("torch", len(steps), sum(s.flops for s in steps), sum(s.bytes for s in steps), least, time, least / time)


@dataclass(frozen=True)
class ShownNumber:
    """A number on a page: what it shows, the value it claims to show (None in a plot), and where that stands in the result file."""

    text: str
    value: str | None
    path: str


def shown_numbers(html: str) -> list[ShownNumber]:
    """Every number of a page that says where it comes from: `<data>` in the text, `<g data-path>` in the plots."""
    reader = _NumberReader()
    reader.feed(html)
    return reader.found


class _NumberReader(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[ShownNumber] = []
        self._open: tuple[str, dict[str, str | None]] | None = None
        self._text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        facts = dict(attrs)
        if facts.get("data-path"):
            self._open, self._text = (tag, facts), ""

    def handle_data(self, data: str) -> None:
        self._text += data

    def handle_endtag(self, tag: str) -> None:
        if self._open is not None and tag == self._open[0]:
            facts = self._open[1]
            self.found.append(ShownNumber(self._text.strip(), facts.get("value"), str(facts["data-path"])))
            self._open = None


def number_at(data: Any, path: str) -> float:
    """What stands in a result file at a path of `shown_numbers`."""
    for step in path.split("."):
        data = data[int(step)] if isinstance(data, list) else data[step]
    assert isinstance(data, (int, float)), path
    return data


def is_rounded(text: str, value: float) -> bool:
    """`text` starts with `value` in some unit, right to the last digit shown."""
    match = re.match(r"-?[\d,]+(?:\.(\d+))?(e-?\d+)?", text)
    if match is None:
        return False
    shown = float(match[0].replace(",", ""))
    half = 0.5 * 10.0 ** -len(match[1] or "") * float(f"1{match[2] or ''}")
    factors = [10.0**power for power in range(-12, 13)] if match[2] is None else [1.0]
    return any(abs(shown - value * factor) <= half * (1 + 1e-6) for factor in (*factors, *(2.0 ** (-10 * power) for power in range(1, 4))))
