"""What a benchmark found: one `RowResult` per peer, one `GroupResult` per model and batch size, one `BenchmarkReport` per run.

Fields that came after the first schema have defaults, so that earlier files can be read into the same classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from itertools import chain
from typing import Any

from fastcnn.bench.records.statistics import Ratio, Summary, speed_ratio, summarize
from fastcnn.errors import UnknownNameError
from fastcnn.precision import Precision

SCHEMA = "fastcnn-bench/2"
BEST_PEER = "best-peer"


class Status(StrEnum):
    """What became of a row."""

    TIMED = "timed"
    FAILED = "failed"  # raised an error, ran elsewhere than asked, or computes something else
    ABSENT = "absent"  # cannot run here: not installed, or not made for the device
    INTERRUPTED = "interrupted"  # stopped before the first round of all rows was complete


@dataclass(frozen=True)
class WarmUp:
    """Untimed runs before the rounds; `steady` is False where the row was still getting faster when the limit was reached.

    `seconds` is the whole time, `seconds_per_run` the median of the last few runs.
    """

    runs: int
    seconds: float
    seconds_per_run: float
    steady: bool


@dataclass
class RowResult:
    """One peer on one model and batch size.

    Attributes:
        name: the peer's.
        ours: it is one of fastcnn's own rows.
        status, reason: the reason is one line, and None for a timed row.
        setup_seconds: from the reference module to the end of the first run, a file that was exported for several rows counted in each.
        proof: where and how it ran, as the runtime itself says.
        relative_error: L2, against the reference in float64 (`fastcnn.parity`); the worst of the inputs tried.
        rounds: seconds per run, by round; every timed run of every complete round. The monotonic clock's on a CPU, device events' on CUDA.
        end_to_end_rounds: on CUDA the same runs by the host's clock, until the device is done.
        ratio: speed against the group's baseline.
        cold_start_phases: seconds that a fresh process takes for `import`, `build` and `first_answer`; compiler caches empty.
        peak_memory_bytes: what it adds to the memory of that process, at most: resident memory on a CPU, device memory on CUDA.
        allocator_peak_bytes: on CUDA the part of it that PyTorch allocated.
        agreement: of a row in int8, or in bfloat16 beside it: the share of pictures with the reference's best class; its `relative_error` is
            theirs too.
        precision: what it computes in, where that may be something else than the group's; None in earlier files.
        size_bytes: what its file takes, or its weights where it has none.
    """

    name: str
    ours: bool
    status: Status = Status.INTERRUPTED
    reason: str | None = None
    setup_seconds: float | None = None
    proof: Mapping[str, str] = field(default_factory=dict)
    relative_error: float | None = None
    warm_up: WarmUp | None = None
    rounds: list[list[float]] = field(default_factory=list)
    ratio: Ratio | None = None
    end_to_end_rounds: list[list[float]] = field(default_factory=list)
    cold_start_phases: dict[str, float] | None = None
    peak_memory_bytes: int | None = None
    allocator_peak_bytes: int | None = None
    agreement: float | None = None
    precision: str | None = None
    size_bytes: int | None = None

    def summary(self) -> Summary | None:
        """In seconds; None for a row that was not timed."""
        return _summary(self.rounds) if self.status is Status.TIMED else None

    def end_to_end(self) -> Summary | None:
        """As `summary`, by the host's clock; None on a CPU, where that is the only one."""
        return _summary(self.end_to_end_rounds) if self.status is Status.TIMED else None

    @property
    def cold_start_seconds(self) -> float | None:
        """From the start of a fresh process to its first answer; None where that was not measured."""
        return None if self.cold_start_phases is None else sum(self.cold_start_phases.values())

    def to_dict(self, batch_size: int) -> dict[str, Any]:
        """Plain data; `batch_size` turns times into images per second."""
        summary, end_to_end = self.summary(), self.end_to_end()
        return asdict(self) | {
            "status": self.status.value,
            "seconds": asdict(summary) if summary else None,
            "end_to_end_seconds": asdict(end_to_end) if end_to_end else None,
            "images_per_second": batch_size / summary.p50 if summary else None,
            "cold_start_seconds": self.cold_start_seconds,
        }


@dataclass(frozen=True)
class MachineCeilings:
    """What the machine can do at most, measured on it.

    Attributes:
        copy_bytes_per_second: bytes read plus bytes written by a copy far larger than the caches.
        gemm_flops_per_second: of a large matrix product in `dtype`.
        how: one sentence for people.
    """

    copy_bytes_per_second: float
    gemm_flops_per_second: float
    dtype: str
    how: str


@dataclass(frozen=True)
class RooflineStep:
    """One step of a plan, for a whole batch.

    Attributes:
        step, name, op, kernel: as in the plan.
        flops: floating-point operations, a multiply-add counted as two.
        bytes: each activation and weight read once, the output written once.
        seconds: measured; None where no single step can be timed.
        bound_seconds: the larger of bytes over the copy bandwidth and flops over the rate of a matrix product.
        bound: which of the two, "memory" or "compute".
        share: of the bound that is reached, bound_seconds / seconds; above 1 where the data was still in a cache.
    """

    step: int
    name: str
    op: str
    kernel: str
    flops: int
    bytes: int
    seconds: float | None
    bound_seconds: float
    bound: str
    share: float | None


@dataclass(frozen=True)
class RooflineTotal:
    """All steps of a plan together; `seconds` is the median of the whole module, `bound_seconds` the sum over the steps."""

    backend: str
    steps: int
    flops: int
    bytes: int
    bound_seconds: float
    seconds: float | None
    share: float | None


