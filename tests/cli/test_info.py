from __future__ import annotations

import json
import re

import pytest
import torch

from fastcnn.models import create_model


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


def test_weights_and_input(cli, tmp_path):
    answer = json.loads(cli("info", "googlenet", "--json").stdout)
    assert answer["weights"] == "random (seed 0), scaled so that no layer inflates its signal"
    assert (answer["options"]["transform_input"], answer["preprocessing"]["mean"]) == (False, [0.5, 0.5, 0.5])
    transformed = cli("info", "googlenet", "--transform-input", "--num-classes", 3, "--model-arg", "aux_logits=false", "--json")
    answer = json.loads(transformed.stdout)
    assert answer["options"] == {"num_classes": 3, "aux_logits": False, "transform_input": True, "dropout": 0.2, "dropout_aux": 0.7}
    assert answer["preprocessing"]["mean"] == [0.485, 0.456, 0.406]
    shown = cli("info", "simple_cnn", "--weights", "mnist").stdout
    assert re.search(r"^weights +shipped: mnist$", shown, re.MULTILINE)
    assert re.search(r"^input +L, resized to 28", shown, re.MULTILINE)


def test_two_sets_of_weights(cli, tmp_path):
    states = {kind: create_model("simple_cnn", seed=seed).state_dict() for seed, kind in enumerate(("model", "model_ema"))}
    torch.save(states, tmp_path / "w.pth.tar")
    loud = cli("info", "simple_cnn", "--weights", "w.pth.tar")
    assert loud.stderr.startswith("warning: w.pth.tar holds two sets of weights: 'model_ema', the moving average, is taken")
    quiet = cli("info", "simple_cnn", "--weights", "w.pth.tar", "--weights-set", "plain")
    assert (quiet.exit_code, quiet.stderr) == (0, "")


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["resnet18", "--transform-input"], "resnet18 has no option 'transform_input'; it has num_classes, zero_init_residual"),
        (["googlenet", "--model-arg", "depth=3"], "googlenet takes no argument 'depth'; it takes num_classes, aux_logits, transform_input, dropout"),
        (["googlenet", "--model-arg", "dropout=much"], "the model argument dropout is a number, not 'much'"),
        (["googlenet", "--num-classes", "3", "--model-arg", "num_classes=3"], "num_classes is given both as an option and as --model-arg"),
        (["simple_cnn", "--weights", "five.pth"], "num_classes=5 (--num-classes 5) fits"),
    ],
)
def test_wrong_options_of_the_model(cli, tmp_path, args, said):
    torch.save(create_model("simple_cnn", num_classes=5).state_dict(), tmp_path / "five.pth")
    result = cli("info", *args)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.count("\n") == 1
    assert said in result.stderr
