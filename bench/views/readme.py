"""`python -m fastcnn.bench.views.readme --write`: the README's results, made from the stored result that its marker names.

    <!-- results of bench/results/NAME.json, made by `make readme` -->
    …
    <!-- end of results -->

Nothing between the markers is typed by hand; `--check` ends with 1 where it, or a picture, is not what the file gives.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fastcnn.bench.records.load import StoredResult, read_result
from fastcnn.bench.records.result import BEST_PEER, GroupResult, RowResult
from fastcnn.bench.records.rows import PRECISION_TITLES, ROWS, words_of
from fastcnn.bench.views import plots, units
from fastcnn.errors import FastcnnError, FileFormatError
from fastcnn.files import write_text

_SECTION = re.compile(r"(<!-- results of (\S+), made by `make readme` -->\n).*?(<!-- end of results -->)", re.DOTALL)

# GitHub's own text and grey of each theme; the accent is the page's.
_THEMES = {
    "light": {"ink": "#1f2328", "muted": "#59636e", "grid": "#d1d9e0", "surface": "#ffffff", "ours": "#0b63c5", "peer": "#9aa5b3", "bad": "#b3261e"},
    "dark": {"ink": "#f0f6fc", "muted": "#9198a1", "grid": "#3d444d", "surface": "#0d1117", "ours": "#5ba8ff", "peer": "#74808f", "bad": "#ff8a80"},
}


@dataclass(frozen=True)
class Generated:
    """The README with its section made anew, and the pictures that it shows."""

    text: str
    pictures: Mapping[Path, str]


def generate(readme: Path) -> Generated:
    """Raises FileFormatError where the README has no such section, or the file it names is no result; OSError where one cannot be read."""
    text = readme.read_text(encoding="utf-8")
    found = _SECTION.search(text)
    if found is None:
        raise FileFormatError(f"{readme} has no section for results: put `<!-- results of FILE, made by `make readme` -->` and its end into it")
    result = read_result(readme.parent / found[2])
    timed = {index: group for index, group in enumerate(result.report.groups) if group.timed()}
    if not timed:
        raise FileFormatError(f"{found[2]} holds no row that was timed")
    several = len({group.model for group in timed.values()}) > 1
    pictures: dict[Path, str] = {}
    shown = []
    for index, group in timed.items():
        stem = "-".join([Path(found[2]).with_suffix("").as_posix(), *([group.model] if several else []), f"batch-{group.batch_size}"])
        svg = _picture(group, index)
        pictures |= {readme.parent / f"{stem}-{theme}.svg": plots.coloured(svg, palette) for theme, palette in _THEMES.items()}
        shown.append(_picture_element(stem, group))
    groups = list(timed.values())
    tables = [_table(groups), *(_precisions(group) for group in groups), _rows_explained(groups)]
    parts = [_where(result, readme.parent / found[2]), *filter(None, tables), "\n".join(shown), _how(result, found[2])]
    section = found[1] + "\n" + "\n\n".join(parts) + "\n\n" + found[3]
    return Generated(text[: found.start()] + section + text[found.end() :], pictures)


def stale(readme: Path) -> list[str]:
    """What `--write` would change, a line each. Of a picture only the text counts: matplotlib's releases round coordinates differently."""
    made = generate(readme)
    problems = [] if made.text == readme.read_text(encoding="utf-8") else [f"{readme} differs from what its result file gives"]
    for path, svg in made.pictures.items():
        if not path.exists():
            problems.append(f"{path} is missing")
        elif _texts(path.read_text(encoding="utf-8")) != _texts(svg):
            problems.append(f"{path} shows other figures than the result file")
    return problems


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code: 0 done, 1 the README is stale, 2 it cannot be made."""
    parser = argparse.ArgumentParser(prog="python -m fastcnn.bench.views.readme", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("readme", nargs="?", type=Path, default=Path("README.md"), help="(default: %(default)s)")
    action = parser.add_mutually_exclusive_group(required=True)
    action.add_argument("--write", action="store_true", help="write the section and its pictures")
    action.add_argument("--check", action="store_true", help="end with 1 if they are not what the result file gives")
    options = parser.parse_args(arguments)
    try:
        if options.check:
            problems = stale(options.readme)
            for problem in problems:
                print(f"error: {problem}: run make readme", file=sys.stderr)
            return 1 if problems else 0
        made = generate(options.readme)
        for path, svg in made.pictures.items():
            write_text(path, svg)
        write_text(options.readme, made.text)
    except (FastcnnError, OSError) as problem:
        print(f"error: {problem}", file=sys.stderr)
        return 2
    return 0


def _table(groups: Sequence[GroupResult]) -> str:
    """A row for each row of the benchmark in the order of the first group, two columns for each group."""
    several = len({group.model for group in groups}) > 1
    head = ["row"]
    for group in groups:
        name = f"{group.model}, batch {group.batch_size}" if several else f"batch {group.batch_size}"
        head += [f"{name}: median", f"speed against {group.baseline}" if group.baseline else "speed"]
    ours = {row.name for group in groups for row in group.timed() if row.ours}
    names = list(dict.fromkeys(row.name for group in groups for row in group.timed()))
    lines = [head, ["---", *["---:"] * (len(head) - 1)]]
    for name in names:
        code = f"`{name.replace('`', chr(39))}`"
        cells = [f"**{code}**" if name in ours else code]
        for group in groups:
            cells += _cells(next((row for row in group.timed() if row.name == name), None))
        lines.append(cells)
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def _precisions(group: GroupResult) -> str:
    """From float32 to int8 at a glance; empty where all rows are in one precision."""
    rows = [group.rows[position] for position in group.one_of_each_precision()]
    if not rows:
        return ""
    head = [f"{group.model}, batch {group.batch_size}", "row", f"speed against {group.baseline}", "size", "relative error", "agreement"]
    lines = [head, ["---", "---", *["---:"] * 4]]
    for row in rows:
        lines.append(
            [
                PRECISION_TITLES.get(str(row.precision), str(row.precision)),
                f"`{row.name.replace('`', chr(39))}`",
                _cells(row)[1],
                "" if row.size_bytes is None else units.volume(row.size_bytes),
                "" if row.relative_error is None else units.error(row.relative_error),
                "" if row.agreement is None else units.share(row.agreement),
            ]
        )
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def _rows_explained(groups: Sequence[GroupResult]) -> str:
    words = words_of({row.name for group in groups for row in group.timed()}, ())
    if not words:
        return ""
    lines = [f"- `{word}`: {meaning}" for word, meaning in words.items() if word in ROWS]
    return "\n".join(["<details><summary>What each row is</summary>", "", *lines, "", "</details>"])


def _cells(row: RowResult | None) -> list[str]:
    summary = None if row is None else row.summary()
    if row is None or summary is None:
        return ["", ""]
    ratio = row.ratio
    if ratio is None:
        return [units.seconds(summary.p50), ""]
    interval = f" ({units.bound(ratio.low)} – {units.bound(ratio.high)})" if ratio.low and ratio.high and ratio.baseline != row.name else ""
    return [units.seconds(summary.p50), units.ratio(ratio.value) + interval]


def _where(result: StoredResult, path: Path) -> str:
    environment, settings = result.report.environment, result.report.settings
    models = ", ".join(dict.fromkeys(f"{group.model} ({group.precision})" for group in result.report.groups))
    gpu = environment.get("gpu") if settings.get("device") == "cuda" else None
    cpu = environment.get("cpu", {}).get("model", "an unnamed machine")
    machine = gpu["name"] if gpu else f"{cpu}, {settings.get('threads')} threads"
    versions = ", ".join(f"{name} {version}" for name, version in environment.get("versions", {}).items() if version)
    return ". ".join(filter(None, (f"{models} on {machine}", _date(environment.get("date"), path), versions))) + "."


def _how(result: StoredResult, path: str) -> str:
    best = " (the best peer: the fastest row that is not fastcnn's)" if result.report.settings.get("baseline") == BEST_PEER else ""
    return (
        f"Speed: times as fast as the row named in the heading{best}, with its 95 % interval;\n"
        "where one holds 1, the two cannot be told apart.\n"
        "Pictures: images per second, strokes from the 10th to the 90th percentile; fastcnn's rows are bold. Every sample is in\n"
        f"[{path}]({path}); `fastcnn bench page {path}` makes a page of it."
    )


def _date(text: str | None, path: Path) -> str:
    """The day of the measurement; the day of the commit that brought the file where that does not say; else nothing."""
    if text is None:
        command = ["git", "-C", str(path.parent), "log", "-1", "--format=%cI", "--", path.name]
        try:
            text = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
        except (OSError, subprocess.SubprocessError):
            return ""
    return units.day(text)


def _picture(group: GroupResult, index: int) -> str:
    bars = []
    for number, row in enumerate(group.timed()):
        if (summary := row.summary()) is not None:
            low, high = group.batch_size / summary.p90, group.batch_size / summary.p10
            bars.append(
                plots.Bar(row.name, group.batch_size / summary.p50, f"groups.{index}.rows.{number}.images_per_second", low, high, emphasis=row.ours)
            )
    return plots.bars(bars, units.plain, f"images/s at batch {group.batch_size}", _alternative(group), key=f"r{index}")


def _alternative(group: GroupResult) -> str:
    return f"{group.model} at batch {group.batch_size}: images per second of each row"


def _picture_element(stem: str, group: GroupResult) -> str:
    return (
        f'<picture><source media="(prefers-color-scheme: dark)" srcset="{stem}-dark.svg">'
        f'<img src="{stem}-light.svg" width="400" alt="{_alternative(group)}"></picture>'
    )


def _texts(svg: str) -> list[str]:
    try:
        return [element.text or "" for element in ET.fromstring(svg).iter() if element.tag.endswith(("}text", "}title"))]
    except ET.ParseError:
        return []


if __name__ == "__main__":
    sys.exit(main())
