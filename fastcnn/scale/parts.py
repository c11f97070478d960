"""The output in parts: one file a shard, whose name says of which shard, model and settings it is."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from fastcnn.errors import RequestError
from fastcnn.files import replacing, sha256_of_file
from fastcnn.models.request import ModelRequest
from fastcnn.prediction.predictor import Predictor
from fastcnn.prediction.run import Answer, Failure
from fastcnn.scale.parquet import pyarrow_parquet
from fastcnn.scale.shards import Shard
from fastcnn.text import json_text, printable

Format = Literal["parquet", "jsonl"]
_DIGITS = 12
_ROWS_AT_ONCE = 4096  # of a part, that are in memory


@dataclass(frozen=True)
class Parts:
    """A folder of parts of one model with one way of asking it.

    Attributes:
        folder: where they lie.
        model: digest of the model, see `model_digest`.
        settings: digest of the preprocessing and of what is answered, see `settings_digest`.
        format: "parquet" with a row a picture (shard, index, file, error, classes, labels, probabilities), or "jsonl" with the same as objects.
    """

    folder: Path
    model: str
    settings: str
    format: Format = "parquet"

    def path_of(self, shard: Shard) -> Path:
        """Where the part of a shard lies, or will."""
        return self.folder / f"{shard.name}.{self.model}.{self.settings}.{self.format}"

    def missing(self, shards: Iterable[Shard]) -> list[Shard]:
        """The shards that have no part."""
        there = self._names()
        return [shard for shard in shards if self.path_of(shard).name not in there]

    def check(self, shards: Sequence[Shard]) -> None:
        """Makes the folder, and sees to it that its parts are of these shards, which must be all, whoever works on them: together they are the input.

        Raises RequestError where a part is of another input, model or setting, or what writes parts is not installed.
        """
        if self.format == "parquet":
            pyarrow_parquet()
        names = {self.path_of(shard).name for shard in shards}
        strange = sorted(self._names() - names)
        if strange:
            raise RequestError(
                f"{self.folder} holds {len(strange)} parts of another input, model, preprocessing or format, {strange[0]} for one: "
                "give another folder, or take them away"
            )
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RequestError(f"{self.folder} cannot be made: {error.strerror}") from error

    def _names(self) -> set[str]:
        if not self.folder.exists():
            return set()
        try:
            return {path.name for path in self.folder.iterdir() if path.suffix in (".parquet", ".jsonl") and not path.name.startswith(".")}
        except OSError as error:
            raise RequestError(f"{self.folder} cannot be read as a folder of parts: {error.strerror}") from error

    def write(self, shard: Shard, answers: Iterable[Answer | Failure]) -> None:
        """The part of a shard, whole or not at all. Raises RequestError if it cannot be written."""
        rows = (_row(shard, index, answer) for index, answer in enumerate(answers))
        with replacing(self.path_of(shard)) as draft:
            (_write_parquet if self.format == "parquet" else _write_jsonl)(draft, rows)


def model_digest(model: ModelRequest | str) -> str:
    """A digest of what was asked to predict: of the bytes of its file, or of the name, its options and the bytes of its weights and code.

    The backend and the device are no part of it: they compute the same function, and may work on one folder together.
    """
    request = ModelRequest(model) if isinstance(model, str) else model
    fields: dict[str, Any] = dataclasses.asdict(request)
    for name in ("model", "weights"):
        # FILE.py:callable is code in a file.
        path, _, rest = (fields[name] or "").partition(":") if name == "model" else (fields[name] or "", "", "")
        if path and Path(path).is_file():
            fields[name] = [sha256_of_file(Path(path)), rest]
    return _digest(fields)


def settings_digest(predictor: Predictor, top_k: int) -> str:
    """A digest of the preprocessing, the names of the classes and how many are answered."""
    return _digest([predictor.preprocessing.to_dict(), predictor.categories, top_k])


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:_DIGITS]


def _row(shard: Shard, index: int, answer: Answer | Failure) -> dict[str, Any]:
    failed = isinstance(answer, Failure)
    top = () if isinstance(answer, Failure) else answer.top
    return {
        "shard": shard.described,
        "index": index,
        "file": answer.file,
        "error": answer.reason if isinstance(answer, Failure) else None,
        "classes": None if failed else [guess.index for guess in top],
        "labels": None if failed else [guess.label for guess in top],
        "probabilities": None if failed else [guess.probability for guess in top],
    }


def _write_jsonl(path: Path, rows: Iterator[dict[str, Any]]) -> None:
    with path.open("w", encoding="utf-8", newline="\n") as file:
        file.writelines(json_text(row) + "\n" for row in rows)


def _write_parquet(path: Path, rows: Iterator[dict[str, Any]]) -> None:
    pa, pq = importlib.import_module("pyarrow"), pyarrow_parquet()
    text = pa.string()
    lists = {"classes": pa.list_(pa.int32()), "labels": pa.list_(text), "probabilities": pa.list_(pa.float64())}
    schema = pa.schema({"shard": text, "index": pa.int64(), "file": text, "error": text, **lists})
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        while some := list(islice(rows, _ROWS_AT_ONCE)):
            # Names of files may be no UTF-8; Parquet's text is.
            plain = [{name: printable(value) if isinstance(value, str) else value for name, value in row.items()} for row in some]
            writer.write_table(pa.Table.from_pylist(plain, schema=schema))
