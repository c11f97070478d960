"""A file of answers, one JSON object a line, that a killed run leaves in a state from which another run can go on."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from io import RawIOBase
from pathlib import Path

from fastcnn.errors import RequestError
from fastcnn.files import replacing
from fastcnn.pictures import PictureError
from fastcnn.prediction.run import Answer, Failure
from fastcnn.text import json_text


def write_failures(path: Path, failures: Sequence[Failure]) -> None:
    """All failures, one JSON object a line; the file appears whole or not at all."""
    with replacing(path) as draft:
        draft.write_text("".join(json_text(asdict(failure)) + "\n" for failure in failures), encoding="utf-8")


@dataclass(frozen=True)
class Resumption:
    """Where a run goes on.

    Attributes:
        start: number of the first picture to run again: the first one of a batch.
        answered: lines that stand already, by the number of their picture; those from `start` on are checked.
        failures: pictures before `start` that cannot be read.
        kept: bytes of the file to keep.
    """

    start: int
    answered: dict[int, bytes]
    failures: list[Failure]
    kept: int


def plan_resumption(path: Path, files: Sequence[str], batch_size: int, try_picture: Callable[[str], object]) -> Resumption:
    """What is done already, by the file. A last line that was cut off counts as not written.

    The lines must be about the first of `files`, in order; a picture without one is tried by `try_picture`, which raises PictureError if it
    still cannot be read. If it can, the run goes on from there: an uninterrupted run would have answered it.

    Raises:
        RequestError: the file is about other pictures, or no file of answers.
    """
    lines = _whole_lines(path)
    known = set(files)
    foreign = next((number for number, (file, _) in enumerate(lines) if file not in known), None)
    if foreign is not None:
        raise RequestError(f"{path} is about other pictures: line {foreign + 1} is of {lines[foreign][0]}; --force starts anew")
    answered: dict[int, bytes] = {}
    failures: dict[int, Failure] = {}
    for number, file in enumerate(files):
        if len(answered) == len(lines):
            break
        if lines[len(answered)][0] == file:
            answered[number] = lines[len(answered)][1]
            continue
        try:
            try_picture(file)
        except PictureError as error:
            failures[number] = Failure(file, str(error))
        else:
            break
    start = max(answered, default=0) // batch_size * batch_size
    return Resumption(start, answered, [failure for number, failure in failures.items() if number < start], sum(map(len, answered.values())))


def _whole_lines(path: Path) -> list[tuple[str, bytes]]:
    """(picture, bytes with the line's end) of each whole line."""
    data = path.read_bytes() if path.exists() else b""
    lines = []
    for number, line in enumerate(data.splitlines(keepends=True), start=1):
        if not line.endswith(b"\n"):
            break  # cut off
        try:
            lines.append((str(json.loads(line)["file"]), line))
        except (ValueError, KeyError, TypeError) as error:
            raise RequestError(f"{path} is no file of answers: line {number} cannot be read; --force starts anew") from error
    return lines


def continue_answers(path: Path, plan: Resumption, answers: Iterator[Answer | Failure]) -> Iterator[Answer | Failure]:
    """Write the answers from picture `plan.start` on, and pass them on. Each is in the file before the next one is asked for.

    Those that stand there already are compared with what comes out now.

    Raises:
        RequestError: they differ: the file is of another model, other settings or another version. Nothing was changed but a cut-off line.
    """
    try:
        # Unbuffered: what the system did not take is not kept, to fail once more when the file is closed.
        with path.open("r+b" if path.exists() else "w+b", buffering=0) as file:
            file.truncate(plan.kept)
            file.seek(0, os.SEEK_END)
            for number, answer in enumerate(answers, start=plan.start):
                if isinstance(answer, Answer):
                    line = (json_text(answer.to_dict()) + "\n").encode()
                    before = plan.answered.get(number)
                    if before is None:
                        _write(file, line)
                    elif before != line:
                        raise RequestError(f"{path} is of another model, version or setting: the line of {answer.file} differs; --force starts anew")
                yield answer
    except OSError as error:
        raise RequestError(f"{path} cannot be written: {error.strerror or error}") from error


def _write(file: RawIOBase, data: bytes) -> None:
    """The whole of `data`, of which the system may take less at a time."""
    while data:
        data = data[file.write(data) or 0 :]
