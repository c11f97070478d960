from __future__ import annotations

import json

from fastcnn.models import registry


def test_lists_every_model(cli):
    result = cli("list")
    assert result.exit_code == 0
    assert result.stderr == ""
    assert [line.split()[0] for line in result.stdout.splitlines()] == ["name", *registry.list_models("*")]


def test_pattern(cli):
    result = cli("list", "inception_v*")
    assert [line.split()[0] for line in result.stdout.splitlines()[1:]] == ["inception_v3", "inception_v4"]


def test_json(cli):
    result = cli("list", "vgg_cifar10", "--json")
    assert result.stderr == ""
    (row,) = json.loads(result.stdout)
    assert row["name"] == "vgg_cifar10"
    assert row["input_size"] == [3, 32, 32]
    assert row["num_classes"] == 10
