"""The one progress bar, and the one place of exit codes."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

import fastcnn.cli
from fastcnn.cli import output
from fastcnn.cli.progress import ProgressMode, Work, progress_bar, work_progress


@pytest.fixture
def screen(monkeypatch):
    screen = Console(file=io.StringIO(), force_terminal=True, width=120)
    monkeypatch.setattr(output, "console", lambda stderr=False: screen)
    return screen


def test_shows_what_is_done_of_how_much(screen):
    with progress_bar("pictures [x].png") as advance:
        advance(3, 7)
        advance(4, 7, "the fourth")
    text = screen.file.getvalue()
    assert "pictures [x].png" in text
    assert "the fourth" in text
    assert "4/7" in text


def test_a_new_stage_starts_a_new_clock(screen, monkeypatch):
    from rich.progress import Progress

    resets, reset = [], Progress.reset

    def noted(self, task, **fields):
        resets.append((fields["completed"], fields["total"]))
        reset(self, task, **fields)

    monkeypatch.setattr(Progress, "reset", noted)
    with progress_bar("model") as advance:
        for done, total in ((0, 2), (1, 2), (2, 2), (0, 20), (10, 20), (3, 20), (4, 20)):
            advance(done, total)
    assert resets == [(0, 2), (0, 20), (3, 20)]


def test_nobody_watches(capsys, monkeypatch):
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    with progress_bar("pictures") as advance:
        advance(1, 2)
    assert capsys.readouterr() == ("", "")


def test_no_command_has_codes_or_bars_of_its_own():
    for path in Path(fastcnn.cli.__file__).parent.rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        assert path.name == "progress.py" or "rich.progress" not in text, path
        assert path.name == "exit_codes.py" or "CHECK_FAILED = " not in text, path


def test_long_work_shows_its_rate_errors_and_where_the_answers_go(screen):
    with work_progress(ProgressMode.bar, "shards", "parts", total=7, done=2) as work:
        work.update(units=1, pictures=40, errors=1)
    text = screen.file.getvalue()
    assert all(shown in text for shown in ("3/7", "pictures/s", "2.5% errors", "into parts"))


def test_the_time_left_is_of_this_run():
    now = [100.0]
    work = Work("shards", None, total=10, done=4, clock=lambda: now[0])
    assert work.seconds_left is None
    now[0] = 110.0
    work.update(units=2, pictures=50, errors=5)
    assert work.seconds_left == 20.0
    assert work.pictures_per_second == 5.0
    assert work.facts() == "5.0 pictures/s, 10.0% errors"
    with pytest.raises(KeyboardInterrupt), work_progress(ProgressMode.none, "shards", None, total=1):
        raise KeyboardInterrupt


def test_work_that_is_stopped_says_so(capsys):
    with pytest.raises(ValueError, match="stop"), work_progress(ProgressMode.json, "pictures", None, total=3):
        raise ValueError("stop")
    events = [json.loads(line)["event"] for line in capsys.readouterr().err.splitlines()]
    assert events == ["start", "stopped"]
