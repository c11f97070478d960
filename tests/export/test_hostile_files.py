"""Files that were made to fill the memory, to take for ever, or to make a reader stumble: refused in one line, before anything is unpacked."""

from __future__ import annotations

import base64
import io
import json
import struct
import tracemalloc
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fastcnn.archives import ArchiveError, read_directory
from fastcnn.errors import FileFormatError
from fastcnn.export import read_metadata, verify_file
from fastcnn.export.container import read_container
from fastcnn.export.seal import seal
from fastcnn.limits import MAX_BYTES, MAX_RECORDS


def archive(records: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as file:
        for name, data in records.items():
            file.writestr(f"archive/{name}", data)
    return buffer.getvalue()


def patched(data: bytes, offset: int, value: bytes, mark: bytes = b"PK\x01\x02") -> bytes:
    """With other bytes in the first entry of the directory."""
    at = data.index(mark) + offset
    return data[:at] + value + data[at + len(value) :]


ZEROS = 8 << 20
PLAIN = archive({"a": b"1", "b": b"22"})
ARCHIVES: dict[str, tuple[Callable[[], bytes], str]] = {
    "a bomb": (lambda: archive({"a": bytes(ZEROS)}, zipfile.ZIP_DEFLATED), f"unpacked are .*more than 1,000,000 .{MAX_BYTES} raises it"),
    "a size that lies": (lambda: patched(PLAIN, 24, struct.pack("<L", 2**31)), "record archive/a has two sizes"),
    "many records": (lambda: archive({str(number): b"" for number in range(200)}), f"its records are 200, more than 100 .{MAX_RECORDS}"),
    "a count that lies": (lambda: patched(PLAIN, 8, struct.pack("<2H", 90, 90), b"PK\x05\x06"), "has no room for 90 records"),
    "encrypted": (lambda: patched(PLAIN, 8, b"\1"), "record archive/a is encrypted"),
    "another method": (lambda: archive({"a": bytes(99)}, zipfile.ZIP_LZMA), "compressed in a way that PyTorch does not read"),
    "another place": (lambda: patched(PLAIN, 42, struct.pack("<L", 1 << 20)), "record a does not end before the directory"),
    "another name": (lambda: PLAIN.replace(b"archive/a1", b"archive/c1"), "record a is not what the directory says"),
    "a name twice": (lambda: PLAIN.replace(b"archive/b", b"archive/a"), "record a stands there twice"),
    "two folders": (lambda: PLAIN.replace(b"archive/b", b"brchive/b"), "in the folders archive and brchive"),
    "a directory elsewhere": (lambda: patched(PLAIN, 16, struct.pack("<L", 3), b"PK\x05\x06"), "not where its end says"),
    "no directory": (lambda: PLAIN[:-30], "the directory of the archive, is missing"),
}


@pytest.mark.parametrize("case", ARCHIVES)
def test_archives(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    make, message = ARCHIVES[case]
    file = io.BytesIO(make())
    monkeypatch.setenv(MAX_BYTES, "1000000")
    monkeypatch.setenv(MAX_RECORDS, "100")
    with pytest.raises(ArchiveError, match=message):
        _read_all(file)


def _read_all(file: io.BytesIO) -> dict[str, bytes]:
    directory = read_directory(file)
    return {name: directory.read(file, name) for name in directory.records}


def test_a_packed_record_that_grows_beyond_its_size_is_not_unpacked() -> None:
    data = archive({"a": bytes(ZEROS)}, zipfile.ZIP_DEFLATED)
    file = io.BytesIO(patched(data, 24, struct.pack("<L", 100)))
    tracemalloc.start()
    with pytest.raises(ArchiveError, match="does not unpack to 100 bytes"):
        _read_all(file)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < ZEROS // 4


def test_archives_that_are_well_are_read_whoever_wrote_them() -> None:
    for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        assert _read_all(io.BytesIO(archive({"a": bytes(1000), "b/c": b"x"}, method))) == {"a": bytes(1000), "b/c": b"x"}


# -- the description -----------------------------------------------------------------------------------------------------


def bomb(metadata: dict[str, Any]) -> None:
    metadata["golden"]["input"]["data"] = base64.b64encode(zlib.compress(bytes(ZEROS), 9)).decode()


def at(*keys: Any) -> Callable[[Any], Callable[[dict[str, Any]], None]]:
    def with_value(value: Any) -> Callable[[dict[str, Any]], None]:
        def edit(metadata: Any) -> None:
            for key in keys[:-1]:
                metadata = metadata[key]
            metadata[keys[-1]] = value

        return edit

    return with_value


PICTURES = at("golden", "batches", 1, "pictures")
SHAPE = at("input", "shape")
FIELDS: dict[str, tuple[Callable[[dict[str, Any]], None], str]] = {
    "batch picture 99": (PICTURES([0, 99]), r"golden.batches\[1\].pictures: there is no picture 99, there are 2"),
    "batch picture inf": (PICTURES([0, float("inf")]), r"golden.batches\[1\].pictures\[1\]: .* not inf"),
    "batch picture 1e300": (PICTURES([1e300]), r"golden.batches\[1\].pictures\[0\]: "),
    "a batch of three": (PICTURES([0] * 3), r"golden.batches\[1\].pictures: 3 pictures are no batch of this file"),
    "a batch of many": (PICTURES([0] * 60_000), rf"golden.batches\[1\].pictures: its entries are 60,000, more than 50,000 .{MAX_RECORDS} raises"),
    "a file for three million": (SHAPE([3_000_000, 3, 12, 12]), r"golden.batches\[0\].pictures: 1 pictures are no batch"),
    "shape []": (SHAPE([]), "input.shape: a list of 1 entries or more was expected"),
    "shape with a name": (SHAPE(["batch", 3, "height", 12]), "input.shape: .* has a free size where none can be"),
    "golden shape []": (at("golden", "input", "shape")([]), "golden.input.shape: "),
    "golden shape too large": (at("golden", "input", "shape")([2, 3, 2**20, 2**20]), "golden.input.shape: .* is not 2 pictures of"),
    "weights 3": (at("model", "weights")(3), "model.weights: text was expected, not 3"),
    "another format": (at("format")("pt2"), "format: it says 'pt2', and the file is 'onnx'"),
    "no format": (lambda metadata: metadata.pop("format"), "format: it is missing"),
    "a newer version": (at("format_version")(99), "format_version: 99 is of a newer fastcnn"),
    "labels of numbers": (at("labels")([1, 2, 3, 4]), r"labels\[0\]: text was expected"),
    "no outputs": (at("outputs")([]), "outputs: "),
    "runtimes of numbers": (at("runtimes")([3]), r"runtimes\[0\]: "),
    "left out as a list": (at("left_out")([]), "left_out: an object was expected"),
    "no tolerance": (at("golden", "tolerance")(float("nan")), "golden.tolerance: a number was expected"),
    "a dtype of its own": (at("golden", "dtype")("complex"), "golden.dtype: "),
    "outputs of another size": (at("golden", "batches", 0, "outputs", 0, "shape")([2**20, 2**20]), r"golden.batches\[0\].outputs\[0\]: "),
    "a bomb for a picture": (bomb, "the golden pair stored in the file is damaged: ValueError: it does not unpack to 864 bytes"),
}


@pytest.mark.parametrize("field", FIELDS)
@pytest.mark.parametrize("exported", ["onnx"], indirect=True)
def test_a_field_that_is_not_what_it_must_be(exported: tuple[str, Path], field: str, tmp_path: Path) -> None:
    """With the digest made right: the schema alone says it."""
    edit, message = FIELDS[field]
    container, metadata = read_container(exported[1])
    edit(metadata)
    path = tmp_path / "hostile.onnx"
    container.write(path, seal(metadata))
    with pytest.raises(FileFormatError, match=rf"hostile\.onnx(?: is damaged)?: {message}") as raised:
        verify_file(path)
    assert "\n" not in str(raised.value)
    if field != "a bomb for a picture":  # predict does not look at the pair
        with pytest.raises(FileFormatError, match=message):
            read_metadata(path)


@pytest.mark.parametrize("exported", ["onnx"], indirect=True)
def test_a_batch_beyond_the_memory(exported: tuple[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    container, metadata = read_container(exported[1])
    monkeypatch.setenv(MAX_BYTES, "3000000")
    metadata["input"]["shape"][0] = 2000
    metadata["golden"]["batches"] = [{**metadata["golden"]["batches"][0], "pictures": [0] * 2000}]
    container.write(tmp_path / "large.onnx", seal(metadata))
    with pytest.raises(FileFormatError, match=f"the bytes of the batches are 3,459,456, more than 3,000,000 .{MAX_BYTES} raises it"):
        read_metadata(tmp_path / "large.onnx")
    monkeypatch.setenv(MAX_BYTES, "4000000")
    assert read_metadata(tmp_path / "large.onnx")["input"]["shape"][0] == 2000


def test_a_bound_that_is_no_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(MAX_RECORDS, "many")
    with pytest.raises(ValueError, match=f"{MAX_RECORDS} is a whole number from 1, not 'many'"):
        read_directory(io.BytesIO(PLAIN))


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000, json.dumps([[]] * 10)])
@pytest.mark.parametrize("exported", ["onnx"], indirect=True)
def test_json_that_is_no_description(exported: tuple[str, Path], tmp_path: Path, text: str) -> None:
    import onnx

    model = onnx.load(exported[1])
    model.metadata_props[0].value = text
    onnx.save(model, tmp_path / "deep.onnx")
    with pytest.raises(FileFormatError, match=r"nested too deep|an object was expected"):
        verify_file(tmp_path / "deep.onnx")
