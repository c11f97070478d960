"""Random weights that keep activations at their size, beside those that training starts from."""

from __future__ import annotations

import pytest
import torch

from fastcnn.models import create_model, create_untrained_model, list_models, model_spec

# Of the ImageNet families the shallowest and the deepest: without its factor, a residual branch doubles the variance block by block.
DEEPER = ("vgg1[369]*", "resnet34", "resnet50", "resnet101", "preact_resnet34", "preact_resnet50", "preact_resnet101", "densenet1[67]*")
MODELS = sorted(set(list_models()) - {name for pattern in DEEPER for name in list_models(pattern)})
SIZES = {"alexnet": 127, "inception_v3": 107, "inception_v4": 107}


def pictures(name: str) -> torch.Tensor:
    channels, height, _ = model_spec(name).input_size
    size = SIZES.get(name, 64) if height > 64 else height
    return torch.rand(2, channels, size, size, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", MODELS)
def test_no_activation_leaves_its_size(name):
    """Largest anywhere: 18, in GoogLeNet. float16 ends at 65,504."""
    model = create_model(name)
    sizes: dict[str, float] = {}

    def note(module: torch.nn.Module, args: object, output: torch.Tensor) -> None:
        sizes[type(module).__name__] = max(sizes.get(type(module).__name__, 0.0), float(output.abs().max()))

    for module in model.modules():
        module.register_forward_hook(note)
    with torch.no_grad():
        logits = model(pictures(name))
    assert max(sizes.values()) < 30, sizes
    assert 0.1 < logits.std() < 5


def test_the_models_own_weights_do_leave_it():
    with torch.no_grad():
        assert create_untrained_model("inception_v3")(pictures("inception_v3")).abs().max() > 1e6


def test_values_of_a_seed():
    """What results of earlier versions were measured with: one stream of numbers, in the order of the modules."""
    generator = torch.Generator().manual_seed(3)
    unit = create_model("inception_v3", seed=3).Conv2d_1a_3x3
    expected = {"conv.weight": torch.empty(32, 3, 3, 3).uniform_(-((6 / 27) ** 0.5), (6 / 27) ** 0.5, generator=generator)}
    for name, low, high in (("bn.running_mean", -0.5, 0.5), ("bn.running_var", 0.5, 2.0), ("bn.weight", 0.5, 1.5), ("bn.bias", -0.5, 0.5)):
        expected[name] = torch.empty(32).uniform_(low, high, generator=generator)
    state = unit.state_dict()
    for name, tensor in expected.items():
        torch.testing.assert_close(state[name], tensor, rtol=0, atol=0)


def test_a_residual_branch_counts_by_the_number_of_blocks():
    """ResNet-18 has 8: the end of a branch is drawn from U(0.5, 1.5) and divided by √8; other layers are not."""
    model = create_model("resnet18")
    for stage in (model.layer1, model.layer2, model.layer3, model.layer4):
        for block in stage:
            assert 0.5 / 8**0.5 <= block.bn2.weight.min() <= block.bn2.weight.max() <= 1.5 / 8**0.5
            assert 0.5 <= block.bn1.weight.min() <= block.bn1.weight.max() <= 1.5


def test_where_weights_come_from_is_said():
    assert create_model("simple_cnn", seed=4).fastcnn_info.weights == "random (seed 4), scaled so that no layer inflates its signal"
    untrained = create_untrained_model("simple_cnn", seed=4, num_classes=3)
    assert untrained.fastcnn_info.weights == "random (seed 4)"
    assert untrained.fastcnn_info.options == {"num_classes": 3}
    assert not untrained.training
