"""Eight threads send one optimized module batches of one to nine pictures for as long as asked; every answer is compared, and memory is sampled."""

from __future__ import annotations

import os
import random
import statistics
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

import fastcnn

_PICTURES = 64
_THREADS = 8
_LARGEST_BATCH = 9
_SAMPLES = 120
# Of an answer's largest value. Each engine may sum in another order for each batch size.
_TOLERANCE = 1e-5


@dataclass
class Findings:
    """What came out.

    Attributes:
        engine: which ran.
        model: what ran on it.
        seconds: how long.
        calls: of the module, all threads together.
        pictures: in these calls.
        wrong: calls with an answer further from the reference than rounding explains.
        errors: the first few exceptions.
        largest_difference: from the reference in float64, of the largest value of the answer.
        resident_mib: memory of the process over time, MiB.
    """

    engine: str
    model: str
    seconds: float = 0.0
    calls: int = 0
    pictures: int = 0
    wrong: int = 0
    errors: list[str] = field(default_factory=list)
    largest_difference: float = 0.0
    resident_mib: list[float] = field(default_factory=list)

    @property
    def growth_mib(self) -> float:
        """The median of the last quarter of the samples less that of the second: in the first, every batch size is met for the first time."""
        quarter = max(1, len(self.resident_mib) // 4)
        return statistics.median(self.resident_mib[-quarter:]) - statistics.median(self.resident_mib[quarter : 2 * quarter] or self.resident_mib)


def soak(engine: str, model: str, seconds: float, threads: int = _THREADS) -> Findings:
    """Runs `model` on `engine` for so long.

    Raises what `fastcnn.optimize` raises.
    """
    torch.manual_seed(0)
    reference = fastcnn.create_model(model)
    size = reference.fastcnn_info.input_size  # type: ignore[union-attr]
    pictures = torch.rand(_PICTURES, *size)
    with torch.inference_mode():
        expected = reference.double()(pictures.double())
    reference.float()
    largest = float(expected.abs().max())
    module = fastcnn.optimize(reference, pictures[:4], backend=engine)
    findings, lock, end = Findings(engine, model), threading.Lock(), time.monotonic() + seconds

    def send(seed: int) -> None:
        chosen = random.Random(seed)
        calls = sent = wrong = 0
        worst = 0.0
        try:
            while time.monotonic() < end:
                rows = [chosen.randrange(_PICTURES) for _ in range(chosen.randint(1, _LARGEST_BATCH))]
                difference = _difference(module(pictures[rows]), expected[rows]) / largest
                calls, sent, worst = calls + 1, sent + len(rows), max(worst, difference)
                wrong += not difference <= _TOLERANCE
        except Exception as error:
            with lock:
                findings.errors.append(f"{type(error).__name__}: {error}")
        with lock:
            findings.calls += calls
            findings.pictures += sent
            findings.wrong += wrong
            findings.largest_difference = max(findings.largest_difference, worst)

    started = time.monotonic()
    senders = [threading.Thread(target=send, args=(seed,)) for seed in range(threads)]
    for sender in senders:
        sender.start()
    while any(sender.is_alive() for sender in senders):
        findings.resident_mib.append(round(_resident() / 2**20, 1))
        time.sleep(seconds / _SAMPLES)
    findings.seconds = round(time.monotonic() - started, 1)
    return findings


def _difference(answer: Tensor, expected: Tensor) -> float:
    if answer.shape != expected.shape:
        return float("inf")
    return float((answer.double() - expected).abs().max())


def _resident() -> int:
    """Bytes of memory that the process holds."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
