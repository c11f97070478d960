"""Reads what `fastcnn bench --json` wrote, of this release or an earlier one, back into a `BenchmarkReport`."""

from __future__ import annotations

import json
import math
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, fields, is_dataclass
from enum import Enum
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from fastcnn.bench.records.result import BenchmarkReport, Status
from fastcnn.bench.records.statistics import Summary
from fastcnn.errors import FileFormatError

# What an earlier schema lacks has a default in the classes of `fastcnn.bench.records.result`.
READABLE = ("fastcnn-bench/1", "fastcnn-bench/2")

_KINDS: dict[Any, str] = {str: "text", int: "a whole number", float: "a number", bool: "true or false"}

# What the first schema called them.
_FORMER = {"p50": "median"}

_T = TypeVar("_T")


@dataclass(frozen=True)
class StoredResult:
    """A result file.

    Attributes:
        name: of the file, without its folder.
        text: what it holds, to the byte.
        data: the same as plain data: every number that a page shows is one of these.
        report: the same in types; what is computed from the samples (`seconds`, `images_per_second`) is computed again.
    """

    name: str
    text: str
    data: dict[str, Any]
    report: BenchmarkReport


def read_result(path: Path) -> StoredResult:
    """Raises OSError for a file that cannot be read, and FileFormatError for one that is no whole result of a benchmark."""
    try:
        text = path.read_bytes().decode("utf-8")
    except UnicodeDecodeError:
        raise FileFormatError(f"{path} is not the JSON of a benchmark: it is not text in UTF-8") from None
    return parse_result(text, path.name, str(path))


def parse_result(text: str, name: str, where: str | None = None) -> StoredResult:
    """As `read_result`, from text; `where` is what errors call it."""
    where = where or name
    try:
        data = json.loads(text, parse_constant=_no_number)
    except json.JSONDecodeError as problem:
        if (text.strip() and problem.pos >= len(text.rstrip())) or problem.msg.startswith("Unterminated string"):
            raise FileFormatError(f"{where} is cut off: its JSON ends in the middle of line {problem.lineno}; copy or measure it again") from None
        raise FileFormatError(f"{where} is not JSON: {problem.msg} in line {problem.lineno}, column {problem.colno}") from None
    except (ValueError, RecursionError) as problem:
        raise FileFormatError(f"{where} is not JSON that fastcnn wrote: {problem}") from None
    schema = data.get("schema") if isinstance(data, dict) else None
    if not isinstance(schema, str) or not schema.startswith("fastcnn-bench/"):
        raise FileFormatError(f"{where} is not the result of a benchmark: give a file that `fastcnn bench --json` wrote")
    if schema not in READABLE:
        raise FileFormatError(f"{where} has the schema {schema}; this release of fastcnn reads {' and '.join(READABLE)}")
    if "groups" not in data:
        raise FileFormatError(f"{where} is damaged: groups is missing")
    try:
        report = _instance(BenchmarkReport, data, "")
        _check(report, data)
    except _MismatchError as problem:
        raise FileFormatError(f"{where} is damaged: {problem}") from None
    return StoredResult(name, text, data, report)


class _MismatchError(Exception):
    """Where the data is not what the schema says; the text is the path to it and what stands there."""


def _no_number(text: str) -> NoReturn:
    raise ValueError(f"it holds {text}, which is no JSON number")


def _check(report: BenchmarkReport, data: Mapping[str, Any]) -> None:
    """What types do not say: samples that can be times, and figures that are the samples'."""
    for g, group in enumerate(report.groups):
        if group.batch_size < 1:
            raise _MismatchError(f"groups[{g}].batch_size is {group.batch_size}")
        for r, row in enumerate(group.rows):
            place = f"groups[{g}].rows[{r}]"
            if row.status is Status.TIMED and not row.rounds:
                raise _MismatchError(f"{place} is timed but has no samples")
            _check_samples(place, row.summary(), row.rounds, data["groups"][g]["rows"][r])
            if row.status is Status.TIMED and not isinstance(data["groups"][g]["rows"][r].get("images_per_second"), float):
                raise _MismatchError(f"{place}.images_per_second is missing")
        for r, rung in enumerate(group.ladder or ()):
            _check_samples(f"groups[{g}].ladder[{r}]", rung.summary(), rung.rounds, data["groups"][g]["ladder"][r])


