"""Which values are rounded, how well their ranges fit, and what the rounding does."""

from __future__ import annotations

import base64
import itertools
import json
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fastcnn.errors import FileFormatError, ParityError, RequestError
from fastcnn.graph.capture import capture
from fastcnn.graph.ir import CapturedGraph, aten
from fastcnn.graph.passes import INT8_PASSES, STANDARD_PASSES, run_passes
from fastcnn.parity import Expected, expect
from fastcnn.quantization.build import build, in_float32, simulate
from fastcnn.quantization.correction import correct_biases, output_means
from fastcnn.quantization.edges import find_edges
from fastcnn.quantization.gate import HeldOut, joined, judge
from fastcnn.quantization.histogram import Histogram, grid_of, scale_of
from fastcnn.quantization.quantize import quantize, quantized, round_weight, round_weights
from fastcnn.quantization.ranges import Ranges, calibrate
from fastcnn.quantization.request import Limits
from fastcnn.quantization.samples import draw
from fastcnn.quantization.scheme import Scheme
from fastcnn.quantization.sensitivity import sensitivities

SCHEMES = [Scheme(), Scheme(weight_bits=7), Scheme(symmetric=True)]


class Branches(nn.Module):
    """[N, 3, 16, 16] → [N, 5]: a concat behind pools, a residual add, a SiLU, and a convolution of one pixel."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.stem, self.left, self.right = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 6, 1), nn.Conv2d(8, 10, 3, padding=1)
        self.body, self.smooth, self.gate = nn.Conv2d(16, 16, 3, padding=1, bias=False), nn.Conv2d(16, 12, 1), nn.Conv2d(12, 12, 1)
        self.head = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.max_pool2d(torch.relu(self.stem(x)), 2)
        joined = torch.cat([torch.relu(self.left(x)), torch.relu(self.right(x))], 1)
        x = torch.relu(joined + self.body(joined))
        x = nn.functional.silu(self.smooth(x))
        x = x * torch.sigmoid(self.gate(x.mean((2, 3), keepdim=True)))
        return self.head(x.mean((2, 3)))


class Viewed(nn.Module):
    """[N, 3, 16, 16] → [N, 4]: a reshape by the size of the batch, as older code spells flatten."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.stem, self.head = nn.Conv2d(3, 6, 3), nn.Linear(6 * 49, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.max_pool2d(torch.relu(self.stem(x)), 2)
        return self.head(x.view(x.size(0), 6 * x.size(2) * x.size(3)))


def test_a_reshape_that_reads_the_batch_shares_the_grid_of_its_input() -> None:
    graph, _ = run_passes(capture(Viewed().eval(), pictures(2)), INT8_PASSES)
    (view,) = graph.calls(aten.reshape.default)
    assert len(view.all_input_nodes) > 1
    edges = find_edges(graph)
    assert any({view, view.args[0]} <= set(group) for group in edges.groups())
    assert all(isinstance(value.meta["dtype"], torch.dtype) for value in edges.values)


def pictures(count: int) -> Tensor:
    coarse = torch.randn(count, 3, 5, 5, generator=torch.Generator().manual_seed(1))
    return nn.functional.interpolate(coarse, size=16, mode="bicubic")


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return Branches().eval()


@pytest.fixture(scope="module")
def graph(model: nn.Module) -> CapturedGraph:
    return run_passes(capture(model, pictures(2)), STANDARD_PASSES)[0]


@pytest.fixture(scope="module")
def ranges(graph: CapturedGraph) -> Ranges:
    return calibrate(graph, draw(pictures(120), (3, 16, 16), None), "weights")


@pytest.fixture(scope="module")
def expected(model: nn.Module, ranges: Ranges) -> Expected:
    held_out = ranges.held_out.values()
    return expect(model, held_out, [(0, len(held_out))], dtype=torch.float32)


def error_of(graph: CapturedGraph, ranges: Ranges, expected: Expected) -> float:
    outputs = simulate(in_float32(graph), ranges.held_out.values(), expected.slices)
    return judge(outputs, joined(expected.reference), Limits(0.99, 0.99), runtime="eager").relative_error


