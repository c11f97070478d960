"""Serves what `fastcnn bundle` made, over HTTP by the v2 inference protocol, with fastcnn's own loading and nothing else: python v2_server.py REPO

One call at a time for each model, on the CPU. It is for trying a repository where no Triton is at hand; it puts no requests together.
The protocol: https://github.com/kserve/open-inference-protocol, with tensors behind the JSON as Triton's binary data extension has them.
"""

from __future__ import annotations

import json
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np

from fastcnn import __version__
from fastcnn.export import read_metadata
from fastcnn.export.runtimes import open_file
from fastcnn.export.serving_request import inputs_of
from fastcnn.export.serving_targets import DTYPES

NUMPY = {ending: name for name, ending in DTYPES.items()}
HEADER, EXTENSIONS, MOST_BYTES = "Inference-Header-Content-Length", ["binary_tensor_data"], 1 << 28
MALFORMED = (KeyError, TypeError, ValueError, AttributeError)


class RefusedError(Exception):
    """A request that cannot be answered: an HTTP status, and why."""


class Model:
    """One version of one model."""

    def __init__(self, file: Path) -> None:
        about = read_metadata(file)
        self.name, self.version, self.lock = file.parent.parent.name, file.parent.name, threading.Lock()
        self.inputs, self.outputs = ([dict(entry) for entry in entries] for entries in (inputs_of(about), about["outputs"]))
        if about["format"] == "torchscript":
            for pattern, entries in (("INPUT__{}", self.inputs), ("OUTPUT__{}", self.outputs)):
                for number, entry in enumerate(entries):
                    entry["name"] = pattern.format(number)
        self.opened = open_file(file, about["format"], runtime=about["runtimes"][0])

    def metadata(self) -> dict:
        def tensor(one: dict) -> dict:
            return {"name": one["name"], "datatype": DTYPES[one["dtype"]], "shape": [-1 if isinstance(size, str) else size for size in one["shape"]]}

        about = {"name": self.name, "versions": [self.version], "platform": f"fastcnn_{self.opened.runtime}"}
        return {**about, "inputs": list(map(tensor, self.inputs)), "outputs": list(map(tensor, self.outputs))}

    def infer(self, request: dict, binary: bytes) -> tuple[dict, bytes]:
        given, at = {}, 0
        for entry in request["inputs"]:
            dtype, size = np.dtype(NUMPY[entry["datatype"]]), entry.get("parameters", {}).get("binary_data_size")
            flat = np.asarray(entry["data"], dtype).reshape(-1) if size is None else np.frombuffer(binary[at : at + size], dtype)
            at += size or 0
            given[entry["name"]] = flat.reshape(entry["shape"]).copy()  # PyTorch wants one that can be written to
        if sorted(given) != sorted(entry["name"] for entry in self.inputs):
            raise RefusedError(400, f"{self.name} takes {', '.join(entry['name'] for entry in self.inputs)}")
        for entry in self.inputs:
            value, want = given[entry["name"]], entry["shape"]
            fits = value.ndim == len(want) and all(isinstance(n, str) or n == m for n, m in zip(want, value.shape, strict=True))
            if not fits or value.dtype != entry["dtype"]:
                raise RefusedError(400, f"{entry['name']} is {entry['dtype']} {want}, and {value.dtype} {list(value.shape)} was given")
        arrays = tuple(given[entry["name"]] for entry in self.inputs)
        with self.lock:
            results = self.opened.run(arrays if len(arrays) > 1 else arrays[0])
        found = {entry["name"]: np.ascontiguousarray(value) for entry, value in zip(self.outputs, results, strict=True)}
        as_binary, entries, tail = request.get("parameters", {}).get("binary_data_output", False), [], b""
        for one in request.get("outputs") or [{"name": name} for name in found]:
            if one["name"] not in found:
                raise RefusedError(400, f"{self.name} gives {', '.join(found)}, not {one['name']}")
            value = found[one["name"]]
            entry = {"name": one["name"], "datatype": DTYPES[value.dtype.name], "shape": list(value.shape)}
            if one.get("parameters", {}).get("binary_data", as_binary):
                entry["parameters"], tail = {"binary_data_size": value.nbytes}, tail + value.tobytes()
            else:
                entry["data"] = value.reshape(-1).tolist()
            entries.append(entry)
        return {"model_name": self.name, "model_version": self.version, "id": request.get("id", ""), "outputs": entries}, tail


def handler(models: dict[str, Model]) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self.answer(self.about)

        def do_POST(self) -> None:
            self.answer(self.infer)

        def answer(self, work) -> None:
            try:
                status, (about, tail) = 200, work(self.path.strip("/").split("/"))
            except Exception as problem:  # whatever it is, the client is told, and the server goes on
                self.close_connection, tail = True, b""
                status, why = problem.args if isinstance(problem, RefusedError) else (400 if isinstance(problem, MALFORMED) else 500, repr(problem))
                about = {"error": why if isinstance(problem, RefusedError) else f"not a request of the v2 protocol, or a defect: {why}"}
            text = b"" if about is None else json.dumps(about).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/octet-stream" if tail else "application/json")
            self.send_header("Content-Length", str(len(text) + len(tail)))
            if tail:
                self.send_header(HEADER, str(len(text)))
            self.end_headers()
            self.wfile.write(text + tail)

        def about(self, words: list[str]) -> tuple[dict | None, bytes]:
            known = {"v2/health/live": None, "v2/health/ready": None, "v2": {"name": "fastcnn", "version": __version__, "extensions": EXTENSIONS}}
            if "/".join(words) in known:
                return known["/".join(words)], b""
            model, last = self.model(words)
            return (None if last == "ready" else model.metadata()), b""

        def infer(self, words: list[str]) -> tuple[dict, bytes]:
            length = int(self.headers.get("Content-Length", 0))
            if not 0 < length <= MOST_BYTES:
                raise RefusedError(413, f"a request has from 1 to {MOST_BYTES} bytes")
            body = self.rfile.read(length)
            model, last = self.model(words)
            if last != "infer":
                raise RefusedError(404, f"no such address: {self.path}")
            split = int(self.headers.get(HEADER, length))
            return model.infer(json.loads(body[:split]), body[split:])

        def model(self, words: list[str]) -> tuple[Model, str]:
            model = models.get(words[2]) if words[:2] == ["v2", "models"] and len(words) > 2 else None
            rest = words[5:] if words[3:4] == ["versions"] else words[3:]
            if model is None or (rest != words[3:] and words[4:5] != [model.version]) or len(rest) > 1:
                raise RefusedError(404, f"no such model: there are {', '.join(models)}")
            return model, "".join(rest)

        def log_message(self, *args: object) -> None: ...

    return Handler


def serve(repository: Path, port: int = 8000) -> ThreadingHTTPServer:
    """A server that is bound, with every model loaded in its newest version; `serve_forever` begins to answer."""
    files = sorted(repository.glob("*/[0-9]*/model.*"), key=lambda file: int(file.parent.name))
    return ThreadingHTTPServer(("127.0.0.1", port), handler({file.parent.parent.name: Model(file) for file in files}))


if __name__ == "__main__":
    server = serve(Path(sys.argv[1]), *map(int, sys.argv[2:3]))
    print(f"serving {sys.argv[1]} at http://127.0.0.1:{server.server_address[1]}/v2", flush=True)
    server.serve_forever()
