"""`fastcnn info`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fastcnn.cli import output
from fastcnn.cli.options import (
    ImageSize,
    InputShape,
    Json,
    ModelArgs,
    NumClasses,
    TransformInput,
    Weights,
    WeightsSetOption,
    complete_model,
    model_request,
    own_spelling,
)
from fastcnn.errors import RequestError
from fastcnn.models.preprocessing_of import preprocessing_of

if TYPE_CHECKING:
    from torch import nn

    from fastcnn.graph.plan import Plan
    from fastcnn.models.layer_table import LayerTable


def info(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="A name that `fastcnn list` prints, torchvision:NAME, timm:NAME, package.module:callable or FILE.py:callable (whose code is run), "
            "a .pt2 file, or an .onnx file, whose inputs, outputs and operators are then shown.",
            autocompletion=complete_model,
            callback=own_spelling,
            show_default=False,
        ),
    ],
    plan: Annotated[bool, typer.Option("--plan", help="Also optimize the model, and show what was fused.")] = False,
    backend: Annotated[
        str | None, typer.Option(metavar="NAME", help="The backend of --plan: torch, onnxruntime, openvino, ncnn or auto.  [default: torch]")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, metavar="N", help="The batch that shapes and mult-adds are for.")] = 1,
    weights: Weights = None,
    weights_set: WeightsSetOption = None,
    num_classes: NumClasses = None,
    transform_input: TransformInput = None,
    model_arg: ModelArgs = None,
    image_size: ImageSize = None,
    input_shape: InputShape = None,
    as_json: Json = False,
) -> None:
    """Show a model's layers, weights and input: kernels, shapes, parameters, mult-adds; with --plan also what is fused."""
    if backend is not None and not plan:
        raise RequestError("--backend says where --plan is made: give --plan too")
    request = model_request(
        model,
        weights=weights,
        num_classes=num_classes,
        transform_input=transform_input,
        model_args=model_arg,
        weights_set=weights_set,
        image_size=image_size,
        input_shape=input_shape,
    )
    from fastcnn.models.sources import Kind

    if request.read().kind is Kind.onnx:
        _show_file(Path(model), as_json)
        return
    with output.working(f"reading {model}"):
        from fastcnn.models.layer_table import layer_table
        from fastcnn.models.opening import input_size_of, open_model

        network = open_model(request)
        size = input_size_of(network, request)
        table = layer_table(network, size, batch_size)
    fused = _plan(network, (batch_size, *size), backend or "torch") if plan else None
    described: Any = network.fastcnn_info
    if as_json:
        output.print_json(
            {
                "model": request.model,
                "options": described.options,
                "weights": described.weights,
                "preprocessing": described.preprocessing,
                "input_shape": [batch_size, *size],
                "layers": table.rows,
                "totals": table.totals,
                "plan": fused,
            }
        )
        return
    known = "not known: no picture is described" if described.preprocessing is None else described.preprocessing.summary()
    _print_layers(table, {"weights": described.weights, "input": known})
    if fused is not None:
        print_plan(fused)


def _show_file(path: Path, as_json: bool) -> None:
    """What an ONNX file takes and gives, the operators in it, and what it says of itself where fastcnn wrote it."""
    with output.working(f"reading {path}"):
        from fastcnn.export.inspection import inspect_onnx

        found = inspect_onnx(path)
    if as_json:
        output.print_json(found)
        return
    output.print_table(("operator", "nodes"), list(found.operators.items()), right=("nodes",))
    print()
    said = found.metadata or {}
    output.print_fields(
        {
            **{f"input {one.name}": f"{output.shape(one.shape)} {one.dtype}" for one in found.inputs},
            **{f"output {one.name}": f"{output.shape(one.shape)} {one.dtype}" for one in found.outputs},
            "opset": ", ".join(f"{version} of {domain or 'ai.onnx'}" for domain, version in found.opsets.items()),
            "parameters": f"{found.parameters:,}",
            "written by": found.producer,
            "model": said["model"]["name"] if said.get("model") else None,
            "weights": said["model"].get("weights") if said.get("model") else None,
            "preprocessing": preprocessing.summary() if (preprocessing := preprocessing_of(said)) else "not known",
            "next": None if said else f"fastcnn verify {path} --against MODEL",
        }
    )


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
