"""The generated parts of docs/architecture.md: the table between its markers, and the pictures beside it."""

from __future__ import annotations

import re
from pathlib import Path

from architecture.layers import DOORS, LAYERS, Room, inner_packages, room_imports
from architecture.picture import THEMES, draw
from architecture.source import Sources

_TABLE = re.compile(r"(<!-- rooms, made by `make architecture` -->\n).*?(<!-- end of rooms -->)", re.DOTALL)


def generate(sources: Sources) -> dict[Path, str]:
    """What each generated file should hold.

    Raises:
        ValueError: the document has no place for the table.
    """
    document = sources.root / "docs" / "architecture.md"
    text, found = _TABLE.subn(lambda match: match[1] + _table(sources) + match[2], document.read_text(encoding="utf-8"))
    if found != 1:
        raise ValueError(f"{document} has no place for the table: put the two lines that {_TABLE.pattern!r} finds into it")
    pictures = {document.with_name(f"architecture-{theme}.svg"): draw(sources, theme) for theme in THEMES}
    return {document: text, **pictures}


def write(sources: Sources) -> None:
    """Brings the document and its pictures up to date."""
    for path, text in generate(sources).items():
        path.write_text(text, encoding="utf-8")


def stale(sources: Sources) -> list[str]:
    """What `write` would change, a line each."""
    return [
        f"{path.relative_to(sources.root)} is not what the code gives"
        for path, text in generate(sources).items()
        if not path.exists() or path.read_text(encoding="utf-8") != text
    ]


def _table(sources: Sources) -> str:
    """A row for each room, from the top down."""
    arrows = room_imports(sources)
    rooms = [(layer, room) for layer in reversed(LAYERS) for room in layer.rooms]
    lines = ["| layer | room | files | imports from |", "|---|---|---|---|"]
    for layer, room in rooms:
        there = [other.name for _, other in rooms if other.name in arrows[room.name]]
        lines.append(f"| {layer.name} | **{room.name}** | {_files(sources, room)} | {', '.join(there)} |")
    return "\n".join(lines) + "\n"


def _files(sources: Sources, room: Room) -> str:
    """Where a room's code lies. Of a package: its folder, those inside it, and its name where that differs."""
    shown = []
    for member in room.members:
        if member not in sources.modules:
            continue
        path = sources.modules[member].path.relative_to(sources.root).as_posix()
        folder = path.removesuffix("__init__.py")
        if member in DOORS or folder == path:
            shown.append(f"`{path}`")
            continue
        shown.append(f"`{folder}`" + "".join(f", `{folder}{name}/`" for name in inner_packages(sources, room)))
        if folder != f"{member.replace('.', '/')}/":
            shown[-1] += f" as `{member}`"
    return ", ".join(shown)
