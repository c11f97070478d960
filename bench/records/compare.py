"""Two results side by side: what became faster or slower, and by how much more than chance."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from fastcnn.bench.records.load import StoredResult
from fastcnn.bench.records.result import GroupResult, RowResult, Status
from fastcnn.bench.records.statistics import FEWEST_ROUNDS, Ratio, Summary, speed_change
from fastcnn.errors import RequestError, UnknownNameError

SCHEMA = "fastcnn-bench-compare/1"

# They differ between any two runs: keys of the environment, the last part of what stands below it.
_PASSING = ("date", "commit", "load_average", "sm_mhz", "memory_mhz", "power_watts", "temperature_celsius")

# Settings that change what is measured, not only how long or how often.
_SETTINGS = ("threads", "device", "weights")


@dataclass(frozen=True)
class RowChange:
    """A row that both files have a time for. `speed` is how many times as fast it became; seconds in the summaries."""

    name: str
    ours: bool
    before: Summary
    after: Summary
    speed: Ratio

    @property
    def verdict(self) -> str:
        """`faster` or `slower` where the interval leaves no other choice, else empty."""
        low, high = self.speed.low, self.speed.high
        return "" if low is None or high is None else "faster" if low > 1 else "slower" if high < 1 else ""

    def slower_by_more_than(self, limit: float) -> bool:
        """The time grew by more than the fraction `limit`, and its whole interval lies beyond it."""
        return self.speed.high is not None and 1 / self.speed.high > 1 + limit


@dataclass(frozen=True)
class Unmatched:
    """A row without a time in one of the files; `before` and `after` say what stands there: `timed`, or why it has no time."""

    name: str
    ours: bool
    before: str
    after: str

    @property
    def broken(self) -> bool:
        """It worked, and it fails now."""
        return self.before == Status.TIMED and self.after.startswith(Status.FAILED)


@dataclass(frozen=True)
class GroupChange:
    """One model at one batch size, precision and device; rows in the order of the later file."""

    model: str
    batch_size: int
    precision: str
    device: str
    rows: tuple[RowChange, ...]
    unmatched: tuple[Unmatched, ...]

    @property
    def title(self) -> str:
        """The group in words."""
        return _title((self.model, self.batch_size, self.precision, self.device))


@dataclass(frozen=True)
class Difference:
    """Something about the machine or the run that is not the same; None where a file does not say."""

    what: str
    before: Any
    after: Any

    def __str__(self) -> str:
        return f"{self.what}: {_told(self.before)} before, {_told(self.after)} after"


@dataclass(frozen=True)
class Comparison:
    """Two results, group by group; what only one of them holds; what differed about machine and run."""

    before: str
    after: str
    relative_to: str | None
    groups: tuple[GroupChange, ...]
    only_before: tuple[str, ...]
    only_after: tuple[str, ...]
    differences: tuple[Difference, ...]

    def judged(self, patterns: Sequence[str] | None) -> tuple[list[tuple[GroupChange, RowChange]], list[tuple[GroupChange, Unmatched]]]:
        """The rows that a limit applies to: fastcnn's own for None, else those that a name or wildcard chooses.

        The second list holds those among them that worked before and fail now.

        Raises UnknownNameError for a pattern that no row matches, and RequestError where there is nothing to judge, or a row has too few
        rounds for an interval.
        """
        names = {row.name for group in self.groups for row in group.rows} | {row.name for group in self.groups for row in group.unmatched}
        for pattern in patterns or ():
            if not fnmatch.filter(names, pattern):
                raise UnknownNameError("row", pattern, sorted(names))

        def meant(row: RowChange | Unmatched) -> bool:
            return row.ours if patterns is None else any(fnmatch.fnmatchcase(row.name, pattern) for pattern in patterns)

        rows = [(group, row) for group in self.groups for row in group.rows if meant(row) and row.name != self.relative_to]
        broken = [(group, row) for group in self.groups for row in group.unmatched if meant(row) and row.broken]
        if not rows and not broken:
            what = "of fastcnn's own" if patterns is None else f"of {', '.join(patterns)}"
            raise RequestError(f"{self.before} and {self.after} have no row {what} in common: there is nothing to judge")
        for group, row in rows:
            if row.speed.low is None:
                raise RequestError(f"{row.name} of {group.title} has too few rounds to judge: measure with --rounds {FEWEST_ROUNDS} or more")
        return rows, broken

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON; times in seconds."""
        groups = [
            asdict(group) | {"rows": [asdict(row) | {"verdict": row.verdict or None} for row in group.rows]}  # every figure of the table
            for group in self.groups
        ]
        return {"schema": SCHEMA, **asdict(self), "groups": groups}


