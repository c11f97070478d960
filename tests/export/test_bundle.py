"""Model repositories: what stands in them, read back by the official schema, and what is refused before anything is written."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from export_networks import Several, example, small
from torch import nn

from fastcnn.errors import FileFormatError, ParityError, RequestError
from fastcnn.export import BundleRequest, bundle, export_onnx, export_torchscript, read_metadata
from fastcnn.export.attestation import check_attestation
from fastcnn.export.golden import decode
from fastcnn.export.serving_config import Symbol, text_format
from fastcnn.export.serving_targets import BACKENDS, SERVERS, BackendName, ServerName
from fastcnn.files import sha256_of_file

pytestmark = pytest.mark.slow  # exports in three formats


@pytest.fixture(scope="module")
def onnx_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Not to be changed."""
    path = tmp_path_factory.mktemp("bundled") / "small.onnx"
    export_onnx(small(), path, example(), labels=["a", 'b "é"', "c", "d"])
    return path


@pytest.fixture(scope="module")
def script_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Not to be changed."""
    path = tmp_path_factory.mktemp("bundled") / "small.pt"
    export_torchscript(small(), path, example())
    return path


@pytest.fixture(scope="module")
def schema() -> Any:
    """Triton's own schema, as the wheel of its client carries it; its package would import gRPC besides."""
    found = importlib.util.find_spec("tritonclient")
    if found is None or not found.submodule_search_locations:
        pytest.skip("tritonclient is not installed (pip install 'fastcnn[test]')")
    path = Path(found.submodule_search_locations[0], "grpc", "model_config_pb2.py")
    if "model_config_pb2" in sys.modules:
        return sys.modules["model_config_pb2"]
    spec = importlib.util.spec_from_file_location("model_config_pb2", path)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules["model_config_pb2"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def parsed(schema: Any, folder: Path) -> Any:
    from google.protobuf import text_format as protobuf

    (config,) = folder.glob("*/config.pbtxt")
    return protobuf.Parse(config.read_text(encoding="utf-8"), schema.ModelConfig())


def test_every_row_of_the_tables_stands_for_a_name():
    assert set(SERVERS) == set(ServerName)
    assert set(BACKENDS) == set(BackendName)
    assert {name for row in SERVERS.values() for name in row.backends} == set(BackendName)
    fields = set(BundleRequest.__dataclass_fields__)
    assert all(row.options <= fields for row in SERVERS.values())


@pytest.mark.parametrize("backend", [name for name in BackendName if name is not BackendName.pytorch])
def test_a_repository_for_triton(onnx_file, tmp_path, schema, backend):
    report = bundle(onnx_file, tmp_path / "repo", BundleRequest(backend=backend, max_batch_size=4, queue_delay=200, instances=2))
    config, about = parsed(schema, tmp_path / "repo"), read_metadata(onnx_file)
    built, model = BACKENDS[backend].is_built_there, tmp_path / "repo" / report.name
    assert (config.name, config.backend, config.max_batch_size) == ("small", backend, 4)
    assert [(one.name, one.data_type, list(one.dims)) for one in config.input] == [("input", schema.TYPE_FP32, [3, 12, 12])]
    assert [(one.name, one.data_type, list(one.dims)) for one in config.output] == [("logits", schema.TYPE_FP32, [4])]
    assert (model / config.output[0].label_filename).read_text(encoding="utf-8").splitlines() == ["a", 'b "é"', "c", "d"]
    kind = schema.ModelInstanceGroup.KIND_GPU if built else schema.ModelInstanceGroup.KIND_CPU
    assert [(one.count, one.kind) for one in config.instance_group] == [(2, kind)]
    assert config.HasField("dynamic_batching")
    assert config.dynamic_batching.max_queue_delay_microseconds == 200
    assert config.default_model_filename == ("model.plan" if built else "model.onnx")
    assert sha256_of_file(model / ("source" if built else "1") / "model.onnx") == sha256_of_file(onnx_file) == report.sha256
    assert [(one.batch_size, list(one.inputs)) for one in config.model_warmup] == [(1, ["input"]), (4, ["input"])]
    warmup = config.model_warmup[0].inputs["input"]
    values = np.fromfile(model / "warmup" / warmup.input_data_file, np.float32).reshape(tuple(warmup.dims))
    np.testing.assert_array_equal(values, decode(about["golden"]).pictures[0])
    assert bool(report.notes) == (backend != BackendName.onnxruntime)


def test_a_repository_of_torchscript_numbers_its_tensors(script_file, tmp_path, schema):
    bundle(script_file, tmp_path / "repo", BundleRequest(backend="pytorch", device="cuda", name="mine", version=3))
    config = parsed(schema, tmp_path / "repo")
    assert ([one.name for one in config.input], [one.name for one in config.output]) == (["INPUT__0"], ["OUTPUT__0"])
    assert (config.name, config.default_model_filename) == ("mine", "model.pt")
    assert config.instance_group[0].kind == schema.ModelInstanceGroup.KIND_GPU
    assert (tmp_path / "repo" / "mine" / "3" / "model.pt").is_file()
    assert list(config.model_warmup[0].inputs) == ["INPUT__0"]


def test_sums_and_the_attestation_are_of_the_files(onnx_file, tmp_path):
    report = bundle(onnx_file, tmp_path / "repo")
    lines = dict(reversed(line.split("  ", 1)) for line in (tmp_path / "repo" / "SHA256SUMS").read_text().splitlines())
    files = {one.relative_to(tmp_path / "repo").as_posix(): one for one in (tmp_path / "repo").rglob("*") if one.is_file()}
    assert lines == dict(report.files) == {name: hashlib.sha256(one.read_bytes()).hexdigest() for name, one in files.items() if name != "SHA256SUMS"}
    model = files["small/1/model.onnx"]
    assert check_attestation(model, files["model.onnx.intoto.json"], sha256_of_file(model)) == []
    again = bundle(onnx_file, tmp_path / "again")
    assert dict(again.files) == dict(report.files), "the same file gives the same bytes"


def test_a_repository_for_openvino_model_server(onnx_file, tmp_path):
    report = bundle(onnx_file, tmp_path / "repo", BundleRequest(server="ovms", instances=2))
    ((entry,),) = json.loads((tmp_path / "repo" / "config.json").read_text()).values()
    assert entry["config"]["name"] == report.name
    assert entry["config"]["plugin_config"] == {"INFERENCE_PRECISION_HINT": "f32", "NUM_STREAMS": "2"}
    assert (tmp_path / "repo" / entry["config"]["base_path"] / "1" / "model.onnx").is_file()
    assert not list((tmp_path / "repo").rglob("*.pbtxt"))


def test_a_manifest_for_kserve(onnx_file, tmp_path, schema):
    yaml = pytest.importorskip("yaml", reason="PyYAML is not installed")
    bundle(onnx_file, tmp_path / "repo", BundleRequest(server="kserve", name="Net_5.onnx", device="cuda", storage_uri='s3://b/"x"'))
    manifest = yaml.safe_load((tmp_path / "repo" / "inferenceservice.yaml").read_text())
    assert (manifest["apiVersion"], manifest["kind"]) == ("serving.kserve.io/v1beta1", "InferenceService")
    assert manifest["metadata"] == {"name": "net-5-onnx"}
    model = manifest["spec"]["predictor"]["model"]
    assert (model["storageUri"], model["protocolVersion"], model["modelFormat"]) == ('s3://b/"x"', "v2", {"name": "triton"})
    assert model["resources"]["limits"] == {"nvidia.com/gpu": "1"}
    assert parsed(schema, tmp_path / "repo").name == "Net_5.onnx"


def test_a_fixed_batch_stands_in_the_shapes(tmp_path, schema):
    export_onnx(small(), tmp_path / "three.onnx", example(), batch_size=3)
    report = bundle(tmp_path / "three.onnx", tmp_path / "repo")
    config = parsed(schema, tmp_path / "repo")
    assert (config.max_batch_size, config.HasField("dynamic_batching"), report.batched) == (0, False, False)
    assert (list(config.input[0].dims), list(config.output[0].dims)) == ([3, 3, 12, 12], [3, 4])
    (warmup,) = config.model_warmup
    assert (warmup.batch_size, list(warmup.inputs["input"].dims)) == (1, [3, 3, 12, 12])
    assert (tmp_path / "repo" / report.name / "warmup" / "input-0").stat().st_size == 4 * 3 * 3 * 12 * 12
    with pytest.raises(RequestError, match="cannot share a batch between requests, for it takes and gives batches of one size"):
        bundle(tmp_path / "three.onnx", tmp_path / "other", BundleRequest(max_batch_size=2))
    assert not (tmp_path / "other").exists()


def test_a_model_whose_answers_depend_on_their_batch_gets_no_batch_of_others(tmp_path, schema):
    torch.manual_seed(0)
    export_onnx(Several().eval(), tmp_path / "several.onnx", example())
    report = bundle(tmp_path / "several.onnx", tmp_path / "repo")
    config = parsed(schema, tmp_path / "repo")
    assert (config.max_batch_size, config.HasField("dynamic_batching")) == (0, False)
    assert list(config.input[0].dims) == [-1, 3, 12, 12]
    assert len(config.output) == 2
    assert "depends on the other pictures" in report.notes[0]


class Two(nn.Module):
    """[N, 3, 12, 12] float32 and [N, 3, 12, 12] uint8 → [N, 3]."""

    def forward(self, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        return left.mean((2, 3)) - right.float().mean((2, 3)) / 255


def test_several_inputs_are_warmed_up_by_theirs(tmp_path, schema):
    pixels = torch.randint(0, 256, (2, 3, 12, 12), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    export_onnx(Two().eval(), tmp_path / "two.onnx", (example(), pixels))
    report = bundle(tmp_path / "two.onnx", tmp_path / "repo")
    config, pair = parsed(schema, tmp_path / "repo"), decode(read_metadata(tmp_path / "two.onnx")["golden"])
    assert [(one.name, one.data_type) for one in config.input] == [("left", schema.TYPE_FP32), ("right", schema.TYPE_UINT8)]
    entry = config.model_warmup[0].inputs["right"]
    stored = (tmp_path / "repo" / report.name / "warmup" / entry.input_data_file).read_bytes()
    assert stored == pair.others[0][0].tobytes()


def test_the_script_of_a_plan_builds_it_for_every_batch(onnx_file, tmp_path):
    """trtexec needs a GPU; here a stand-in writes down what it was asked for."""
    bundle(onnx_file, tmp_path / "repo", BundleRequest(backend="tensorrt", max_batch_size=16, version=2))
    stand_in = tmp_path / "trtexec"
    stand_in.write_text('#!/bin/sh\nfor word; do case $word in --saveEngine=*) echo "$@" > "${word#*=}";; esac; done\n')
    stand_in.chmod(0o755)
    done = subprocess.run([tmp_path / "repo" / "small" / "build_plan.sh"], env={"TRTEXEC": str(stand_in), "PATH": "/usr/bin:/bin"}, check=False)
    assert done.returncode == 0
    asked = (tmp_path / "repo" / "small" / "2" / "model.plan").read_text().split()
    assert "--onnx=source/model.onnx" in asked
    assert {"--minShapes=input:1x3x12x12", "--maxShapes=input:16x3x12x12", "--stronglyTyped", "--noTF32"} <= set(asked)
    stand_in.write_text("#!/bin/sh\nexit 1\n")
    (tmp_path / "repo" / "small" / "2" / "model.plan").unlink()
    failed = subprocess.run([tmp_path / "repo" / "small" / "build_plan.sh"], env={"TRTEXEC": str(stand_in), "PATH": "/usr/bin:/bin"}, check=False)
    assert failed.returncode != 0
    assert not (tmp_path / "repo" / "small" / "2" / "model.plan").exists()


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"server": "tritn"}, "unknown server 'tritn': did you mean triton"),
        ({"backend": "openvin"}, "unknown backend 'openvin': did you mean openvino"),
        ({"device": "tpu"}, "unknown device 'tpu'"),
        ({"server": "ovms", "backend": "onnxruntime"}, "has no backend onnxruntime: give openvino"),
        ({"server": "ovms", "max_batch_size": 4}, "has no use for --max-batch-size"),
        ({"storage_uri": "s3://b"}, "has no use for --storage-uri"),
        ({"server": "kserve"}, "needs --storage-uri"),
        ({"backend": "openvino", "device": "cuda"}, "runs on cpu, not on cuda"),
        ({"max_batch_size": 0}, "--max-batch-size .* is a whole number from 1"),
        ({"version": 0}, "--model-version .* is a whole number from 1"),
        ({"instances": True}, "--instances .* is a whole number"),
        ({"name": "../up"}, "the name of a served model"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, dict) else "",
)
def test_a_request_that_cannot_be_met(asked, said):
    with pytest.raises(RequestError, match=said) as problem:
        BundleRequest(**asked)
    assert "\n" not in str(problem.value)