def test_values_that_a_runtime_computes_together_share_their_scale(graph: CapturedGraph) -> None:
    edges = find_edges(graph)
    by_layer = {layer.name: layer for layer in edges.layers}
    group = {node: number for number, nodes in enumerate(edges.groups()) for node in nodes}
    concat = next(graph.calls(aten.cat.default))
    left, right = concat.all_input_nodes
    assert group[left] == group[right] == group[concat]
    pool = by_layer["left"].input
    assert group[pool] == group[pool.all_input_nodes[0]]
    assert len(edges.readers[pool]) == 2, "one pair behind the pool serves both branches"
    add = next(graph.calls(aten.add.Tensor))
    (together,) = [groups for groups in edges.scales() if len(groups) > 1]
    assert {node for nodes in together for node in nodes} >= set(add.all_input_nodes)
    # What goes into a SiLU stays as it is, and so does what the gate of one pixel reads.
    assert by_layer["smooth"].node not in edges.readers
    assert by_layer["gate"].weight_only
    assert by_layer["gate"].input not in edges.readers
    assert find_edges(graph, ["head"]).layers[-1].name != "head"


def test_an_average_pool_stays_a_pool_with_a_grid_of_its_own() -> None:
    pool = nn.AvgPool2d(3, stride=1, padding=1)
    branch = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), pool, nn.Conv2d(8, 4, 1), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 2)).eval()
    captured = capture(branch, torch.zeros(2, 3, 8, 8))
    assert len(find_edges(run_passes(captured, STANDARD_PASSES)[0]).layers) == 4, "in float the pool becomes a convolution behind its projection"
    edges = find_edges(run_passes(captured, INT8_PASSES)[0])
    assert len(edges.layers) == 3
    assert edges.layers[1].input.target is aten.avg_pool2d.default
    assert {edges.layers[1].input, edges.layers[1].input.all_input_nodes[0]} <= set(edges.values)


def test_one_pair_behind_each_value_and_weights_as_integers(graph: CapturedGraph, ranges: Ranges) -> None:
    made, report = quantize(graph, ranges.of(Scheme()), Scheme())
    edges = find_edges(graph)
    assert report.fired == len(edges.layers) == 7
    assert len(list(made.calls(quantized.quantize_per_tensor.default))) == len(edges.values)
    assert len(list(made.calls(quantized.dequantize_per_channel.default))) == len(edges.layers)
    integers = {name: tensor for name, tensor in made.constants().items() if tensor.dtype == torch.int8 and tensor.dim() > 1}
    assert len(integers) == len(edges.layers)
    assert sum(tensor.numel() for tensor in made.constants().values() if tensor.is_floating_point()) < 200, "no weight stays in float"


@pytest.mark.parametrize("scheme", SCHEMES, ids=["uint8", "7 bits", "symmetric"])
def test_the_error_is_small_and_the_correction_lessens_it(graph: CapturedGraph, ranges: Ranges, expected: Expected, scheme: Scheme) -> None:
    plain, corrected = (quantize(graph, ranges.of(scheme), scheme)[0] for _ in range(2))
    correct_biases(corrected, output_means(in_float32(graph), ranges.kept.values()), ranges.kept.values())
    error = error_of(corrected, ranges, expected)
    assert 0 < error < 0.05
    assert error < 1.1 * error_of(plain, ranges, expected), "where rounding shifts no mean, there is nothing to gain"


def test_a_shifted_mean_is_found_behind_the_relu_and_taken_back(graph: CapturedGraph, ranges: Ranges, expected: Expected) -> None:
    kept = ranges.kept.values()
    means = output_means(in_float32(graph), kept)
    shifted, _ = quantize(graph, ranges.of(Scheme()), Scheme())
    for layer in ("stem", "smooth", "head"):
        bias = f"{layer}.bias"
        shifted.set_constant(bias, shifted.constants()[bias] + 0.1)
    before = error_of(shifted, ranges, expected)
    correct_biases(shifted, means, kept)
    assert error_of(shifted, ranges, expected) < 0.01 < 0.1 < before


