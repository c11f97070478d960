"""How a model is trained, as data."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from fastcnn.errors import RequestError

SCHEDULES = ("constant", "cosine")


@dataclass(frozen=True)
class Recipe:
    """Stochastic gradient descent with momentum on the cross-entropy.

    The lectures train for 9 or 10 epochs in batches of 64; the weight of the auxiliary heads is GoogLeNet's (arXiv:1409.4842, section 5).

    Attributes:
        epochs: passes over the training pictures.
        batch_size: pictures a step. A last batch of a single picture is left out: BatchNorm has no variance there.
        learning_rate: at the start.
        momentum: of the gradient (Polyak's, as in `torch.optim.SGD`).
        weight_decay: L2 penalty, added to the gradient.
        schedule: "constant", or "cosine": falls to 0 along half a cosine, step by step (arXiv:1608.03983, without restarts).
        aux_weight: what the loss of each auxiliary head counts.
        augment: shift each training picture by up to an eighth of its side, and mirror half of those in colour.
        validation: pictures held out of training, on which the best epoch is chosen. None: a tenth, 5,000 at most. Unused where the
            dataset keeps pictures apart for that.
        seed: of the random weights, of what is held out, of the order of the pictures, of dropout and augmentation.
    """

    epochs: int = 10
    batch_size: int = 64
    learning_rate: float = 0.01
    momentum: float = 0.9
    weight_decay: float = 0.0
    schedule: str = "constant"
    aux_weight: float = 0.3
    augment: bool = False
    validation: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size"):
            _require(name, getattr(self, name), getattr(self, name) >= 1, "at least 1")
        _require("seed", self.seed, self.seed >= 0, "at least 0")
        if self.validation is not None:
            _require("validation", self.validation, self.validation >= 1, "at least 1")
        for name in ("weight_decay", "aux_weight"):
            value = getattr(self, name)
            _require(name, value, 0 <= value < math.inf, "at least 0")
        _require("learning_rate", self.learning_rate, 0 < self.learning_rate < math.inf, "above 0")
        _require("momentum", self.momentum, 0 <= self.momentum < 1, "at least 0 and below 1")
        if self.schedule not in SCHEDULES:
            raise RequestError(f"schedule is {' or '.join(SCHEDULES)}, not {self.schedule!r}")

    def factor(self, steps: int) -> Callable[[int], float]:
        """step -> what the learning rate is multiplied with, in a run of `steps` steps."""
        if self.schedule == "constant":
            return lambda step: 1.0
        return lambda step: 0.5 * (1 + math.cos(math.pi * min(step, steps) / steps))

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Recipe:
        """The reverse of `to_dict`."""
        return cls(**{field.name: data[field.name] for field in fields(cls)})


def _require(name: str, value: float, holds: bool, rule: str) -> None:
    if not holds:
        raise RequestError(f"{name.replace('_', ' ')} must be {rule}, not {value:g}")
