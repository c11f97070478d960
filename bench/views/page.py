"""A benchmark's page: one HTML file without scripts or network, every number of which stands in the result file that it carries along.

Nothing on the page is computed that the file does not hold; everything that comes from the file is escaped.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from fastcnn.bench.records.load import StoredResult, parse_result
from fastcnn.bench.records.result import BEST_PEER, BenchmarkReport, Status
from fastcnn.bench.views import units
from fastcnn.bench.views.page_numbers import ResultNumbers, group_kind, group_title, words
from fastcnn.bench.views.page_sections import overviews, section_of
from fastcnn.bench.views.tables import to_json
from fastcnn.files import write_text


def make_page(result: StoredResult) -> str:
    """The page of a result, schema 1 or 2; parts that were not measured are named in a line each. The same result gives the same bytes."""
    numbers = ResultNumbers(result.data)
    groups = range(len(result.data["groups"]))
    models = list(dict.fromkeys(str(numbers.value(f"groups.{g}.model")) for g in groups))
    sections = [section_of(numbers, g) for g in groups]
    everywhere = [line for line in (sections[0].missing if sections else ()) if all(line in section.missing for section in sections)]
    for section in sections:
        section.missing = [line for line in section.missing if line not in everywhere]
    template = Environment(
        loader=PackageLoader("fastcnn.bench.views", "templates"), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    ).get_template("page.html")
    return template.render(
        title=f"{', '.join(models) or 'nothing measured'} on {_machine(numbers)}",
        machine=_machine(numbers),
        date=units.day(numbers.value("environment.date")),
        interrupted=bool(numbers.value("interrupted")),
        headline=_headline(numbers),
        cards=[_card(numbers, g) for g in groups if _best(numbers, g) is not None],
        overviews=list(overviews(numbers, models)),
        sections=sections,
        missing=everywhere,
        environment=list(_facts(numbers, "environment")),
        settings=list(_facts(numbers, "settings")),
        ceilings=list(_facts(numbers, "ceilings")),
        method=_method(numbers),
        name=result.name,
        schema=numbers.value("schema"),
        link=Markup("data:application/json;base64,{}").format(base64.b64encode(result.text.encode()).decode()),
    )


def write_page(report: BenchmarkReport, path: Path) -> None:
    """Writes the page of a run in one move. Raises RequestError where it cannot be written."""
    write_text(path, make_page(parse_result(to_json(report) + "\n", f"{path.stem}.json")))


def _headline(numbers: ResultNumbers) -> Markup:
    """Of the first group that has a time: who is fastest, by how much, and whether that is more than chance."""
    found = next(((g, best) for g in range(len(numbers.data["groups"])) if (best := _best(numbers, g)) is not None), None)
    if found is None:
        return Markup("No row was timed")
    group, best = found
    base, row = f"groups.{group}", f"groups.{group}.rows.{best}"
    fastest, name = numbers.value(f"{base}.rows.0.name"), numbers.value(f"{row}.name")
    subject = Markup("{} at batch {}: ").format(numbers.value(f"{base}.model"), numbers.number(f"{base}.batch_size", units.count))
    if not _compared(numbers, group, best):
        return subject + Markup("{} takes {}, the fastest row").format(fastest, numbers.number(f"{base}.rows.0.seconds.p50", units.seconds))
    ratio, against = numbers.number(f"{row}.ratio.value", units.ratio), _against(numbers, group)
    interval = numbers.interval(f"{row}.ratio.low", f"{row}.ratio.high", units.bound)
    interval = Markup(" (95\N{NO-BREAK SPACE}% interval {})").format(interval) if interval else interval
    verdict = _verdict(numbers, row)
    if verdict == "faster":
        return subject + Markup("{} is {}{} the speed of {}{}").format(name, "the fastest, " if name == fastest else "", ratio, against, interval)
    if verdict == "slower":
        return subject + Markup("{} is the fastest; {} has {} the speed of {}{}").format(fastest, name, ratio, against, interval)
    return subject + Markup("{} is level with {}, at {} its speed{}").format(name, against, ratio, interval)


def _card(numbers: ResultNumbers, group: int) -> dict[str, Any]:
    base, best = f"groups.{group}", _best(numbers, group)
    row = f"{base}.rows.{best}"
    verdicts = {
        "faster": "faster",
        "slower": "slower",
        "": "no clear difference",
        None: "too few rounds for an interval",
    }
    compared = best is not None and _compared(numbers, group, best)
    return {
        "anchor": f"group-{group}",
        "title": group_title(numbers, group),
        "kind": group_kind(numbers, group),
        "ratio": numbers.number(f"{row}.ratio.value", units.ratio) if compared else Markup(""),
        "name": numbers.value(f"{row}.name"),
        "against": _against(numbers, group),
        "interval": numbers.interval(f"{row}.ratio.low", f"{row}.ratio.high", units.bound) if compared else Markup(""),
        "verdict": verdicts[_verdict(numbers, row)] if compared else "nothing to compare it with",
        "time": numbers.number(f"{row}.seconds.p50", units.seconds),
        "rate": numbers.number(f"{row}.images_per_second", units.plain),
    }


def _best(numbers: ResultNumbers, group: int) -> int | None:
    """The fastest row of fastcnn's, or the fastest of all where it has none; rows stand fastest first."""
    timed = [(r, row) for r, row in enumerate(numbers.value(f"groups.{group}.rows")) if row["status"] == Status.TIMED]
    return next((r for r, row in timed if row["ours"]), timed[0][0] if timed else None)


