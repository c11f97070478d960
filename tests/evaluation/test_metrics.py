from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from fastcnn.evaluation.metrics import Tally

CLASSES = ("a", "b", "c", "d", "e", "f")


def test_against_the_definitions():
    generator = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(500, 6, generator=generator), torch.randint(0, 6, (500,), generator=generator)
    tally = Tally(CLASSES)
    best = torch.cat([tally.add(part, answers) for part, answers in zip(logits.split(77), labels.split(77), strict=True)])
    metrics = tally.metrics()
    assert torch.equal(best, logits.argmax(1))
    assert (metrics.pictures, metrics.correct) == (500, int((best == labels).sum()))
    assert metrics.top1 == metrics.correct / 500
    worst = logits.argmin(1)
    assert metrics.correct_top5 == int((worst != labels).sum())  # of six classes all but the last are among the five best
    assert metrics.loss == pytest.approx(float(F.cross_entropy(logits.double(), labels)), rel=1e-12)
    for row in metrics.per_class():
        assert row.pictures == int((labels == row.label).sum())
        assert row.predicted == int((best == row.label).sum())
        assert row.recall == row.correct / row.pictures
        assert row.precision == row.correct / row.predicted
        assert [metrics.confusion[row.label][other] for other in range(6)] == [
            int(((labels == row.label) & (best == other)).sum()) for other in range(6)
        ]


def test_probabilities_count_like_logits():
    logits, labels = torch.randn(40, 6, generator=torch.Generator().manual_seed(1)), torch.arange(40) % 6
    of_logits, of_probabilities = Tally(CLASSES), Tally(CLASSES)
    of_logits.add(logits, labels)
    of_probabilities.add(logits.double().softmax(1), labels, probabilities=True)
    first, second = of_logits.metrics(), of_probabilities.metrics()
    assert first.confusion == second.confusion
    assert first.loss == pytest.approx(second.loss, rel=1e-9)
    certain = Tally(("a", "b"))
    certain.add(torch.tensor([[1.0, 0.0]]), torch.tensor([1]), probabilities=True)
    assert math.isfinite(certain.metrics().loss)


def test_classes_without_pictures_or_answers():
    tally = Tally(("a", "b", "c"))
    tally.add(torch.tensor([[1.0, 0.0, 0.0], [1.0, 0.0, 0.0]]), torch.tensor([0, 1]))
    rows = tally.metrics().per_class()
    assert [(row.recall, row.precision) for row in rows] == [(1.0, 0.5), (0.0, None), (None, None)]
    assert tally.metrics().top5 == 1.0
    assert tally.metrics().to_dict()["classes"][1] == {
        "name": "b", "pictures": 1, "predicted": 0, "correct": 0, "precision": None, "recall": 0.0
    }  # fmt: skip
