"""What a benchmark found: one `RowResult` per peer, one `GroupResult` per model and batch size, one `BenchmarkReport` per run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from itertools import chain
from typing import Any

from fastcnn.bench.statistics import Ratio, Summary, speed_ratio, summarize
from fastcnn.errors import UnknownNameError

SCHEMA = "fastcnn-bench/1"
BEST_PEER = "best-peer"


class Status(StrEnum):
    TIMED = "timed"
    FAILED = "failed"  # raised an error, ran elsewhere than asked, or computes something else
    ABSENT = "absent"  # cannot run here: not installed, or not made for the device
    INTERRUPTED = "interrupted"  # stopped before its first round was complete


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
        rounds: seconds per run, by round; every timed run is kept.
        ratio: speed against the group's baseline.
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

    def summary(self) -> Summary | None:
        """In seconds; None for a row that was not timed."""
        return summarize(list(chain.from_iterable(self.rounds))) if self.status is Status.TIMED else None


@dataclass
class GroupResult:
    """All rows of one model and batch size; timed ones first, the fastest on top."""

    model: str
    batch_size: int
    input_shape: tuple[int, ...]
    dtype: str
    device: str
    tolerance: float
    rows: list[RowResult]
    baseline: str | None = None
    interrupted: bool = False

    @property
    def scenario(self) -> str:
        """As MLPerf Inference names it: one query after the other, or batches at full load."""
        return "single-stream" if self.batch_size == 1 else "offline"

    def timed(self) -> list[RowResult]:
        return [row for row in self.rows if row.status is Status.TIMED]

    def finish(self, baseline: str) -> None:
        """Sorts the rows and sets each ratio to `baseline`: a row's name, or `best-peer`, the fastest row that is not fastcnn's."""
        medians = {row.name: summary.median for row in self.rows if (summary := row.summary()) is not None}
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
        rows = []
        for row in self.rows:
            summary = row.summary()
            plain = asdict(row) | {"status": row.status.value, "seconds": None, "images_per_second": None}
            if summary is not None:
                plain |= {"seconds": asdict(summary), "images_per_second": self.batch_size / summary.median}
            rows.append(plain)
        return asdict(self) | {"input_shape": list(self.input_shape), "scenario": self.scenario, "rows": rows}


@dataclass
class BenchmarkReport:
    """A whole run. `to_dict` is what `--json` writes."""

    environment: Mapping[str, Any]
    settings: Mapping[str, Any]
    groups: list[GroupResult] = field(default_factory=list)

    @property
    def interrupted(self) -> bool:
        return any(group.interrupted for group in self.groups)

    def rows(self) -> list[RowResult]:
        return [row for group in self.groups for row in group.rows]

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON; times in seconds."""
        return {
            "schema": SCHEMA,
            "environment": dict(self.environment),
            "settings": dict(self.settings),
            "interrupted": self.interrupted,
            "groups": [group.to_dict() for group in self.groups],
        }


def check_baseline(baseline: str, names: Sequence[str]) -> None:
    """Raises UnknownNameError unless `baseline` is `best-peer` or one of the rows."""
    if baseline != BEST_PEER and baseline not in names:
        raise UnknownNameError("baseline", baseline, [BEST_PEER, *names])
