"""Operations over positions: convolutions, pools, resizes, paddings."""

from __future__ import annotations

from random import Random

from fuzz.registry import Draft, channels, maybe, operation, options, sides

Shape = tuple[int, ...]


@operation(4, weight=5)
def convolution(dice: Random, shape: Shape) -> Draft:
    padding: object = dice.choice([None, 0, 1, 2, (1, 0), (2, 1), "'same'", "'valid'"])
    mode = maybe(dice, dice.choice(["'reflect'", "'replicate'", "'circular'"]), 0.15)
    stride = maybe(dice, sides(dice, 1, 3)) if padding != "'same'" else None
    dilation = maybe(dice, sides(dice, 1, 2), 0.25)
    out = channels(dice, 9)
    return Draft(
        "{m}({0})",
        f"nn.Conv2d({{c}}, {out}, {{options}})",
        options(kernel_size=sides(dice, 1, 5), stride=stride, padding=padding, dilation=dilation, padding_mode=mode, bias=maybe(dice, False, 0.3)),
    )


@operation(4, weight=2)
def projection(dice: Random, shape: Shape) -> Draft:
    return Draft("{m}({0})", f"nn.Conv2d({{c}}, {channels(dice, 9)}, {{options}})", options(kernel_size=1, bias=maybe(dice, False, 0.3)))


@operation(4, weight=2)
def grouped_convolution(dice: Random, shape: Shape) -> Draft:
    groups = dice.choice([size for size in range(1, shape[0] + 1) if shape[0] % size == 0])
    out = groups * dice.randint(1, 3)
    return Draft(
        "{m}({0})",
        f"nn.Conv2d({{c}}, {out}, {{options}})",
        options(
            kernel_size=sides(dice, 1, 4),
            groups=groups,
            padding=maybe(dice, sides(dice, 0, 2)),
            stride=maybe(dice, sides(dice, 1, 3), 0.3),
            dilation=maybe(dice, sides(dice, 1, 3), 0.3),
        ),
    )


@operation(4, weight=2)
def transposed_convolution(dice: Random, shape: Shape) -> Draft:
    stride = sides(dice, 1, 3)
    dilation = maybe(dice, sides(dice, 1, 3), 0.4)
    groups = dice.choice([size for size in range(1, shape[0] + 1) if shape[0] % size == 0]) if dice.random() < 0.3 else 1
    out = groups * dice.randint(1, 4) if groups > 1 else channels(dice, 4)
    return Draft(
        "{m}({0})",
        f"nn.ConvTranspose2d({{c}}, {out}, {{options}})",
        options(
            kernel_size=sides(dice, 1, 4),
            stride=stride,
            padding=maybe(dice, sides(dice, 0, 2)),
            output_padding=maybe(dice, sides(dice, 0, 2), 0.4),
            dilation=dilation,
            groups=groups if groups > 1 else None,
        ),
    )


@operation(4)
def convolution_with_computed_weights(dice: Random, shape: Shape) -> Draft:
    out = dice.randint(1, 5)
    scale = dice.choice(["{m} / {m}.norm(dim=(1, 2, 3), keepdim=True)", "{m} - {m}.mean((1, 2, 3), keepdim=True)", "torch.tanh({m})"])
    bias = dice.choice(["", f", bias=torch.arange({out}).float()", f", bias=torch.full(({out},), 0.25)"])
    return Draft(f"F.conv2d({{0}}, {scale}{bias}, padding=1)", f"nn.Parameter(torch.randn({out}, {{c}}, 3, 3) * 0.3)")


@operation(3, weight=2)
def convolution_1d(dice: Random, shape: Shape) -> Draft:
    return Draft(
        "{m}({0})",
        f"nn.Conv1d({{c}}, {dice.randint(1, 6)}, {{options}})",
        options(kernel_size=dice.randint(1, 4), padding=maybe(dice, dice.choice([1, 2, "'same'"])), dilation=maybe(dice, 2, 0.2)),
    )


@operation(4, weight=3)
def max_pool(dice: Random, shape: Shape) -> Draft:
    return Draft(
        "F.max_pool2d({0}, {options})",
        "",
        options(
            kernel_size=sides(dice, 2, 4),
            stride=maybe(dice, sides(dice, 1, 4)),
            padding=maybe(dice, sides(dice, 0, 2)),
            dilation=maybe(dice, sides(dice, 1, 2), 0.2),
            ceil_mode=maybe(dice, True),
        ),
    )


@operation(4, weight=3)
def average_pool(dice: Random, shape: Shape) -> Draft:
    return Draft(
        "F.avg_pool2d({0}, {options})",
        "",
        options(
            kernel_size=sides(dice, 1, 4),
            stride=maybe(dice, sides(dice, 1, 4)),
            padding=maybe(dice, sides(dice, 0, 2)),
            ceil_mode=maybe(dice, True),
            count_include_pad=maybe(dice, False),
            divisor_override=maybe(dice, dice.randint(1, 9), 0.3),
        ),
    )