def _compared(numbers: ResultNumbers, group: int, row: int) -> bool:
    """The row has a ratio to another one."""
    path = f"groups.{group}.rows.{row}"
    return numbers.value(f"{path}.ratio") is not None and numbers.value(f"{path}.name") != numbers.value(f"groups.{group}.baseline")


def _verdict(numbers: ResultNumbers, row: str) -> str | None:
    low, high = numbers.value(f"{row}.ratio.low"), numbers.value(f"{row}.ratio.high")
    return None if low is None or high is None else "faster" if low > 1 else "slower" if high < 1 else ""


def _against(numbers: ResultNumbers, group: int) -> str:
    baseline = numbers.value(f"groups.{group}.baseline")
    return f"{baseline}, the best peer" if numbers.value("settings.baseline") == BEST_PEER else str(baseline)


def _machine(numbers: ResultNumbers) -> str:
    threads = numbers.value("settings.threads")
    processor = numbers.value("environment.gpu.name") or numbers.value("environment.cpu.model") or "an unnamed machine"
    on_cpu = numbers.value("settings.device") in (None, "cpu")
    if on_cpu:
        processor = numbers.value("environment.cpu.model") or "an unnamed machine"
    return f"{processor}, {threads} threads" if on_cpu and threads else str(processor)


def _facts(numbers: ResultNumbers, path: str) -> Iterator[tuple[str, str | Markup]]:
    """Every leaf below a path, by its name."""
    value = numbers.value(path)
    if isinstance(value, Mapping):
        for key in value:
            for name, shown in _facts(numbers, f"{path}.{key}"):
                yield f"{key}.{name}" if name else str(key), shown
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        yield "", numbers.number(path, lambda number: f"{number:,}" if isinstance(number, int) else units.plain(number))
    elif value is not None:
        yield "", words(value)


def _method(numbers: ResultNumbers) -> list[Markup]:
    rounds, runs = (numbers.number(f"settings.{name}", units.count) for name in ("rounds", "timed_runs"))
    said = [Markup("Each row is first compared with the reference in float64, on two inputs; one that computes something else is never timed.")]
    if rounds and runs:
        said.append(
            Markup(
                "After a warm-up, {} rounds visit every row once, in an order drawn anew. A visit is a pause, an untimed run and up to {} "
                "timed ones, so that a machine that slows down meets all rows alike."
            ).format(rounds, runs)
        )
    said.append(Markup("Intervals are a bootstrap over whole rounds at 95 %; where one holds 1, the two rows cannot be told apart."))
    return said
