"""Many seeds in child processes: a runtime that dies takes one network along, not the run."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection

from fuzz.generator import network
from fuzz.network import Network, Recipe, assemble
from fuzz.shrink import shrink
from fuzz.verdict import Bundle, Verdict, judge, prepare_process

# Seeds side by side in one network, such groups in one child, and seconds after which a silent child counts as hung.
SIDE_BY_SIDE, _GROUPS_PER_CHILD, _PATIENCE = 10, 15, 600.0
# To shrink a network; one that ends its process costs a process for each, and gets fewer.
ATTEMPTS, _ATTEMPTS_PER_PROCESS = 60, 3

_CONTEXT = multiprocessing.get_context("spawn")


@dataclass(frozen=True)
class Result:
    """What was found of a seed. `smallest`: the source of the smallest network that fails in the same way, of one that fails."""

    seed: int
    verdicts: tuple[Verdict, ...]
    smallest: str = ""


def groups_of(seeds: Sequence[int]) -> list[list[int]]:
    """Seeds that can run side by side."""
    groups: dict[int, list[int]] = {}
    for seed in seeds:
        groups.setdefault(seed // SIDE_BY_SIDE, []).append(seed)
    return list(groups.values())


def sweep(seeds: Sequence[int], engines: tuple[str, ...], attempts: int = ATTEMPTS) -> Iterator[Result]:
    """The result of each seed, as it is found. Of several failures with one cause, by their key, the first is shrunk, in so many attempts."""
    left, known = groups_of(seeds), set[str]()
    while left:
        batch, left = left[:_GROUPS_PER_CHILD], left[_GROUPS_PER_CHILD:]
        finished, at_work = 0, ""
        with _Child(_work, batch, engines, known, attempts) as child:
            for message in child:
                if isinstance(message, Result):
                    known |= {verdict.key for verdict in message.verdicts if verdict.is_news}
                    yield message
                elif isinstance(message, str):
                    at_work = message
                else:
                    finished += 1
        if finished < len(batch):
            guilty, *rest = batch[finished:]
            if len(guilty) == 1:
                yield _crashed(guilty[0], at_work, child.ending, known, attempts)
                left = rest + left
            else:
                left = [[seed] for seed in guilty] + rest + left


class _Child:
    """A process and what it says, until it ends."""

    def __init__(self, work: object, *args: object) -> None:
        self._incoming, outgoing = _CONTEXT.Pipe(duplex=False)
        self._process = _CONTEXT.Process(target=work, args=(outgoing, *args), daemon=True)  # type: ignore[arg-type]
        self._process.start()
        outgoing.close()
        self.ending = ""

    def __enter__(self) -> _Child:
        return self

    def __iter__(self) -> Iterator[object]:
        try:
            while self._incoming.poll(_PATIENCE):
                yield self._incoming.recv()
            self.ending = f"silent for {_PATIENCE:.0f} s"
        except EOFError:
            self._process.join()
            self.ending = f"exit code {self._process.exitcode}"

    def __exit__(self, *error: object) -> None:
        self._process.kill()
        self._process.join()


def _work(outgoing: Connection, groups: list[list[int]], engines: tuple[str, ...], known: set[str], attempts: int) -> None:
    prepare_process()
    for group in groups:
        for result in results_of(group, engines, known, attempts, outgoing):
            outgoing.send(result)
        outgoing.send(None)


def results_of(group: list[int], engines: tuple[str, ...], known: set[str], attempts: int, outgoing: Connection | None = None) -> Iterator[Result]:
    """All side by side first; where an engine does not get that right, each of them alone. Causes in `known`, which grows, are not shrunk."""

    def tell(engine: str) -> None:
        if outgoing is not None:
            outgoing.send(engine)

    networks = [network(seed) for seed in group]
    together = [verdict for verdict in judge(Bundle(networks), engines, tell) if verdict.kind == "right"] if len(group) > 1 else []
    rest = tuple(engine for engine in engines if engine not in {verdict.engine for verdict in together})
    for made in networks:
        verdicts = (*together, *judge(made, rest, tell))
        new = next((verdict for verdict in verdicts if verdict.is_news and verdict.key not in known), None)
        known |= {verdict.key for verdict in verdicts if verdict.is_news}
        yield Result(made.recipe.seed, verdicts, "" if new is None else _smallest(made, new, attempts))


def _smallest(made: Network, bad: Verdict, attempts: int) -> str:
    def fails(candidate: Network) -> bool:
        return any(verdict.key == bad.key for verdict in judge(candidate, (bad.engine,)))

    return assemble(shrink(made.recipe, fails, attempts)).source


def _crashed(seed: int, engine: str, ending: str, known: set[str], attempts: int) -> Result:
    """The engine is the one that was at work; the verdicts of others went with the process."""
    verdict = Verdict(engine, "crash", ending, f"{engine}: crash")
    if verdict.key in known:
        return Result(seed, (verdict,), network(seed).source)
    known.add(verdict.key)
    recipe = shrink(network(seed).recipe, lambda candidate: _dies(candidate.recipe, engine), attempts // _ATTEMPTS_PER_PROCESS)
    return Result(seed, (verdict,), assemble(recipe).source)


def _dies(recipe: Recipe, engine: str) -> bool:
    with _Child(_judge_one, recipe, engine) as child:
        return not list(child)


def _judge_one(outgoing: Connection, recipe: Recipe, engine: str) -> None:
    prepare_process()
    outgoing.send(list(judge(assemble(recipe), (engine,))))
