"""The layers hold, the picture of them is what the code gives, and the figures stay within their limits."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from architecture.document import stale
from architecture.figures import LONG_FILE, MANY_PARAMETERS, Figures, count
from architecture.layers import (
    EXCEPTIONS,
    LAYERS,
    circles,
    homeless,
    misplaced,
    module_circles,
    package_circles,
    without_implied,
)
from architecture.picture import THEMES, WIDTH
from architecture.source import Sources, When

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def ours() -> Sources:
    """This repository."""
    return Sources(ROOT)


@pytest.fixture(scope="module")
def figures(ours: Sources) -> Figures:
    """What is counted in this repository."""
    return count(ours)


def make(root: Path, files: dict[str, str]) -> Sources:
    """A repository with these files, in which `export/` is imported as `fastcnn.export`; every folder is a package."""
    (root / "pyproject.toml").write_text('[tool.setuptools.package-dir]\n"fastcnn" = "fastcnn"\n"fastcnn.export" = "export"\n')
    for name, text in {"fastcnn/__init__.py": "", **files}.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        for folder in path.relative_to(root).parents:
            if folder.name:
                (root / folder / "__init__.py").touch()
    return Sources(root)


def test_every_package_stands_on_a_layer(ours: Sources) -> None:
    assert homeless(ours) == [], "write them into LAYERS of tools/architecture/layers.py, on the layer where they belong"


def test_layers_name_nothing_that_is_gone(ours: Sources) -> None:
    members = {member for layer in LAYERS for room in layer.rooms for member in room.members}
    assert members <= set(ours.modules), "take what is gone out of LAYERS in tools/architecture/layers.py"


def test_nothing_imports_upwards(ours: Sources) -> None:
    found = [f"{one.importer}:{one.line} imports {one.imported} {one.when.value}" for one in misplaced(ours)]
    assert found == [], "move what both need down, or write the import with its reason into EXCEPTIONS of tools/architecture/layers.py"


def test_every_exception_is_needed_and_has_a_reason(ours: Sources) -> None:
    needed = {(one.importer, one.imported) for one in misplaced(ours, {})}
    assert set(EXCEPTIONS) <= needed
    assert all(len(reason) > 20 for reason in EXCEPTIONS.values())


def test_no_circle(ours: Sources) -> None:
    assert module_circles(ours) == []
    assert package_circles(ours) == []


def test_the_picture_and_the_table_are_what_the_code_gives(ours: Sources) -> None:
    assert stale(ours) == [], "run make architecture"


@pytest.mark.parametrize("theme", THEMES)
def test_the_picture_shows_every_room_within_its_width(theme: str) -> None:
    root = ET.parse(ROOT / "docs" / f"architecture-{theme}.svg").getroot()
    texts = [element.text for element in root.iter("{http://www.w3.org/2000/svg}text")]
    assert {room.name for layer in LAYERS for room in layer.rooms} <= set(texts)
    for box in root.iter("{http://www.w3.org/2000/svg}rect"):
        assert float(box.get("x", 0)) >= 0
        assert float(box.get("x", 0)) + float(box.get("width", 0)) <= WIDTH


def test_every_file_that_the_document_names_exists() -> None:
    there = [
        f"/{path.relative_to(ROOT).as_posix()}"
        for folder in ("", "docs", "fastcnn", "kernels", "export", "bench", "tools", "tests")
        for path in ((ROOT / folder).rglob("*") if folder else ROOT.glob("*"))
    ]
    text = (ROOT / "docs" / "architecture.md").read_text()
    named = re.findall(r"`((?:[\w.]+/)*(?:[\w.]+\.(?:py|md|toml)|[\w.]+/))`", text)
    assert len(named) > 40
    assert [name for name in named if not any(path.endswith(f"/{name.rstrip('/')}") for path in there)] == []


def test_figures_are_within_their_limits(figures: Figures) -> None:
    assert figures.circles == ()
    assert figures.upward == ()
    assert figures.share_of_many_parameters <= 0.015, "\n".join(figures.many_parameters)
    assert figures.share_documented >= 0.95, "\n".join(figures.undocumented)
    assert figures.long_files == ()


def test_figures_are_said_in_lines(figures: Figures) -> None:
    text = "\n".join(figures.lines())
    assert f"of {figures.functions}, {figures.share_of_many_parameters:.2%}" in text
    assert f"of {figures.public}, {figures.share_documented:.1%}" in text


def test_imports_of_every_kind_are_found(tmp_path: Path) -> None:
    text = """
from typing import TYPE_CHECKING
import fastcnn.errors
if TYPE_CHECKING:
    from fastcnn.graph.plan import Plan
else:
    from fastcnn import files
def later():
    from fastcnn.graph import ir
    def still_later():
        import fastcnn.graph.ops as ops
