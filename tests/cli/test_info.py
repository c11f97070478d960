from __future__ import annotations

import json
import re

import pytest


def test_layer_table_has_the_figures_of_its_source(cli):
    """MODELS.md §3: the first rows of vgg_cifar10 and its total."""
    result = cli("info", "vgg_cifar10")
    assert result.exit_code == 0
    assert result.stderr == ""
    for figure in ("1,792", "1,835,008", "73,856", "18,907,136", "9,750,922"):
        assert figure in result.stdout


def test_json_is_the_whole_answer(cli):
    result = cli("info", "simple_cnn", "--json", "--batch-size", 4)
    answer = json.loads(result.stdout)
    assert answer["model"] == "simple_cnn"
    assert answer["input_shape"] == [4, 1, 28, 28]
    assert answer["plan"] is None
    assert answer["totals"]["parameters"] == 8490


def test_mult_adds_grow_with_the_batch(cli):
    one, four = (json.loads(cli("info", "simple_cnn", "--json", "--batch-size", size).stdout)["totals"] for size in (1, 4))
    assert four["mult_adds"] == 4 * one["mult_adds"]
    assert four["parameters"] == one["parameters"]


def test_plan_shows_what_was_folded(cli):
    result = cli("info", "residual_mnist", "--plan", "--json")
    plan = json.loads(result.stdout)["plan"]
    assert plan["backend"] == "torch"
    assert any(row["folded"] for row in plan["rows"])
    assert any(report["fired"] for report in plan["passes"])


def test_plan_says_why_a_pass_declined(cli):
    plan = json.loads(cli("info", "inception_mnist", "--plan", "--json").stdout)["plan"]
    (pool,) = (report for report in plan["passes"] if report["name"] == "move_pool_behind_projection")
    assert pool["declined"] == {"the projection widens": 2}


def test_plan_as_a_table(cli):
    result = cli("info", "simple_cnn", "--plan", "--backend", "torch")
    assert result.exit_code == 0
    assert re.search(r"^backend +torch, \d+ steps$", result.stdout, re.MULTILINE)


@pytest.mark.parametrize(
    ("args", "said"), [(["--backend", "torch"], "--plan"), (["--plan", "--backend", "tensorflow"], "tensorflow")], ids=["no --plan", "unknown"]
)
def test_wrong_backend(cli, args, said):
    result = cli("info", "simple_cnn", *args)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr.count("\n") == 1
    assert said in result.stderr
