"""The containers: PyTorch reads the archive, tensors are aligned, metadata stands after the checked bytes, digests cover every byte."""

from __future__ import annotations

import io
import json
import struct
import zipfile
from pathlib import Path

import onnx
import pytest
import torch
from export_networks import rewrite_archive
from onnx import TensorProto, helper

from fastcnn.errors import FileFormatError, RequestError
from fastcnn.export.container import Container, read_container, serialize


def tiny_onnx() -> onnx.ModelProto:
    value = helper.make_tensor("w", TensorProto.FLOAT, [2], [1.0, 2.0])
    graph = helper.make_graph(
        [helper.make_node("Add", ["input", "w"], ["logits"])],
        "g",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, [2])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [2])],
        [value],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)])


def test_onnx_metadata_is_appended_to_the_checked_bytes(tmp_path: Path) -> None:
    container = Container("onnx", serialize(tiny_onnx()))
    container.write(tmp_path / "plain.onnx")
    container.write(tmp_path / "described.onnx", {"model": "é"})
    assert (tmp_path / "described.onnx").read_bytes().startswith((tmp_path / "plain.onnx").read_bytes())
    (entry,) = onnx.load(tmp_path / "described.onnx").metadata_props
    assert (entry.key, json.loads(entry.value)) == ("fastcnn", {"model": "é"})


def test_onnx_digests_tell_weights_from_graph() -> None:
    def digests(edit: str = "") -> dict[str, str]:
        model = tiny_onnx()
        if edit == "weights":
            model.graph.initializer[0].float_data[1] = 2.0000002
        if edit == "graph":
            model.graph.node[0].op_type = "Sub"
        return Container("onnx", serialize(model)).digests()

    for part, other in (("weights", "graph"), ("graph", "weights")):
        assert digests(part)[part] != digests()[part]
        assert digests(part)[other] == digests()[other]


def test_an_archive_is_aligned_and_pytorch_reads_it(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    torch.save({"a": torch.arange(5.0), "b": torch.arange(7)}, buffer)
    with zipfile.ZipFile(buffer) as archive:
        records = {info.filename.partition("/")[2]: archive.read(info) for info in archive.infolist()}
    Container("torchscript", records).write(tmp_path / "again.pt")
    loaded = torch.load(tmp_path / "again.pt", weights_only=True, mmap=True)
    torch.testing.assert_close(loaded["a"], torch.arange(5.0))
    data = (tmp_path / "again.pt").read_bytes()
    with zipfile.ZipFile(tmp_path / "again.pt") as archive:
        for info in archive.infolist():
            name, extra = struct.unpack("<HH", data[info.header_offset + 26 : info.header_offset + 30])
            assert (info.header_offset + 30 + name + extra) % 64 == 0
            assert info.date_time == (1980, 1, 1, 0, 0, 0)


def test_foreign_files(tmp_path: Path) -> None:
    onnx.save(tiny_onnx(), tmp_path / "theirs.onnx")
    torch.save({"a": torch.ones(2)}, tmp_path / "state.pth")
    (tmp_path / "text.onnx").write_text("no model, but a letter\n" * 50)
    (tmp_path / "empty.onnx").touch()
    (tmp_path / "broken.pt").write_bytes(b"PK\x03\x04 and no more")
    for name, message in [
        ("theirs.onnx", "was not exported by fastcnn: it is ONNX, but lacks"),
        ("state.pth", "holds weights without a network"),
        ("text.onnx", "neither ONNX, TorchScript nor .pt2"),
        ("empty.onnx", "neither ONNX, TorchScript nor .pt2"),
        ("broken.pt", "truncated or damaged"),
    ]:
        with pytest.raises(FileFormatError, match=message) as caught:
            read_container(tmp_path / name)
        assert "\n" not in str(caught.value)
    with pytest.raises(RequestError, match="does not exist"):
        read_container(tmp_path / "missing.onnx")
    with pytest.raises(RequestError, match="is a folder"):
        read_container(tmp_path)


def test_a_file_cut_anywhere_is_refused(exported: tuple[str, Path], tmp_path: Path) -> None:
    _, path = exported
    data, cut = path.read_bytes(), tmp_path / path.name
    for length in (len(data) - 1, len(data) * 3 // 4, len(data) // 2, 100, 4, 0):
        cut.write_bytes(data[:length])
        with pytest.raises(FileFormatError):
            read_container(cut)


def test_damaged_metadata(exported: tuple[str, Path], tmp_path: Path) -> None:
    format_, path = exported
    for text in ("{", "[1]", "[" * 100_000):
        damaged = tmp_path / f"damaged{path.suffix}"
        if format_ == "onnx":
            model = onnx.load(path)
            model.metadata_props[0].value = text
            onnx.save(model, damaged)
        else:
            rewrite_archive(path, damaged, lambda name, data, text=text: text.encode() if name.endswith("extra/fastcnn") else data)
        with pytest.raises(FileFormatError, match=r"has damaged metadata: |is damaged: description: an object was expected, not "):
            read_container(damaged)
