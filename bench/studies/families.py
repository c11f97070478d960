"""Whether models that are none of ours take the road: one classifier of each family of torchvision and timm, on three engines and as an ONNX file.

    python -m fastcnn.bench.studies.families [MODEL ...] [--json FILE] [--markdown FILE]

Weights are random, scaled so that no layer inflates its signal; pictures have the size that each library declares. A model runs in a process of its
own. The JSON is written after each one, and a second run with the same file goes on where the first one ended.
"""

from __future__ import annotations

import argparse
import copy
import json
import multiprocessing
import tempfile
import time
from collections.abc import Mapping, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fastcnn.bench.records.environment import environment
from fastcnn.engines import get_engine
from fastcnn.errors import FastcnnError
from fastcnn.export import export_onnx
from fastcnn.files import write_text
from fastcnn.models.opening import example_input, open_model
from fastcnn.models.request import ModelRequest
from fastcnn.optimization import Builder
from fastcnn.text import first_line

ENGINES = ("torch", "onnxruntime", "openvino")
_TORCHVISION = (
    *("alexnet", "vgg16", "vgg11_bn", "googlenet", "inception_v3", "resnet50", "resnext50_32x4d", "wide_resnet50_2", "densenet121"),
    *("squeezenet1_1", "mobilenet_v2", "mobilenet_v3_large", "mnasnet1_0", "shufflenet_v2_x1_0", "efficientnet_b0", "efficientnet_v2_s"),
    *("regnet_y_400mf", "convnext_tiny"),
)
_TIMM = (
    *("inception_v4", "inception_resnet_v2", "legacy_xception", "seresnet18", "skresnet18", "ecaresnet26t", "gcresnet33ts", "resnest14d"),
    *("res2net50_26w_4s", "resnetv2_50", "resnetrs50", "resnetblur50", "nf_resnet26", "eca_nfnet_l0", "dpn68", "dla34", "hrnet_w18_small"),
    *("cspresnet50", "darknet53", "ese_vovnet19b_dw", "gernet_s", "repvgg_a0", "rexnet_100", "selecsls42b", "tresnet_m", "regnetz_b16"),
    *("mobilenetv3_small_100", "mobilenetv4_conv_small", "mobileone_s0", "ghostnet_100", "lcnet_050", "tinynet_e", "mixnet_s", "fbnetc_100"),
    *("efficientnet_lite0", "convnextv2_atto", "convmixer_768_32", "hgnetv2_b0", "starnet_s1", "inception_next_atto", "poolformer_s12"),
    *("rdnet_tiny", "edgenext_xx_small", "repvit_m0_9"),
)
FAMILIES = tuple([f"torchvision:{name}" for name in _TORCHVISION] + [f"timm:{name}" for name in _TIMM])

_PICTURES, _PATIENCE = 3, 900.0


def examine(text: str) -> dict[str, Any]:
    """The verdict of each engine and of the file on one MODEL.

    Returns, as plain data: parameters; input, without the batch; eager_error, PyTorch's own in float32 against float64; for each engine its relative
    error on pictures that its check did not see, or why it refuses; for "onnx" that of the file in all its runtimes, and those left out.
    """
    start, request = time.perf_counter(), ModelRequest(text)
    model = open_model(request)
    x = example_input(model, request, _PICTURES)
    others = torch.rand(x.shape, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        truth = copy.deepcopy(model).double()(others.double())
        eager = _relative_error(model(others), truth)
    row: dict[str, Any] = {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "input": list(x.shape[1:]),
        "eager_error": eager,
    }
    builder: Builder | None = None
    for engine in ENGINES:
        try:
            builder = builder or Builder(model, x)
            row[engine] = {"error": _relative_error(builder.build(get_engine(engine))(others), truth)}
        except Exception as error:  # a traceback is a verdict too
            row[engine] = _refusal(error)
    try:
        row["onnx"] = _file(model, x)
    except Exception as error:
        row["onnx"] = _refusal(error)
    return row | {"seconds": round(time.perf_counter() - start, 1)}


def _file(model: nn.Module, x: Tensor) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="fastcnn-") as folder:
        report = export_onnx(model, Path(folder, "model.onnx"), x)
    return {
        "error": report.parity.relative_error,
        "runtimes": list(report.runtimes),
        "left_out": report.left_out,
        "opset": report.metadata["opset"],
        "bytes": report.bytes,
    }


def _relative_error(output: Tensor, truth: Tensor) -> float:
    return float((output.double() - truth).norm() / truth.norm())


