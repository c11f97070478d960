"""The rooms of the benchmark: each imports from itself and from those before it."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import fastcnn.bench

ROOMS = ("records", "peers", "measuring", "studies", "views")


def _imports(file: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def test_no_room_reaches_for_a_later_one() -> None:
    root = Path(fastcnn.bench.__path__[0])
    wrong, seen = [], 0
    for position, room in enumerate(ROOMS):
        allowed = tuple(f"fastcnn.bench.{name}" for name in ROOMS[: position + 1])
        for file in (root / room).glob("*.py"):
            ours = [module for module in _imports(file) if module.startswith("fastcnn.bench")]
            seen += len(ours)
            wrong += [f"{room}/{file.name} imports {module}" for module in ours if not module.startswith(allowed)]
    assert not wrong
    assert seen > 20