def _check_samples(place: str, summary: Summary | None, rounds: Sequence[Sequence[float]], stored: Mapping[str, Any]) -> None:
    if any(not visit or len(visit) != len(rounds[0]) or min(visit) <= 0 for visit in rounds):
        raise _MismatchError(f"{place}.rounds must all be equally long, of times above 0")
    if summary is None:
        return
    figures = stored.get("seconds")
    for name, value in asdict(summary).items():
        found = figures.get(name, figures.get(_FORMER.get(name))) if isinstance(figures, dict) else None
        if not isinstance(found, (int, float)) or not math.isclose(found, value, rel_tol=1e-6, abs_tol=1e-12):
            raise _MismatchError(f"{place}.seconds.{name} is {_shown(found)}, and its samples give {value:.6g}")


def _instance(kind: type[_T], data: Any, place: str) -> _T:
    """A dataclass from a JSON object. Keys that it does not have are derived figures, or of a later release: they stay in the plain data."""
    if not isinstance(data, dict):
        raise _MismatchError(f"{place or 'the document'} is {_shown(data)}, not an object")
    hints = typing.get_type_hints(kind)
    values = {}
    for field in fields(kind):  # type: ignore[arg-type]
        if not field.init:
            continue
        inner = f"{place}.{field.name}" if place else field.name
        if field.name in data:
            values[field.name] = _value(hints[field.name], data[field.name], inner)
        elif field.default is MISSING and field.default_factory is MISSING:
            raise _MismatchError(f"{inner} is missing")
    return kind(**values)


def _value(kind: Any, data: Any, place: str) -> Any:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any:
        return data
    if origin in (typing.Union, types.UnionType):
        if data is None and type(None) in arguments:
            return None
        (kind,) = (argument for argument in arguments if argument is not type(None))
        return _value(kind, data, place)
    if is_dataclass(kind):
        return _instance(typing.cast("type[Any]", kind), data, place)
    if origin is not None and issubclass(origin, Mapping):
        if not isinstance(data, dict):
            raise _MismatchError(f"{place} is {_shown(data)}, not an object")
        return {key: _value(arguments[1], item, f"{place}.{key}") for key, item in data.items()}
    if origin is not None and issubclass(origin, Sequence):
        if not isinstance(data, list):
            raise _MismatchError(f"{place} is {_shown(data)}, not an array")
        if origin is tuple and arguments[-1] is not Ellipsis:
            if len(data) != len(arguments):
                raise _MismatchError(f"{place} has {len(data)} entries, not {len(arguments)}")
            return tuple(_value(argument, item, f"{place}[{index}]") for index, (argument, item) in enumerate(zip(arguments, data, strict=True)))
        items = [_value(arguments[0], item, f"{place}[{index}]") for index, item in enumerate(data)]
        return tuple(items) if origin is tuple else items
    if isinstance(kind, type) and issubclass(kind, Enum):
        try:
            return kind(data)
        except ValueError:
            raise _MismatchError(f"{place} is {_shown(data)}, not one of {', '.join(str(item.value) for item in kind)}") from None
    if isinstance(data, bool) is (kind is bool) and isinstance(data, (int, float) if kind is float else kind):
        return float(data) if kind is float else data
    raise _MismatchError(f"{place} is {_shown(data)}, not {_KINDS.get(kind, kind.__name__)}")


def _shown(data: Any) -> str:
    if isinstance(data, dict):
        return "an object"
    if isinstance(data, list):
        return "an array"
    text = json.dumps(data, ensure_ascii=False)
    return text if len(text) <= 40 else text[:37] + "…"