def _refusal(error: Exception) -> dict[str, Any]:
    return {"refused" if isinstance(error, FastcnnError) else "traceback": f"{type(error).__name__}: {first_line(error)}"}


def _in_a_process(text: str) -> dict[str, Any]:
    """As `examine`; what ends the process, or hangs, is the verdict."""
    context = multiprocessing.get_context("spawn")
    incoming, outgoing = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(outgoing, text, torch.get_num_threads()), daemon=True)
    process.start()
    outgoing.close()
    try:
        return incoming.recv() if incoming.poll(_PATIENCE) else {"crash": f"no answer within {_PATIENCE:.0f} s"}
    except EOFError:
        process.join()
        return {"crash": f"exit code {process.exitcode}"}
    finally:
        process.kill()
        process.join()


def _work(outgoing: Connection, text: str, threads: int) -> None:
    torch.set_num_threads(threads)
    try:
        row = examine(text)
    except Exception as error:
        row = _refusal(error)
    outgoing.send(row)


def markdown(models: Mapping[str, Mapping[str, Any]]) -> str:
    """The table of the rows, and below it each refusal in full."""
    lines = ["| model | parameters | input | eager PyTorch | torch | onnxruntime | openvino | ONNX file |", "|---|---:|---|---:|---:|---:|---:|---|"]
    said: list[str] = []
    for text, row in models.items():
        whole = _why_not(row)
        if whole is not None:
            lines.append(f"| `{text}` | | | | {whole[0]} | {whole[0]} | {whole[0]} | {whole[0]} |")
            said.append(f"- `{text}`: {whole[1]}")
            continue
        cells = [f"`{text}`", f"{row['parameters'] / 1e6:.1f} M", "×".join(map(str, row["input"])), f"{row['eager_error']:.1e}"]
        for column in (*ENGINES, "onnx"):
            refused = _why_not(row[column])
            cells.append(refused[0] if refused else f"{row[column]['error']:.1e}")
            if refused:
                said.append(f"- `{text}`, {column}: {refused[1]}")
            for runtime, reason in row[column].get("left_out", {}).items():
                cells[-1] += f", not for {runtime}"
                said.append(f"- `{text}`, the file is not for {runtime}: {reason}")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, *(["", *said] if said else [])]) + "\n"


def _why_not(row: Mapping[str, Any]) -> tuple[str, str] | None:
    return next(((kind, row[kind]) for kind in ("refused", "traceback", "crash") if kind in row), None)


def summary(models: Mapping[str, Mapping[str, Any]]) -> str:
    """How many are right on each engine and as a file, in one line."""
    right = {column: sum("error" in row.get(column, {}) for row in models.values()) for column in (*ENGINES, "onnx")}
    return f"{len(models)} models; right: " + ", ".join(f"{column} {count}" for column, count in right.items())


def page(models: Mapping[str, Mapping[str, Any]]) -> str:
    """The table with what a reader should know of it, as a page."""
    return f"{_PAGE}\n{summary(models)}.\n\n{markdown(models)}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Examines the models that the JSON file does not hold yet; see the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "models", nargs="*", default=FAMILIES, metavar="MODEL", help="as on the command line of fastcnn; by default one of each family"
    )
    parser.add_argument("--json", type=Path, help="kept after each model, and gone on with where it exists")
    parser.add_argument("--markdown", type=Path, help="the table as a page")
    given = parser.parse_args(arguments)
    kept = json.loads(given.json.read_text(encoding="utf-8")) if given.json and given.json.exists() else {}
    models: dict[str, Any] = kept.get("models", {})
    for text in given.models:
        if text in models:
            continue
        models[text] = _in_a_process(text)
        print(text, json.dumps(models[text]), flush=True)
        if given.json:
            write_text(given.json, json.dumps({"environment": kept.get("environment") or environment(), "models": models}, indent=1) + "\n")
    print(summary(models))
    if given.markdown:
        write_text(given.markdown, page(models))


_PAGE = """# Models of other libraries

One classifier of each family of torchvision and timm, with random weights. Relative L2 error against float64 on pictures that the check of
`fastcnn.optimize` did not see; PyTorch's own in float32 stands beside, and is the yardstick where a network amplifies rounding. The file's error is
the largest over its runtimes and batches. Made by `python -m fastcnn.bench.studies.families --json FILE --markdown FILE`; the figures are in
`bench/results/models/families.json`.
"""


if __name__ == "__main__":
    main()
