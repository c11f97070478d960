"""Which of torchvision's classifiers can be had in 8 bits, and how far their answers move in both runtimes.

    python -m fastcnn.bench.studies.int8_sweep --pictures DIR --json FILE

DIR holds some photographs. Crops of two thirds of them are observed, crops of the others judge each file, which takes any batch. Weights are random,
drawn as `fastcnn export` draws them where none are given: their classes lie nearer to each other than a trained network's do, so that the error of
the logits says more than the agreement. Nothing is timed.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fastcnn.errors import ParityError, RequestError
from fastcnn.export import export_onnx, verify_file
from fastcnn.files import write_text
from fastcnn.graph.capture import capture
from fastcnn.models.opening import open_model
from fastcnn.models.preprocessing_of import preprocessing_of
from fastcnn.models.request import ModelRequest
from fastcnn.pictures import find_pictures, open_picture
from fastcnn.preprocessing import Preprocessing
from fastcnn.quantization.scheme import instruction_set

MODELS = ("squeezenet1_1", "googlenet", "efficientnet_b0", "resnet50", "mobilenet_v2", "densenet121", "vgg16")
CROPS = 60
# A calibration keeps each fifth of its pictures apart: that is where the crops of the other photographs stand.
_EVERY = 5
_SIDE = 224


def crops(folder: Path, count: int, preprocessing: Preprocessing) -> Tensor:
    """[count, 3, 224, 224] float32, normalised: seeded crops, each fifth of one of every third photograph, the rest of the others.

    Raises RequestError for a folder of fewer than three pictures.
    """
    files = find_pictures([str(folder)])
    if len(files) < 3:
        raise RequestError(f"{folder} holds {len(files)} pictures: some to observe and others to judge by are needed, three at least")
    groups = [[file for place, file in enumerate(files) if (place % 3 == 2) == kept_apart] for kept_apart in (False, True)]
    whole = preprocessing.at_size(_SIDE * 2, _SIDE * 2)
    levels = {file: whole.pixels(open_picture(file)) for file in files}
    generator, taken = torch.Generator().manual_seed(0), []
    for number in range(count):
        group = groups[number % _EVERY == _EVERY - 1]
        side = int(torch.randint(_SIDE, 2 * _SIDE + 1, (1,), generator=generator))
        top, left = (int(torch.randint(0, 2 * _SIDE - side + 1, (1,), generator=generator)) for _ in range(2))
        part = levels[group[number // 2 % len(group)]][:, top : top + side, left : left + side].float()[None]
        taken.append(nn.functional.interpolate(part, size=_SIDE, mode="bilinear", antialias=True).round().clamp(0, 255).to(torch.uint8))
    return preprocessing.normalize(torch.cat(taken))


def attempt(name: str, folder: Path, count: int) -> dict[str, Any]:
    """What became of torchvision's model `name`: the figures of its file, or why there is none."""
    model = open_model(ModelRequest(f"torchvision:{name}"))
    known = preprocessing_of(model)
    assert known is not None
    pictures = crops(folder, count, known)
    # Of what the answer depends on: auxiliary heads are in no file.
    weights = capture(model, pictures[:2]).constants().values()
    about: dict[str, Any] = {"float32_bytes": sum(4 * tensor.numel() for tensor in weights if tensor.is_floating_point())}
    with tempfile.TemporaryDirectory(prefix="fastcnn-") as place:
        try:
            report = export_onnx(model, Path(place, f"{name}.onnx"), pictures[:2], precision="int8", calibration=pictures)
        except ParityError as error:
            return about | {"refused": str(error).replace(place, "DIR")}
        found = report.metadata["quantization"]
        return about | {
            "bytes": report.bytes,
            "batch": report.metadata["input"]["shape"][0],
            "layers": found["layers"],
            "float_layers": found["float_layers"],
            "weight_bits": found["weight_bits"],
            "observed": found["calibration"]["samples"],
            "judged": found["held_out"],
            "gate": found["gate"],
            "verified": verify_file(report.path).passed,
        }


def lines(models: Mapping[str, Mapping[str, Any]]) -> Sequence[str]:
    """The table, a line for each model."""
    shown = []
    for name, about in models.items():
        if "refused" in about:
            shown.append(f"{name}: refused: {about['refused']}")
            continue
        gate = ", ".join(f"{runtime} {one['relative_error']:.2%}, {one['top1_agreement']:.0%} agree" for runtime, one in about["gate"].items())
        left = f", {len(about['float_layers'])} of {about['layers']} layers in float" if about["float_layers"] else ""
        shown.append(f"{name}: {about['bytes'] / about['float32_bytes']:.3f}× the bytes{left}; {gate}")
    return shown


def _finished(path: Path | None, head: Mapping[str, Any]) -> dict[str, Any]:
    """The models that an earlier run with the same pictures on the same kind of machine left in the file."""
    if path is None or not path.exists():
        return {}
    before = json.loads(path.read_text())
    return before["models"] if all(before.get(key) == value for key, value in head.items()) else {}


def main() -> None:
    """Tries every model, prints a line for each as it is done, and keeps what is finished in the file, beside what is there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=Path, required=True)
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--crops", type=int, default=CROPS)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    head = {
        "command": f"python -m fastcnn.bench.studies.int8_sweep --pictures DIR --crops {given.crops} --json FILE",
        "instruction_set": instruction_set(),
        "pictures": sorted(Path(file).name for file in find_pictures([str(given.pictures)])),
        "says": "accuracy only: nothing was timed, and a CPU without VNNI gains no speed from 8 bits; weights are random",
    }
    models = _finished(given.json, head)
    for name in given.models.split(","):
        models[name] = attempt(name, given.pictures, given.crops)
        print(*lines({name: models[name]}), flush=True)
        if given.json is not None:
            write_text(given.json, json.dumps({**head, "models": models}, indent=1) + "\n")


if __name__ == "__main__":
    main()
