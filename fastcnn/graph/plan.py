"""What was done to a model and what runs it: one row per fused step, one line per pass."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

from torch import fx

from fastcnn.graph.ir import CapturedGraph, Shape


@dataclass
class PassReport:
    """How often a pass fired, and why it declined elsewhere."""

    name: str
    fired: int = 0
    declined: Counter[str] = field(default_factory=Counter)

    def decline(self, reason: str) -> None:
        """Count one place where the pass could not fire, by its reason."""
        self.declined[reason] += 1

    def __str__(self) -> str:
        reasons = "; ".join(f"{count} declined: {reason}" for reason, count in self.declined.items())
        return f"{self.name}: {self.fired}×" + (f" ({reasons})" if reasons else "")


@dataclass(frozen=True)
class PlanRow:
    """One step of the running engine.

    Attributes:
        launch: the number of the launch that computes the step, where the engine counts them; steps of one launch share it, None needs no launch.
        milliseconds: of that launch at the batch that the engine prepared for, as measured on the device.
        flops, bytes: of this step: operations, a multiply-add counted as two, and activations and weights read or written once.
        roofline_share: the time that the device's own ceilings allow that launch at best, over the time it takes.
        operations: the operations that PyTorch's dispatcher runs for the step, in order, as in `aten::conv2d`; empty in other runtimes.
        fused: the step has more than one operation of the captured model in it.
    """

    step: int
    name: str
    op: str
    folded: tuple[str, ...]
    output_shape: Shape
    kernel: str
    why: str
    launch: int | None = None
    milliseconds: float | None = None
    roofline_share: float | None = None
    flops: int | None = None
    bytes: int | None = None
    operations: tuple[str, ...] = ()
    fused: bool = False


class StepKernel(NamedTuple):
    """What runs a step, in the fields that a `PlanRow` has for it."""

    kernel: str = ""
    why: str = ""
    operations: tuple[str, ...] = ()
    fused: bool = False


@dataclass(frozen=True)
class BackendTiming:
    """One backend that `auto` looked at: its median time for the example input in milliseconds, or why it was left out."""

    backend: str
    milliseconds: float | None
    why: str


@dataclass(frozen=True)
class Plan:
    """Everything that `optimize` decided; `print(plan)` is a table. `memory`: bytes that the engine holds, by what for, where it plans them."""

    backend: str
    rows: tuple[PlanRow, ...]
    passes: tuple[PassReport, ...]
    choice: tuple[BackendTiming, ...] = ()
    memory: dict[str, int] = field(default_factory=dict)

    def count(self, op: str) -> int:
        """How many steps are of kind `op`."""
        return sum(row.op == op for row in self.rows)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        # Not asdict of the whole: it would rebuild each Counter from pairs.
        return {
            "backend": self.backend,
            "rows": [asdict(row) for row in self.rows],
            "passes": [{"name": report.name, "fired": report.fired, "declined": dict(report.declined)} for report in self.passes],
            "choice": [asdict(timing) for timing in self.choice],
            "memory": dict(self.memory),
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Plan:
        """The inverse of `to_dict`; fields that an earlier release did not write have their defaults. KeyError or TypeError for something else."""
        tuples: list[dict[str, Any]] = [
            {key: tuple(value) if isinstance(value, list) else value for key, value in row.items()} for row in data["rows"]
        ]
        rows = tuple(PlanRow(**row) for row in tuples)
        passes = tuple(PassReport(report["name"], report["fired"], Counter(report["declined"])) for report in data["passes"])
        return cls(data["backend"], rows, passes, tuple(BackendTiming(**timing) for timing in data["choice"]), data.get("memory", {}))

    def __str__(self) -> str:
        header: tuple[str, ...] = ("step", "name", "op", "folded", "output", "kernel")
        timed = any(row.milliseconds is not None for row in self.rows)
        header += ("µs", "of roofline") if timed else ()
        table = [header]
        for row in self.rows:
            size = "×".join("N" if size is None else str(size) for size in row.output_shape)
            cells: tuple[str, ...] = (str(row.step), row.name, row.op, " + ".join(row.folded), size, row.kernel)
            if timed:
                cells += (
                    "" if row.milliseconds is None else f"{row.milliseconds * 1e3:.1f}",
                    "" if row.roofline_share is None else f"{row.roofline_share:.0%}",
                )
            table.append(cells)
        widths = [max(len(line[column]) for line in table) for column in range(len(header))]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in table]
        memory = [f"memory: {', '.join(f'{what} {size / 2**20:.1f} MiB' for what, size in self.memory.items())}"] if self.memory else []
        return "\n".join([f"backend {self.backend}, {len(self.rows)} steps", *lines, *(str(report) for report in self.passes), *memory])


def make_rows(captured: CapturedGraph, kernel_of: Mapping[str, StepKernel]) -> tuple[PlanRow, ...]:
    """One row per call in the graph; `kernel_of` maps a node's name to what runs it."""
    return tuple(
        PlanRow(
            step,
            node.meta.get("path") or node.name,
            op_name(node),
            tuple(node.meta.get("folded", ())),
            node.meta["shape"],
            **kernel_of.get(node.name, StepKernel())._asdict(),
        )
        for step, node in enumerate(captured.calls())
    )


def op_name(node: fx.Node) -> str:
    """A short name for the operation that a node calls: `conv2d`, `max_pool2d`, `add`."""
    name = getattr(node.target, "_schema", None)
    return name.name.split("::")[1] if name is not None else getattr(node.target, "__name__", str(node.target))