def test_a_histogram_finds_the_range_of_least_squared_error() -> None:
    values = torch.cat([torch.randn(100_000, generator=torch.Generator().manual_seed(0)), torch.tensor([200.0])])
    for scheme, shift in itertools.product([Scheme(), Scheme(symmetric=True)], [0.0, 3.0]):
        histogram = Histogram()
        for part in (values + shift).split(10_000):
            histogram.add(part)
        low, high = histogram.best_range(scheme)
        assert low <= 0 <= high

        def lost(low: float, high: float, scheme: Scheme = scheme, shift: float = shift) -> float:
            grid = grid_of(low, high, scheme)
            lowest, highest = scheme.levels
            whole = values + shift
            rounded = (((whole / grid.scale).round() + grid.zero_point).clamp(lowest, highest) - grid.zero_point) * grid.scale
            return float((rounded - whole).square().sum())

        # Of ranges a little wider and narrower, none is much better.
        assert lost(low, high) <= 1.1 * min(lost(low * wider, high * wider) for wider in (0.8, 0.95, 1.05, 1.2))


def test_grids_hold_zero_exactly() -> None:
    for low, high in ((0.0, 6.0), (-0.3, 5.0), (-2.0, 0.0), (0.0, 0.0)):
        for scheme in (Scheme(), Scheme(symmetric=True)):
            grid = grid_of(low, high, scheme)
            assert scheme.levels[0] <= grid.zero_point <= scheme.levels[1]
            assert grid.scale == scale_of(low, high, scheme) > 0


@pytest.mark.parametrize("bits", [7, 8])
def test_weights_lose_at_most_what_their_bits_allow(bits: int) -> None:
    weight = torch.randn(6, 4, 3, 3, generator=torch.Generator().manual_seed(0)) * torch.logspace(-6, 2, 6).reshape(-1, 1, 1, 1)
    weight[3] = 0
    integers, scales = round_weight(weight, Scheme(weight_bits=bits))
    assert integers.abs().max() <= 2 ** (bits - 1) - 1
    lost = (integers * scales.reshape(-1, 1, 1, 1) - weight).flatten(1).norm(dim=1)
    assert bool((lost <= 2.0 ** (1 - bits) * weight.flatten(1).norm(dim=1) + 1e-12).all())


def test_the_sensitivity_of_a_layer_is_about_what_it_does_alone(graph: CapturedGraph, ranges: Ranges, expected: Expected) -> None:
    scheme = Scheme(weight_bits=7)
    names = [layer.name for layer in find_edges(graph).layers]
    rows = {row.layer: row for row in sensitivities(graph, ranges.of(scheme), scheme, round_weights(graph, scheme), ranges.held_out.values())}
    assert list(rows) != names
    assert set(rows) == set(names)
    for name in ("stem", "body", "head"):
        alone = quantize(graph, ranges.of(scheme), scheme, [other for other in names if other != name])[0]
        assert rows[name].square ** 0.5 == pytest.approx(error_of(alone, ranges, expected), rel=0.6)


def test_layers_go_back_to_float_until_the_limit_holds(graph: CapturedGraph, ranges: Ranges, expected: Expected) -> None:
    scheme, held_out = Scheme(weight_bits=7), ranges.held_out.values()
    whole = build(graph, ranges, scheme, Limits(), expected, HeldOut(held_out))
    assert (whole.float_layers, whole.sensitivity) == ((), ())
    limit = whole.judgement.relative_error * 0.6
    part = build(graph, ranges, scheme, Limits(max_error=limit), expected, HeldOut(held_out))
    assert part.judgement.relative_error <= limit
    assert 0 < len(part.float_layers) < part.layers
    assert len(part.sensitivity) == part.layers
    for layer in part.float_layers:
        fewer, _ = quantize(graph, ranges.of(scheme), scheme, [other for other in part.float_layers if other != layer])
        correct_biases(fewer, output_means(in_float32(graph), ranges.kept.values()), ranges.kept.values())
        assert error_of(fewer, ranges, expected) > 0.97 * limit, f"{layer} could have stayed in 8 bits"
    with pytest.raises(ParityError, match="the layers that hurt most: "):
        build(graph, ranges, scheme, Limits(max_error=1e-6), expected, HeldOut(held_out))


