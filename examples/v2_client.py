"""Asks a server of the v2 protocol for the golden answer of a repository of `fastcnn bundle`: python v2_client.py REPO [HOST:PORT]

Sends the golden pictures that the file in the repository holds, and compares what comes back with the reference's outputs in the file: exit code 0
where they agree, 1 where they do not. Triton, OpenVINO Model Server and KServe answer the same requests. Needs `pip install 'tritonclient[http]'`.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from tritonclient.http import InferenceServerClient, InferInput

from fastcnn.export import read_metadata
from fastcnn.export.golden import decode
from fastcnn.export.serving_request import inputs_of
from fastcnn.export.serving_targets import DTYPES


def worst_error(repository: Path, url: str) -> tuple[float, float]:
    """(largest relative error of an output, the bound that the file states)."""
    (file,) = (one for one in repository.glob("*/*/model.*") if one.suffix in (".onnx", ".pt"))
    name, about = file.relative_to(repository).parts[0], read_metadata(file)
    pair, script = decode(about["golden"]), about["format"] == "torchscript"
    client, worst = InferenceServerClient(url), 0.0
    for batch, expected in zip(pair.batches, pair.outputs, strict=True):
        asked = []
        for number, (entry, values) in enumerate(zip(inputs_of(about), (pair.pictures, *pair.others), strict=True)):
            sent = np.ascontiguousarray(values[list(batch)])
            asked.append(InferInput(f"INPUT__{number}" if script else entry["name"], list(sent.shape), DTYPES[entry["dtype"]]))
            asked[-1].set_data_from_numpy(sent)
        answer = client.infer(name, asked)
        for number, (entry, right) in enumerate(zip(about["outputs"], expected, strict=True)):
            got = answer.as_numpy(f"OUTPUT__{number}" if script else entry["name"])[: len(right)].astype(np.float64)
            worst = max(worst, float(np.linalg.norm(got - right) / np.linalg.norm(right)))
    client.close()
    return worst, pair.tolerance


if __name__ == "__main__":
    error, bound = worst_error(Path(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else "127.0.0.1:8000")
    print(f"relative error {error:.2g}, at most {bound:.2g} passes: {'the golden answer' if error <= bound else 'WRONG'}")
    sys.exit(error > bound)
