"""The layer table against the tables that the lecture prints."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fastcnn.errors import InputError
from fastcnn.models import create_model, list_models, model_spec
from fastcnn.models.layer_table import LayerRow, layer_table


def table_of(name: str, batch_size: int = 1, train: bool = False):
    return layer_table(create_model(name).train(train), model_spec(name).input_size, batch_size)


def weighted(rows: tuple[LayerRow, ...]) -> list[LayerRow]:
    return [row for row in rows if row.parameters]


# (kind, kernel, input shape, output shape, parameters, mult-adds), in the order of the lecture's table
VGG_CIFAR10 = [
    ("Conv2d", (3, 3), (1, 3, 32, 32), (1, 64, 32, 32), 1_792, 1_835_008),
    ("Conv2d", (3, 3), (1, 64, 16, 16), (1, 128, 16, 16), 73_856, 18_907_136),
    ("Conv2d", (3, 3), (1, 128, 8, 8), (1, 256, 8, 8), 295_168, 18_890_752),
    ("Conv2d", (3, 3), (1, 256, 8, 8), (1, 256, 8, 8), 590_080, 37_765_120),
    ("Conv2d", (3, 3), (1, 256, 4, 4), (1, 512, 4, 4), 1_180_160, 18_882_560),
    ("Conv2d", (3, 3), (1, 512, 4, 4), (1, 512, 4, 4), 2_359_808, 37_756_928),
    ("Conv2d", (3, 3), (1, 512, 2, 2), (1, 512, 2, 2), 2_359_808, 9_439_232),
    ("Conv2d", (3, 3), (1, 512, 2, 2), (1, 512, 2, 2), 2_359_808, 9_439_232),
    ("Linear", None, (1, 512), (1, 512), 262_656, 262_656),
    ("Linear", None, (1, 512), (1, 512), 262_656, 262_656),
    ("Linear", None, (1, 512), (1, 10), 5_130, 5_130),
]

# (kernel, parameters, mult-adds)
NIN_CIFAR10 = [
    ((3, 3), 2_688, 2_752_512),
    ((1, 1), 9_312, 9_535_488),
    ((1, 1), 9_312, 9_535_488),
    ((3, 3), 221_440, 49_824_000),
    ((1, 1), 65_792, 14_803_200),
    ((1, 1), 65_792, 14_803_200),
    ((3, 3), 885_120, 43_370_880),
    ((1, 1), 147_840, 7_244_160),
    ((1, 1), 147_840, 7_244_160),
    ((3, 3), 34_570, 311_130),
    ((1, 1), 110, 990),
    ((1, 1), 110, 990),
]

GOOGLENET_CIFAR10 = [
    # stem
    *[((7, 7), 9_472, 2_424_832), ((1, 1), 4_160, 266_240), ((3, 3), 110_784, 7_090_176)],
    # 3a
    *[((1, 1), 12_352, 197_632), ((1, 1), 18_528, 296_448), ((3, 3), 110_720, 1_771_520)],
    *[((1, 1), 3_088, 49_408), ((5, 5), 12_832, 205_312), ((1, 1), 6_176, 98_816)],
    # 3b
    *[((1, 1), 32_896, 526_336), ((1, 1), 32_896, 526_336), ((3, 3), 221_376, 3_542_016)],
    *[((1, 1), 8_224, 131_584), ((5, 5), 76_896, 1_230_336), ((1, 1), 16_448, 263_168)],
    # 4a
    *[((1, 1), 92_352, 369_408), ((1, 1), 46_176, 184_704), ((3, 3), 179_920, 719_680)],
    *[((1, 1), 7_696, 30_784), ((5, 5), 19_248, 76_992), ((1, 1), 30_784, 123_136)],
    # first auxiliary head
    *[((1, 1), 65_664, 262_656), (None, 525_312, 525_312), (None, 10_250, 10_250)],
    # 4b
    *[((1, 1), 82_080, 328_320), ((1, 1), 57_456, 229_824), ((3, 3), 226_016, 904_064)],
    *[((1, 1), 12_312, 49_248), ((5, 5), 38_464, 153_856), ((1, 1), 32_832, 131_328)],
    # 4c
    *[((1, 1), 65_664, 262_656), ((1, 1), 65_664, 262_656), ((3, 3), 295_168, 1_180_672)],
    *[((1, 1), 12_312, 49_248), ((5, 5), 38_464, 153_856), ((1, 1), 32_832, 131_328)],
    # 4d
    *[((1, 1), 57_456, 229_824), ((1, 1), 73_872, 295_488), ((3, 3), 373_536, 1_494_144)],
    *[((1, 1), 16_416, 65_664), ((5, 5), 51_264, 205_056), ((1, 1), 32_832, 131_328)],
    # second auxiliary head
    *[((1, 1), 67_712, 270_848), (None, 525_312, 525_312), (None, 10_250, 10_250)],
    # 4e
    *[((1, 1), 135_424, 541_696), ((1, 1), 84_640, 338_560), ((3, 3), 461_120, 1_844_480)],
    *[((1, 1), 16_928, 67_712), ((5, 5), 102_528, 410_112), ((1, 1), 67_712, 270_848)],
    # 5a
    *[((1, 1), 213_248, 213_248), ((1, 1), 133_280, 133_280), ((3, 3), 461_120, 461_120)],
    *[((1, 1), 26_656, 26_656), ((5, 5), 102_528, 102_528), ((1, 1), 106_624, 106_624)],
    # 5b
    *[((1, 1), 319_872, 319_872), ((1, 1), 159_936, 159_936), ((3, 3), 663_936, 663_936)],
    *[((1, 1), 39_984, 39_984), ((5, 5), 153_728, 153_728), ((1, 1), 106_624, 106_624)],
    # the classifier, which the lecture's model lacks
    (None, 10_250, 10_250),
]


def test_vgg_cifar10():
    table = table_of("vgg_cifar10")
    rows = weighted(table.rows)
    assert [(row.type, row.kernel, row.input_shape, row.output_shape, row.parameters, row.mult_adds) for row in rows] == VGG_CIFAR10
    assert table.totals.parameters == table.totals.trainable == 9_750_922
    assert table.totals.not_run == 0
    assert table.totals.mult_adds == sum(row[-1] for row in VGG_CIFAR10)
    # 1.22 MB of activations and 39.00 MB of parameters are the lecture's figures
    assert f"{table.totals.activation_mb:.2f}" == "1.22"
    assert f"{table.totals.parameter_mb:.2f}" == "39.00"
    assert table.totals.input_mb == 3 * 32 * 32 * 4 / 1e6


def test_hierarchy_is_that_of_the_lecture():
    """Labels such as "Conv2d: 3-5", with the modules in the order in which they run."""
    labels = [f"{row.type}: {row.depth}-{row.index}" for row in table_of("vgg_cifar10").rows if row.depth]
    assert labels[:5] == ["Sequential: 1-1", "Sequential: 2-1", "Conv2d: 3-1", "ReLU: 3-2", "MaxPool2d: 3-3"]
    assert "Conv2d: 3-19" in labels
    assert labels[-8:] == ["Flatten: 2-6", "Linear: 2-7", "ReLU: 2-8", "Dropout: 2-9", "Linear: 2-10", "ReLU: 2-11", "Dropout: 2-12", "Linear: 2-13"]


def test_rows_of_the_model_and_of_a_pool():
    rows = {row.name: row for row in table_of("vgg_cifar10").rows}
    assert rows[""] == LayerRow("", "VGGCIFAR10", 0, 1, None, (1, 3, 32, 32), (1, 10), 0, 0, False)
    assert rows["features.0.2"] == LayerRow("features.0.2", "MaxPool2d", 3, 3, (2, 2), (1, 64, 32, 32), (1, 64, 16, 16), 0, 0, True)


def test_nin_cifar10():
    table = table_of("nin_cifar10")
    assert [(row.kernel, row.parameters, row.mult_adds) for row in weighted(table.rows)] == NIN_CIFAR10
    assert table.totals.parameters == 1_589_926


def test_googlenet_cifar10():
    """The lecture runs the auxiliary heads as well: that is training mode."""
    table = table_of("googlenet_cifar10", train=True)
    assert [(row.kernel, row.parameters, row.mult_adds) for row in weighted(table.rows)] == GOOGLENET_CIFAR10
    assert table.totals.parameters == 7_188_302
    assert table.totals.not_run == 0
    # The lecture's model has no classifier and comes to 29.28 MB.
    without_classifier = table.totals.total_mb - (10_250 * 4 + 2 * 10 * 4) / 1e6
    assert f"{without_classifier:.2f}" == "29.28"


def test_auxiliary_heads_do_not_run_in_eval_mode():
    table = table_of("googlenet_cifar10")
    assert table.totals.not_run == 1_204_500
    assert table.totals.parameters == 7_188_302
    assert not any(row.name.startswith("aux") for row in table.rows)


def test_figures_of_the_literature():
    """Multiply-adds of convolutions and linear layers without their biases are those that torchvision publishes (in units of 10^9)."""
    for name, published in {"resnet50": 4.089, "vgg16": 15.470, "inception_v3": 5.713, "squeezenet1_1": 0.349, "densenet121": 2.834}.items():
        model = create_model(name)
        modules = dict(model.named_modules())
        biases = 0
        table = layer_table(model, model_spec(name).input_size)
        for row in table.rows:
            if getattr(modules[row.name], "bias", None) is not None and row.mult_adds:
                biases += row.mult_adds * modules[row.name].bias.numel() // row.parameters
        assert f"{(table.totals.mult_adds - biases) / 1e9:.3f}" == f"{published:.3f}", name


def test_batch_size():
    one, four = table_of("simple_cnn"), table_of("simple_cnn", batch_size=4)
    assert four.totals.mult_adds == 4 * one.totals.mult_adds
    assert four.totals.activation_mb == pytest.approx(4 * one.totals.activation_mb)
    assert four.totals.parameters == one.totals.parameters
    assert four.rows[0].input_shape == (4, 1, 28, 28)


@pytest.mark.parametrize("name", list_models())
def test_rows_add_up(name):
    spec = model_spec(name)
    with torch.device("meta"):
        model = spec.load_builder()().eval()
    table = layer_table(model, spec.input_size)
    assert sum(row.parameters for row in table.rows) + table.totals.not_run == table.totals.parameters
    assert table.rows[0].output_shape == (1, spec.num_classes)
    assert all(row.output_shape for row in table.rows)


class Shared(nn.Module):
    """Calls one convolution twice, returns a dictionary, and has an operation that the meta device cannot run."""

    def __init__(self, needs_values: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1, groups=3)
        self.bn = nn.BatchNorm2d(3)
        self.needs_values = needs_values

    def forward(self, x):
        x = self.bn(self.conv(self.conv(x)))
        if self.needs_values and x.sum().item() > 1e9:
            x = x + 1
        return {"logits": [x]}


@pytest.mark.parametrize("needs_values", [False, True])
def test_a_module_called_twice(needs_values):
    model = Shared(needs_values).train()
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    table = layer_table(model, (3, 8, 8), batch_size=2)
    assert [(row.name, row.parameters, row.mult_adds, row.output_shape) for row in table.rows] == [
        ("", 0, 0, (2, 3, 8, 8)),
        ("conv", 30, 30 * 64 * 2, (2, 3, 8, 8)),
        ("conv", 0, 30 * 64 * 2, (2, 3, 8, 8)),
        ("bn", 6, 0, (2, 3, 8, 8)),
    ]
    assert model.training
    assert not model._forward_hooks
    assert not model.conv._forward_pre_hooks
    torch.testing.assert_close(dict(model.state_dict()), before, rtol=0, atol=0)


def test_wrong_input_size():
    with pytest.raises(InputError, match=r"AlexNet takes images of shape \(N, 3, H, W\)"):
        layer_table(create_model("alexnet"), (1, 224, 224))