def test_ranges_are_the_same_from_their_file(ranges: Ranges, graph: CapturedGraph, tmp_path: Path) -> None:
    path = tmp_path / "ranges.json"
    ranges.save(path)
    again = Ranges.load(path)
    assert again.grids == ranges.grids
    assert torch.equal(again.held_out.values(), ranges.held_out.values())
    assert torch.equal(again.kept.values(), ranges.kept.values())
    assert [entry.name for entry in tmp_path.iterdir()] == ["ranges.json"]
    path.write_text(path.read_text()[:-10])
    with pytest.raises(FileFormatError, match="holds no ranges"):
        Ranges.load(path)
    with pytest.raises(RequestError, match="cannot be read"):
        Ranges.load(tmp_path / "nowhere.json")
    with pytest.raises(RequestError, match="belong to another graph"):
        quantize(graph, {}, Scheme())


@pytest.mark.parametrize("name", ["max_error", "max_accuracy_drop"])
def test_limits_are_shares(name: str) -> None:
    with pytest.raises(RequestError, match=f"{name} is a share"):
        Limits(**{name: 1.5})


def test_the_gate_says_what_broke_it() -> None:
    truth = [torch.randn(50, 7, generator=torch.Generator().manual_seed(0)).double().numpy()]
    assert judge(truth, truth, Limits(), runtime="r").passed
    assert "NaN or infinity at 350" in judge([truth[0] * float("nan")], truth, Limits(), runtime="r").reason
    assert "relative error 0.5 is above 0.1" in judge([truth[0] * 0.5], truth, Limits(), runtime="r").reason
    assert "50 of 50 pictures get another best class" in judge([-truth[0]], truth, Limits(), runtime="r").reason
    assert "output shapes" in judge([truth[0][:, :3]], truth, Limits(), runtime="r").reason
    moved = judge([truth[0] + 1], truth, Limits(0.99), runtime="r")
    assert moved.largest_change == pytest.approx(0, abs=1e-12), "a shift of all logits moves no probability"


def test_pictures_in_a_ranges_file_unpack_to_what_it_says_and_no_further(ranges: Ranges, tmp_path: Path) -> None:
    path = tmp_path / "ranges.json"
    ranges.save(path)
    data = json.loads(path.read_text())
    data["held_out"]["data"] = base64.b64encode(zlib.compress(bytes(1 << 24), 9)).decode()
    path.write_text(json.dumps(data))
    with pytest.raises(FileFormatError, match=r"ranges\.json holds no ranges of a calibration: ValueError: it does not unpack to"):
        Ranges.load(path)


def test_with_labels_the_accuracy_itself_is_judged() -> None:
    logits = np.eye(4)[[0, 1, 2, 3] * 10] * 4.0
    labels = np.array([0, 1, 2, 0] * 10)  # the reference is wrong on each fourth picture
    other = logits.copy()
    other[3::4] = np.eye(4)[[1] * 10] * 4.0  # and so is this one, in another way
    limits = Limits(max_error=0.9, max_accuracy_drop=0.05)
    assert "10 of 40 pictures get another best class" in judge([other], [logits], limits, runtime="").reason
    found = judge([other], [logits], limits, runtime="", labels=labels)
    assert found.passed
    assert (found.accuracy, found.reference_accuracy) == (0.75, 0.75)
    assert found.figures()["accuracy"] == 0.75
    other[:12:4] = np.eye(4)[[2] * 3] * 4.0
    dropped = judge([other], [logits], limits, runtime="", labels=labels)
    assert "the accuracy on 40 labelled pictures drops from 75.00% to 67.50%, by more than the share of 0.05" in dropped.reason
    better = judge([np.eye(4)[labels] * 4.0], [logits], limits, runtime="", labels=labels)
    assert better.passed
    assert better.accuracy == 1.0
    assert "accuracy" not in judge([logits], [logits], limits, runtime="").figures()
