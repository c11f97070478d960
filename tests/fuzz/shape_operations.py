"""Operations on shapes and memory: views, slices, concats, reductions, and writes into what others read."""

from __future__ import annotations

from random import Random

from fuzz.registry import Draft, channels, maybe, operation, options

Shape = tuple[int, ...]


@operation(4, weight=4)
def concat(dice: Random, shape: Shape) -> Draft:
    others = dice.choice([0, 1, 1, 2, 2, 3, 6])
    names = [f"{{{index}}}" for index in range(others + 1)]
    branches = [*names, *dice.choices(names, k=dice.choice([0, 0, 1, 2]))]
    dice.shuffle(branches)
    return Draft(f"torch.cat([{', '.join(branches)}], {dice.choice([1, 1, 1, -1, 2])})", others=others, loose=True)


@operation(4, weight=2)
def inception(dice: Random, shape: Shape) -> Draft:
    pool = dice.choice(["F.avg_pool2d({0}, 3, 1, 1)", "F.max_pool2d({0}, 3, 1, 1)", "F.avg_pool2d({0}, 3, 1, 1, count_include_pad=False)"])
    branches = [f"nn.Conv2d({{c}}, {channels(dice, 4)}, {kernel})" for kernel in ("1", "3, padding=1", "1")]
    return Draft(f"torch.cat([{{m}}[0]({{0}}), {{m}}[1]({{0}}), {{m}}[2]({pool})], 1)", f"nn.ModuleList([{', '.join(branches)}])")


@operation(2, 3, 4)
def stack(dice: Random, shape: Shape) -> Draft:
    return Draft(f"torch.stack([{{0}}, {{1}}], {dice.randint(1, 2)}).flatten(1, 2)", others=1)


@operation(4, weight=2)
def split(dice: Random, shape: Shape) -> Draft | None:
    count = shape[0]
    if count < 2:
        return None
    cut = dice.randint(1, count - 1)
    return Draft(
        dice.choice(
            [
                f"torch.cat({{0}}.split([{cut}, {count - cut}], 1)[::-1], 1)",
                "torch.cat([part * 0.5 for part in {0}.chunk(2, 1)], 1)",
                "torch.cat([F.relu({0}.chunk(3, 1)[0]), {0}.chunk(3, 1)[-1]], 1)",
                f"F.relu({{0}}.split({cut}, 1)[0])",
                "torch.cat([F.relu(a) for a in torch.tensor_split({0}, 2, dim=1)], 1)",
                "sum({0}.unbind(1)).unsqueeze(1)",
                "torch.cat([F.max_pool2d({0}[:, :1], 3, 1, 1), {0}[:, 1:]], 1)",
            ]
        )
    )


@operation(4, weight=2)
def slicing(dice: Random, shape: Shape) -> Draft:
    count, height, width = shape
    top, left = dice.randint(0, max(height - 2, 0)), dice.randint(0, max(width - 2, 0))
    return Draft(
        dice.choice(
            [
                f"{{0}}[:, :, {top}:, {left}:]",
                "{0}[:, :, ::2, ::2]",
                "{0}[:, :, 1:-1, 1:-1]",
                "{0}[..., :-1]",
                f"{{0}}[:, :{max(1, count - 1)}]",
                "{0}[:, -1:]",
                "{0}[:, ::2]",
                "{0}[:, [0, 0, -1]]",
                "{0}.narrow(1, 0, 1)",
                "{0}.index_select(1, torch.tensor([0, 0]))",
                "{0}[:, 0, None]",
                "torch.cat([{0}[:, :, 0::2, :], {0}[:, :, 1::2, :]][:1], 1)",
                "{0}.select(1, 0).unsqueeze(1)",
                "{0}[:, None, 0]",
            ]
        )
    )


@operation(4, weight=2)
def view(dice: Random, shape: Shape) -> Draft:
    count = shape[0]
    groups = dice.choice([size for size in range(1, count + 1) if count % size == 0])
    return Draft(
        dice.choice(
            [
                f"{{0}}.view({{0}}.shape[0], {groups}, -1, *{{0}}.shape[2:]).transpose(1, 2).reshape({{0}}.shape)",
                f"{{0}}.reshape({{0}}.size(0), {groups}, {count // groups}, *{{0}}.shape[2:]).mean(1)",
                f"{{0}}.unflatten(1, ({groups}, -1)).amax(2)",
                "{0}.transpose(2, 3)",
                "{0}.permute(0, 3, 1, 2)",
                "{0}.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)",
                "{0}.contiguous(memory_format=torch.channels_last)",
                "{0}.contiguous()",
                "{0}.clone()",
                "{0}.movedim(1, -1).movedim(-1, 1)",
                "{0}.expand(-1, -1, -1, -1)",
                "{0}.mean(1, keepdim=True).expand_as({0})",
                "{0}.mean(1, keepdim=True).repeat(1, 2, 1, 1)",
                "{0}.repeat_interleave(2, dim=1)",
                "torch.tile({0}, (1, 1, 2, 1))",
            ]
        )
    )


