"""The same jobs on a Ray cluster: a pool of actors, each with one model that is loaded once."""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator, Sequence
from typing import Any

from fastcnn.errors import BackendError, FastcnnError
from fastcnn.scale.job import Counts, Job
from fastcnn.scale.shards import Shard
from fastcnn.text import first_line

# A shard whose process was killed so often may be what kills it (a decoder that crashes, memory): the next run tries it again.
_TRIES = 5


class _Worker:
    """An actor: its model is loaded once, and again where Ray starts it anew."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._predictor = job.asking.load()

    def run(self, shard: Shard) -> Counts | str:
        """What was counted, or why there is no part."""
        try:
            return self._job.run(self._predictor, shard)
        except FastcnnError as error:
            return str(error)


def run_on_ray(job: Job, shards: Sequence[Shard], address: str, workers: int | None = None) -> Iterator[tuple[Shard, Counts | Exception]]:
    """Makes the parts of shards on a cluster; gives each shard once it is done, in the order of their ends, with its counts or why it has no part.

    The model, the pictures and the folder of parts must be found under the same names on every node. An actor that dies is started anew and does its
    shard again; where the driver dies, its actors end.

    Args:
        address: as `ray.init` takes it ("auto", "local", "HOST:PORT", "ray://HOST:PORT").
        workers: actors; by default one a GPU for a device of CUDA, else one a CPU.

    Raises:
        BackendError: ray is not installed, or there is no such cluster, or it has no room.
    """
    try:
        ray: Any = importlib.import_module("ray")
    except ImportError as error:
        raise BackendError("--ray needs Ray, which is not installed: pip install 'fastcnn[ray]'") from error
    if not shards:
        return
    is_ours = not ray.is_initialized()
    if is_ours:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # a cluster that is started here reports to nobody
        extra = {"include_dashboard": False} if address == "local" else {}
        try:
            ray.init(address=address, log_to_driver=False, logging_level="error", **extra)
        except Exception as error:
            raise BackendError(f"there is no Ray cluster at {address}: {first_line(error)}") from error
    try:
        yield from _spread(ray, job, shards, workers)
    finally:
        if is_ours:
            ray.shutdown()


def _spread(ray: Any, job: Job, shards: Sequence[Shard], workers: int | None) -> Iterator[tuple[Shard, Counts | Exception]]:
    on_gpu = (job.asking.device or "cpu").startswith("cuda")
    there = int(ray.cluster_resources().get("GPU" if on_gpu else "CPU", 0))
    if there == 0:
        raise BackendError(f"the Ray cluster has no {'GPU' if on_gpu else 'CPU'} to give")
    count = min(workers or there, there, len(shards))
    # Ray gives an actor as many threads as it has CPUs, through OMP_NUM_THREADS.
    asked = {"num_gpus": 1} if on_gpu else {"num_cpus": max(1, there // count)}
    actor = ray.remote(_Worker).options(**asked, max_restarts=-1, max_task_retries=_TRIES)
    idle = [actor.remote(job) for _ in range(count)]  # in plain sight: what lies in the object store is lost with its node, and with it the restart
    waiting = list(reversed(shards))
    running: dict[Any, tuple[Any, Shard]] = {}
    while waiting or running:
        while idle and waiting:
            worker, shard = idle.pop(), waiting.pop()
            running[worker.run.remote(shard)] = (worker, shard)
        (done, *_), _ = ray.wait(list(running))
        worker, shard = running.pop(done)
        try:
            outcome = ray.get(done)
        except ray.exceptions.RayError as error:
            cause = getattr(error, "cause", None)
            if isinstance(cause, FastcnnError):  # the model cannot be loaded there
                raise BackendError(f"a worker of the Ray cluster: {cause}") from error
            yield shard, BackendError(f"its worker died {_TRIES + 1} times: {first_line(error)}")
        else:
            yield shard, BackendError(outcome) if isinstance(outcome, str) else outcome
        idle.append(worker)