def compare_results(before: StoredResult, after: StoredResult, relative_to: str | None = None) -> Comparison:
    """Matches the groups of two results by model, input, precision and device, and their rows by name.

    Args:
        relative_to: a row by whose own change every other one is divided: two runs on a shared machine differ as wholes. Groups in which
            it has no time in both files are not compared.

    Raises RequestError if no group matches, UnknownNameError if there is no row `relative_to` in a group that does.
    """
    old, new = ({_key(group): group for group in result.report.groups} for result in (before, after))
    common = [key for key in new if key in old]
    if not common:
        raise RequestError(f"{before.name} and {after.name} have no model, batch size, precision and device in common")
    if relative_to is not None:
        usable = [key for key in common if relative_to in _timed(old[key]) and relative_to in _timed(new[key])]
        if not usable:
            raise UnknownNameError("row", relative_to, sorted({name for key in common for name in _timed(new[key]) if name in _timed(old[key])}))
        common = usable
    return Comparison(
        before=before.name,
        after=after.name,
        relative_to=relative_to,
        groups=tuple(_group_change(old[key], new[key], before.name, relative_to) for key in common),
        only_before=tuple(_title(key[:4]) for key in old if key not in common),
        only_after=tuple(_title(key[:4]) for key in new if key not in common),
        differences=tuple(_differences(before, after)),
    )


def _key(group: GroupResult) -> tuple[str, int, str, str, tuple[int, ...]]:
    return group.model, group.batch_size, group.precision, group.device, tuple(group.input_shape)


def _title(key: tuple[str, int, str, str]) -> str:
    model, batch_size, precision, device = key
    return f"{model}, batch {batch_size}, {precision}, {device}"


def _timed(group: GroupResult) -> dict[str, RowResult]:
    return {row.name: row for row in group.timed()}


def _group_change(old: GroupResult, new: GroupResult, earlier: str, relative_to: str | None) -> GroupChange:
    was, now = _timed(old), _timed(new)
    reference = None if relative_to is None else (was[relative_to].rounds, now[relative_to].rounds)
    changes = []
    for name, row in now.items():
        summaries = (was[name].summary() if name in was else None), row.summary()
        if summaries[0] is not None and summaries[1] is not None:
            speed = speed_change(was[name].rounds, row.rounds, earlier, reference=reference)
            changes.append(RowChange(name, row.ours, summaries[0], summaries[1], speed))
    left, right = ({row.name: row for row in group.rows} for group in (old, new))
    unmatched = [
        Unmatched(name, (right.get(name) or left[name]).ours, _standing(left.get(name)), _standing(right.get(name)))
        for name in dict.fromkeys([*right, *left])
        if (name in was) != (name in now)
    ]
    return GroupChange(new.model, new.batch_size, new.precision, new.device, tuple(changes), tuple(unmatched))


def _standing(row: RowResult | None) -> str:
    if row is None:
        return "not in the file"
    return row.status.value if row.reason is None else f"{row.status.value}: {row.reason}"


def _differences(before: StoredResult, after: StoredResult) -> Iterator[Difference]:
    def facts(result: StoredResult) -> dict[str, Any]:
        environment = {key: value for key, value in _flat(result.report.environment).items() if key.rpartition(".")[2] not in _PASSING}
        return environment | {name: result.report.settings.get(name) for name in _SETTINGS}

    old, new = facts(before), facts(after)
    for what in dict.fromkeys([*old, *new]):
        if old.get(what) != new.get(what):
            yield Difference(what, old.get(what), new.get(what))
    for result in (before, after):
        if result.report.interrupted:
            yield Difference(f"{result.name} was interrupted", before.report.interrupted, after.report.interrupted)


def _flat(value: Mapping[str, Any], place: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, item in value.items():
        flat |= _flat(item, f"{place}{key}.") if isinstance(item, Mapping) else {f"{place}{key}": item}
    return flat


def _told(value: Any) -> str:
    return "not said" if value is None else "yes" if value is True else "no" if value is False else str(value)