def test_a_file_that_the_backend_cannot_take(onnx_file, script_file, tmp_path):
    for path, asked, said in (
        (onnx_file, {"backend": "pytorch"}, "is ONNX and PyTorch loads TorchScript: give such a file, or another backend: onnxruntime"),
        (script_file, {}, "is TorchScript and ONNX Runtime loads ONNX: give such a file, or another backend: pytorch"),
        (script_file, {"server": "ovms"}, "is TorchScript and OpenVINO loads ONNX: give such a file$"),
    ):
        with pytest.raises(RequestError, match=said):
            bundle(path, tmp_path / "repo", BundleRequest(**asked))
    metadata = read_metadata(onnx_file)
    asked = BundleRequest(backend="openvino")
    with pytest.raises(RequestError, match="is not for OpenVINO: operation X is not supported"):
        asked.check_file("it", metadata | {"runtimes": ["onnxruntime"], "left_out": {"openvino": "operation X is not supported"}})
    plan = BundleRequest(backend="tensorrt")
    for changed, said in (
        ({"input": metadata["input"] | {"dtype": "int16"}}, "takes int16 as input, which TensorRT does not"),
        ({"input": metadata["input"] | {"shape": ["batch", "height", "width", 3]}}, "takes pictures of any size"),
        ({"precision": "int8", "quantization": {"for": "cpu"}}, "is quantized for cpu: export it with --quantize-for tensorrt"),
    ):
        with pytest.raises(RequestError, match=said):
            plan.check_file("it", metadata | changed)
    assert not list(tmp_path.iterdir())


