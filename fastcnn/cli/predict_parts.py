"""`fastcnn predict --shard` and `--ray`: the answers in parts."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fastcnn.cli import output
from fastcnn.cli.progress import ProgressMode, work_progress
from fastcnn.errors import RequestError

if TYPE_CHECKING:
    from fastcnn.prediction.predictor import Predictor
    from fastcnn.scale.job import Asking, Counts, Job
    from fastcnn.scale.shards import Shard


class PartFormat(StrEnum):
    """What parts are written as."""

    parquet = "parquet"
    jsonl = "jsonl"


Share = Annotated[
    str | None,
    typer.Option(
        "--shard", metavar="I/N", help="Write parts to the folder --output, of share I (from 0) of N: one for each machine.", show_default=False
    ),
]
Ray = Annotated[
    str | None,
    typer.Option("--ray", metavar="ADDRESS", help="Write parts with the actors of a Ray cluster: its address, auto or local.", show_default=False),
]
RayWorkers = Annotated[
    int | None,
    typer.Option(
        "--ray-workers", min=1, metavar="N", help="Actors, each with a model.  [default: one a CPU of the cluster, or one a GPU]", show_default=False
    ),
]
PartFormatOption = Annotated[
    PartFormat | None,
    typer.Option("--part-format", case_sensitive=False, help="Of the parts.  [default: parquet]", show_default=False),
]
FilesPerShard = Annotated[
    int | None,
    typer.Option(
        "--files-per-shard", min=1, metavar="N", help="Pictures of a folder or a list that share a part.  [default: 10000]", show_default=False
    ),
]


@dataclass(frozen=True)
class Goal:
    """Where parts go, and who makes them: the options as they were given; `unused` are those that do not go with parts."""

    out: Path | None
    share: str | None
    ray: str | None
    ray_workers: int | None
    part_format: PartFormat | None
    files_per_shard: int | None
    unused: Sequence[str]

    @property
    def is_parts(self) -> bool:
        """Whether parts are asked for at all. Raises RequestError for options that are for parts alone."""
        if self.share is not None or self.ray is not None:
            return True
        options = {"--ray-workers": self.ray_workers, "--part-format": self.part_format, "--files-per-shard": self.files_per_shard}
        given = [option for option, value in options.items() if value is not None]
        if given:
            raise RequestError(f"{given[0]} is for parts: --shard 0/1 or --ray asks for them")
        return False

    def folder(self, sources: Sequence[str]) -> Path:
        """The folder of parts. Raises RequestError where there can be none."""
        if self.unused:
            raise RequestError(f"{self.unused[0]} does not go with parts: they are always gone on with, and hold errors as rows")
        if self.share is not None and self.ray is not None:
            raise RequestError("--shard is for machines without a cluster, and --ray divides the work itself: give one of them")
        if self.ray is None and self.ray_workers is not None:
            raise RequestError("--ray-workers is for --ray")
        if self.out is None:
            raise RequestError("parts need a folder: name it with --output")
        if re.match("[a-z][a-z0-9+.-]+:/", str(self.out)):
            raise RequestError(f"{self.out} is a URL: parts are written to a folder, which machines may share; copy them from there")
        if self.out.exists() and not self.out.is_dir():
            raise RequestError(f"{self.out} is a file: --output names the folder of parts")
        inside = [source for source in sources if Path(source).is_dir() and self.out.resolve().is_relative_to(Path(source).resolve())]
        if inside:
            raise RequestError(f"{self.out} lies in {inside[0]}, which is read: parts would be taken for input; give another folder")
        return self.out


def predict_parts(asking: Asking, sources: Sequence[str], goal: Goal, mode: ProgressMode) -> None:
    """Makes the parts that are missing. Raises RequestError, after all others were made, where a shard cannot be read."""
    folder = goal.folder(sources)
    from fastcnn.scale.job import Job
    from fastcnn.scale.parts import Parts, model_digest, settings_digest
    from fastcnn.scale.shards import FILES_PER_SHARD, find_shards, parse_share, share_of

    share = None if goal.share is None else parse_share(goal.share)
    with output.working("looking for shards"):
        shards = find_shards(sources, files_per_shard=goal.files_per_shard or FILES_PER_SHARD)
    with output.working("loading the model"):
        predictor = asking.load()
    if predictor.has_random_weights:
        output.note(f"{predictor.name} has seeded random weights: its answers mean nothing; --weights gives it trained ones")
    parts = Parts(folder, model_digest(asking.model), settings_digest(predictor, asking.top_k), (goal.part_format or PartFormat.parquet).value)
    parts.check(shards)
    own = shards if share is None else share_of(shards, *share)
    missing = parts.missing(own)
    if len(missing) < len(own):
        output.note(f"{folder} holds {len(own) - len(missing)} of {len(own)} parts already")
    damaged = []
    with work_progress(mode, "shards", str(folder), total=len(own), done=len(own) - len(missing)) as work:
        for shard, outcome in _run(Job(asking, parts), predictor, missing, goal, work.update):
            if isinstance(outcome, Exception):
                damaged.append(f"{shard.described}: {outcome}")
            work.update(units=1)
    output.note(
        f"{len(own) - len(damaged)} of {len(own)} parts of {predictor.name} are in {folder}; {work.pictures} pictures now, {work.errors} in error"
    )
    if damaged:
        raise RequestError(f"{len(damaged)} of {len(own)} shards have no part, and are tried again by the next run; {'; '.join(damaged[:3])}")


def _run(
    job: Job, predictor: Predictor, shards: Sequence[Shard], goal: Goal, update: Callable[..., None]
) -> Iterator[tuple[Shard, Counts | Exception]]:
    """Each shard once it is done, with its counts or with why it has no part."""
    from fastcnn.scale.places import SourceError

    if goal.ray is not None:
        from fastcnn.scale.ray_pool import run_on_ray

        for shard, outcome in run_on_ray(job, shards, goal.ray, goal.ray_workers):
            if not isinstance(outcome, Exception):
                update(pictures=outcome.pictures, errors=outcome.errors)
            yield shard, outcome
        return
    for shard in shards:
        try:
            yield shard, job.run(predictor, shard, lambda counts: update(pictures=counts.pictures, errors=counts.errors))
        except SourceError as error:
            yield shard, error
