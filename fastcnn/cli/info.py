"""`fastcnn info`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from fastcnn.cli import output
from fastcnn.cli.options import Json, Model, ModelArgs, NumClasses, TransformInput, Weights, WeightsSetOption, model_options
from fastcnn.errors import RequestError

if TYPE_CHECKING:
    from torch import nn

    from fastcnn.graph.plan import Plan
    from fastcnn.models.layer_table import LayerTable


def info(
    model: Model,
    plan: Annotated[bool, typer.Option("--plan", help="Also optimize the model, and show what was fused.")] = False,
    backend: Annotated[
        str | None, typer.Option(metavar="NAME", help="The backend of --plan: torch, onnxruntime, openvino or auto.  [default: torch]")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, metavar="N", help="The batch that shapes and mult-adds are for.")] = 1,
    weights: Weights = None,
    weights_set: WeightsSetOption = None,
    num_classes: NumClasses = None,
    transform_input: TransformInput = None,
    model_arg: ModelArgs = None,
    as_json: Json = False,
) -> None:
    """Show a model's layers, weights and input: kernels, shapes, parameters, mult-adds; with --plan also what is fused."""
    if backend is not None and not plan:
        raise RequestError("--backend says where --plan is made: give --plan too")
    from fastcnn.models import create_model, model_spec

    spec = model_spec(model)
    options = model_options(model, num_classes=num_classes, transform_input=transform_input, model_args=model_arg, weights_set=weights_set)
    with output.working(f"reading {model}"):
        from fastcnn.models.layer_table import layer_table

        network = create_model(model, weights, **options)
        table = layer_table(network, spec.input_size, batch_size)
    fused = _plan(network, (batch_size, *spec.input_size), backend or "torch") if plan else None
    described: Any = network.fastcnn_info
    if as_json:
        output.print_json(
            {
                "model": model,
                "options": described.options,
                "weights": described.weights,
                "preprocessing": described.preprocessing,
                "input_shape": [batch_size, *spec.input_size],
                "layers": table.rows,
                "totals": table.totals,
                "plan": fused,
            }
        )
        return
    _print_layers(table, {"weights": described.weights, "input": described.preprocessing.summary()})
    if fused is not None:
        print_plan(fused)


def _plan(network: nn.Module, shape: tuple[int, ...], backend: str) -> Plan:
    import torch

    from fastcnn import optimize

    with output.working(f"optimizing for {backend}"):
        example = torch.rand(shape, generator=torch.Generator().manual_seed(0))
        return optimize(network, example, backend=backend).plan


def _print_layers(table: LayerTable, described: dict[str, str]) -> None:
    """A row per call, indented by its depth, the totals, and what else is known of the model."""
    output.print_table(
        ("layer", "type", "kernel", "input", "output", "parameters", "mult-adds"),
        [
            (
                "  " * row.depth + (row.name.rpartition(".")[2] or "(model)"),
                row.type,
                None if row.kernel is None else output.shape(row.kernel),
                output.shape(row.input_shape),
                output.shape(row.output_shape),
                row.parameters or None,
                row.mult_adds or None,
            )
            for row in table.rows
        ],
        right=("parameters", "mult-adds"),
        spare=("type", "input"),
    )
    print()
    totals = table.totals
    output.print_fields(
        {
            "parameters": f"{totals.parameters:,}" + (f", {totals.not_run:,} of them in parts that inference does not run" if totals.not_run else ""),
            "trainable": f"{totals.trainable:,}",
            "mult-adds": f"{totals.mult_adds:,}",
            "memory": f"{totals.total_mb:,.2f} MB: input {totals.input_mb:,.2f}, activations and their gradients {totals.activation_mb:,.2f}, "
            f"parameters {totals.parameter_mb:,.2f}",
            **described,
        }
    )


def print_plan(plan: Plan) -> None:
    """The fused steps, the passes, and for `auto` the backends it measured."""
    print()
    output.print_table(
        ("step", "name", "op", "folded into it", "output", "kernel", "why"),
        [(row.step, row.name, row.op, " + ".join(row.folded), output.shape(row.output_shape), row.kernel, row.why) for row in plan.rows],
        right=("step",),
        spare=("why", "kernel"),
    )
    print()
    output.print_fields({"backend": f"{plan.backend}, {len(plan.rows)} steps", **output.passes(plan.passes)})
    if plan.choice:
        print()
        output.print_fields(
            {
                candidate.backend: candidate.why if candidate.milliseconds is None else f"{candidate.milliseconds:.2f} ms; {candidate.why}"
                for candidate in plan.choice
            }
        )
