"""Parts: every picture once, errors as rows, whole or not there; and decoding that runs ahead within bounds."""

from __future__ import annotations

import dataclasses
import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from fastcnn.errors import RequestError
from fastcnn.prediction.predictor import Predictor
from fastcnn.scale.job import Asking, Counts, Job, made_ahead
from fastcnn.scale.parts import Parts, model_digest, settings_digest
from fastcnn.scale.places import SourceError
from fastcnn.scale.shards import Shard, find_shards

ASKING = Asking("simple_cnn", backend="reference", batch_size=4, workers=2, top_k=3)


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    return ASKING.load()


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def job_of(predictor: Predictor, shards: list[Shard], format_="jsonl") -> Job:
    parts = Parts(Path("parts"), model_digest(ASKING.model), settings_digest(predictor, ASKING.top_k), format_)
    parts.check(shards)
    return Job(ASKING, parts)


@pytest.mark.parametrize("format_", ["jsonl", "parquet"])
def test_every_picture_has_one_row_and_a_rerun_gives_the_same_bytes(predictor: Predictor, tars, format_: str) -> None:
    if format_ == "parquet":
        pytest.importorskip("pyarrow", reason="pyarrow is an extra")
    names = tars(3, 9, corrupt=(4, 20))
    shards = find_shards(["t"])
    job = job_of(predictor, shards, format_)
    told: list[Counts] = []
    counts = [job.run(predictor, shard, told.append) for shard in job.parts.missing(shards)]
    assert counts == [Counts(9, 1), Counts(9, 0), Counts(9, 1)]
    assert sum(told, Counts()) == Counts(27, 2)
    paths = [job.parts.path_of(shard) for shard in shards]
    if format_ == "parquet":
        import pyarrow.parquet as pq

        rows = [row for path in paths for row in pq.read_table(path).to_pylist()]
    else:
        rows = [json.loads(line) for path in paths for line in path.read_text().splitlines()]
    assert [f"{row['shard']}/{row['file']}" for row in rows] == names
    assert [row["index"] for row in rows] == [*range(9)] * 3
    assert [number for number, row in enumerate(rows) if row["error"] is not None] == [4, 20]
    assert all((row["classes"] is None) == (row["error"] is not None) for row in rows)
    good = rows[0]
    assert len(good["classes"]) == len(good["probabilities"]) == 3
    assert good["probabilities"] == sorted(good["probabilities"], reverse=True)
    before = paths[0].read_bytes()
    paths[0].unlink()
    assert job.parts.missing(shards) == shards[:1]
    job.run(predictor, shards[0])
    assert paths[0].read_bytes() == before


def test_pictures_of_parquet_row_groups_and_of_urls(predictor: Predictor, tars) -> None:
    pq = pytest.importorskip("pyarrow.parquet", reason="pyarrow is an extra")
    import pyarrow as pa

    pytest.importorskip("fsspec", reason="fsspec is an extra")
    tars(1, 5)
    files = sorted(Path("loose").iterdir())
    images = [{"bytes": path.read_bytes(), "path": path.name} for path in files[:4]] + [{"bytes": None, "path": "none.png"}]
    pq.write_table(pa.table({"image": images, "label": [1] * 5}), "hf.parquet", row_group_size=2)
    pq.write_table(pa.table({"a": [b"x"], "b": [b"y"]}), "two.parquet")
    with pytest.raises(RequestError, match="2 binary columns"):
        job_of(predictor, find_shards(["two.parquet"])).run(predictor, find_shards(["two.parquet"])[0])
    here = Path.cwd().as_uri()
    Path("urls.txt").write_text(f"{here}/loose/{files[0].name}\n{here}/loose/gone.png\n")
    shards = find_shards(["hf.parquet", "urls.txt", f"{here}/t/*.tar"])
    assert [shard.kind for shard in shards] == ["parquet"] * 3 + ["list", "tar"]
    job = job_of(predictor, shards)
    assert [job.run(predictor, shard) for shard in shards] == [Counts(2), Counts(2), Counts(1, 1), Counts(2, 1), Counts(5)]
    rows = [json.loads(line) for shard in shards for line in job.parts.path_of(shard).read_text().splitlines()]
    assert [row["file"] for row in rows[:5]] == [*(path.name for path in files[:4]), "none.png"]
    assert rows[0]["classes"] == rows[5]["classes"] == rows[7]["classes"], "one picture, from three places"
    assert rows[6]["error"] == "there is no such file"


def test_a_damaged_shard_leaves_no_part_and_nothing_else(predictor: Predictor, tars) -> None:
    tars(1, 12)
    path = Path("t/0.tar")
    path.write_bytes(path.read_bytes()[:9000])
    shards = find_shards(["t"])
    job = job_of(predictor, shards)
    with pytest.raises(SourceError):
        job.run(predictor, shards[0])
    assert list(Path("parts").iterdir()) == []
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("fastcnn")]


def test_a_folder_of_other_parts_is_refused(predictor: Predictor, tars) -> None:
    tars(2, 2)
    shards = find_shards(["t"])
    job = job_of(predictor, shards)
    job.run(predictor, shards[0])
    with pytest.raises(RequestError, match="another input, model, preprocessing or format"):
        job_of(predictor, find_shards(["loose"]))
    with pytest.raises(RequestError, match="another input, model"):
        dataclasses.replace(job.parts, model="0" * 12).check(shards)
    job_of(predictor, shards)


def test_digests_tell_models_and_settings_apart(predictor: Predictor) -> None:
    Path("a.onnx").write_bytes(b"a")
    Path("b.onnx").write_bytes(b"a")
    Path("net.py").write_text("one")
    code = model_digest("net.py:build")
    assert model_digest("a.onnx") == model_digest("b.onnx")
    Path("b.onnx").write_bytes(b"b")
    Path("net.py").write_text("two")
    assert len({model_digest(one) for one in ("a.onnx", "b.onnx", "simple_cnn", "net.py:build", "net.py:other")} | {code}) == 6
    assert settings_digest(predictor, 3) != settings_digest(predictor, 4)


def test_runs_ahead_so_far_and_ends_when_closed() -> None:
    made: list[int] = []
    enough = threading.Event()

    def numbers() -> Iterator[int]:
        try:
            for number in range(1000):
                made.append(number)
                if number == 3:
                    enough.set()
                yield number
        finally:
            made.append(-1)

    items = made_ahead(numbers(), 2)
    assert next(items) == 0
    assert enough.wait(10)  # 1 and 2 wait, 3 is made and finds no room
    items.close()
    assert made == [0, 1, 2, 3, -1]
    assert list(made_ahead(range(10), 1)) == list(range(10))

    def failing() -> Iterator[int]:
        yield 1
        raise SourceError("gone")

    got = made_ahead(failing(), 3)
    assert next(got) == 1
    with pytest.raises(SourceError, match="gone"):
        next(got)
