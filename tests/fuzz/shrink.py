"""From a network that fails to the smallest that fails in the same way."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

from fuzz.network import Network, NoNetworkError, Recipe, Step, assemble


def shrink(recipe: Recipe, fails: Callable[[Network], bool], attempts: int) -> Recipe:
    """Drop and simplify steps while the network still `fails`, as `recipe` does; `attempts` is how often it may be asked."""
    while True:
        for candidate in _simpler(recipe):
            if attempts <= 0:
                return recipe
            try:
                made = assemble(candidate)
            except NoNetworkError:
                continue
            attempts -= 1
            if fails(made):
                recipe = candidate
                break
        else:
            return recipe


def _simpler(recipe: Recipe) -> Iterator[Recipe]:
    """Each with less than `recipe`, the boldest first."""
    for output in recipe.outputs if len(recipe.outputs) > 1 else ():
        yield replace(recipe, outputs=(output,)).needed()
    for step in reversed(recipe.steps):
        for other in dict.fromkeys(step.reads):
            yield _without(recipe, step, other)
    if len(recipe.outputs) == 1 and len(recipe.steps) > 1:
        for step in recipe.steps[:-1]:
            yield replace(recipe, outputs=(step.number,)).needed()
    for position, step in enumerate(recipe.steps):
        for simpler in _simpler_steps(step):
            steps = (*recipe.steps[:position], simpler, *recipe.steps[position + 1 :])
            yield replace(recipe, steps=steps)
    for position, size in enumerate(recipe.shape):
        for smaller in (1, 2, size // 2, size - 1):
            if 0 < smaller < size:
                yield replace(recipe, shape=(*recipe.shape[:position], smaller, *recipe.shape[position + 1 :]))


def _without(recipe: Recipe, dropped: Step, other: int) -> Recipe:
    """`dropped` left out, its readers given `other`; a step that called its module gets one of its own."""

    def renamed(number: int) -> int:
        return other if number == dropped.number else number

    steps = [
        replace(step, reads=tuple(renamed(read) for read in step.reads), shares=None if step.shares == dropped.number else step.shares)
        for step in recipe.steps
        if step is not dropped
    ]
    return replace(recipe, steps=tuple(steps), outputs=tuple(dict.fromkeys(renamed(output) for output in recipe.outputs))).needed()


def _simpler_steps(step: Step) -> Iterator[Step]:
    for name, _ in step.options:
        yield replace(step, options=tuple(option for option in step.options if option[0] != name))
    for position, read in enumerate(step.reads[1:], 1):
        if read != step.reads[0]:
            yield replace(step, reads=(*step.reads[:position], step.reads[0], *step.reads[position + 1 :]))