@operation(4, weight=0.5)
def power_pool(dice: Random, shape: Shape) -> Draft:
    return Draft("F.lp_pool2d({0}.abs() + 0.1, 2, {options})", "", options(kernel_size=2, stride=maybe(dice, 1), ceil_mode=maybe(dice, True)))


@operation(3, weight=2)
def pool_1d(dice: Random, shape: Shape) -> Draft:
    name = dice.choice(["max", "avg"])
    own = options(count_include_pad=maybe(dice, False)) if name == "avg" else ()
    return Draft(
        f"F.{name}_pool1d({{0}}, {{options}})",
        "",
        options(kernel_size=dice.randint(2, 3), stride=maybe(dice, dice.randint(1, 3)), padding=maybe(dice, 1), ceil_mode=maybe(dice, True)) + own,
    )


@operation(4, weight=2)
def adaptive_pool(dice: Random, shape: Shape) -> Draft:
    size = dice.choice([1, 2, 3, 5, 7, (1, 3), (2, 5), (None, 2), (4, 1)])
    return Draft(f"F.adaptive_{dice.choice(['avg', 'max'])}_pool2d({{0}}, {size})")


@operation(3)
def adaptive_pool_1d(dice: Random, shape: Shape) -> Draft:
    return Draft(f"F.adaptive_{dice.choice(['avg', 'max'])}_pool1d({{0}}, {dice.randint(1, 5)})")


@operation(4, weight=4)
def resize(dice: Random, shape: Shape) -> Draft:
    mode = dice.choice(["nearest", "nearest-exact", "bilinear", "bicubic", "area"])
    smooth = mode in ("bilinear", "bicubic")
    size = maybe(dice, sides(dice, 1, 12))
    scale = None if size is not None else dice.choice([2, 0.5, 1.5, 3, 0.7, (2.0, 0.6), 1.3])
    return Draft(
        "F.interpolate({0}, {options})",
        "",
        options(
            size=size,
            scale_factor=scale,
            mode=repr(mode),
            align_corners=maybe(dice, True, 0.4) if smooth else None,
            antialias=maybe(dice, True, 0.3) if smooth else None,
            recompute_scale_factor=maybe(dice, True, 0.2) if scale is not None else None,
        ),
    )


@operation(4, weight=2)
def padding(dice: Random, shape: Shape) -> Draft:
    amounts = [dice.randint(0, 3) for _ in range(4)]
    mode = dice.choice(["constant", "reflect", "replicate", "circular"])
    if mode == "constant" and dice.random() < 0.3:
        amounts = [dice.randint(-1, 2) for _ in range(dice.choice([2, 4, 6]))]
    return Draft(f"F.pad({{0}}, {amounts}, {{options}})", "", options(mode=repr(mode), value=maybe(dice, 0.5, 0.3) if mode == "constant" else None))


@operation(4)
def padding_module(dice: Random, shape: Shape) -> Draft:
    name = dice.choice(["ZeroPad2d", "ReflectionPad2d", "ReplicationPad2d", "CircularPad2d"])
    return Draft("{m}({0})", f"nn.{name}({dice.randint(1, 2)})")


@operation(4)
def rearrangement(dice: Random, shape: Shape) -> Draft | None:
    count, height, width = shape
    choices = ["F.unfold({0}, 2, stride=2)"]
    choices += ["F.pixel_shuffle({0}, 2)"] * (count % 4 == 0)
    choices += ["F.pixel_unshuffle({0}, 2)"] * (height % 2 == 0 and width % 2 == 0)
    choices += [f"F.channel_shuffle({{0}}, {groups})" for groups in (2, 3) if count % groups == 0]
    choices += ["torch.roll({0}, 1, 2)", "torch.flip({0}, (3,))"]
    return Draft(dice.choice(choices))


@operation(4, weight=0.3)
def fourier(dice: Random, shape: Shape) -> Draft:
    return Draft("torch.fft.irfft2(torch.fft.rfft2({0}, norm='ortho') * 0.5, s={0}.shape[-2:], norm='ortho')")


@operation(4, weight=0.3)
def sampling(dice: Random, shape: Shape) -> Draft:
    grid = "torch.tanh({0}[:, :1].permute(0, 2, 3, 1).expand(-1, -1, -1, 2))"
    return Draft(
        f"F.grid_sample({{0}}, {grid}, {{options}})", "", options(align_corners=dice.choice([True, False]), padding_mode=maybe(dice, "'border'"))
    )
