"""A repository behind a server of the v2 protocol: a real client's request gets the golden answer, and a bad one a reason."""

from __future__ import annotations

import importlib.util
import json
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from export_networks import EXPORTERS, SUFFIX, example, small

from fastcnn.export import BundleRequest, bundle, read_metadata
from fastcnn.export.golden import decode

pytestmark = pytest.mark.slow  # an export and a server each

EXAMPLES = Path(__file__).parents[2] / "examples"


def imported(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module", params=["onnx", "torchscript"])
def served(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    """(repository, host and port of a server that has it)."""
    folder = tmp_path_factory.mktemp("served")
    file = folder / f"small{SUFFIX[request.param]}"
    EXPORTERS[request.param](small(), file, example())
    bundle(file, folder / "repo", BundleRequest(backend="onnxruntime" if request.param == "onnx" else "pytorch"))
    server = imported("v2_server").serve(folder / "repo", port=0)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield folder / "repo", f"127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_client_gets_the_golden_answer(served):
    pytest.importorskip("tritonclient.http", reason="tritonclient is not installed (pip install 'fastcnn[test]')")
    from tritonclient.http import InferenceServerClient

    repository, url = served
    worst, bound = imported("v2_client").worst_error(repository, url)
    assert 0 < worst <= bound
    client = InferenceServerClient(url)
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("small", "1")
    about = client.get_model_metadata("small")
    assert about["inputs"][0]["shape"] == [-1, 3, 12, 12]
    assert about["inputs"][0]["name"] == ("input" if (repository / "small" / "1" / "model.onnx").exists() else "INPUT__0")
    client.close()


def ask(url: str, path: str, body: Any = None) -> tuple[int, Any]:
    data = None if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
    try:
        with urllib.request.urlopen(urllib.request.Request(f"http://{url}/{path}", data)) as answer:
            return answer.status, json.loads(answer.read() or b"null")
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


def test_plain_json_gets_the_same_answer(served):
    repository, url = served
    (file,) = repository.glob("small/1/model.*")
    pair = decode(read_metadata(file)["golden"])
    name = "input" if file.suffix == ".onnx" else "INPUT__0"
    picture = pair.pictures[:1]
    request = {"id": "7", "inputs": [{"name": name, "shape": list(picture.shape), "datatype": "FP32", "data": picture.tolist()}]}
    for address in ("v2/models/small/infer", "v2/models/small/versions/1/infer"):
        status, answer = ask(url, address, request)
        assert (status, answer["id"], answer["model_name"]) == (200, "7", "small")
        got = np.array(answer["outputs"][0]["data"]).reshape(answer["outputs"][0]["shape"])
        np.testing.assert_allclose(got, pair.outputs[0][0], rtol=1e-4, atol=1e-5)  # float32 against the reference in float64


@pytest.mark.parametrize(
    ("path", "body", "status", "said"),
    [
        ("v2/models/large/infer", {"inputs": []}, 404, "no such model: there are small"),
        ("v2/models/small/versions/2/infer", {"inputs": []}, 404, "no such model"),
        ("v2/models/small/infer", {"inputs": []}, 400, "small takes "),
        ("v2/models/small/infer", b"{", 400, "not a request of the v2 protocol"),
        ("v2/models/small/infer", [], 400, "not a request of the v2 protocol"),
        ("v2/models/small/infer", {"inputs": [{"name": "input", "shape": [3], "datatype": "FP32", "data": [1]}]}, 400, "not a request"),
        (
            "v2/models/small/infer",
            {"inputs": [{"name": "{}", "shape": [1, 3], "datatype": "FP32", "data": [1, 2, 3]}]},
            400,
            "float32 [1, 3] was given",
        ),
        ("v2/models/small/infer", {"inputs": [{"name": "{}", "shape": [1], "datatype": "BYTES", "data": ["x"]}]}, 400, "not a request"),
    ],
)
def test_a_bad_request_gets_a_reason(served, path, body, status, said):
    repository, url = served
    name = "input" if (repository / "small" / "1" / "model.onnx").exists() else "INPUT__0"
    found, answer = ask(url, path, body if isinstance(body, bytes) else json.loads(json.dumps(body).replace("{}", name)))
    assert (found, said in answer["error"]) == (status, True), answer
    assert ask(url, "v2/health/ready") == (200, None), "and the server goes on"
