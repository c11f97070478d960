"""`verify_file` needs no reference, and notices any change."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import onnx
import onnx.numpy_helper
import pytest
from export_networks import flip_one_bit, rewrite_archive

from fastcnn.errors import FileFormatError
from fastcnn.export import read_metadata, verify_file
from fastcnn.export.container import read_container
from fastcnn.export.seal import seal


def test_a_sound_file_passes_wherever_it_lies_and_whatever_it_is_called(exported: tuple[str, Path], tmp_path: Path) -> None:
    format_, path = exported
    moved = tmp_path / f"renamed{path.suffix}"
    shutil.copy(path, moved)
    report = verify_file(moved)
    assert report.passed
    assert report.batch_sizes == (1, 2)
    assert "torch" in report.runtimes if format_ != "onnx" else "onnxruntime" in report.runtimes


def reseal(path: Path) -> None:
    container, metadata = read_container(path)
    container.write(path, seal({**metadata, "digests": container.digests()}))


def mutate_onnx(path: Path, target: Path, *, ulps: int) -> None:
    model = onnx.load(path)
    tensor = next(tensor for tensor in model.graph.initializer if len(tensor.dims) == 4)
    values = onnx.numpy_helper.to_array(tensor).copy()
    values.view(np.int32).flat[0] += ulps
    tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
    onnx.save(model, target)


@pytest.mark.parametrize("exported", ["onnx"], indirect=True)
def test_one_weight_off_by_one_ulp_fails_by_its_digest(exported: tuple[str, Path], tmp_path: Path) -> None:
    mutate_onnx(exported[1], tmp_path / "mutated.onnx", ulps=1)
    report = verify_file(tmp_path / "mutated.onnx")
    assert not report.passed
    assert report.failures == ("the weights changed since the export (SHA-256)",)
    assert "FAILED: the weights changed" in report.summary()


@pytest.mark.parametrize("exported", ["onnx"], indirect=True)
def test_one_weight_far_off_fails_by_the_golden_output(exported: tuple[str, Path], tmp_path: Path) -> None:
    """Its digests made right again: whoever changes a file can do that."""
    mutate_onnx(exported[1], tmp_path / "mutated.onnx", ulps=1 << 23)
    reseal(tmp_path / "mutated.onnx")
    report = verify_file(tmp_path / "mutated.onnx")
    assert any("onnxruntime at batch 1: relative error" in failure for failure in report.failures)
    assert not any("SHA-256" in failure for failure in report.failures)


@pytest.mark.parametrize("exported", ["onnx"], indirect=True)
def test_a_changed_attribute_fails_by_the_graph_digest(exported: tuple[str, Path], tmp_path: Path) -> None:
    model = onnx.load(exported[1])
    model.graph.node[0].name = "renamed"
    onnx.save(model, tmp_path / "mutated.onnx")
    assert verify_file(tmp_path / "mutated.onnx").failures == ("the graph changed since the export (SHA-256)",)


@pytest.mark.parametrize("exported", ["onnx"], indirect=True)
def test_saving_the_same_model_again_changes_nothing(exported: tuple[str, Path], tmp_path: Path) -> None:
    onnx.save(onnx.load(exported[1]), tmp_path / "again.onnx")
    assert verify_file(tmp_path / "again.onnx").passed


@pytest.mark.parametrize("exported", ["torchscript", "pt2"], indirect=True)
def test_one_bit_of_an_archives_weights_fails(exported: tuple[str, Path], tmp_path: Path) -> None:
    format_, path = exported
    folder = "constants/" if format_ == "torchscript" else "data/weights/weight_"
    with zipfile.ZipFile(path) as archive:
        record = max((info for info in archive.infolist() if folder in info.filename), key=lambda info: info.file_size)
    # With its checksum made right again, only the digest tells.
    mutated = tmp_path / f"mutated{path.suffix}"
    rewrite_archive(path, mutated, lambda name, data: bytes([data[0] ^ 1]) + data[1:] if name == record.filename else data)
    assert verify_file(mutated).failures == ("the weights changed since the export (SHA-256)",)
    # Without, the archive itself is damaged; that is a failed check as well.
    data = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        position = data.index(archive.read(record.filename))
    flip_one_bit(path, mutated, position)
    report = verify_file(mutated)
    assert not report.passed
    assert any("is damaged" in failure for failure in report.failures)


@pytest.mark.parametrize("exported", ["torchscript", "pt2"], indirect=True)
def test_changed_code_fails_by_the_graph_digest(exported: tuple[str, Path], tmp_path: Path) -> None:
    _, path = exported
    mutated = tmp_path / f"mutated{path.suffix}"
    swap = {".py": (b"max_pool2d", b"avg_pool2d"), ".json": (b"aten.relu", b"aten.silu")}

    def edit(name: str, data: bytes) -> bytes:
        return data.replace(*swap[Path(name).suffix]) if Path(name).suffix in swap and ("code/" in name or "models/" in name) else data

    rewrite_archive(path, mutated, edit)
    report = verify_file(mutated)
    assert report.failures == ("the graph changed since the export (SHA-256)",)
    assert "a file that changed is not run" in report.notes[0]
    reseal(mutated)
    assert not verify_file(mutated).passed


EDITS = {
    "labels": lambda metadata: metadata["labels"].reverse(),
    "input": lambda metadata: metadata["input"].update(preprocessing={"mean": [0.5]}),
    "digests": lambda metadata: metadata["digests"].update(note="mine"),
    "author": lambda metadata: metadata.update(author="me"),
    "precision": lambda metadata: metadata.pop("precision"),
}


@pytest.mark.parametrize("section", EDITS)
@pytest.mark.parametrize("exported", ["onnx"], indirect=True)
def test_an_edited_description_fails_and_is_named(exported: tuple[str, Path], section: str, tmp_path: Path) -> None:
    container, metadata = read_container(exported[1])
    EDITS[section](metadata)
    container.write(tmp_path / "edited.onnx", metadata)
    (failure,) = verify_file(tmp_path / "edited.onnx").failures
    assert failure == f"damaged: {section} in the description changed since the export (SHA-256)"


@pytest.mark.parametrize("exported", ["torchscript", "pt2"], indirect=True)
def test_an_edited_description_of_an_archive_fails(exported: tuple[str, Path], tmp_path: Path) -> None:
    container, metadata = read_container(exported[1])
    metadata["labels"][0] = "mine"
    edited = tmp_path / f"edited{exported[1].suffix}"
    container.write(edited, metadata)
    assert "damaged: labels in the description changed" in verify_file(edited).failures[0]


@pytest.mark.parametrize("exported", ["onnx"], indirect=True)
def test_a_description_without_a_digest_fails(exported: tuple[str, Path], tmp_path: Path) -> None:
    """Else whoever edits a description would only have to take its digest away."""
    container, metadata = read_container(exported[1])
    del metadata["digests"]["description"]
    container.write(tmp_path / "old.onnx", metadata)
    (failure,) = verify_file(tmp_path / "old.onnx").failures
    assert failure == "damaged: the description has no digest: nothing says whether it was edited; export the file again"
    assert verify_file(exported[1]).notes == ()


def test_missing_parts_of_the_metadata(exported: tuple[str, Path], tmp_path: Path) -> None:
    format_, path = exported
    damaged = tmp_path / f"damaged{path.suffix}"
    if format_ == "onnx":
        model = onnx.load(path)
        model.metadata_props[0].value = '{"format": "onnx"}'
        onnx.save(model, damaged)
    else:
        rewrite_archive(path, damaged, lambda name, data: b"{}" if name.endswith("extra/fastcnn") else data)
    with pytest.raises(FileFormatError, match="is damaged: format_version: it is missing"):
        verify_file(damaged)


@pytest.mark.parametrize("exported", ["torchscript", "pt2"], indirect=True)
def test_pytorch_itself_gives_the_metadata(exported: tuple[str, Path]) -> None:
    """Without fastcnn, as its documents say, and in a process of its own: torch.jit.load leaves traces in this one."""
    format_, path = exported
    code = (
        "import sys, json, torch, warnings\nwarnings.simplefilter('ignore')\nfiles = {'fastcnn': ''}\n"
        + ("torch.jit.load(sys.argv[1], _extra_files=files)\n" if format_ == "torchscript" else "torch.export.load(sys.argv[1], extra_files=files)\n")
        + "assert 'fastcnn' not in sys.modules\nprint(json.loads(files['fastcnn'])['model']['name'])"
    )
    process = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    assert process.stdout.strip() == read_metadata(path)["model"]["name"] == "small"


@pytest.mark.parametrize("exported", ["onnx"], indirect=True)
def test_reading_an_onnx_file_needs_no_torch(exported: tuple[str, Path]) -> None:
    code = (
        "import sys\nimport fastcnn.export\nassert 'onnx' not in sys.modules\nfrom fastcnn.export import verify_file\n"
        "assert verify_file(sys.argv[1]).passed\nassert 'torch' not in sys.modules"
    )
    process = subprocess.run([sys.executable, "-c", code, str(exported[1])], capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr
