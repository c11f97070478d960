"""Operations on values and channels: activations, normalisations, gates, arithmetic, constants, products."""

from __future__ import annotations

from random import Random

from fuzz.registry import Draft, operation

Shape = tuple[int, ...]

_ACTIVATIONS = [
    "F.relu({0})",
    "F.relu6({0})",
    "F.silu({0})",
    "F.gelu({0})",
    "F.gelu({0}, approximate='tanh')",
    "F.hardswish({0})",
    "F.hardsigmoid({0})",
    "F.leaky_relu({0}, 0.2)",
    "F.leaky_relu({0}, -0.3)",
    "F.elu({0}, 0.7)",
    "F.celu({0}, 0.7)",
    "F.selu({0})",
    "F.mish({0})",
    "F.softsign({0})",
    "F.softplus({0})",
    "F.softplus({0}, 2, 1)",
    "F.logsigmoid({0})",
    "F.tanhshrink({0})",
    "F.softshrink({0}, 0.2)",
    "F.hardshrink({0}, 0.3)",
    "F.threshold({0}, 0.1, -2.0)",
    "F.hardtanh({0}, -0.4, 0.9)",
    "F.rrelu({0})",
    "torch.sigmoid({0})",
    "torch.tanh({0})",
    "torch.relu({0})",
    "torch.sin({0})",
    "torch.cos({0})",
    "torch.atan({0})",
    "torch.erf({0})",
    "torch.exp(-{0}.abs())",
    "torch.log1p({0}.abs())",
    "torch.sqrt({0}.abs() + 0.1)",
    "torch.rsqrt({0} ** 2 + 1)",
    "torch.reciprocal({0}.abs() + 1)",
    "{0}.abs()",
    "torch.square({0})",
    "-{0}",
    "{0}.clamp(-0.5, 1.5)",
    "{0}.clamp(min=-1)",
    "{0}.clamp(max=0.7)",
    "torch.clamp_min({0}, 0.0)",
    "F.relu({0}.clamp(-1.0, -0.1))",
    "F.relu({0}.clamp(max=-0.2)) + {0}",
    "F.relu({0}.clamp(-1.0, 0.5))",
    "F.relu(F.relu({0}))",
    "F.relu6({0} * 6)",
    "{0} * F.relu6({0} + 3) / 6",
    "F.relu(-{0})",
    "F.relu({0}.clamp(min=-0.5))",
    "F.hardtanh({0}, -2.0, -0.5)",
    "F.hardtanh({0}, 0.1, 0.8)",
    "torch.log(torch.sigmoid({0}))",
    "torch.pow({0}.abs() + 0.1, 1.5)",
    "{0} ** 3 * 0.1",
    "torch.where({0} > 0, {0}, {0} * 0.1)",
    "torch.nan_to_num({0})",
    "torch.expm1(-{0}.abs())",
]

_ACTIVATION_MODULES = [
    "nn.ReLU(inplace=True)",
    "nn.PReLU()",
    "nn.PReLU({c})",
    "nn.SiLU(inplace=True)",
    "nn.ReLU6(inplace=True)",
    "nn.Hardswish(inplace=True)",
    "nn.RReLU()",
    "nn.Softplus()",
    "nn.ELU(inplace=True)",
    "nn.GELU()",
    "nn.Identity()",
    "nn.Dropout(0.5)",
    "nn.Dropout2d(0.3)",
    "nn.Threshold(0.1, 0.0)",
]


@operation(2, 3, 4, weight=6)
def activation(dice: Random, shape: Shape) -> Draft:
    return Draft(dice.choice(_ACTIVATIONS))


@operation(2, 3, 4, weight=2)
def activation_module(dice: Random, shape: Shape) -> Draft:
    return Draft("{m}({0})", dice.choice(_ACTIVATION_MODULES))


@operation(2, 3, 4, weight=2)
def relu(dice: Random, shape: Shape) -> Draft:
    return Draft("F.relu({0})")


@operation(2, 3, 4)
def softmax(dice: Random, shape: Shape) -> Draft:
    return Draft(f"F.{dice.choice(['softmax', 'softmin', 'log_softmax'])}({{0}}, dim={dice.choice([1, -1])})")


@operation(2, 3, 4)
def gated_linear_unit(dice: Random, shape: Shape) -> Draft | None:
    return Draft("F.glu({0}, 1)") if shape[0] % 2 == 0 else None


@operation(4, weight=4)
def batch_norm(dice: Random, shape: Shape) -> Draft:
    return Draft("{m}({0})", dice.choice(["nn.BatchNorm2d({c})", "nn.BatchNorm2d({c}, eps=0.001)", "nn.BatchNorm2d({c}, affine=False)"]))


@operation(2, 3)
def batch_norm_1d(dice: Random, shape: Shape) -> Draft:
    return Draft("{m}({0})", "nn.BatchNorm1d({c})")


@operation(3, 4, weight=1.5)
def group_norm(dice: Random, shape: Shape) -> Draft:
    groups = dice.choice([size for size in range(1, shape[0] + 1) if shape[0] % size == 0])
    return Draft("{m}({0})", f"nn.GroupNorm({groups}, {{c}}, eps=0.01{dice.choice(['', ', affine=False'])})")


@operation(4)
def instance_norm(dice: Random, shape: Shape) -> Draft:
    kind = dice.choice(["", ", affine=True", ", track_running_stats=True", ", affine=True, track_running_stats=True"])
    return Draft("{m}({0})", f"nn.InstanceNorm2d({{c}}, eps=0.01{kind})")


@operation(2, 3, 4, weight=1.5)
def layer_norm(dice: Random, shape: Shape) -> Draft:
    if len(shape) == 3:
        if dice.random() < 0.5:
            return Draft("{m}({0}.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)", "nn.LayerNorm({c}, eps=0.01)")
        return Draft("{m}({0})", dice.choice(["nn.LayerNorm([{c}, {h}, {w}], eps=0.01)", "nn.LayerNorm({last}, eps=0.01)"]))
    return Draft(
        "{m}({0})",
        dice.choice(["nn.LayerNorm({last}, eps=0.01)", "nn.LayerNorm({last}, eps=0.01, elementwise_affine=False)", "nn.RMSNorm({last}, eps=0.01)"]),
    )


@operation(4, weight=0.5)
def local_response_norm(dice: Random, shape: Shape) -> Draft:
    return Draft("{m}({0})", f"nn.LocalResponseNorm({dice.randint(2, 5)}, alpha=0.1, k=2.0)")


@operation(2, 3, 4)
def unit_length(dice: Random, shape: Shape) -> Draft:
    return Draft("F.normalize({0}, dim=1, eps=0.1)")


@operation(4, weight=2)
def gate(dice: Random, shape: Shape) -> Draft:
    pooled = dice.choice(["{0}.mean((2, 3), keepdim=True)", "F.adaptive_avg_pool2d({0}, 1)", "{0}.amax((2, 3), keepdim=True)"])
    function = dice.choice(["torch.sigmoid", "F.hardsigmoid", "torch.tanh"])
    return Draft(f"{{0}} * {function}({{m}}({pooled}))", "nn.Conv2d({c}, {c}, 1)")


@operation(4)
def channel_attention(dice: Random, shape: Shape) -> Draft:
    return Draft("{0} * torch.sigmoid({m}({0}.mean((2, 3)).unsqueeze(1))).squeeze(1)[:, :, None, None]", "nn.Conv1d(1, 1, 3, padding=1)")


@operation(3)
def attention(dice: Random, shape: Shape) -> Draft:
    return Draft(
        dice.choice(
            [
                "torch.softmax({0} @ {0}.transpose(1, 2) / 4, -1) @ {0}",
                "torch.bmm({0}, {0}.transpose(1, 2)) / 8",
                "torch.einsum('ncl,nkl->nck', {0}, {0}) / 8",
                "F.scaled_dot_product_attention({0}, {0}, {0})",
            ]
        )
    )


@operation(2, 3, weight=2)
def linear(dice: Random, shape: Shape) -> Draft:
    return Draft("{m}({0})", f"nn.Linear({{last}}, {dice.randint(1, 8)}{dice.choice(['', ', bias=False'])})")


@operation(2, 3, 4, weight=3)
def arithmetic_with_number(dice: Random, shape: Shape) -> Draft:
    return Draft(
        dice.choice(
            [
                "{0} + 0.5",
                "{0} - 1",
                "1 - {0}",
                "{0} * 2",
                "{0} / 3",
                "{0} * -0.7",
                "torch.sub(2.0, {0}, alpha=0.5)",
                "torch.add({0}, 1, alpha=2)",
                "torch.rsub({0}, 1.5)",
                "2 / ({0}.abs() + 1)",
                "torch.maximum({0}, torch.tensor(0.1))",
                "{0} % 10 - {0}",
                "torch.lerp({0}, -{0}, 0.3)",
            ]
        )
    )


@operation(4, weight=2)
def arithmetic_with_constant(dice: Random, shape: Shape) -> Draft:
    made = dice.choice(
        [
            "nn.Parameter(torch.randn(1, {c}, 1, 1))",
            "nn.Parameter(torch.randn({c}, 1, 1))",
            "nn.Buffer(torch.rand(1, {c}, {h}, {w}))",
            "nn.Parameter(torch.randn(1, 1, {h}, {w}))",
            "nn.Parameter(torch.randn({w}))",
            "torch.full((1, {c}, 1, 1), 0.3)",
            "nn.Buffer(torch.arange({w}))",
            "nn.Buffer(torch.tensor(0.7))",
            "nn.Parameter(torch.rand(1))",
        ]
    )
    return Draft(dice.choice(["{0} + {m}", "{0} * {m}", "{0} - {m}", "{m} - {0}", "{0} / ({m}.abs() + 0.5)", "torch.add({0}, {m}, alpha=0.5)"]), made)


@operation(2, 3, 4, weight=4)
def arithmetic_of_two(dice: Random, shape: Shape) -> Draft:
    return Draft(
        dice.choice(
            [
                "{0} + {1}",
                "{0} - {1}",
                "{0} * {1}",
                "{1} + F.relu({0})",
                "torch.maximum({0}, {1})",
                "torch.minimum({0}, {1})",
                "torch.add({0}, {1}, alpha=2)",
                "torch.sub({0}, {1}, alpha=0.5)",
                "{0} / ({1}.abs() + 1)",
                "F.relu({0} + {1})",
                "torch.lerp({0}, {1}, 0.25)",
                "torch.where({1} > 0, {0}, {1})",
                "torch.addcmul({0}, {0}, {1}, value=0.5)",
                "torch.atan2({0}, {1}.abs() + 1)",
                "torch.hypot({0}, {1})",
            ]
        ),
        others=1,
        loose=dice.random() < 0.3,
    )


@operation(4, weight=3)
def residual(dice: Random, shape: Shape) -> Draft:
    end = dice.choice(["{0} + {m}({0})", "F.relu({m}({0}) + {0})", "{0} - {m}({0})", "{m}({0}).relu_() + {0}", "{m}({0}).add_({0}).relu_()"])
    body = dice.choice(
        [
            "nn.Conv2d({c}, {c}, 3, padding=1)",
            "nn.Sequential(nn.Conv2d({c}, {c}, 3, padding=1, bias=False), nn.BatchNorm2d({c}))",
            "nn.Sequential(nn.BatchNorm2d({c}), nn.ReLU(), nn.Conv2d({c}, {c}, 1))",
            "nn.Sequential(nn.Conv2d({c}, {c}, 3, padding=1, groups={c}), nn.BatchNorm2d({c}), nn.ReLU(inplace=True), nn.Conv2d({c}, {c}, 1))",
        ]
    )
    return Draft(end, body)
