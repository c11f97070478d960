"""Weights, checkpoints, `.fast` files and pictures that are not what was written, or ask for more than they hold."""

from __future__ import annotations

import hashlib
import io
import json
import struct
import zipfile
import zlib

import pytest
import torch
from export_networks import example, small
from safetensors.torch import load_file, save_file

import fastcnn
from fastcnn.errors import FileFormatError, WeightsError
from fastcnn.limits import MAX_PIXELS, MAX_RECORDS
from fastcnn.models.checkpoints import read_checkpoint
from fastcnn.models.weights import DESCRIPTION_KEY, describe_weights, open_weights
from fastcnn.pictures import PictureError, open_picture
from fastcnn.training.checkpoint import load_checkpoint, save_checkpoint, save_weights

STATE = {"epoch": 3, "model": {"w": torch.arange(600.0)}, "history": [{"loss": 0.5}], "random": None}


def with_record(path, name, edit):
    """The archive with another record, all checksums right."""
    with zipfile.ZipFile(path) as archive:
        records = [(info.filename, archive.read(info)) for info in archive.infolist()]
    with zipfile.ZipFile(path, "w") as archive:
        for full, data in records:
            archive.writestr(full, edit(data) if full.endswith(name) else data)


def flipped(data):
    return bytes([*data[:400], data[400] ^ 1, *data[401:]])


def test_a_training_checkpoint_is_what_was_written(tmp_path):
    path = tmp_path / "checkpoint.pt"
    save_checkpoint(STATE, path)
    first = path.read_bytes()
    save_checkpoint(STATE, path)
    assert path.read_bytes() == first
    assert torch.equal(load_checkpoint(path)["model"]["w"], STATE["model"]["w"])
    with_record(path, "data/0", flipped)
    with pytest.raises(FileFormatError, match=r"checkpoint\.pt is damaged: it is not what `fastcnn train` wrote"):
        load_checkpoint(path)


def test_checksums_of_foreign_weights(tmp_path):
    torch.save({"w": torch.arange(600.0)}, tmp_path / "w.pth")
    data = (tmp_path / "w.pth").read_bytes()
    at = data.index(struct.pack("<f", 300.0))
    (tmp_path / "w.pth").write_bytes(data[:at] + b"\x01" + data[at + 1 :])
    with pytest.raises(WeightsError, match="record data/0 does not have its checksum"):
        read_checkpoint(tmp_path / "w.pth")
    computed = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        torch.save({"w": torch.arange(600.0)}, tmp_path / "none.pth")
    finally:
        torch.serialization.set_crc32_options(computed)
    assert read_checkpoint(tmp_path / "none.pth")["w"][300] == 300


def test_tensors_larger_than_their_file(tmp_path):
    for name, tensor, said in (
        ("expanded", torch.zeros(1).expand(10**6, 10**6), "w has bytes beyond those of the file: 3,9"),
        ("meta", torch.zeros(10**9, device="meta"), "w is no plain tensor"),
    ):
        torch.save({"w": tensor}, tmp_path / name)
        with pytest.raises(WeightsError, match=said):
            read_checkpoint(tmp_path / name)


def test_weights_that_we_wrote_are_what_was_written(tmp_path):
    path = tmp_path / "w.safetensors"
    save_weights(small(), {"model": "small", "classes": ["a", "b"]}, path)
    assert open_weights(None, path).categories == ("a", "b")
    # Copies: some releases of safetensors map the file, which is written over below.
    tensors, described = {name: tensor.clone() for name, tensor in load_file(path).items()}, describe_weights(path)
    changed = {**tensors, "head.bias": tensors["head.bias"] + 1}
    for edited, text, part in ((changed, described, "weights"), (tensors, {**described, "classes": ["b", "a"]}, "description")):
        save_file(edited, path, {DESCRIPTION_KEY: json.dumps(text)})
        with pytest.raises(WeightsError, match=f"is damaged: its {part} changed since it was written"):
            open_weights(None, path)


def test_many_tensors(tmp_path, monkeypatch):
    save_file({str(number): torch.zeros(1) for number in range(200)}, tmp_path / "w.safetensors")
    monkeypatch.setenv(MAX_RECORDS, "100")
    with pytest.raises(WeightsError, match=f"its tensors are 200, more than 100 .{MAX_RECORDS} raises it"):
        read_checkpoint(tmp_path / "w.safetensors")


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fast")
    for seed in (0, 1):
        fastcnn.save(fastcnn.optimize(small(seed), example(), backend="onnxruntime"), folder / f"{seed}.fast")
    return folder


def header_of(path):
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    return json.loads(json.loads(data[8 : 8 + length])["__metadata__"]["fastcnn"].partition(" ")[2])


def forge(path, header, tensors):
    text = json.dumps(header, sort_keys=True)
    save_file(tensors, path, {"fastcnn": f"{hashlib.sha256(text.encode()).hexdigest()} {text}"})


def key_of(tensor):
    return hashlib.sha256(f"{tensor.dtype} {list(tensor.shape)}".encode() + tensor.numpy().tobytes()).hexdigest()


def test_an_artifact_of_other_weights_is_refused(saved, tmp_path):
    header, other = header_of(saved / "0.fast"), header_of(saved / "1.fast")
    forge(tmp_path / "mixed.fast", {**header, "artifact": other["artifact"]}, {**load_file(saved / "0.fast"), **load_file(saved / "1.fast")})
    with pytest.raises(FileFormatError, match=r"mixed\.fast is damaged: its artifact was made from another graph"):
        fastcnn.load(tmp_path / "mixed.fast")


def test_a_zeroed_artifact_is_damage(saved, tmp_path):
    header, tensors = header_of(saved / "0.fast"), load_file(saved / "0.fast")
    zeros = torch.zeros_like(tensors[header["artifact"]["model"]])
    header["artifact"]["model"] = key_of(zeros)
    forge(tmp_path / "zeroed.fast", header, {**tensors, key_of(zeros): zeros})
    with pytest.raises(FileFormatError, match=r"zeroed\.fast does not hold what fastcnn\.save writes"):
        fastcnn.load(tmp_path / "zeroed.fast")


@pytest.mark.parametrize("header", [[], {}, {"backend": 3}, {"backend": "onnxruntime", "format": 1}, {"backend": "onnxruntime", "format": [1]}])
def test_a_header_of_nothing(header, tmp_path):
    forge(tmp_path / "x.fast", header, {"a": torch.zeros(1)})
    with pytest.raises(FileFormatError, match=r"x\.fast"):
        fastcnn.load(tmp_path / "x.fast")


def test_a_picture_that_says_it_is_large(tmp_path, monkeypatch):
    from PIL import Image

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 11_000, 11_000, 8, 2, 0, 0, 0)
    (tmp_path / "large.png").write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b""))
    with pytest.raises(PictureError, match=f"11000×11000 are more than 100,000,000 pixels .{MAX_PIXELS} raises"):
        open_picture(str(tmp_path / "large.png"))
    buffer = io.BytesIO()
    Image.new("L", (30, 30)).save(buffer, "PNG")
    (tmp_path / "small.png").write_bytes(buffer.getvalue())
    monkeypatch.setenv(MAX_PIXELS, "899")
    with pytest.raises(PictureError, match="30×30 are more than 899 pixels"):
        open_picture(str(tmp_path / "small.png"))
    monkeypatch.setenv(MAX_PIXELS, "900")
    assert open_picture(str(tmp_path / "small.png")).size == (30, 30)
