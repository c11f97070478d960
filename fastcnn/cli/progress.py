"""How far a command is, on stderr, for a person who watches."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Protocol

from fastcnn.cli import output


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
