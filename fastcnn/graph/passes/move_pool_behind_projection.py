"""Move an average pool behind the 1×1 projection that follows it.

Both are linear, one over positions and one over channels, so they commute: the pool then works on the 32–192 channels that come out of the projection
instead of the 192–2048 that go in. The bias must be added after the pool, because zeros that are counted as padding would dilute it at the border.
"""

from __future__ import annotations

from torch import fx

from fastcnn.graph.ir import CapturedGraph, Convolution, add_folded, arguments, aten, only_user, pair
from fastcnn.graph.plan import PassReport


def move_pool_behind_projection(captured: CapturedGraph) -> PassReport:
    """Fires on avg_pool2d → 1×1 conv2d where the projection narrows; run it after BatchNorm is folded."""
    report = PassReport("move_pool_behind_projection")
    for pool in captured.calls(aten.avg_pool2d.default):
        conv = only_user(pool)
        if conv is None or conv.target is not aten.conv2d.default or not Convolution.of(conv).is_projection:
            report.decline("no 1×1 projection of its own follows the pool")
            continue
        reason = _why_not(captured, pool, Convolution.of(conv))
        if reason:
            report.decline(reason)
            continue
        _move(captured, pool, conv)
        report.fired += 1
    return report


def _why_not(captured: CapturedGraph, pool: fx.Node, conv: Convolution) -> str:
    values = arguments(pool)
    if pair(values["padding"]) != (0, 0) and not values["count_include_pad"]:
        return "the pool does not count its padding"
    if values["ceil_mode"]:
        return "ceil-mode pool: its last windows reach beyond the padding and count fewer elements"
    if pair(values["stride"] or values["kernel_size"]) != (1, 1):
        return "the pool has a stride: the projection would see more pixels"
    if values["divisor_override"] is not None:
        return "the pool divides by another number than the size of its window"
    if len(pool.meta["shape"]) != 4:
        return "the pool has no batch dimension"
    if conv.bias is not None and not captured.is_constant(conv.bias):
        return "the projection's bias is computed"
    out_channels, in_channels = conv.weight.meta["shape"][:2]
    return "the projection widens" if out_channels >= in_channels else ""


def _move(captured: CapturedGraph, pool: fx.Node, conv: fx.Node) -> None:
    values, pooling = Convolution.of(conv), arguments(pool)
    batch, _, height, width = pool.args[0].meta["shape"]  # type: ignore[union-attr]
    out_channels = conv.meta["shape"][1]
    padded = pair(pooling["padding"]) != (0, 0)
    projection = captured.call(
        aten.conv2d.default,
        values.args(input=pooling["self"], bias=None if padded else values.bias),
        before=conv,
        like=conv,
        shape=(batch, out_channels, height, width),
    )
    moved = captured.call(aten.avg_pool2d.default, (projection, *pool.args[1:]), before=conv, like=conv)
    moved.meta["path"], moved.meta["folded"] = pool.meta.get("path", ""), ("moved behind the projection",)
    result = moved
    if padded and values.bias is not None:
        bias = captured.constant(values.bias).reshape(-1, 1, 1)
        result = captured.call(
            aten.add.Tensor,
            (moved, captured.add_constant(f"{conv.meta.get('path') or conv.name}.bias_after_pool", bias, before=conv)),
            before=conv,
            like=moved,
        )
        result.meta["folded"] = ("bias of the projection",)
    captured.replace(conv, result)
    captured.graph.erase_node(pool)
    add_folded(projection, "in front of its average pool")
