"""The accuracy gate: how far the answers of an 8-bit network are from the float64 reference, on pictures that were not observed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from fastcnn.parity.rules import BatchParity, Outputs, relative_error, softmax
from fastcnn.quantization.request import Limits

# A runtime that computes what the graph says is as far from the reference as eager PyTorch is, but for ties that it rounds otherwise; one that
# saturates or loses a scale is further off than this.
_FACTOR, _FLOOR = 2.0, 0.01


@dataclass(frozen=True)
class HeldOut:
    """Pictures to judge by.

    Attributes:
        pictures: [N, …] float32, preprocessed.
        labels: [N] int64, the right class of each; None where nobody knows them.
    """

    pictures: Tensor
    labels: NDArray[np.int64] | None = None


@dataclass(frozen=True)
class Judgement:
    """The figures of one runtime over all pictures; `reason` says what broke a limit, and is empty where nothing did.

    Attributes:
        accuracy, reference_accuracy: share of the pictures that it, and the reference, give the right class; None without labels.
        top1_agreement: share of the pictures whose best class is the reference's.
        mean_change, largest_change: of the probability of the reference's best class, over the pictures.
    """

    runtime: str
    pictures: int
    relative_error: float
    max_abs_error: float
    top1_agreement: float
    mean_change: float
    largest_change: float
    reason: str = ""
    accuracy: float | None = None
    reference_accuracy: float | None = None

    @property
    def passed(self) -> bool:
        """Whether every limit holds."""
        return not self.reason

    def figures(self) -> dict[str, float]:
        """Rounded to three digits, for a file's description."""
        names = ["relative_error", "top1_agreement", "mean_change", "largest_change"]
        exact = (
            {}
            if self.accuracy is None or self.reference_accuracy is None
            else {
                "accuracy": round(self.accuracy, 6),
                "reference_accuracy": round(self.reference_accuracy, 6),
            }
        )
        return {name: float(f"{getattr(self, name):.3g}") for name in names} | exact

    def row(self, limits: Limits) -> BatchParity:
        """The same as a row of a parity report."""
        return BatchParity(
            self.runtime, self.pictures, self.relative_error, limits.max_error, self.max_abs_error, self.top1_agreement, self.pictures, self.reason
        )


def judge(
    outputs: Outputs, reference: Outputs, limits: Limits, *, runtime: str, probabilities: bool = False, labels: NDArray[np.int64] | None = None
) -> Judgement:
    """Hold the outputs of all pictures, the batch first, against the reference's.

    Args:
        probabilities: the first output went through a softmax already.
        labels: [N], where they are known: what may drop is then the accuracy itself, and pictures that were wrong before may change as they like.
    """
    count = len(reference[0])
    shapes, wanted = [output.shape for output in outputs], [output.shape for output in reference]
    if shapes != wanted:
        return Judgement(runtime, count, np.inf, np.inf, 0.0, 1.0, 1.0, f"output shapes {shapes}, the reference has {wanted}")
    unbounded = sum(int(np.count_nonzero(~np.isfinite(output))) for output in outputs)
    if unbounded:
        return Judgement(runtime, count, np.inf, np.inf, 0.0, 1.0, 1.0, f"NaN or infinity at {unbounded} outputs")
    error = max(relative_error(output, truth, np.ones(truth.shape, bool)) for output, truth in zip(outputs, reference, strict=True))
    largest = max(float(np.abs(output - truth).max(initial=0.0)) for output, truth in zip(outputs, reference, strict=True))
    same, changes = _classes(outputs[0], reference[0], probabilities)
    reasons = []
    if error > limits.max_error:
        reasons.append(f"relative error {error:.3g} is above {limits.max_error:g}")
    differing = int(np.count_nonzero(~same))
    right = None if labels is None else [float(np.mean(values.argmax(axis=1) == labels)) for values in (outputs[0], reference[0])]
    if right is not None:
        if right[1] - right[0] > limits.max_accuracy_drop:
            reasons.append(
                f"the accuracy on {count} labelled pictures drops from {right[1]:.2%} to {right[0]:.2%}, by more than the share of "
                f"{limits.max_accuracy_drop:g}"
            )
    elif differing > max(1, limits.max_accuracy_drop * len(same)):
        reasons.append(f"{differing} of {len(same)} pictures get another best class, more than the share of {limits.max_accuracy_drop:g}")
    agreement = float(same.mean()) if same.size else 1.0
    accuracies = (None, None) if right is None else tuple(right)
    mean, most = float(changes.mean()), float(changes.max(initial=0.0))
    return Judgement(runtime, count, error, largest, agreement, mean, most, "; ".join(reasons), *accuracies)


def _classes(output: NDArray[np.float64], truth: NDArray[np.float64], probabilities: bool) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    """Per picture: is the best class the same, and how far does the probability of the reference's best class move."""
    if truth.ndim < 2 or truth.shape[1] < 2:
        return np.ones(len(truth), bool), np.zeros(len(truth))
    best = truth.argmax(axis=1, keepdims=True)
    same = output.argmax(axis=1, keepdims=True) == best
    before, after = (values if probabilities else softmax(values) for values in (truth, output))
    moved = np.abs(np.take_along_axis(after, best, axis=1) - np.take_along_axis(before, best, axis=1))
    return same.reshape(-1), moved.reshape(-1)


def joined(batches: Sequence[Outputs]) -> Outputs:
    """Outputs of batches as those of all pictures."""
    return [np.concatenate(outputs) for outputs in zip(*batches, strict=True)]


def allowed_in_a_runtime(own: float) -> float:
    """How far a runtime may be off a graph that is off by `own` in eager PyTorch; further, it computes something else."""
    return _FACTOR * own + _FLOOR
