"""How far a command is, on stderr, for a person who watches or for a scheduler."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Protocol

from fastcnn.cli import output
from fastcnn.text import json_text, printable


class Advance(Protocol):
    """What `progress_bar` gives."""

    def __call__(self, done: int, total: int, what: str = ...) -> None:
        """Shows `done` of `total`, and what is being done; without `what` the title stays."""


@contextlib.contextmanager
def progress_bar(title: str) -> Iterator[Advance]:
    """A bar where a person watches, nothing elsewhere.

    Where less is done than before, or the total is another one, a new stage has begun: its bar starts at nothing and with a clock of its own,
    since the speed of one stage says nothing of the next one's.
    """
    screen = output.console(stderr=True)
    if not screen.is_terminal:
        yield lambda done, total, what=title: None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    # Without markup: names of files may hold brackets.
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TextColumn("left"), TimeRemainingColumn())
    with Progress(*columns, console=screen, transient=True, redirect_stdout=False) as bar:
        task = bar.add_task(title, total=None)

        def advance(done: int, total: int, what: str = title) -> None:
            shown = bar.tasks[0]
            if done < shown.completed or total != shown.total:
                bar.reset(task, total=total, completed=done)
            bar.update(task, completed=done, description=what)

        yield advance


class ProgressMode(StrEnum):
    """How long work shows itself."""

    bar = "bar"
    json = "json"
    none = "none"


# Between two lines of JSON, in seconds.
_JSON_EVERY = 1.0


@dataclass
class Work:
    """How far long work on pictures is.

    Attributes:
        unit: what is counted for the time left: "pictures", or "shards" where nobody knows how many pictures are in them.
        where: where the answers go; None for standard output.
        total, done: in `unit`, those of earlier runs included.
        pictures, errors: of this run: with an answer or a reason, and of them with a reason.
        show: is called after every update.
    """

    unit: str
    where: str | None
    total: int
    done: int = 0
    pictures: int = 0
    errors: int = 0
    show: Callable[[Work], None] = field(default=lambda work: None, repr=False)
    clock: Callable[[], float] = field(default=time.monotonic, repr=False)

    def __post_init__(self) -> None:
        self._started, self._before = self.clock(), self.done  # what an earlier run did says nothing about this one's speed

    def update(self, *, units: int = 0, pictures: int = 0, errors: int = 0) -> None:
        """Says how much more is done."""
        self.done += units
        self.pictures += pictures
        self.errors += errors
        self.show(self)

    @property
    def pictures_per_second(self) -> float:
        """In the mean of this run."""
        return self.pictures / max(self.clock() - self._started, 1e-9)

    @property
    def seconds_left(self) -> float | None:
        """At the speed of this run so far; None before it has done anything."""
        here = self.done - self._before
        return (self.total - self.done) * (self.clock() - self._started) / here if here > 0 else None

    def to_dict(self, event: str) -> dict[str, Any]:
        """Plain data for JSON: `event` is "start", "progress", "end", or "stopped" where the work did not come to its end."""
        left = self.seconds_left
        return {
            "event": event,
            "unit": self.unit,
            "done": self.done,
            "total": self.total,
            "pictures": self.pictures,
            "errors": self.errors,
            "pictures_per_second": round(self.pictures_per_second, 2),
            "seconds_left": None if left is None else round(left, 1),
            "output": self.where,
        }

    def facts(self) -> str:
        """Rate, share of errors and where the answers go, for a person."""
        share = f"{self.errors / self.pictures:.1%} errors" if self.errors else "no errors"
        facts = [f"{self.pictures_per_second:,.1f} pictures/s", share]
        return ", ".join(facts if self.where is None else [*facts, f"into {printable(self.where)}"])


@contextlib.contextmanager
def work_progress(mode: ProgressMode, unit: str, where: str | None, *, total: int, done: int = 0) -> Iterator[Work]:
    """Shows long work on stderr: a bar where a person watches, or JSON objects a line for a scheduler. Arguments are those of `Work`."""
    work = Work(unit, where, total, done)
    if mode is ProgressMode.json:
        with _json_lines(work):
            yield work
    elif mode is ProgressMode.bar and output.console(stderr=True).is_terminal:
        with _work_bar(work):
            yield work
    else:
        yield work


@contextlib.contextmanager
def _json_lines(work: Work) -> Iterator[None]:
    said = work.clock()

    def say(event: str) -> None:
        print(json_text(work.to_dict(event)), file=sys.stderr, flush=True)

    def show(work: Work) -> None:
        nonlocal said
        if work.clock() - said >= _JSON_EVERY:
            said = work.clock()
            say("progress")

    say("start")
    work.show = show
    try:
        yield
    except BaseException:
        say("stopped")
        raise
    say("end")


@contextlib.contextmanager
def _work_bar(work: Work) -> Iterator[None]:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    what, facts = (TextColumn(text, markup=False) for text in ("{task.description}", "{task.fields[facts]}"))
    columns = (what, BarColumn(), MofNCompleteColumn(), facts, TextColumn("left"), TimeRemainingColumn())
    with Progress(*columns, console=output.console(stderr=True), transient=True, redirect_stdout=False) as bar:
        task = bar.add_task(work.unit, total=work.total, completed=work.done, facts="")
        work.show = lambda work: bar.update(task, completed=work.done, facts=work.facts())
        yield
