"""Random networks, one for each seed."""

from __future__ import annotations

import copy
from dataclasses import replace
from random import Random

import fuzz.pointwise_operations
import fuzz.shape_operations
import fuzz.spatial_operations  # noqa: F401
import torch
from fuzz.network import Network, NoNetworkError, Recipe, Step, Workbench, assemble, pictures
from fuzz.registry import OPERATIONS, Draft
from torch import Tensor

_ATTEMPTS = 200
# Of eager float32 against float64: a network that amplifies rounding shows nothing of an engine.
_WELL_CONDITIONED = 2e-6
_SHARED = 0.06


def shape_of(seed: int) -> tuple[int, ...]:
    """Of one picture; ten seeds in a row have the same, so that they can run side by side on one input."""
    dice = Random(f"shape {seed // 10}")
    return (dice.choice([1, 2, 3, 3, 4, 6]), dice.choice([5, 7, 8, 9, 11, 12]), dice.choice([5, 6, 7, 9, 10, 13]))


def network(seed: int) -> Network:
    """The network of a seed: the same on every machine, as far as the sizes of its values allow."""
    for attempt in range(_ATTEMPTS):
        try:
            made = assemble(_recipe(Random(f"{seed} {attempt}"), seed))
        except NoNetworkError:
            continue
        if is_well_behaved(made):
            return made
    raise AssertionError(f"no network for seed {seed}")


def _recipe(dice: Random, seed: int) -> Recipe:
    shape = shape_of(seed)
    bench, steps = Workbench(shape), list[Step]()
    values = {0: bench.values[0]}
    wanted = dice.randint(2, 8)
    while len(steps) < wanted:
        step = _draw(dice, values, steps)
        if step is None:
            continue
        kept = copy.deepcopy(values), bench
        bench = _rebuilt(shape, steps)
        try:
            bench.run(step)
        except NoNetworkError:
            bench = kept[1]
            continue
        steps.append(step)
        values = bench.values
    outputs = [steps[-1].number]
    if dice.random() < 0.2:
        outputs.append(dice.choice(steps).number)
    return replace(Recipe(tuple(steps), tuple(dict.fromkeys(outputs)), shape, seed)).needed()


def _rebuilt(shape: tuple[int, ...], steps: list[Step]) -> Workbench:
    """A failed step may have written into values before it failed: each step begins with fresh ones."""
    bench = Workbench(shape)
    for step in steps:
        bench.run(step)
    return bench


def _draw(dice: Random, values: dict[int, Tensor], steps: list[Step]) -> Step | None:
    # The youngest value most often: networks are mostly chains.
    number = max(values) if dice.random() < 0.75 else dice.choice(list(values))
    value = values[number]
    new, seed = max(values) + 1, dice.randrange(10**6)
    shared = [step for step in steps if step.module and step.shares is None]
    if shared and dice.random() < _SHARED:
        other = dice.choice(shared)
        return Step(new, other.code, (number, *other.reads[1:]), shares=other.number, module=other.module, options=other.options)
    fitting = [operation for operation in OPERATIONS.values() if value.dim() in operation.ranks]
    if not fitting:
        return None
    (operation,) = dice.choices(fitting, [operation.weight for operation in fitting])
    draft = operation.draw(dice, tuple(value.shape[1:]))
    if draft is None:
        return None
    reads = _others(dice, draft, number, values)
    return None if reads is None else draft.step(new, (number, *reads), seed)


def _others(dice: Random, draft: Draft, first: int, values: dict[int, Tensor]) -> list[int] | None:
    shape = values[first].shape
    if draft.loose:
        fitting = [number for number, value in values.items() if value.dim() == len(shape) and (value.shape[2:] == shape[2:] or value.shape == shape)]
    else:
        fitting = [number for number, value in values.items() if value.shape == shape]
    return [dice.choice(fitting) for _ in range(draft.others)] if fitting or not draft.others else None


def is_well_behaved(made: Network) -> bool:
    """Whether it treats pictures apart, keeps the batch first in every output, and does not amplify rounding."""
    x = pictures(made.recipe.shape, 3, seed=1)
    try:
        with torch.no_grad():
            precise = _outputs(copy.deepcopy(made).double(), x.double())
            plain, alone = _outputs(made, x), _outputs(made, x[:1])
    except Exception:  # a step that fits two pictures only, or names a dtype
        return False
    for exact, output, single in zip(precise, plain, alone, strict=True):
        if output.shape[0] != 3 or single.shape != output[:1].shape or not bool(output.isfinite().all()):
            return False
        norm = float(exact.norm())
        # Of every picture: what is nearly nothing hangs on the last digits of a sigmoid's tail, which runtimes do not have.
        least = float(exact.reshape(3, -1).norm(dim=1).min())
        if least < 1e-2 or float((output - exact).norm()) / norm > _WELL_CONDITIONED:
            return False
        if not torch.allclose(single, output[:1], atol=1e-3, rtol=1e-3):
            return False
    return True


def _outputs(made: torch.nn.Module, x: Tensor) -> list[Tensor]:
    outputs = made(x.clone())
    return [outputs] if isinstance(outputs, Tensor) else list(outputs)