"""
    others = {f"fastcnn/{name}.py": "" for name in ("graph/plan", "graph/ir", "graph/ops", "errors", "files")}
    found = {(one.imported, one.when) for one in make(tmp_path, {"fastcnn/engines/base.py": text, **others}).imports}
    assert found == {
        ("fastcnn.errors", When.AT_IMPORT),
        ("fastcnn.files", When.AT_IMPORT),
        ("fastcnn.graph.plan", When.FOR_TYPES),
        ("fastcnn.graph.ir", When.WHEN_CALLED),
        ("fastcnn.graph.ops", When.WHEN_CALLED),
    }


def test_a_name_that_an_init_passes_on_counts_where_it_comes_from(tmp_path: Path) -> None:
    door = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from fastcnn.export import export_onnx\n    from fastcnn.saving import save\n"
    files = {
        "fastcnn/__init__.py": door,
        "fastcnn/saving.py": "",
        "export/__init__.py": "from fastcnn.export.exporter import export_onnx",
        "export/exporter.py": "",
        "fastcnn/cli/export.py": "from fastcnn import export_onnx",
        "fastcnn/cli/save.py": "import fastcnn\nfastcnn.save()",
    }
    found = {one.importer: one.imported for one in make(tmp_path, files).imports if one.importer.startswith("fastcnn.cli")}
    assert found == {"fastcnn.cli.export": "fastcnn.export.exporter", "fastcnn.cli.save": "fastcnn.saving"}


@pytest.mark.parametrize(
    ("importer", "text", "imported"),
    [
        ("fastcnn/graph/ir.py", "import fastcnn.engines.base", "fastcnn/engines/base.py"),
        ("fastcnn/models/resnet.py", "def build():\n    from fastcnn.graph import ir", "fastcnn/graph/ir.py"),
        ("fastcnn/errors.py", "from fastcnn.parity.rules import bound", "fastcnn/parity/rules.py"),
    ],
    ids=["up", "sideways, in a function", "from the ground"],
)
def test_an_import_that_leaves_its_layer_is_found(tmp_path: Path, importer: str, text: str, imported: str) -> None:
    (found,) = misplaced(make(tmp_path, {importer: text, imported: ""}))
    assert found.importer == importer.removesuffix(".py").replace("/", ".")
    assert misplaced(Sources(tmp_path), {(found.importer, found.imported): "a reason"}) == []


def test_an_import_downwards_or_inside_a_room_is_fine(tmp_path: Path) -> None:
    files = {
        "fastcnn/engines/base.py": "import fastcnn.graph.ir\nimport fastcnn.engines.rows",
        "fastcnn/engines/rows.py": "",
        "fastcnn/graph/ir.py": "import fastcnn.errors",
        "fastcnn/errors.py": "",
    }
    sources = make(tmp_path, files)
    assert len(sources.imports) == 3
    assert misplaced(sources) == []


def test_a_package_without_a_layer_is_found(tmp_path: Path) -> None:
    files = {"fastcnn/astrology/int8.py": "", "fastcnn/astrology/scales/table.py": "", "fastcnn/loose.py": ""}
    assert homeless(make(tmp_path, files)) == ["fastcnn.astrology", "fastcnn.loose"]


def test_circles_are_found(tmp_path: Path) -> None:
    pairs = [("a", "b"), ("b", "c"), ("c", "a"), ("c", "d"), ("e", "e"), ("f", "g"), ("g", "f")]
    assert circles(pairs) == [["a", "b", "c"], ["f", "g"]]
    text = "def row():\n    import fastcnn.graph.ir"
    sources = make(tmp_path, {"fastcnn/graph/ir.py": "from fastcnn.graph.plan import row", "fastcnn/graph/plan.py": text})
    assert module_circles(sources) == [["fastcnn.graph.ir", "fastcnn.graph.plan"]]
    assert package_circles(sources) == []


def test_circles_of_packages_whose_modules_have_none(tmp_path: Path) -> None:
    files = {
        "fastcnn/data/a.py": "import fastcnn.training.b",
        "fastcnn/training/b.py": "",
        "fastcnn/training/c.py": "import fastcnn.data.d",
        "fastcnn/data/d.py": "",
    }
    sources = make(tmp_path, files)
    assert module_circles(sources) == []
    assert package_circles(sources) == [["fastcnn.data", "fastcnn.training"]]


def test_a_package_and_one_inside_it_are_no_circle(tmp_path: Path) -> None:
    files = {
        "fastcnn/cli/app.py": "import fastcnn.cli.bench.run",
        "fastcnn/cli/bench/run.py": "import fastcnn.cli.output",
        "fastcnn/cli/output.py": "",
    }
    sources = make(tmp_path, files)
    assert len(sources.imports) == 2
    assert package_circles(sources) == []


def test_arrows_that_a_longer_road_implies_are_left_out() -> None:
    assert without_implied({"c": {"b", "a"}, "b": {"a"}, "a": set()}) == {"c": {"b"}, "b": {"a"}, "a": set()}


def test_what_is_counted(tmp_path: Path) -> None:
    text = '''
def many(a, b, c, d, e, f, g, h, i): ...
class Public:
    """Said."""
    def method(self, a, b, c, d, /, e, f, *, g, h): ...
    def _private(self): ...
class _Private:
    def method(self, *args, **kwargs): ...
'''
    files = {"fastcnn/long.py": "#\n" * (LONG_FILE + 1), "fastcnn/short.py": "#\n" * LONG_FILE, "fastcnn/some.py": text}
    figures = count(make(tmp_path, files))
    assert (figures.functions, figures.public) == (4, 3)
    assert figures.many_parameters == (f"{MANY_PARAMETERS + 1} fastcnn/some.py:2 many",)
    assert figures.undocumented == ("fastcnn/some.py:2 many", "fastcnn/some.py:5 method")
    assert figures.long_files == (f"{LONG_FILE + 1} fastcnn/long.py",)
