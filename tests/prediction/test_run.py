"""The pipeline: order, corrupt pictures, and runs that are stopped and taken up again."""

from __future__ import annotations

import dataclasses
import errno
import json
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from picture_support import write_pictures

from fastcnn.errors import RequestError
from fastcnn.prediction import answer_file
from fastcnn.prediction.answer_file import Resumption, continue_answers, plan_resumption, write_failures
from fastcnn.prediction.loading import load_predictor
from fastcnn.prediction.predictor import Predictor
from fastcnn.prediction.run import Answer, Failure, predict, read_input

CORRUPT = (0, 5, 6, 23, 39)


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    return load_predictor("simple_cnn", backend="reference")


def write(predictor: Predictor, path: Path, files: list[str], stop: int | None = None, batch_size: int = 8) -> list[Failure]:
    """Run, or go on with, a file of answers; `stop` leaves it after so many results, as a killed run would."""
    plan = plan_resumption(path, files, batch_size, lambda file: read_input(predictor, file)) if path.exists() else Resumption(0, {}, [], 0)
    results = continue_answers(path, plan, predict(predictor, files[plan.start :], batch_size=batch_size, top_k=3))
    failures = [*plan.failures, *(result for result in islice(results, stop) if isinstance(result, Failure))]
    results.close()
    return failures


def test_order_and_corrupt_pictures(predictor: Predictor, pictures: Callable[..., list[str]]) -> None:
    files = pictures(40, CORRUPT)
    results = list(predict(predictor, files, batch_size=7, top_k=3, workers=3))
    assert [result.file for result in results] == files
    assert [number for number, result in enumerate(results) if isinstance(result, Failure)] == list(CORRUPT)
    (alone,) = predict(predictor, files[10:11], top_k=3)
    assert isinstance(alone, Answer)
    assert [guess.index for guess in alone.top] == [guess.index for guess in results[10].top]
    probabilities = [guess.probability for guess in alone.top]
    assert probabilities == sorted(probabilities, reverse=True)


def test_only_corrupt_pictures_and_none_at_all(predictor: Predictor, pictures: Callable[..., list[str]]) -> None:
    assert all(isinstance(result, Failure) for result in predict(predictor, pictures(3, (0, 1, 2)), batch_size=2))
    assert list(predict(predictor, [])) == []


def test_output_that_is_not_finite_is_no_answer(predictor: Predictor, pictures: Callable[..., list[str]]) -> None:
    broken = dataclasses.replace(predictor, forward=lambda batch: np.full((len(batch), 10), np.nan, np.float32))
    assert [str(result) for result in predict(broken, pictures(2)) if "not finite" not in result.reason] == []


@pytest.mark.parametrize("stop", [0, 1, 7, 8, 9, 24, 38, 39, 40])
@pytest.mark.parametrize("cut", [0, 1, 50])
def test_a_stopped_run_goes_on_to_the_same_file(
    predictor: Predictor, pictures: Callable[..., list[str]], tmp_path: Path, stop: int, cut: int
) -> None:
    files = pictures(40, CORRUPT)
    whole, stopped = tmp_path / "whole.jsonl", tmp_path / "stopped.jsonl"
    all_failures = write(predictor, whole, files)
    write(predictor, stopped, files, stop)
    data = stopped.read_bytes() if stopped.exists() else b""
    stopped.write_bytes(data[: max(0, len(data) - cut)])
    again = write(predictor, stopped, files)
    assert stopped.read_bytes() == whole.read_bytes()
    assert again == all_failures
    assert [failure.file for failure in again] == [files[number] for number in CORRUPT]
    assert write(predictor, stopped, files) == all_failures, "a finished run changes nothing"
    assert stopped.read_bytes() == whole.read_bytes()


def test_a_picture_repaired_in_between_gets_its_answer(predictor: Predictor, pictures: Callable[..., list[str]], tmp_path: Path) -> None:
    files = pictures(40, (11, 30))
    path, whole = tmp_path / "answers.jsonl", tmp_path / "whole.jsonl"
    write(predictor, path, files, 25)
    repaired = write_pictures(tmp_path / "pictures", 40, (30,))
    assert [failure.file for failure in write(predictor, path, repaired)] == [files[30]]
    write(predictor, whole, repaired)
    assert path.read_bytes() == whole.read_bytes()


def test_a_file_of_something_else_is_left_alone(predictor: Predictor, pictures: Callable[..., list[str]], tmp_path: Path) -> None:
    files = pictures(20)
    path = tmp_path / "answers.jsonl"
    write(predictor, path, files, 12)
    before = path.read_bytes()
    with pytest.raises(RequestError, match="of another model, version or setting"):
        write(load_predictor("simple_cnn", backend="reference", seed=5), path, files)
    with pytest.raises(RequestError, match="is about other pictures: line 1 is of"):
        write(predictor, path, files[1:])
    assert path.read_bytes() == before
    path.write_bytes(b"notes of mine\n" + before)
    with pytest.raises(RequestError, match="line 1 cannot be read"):
        write(predictor, path, files)


def test_a_full_disk_names_the_file(
    predictor: Predictor, pictures: Callable[..., list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(file: object, data: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    path = tmp_path / "answers.jsonl"
    monkeypatch.setattr(answer_file, "_write", full)
    with pytest.raises(RequestError, match=r"answers\.jsonl cannot be written: No space left on device"):
        list(continue_answers(path, Resumption(0, {}, [], 0), predict(predictor, pictures(2))))


def test_lines_are_utf8_whatever_the_name(tmp_path: Path) -> None:
    odd = b"\xff.png".decode("utf-8", "surrogateescape")
    write_failures(tmp_path / "q.jsonl", [Failure(odd, "damaged"), Failure("b", "gone")])
    assert [json.loads(line)["reason"] for line in (tmp_path / "q.jsonl").read_text().splitlines()] == ["damaged", "gone"]
