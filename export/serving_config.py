"""What servers read beside a file: Triton's config.pbtxt, OpenVINO Model Server's config.json, KServe's manifest, and the script that builds a plan.

The fields of config.pbtxt are those of `inference.ModelConfig` in model_config.proto of triton-inference-server/common.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fastcnn.export.serving_request import MAX_BATCH_SIZE, BundleRequest, inputs_of
from fastcnn.export.serving_targets import DTYPES, BackendName, DeviceName

LABELS, SOURCE, PLAN, BUILD = "labels.txt", "source", "model.plan", "build_plan.sh"
# Triton looks for warm-up data in a folder of this name.
WARMUP = "warmup"


class Symbol(str):
    """A name of an enum: protobuf's text format writes it without quotes."""

    __slots__ = ()


@dataclass(frozen=True)
class Served:
    """A file as a server shall serve it.

    Attributes:
        name: what clients call it.
        metadata: what it says of itself.
        file: its name in the version folder.
        batched: the server may put requests together.
        golden: sizes of the golden input, with the batch, one for each input; what warms it up.
    """

    name: str
    metadata: Mapping[str, Any]
    request: BundleRequest
    file: str
    batched: bool
    golden: Sequence[Sequence[int]]

    @property
    def max_batch_size(self) -> int:
        """Triton's: 0 where requests are not put together, and shapes stand with their batch."""
        return (self.request.max_batch_size or MAX_BATCH_SIZE) if self.batched else 0

    def names(self, outputs: bool = False) -> list[str]:
        """Of the inputs, or the outputs, as the backend calls them."""
        entries = self.metadata["outputs"] if outputs else inputs_of(self.metadata)
        pattern = self.request.runs_in.names
        return [entry["name"] if pattern is None else pattern[outputs].format(number) for number, entry in enumerate(entries)]

    def dims(self, shape: Sequence[int | str]) -> list[int]:
        """Without the batch where the server has it; −1 for a size that is free."""
        return [-1 if isinstance(size, str) else size for size in (shape[1:] if self.batched else shape)]


def model_config(served: Served) -> str:
    """The text of config.pbtxt."""
    request, metadata = served.request, served.metadata
    inputs = list(zip(served.names(), inputs_of(metadata), strict=True))
    outputs = list(zip(served.names(outputs=True), metadata["outputs"], strict=True))
    fields: dict[str, Any] = {
        "name": served.name,
        "backend": request.backend_name.value,
        "default_model_filename": served.file,
        "max_batch_size": served.max_batch_size,
        "input": [{"name": name, "data_type": _type(entry), "dims": served.dims(entry["shape"])} for name, entry in inputs],
        "output": [
            {"name": name, "data_type": _type(entry), "dims": served.dims(entry["shape"])} | ({"label_filename": LABELS} if has_labels else {})
            for (name, entry), has_labels in zip(outputs, [bool(metadata.get("labels"))] + [False] * len(outputs), strict=False)
        ],
        "instance_group": [{"count": request.instances or 1, "kind": Symbol("KIND_GPU" if request.device_name is DeviceName.cuda else "KIND_CPU")}],
    }
    if served.batched:
        fields["dynamic_batching"] = {"max_queue_delay_microseconds": request.queue_delay} if request.queue_delay else {}
    if request.backend_name is BackendName.openvino:
        fields["parameters"] = [{"key": "NUM_STREAMS", "value": {"string_value": str(request.instances or 1)}}]
    fields["model_warmup"] = [_warmup(served, size) for size in sorted({1, served.max_batch_size or 1})]
    return text_format(fields)


def _type(entry: Mapping[str, Any]) -> Symbol:
    return Symbol(f"TYPE_{DTYPES[entry['dtype']]}")


def _warmup(served: Served, batch_size: int) -> dict[str, Any]:
    """The golden picture, as often as the batch takes."""
    entries = []
    for number, (name, entry, sizes) in enumerate(zip(served.names(), inputs_of(served.metadata), served.golden, strict=True)):
        dims = list(sizes[1:] if served.batched else sizes)
        entries.append({"key": name, "value": {"data_type": _type(entry), "dims": dims, "input_data_file": f"input-{number}"}})
    return {"name": f"golden input, batch {batch_size}" if served.batched else "golden input", "batch_size": batch_size, "inputs": entries}


