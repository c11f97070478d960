"""Reads the sources: every module, every import between two of them, every function."""

from __future__ import annotations

import ast
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from functools import cached_property
from pathlib import Path


class When(Enum):
    """When an import runs. All three tie one module to another, so all three count for circles and layers."""

    AT_IMPORT = "when the module is imported"
    WHEN_CALLED = "inside a function"
    FOR_TYPES = "under TYPE_CHECKING"


@dataclass(frozen=True)
class Import:
    """Module `importer` needs module `imported`.

    What a package's `__init__` passes on from another module of ours counts as an import of that module.
    """

    importer: str
    imported: str
    when: When
    line: int


@dataclass(frozen=True)
class Module:
    """One file of a package, under the name it is imported by."""

    name: str
    path: Path
    tree: ast.Module

    @property
    def is_package(self) -> bool:
        """Whether the file is the `__init__.py` of a package."""
        return self.path.name == "__init__.py"

    @property
    def package(self) -> str:
        """The package that holds the module; a package holds itself."""
        return self.name if self.is_package else self.name.rpartition(".")[0]

    @cached_property
    def statements(self) -> list[tuple[ast.Import | ast.ImportFrom, When]]:
        """Every import statement, with when it runs."""
        return list(_import_statements(self.tree, When.AT_IMPORT))


class Sources:
    """The modules of a repository and the imports between them.

    Args:
        root: the repository; `[tool.setuptools]` of its pyproject.toml says which folder is imported by which name.

    Attributes:
        modules: by name.
        imports: every import of one module of ours by another, each pair once for every line.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        settings = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
        self.folders: dict[str, str] = settings["package-dir"]
        self.modules = {module.name: module for module in self._read_modules()}
        self._passed_on = {name: self._names_passed_on(module) for name, module in self.modules.items() if module.is_package}
        self.imports = [found for module in self.modules.values() for found in self._imports_of(module)]

    def folder_of(self, package: str) -> str:
        """Where a package's files lie, relative to the repository: "kernels" for `fastcnn.kernels`."""
        return self.modules[package].path.parent.relative_to(self.root).as_posix()

    def _read_modules(self) -> Iterator[Module]:
        for package, folder in self.folders.items():
            for path in sorted((self.root / folder).rglob("*.py")):
                if (path.parent / "__init__.py").exists():  # bench/suites are scripts of pytest, not modules
                    inside = path.relative_to(self.root / folder).with_suffix("").parts
                    name = ".".join((package, *inside)).removesuffix(".__init__")
                    yield Module(name, path, ast.parse(path.read_text(encoding="utf-8")))

    def _names_passed_on(self, door: Module) -> dict[str, str]:
        """Name → module, for what a package's `__init__` imports from ours (under TYPE_CHECKING where it is lazy)."""
        found = {}
        for statement, _ in door.statements:
            if isinstance(statement, ast.ImportFrom) and statement.module in self.modules:
                for alias in statement.names:
                    found[alias.asname or alias.name] = statement.module
        return found

    def _home(self, module: str, name: str) -> str:
        """The module that `from module import name` needs in the end."""
        if f"{module}.{name}" in self.modules:
            return f"{module}.{name}"
        home = self._passed_on.get(module, {}).get(name)
        return module if home is None else self._home(home, name)

    def _imports_of(self, module: Module) -> Iterator[Import]:
        for statement, when in module.statements:
            for imported in sorted(self._targets(module, statement)):
                if imported != module.name:
                    yield Import(module.name, imported, when, statement.lineno)

    def _targets(self, module: Module, statement: ast.Import | ast.ImportFrom) -> set[str]:
        if isinstance(statement, ast.ImportFrom):
            if statement.level:
                raise ValueError(f"{module.path}:{statement.lineno}: a relative import; write the whole name")
            return {self._home(statement.module or "", alias.name) for alias in statement.names} if statement.module in self.modules else set()
        targets = set()
        for alias in statement.names:
            if alias.name in self.modules:
                used = _attributes(module.tree, alias.asname or alias.name)
                targets |= {self._home(alias.name, name) for name in used} or {alias.name}
        return targets


def _import_statements(node: ast.AST, when: When) -> Iterator[tuple[ast.Import | ast.ImportFrom, When]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (ast.Import, ast.ImportFrom)):
            yield child, when
        elif isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            for statement in child.body:
                yield from _import_statements(ast.Module([statement], []), When.FOR_TYPES)
            for statement in child.orelse:
                yield from _import_statements(ast.Module([statement], []), when)
        elif isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield from _import_statements(child, When.WHEN_CALLED if when is When.AT_IMPORT else when)
        else:
            yield from _import_statements(child, when)


def _attributes(tree: ast.Module, name: str) -> set[str]:
    """What is read from the imported module `name`: {"optimize"} for `fastcnn.optimize(…)`."""
    return {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute) and ast.unparse(node.value) == name}
