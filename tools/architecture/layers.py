"""The layers, and what breaks them.

A module may import from its own room and from rooms on lower layers; rooms of one layer know nothing of each other.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from architecture.source import Import, Sources


@dataclass(frozen=True)
class Room:
    """A part of the house.

    Attributes:
        name: what it is called in the picture.
        members: the packages and modules that it holds, with everything below them.
        words: what it is, in a few words.
    """

    name: str
    members: tuple[str, ...]
    words: str

    def holds(self, module: str) -> bool:
        """Whether `module` belongs to the room. A door is its `__init__` alone."""
        return any(module == member or (member not in DOORS and module.startswith(f"{member}.")) for member in self.members)


@dataclass(frozen=True)
class Layer:
    """Rooms side by side, that do not import each other."""

    name: str
    rooms: tuple[Room, ...]


def _ours(*names: str) -> tuple[str, ...]:
    return tuple(f"fastcnn.{name}" for name in names)


# Packages whose `__init__` is a room of its own: it passes on what stands below it.
DOORS = ("fastcnn",)

# From the ground up. A new package is written into the layer where it belongs, in a room that is there or as a new one.
LAYERS: tuple[Layer, ...] = (
    Layer(
        "ground",
        (
            Room(
                "ground",
                _ours(
                    *(
                        "errors",
                        "files",
                        "limits",
                        "archives",
                        "owners",
                        "cores",
                        "caches",
                        "precision",
                        "pictures",
                        "preprocessing",
                        "target",
                        "text",
                        "inputs",
                    ),
                    *("weight_files", "_version"),
                ),
                "what every room may use",
            ),
        ),
    ),
    Layer(
        "parts",
        (
            Room("models", _ours("models"), "reference networks"),
            Room("graph", _ours("graph"), "capture, passes, plan"),
            Room("parity", _ours("parity"), "the same function?"),
            Room("runtimes", _ours("runtimes"), "ONNX Runtime, OpenVINO, ncnn"),
            Room("kernels", _ours("kernels"), "Triton kernels"),
            Room("data", _ours("data"), "labelled pictures"),
        ),
    ),
    Layer("numbers", (Room("quantization", _ours("quantization"), "products of 8 bits"),)),
    Layer("files", (Room("export", _ours("export"), "ONNX, TorchScript, .pt2"),)),
    Layer("engines", (Room("engines", _ours("engines"), "what runs a fused graph"),)),
    Layer("modules", (Room("optimize", _ours("optimization", "int8_builder", "localization", "optimized_module", "saving"), "the fused module"),)),
    Layer("answers", (Room("prediction", _ours("prediction"), "pictures in, classes out"),)),
    Layer("accuracy", (Room("evaluation", _ours("evaluation"), "how many are right"),)),
    Layer(
        "work",
        (
            Room("bench", _ours("bench"), "how fast, beside everything else"),
            Room("training", _ours("training"), "weights with their history"),
            Room("scale", _ours("scale"), "shards in, parts out"),
        ),
    ),
    Layer(
        "doors",
        (
            Room("python", DOORS, "import fastcnn"),
            Room("command line", _ours("cli", "__main__"), "fastcnn COMMAND"),
        ),
    ),
)

# (importer, imported) → why this import may go up, or to a room beside its own.
EXCEPTIONS: Mapping[tuple[str, str], str] = {}


def room_of(module: str) -> Room | None:
    """The room that holds a module; None where LAYERS does not name it."""
    return next((room for layer in LAYERS for room in layer.rooms if room.holds(module)), None)


def height(room: Room) -> int:
    """How many layers lie below a room."""
    return next(number for number, layer in enumerate(LAYERS) if room in layer.rooms)


def homeless(sources: Sources) -> list[str]:
    """Packages and modules that stand on no layer."""
    found = {module.name if module.package == "fastcnn" else module.package for module in sources.modules.values() if room_of(module.name) is None}
    return sorted(name for name in found if not any(name.startswith(f"{other}.") for other in found))


def misplaced(sources: Sources, exceptions: Mapping[tuple[str, str], str] = EXCEPTIONS) -> list[Import]:
    """Imports that go up, or to another room of the same layer, and are no exception."""
    found = []
    for one in sources.imports:
        here, there = room_of(one.importer), room_of(one.imported)
        if here is None or there is None or here == there or height(there) < height(here):
            continue
        if (one.importer, one.imported) not in exceptions:
            found.append(one)
    return found


def circles(pairs: Iterable[tuple[str, str]]) -> list[list[str]]:
    """Groups of names each of which reaches every other (strongly connected components, after Tarjan 1972)."""
    following: dict[str, list[str]] = defaultdict(list)
    for first, second in dict.fromkeys(pairs):
        following[first].append(second)
    number: dict[str, int] = {}
    lowest: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(name: str) -> None:
        number[name] = lowest[name] = len(number)
        stack.append(name)
        for other in following.get(name, ()):
            if other not in number:
                visit(other)
            if other in stack:
                lowest[name] = min(lowest[name], lowest[other])
        if lowest[name] == number[name]:
            members = stack[stack.index(name) :]
            del stack[stack.index(name) :]
            if len(members) > 1:
                found.append(sorted(members))

    for name in list(following):
        if name not in number:
            visit(name)
    return sorted(found)


def module_circles(sources: Sources) -> list[list[str]]:
    """Circles between modules."""
    return circles((one.importer, one.imported) for one in sources.imports)


def _is_inside(package: str, other: str) -> bool:
    return f"{package}.".startswith(f"{other}.")


def package_circles(sources: Sources) -> list[list[str]]:
    """Circles between packages. A module of `fastcnn` itself stands for itself.

    Between a package and one inside it both directions are fine: `fastcnn.cli.app` joins the commands of
    `fastcnn.cli.bench`, which print through `fastcnn.cli.output`.
    """

    def package(name: str) -> str:
        module = sources.modules[name]
        return name if module.package == "fastcnn" else module.package

    pairs = ((package(one.importer), package(one.imported)) for one in sources.imports)
    return circles(pair for pair in pairs if not _is_inside(*pair) and not _is_inside(*reversed(pair)))


def room_imports(sources: Sources) -> dict[str, set[str]]:
    """Room → rooms that it imports from."""
    arrows: dict[str, set[str]] = {room.name: set() for layer in LAYERS for room in layer.rooms}
    for one in sources.imports:
        here, there = room_of(one.importer), room_of(one.imported)
        if here is not None and there is not None and here != there:
            arrows[here.name].add(there.name)
    return arrows


def without_implied(arrows: Mapping[str, set[str]]) -> dict[str, set[str]]:
    """The arrows that no longer road of arrows implies. There must be no circle."""

    def reached(name: str) -> set[str]:
        return arrows[name].union(*(reached(other) for other in arrows[name]))

    return {name: there - set().union(*(reached(other) for other in there)) for name, there in arrows.items()}


def inner_packages(sources: Sources, room: Room) -> Sequence[str]:
    """Short names of the packages inside a room, one level below its members."""
    packages = (name for name, module in sources.modules.items() if module.is_package and name not in DOORS)
    return sorted(name.rpartition(".")[2] for name in packages if name.rpartition(".")[0] in set(room.members) - set(DOORS))
