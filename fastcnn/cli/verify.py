"""`fastcnn verify`."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fastcnn.cli import output
from fastcnn.cli.options import (
    InputShape,
    Json,
    ModelArgs,
    NumClasses,
    Weights,
    complete_model,
    model_request,
    own_spelling,
)
from fastcnn.errors import ParityError, RequestError

if TYPE_CHECKING:
    from fastcnn.models.request import ModelRequest
    from fastcnn.parity import ParityReport


def verify(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A file that `fastcnn export` wrote; with --against any file.", show_default=False)],
    against: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            help="Hold the file (ONNX, TorchScript, .pt2 or .fast, whoever wrote it) against this model: a name that `fastcnn list` prints, "
            "torchvision:NAME, timm:NAME, FILE.py:callable, a .pt2 file, or an .onnx file.",
            autocompletion=complete_model,
            callback=own_spelling,
        ),
    ] = None,
    weights: Weights = None,
    num_classes: NumClasses = None,
    model_arg: ModelArgs = None,
    input_shape: InputShape = None,
    tolerance: Annotated[
        float | None, typer.Option(metavar="X", help="Of --against: largest relative error that passes.  [default: by precision]")
    ] = None,
    attestation: Annotated[Path | None, typer.Option(metavar="FILE", help="Also hold the file against what `fastcnn export --attest` wrote.")] = None,
    as_json: Json = False,
) -> None:
    """Check a file again, from what is stored in it (golden input, output and digests), or against a model of yours.

    The first proves that the file is as it was written and computes what it says, not who wrote it: for that, sign its attestation.
    """
    options: dict[str, Any] = {"weights": weights, "num_classes": num_classes, "model_args": model_arg, "input_shape": input_shape}
    if against is None and any(value is not None for value in (*options.values(), tolerance)):
        raise RequestError("--weights, --num-classes, --model-arg, --input-shape and --tolerance belong to the model of --against: name it")
    if tolerance is not None and not 0 < tolerance < 1:
        raise RequestError(f"--tolerance is a bound on the relative error, above 0 and below 1; it is {tolerance:g}")
    request = None if against is None else model_request(against, **options)
    if request is not None and not file.is_file():
        raise RequestError(f"{file} is a folder" if file.is_dir() else f"{file} does not exist")
    with output.working(f"verifying {file}"):
        if request is None:
            from fastcnn.export import verify_file

            report = verify_file(file)
        else:
            report = _against(file, request, tolerance)
        failures = [] if attestation is None else _attested(file, attestation)
    held = {} if attestation is None else {"attestation": {"file": attestation, "failures": failures}}
    answer = {"file": file} | ({} if request is None else {"against": request.model}) | {"parity": report}
    if as_json:
        output.print_json(answer | held)
    else:
        said = None if attestation is None else "; ".join(failures) or f"{attestation} is of this file; who wrote it is for a signature to say"
        output.print_fields(answer | {"parity": report.summary(), "attestation": said})
    report.require(str(file))
    if failures:
        raise ParityError(f"{file} is not what {attestation} attests: {'; '.join(failures)}")


def _attested(file: Path, attestation: Path) -> list[str]:
    from fastcnn.export.attestation import check_attestation
    from fastcnn.files import sha256_of_file

    return check_attestation(file, attestation, sha256_of_file(file))


def _against(file: Path, request: ModelRequest, tolerance: float | None) -> ParityReport:
    from fastcnn.export.against import verify_against
    from fastcnn.models.sources import Kind
    from fastcnn.weight_files import is_safetensors

    if request.read().kind is not Kind.onnx:
        return _against_module(file, request, tolerance)
    if request.weights is not None:
        raise RequestError(f"{request.model} holds its weights already: --weights is for the name of a model")
    if is_safetensors(file):
        raise RequestError(f"{file} is a module of fastcnn.save: hold it against the model that it was made from")
    return verify_against(file, Path(request.model), _example(request.input_shape), tolerance=tolerance)


def _against_module(file: Path, request: ModelRequest, tolerance: float | None) -> ParityReport:
    """At the size that the file says it takes, since a network of convolutions takes many."""
    from fastcnn.export.against import require_same_input, taken_sizes, verify_against
    from fastcnn.models.opening import input_size_of, open_model
    from fastcnn.models.sources import Kind
    from fastcnn.saving import load
    from fastcnn.weight_files import is_safetensors

    fast = load(file) if is_safetensors(file) else None
    sizes = taken_sizes(file) if fast is None else tuple(fast.source.graph.input_shape[1:])
    whole = tuple(size for size in sizes or () if size is not None)
    if whole and len(whole) == len(sizes or ()) and request.input_shape is None and request.read().kind in (Kind.code, Kind.program):
        request = dataclasses.replace(request, input_shape=whole)  # such a model need not say its own
    network = open_model(request)
    own = input_size_of(network, request)
    if sizes is not None and len(own) == len(sizes) == 3 and request.input_shape is None and sizes[0] == own[0]:
        own = tuple(size if want is None else want for size, want in zip(own, sizes, strict=True))
    if sizes is not None:
        require_same_input(file, sizes, request.model, own)
    example = _example(own)
    if fast is not None:
        from fastcnn import verify as hold

        return hold(fast, network, example, tolerance=tolerance)
    return verify_against(file, network, example, tolerance=tolerance)


def _example(sizes: tuple[int, ...] | None) -> Any:
    import torch

    return None if sizes is None else torch.rand((1, *sizes), generator=torch.Generator().manual_seed(0))
