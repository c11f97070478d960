"""The layers as SVG: rooms as boxes, an arrow from each room to what it imports."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise

from architecture.layers import LAYERS, Room, inner_packages, room_imports, without_implied
from architecture.source import Sources

WIDTH = 1000
_MARGIN, _LABELS = 16, 82  # the column that names the layers
_BOX_HEIGHT, _FLOOR_HEIGHT, _PADDING = 62, 106, 14
_LANE = 12  # what an arrow takes where it passes a layer
_GAP = 12
_CENTRE = (WIDTH + _LABELS) / 2

# GitHub's own text and grey of each theme; the accent is the benchmark page's.
THEMES: Mapping[str, Mapping[str, str]] = {
    "light": {
        "ink": "#1f2328",
        "muted": "#59636e",
        "line": "#8c959f",
        "surface": "#ffffff",
        "floor": "#f3f5f8",
        "box": "#ffffff",
        "top": "#0b63c5",
    },
    "dark": {
        "ink": "#f0f6fc",
        "muted": "#9198a1",
        "line": "#6e7681",
        "surface": "#0d1117",
        "floor": "#161b22",
        "box": "#0d1117",
        "top": "#5ba8ff",
    },
}


@dataclass
class _Place:
    """What stands on a layer: a room, or the lane of an arrow that passes it."""

    key: str
    width: float
    room: Room | None = None
    x: float = 0.0  # the middle


_Spot = tuple[int, str]  # number of the layer, key of the place


def draw(sources: Sources, theme: str) -> str:
    """The picture in the colours of a theme, as one SVG document."""
    colours = THEMES[theme]
    arrows = _arrows(sources)
    floors, chains = _floors(sources, arrows)
    _place(floors, chains)
    total = 2 * _MARGIN + len(floors) * _FLOOR_HEIGHT + 32
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {total}" width="{WIDTH}" height="{total}" '
        'role="img" font-family="-apple-system, Segoe UI, Helvetica, Arial, DejaVu Sans, sans-serif">',
        "<title>The layers of fastcnn: each room imports only from rooms below it</title>",
        f'<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        f'<path d="M0,0.5 L8,4 L0,7.5 z" fill="{colours["line"]}"/></marker></defs>',
        f'<rect width="{WIDTH}" height="{total}" fill="{colours["surface"]}"/>',
    ]
    for number, layer in enumerate(LAYERS):
        top = _top(number, len(floors))
        parts.append(
            f'<rect x="{_MARGIN}" y="{top - _PADDING}" width="{WIDTH - 2 * _MARGIN}" '
            f'height="{_BOX_HEIGHT + 2 * _PADDING}" rx="8" fill="{colours["floor"]}"/>'
        )
        parts.append(_text(_MARGIN + 12, top + _BOX_HEIGHT / 2 + 4, layer.name, 12, colours["muted"], anchor="start"))
    for chain in chains:
        line = f'fill="none" stroke="{colours["line"]}" stroke-width="1.4" marker-end="url(#tip)"'
        parts.append(f'<path d="{_curve(chain, floors)}" {line}/>')
    for number, floor in enumerate(floors):
        parts += [_box(place, place.room, _top(number, len(floors)), sources, colours) for place in floor if place.room is not None]
    for number, line in enumerate(reversed(_CAPTION)):
        parts.append(_text(_MARGIN + 12, total - 14 - 18 * number, line, 12, colours["muted"], anchor="start"))
    return "\n".join([*parts, "</svg>", ""])


_CAPTION = (
    "An arrow: imports from. Left out: what a longer road of arrows implies, and those to the ground.",
    "Blue: stands at the top of the repository and is imported as fastcnn.NAME.",
)


def _arrows(sources: Sources) -> list[tuple[str, str]]:
    ground = {room.name for room in LAYERS[0].rooms}
    reduced = without_implied(room_imports(sources))
    return sorted((here, there) for here, others in reduced.items() for there in others - ground)


def _floors(sources: Sources, arrows: Sequence[tuple[str, str]]) -> tuple[list[list[_Place]], list[list[_Spot]]]:
    """What stands on each layer, and for each arrow the places that it passes, from above."""
    standing = {room.name: (number, room) for number, layer in enumerate(LAYERS) for room in layer.rooms}
    floors = [[_Place(room.name, _width(room, sources), room) for room in layer.rooms] for layer in LAYERS]
    chains = []
    for here, there in arrows:
        high, low = standing[here][0], standing[there][0]
        lanes = [(number, f"{here} → {there}") for number in range(high - 1, low, -1)]
        for number, key in lanes:
            floors[number].append(_Place(key, _LANE))
        chains.append([(high, here), *lanes, (low, there)])
    return floors, chains


def _place(floors: list[list[_Place]], chains: Sequence[Sequence[_Spot]]) -> None:
    """Orders each layer by where its neighbours stand, and spreads it over the width (after Sugiyama et al., 1981)."""
    neighbours: dict[_Spot, list[_Spot]] = {}
    for chain in chains:
        for upper, lower in pairwise(chain):
            neighbours.setdefault(upper, []).append(lower)
            neighbours.setdefault(lower, []).append(upper)
    places = {(number, place.key): place for number, floor in enumerate(floors) for place in floor}
    target = {key: chain[-1] for chain in chains for _, key in chain[1:-1]}
    for floor in floors:
        _spread(floor, {place.key: _CENTRE for place in floor})
    for _ in range(8):
        for number, floor in enumerate(floors):
            wished = {place.key: _wish(place, number, places, neighbours, target) for place in floor}
            floor.sort(key=lambda place: wished[place.key])
            _spread(floor, wished)


def _wish(place: _Place, number: int, places: Mapping[_Spot, _Place], neighbours: Mapping[_Spot, list[_Spot]], target: Mapping[str, _Spot]) -> float:
    """Where a place would stand alone: a lane straight above where it leads, a room amid its neighbours."""
    if place.room is None:
        return places[target[place.key]].x
    near = [places[other].x for other in neighbours.get((number, place.key), ())]
    return 0.85 * sum(near) / len(near) + 0.15 * _CENTRE if near else place.x  # a little towards the middle


def _spread(floor: Sequence[_Place], wished: Mapping[str, float]) -> None:
    """Gives each place the x it wishes, or the nearest that keeps the order, the gaps and the borders."""
    left, right = float(_MARGIN + _LABELS), float(WIDTH - _MARGIN - _PADDING)
    edge = left
    for place in floor:
        place.x = max(wished[place.key], edge + place.width / 2)
        edge = place.x + place.width / 2 + _GAP
    edge = right
    for place in reversed(floor):
        place.x = min(place.x, edge - place.width / 2)
        edge = place.x - place.width / 2 - _GAP
    shift = left - min(place.x - place.width / 2 for place in floor)
    if shift > 0:
        raise ValueError(f"a layer with {', '.join(place.key for place in floor)} is {shift:.0f} px too wide")


def _width(room: Room, sources: Sources) -> float:
    name, *small = _lines(room, sources)
    return max(_length(name, 18), *(_length(line, 11) for line in small)) + 20


def _length(text: str, size: float) -> float:
    """About what a text takes in any sans-serif."""
    return sum(0.67 if character.isupper() else 0.52 for character in text) * size


def _lines(room: Room, sources: Sources) -> list[str]:
    """Name, words, and what is inside."""
    members = [member.rpartition(".")[2] for member in room.members if member in sources.modules]
    several = [name for name in members if not name.startswith("_")]
    inside = several if len(several) > 1 else inner_packages(sources, room)
    return [room.name, room.words, " · ".join(inside)]


def _top(number: int, count: int) -> float:
    return _MARGIN + _PADDING + (count - 1 - number) * _FLOOR_HEIGHT


def _box(place: _Place, room: Room, top: float, sources: Sources, colours: Mapping[str, str]) -> str:
    stands_at_top = any(sources.folders.get(member, "fastcnn") != "fastcnn" for member in room.members)
    stroke = colours["top"] if stands_at_top else colours["line"]
    name, words, inside = _lines(room, sources)
    first = top + (23 if inside else 28)
    parts = [
        f'<rect x="{place.x - place.width / 2:.1f}" y="{top}" width="{place.width:.1f}" height="{_BOX_HEIGHT}" rx="6" '
        f'fill="{colours["box"]}" stroke="{stroke}" stroke-width="{2 if stands_at_top else 1.2}"/>',
        _text(place.x, first, name, 15, colours["top"] if stands_at_top else colours["ink"], weight=600),
        _text(place.x, first + 16, words, 11, colours["muted"]),
    ]
    if inside:
        parts.append(_text(place.x, first + 31, inside, 11, colours["ink"]))
    return "\n".join(parts)


def _curve(chain: Sequence[_Spot], floors: Sequence[Sequence[_Place]]) -> str:
    """From the lower edge of a room to the upper edge of another, straight down through the lanes between them."""
    count = len(floors)
    path = ""
    for position, (number, key) in enumerate(chain):
        place = next(place for place in floors[number] if place.key == key)
        top, bottom = _top(number, count), _top(number, count) + _BOX_HEIGHT
        if position == 0:
            path, x, y = f"M{place.x:.1f},{bottom}", place.x, bottom
            continue
        last = position == len(chain) - 1
        end = top - (1 if last else 0)
        middle = (y + end) / 2
        path += f" C{x:.1f},{middle:.1f} {place.x:.1f},{middle:.1f} {place.x:.1f},{end}"
        if not last:
            path += f" V{bottom}"
        x, y = place.x, bottom
    return path


def _text(x: float, y: float, text: str, size: int, colour: str, *, weight: int = 400, anchor: str = "middle") -> str:
    style = f'font-size="{size}" font-weight="{weight}" text-anchor="{anchor}" fill="{colour}"'
    return f'<text x="{x:.1f}" y="{y:.1f}" {style}>{escape(text)}</text>'