@dataclass
class LadderRung:
    """One technique on top of those before it; `ratio` is its speed against the timed rung before it. The rest as in `RowResult`."""

    technique: str
    title: str
    status: Status = Status.INTERRUPTED
    reason: str | None = None
    rounds: list[list[float]] = field(default_factory=list)
    ratio: Ratio | None = None
    relative_error: float | None = None
    peak_memory_bytes: int | None = None
    proof: Mapping[str, str] = field(default_factory=dict)

    def summary(self) -> Summary | None:
        """In seconds; None for a rung that was not timed."""
        return _summary(self.rounds) if self.status is Status.TIMED else None

    def to_dict(self) -> dict[str, Any]:
        """Plain data; times in seconds."""
        summary = self.summary()
        return asdict(self) | {"status": self.status.value, "seconds": asdict(summary) if summary else None}


@dataclass
class GroupResult:
    """All rows of one model and batch size; timed ones first, the fastest on top.

    Attributes:
        tolerance: the largest relative L2 error of a row that still computes the reference's function.
        precision: fp32, tf32, fp16, bf16 or int8; float32 tensors may stand for several of them.
        requested_batch_size: larger than `batch_size` where that was halved for want of memory; None in files of the first schema.
        lowered_because: the row that ran out of memory, and its words.
    """

    model: str
    batch_size: int
    input_shape: tuple[int, ...]
    dtype: str
    device: str
    tolerance: float
    rows: list[RowResult]
    baseline: str | None = None
    interrupted: bool = False
    precision: str = "fp32"
    requested_batch_size: int | None = None
    lowered_because: str | None = None
    roofline: list[RooflineStep] | None = None
    roofline_total: RooflineTotal | None = None
    ladder: list[LadderRung] | None = None

    @property
    def scenario(self) -> str:
        """As MLPerf Inference names it: one query after the other, or batches at full load."""
        return "single-stream" if self.batch_size == 1 else "offline"

    def timed(self) -> list[RowResult]:
        """The rows that have times."""
        return [row for row in self.rows if row.status is Status.TIMED]

    def one_of_each_precision(self) -> list[int]:
        """Which rows stand for float32, bfloat16 and int8, in that order; as `first_of_each_precision`."""
        return first_of_each_precision([(row.precision, row.ours) if row.status is Status.TIMED else (None, False) for row in self.rows])

    def finish(self, baseline: str) -> None:
        """Sorts the rows and sets each ratio to `baseline`: a row's name, or `best-peer`, the fastest row that is not fastcnn's."""
        medians = {row.name: summary.p50 for row in self.rows if (summary := row.summary()) is not None}
        order = list(Status)
        self.rows.sort(key=lambda row: (order.index(row.status), medians.get(row.name, 0.0)))
        timed = self.timed()
        peers = [row for row in timed if not row.ours]
        chosen = (peers or timed)[:1] if baseline == BEST_PEER else [row for row in timed if row.name == baseline]
        if not chosen:
            return
        self.baseline = chosen[0].name
        for row in timed:
            row.ratio = speed_ratio(row.rounds, chosen[0].rounds, self.baseline)

    def to_dict(self) -> dict[str, Any]:
        """Plain data; times in seconds."""
        return asdict(self) | {
            "input_shape": list(self.input_shape),
            "scenario": self.scenario,
            "rows": [row.to_dict(self.batch_size) for row in self.rows],
            "ladder": None if self.ladder is None else [rung.to_dict() for rung in self.ladder],
        }


@dataclass
class BenchmarkReport:
    """A whole run. `to_dict` is what `--json` writes."""

    environment: Mapping[str, Any]
    settings: Mapping[str, Any]
    groups: list[GroupResult] = field(default_factory=list)
    ceilings: MachineCeilings | None = None

    @property
    def interrupted(self) -> bool:
        """Whether Ctrl-C ended a group before its last round."""
        return any(group.interrupted for group in self.groups)

    def rows(self) -> list[RowResult]:
        """Those of all groups."""
        return [row for group in self.groups for row in group.rows]

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON; times in seconds."""
        return {
            "schema": SCHEMA,
            "environment": dict(self.environment),
            "settings": dict(self.settings),
            "interrupted": self.interrupted,
            "ceilings": None if self.ceilings is None else asdict(self.ceilings),
            "groups": [group.to_dict() for group in self.groups],
        }


def first_of_each_precision(rows: Sequence[tuple[str | None, bool]]) -> list[int]:
    """Positions of the first of fastcnn's rows in each precision, or else of all, from wide to narrow; none where all are in one.

    Args:
        rows: (precision, is it ours), the fastest first; None for one that has no time.
    """
    found: dict[str, int] = {}
    for ours_only in (True, False):
        for position, (precision, ours) in enumerate(rows):
            if precision is not None and (ours or not ours_only):
                found.setdefault(precision, position)
    order = [precision.value for precision in Precision]
    return sorted(found.values(), key=lambda position: order.index(str(rows[position][0]))) if len(found) > 1 else []


def check_baseline(baseline: str, names: Sequence[str]) -> None:
    """Raises UnknownNameError unless `baseline` is `best-peer` or one of the rows."""
    if baseline != BEST_PEER and baseline not in names:
        raise UnknownNameError("baseline", baseline, [BEST_PEER, *names])


def _summary(rounds: Sequence[Sequence[float]]) -> Summary | None:
    samples = list(chain.from_iterable(rounds))
    return summarize(samples) if samples else None