@operation(4, weight=2)
def flatten(dice: Random, shape: Shape) -> Draft:
    return Draft(
        dice.choice(
            [
                "{0}.flatten(1)",
                "torch.flatten({0}, 1)",
                "{0}.view({0}.size(0), -1)",
                "{0}.reshape({0}.shape[0], -1)",
                "{0}.view(-1, {size})",
                "{0}.flatten(2)",
                "{0}.flatten(2).transpose(1, 2)",
                "{0}.reshape({0}.shape[0], {c}, -1)",
                "{0}.view(-1, {c}, {h} * {w})",
            ]
        )
    )


@operation(4, weight=2)
def reduction(dice: Random, shape: Shape) -> Draft:
    name = dice.choice(["mean", "sum", "amax", "amin", "mean", "amax"])
    axes = dice.choice(["(2, 3)", "(-1, -2)", "1", "(1, 2)", "3", "[2]"])
    return Draft(f"{{0}}.{name}({axes}, {{options}})", "", options(keepdim=maybe(dice, True)))


@operation(3, 4)
def other_reduction(dice: Random, shape: Shape) -> Draft:
    return Draft(
        dice.choice(
            [
                "{0}.max(1).values",
                "{0}.min(-1)[0]",
                "{0}.std(1, unbiased=False, keepdim=True)",
                "{0}.var((1, 2))",
                "{0}.norm(dim=1, keepdim=True)",
                "torch.logsumexp({0}, 1)",
                "{0}.cumsum(1)",
                "torch.linalg.vector_norm({0}, dim=(1, 2)).unsqueeze(1)",
                "{0}.prod(-1)",
                "{0}.topk(1, dim=1)[0]",
                "{0}.sort(-1)[0]",
                "{0}.median(-1)[0]",
                "torch.var_mean({0}, 1)[1]",
                "{0}.abs().sum(1, keepdim=True)",
            ]
        )
    )


@operation(3)
def to_picture(dice: Random, shape: Shape) -> Draft:
    return Draft(
        dice.choice(
            ["{0}.unsqueeze(1)", "{0}[:, :, :, None]", "{0}.unsqueeze(-1)", "{0}.transpose(1, 2)", "{0}.mean(2)", "{0}.flatten(1)", "{0}[:, 0]"]
        )
    )


@operation(2)
def to_map(dice: Random, shape: Shape) -> Draft:
    return Draft(
        dice.choice(["{0}[:, :, None, None]", "{0}.unsqueeze(1)", "{0}.view(-1, {c}, 1, 1)", "{0}.unsqueeze(-1)", "{0}.reshape({0}.size(0), 1, -1)"])
    )


@operation(4)
def squeeze(dice: Random, shape: Shape) -> Draft:
    return Draft(dice.choice(["{0}.squeeze(-1)", "{0}.squeeze(2)", "{0}.squeeze((2, 3))", "{0}.mean((2, 3), keepdim=True).squeeze(-1).squeeze(-1)"]))


@operation(2, 3, 4, weight=2)
def written_in_place(dice: Random, shape: Shape) -> Draft:
    return Draft(
        dice.choice(
            [
                "{0}.relu_()\n{out} = {0}",
                "{0}.add_(1)\n{out} = {0} * 2",
                "{out} = {0}.clone().mul_(0.5)",
                "F.relu_({0})\n{out} = {0} + 1",
                "{0}.mul_(0.5).add_(0.25)\n{out} = {0}",
                "{0}.clamp_(min=-0.5)\n{out} = {0}.sigmoid()",
                "{out} = {0} * 2\n{out} += {0}\n{out} -= 1",
                "{out} = {0} + 0\n{out}.neg_()",
                "{out} = F.hardtanh_({0} * 2, -1.0, 1.0)",
                "{out} = {0}.tanh()\n{0}.zero_()",
            ]
        )
    )


@operation(2, 3, 4, weight=2)
def written_into_a_view(dice: Random, shape: Shape) -> Draft:
    return Draft(
        dice.choice(
            [
                "{0}[:, :1].relu_()\n{out} = {0}",
                "{0}[:, 0] = 0.5\n{out} = {0}",
                "{0}[:, -1] *= 2\n{out} = {0} - 1",
                "{0}.select(1, 0).add_(1)\n{out} = {0}",
                "{out} = {0}.clone()\n{out}[:, :1] = {0}[:, -1:] * 2",
                "{out} = torch.zeros_like({0})\n{out}[:, 0] = {0}[:, 0]",
                "{0}.flatten(1).mul_(0.5)\n{out} = {0}",
                "{0}.view({0}.shape[0], -1)[:, :2] = 0\n{out} = {0}",
                "{out} = {0} * 1\n{out}[..., 0].copy_({0}[..., -1])",
                "{0}.chunk(2, 1)[0].neg_()\n{out} = {0}",
                "{0}.transpose(1, -1)[:, 0].fill_(0.25)\n{out} = {0}",
                "{0}.split(1, 1)[0].exp_().clamp_(max=2)\n{out} = {0}",
                "{out} = {0} + 0\n{out}[{out} > 1] = 1.0",
                "{out} = {0}.masked_fill({0} < 0, 0.1)",
            ]
        )
    )
