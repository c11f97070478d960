"""What a person or a program reads: tables and JSON on stdout; errors, notes and logs on stderr."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import math
import os
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, TextIO

from fastcnn.text import json_text, printable

if TYPE_CHECKING:
    from rich.console import Console
    from rich.status import Status
    from rich.table import Table

    from fastcnn.graph.plan import PassReport

_RED = "\x1b[1;31m"
_YELLOW = "\x1b[33m"
_DIM = "\x1b[2m"
_RESET = "\x1b[0m"

# A pipe has no width: a table takes what its cells need, and nothing is cut off or wrapped.
_PIPE_WIDTH = 10_000


def set_up_streams(debug: bool) -> None:
    """Logs of fastcnn and Python's warnings go to stderr, one line each; a character that the terminal lacks becomes `?`."""
    for stream in (sys.stdout, sys.stderr):
        encoding = (getattr(stream, "encoding", None) or "").lower().replace("-", "")
        if encoding != "utf8" and hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    logger = logging.getLogger("fastcnn")
    logger.handlers = [_StderrHandler()]
    logger.setLevel(logging.DEBUG if debug else logging.INFO)
    logger.propagate = False
    if not debug:
        warnings.showwarning = _show_warning


class _StderrHandler(logging.Handler):
    """Looks up `sys.stderr` at each record, since a test or a progress bar may have replaced it."""

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno >= logging.WARNING:
            warning(record.getMessage())
        else:
            note(record.getMessage())


def _show_warning(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, file: TextIO | None = None, line: str | None = None
) -> None:
    first = str(message).strip().partition("\n")[0]
    warning(first or category.__name__)


def _coloured(stream: TextIO) -> bool:
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def line(text: str, label: str = "", colour: str = "") -> None:
    """One line on stderr, after a label in colour."""
    if label:
        label = f"{colour}{label}:{_RESET} " if _coloured(sys.stderr) else f"{label}: "
    print(f"{label}{printable(text)}", file=sys.stderr)


def error(text: str) -> None:
    """One line on stderr: why the command does not do what was asked."""
    line(text, "error", _RED)


def warning(text: str) -> None:
    """One line on stderr: what was done, but perhaps not as it was meant."""
    line(text, "warning", _YELLOW)


def note(text: str) -> None:
    """One line on stderr: what is good to know."""
    line(text, "note", _DIM)


def console(stderr: bool = False) -> Console:
    """A rich console on stdout or stderr: no escape codes with NO_COLOR or in a pipe, and no fixed width in a pipe."""
    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() or os.environ.get("COLUMNS") else _PIPE_WIDTH
    return Console(
        file=stream, highlight=False, width=width, no_color=bool(os.environ.get("NO_COLOR")), color_system="auto" if _coloured(stream) else None
    )


def print_table(
    columns: Sequence[str],
    rows: Sequence[Sequence[object]],
    *,
    right: Sequence[str] = (),
    footer: Sequence[object] | None = None,
    spare: Sequence[str] = (),
) -> None:
    """A table on stdout: ruled and fitted to the width of a terminal; in a pipe bare columns, whole.

    Args:
        columns: headings.
        rows: one value per column; None is an empty cell, whole numbers get separators between thousands.
        right: columns to align to the right; they are never wrapped.
        footer: a last row of totals.
        spare: columns that a narrow terminal goes without, the least needed first; a note names those left out.
    """
    screen = console()
    left_out: list[str] = []
    table = _table(columns, rows, right, footer, left_out, screen.is_terminal)
    if not screen.is_terminal:
        with screen.capture() as printed:
            screen.print(table)
        for text in printed.get().splitlines():
            print(text.rstrip())
        return
    for name in spare:
        if screen.measure(table, options=screen.options.update(width=_PIPE_WIDTH)).maximum <= screen.width:
            break
        left_out.append(name)
        table = _table(columns, rows, right, footer, left_out, True)
    screen.print(table)
    if left_out:
        note(f"columns left out to fit {screen.width} characters: {', '.join(left_out)}")


def _table(
    columns: Sequence[str],
    rows: Sequence[Sequence[object]],
    right: Sequence[str],
    footer: Sequence[object] | None,
    left_out: Sequence[str],
    ruled: bool,
) -> Table:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(
        box=box.SIMPLE_HEAD if ruled else None,
        pad_edge=False,
        padding=(0, 1) if ruled else (0, 2, 0, 0),
        show_footer=footer is not None,
        footer_style="bold",
    )
    shown = [index for index, name in enumerate(columns) if name not in left_out]
    for index in shown:
        name = columns[index]
        foot = "" if footer is None else _cell(footer[index])
        table.add_column(name, foot, justify="right" if name in right else "left", no_wrap=name in right, overflow="fold")
    for row in rows:
        table.add_row(*(Text(_cell(row[index])) for index in shown))
    return table


def _cell(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    return printable(str(value))


def print_fields(fields: Mapping[str, object]) -> None:
    """Aligned `name  value` lines on stdout; fields whose value is None are left out."""
    from rich.text import Text

    shown = {name: value for name, value in fields.items() if value is not None}
    width = max((len(name) for name in shown), default=0)
    screen = console()
    for name, value in shown.items():
        screen.print(Text.assemble((name.ljust(width), "bold"), "  ", printable(str(value))), soft_wrap=True)


def passes(reports: Iterable[PassReport]) -> dict[str, str]:
    """What each graph pass did, as fields to print: how often it fired, and why it declined elsewhere."""
    fields = {}
    for report in reports:
        did = f"applied {report.fired}×" if report.fired else "not applied" if report.declined else "nothing to do"
        fields[report.name] = "; ".join([did, *(f"declined {count}×: {reason}" for reason, count in report.declined.items())])
    return fields


def shape(sizes: Sequence[int | None]) -> str:
    """A tensor's shape as the documents write it, `3×299×299`; a free dimension is N."""
    return "×".join("N" if size is None else str(size) for size in sizes)


def print_json(value: object) -> None:
    """The whole answer on stdout as one JSON document (RFC 8259: a NaN or an infinity becomes null)."""
    print(json_text(plain(value), indent=2))


def plain(value: Any) -> Any:
    """`value` in JSON's own types: dataclasses and mappings become objects, sequences arrays, anything else its text."""
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if hasattr(value, "to_dict"):
        return plain(value.to_dict())
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (Sequence, set, frozenset)) and not isinstance(value, (bytes, PurePath)):
        return [plain(item) for item in value]
    return str(value)


@contextlib.contextmanager
def working(what: str) -> Iterator[Callable[[str], None]]:
    """While a command works: a spinner on stderr where a person watches, and whatever libraries print to stdout goes to stderr.

    Gives a function that says at which stage the work is.
    """
    status: Status | None = None

    def say(stage: str) -> None:
        if status is not None:
            status.update(f"{what}: {stage}")

    with contextlib.ExitStack() as stack:
        if sys.stderr.isatty():
            status = stack.enter_context(console(stderr=True).status(what))
        stack.enter_context(contextlib.redirect_stdout(sys.stderr))
        yield say
