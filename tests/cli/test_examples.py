"""Every help page ends with examples, and every example is a command that exists with options that exist."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from typing import Any

import pytest
import typer.main

from fastcnn.cli.app import app
from fastcnn.cli.examples import EXAMPLES
from fastcnn.models.registry import list_models, model_spec
from fastcnn.models.sources import Kind, read_model_text
from fastcnn.preprocessing import CHANNELS, INTERPOLATIONS, Preprocessing

ROOT: Any = typer.main.get_command(app)


def pages(command: Any = ROOT, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The words before `--help` of every page that is shown. The command of a group that stands for it (`bench`) has the group's page."""
    yield path
    default = getattr(command, "default", None)
    for name, inner in getattr(command, "commands", {}).items():
        if name != default and not inner.hidden:
            yield from pages(inner, (*path, name))


def command_of(words: list[str]) -> tuple[Any, list[str]]:
    """The command that these words run, and its arguments."""
    command = ROOT
    while hasattr(command, "commands"):
        name = words[0] if words and words[0] in command.commands else getattr(command, "default", None)
        assert name is not None, words
        words = words[1:] if words and words[0] == name else words
        command = command.commands[name]
    return command, words


@pytest.mark.parametrize("path", list(pages()), ids=" ".join)
def test_every_page_ends_with_two_examples_or_more_of_its_command(cli, path):
    result = cli(*path, "--help")
    assert result.exit_code == 0, result.stderr
    lines = [line.strip() for line in result.stdout.partition("Examples:\n")[2].splitlines() if line.strip()]
    assert lines == [line for example in EXAMPLES[" ".join(path)] for line in (f"# {example[0]}", example[1])]
    assert len(lines) >= 4
    assert all(line.startswith(" ".join(("fastcnn", *path))) for line in lines[1::2])
    assert max(map(len, result.stdout.splitlines())) <= 130


def test_the_preprocessing_in_the_help_is_one(cli, tmp_path):
    """With what follows each value taken away, it is the JSON that --preprocessing reads."""
    text = cli("predict", "--help").stdout.partition("in this order:\n")[2].partition("}")[0] + "}"
    lines = [re.sub(r"(,|\})\s{2,}\S.*$", r"\1", line) for line in text.splitlines()]
    described = Preprocessing.from_dict(json.loads(" ".join(lines)))
    assert described == model_spec("resnet18").preprocessing
    assert all(name in text for name in (*CHANNELS, *INTERPOLATIONS))


def test_no_example_is_of_a_command_that_is_gone():
    assert set(EXAMPLES) == {" ".join(path) for path in pages()}


@pytest.mark.parametrize("example", [example for pair in EXAMPLES.values() for _, example in pair])
def test_every_example_is_understood(example):
    first, *words = shlex.split(example)
    assert first == "fastcnn"
    command, arguments = command_of(words)
    parsed = command.make_context(command.name, arguments).params  # types, choices and required arguments are checked here; nothing runs
    named = parsed.get("model") or (parsed.get("models") or [None])[0]
    if named is not None and "." not in named:
        assert read_model_text(named).kind is not Kind.own or named in list_models()