def test_a_damaged_file_and_a_folder_that_is_taken(onnx_file, tmp_path):
    damaged = bytearray(onnx_file.read_bytes())
    damaged[len(damaged) // 40] ^= 1
    (tmp_path / "damaged.onnx").write_bytes(damaged)
    with pytest.raises((ParityError, FileFormatError)):
        bundle(tmp_path / "damaged.onnx", tmp_path / "repo")
    assert [one.name for one in tmp_path.iterdir()] == ["damaged.onnx"]
    (tmp_path / "repo").mkdir()
    (tmp_path / "repo" / "mine").touch()
    for out, said in (("repo", "exists and is not empty"), ("damaged.onnx", "is no folder"), ("gone/repo", "there is no folder")):
        with pytest.raises(RequestError, match=said):
            bundle(onnx_file, tmp_path / out)
    (tmp_path / "repo" / "mine").unlink()
    bundle(onnx_file, tmp_path / "repo")
    assert (tmp_path / "repo" / "SHA256SUMS").is_file(), "an empty folder is taken"


def test_a_disk_that_is_full_leaves_nothing(onnx_file, tmp_path, monkeypatch):
    def fail(source: Path, target: Path) -> None:
        raise OSError(28, "No space left on device", str(target))

    monkeypatch.setattr(shutil, "copyfile", fail)
    with pytest.raises(RequestError, match="cannot be written: No space left on device"):
        bundle(onnx_file, tmp_path / "repo")
    assert not list(tmp_path.iterdir())


def test_text_format_quotes_what_protobuf_would_read_otherwise(schema):
    from google.protobuf import text_format as protobuf

    name = 'a "b" \\ \n é {}'
    text = text_format({"name": name, "input": [{"name": "x", "data_type": Symbol("TYPE_FP32"), "dims": [-1, 3]}], "dynamic_batching": {}})
    config = protobuf.Parse(text, schema.ModelConfig())
    assert (config.name, list(config.input[0].dims), config.HasField("dynamic_batching")) == (name, [-1, 3], True)
