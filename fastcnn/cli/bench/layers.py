"""`fastcnn bench layers`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fastcnn.cli import output
from fastcnn.cli.bench.run import batch_sizes_of, names_of
from fastcnn.cli.options import Force, Model
from fastcnn.cli.progress import progress_bar
from fastcnn.cli.stopping import say_stopped
from fastcnn.errors import BackendError, RequestError
from fastcnn.files import check_target, write_text
from fastcnn.precision import Precision


def layers(
    model: Model,
    batch_size: Annotated[str, typer.Option(metavar="N,N…", help="Batch sizes, each measured apart.")] = "1,8,32,128",
    precision: Annotated[Precision, typer.Option(case_sensitive=False, help="What every implementation computes in.")] = Precision.fp16,
    implementations: Annotated[
        str | None, typer.Option(metavar="NAME,NAME…", help="Of triton_stem, triton, triton_tma, cudnn_graph and library.  [default: all]")
    ] = None,
    json_file: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Also write every variant's time.")] = None,
    choices_file: Annotated[
        Path | None, typer.Option("--choices", metavar="FILE", help="Also write the fastest of each layer in the form that ships with fastcnn.")
    ] = None,
    force: Force = False,
) -> None:
    """Time every implementation of every convolution of MODEL on the GPU. Ctrl-C keeps the layers that are finished."""
    batch_sizes = batch_sizes_of(batch_size)
    if precision is Precision.int8:
        raise RequestError("layers are not timed in int8: there are fp32, tf32, fp16 and bf16")
    names = None if implementations is None else names_of(implementations)
    if names == []:
        raise RequestError("--implementations names none; leave it out for all of them")
    for path, option in ((json_file, "--json"), (choices_file, "--choices")):
        if path is not None:
            check_target(path, force, option)
    from fastcnn.models.registry import model_spec

    name = model_spec(model).name

    import torch

    from fastcnn.engines import get_engine

    get_engine("triton")
    if not torch.cuda.is_available():
        raise BackendError("there is no CUDA device: layers are timed on a GPU only")
    import json

    from fastcnn.bench.studies.layers import table_of, time_layers, write_layers
    from fastcnn.engines.triton.options import IMPLEMENTATIONS

    with progress_bar(name) as progress:
        report = time_layers(name, batch_sizes, precision, names=names or IMPLEMENTATIONS, progress=progress)
    columns, rows = table_of(report)
    output.note(f"{name}, {precision}, {torch.cuda.get_device_name()}")
    output.print_table(columns, rows, right=[column for column in columns if column not in ("layer", "fastest")], spare=("TFLOP/s", "times"))
    if json_file is not None:
        write_layers(report, json_file)
        output.note(f"every variant's time is in {json_file}")
    if choices_file is not None:
        write_text(choices_file, json.dumps(report.choices(torch.device("cuda")), indent=1) + "\n")
        output.note(f"the choices are in {choices_file}")
    if report.interrupted:
        raise typer.Exit(say_stopped())