def text_format(fields: Mapping[str, Any], indent: str = "") -> str:
    """Protobuf's text format: a mapping is a message, a list of mappings a repeated field; https://protobuf.dev/reference/protobuf/textformat-spec/"""
    lines = []
    for name, value in fields.items():
        for one in value if isinstance(value, list) and value and isinstance(value[0], Mapping) else [value]:
            if isinstance(one, Mapping):
                lines.append(f"{indent}{name} {{\n{text_format(one, indent + '  ')}{indent}}}\n" if one else f"{indent}{name} {{}}\n")
            else:
                lines.append(f"{indent}{name}: {_scalar(one)}\n")
    return "".join(lines)


def _scalar(value: Any) -> str:
    if isinstance(value, list):
        return f"[{', '.join(map(_scalar, value))}]"
    if isinstance(value, Symbol):
        return value
    if isinstance(value, str):
        return '"' + "".join(chr(byte) if 32 <= byte < 127 and byte not in b'"\\' else f"\\{byte:03o}" for byte in value.encode()) + '"'
    return str(value)


def ovms_config(served: Served) -> str:
    """The text of config.json. OpenVINO would compute float32 models in bfloat16 on CPUs that have it, unless it is told not to."""
    plugin = {"INFERENCE_PRECISION_HINT": "f32", "NUM_STREAMS": str(served.request.instances or 1)}
    model = {"name": served.name, "base_path": served.name, "plugin_config": plugin}
    return json.dumps({"model_config_list": [{"config": model}]}, indent=2) + "\n"


def kserve_manifest(served: Served) -> str:
    """The text of inferenceservice.yaml, every string in quotes as JSON has them, which YAML reads too."""
    # A Kubernetes name (RFC 1123): lower case, digits and dashes.
    name = re.sub(r"[^a-z0-9]+", "-", served.name.lower()).strip("-")[:63].strip("-") or "model"
    lines = [
        "apiVersion: serving.kserve.io/v1beta1",
        "kind: InferenceService",
        "metadata:",
        f"  name: {json.dumps(name)}",
        "spec:",
        "  predictor:",
        "    model:",
        "      runtime: kserve-tritonserver",
        "      modelFormat:",
        "        name: triton",
        "      protocolVersion: v2",
        f"      storageUri: {json.dumps(served.request.storage_uri)}",
    ]
    if served.request.device_name is DeviceName.cuda:
        lines += ["      resources:", "        limits:", '          nvidia.com/gpu: "1"']
    return "\n".join(lines) + "\n"


def build_script(served: Served, version: int) -> str:
    """A shell script that builds the plan where it will run, in the types that the file says and without TF32."""
    words = [f"--onnx={SOURCE}/model.onnx", f"--saveEngine={version}/.{PLAN}.part", "--stronglyTyped", "--noTF32"]
    if inputs_of(served.metadata)[0]["shape"][0] == "batch":
        most = served.max_batch_size or MAX_BATCH_SIZE
        for option, size in (("--minShapes", 1), ("--optShapes", most), ("--maxShapes", most)):
            shapes = [f"{name}:{'x'.join(map(str, (size, *entry['shape'][1:])))}" for name, entry in _named_inputs(served)]
            words.append(f"{option}={','.join(shapes)}")
    return (
        "#!/bin/sh\n"
        "# Builds the TensorRT plan. Run it once on the machine that will serve it: a plan is for one kind of GPU and one version of TensorRT.\n"
        "# TRTEXEC names another trtexec than the one on the PATH.\n"
        'set -eu\ncd "$(dirname "$0")"\n'
        f"mkdir -p {version}\n"
        f'"${{TRTEXEC:-trtexec}}" {" ".join(map(shlex.quote, words))}\n'
        f"mv {version}/.{PLAN}.part {version}/{PLAN}\n"
    )


def _named_inputs(served: Served) -> list[tuple[str, Mapping[str, Any]]]:
    return list(zip(served.names(), inputs_of(served.metadata), strict=True))
