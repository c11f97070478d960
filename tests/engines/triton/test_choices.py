"""The choices on disk."""

from __future__ import annotations

import dataclasses
import json
import threading
import tomllib
from pathlib import Path

import pytest
import torch

from fastcnn.engines.triton import choices
from fastcnn.engines.triton.choices import Choice, ChoiceStore, choices_document, parse_choices, read_shipped

CPU = torch.device("cpu")
SHIPPED = Path(choices.__file__).parent / "shipped"
FAST = Choice("triton", (64, 64, 32, 4, 3, 0, 2), 0.012, "fastest of 9")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FASTCNN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_what_one_process_measured_the_next_one_knows(cache):
    store = ChoiceStore(CPU)
    store.put("a", FAST)
    store.save()

    assert ChoiceStore(CPU).get("a") == FAST
    assert ChoiceStore(CPU).get("b") is None
    assert [path.name.startswith("convolutions-") for path in cache.iterdir()] == [True]


def test_processes_keep_each_others_choices():
    one, other = ChoiceStore(CPU), ChoiceStore(CPU)
    one.put("a", FAST)
    other.put("b", FAST)
    one.save()
    other.save()

    assert ChoiceStore(CPU).get("a") == ChoiceStore(CPU).get("b") == FAST


@pytest.mark.parametrize("text", ["", "{", "[]", '{"schema": "other", "choices": {}}', '{"schema": "fastcnn-choices/1", "choices": {"a": {}}}'])
def test_a_damaged_file_is_ignored_and_replaced(text, cache, caplog):
    path = ChoiceStore(CPU).path
    assert path is not None
    cache.mkdir()
    path.write_text(text, encoding="utf-8")
    store = ChoiceStore(CPU)

    assert store.get("a") is None
    assert "cannot be read and is ignored" in caplog.text
    store.put("a", FAST)
    store.save()
    assert ChoiceStore(CPU).get("a") == FAST


def test_a_cache_that_cannot_be_written_is_said_once_and_no_error(tmp_path, monkeypatch, caplog):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("FASTCNN_CACHE", str(tmp_path / "file"))
    store = ChoiceStore(CPU)
    store.put("a", FAST)
    store.save()

    assert store.get("a") == FAST
    assert "could not be written" in caplog.text


def test_without_a_disk(cache):
    store = ChoiceStore(CPU, on_disk=False)
    store.put("a", FAST)
    store.save()

    assert store.get("a") == FAST
    assert not cache.exists()


def test_measured_comes_before_shipped(monkeypatch):
    monkeypatch.setattr(choices, "_shipped", lambda gpu, architecture: {"a": FAST, "b": FAST})
    store = ChoiceStore(CPU)
    own = Choice("library", (0,), 0.01, "fastest of 2")
    store.put("a", own)

    assert store.get("a") == own
    assert store.get("b") == FAST


def test_shipped_files_can_be_read():
    for path in SHIPPED.glob("*.json"):
        document = json.loads(path.read_text(encoding="utf-8"))
        assert parse_choices(document), path
        assert document["environment"]["gpu"]
    assert choices._shipped("no such GPU", "") == {}


def test_shipped_files_are_part_of_the_package():
    project = Path(__file__).parents[3] / "pyproject.toml"
    patterns = tomllib.loads(project.read_text(encoding="utf-8"))["tool"]["setuptools"]["package-data"]["fastcnn.engines.triton"]
    files = [path.relative_to(SHIPPED.parent) for path in SHIPPED.iterdir()]

    assert files
    assert all(any(file.match(pattern) for pattern in patterns) for file in files)


def test_of_what_is_shipped_the_choices_of_this_gpu_are_read(tmp_path):
    slow = dataclasses.replace(FAST, milliseconds=2.0)
    for name, gpu, choice in (("a-fp16", "H100", slow), ("b-fp16", "H100", FAST), ("c-fp16", "A100", slow)):
        document = choices_document({"gpu": gpu}, {"x": choice, name: choice})
        (tmp_path / f"{name}.json").write_text(json.dumps(document), encoding="utf-8")
    (tmp_path / "README.md").write_text("no choices", encoding="utf-8")

    assert read_shipped(tmp_path, "H100") == {"x": FAST, "a-fp16": slow, "b-fp16": FAST}
    assert read_shipped(tmp_path, "V100") == {}


def test_a_gpu_of_another_name_with_the_same_multiprocessors_is_the_second_choice(tmp_path):
    slow, hopper = dataclasses.replace(FAST, milliseconds=2.0), "sm_90 with 132 multiprocessors"
    own = choices_document({"gpu": "H200", "architecture": hopper}, {"x": FAST})
    other = choices_document({"gpu": "H100", "architecture": hopper}, {"x": slow, "y": slow})
    older = choices_document({"gpu": "H100 before", "architecture": "sm_90 with 114 multiprocessors"}, {"z": slow})
    unnamed = choices_document({"gpu": "H100 SXM"}, {"z": slow})
    for index, document in enumerate((own, other, older, unnamed)):
        (tmp_path / f"{index}.json").write_text(json.dumps(document), encoding="utf-8")

    assert read_shipped(tmp_path, "H200", hopper) == {"x": FAST, "y": slow}
    assert read_shipped(tmp_path, "GH200", hopper) == {"x": slow, "y": slow}
    assert read_shipped(tmp_path, "none (x86_64)") == {}


def test_threads_save_at_once():
    store = ChoiceStore(CPU)

    def work(index: int) -> None:
        store.put(str(index), FAST)
        store.save()

    threads = [threading.Thread(target=work, args=(index,)) for index in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert all(ChoiceStore(CPU).get(str(index)) == FAST for index in range(8))
