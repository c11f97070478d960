"""Labelled pictures: torchvision's datasets as uint8 pixels that a `Preprocessing` has brought to a model's size."""

from __future__ import annotations

DATASETS = ("mnist", "fashion-mnist", "cifar10", "imagefolder")
