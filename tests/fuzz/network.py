"""A small network as a list of steps: plain data, printable as Python, and a module to run."""

from __future__ import annotations

import linecache
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Values of a step beyond these are left to other networks: rounding would drown what is looked for.
_LARGEST_VALUE, _LARGEST_TENSOR = 1e3, 40_000

_NAMESPACE = {"torch": torch, "nn": nn, "F": F}


class NoNetworkError(Exception):
    """The steps make no network: a shape does not fit, or a value is no finite tensor of sensible size."""


@dataclass(frozen=True)
class Step:
    """One operation.

    `{0}`, `{1}` … stand for the values that it reads, `{m}` for its module, `{c}`, `{h}`, `{w}`, `{size}` for the sizes of the first value (channels,
    the two sides, elements of a picture), `{options}` for the options that are left, and `{out}` for the value that it makes.

    Attributes:
        number: of the value that it makes, unlike that of any other; 0 is the input.
        code: an expression; or statements, where it speaks of `{out}`.
        reads: numbers of earlier values.
        module: an expression that makes what `{m}` reads; empty for none.
        shares: number of the step whose module it calls in place of one of its own.
        options: named arguments, each of which may be dropped.
        seed: of the module's weights.
    """

    number: int
    code: str
    reads: tuple[int, ...]
    module: str = ""
    shares: int | None = None
    options: tuple[tuple[str, str], ...] = ()
    seed: int = 0

    def text(self, template: str, first: Tensor) -> str:
        """`template` with the names of values in the places of numbers."""
        sizes = [*first.shape[1:], 1, 1, 1]
        fields: dict[str, Any] = {"c": sizes[0], "h": sizes[1], "w": sizes[2], "size": first[0].numel(), "last": first.shape[-1]}
        fields |= {"options": ", ".join(f"{name}={value}" for name, value in self.options), "out": f"v{self.number}"}
        fields |= {"m": f"self.m{self.number if self.shares is None else self.shares}"}
        text = template.format(*(f"v{read}" for read in self.reads), **fields)
        return re.sub(r", (?=\))", "", text)


@dataclass(frozen=True)
class Recipe:
    """What a network is made from: the steps, the outputs by number, and the shape of one picture."""

    steps: tuple[Step, ...]
    outputs: tuple[int, ...]
    shape: tuple[int, ...]
    seed: int = 0

    def needed(self) -> Recipe:
        """Without the steps that no output reads, but for those that write into a value that one does."""
        wanted, kept = set(self.outputs), list[Step]()
        for step in reversed(self.steps):
            writes = "{out}" in step.code and bool(wanted & set(step.reads))
            if step.number in wanted or writes or any(other.shares == step.number for other in kept):
                kept.append(step)
                wanted |= set(step.reads)
        return replace(self, steps=tuple(reversed(kept)))


@dataclass
class Workbench:
    """Values and modules while steps are run one by one, on two pictures."""

    shape: tuple[int, ...]
    values: dict[int, Tensor] = field(default_factory=dict)
    root: nn.Module = field(default_factory=nn.Module)
    setup: list[str] = field(default_factory=list)
    forward: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.values[0] = pictures(self.shape, 2)
        self.scope: dict[str, Any] = {**_NAMESPACE, "self": self.root, "v0": self.values[0]}

    def run(self, step: Step) -> Tensor:
        """Run a step. NoNetworkError where it cannot run, or gives what no further step should read; the workbench is then spoilt."""
        if any(read not in self.values for read in step.reads):
            raise NoNetworkError("reads what is not there")
        first = self.values[step.reads[0]]
        lines = step.text(step.code, first)
        lines = lines if "{out}" in step.code else f"v{step.number} = {lines}"
        try:
            with torch.no_grad():
                if step.module and step.shares is None:
                    made = step.text(step.module, first)
                    torch.manual_seed(step.seed)
                    setattr(self.root, f"m{step.number}", randomized(eval(made, self.scope)))
                    self.setup.append(f"self.m{step.number} = {made}")
                exec(lines, self.scope)
                value = self.scope[f"v{step.number}"]
        except Exception as error:
            raise NoNetworkError(str(error)) from error
        self.forward += lines.split("\n")
        self.values[step.number] = value
        for checked in (value, first):
            _require_sensible(checked)
        return value


def _require_sensible(value: object) -> None:
    if not isinstance(value, Tensor) or value.dtype != torch.float32 or value.dim() < 2 or value.shape[0] != 2:
        raise NoNetworkError("no float32 tensor with a batch of two")
    if not value.numel() or value.numel() > _LARGEST_TENSOR or not bool(value.isfinite().all()) or float(value.abs().max()) > _LARGEST_VALUE:
        raise NoNetworkError("no finite values of sensible size")


def randomized(module: Any) -> Any:
    """Norms get random statistics and weights: as constructed they are nearly the identity."""
    if not isinstance(module, nn.Module):
        return module
    for part in module.modules():
        if isinstance(getattr(part, "running_mean", None), Tensor):
            part.running_mean.uniform_(-0.5, 0.5)
            part.running_var.uniform_(0.5, 2.0)
        if isinstance(part, (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm)) and part.weight is not None:
            part.weight.uniform_(0.5, 1.5)
            if part.bias is not None:
                part.bias.uniform_(-0.5, 0.5)
    return module.eval()


def pictures(shape: Sequence[int], count: int, seed: int = 0) -> Tensor:
    """[count, …] standard normal."""
    return torch.randn((count, *shape), generator=torch.Generator().manual_seed(seed))


class Network(nn.Module):
    """What steps make. `source` is a class in Python that computes the same with weights of its own."""

    recipe: Recipe
    source: str

    def forward(self, x: Tensor) -> Any:
        """x: [N, …] → a tensor, or a tuple where there are several outputs."""
        return self._run(self, x)


def assemble(recipe: Recipe) -> Network:
    """The module of a recipe, in evaluation mode. Raises NoNetworkError where the steps do not fit together."""
    bench = Workbench(recipe.shape)
    for step in recipe.steps:
        bench.run(step)
    if any(output not in bench.values for output in recipe.outputs):
        raise NoNetworkError("an output is not there")
    returned = ", ".join(f"v{output}" for output in recipe.outputs)
    forward = [*bench.forward, f"return {returned}"]
    network = Network()
    network.recipe = recipe
    network.source = "\n".join(
        [
            f"# pictures of {list(recipe.shape)}, seed {recipe.seed}",
            "class Net(nn.Module):",
            *([] if not bench.setup else ["    def __init__(self):", "        super().__init__()", *(f"        {line}" for line in bench.setup)]),
            "    def forward(self, v0):",
            *(f"        {line}" for line in forward),
        ]
    )
    body = "\n".join(["def forward(self, v0):", *(f"    {line}" for line in forward)]) + "\n"
    # The capture names the line of an operation that it refuses.
    filename = f"fuzzed_{recipe.seed}.py"
    linecache.cache[filename] = (len(body), None, body.splitlines(keepends=True), filename)
    scope = dict(_NAMESPACE)
    exec(compile(body, filename, "exec"), scope)
    network._run = scope["forward"]
    for name, value in vars(bench.root).items():
        if isinstance(value, Tensor):
            setattr(network, name, value)
    for name, part in (*bench.root.named_parameters(recurse=False), *bench.root.named_children()):
        setattr(network, name, part)
    for name, part in bench.root.named_buffers(recurse=False):
        network.register_buffer(name, part)
    return network.eval()
