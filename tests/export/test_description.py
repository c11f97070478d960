"""Reading what a file says of itself without its network: the same answer as the reader of whole files, and the same refusals."""

from __future__ import annotations

import subprocess
import sys

import onnx
import pytest
import torch
from export_networks import EXPORTERS, SUFFIX
from safetensors.torch import save_file

import fastcnn
from fastcnn.errors import FileFormatError, RequestError
from fastcnn.export import read_metadata
from fastcnn.export.container import read_container
from fastcnn.models import create_model
from fastcnn.weight_files import is_safetensors


@pytest.fixture(scope="module", params=EXPORTERS)
def exported(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("files") / f"simple{SUFFIX[request.param]}"
    EXPORTERS[request.param](create_model("simple_cnn"), path, torch.rand(1, 1, 28, 28))
    return path


def test_both_readers_agree(exported):
    assert read_metadata(exported) == read_container(exported)[1]


def test_both_readers_refuse_what_is_cut_off(exported, tmp_path):
    data = exported.read_bytes()
    for length in [*range(64), *range(64, len(data), len(data) // 40), len(data) - 1]:
        cut = tmp_path / f"cut{exported.suffix}"
        cut.write_bytes(data[:length])
        refusals = []
        for read in (read_metadata, read_container):
            with pytest.raises(FileFormatError) as raised:
                read(cut)
            refusals.append(str(raised.value))
        assert all(str(cut) in text for text in refusals)


def test_any_order_and_any_neighbours_of_the_entry(tmp_path):
    """Other writers put the metadata elsewhere, and more of it."""
    path = tmp_path / "m.onnx"
    EXPORTERS["onnx"](create_model("simple_cnn"), path, torch.rand(1, 1, 28, 28))
    expected = read_metadata(path)
    model = onnx.load(path)
    for key in ("author", "ä"):
        model.metadata_props.insert(0, onnx.StringStringEntryProto(key=key, value="x" * 300))
    model.doc_string, model.model_version = "a note", 2**40
    onnx.save(model, path)
    assert read_metadata(path) == expected
    del model.metadata_props[:]
    onnx.save(model, path)
    with pytest.raises(FileFormatError, match="was not exported by fastcnn: it is ONNX, but lacks the metadata entry 'fastcnn'"):
        read_metadata(path)


@pytest.mark.parametrize("read", [read_metadata, read_container], ids=["description", "container"])
def test_what_is_no_such_file(tmp_path, read):
    torch.save({"x": torch.zeros(3)}, tmp_path / "new.pth")
    torch.save({"x": torch.zeros(3)}, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    for name in ("new.pth", "old.pth"):
        with pytest.raises(FileFormatError, match=f"holds weights without a network .*`fastcnn predict MODEL --weights .*{name}`"):
            read(tmp_path / name)
    with pytest.raises(RequestError, match="does not exist"):
        read(tmp_path / "gone.onnx")
    with pytest.raises(RequestError, match="is a folder"):
        read(tmp_path)


def test_formats_of_safetensors_are_told_by_their_content(exported, tmp_path):
    save_file({"x": torch.zeros(3)}, tmp_path / "weights")
    fast = fastcnn.save(fastcnn.optimize(create_model("simple_cnn"), torch.rand(1, 1, 28, 28), backend="torch"), tmp_path / "x.fast")
    (tmp_path / "empty").touch()
    assert [is_safetensors(path) for path in (tmp_path / "weights", fast, exported, tmp_path / "empty")] == [True, True, False, False]


def test_reading_imports_neither_torch_nor_onnx(exported):
    code = "import sys; from fastcnn.export import read_metadata; read_metadata(sys.argv[1]); print({'torch', 'onnx', 'numpy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code, str(exported)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
