"""The numbers of a benchmark's page: each stands in the result file at a path, and the page says where.

`<data value="…" data-path="groups.0.rows.1.seconds.p50">` holds the value as it stands in the file and shows it rounded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from fastcnn.bench.views import units


@dataclass(frozen=True)
class Column:
    """Of a table: its heading, and where its value stands below a row's path; `to` is the other end of an interval."""

    title: str
    path: str
    unit: units.Unit | None = None
    to: str | None = None


@dataclass(frozen=True)
class Table:
    """Cells as they are shown; `strong` says which rows stand out."""

    caption: str
    titles: Sequence[str]
    rows: Sequence[Sequence[str | Markup]]
    strong: Sequence[bool]


class ResultNumbers:
    """Looks numbers up in a result file."""

    def __init__(self, data: Mapping[str, Any]) -> None:
        self.data = data

    def find(self, path: str) -> tuple[str, Any]:
        """The path as the file has it, and what stands there; None where the file has nothing."""
        value: Any = self.data
        found = []
        for step in path.split("."):
            if step == "p50" and isinstance(value, dict) and "p50" not in value:
                step = "median"  # its name in the first schema
            found.append(step)
            if isinstance(value, list) and step.isdigit() and int(step) < len(value):
                value = value[int(step)]
            else:
                value = value.get(step) if isinstance(value, dict) else None
        return ".".join(found), value

    def value(self, path: str) -> Any:
        """What stands at a path; None where the file has nothing."""
        return self.find(path)[1]

    def number(self, path: str, unit: units.Unit) -> Markup:
        """Empty where the file has no number."""
        place, value = self.find(path)
        if not isinstance(value, (int, float)) or isinstance(value, bool):
            return Markup("")
        return Markup('<data value="{}" data-path="{}">{}</data>').format(repr(value), place, unit(value))

    def interval(self, low: str, high: str, unit: units.Unit) -> Markup:
        """Two numbers with a dash between them; empty where the file lacks one."""
        ends = self.number(low, unit), self.number(high, unit)
        return Markup("{}\N{NARROW NO-BREAK SPACE}–\N{NARROW NO-BREAK SPACE}{}").format(*ends) if all(ends) else Markup("")

    def cell(self, base: str, column: Column) -> str | Markup:
        """A column's cell in the row at `base`; empty where the file has nothing for it."""
        path = f"{base}.{column.path}"
        if column.path.startswith("ratio.low") and self.value(f"{base}.ratio.baseline") == self.value(f"{base}.name"):
            return ""  # a row is exactly as fast as itself
        if column.unit is None:
            return words(self.value(path))
        return self.number(path, column.unit) if column.to is None else self.interval(path, f"{base}.{column.to}", column.unit)

    def table(self, caption: str, head: str, names: Mapping[str, str], columns: Sequence[Column], strong: Sequence[bool]) -> Table:
        """A row for each path in `names`; columns in which no row has anything are left out."""
        cells = {column: [self.cell(path, column) for path in names] for column in columns}
        shown = [column for column in columns if any(cells[column])]
        rows = [[name, *(cells[column][index] for column in shown)] for index, name in enumerate(names.values())]
        return Table(caption, [head, *(column.title for column in shown)], rows, strong)


def group_title(numbers: ResultNumbers, group: int) -> Markup:
    """The model and its batch size."""
    base = f"groups.{group}"
    return Markup("{} at batch {}").format(numbers.value(f"{base}.model"), numbers.number(f"{base}.batch_size", units.count))


def group_kind(numbers: ResultNumbers, group: int) -> str:
    """Scenario, precision and device, as far as the file says them."""
    said = (numbers.value(f"groups.{group}.{name}") for name in ("scenario", "precision", "dtype", "device"))
    scenario, precision, dtype, device = (str(value or "") for value in said)
    return ", ".join(filter(None, (scenario, precision or dtype, device)))


def plain_title(numbers: ResultNumbers, group: int) -> str:
    """The same as text, for the description of a picture."""
    return f"{numbers.value(f'groups.{group}.model')}, batch {numbers.value(f'groups.{group}.batch_size')}"


def words(value: Any) -> str:
    """Plain data as a person reads it; empty for None."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {words(item)}" for key, item in value.items())
    if isinstance(value, list):
        return ", ".join(map(words, value))
    return "" if value is None else "yes" if value is True else "no" if value is False else str(value)
