"""`fastcnn bench compare` and `fastcnn bench page`: what can be done with a result that `fastcnn bench --json` wrote."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fastcnn.bench.records.rows import ROWS
from fastcnn.cli import output
from fastcnn.cli.bench.layers import layers
from fastcnn.cli.bench.run import bench
from fastcnn.cli.default_command import DefaultCommandGroup
from fastcnn.cli.examples import examples
from fastcnn.cli.exit_codes import CHECK_FAILED
from fastcnn.cli.options import Force, Json
from fastcnn.errors import RequestError
from fastcnn.files import check_target, write_text

if TYPE_CHECKING:
    from fastcnn.bench.records.compare import Comparison, RowChange

_COMPARE_EPILOG = """
A row is slower by more than P when the whole 95 % interval of how much its median time grew lies beyond P, so that chance alone fails the
check at most once in 40 times. A row that was timed before and fails now counts as slower, one that is missing
does not. The interval covers what varied within each run, not that a shared machine may be slower as a whole tomorrow: there, judge by
--relative-to a row that does not change. Exit codes: 0 no row is slower, 1 a row is, 2 nothing could be judged.
"""

# \b: click does not fill the lines of this paragraph.
_ROWS_EPILOG = "\n".join(["\b", "Rows:", *(f"  {name:<{max(map(len, ROWS))}}  {meaning}" for name, meaning in ROWS.items())])

_RESULT = "A file that `fastcnn bench --json` wrote."

commands = typer.Typer(cls=DefaultCommandGroup, rich_markup_mode=None)
commands.command(
    DefaultCommandGroup.default,
    hidden=True,
    epilog=examples("bench", f"{_ROWS_EPILOG}\n\nAlso: fastcnn bench compare, fastcnn bench page and fastcnn bench layers (see their --help)."),
)(bench)
commands.command(short_help="Time every implementation of every convolution of a model on the GPU.", epilog=examples("bench layers"))(layers)


@commands.command(short_help="Compare two results, and fail if one is slower.", epilog=examples("bench compare", " ".join(_COMPARE_EPILOG.split())))
def compare(
    before: Annotated[Path, typer.Argument(metavar="BEFORE", help=_RESULT, show_default=False)],
    after: Annotated[Path, typer.Argument(metavar="AFTER", help="A later one.", show_default=False)],
    fail_if_slower: Annotated[
        str | None, typer.Option(metavar="P%", help="End with exit code 1 if a row of fastcnn's became slower by more than this.")
    ] = None,
    rows: Annotated[
        str | None, typer.Option(metavar="NAME,NAME…", help="The rows that --fail-if-slower judges, by name or wildcard.  [default: fastcnn's own]")
    ] = None,
    relative_to: Annotated[
        str | None, typer.Option(metavar="NAME", help="A row that every other one is measured by, to cancel a machine that was slower as a whole.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Compare two results: how many times as fast each row became, with the interval that its samples allow."""
    limit = None if fail_if_slower is None else _fraction(fail_if_slower)
    patterns = None if rows is None else [name.strip() for name in rows.split(",") if name.strip()]
    if patterns == []:
        raise RequestError("--rows names no row; leave it out for fastcnn's own")
    if patterns is not None and limit is None:
        raise RequestError("--rows chooses what --fail-if-slower judges: give both")

    from fastcnn.bench.records.compare import compare_results
    from fastcnn.bench.records.load import read_result

    comparison = compare_results(read_result(before), read_result(after), relative_to)
    slower = [] if limit is None else _slower(comparison, limit, patterns)
    widest = None if limit is None else comparison.widest_interval(patterns)
    if as_json:
        output.print_json(comparison.to_dict() | {"fail_if_slower": limit, "slower": slower, "widest_interval": widest})
    else:
        _print(comparison)
        if limit is not None and widest is not None and not slower:
            print(
                f"\nno row is slower by more than {limit * 100:g}%; the widest interval is ±{widest:.1%}, "
                f"so a loss of less than {limit + widest:.1%} may not have been seen"
            )
    for difference in comparison.differences:
        output.warning(f"not the same: {difference}")
    if slower:
        _say_if_peers_are_slower_too(comparison, limit or 0.0)
        output.error(f"slower by more than {fail_if_slower}: {'; '.join(slower)}")
        raise typer.Exit(CHECK_FAILED)


@commands.command(short_help="Make a page from a result.", epilog=examples("bench page"))
def page(
    result: Annotated[Path, typer.Argument(metavar="RESULT", help=_RESULT, show_default=False)],
    html_file: Annotated[
        Path | None,
        typer.Option("--html", metavar="FILE", help="The page to write.  [default: RESULT with .html in place of .json]", show_default=False),
    ] = None,
    force: Force = False,
) -> None:
    """Make a page for people from a result: one HTML file that needs no network."""
    target = html_file or result.with_suffix(".html")
    if target.exists() and result.exists() and target.samefile(result):
        raise RequestError(f"{target} is the result itself: give --html another name")
    check_target(target, force, "--html")

    from fastcnn.bench.records.load import read_result
    from fastcnn.bench.views.page import make_page

    stored = read_result(result)
    with output.working(f"drawing {target}"):
        text = make_page(stored)
    write_text(target, text)
    output.note(f"the page is {target}")


def _fraction(text: str) -> float:
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*%\s*", text, re.ASCII)
    if match is None:
        raise RequestError(f"--fail-if-slower takes a percentage such as 5%; it is {text!r}")
    return float(match[1]) / 100


def _slower(comparison: Comparison, limit: float, patterns: list[str] | None) -> list[str]:
    judged, broken = comparison.judged(patterns)
    lines = [f"{row.name} ({group.title}) takes {_growth(row)} more time" for group, row in judged if row.slower_by_more_than(limit)]
    return lines + [f"{row.name} ({group.title}) {row.after}" for group, row in broken]


def _say_if_peers_are_slower_too(comparison: Comparison, limit: float) -> None:
    peers = [row for group in comparison.groups for row in group.rows if not row.ours and row.name != comparison.relative_to]
    count = sum(row.slower_by_more_than(limit) for row in peers)
    if count and comparison.relative_to is None:
        output.note(
            f"{count} of {len(peers)} rows that are not fastcnn's became slower by more than {limit * 100:g}% too: perhaps the machine did; "
            "--relative-to one of them cancels that"
        )


def _growth(row: RowChange) -> str:
    return f"{1 / row.speed.value - 1:.1%}"


def _print(comparison: Comparison) -> None:
    relative = f", relative to {comparison.relative_to}" if comparison.relative_to else ""
    print(f"speed: how many times as fast {comparison.after} is as {comparison.before}{relative}")
    for group in comparison.groups:
        print(f"\n{group.title}")
        if group.rows:
            right = ("before", "after", "speed", "95 % interval")
            output.print_table(("row", *right, ""), [_cells(row) for row in group.rows], right=right)
        for row in group.unmatched:
            print(f"only one has a time  {row.name}: before {row.before}, after {row.after}")
    for name, titles in ((comparison.before, comparison.only_before), (comparison.after, comparison.only_after)):
        for title in titles:
            print(f"not compared  {title}: only in {name}" if comparison.relative_to is None else f"not compared  {title}, in {name}")


def _cells(row: RowChange) -> tuple[str, ...]:
    from fastcnn.bench.views.units import seconds

    low, high = row.speed.low, row.speed.high
    interval = "" if low is None or high is None else f"{low:.3f} – {high:.3f}"
    return row.name, seconds(row.before.p50), seconds(row.after.p50), f"{row.speed.value:.3f}×", interval, row.verdict
