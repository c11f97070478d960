"""How the house is kept, in figures: circles, upward imports, long parameter lists, missing docstrings, long files."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from architecture.layers import EXCEPTIONS, misplaced, module_circles, package_circles
from architecture.source import Sources

MANY_PARAMETERS = 8
LONG_FILE = 450


@dataclass(frozen=True)
class Figures:
    """What was counted, each with the places behind it, worst first.

    Attributes:
        circles: groups of modules, or of packages, that import each other; imports of every kind count.
        upward: imports that go up or sideways, as "importer → imported", without the listed exceptions.
        functions: how many there are, nested ones and methods among them.
        many_parameters: those with more than MANY_PARAMETERS, `self` and `cls` not counted.
        public: classes, functions and methods without a leading `_` that stand in a module or in a public class.
        undocumented: those without a docstring.
        long_files: those of more than LONG_FILE lines.
    """

    circles: tuple[str, ...]
    upward: tuple[str, ...]
    exceptions: int
    functions: int
    many_parameters: tuple[str, ...]
    public: int
    undocumented: tuple[str, ...]
    long_files: tuple[str, ...]
    longest: int

    @property
    def share_of_many_parameters(self) -> float:
        """Of all functions, between 0 and 1."""
        return len(self.many_parameters) / self.functions

    @property
    def share_documented(self) -> float:
        """Of all public definitions, between 0 and 1."""
        return 1 - len(self.undocumented) / self.public

    def lines(self) -> list[str]:
        """One line for each figure."""
        many, documented = len(self.many_parameters), self.public - len(self.undocumented)
        rows = (
            ("circles", f"{len(self.circles)}"),
            ("upward imports", f"{len(self.upward)}, and {self.exceptions} listed exceptions"),
            (f"functions over {MANY_PARAMETERS} parameters", f"{many} of {self.functions}, {self.share_of_many_parameters:.2%}"),
            ("public definitions with docstring", f"{documented} of {self.public}, {self.share_documented:.1%}"),
            (f"files over {LONG_FILE} lines", f"{len(self.long_files)}, the longest has {self.longest}"),
        )
        return [f"{name:34} {value}" for name, value in rows]

    def places(self) -> list[str]:
        """Where to look, one line for each place."""
        named = (
            ("circle", self.circles),
            ("upward", self.upward),
            ("parameters", self.many_parameters),
            ("docstring", self.undocumented),
            ("long", self.long_files),
        )
        return [f"{kind:10} {place}" for kind, places in named for place in places]


def count(sources: Sources) -> Figures:
    """Counts the whole repository except its tests."""
    functions: list[tuple[int, str]] = []
    public: list[tuple[bool, str]] = []
    lengths: list[tuple[int, str]] = []
    for path in _files(sources):
        text = path.read_text(encoding="utf-8")
        tree, name = ast.parse(text), path.relative_to(sources.root).as_posix()
        lengths.append((text.count("\n"), name))
        functions += [(_parameters(node), f"{name}:{node.lineno} {node.name}") for node in ast.walk(tree) if isinstance(node, _FUNCTION)]
        public += [(ast.get_docstring(node) is not None, f"{name}:{node.lineno} {node.name}") for node in _public(tree.body)]
    circles = [*module_circles(sources), *package_circles(sources)]
    return Figures(
        circles=tuple(" ↔ ".join(circle) for circle in circles),
        upward=tuple(f"{one.importer}:{one.line} → {one.imported}" for one in misplaced(sources)),
        exceptions=len(EXCEPTIONS),
        functions=len(functions),
        many_parameters=tuple(f"{number} {where}" for number, where in sorted(functions, reverse=True) if number > MANY_PARAMETERS),
        public=len(public),
        undocumented=tuple(where for documented, where in public if not documented),
        long_files=tuple(f"{number} {where}" for number, where in sorted(lengths, reverse=True) if number > LONG_FILE),
        longest=max(lengths)[0],
    )


_FUNCTION = (ast.FunctionDef, ast.AsyncFunctionDef)


def _files(sources: Sources) -> Iterator[Path]:
    for folder in (*sources.folders.values(), "tools"):
        yield from sorted((sources.root / folder).rglob("*.py"))


def _parameters(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    arguments = function.args
    named = [argument.arg for argument in (*arguments.posonlyargs, *arguments.args)]
    several = len(arguments.kwonlyargs) + (arguments.vararg is not None) + (arguments.kwarg is not None)
    return len(named) - (named[:1] in (["self"], ["cls"])) + several


def _public(body: Sequence[ast.stmt]) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef]:
    for node in body:
        if isinstance(node, (*_FUNCTION, ast.ClassDef)) and not node.name.startswith("_"):
            yield node
            if isinstance(node, ast.ClassDef):
                yield from _public(node.body)
