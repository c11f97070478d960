"""The parity rules: what passes, what fails, and that checking leaves no trace."""

from __future__ import annotations

import copy
import dataclasses
import math
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fastcnn.errors import ParityError, RequestError
from fastcnn.optimization import optimize
from fastcnn.parity import Expected, bound, compare, expect, make_pictures, verify
from fastcnn.parity.rules import CEILING
from fastcnn.precision import exact_float32


class Network(nn.Module):
    """[N, 3, 8, 8] → [N, 5]."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3)
        self.norm = nn.BatchNorm2d(6)
        self.fc = nn.Linear(6, 5)
        self.dtypes: list[tuple[torch.dtype, int]] = []

    def forward(self, x: Tensor) -> Tensor:
        self.dtypes.append((x.dtype, x.shape[0]))
        return self.fc(torch.relu(self.norm(self.conv(x))).mean((2, 3)))


@pytest.fixture
def network() -> Network:
    torch.manual_seed(0)
    return Network().eval()


@pytest.fixture
def example() -> Tensor:
    return torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def scaled(network: nn.Module, factor: float) -> Callable[[Tensor], Tensor]:
    return lambda x: network(x) * factor


def test_a_module_passes_against_itself(network: Network, example: Tensor) -> None:
    report = verify(network, network, example)
    assert report.passed
    assert (report.batch_sizes, report.dtype, report.tolerance) == ((1, 2, 5), "float32", 1e-5)
    assert 0 < report.relative_error < 1e-6
    assert report.summary().startswith("passed: relative error")
    assert report.to_dict()["rows"][2]["batch_size"] == 5


@pytest.mark.parametrize(("factor", "passes"), [(1 + 5e-6, True), (1 + 2e-5, False), (-1.0, False), (0.0, False)])
def test_relative_error_is_held_to_the_float32_bound(network: Network, example: Tensor, factor: float, passes: bool) -> None:
    report = verify(scaled(network, factor), network, example)
    assert report.passed == passes
    torch.testing.assert_close(report.relative_error, abs(factor - 1), rtol=0.1, atol=0)
    assert verify(scaled(network, factor), network, example, tolerance=3.0, batch_sizes=(1,)).rows[0].tolerance == 3.0


def test_a_failed_report_raises_with_the_largest_difference(network: Network, example: Tensor) -> None:
    report = verify(scaled(network, 2.0), network, example)
    with pytest.raises(ParityError, match=f"the file does not compute.*batch 1: .*largest difference {report.max_abs_error:.3g}") as caught:
        report.require("the file")
    assert caught.value.report is report


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_low_precision_may_err_twice_as_much_as_eager_pytorch(network: Network, example: Tensor, dtype: torch.dtype) -> None:
    eager = copy.deepcopy(network).to(dtype)

    def candidate(x: Tensor) -> Tensor:
        return eager(x.to(dtype))

    report = verify(candidate, network, example)
    assert report.passed
    assert report.dtype == str(dtype).removeprefix("torch.")
    for row in report.rows:
        assert row.tolerance >= 2 * row.relative_error

    def worse(x: Tensor) -> Tensor:
        truth = network(x)
        return truth + 3 * (candidate(x).float() - truth) + 0.02 * truth

    assert not verify(worse, network, example, dtype=dtype).passed


class Awkward(nn.Module):
    """NaN where the input has it, +∞ where it exceeds 1e30, after a ReLU."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x) * 1e30


@pytest.mark.parametrize(
    ("candidate", "passes"),
    [
        (Awkward(), True),
        (lambda x: torch.where(x > 0, x, 0.0) * 1e30, False),
        (lambda x: torch.nan_to_num(Awkward()(x), nan=math.nan, posinf=3e38), False),
    ],
    ids=["eager", "relu that swallows NaN", "infinity made finite"],
)
def test_nan_and_infinity_must_come_out_where_eager_has_them(candidate: Callable[[Tensor], Tensor], passes: bool) -> None:
    example = torch.tensor([[1.0, math.nan, 2.0, 1e10], [3.0, -1.0, math.inf, 0.5]])
    report = verify(candidate, Awkward(), example, batch_sizes=(2,))
    assert report.passed == passes
    if not passes:
        assert "NaN or infinity" in report.failures[0]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_network_that_names_a_dtype_has_a_yardstick_in_each(dtype: torch.dtype) -> None:
    class Named(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x * torch.tensor([0.5, 2.0]))

    torch.manual_seed(0)
    model, example = Named(2, 3).eval(), torch.rand(2, 2)
    report = verify(lambda x: model(x).to(dtype), model, example, dtype=dtype)
    assert report.passed
    assert "every operation brought to" in report.summary()


def test_where_eager_float16_overflows_a_wider_candidate_is_held_to_what_bfloat16_tells() -> None:
    model, example = nn.Linear(3, 2, bias=False).eval(), torch.rand(2, 3) + 3
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[5e4, 1e2, -3e3], [0.3, 0.7, -0.1]]))
        truth = model(example)
    slices = [(0, 1), (0, 2)]
    plain, widened = (expect(model, example, slices, dtype=torch.float16, widened=widened) for widened in (False, True))
    assert not np.isfinite(plain.eager[0][0]).all()
    assert np.isfinite(widened.eager[1][0]).all()

    def passes(scale: float, expected: Expected) -> bool:
        outputs = [[(truth[start:stop] * scale).double().numpy()] for start, stop in slices]
        return compare(outputs, expected).passed

    assert passes(1.0, widened)
    assert passes(1.0004, widened)
    assert not passes(1.06, widened)
    assert not passes(float("inf"), widened)
    assert not passes(1.0, plain)
    # Where eager float16 has numbers, it stays the yardstick; so it does for input that is not ordinary.
    example[0, 0] = math.inf
    assert not np.isfinite(expect(model, example, slices, dtype=torch.float16, widened=True).eager[0][0]).all()


def test_a_result_that_is_not_finite_on_ordinary_input_fails_whatever_eager_does() -> None:
    """2e5 is finite in float64 and in a candidate that computes in float32, but eager float16 returns infinity."""
    model, example = nn.Linear(1, 2, bias=False).eval(), torch.full((2, 1), 4.0)
    nn.init.constant_(model.weight, 5e4)

    def half(x: Tensor) -> Tensor:
        return copy.deepcopy(model).half()(x.half())

    report = verify(half, model, example, batch_sizes=(1,))
    assert not report.passed
    assert "NaN or infinity at 2 positions on ordinary input: float16 is too narrow" in report.failures[0]
    assert not verify(model, model, example, batch_sizes=(1,), dtype=torch.float16).passed
    # With an infinity in the input it is eager PyTorch's way again, and the rule holds picture by picture.
    example[0] = math.inf
    assert verify(half, model, example, batch_sizes=(1,)).passed
    assert "at 2 positions on ordinary input" in verify(half, model, example, batch_sizes=(2,)).failures[0]


def test_an_infinity_of_the_network_itself_is_right() -> None:
    class Masked(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.where(x > 0, x, -math.inf)

    example = torch.tensor([[1.0, -2.0, 3.0]])
    assert verify(Masked(), Masked(), example, batch_sizes=(1,)).passed
    assert not verify(lambda x: torch.where(x > 0, x, -1e30), Masked(), example, batch_sizes=(1,)).passed


class Centred(nn.Module):
    """A head that subtracts what all its outputs share: what is left is the rounding of numbers `scale` times as large."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale = scale
        self.fc = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        logits = self.fc(x) + self.scale * (1 + x[:, :1] ** 2)
        return logits - logits.mean(1, keepdim=True)


@pytest.mark.parametrize(("scale", "raised"), [(1.0, False), (1e3, True)])
def test_float32_may_err_twice_as_much_as_eager_float32_where_the_network_amplifies_rounding(scale: float, raised: bool) -> None:
    torch.manual_seed(0)
    model, example = Centred(scale).eval(), torch.randn(2, 12, generator=torch.Generator().manual_seed(1))
    eager, reference = copy.deepcopy(model), copy.deepcopy(model).double()

    def off_by(share: float) -> Callable[[Tensor], Tensor]:
        """Wrong by `share` times what eager PyTorch is."""

        def candidate(x: Tensor) -> Tensor:
            truth = reference(x.double())
            return truth + share * (eager(x).double() - truth)

        return candidate

    report = verify(off_by(1.9), model, example, dtype=torch.float32)
    assert report.passed
    assert (report.tolerance > 1e-5) == raised
    assert ("eager float32 itself is off by" in report.summary()) == raised
    assert (report.eager_error > 0) == raised
    worse = verify(off_by(2.1), model, example, dtype=torch.float32)
    assert worse.passed != raised
    if raised:
        assert "eager float32 itself is off by" in worse.failures[0]
        with pytest.raises(ParityError, match="eager float32 itself is off by"):
            worse.require("the candidate")


def test_no_bound_is_above_the_ceiling() -> None:
    """A network of which float32 leaves nothing: eager PyTorch, and whatever computes like it, fails."""
    torch.manual_seed(0)
    example = torch.randn(2, 12, generator=torch.Generator().manual_seed(1))
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        native = Centred(1e4 if dtype == torch.float16 else 1e6).eval().to(dtype)
        reference = copy.deepcopy(native).float()
        report = verify(lambda x, native=native, dtype=dtype: native(x.to(dtype)), reference, example)
        assert not report.passed
        assert report.tolerance == CEILING[str(dtype).removeprefix("torch.")]
        assert "itself is off by" in report.failures[0]
    assert bound("float32", np.ones(3), np.ones(3)) == bound("float32", np.ones(3), None) == 1e-5


def test_optimize_takes_a_network_that_amplifies_rounding() -> None:
    torch.manual_seed(0)
    model, example = Centred(1e3).eval(), torch.randn(2, 12, generator=torch.Generator().manual_seed(1))
    module = optimize(model, example, backend="torch")

    assert module.backend == "torch"
    assert verify(module, model, example).relative_error > 1e-5


def test_a_zero_reference_is_held_to_the_absolute_error() -> None:
    model, example = nn.Linear(3, 4), torch.rand(1, 3)
    nn.init.zeros_(model.weight)
    nn.init.zeros_(model.bias)
    assert verify(model, model, example).passed
    assert verify(lambda x: model(x) + 1e-6, model, example).passed
    assert not verify(lambda x: model(x) + 1e-3, model, example).passed


class Several(nn.Module):
    """A dict with a tuple in it; the second output is tiny beside the first."""

    def forward(self, x: Tensor) -> dict[str, Any]:
        return {"features": x * 1e6, "rest": (x.sum((2, 3)), x.flatten(1)[:, :7])}


def test_each_of_several_outputs_is_held_to_its_own_bound(example: Tensor) -> None:
    def candidate(x: Tensor) -> tuple[Tensor, ...]:
        return (x * 1e6, x.sum((2, 3)), x.flatten(1)[:, :7] * 1.001)

    assert verify(Several(), Several(), example).passed
    report = verify(candidate, Several(), example)
    assert not report.passed
    assert "output 2: relative error 0.001" in report.failures[0]


@pytest.mark.parametrize("candidate", [lambda x: x[:, :4], lambda x: (x, x), lambda x: x[..., None]], ids=["narrower", "one more", "rank"])
def test_other_shapes_fail(candidate: Callable[[Tensor], Any]) -> None:
    report = verify(candidate, nn.Identity(), torch.rand(2, 5))
    assert not report.passed
    assert "output shapes" in report.failures[0]


def of(reference: list[list[float]], candidate: list[list[float]], tolerance: float) -> Any:
    truth, output = np.array(reference), np.array(candidate)
    return compare([[output]], Expected("float32", ((0, len(truth)),), ([truth],)), tolerance=tolerance)


def test_top1_counts_only_where_the_margin_exceeds_the_error() -> None:
    # The margin of 0.3 exceeds the largest error of 0.2, and the best class changed.
    decided = of([[1.0, 0.7, 0.0]], [[0.8, 0.9, 0.0]], 0.5)
    assert not decided.passed
    assert (decided.rows[0].decisive, decided.top1_agreement) == (1, 0.0)
    # A margin of 0.1 does not: whichever class wins.
    undecided = of([[1.0, 0.9, 0.0], [5.0, 0.0, 0.0]], [[0.8, 1.0, 0.0], [5.0, 0.0, 0.1]], 0.5)
    assert undecided.passed
    assert (undecided.rows[0].decisive, undecided.top1_agreement) == (1, 1.0)


def test_compare_labels_its_rows() -> None:
    report = compare([[np.ones((2, 3))]], Expected("float32", ((0, 2),), ([np.ones((2, 3))],)), runtime="openvino")
    assert report.passed
    assert report.runtimes == ("openvino",)
    assert report.summary().endswith("in openvino")


def test_the_reference_runs_once_in_float64_where_pictures_are_independent(network: Network, example: Tensor) -> None:
    ran: list[tuple[torch.dtype, int]] = []
    network.fc.register_forward_hook(lambda module, inputs, output: ran.append((inputs[0].dtype, inputs[0].shape[0])))
    verify(lambda x: torch.zeros(x.shape[0], 5), network, example)
    # Once whole and once with one picture, to see that nothing depends on the batch; eager float32 once.
    assert ran == [(torch.float64, 5), (torch.float64, 1), (torch.float32, 5)]


class Mixing(nn.Module):
    """Each picture sees the others."""

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) - x.flatten(1).mean(0)


def test_a_model_that_mixes_pictures_is_run_at_each_size(example: Tensor) -> None:
    assert verify(Mixing(), Mixing(), example, batch_sizes=(1, 2, 5)).passed
    assert not verify(nn.Flatten(), Mixing(), example, batch_sizes=(1,)).passed


def test_the_reference_is_left_as_it_was(network: Network, example: Tensor) -> None:
    network.train()
    before = copy.deepcopy(network.state_dict())
    verify(copy.deepcopy(network).eval(), network, example)
    assert network.training
    torch.testing.assert_close(dict(network.state_dict()), dict(before), rtol=0, atol=0)
    assert network.dtypes == []


def test_pictures_are_the_examples_and_then_seeded_noise_in_its_range(example: Tensor) -> None:
    state = torch.random.get_rng_state()
    pictures = make_pictures(example, 50)
    torch.testing.assert_close(torch.random.get_rng_state(), state)
    torch.testing.assert_close(pictures[:2], example)
    torch.testing.assert_close(pictures, make_pictures(example, 50))
    assert not torch.equal(pictures, make_pictures(example, 50, seed=1))
    for channel in range(3):
        own, made = example[:, channel], pictures[2:, channel]
        assert own.min() <= made.min()
        assert made.max() <= own.max()
        torch.testing.assert_close(made.mean(), own.mean(), rtol=0.05, atol=0)
    assert make_pictures(example, 1).shape[0] == 1


def test_pictures_of_a_constant_or_broken_example_are_finite_noise() -> None:
    pictures = make_pictures(torch.tensor([[0.0, math.nan, 1.0], [0.0, math.inf, 3.0]]), 40)[2:]
    assert pictures.isfinite().all()
    assert (pictures[:, :2].std(0) > 0.5).all()
    assert make_pictures(torch.zeros(1, 3, 4, 4, dtype=torch.float16), 3).dtype == torch.float16


SETTINGS = {
    "defaults": lambda: None,
    "old switch": lambda: torch.set_float32_matmul_precision("medium"),
    "old cuDNN switch": lambda: setattr(torch.backends.cudnn, "allow_tf32", False),
    "new switches": lambda: (
        setattr(torch.backends.cuda.matmul, "fp32_precision", "tf32"),
        setattr(torch.backends.cudnn.conv, "fp32_precision", "ieee"),
    ),
}


def settings() -> list[Any]:
    def legacy(read: Callable[[], Any]) -> Any:
        try:
            return read()
        except RuntimeError:
            return "refused"

    backends = torch.backends
    switches = [backends, backends.cuda.matmul, backends.cudnn, backends.cudnn.conv, backends.cudnn.rnn, backends.mkldnn, backends.mkldnn.matmul]
    old = [torch.get_float32_matmul_precision, lambda: backends.cudnn.allow_tf32, lambda: backends.cuda.matmul.allow_tf32]
    return [switch.fp32_precision for switch in switches] + [legacy(read) for read in old]


@pytest.mark.parametrize("setting", SETTINGS)
def test_tf32_is_off_inside_and_restored(setting: str) -> None:
    # In a process of its own: the switches are global, and some states cannot be left again through public names.
    code = (
        f"import tests_module as t, torch\nt.SETTINGS[{setting!r}]()\nbefore = t.settings()\n"
        "try:\n    with t.exact_float32():\n        inside = t.settings()\n        raise KeyError\nexcept KeyError:\n    pass\n"
        "assert inside[:7] == ['ieee'] * 7, inside\n"
        # Where PyTorch already refused to read an old switch, nobody can say what to restore: it stays as it was.
        "assert inside[7:] == ['highest', 'refused' if before[8] == 'refused' else False, False], inside\n"
        "assert t.settings() == before, (before, t.settings())\n"
    )
    load = f"import importlib.util, sys\nspec = importlib.util.spec_from_file_location('tests_module', {__file__!r})\n"
    load += "module = importlib.util.module_from_spec(spec)\nsys.modules['tests_module'] = module\nspec.loader.exec_module(module)\n"
    process = subprocess.run([sys.executable, "-W", "error::UserWarning", "-c", load + code], capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr
    assert process.stderr == ""


def test_tf32_is_off_while_the_candidate_runs(network: Network, example: Tensor) -> None:
    seen = []

    def candidate(x: Tensor) -> Tensor:
        seen.append(torch.backends.cudnn.allow_tf32)
        return network(x)

    before = torch.backends.cudnn.allow_tf32
    verify(candidate, network, example)
    assert seen == [False] * 3
    assert torch.backends.cudnn.allow_tf32 == before


def test_requests_that_cannot_be_met(network: Network, example: Tensor) -> None:
    class Stubborn(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            if x.dtype == torch.float64:
                raise TypeError("no such dtype here")
            return x.flatten(1)

    with pytest.raises(RequestError, match="whole numbers from 1"):
        verify(network, network, example, batch_sizes=())
    with pytest.raises(RequestError, match="whole numbers from 1"):
        verify(network, network, example, batch_sizes=(0, 1))
    with pytest.raises(RequestError, match="Stubborn cannot run in float64"):
        verify(Stubborn(), Stubborn(), example)


class _Head(nn.Module):
    """[N, 3, 8, 8] → what `function(self, x)` makes of it."""

    def __init__(self, function: Callable[[Any, Tensor], Any]) -> None:
        super().__init__()
        self.function, self.fc, self.plain = function, nn.Linear(192, 5), torch.linspace(-1, 1, 25).reshape(5, 5)

    def forward(self, x: Tensor) -> Any:
        return self.function(self, x)


@pytest.mark.parametrize(
    "function",
    [
        pytest.param(lambda s, x: s.fc(x.float().flatten(1)), id="float() in the code"),
        pytest.param(lambda s, x: s.fc(x.flatten(1)) @ s.plain, id="plain tensor attribute"),
        pytest.param(lambda s, x: s.fc(x.flatten(1)) @ torch.ones(5, 5, dtype=torch.float32), id="tensor made in the code"),
    ],
)
def test_model_that_names_its_dtype_has_a_float64_reference(function: Callable[[Any, Tensor], Any], example: Tensor) -> None:
    """Held against the same model with nothing in the way."""
    model = _Head(function).eval()
    report = verify(model, model, example)

    assert report.passed
    assert any("does not run in float64 by itself" in note for note in report.notes)
    wrong = copy.deepcopy(model)
    with torch.no_grad():
        wrong.fc.weight.mul_(1.001)
    assert not verify(wrong, model, example).passed


def test_what_cannot_be_copied_is_left_where_it_is(network: Network, example: Tensor) -> None:
    network.lock, network.action, network.items = threading.Lock(), lambda x: x, (item for item in range(3))  # type: ignore[assignment]
    report = verify(network, network, example)

    assert report.passed
    assert report.notes == ()


def test_writing_into_the_input_spoils_nothing(example: Tensor) -> None:
    def forward(s: Any, x: Tensor) -> Tensor:
        x.mul_(2).add_(1)
        return s.fc(x.flatten(1))

    model, before = _Head(forward).eval(), example.clone()

    assert verify(model, model, example).passed
    assert optimize(model, example, backend="torch")(example.clone()).shape == (len(example), 5)
    torch.testing.assert_close(example, before, rtol=0, atol=0)


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize(
    "function",
    [
        pytest.param(lambda s, x: x.mean(), id="scalar"),
        pytest.param(lambda s, x: s.fc(x.flatten(1)).mean(0), id="no batch dimension"),
        pytest.param(lambda s, x: s.fc(x.flatten(1)).squeeze(), id="squeezed at one"),
        pytest.param(lambda s, x: (s.fc(x.flatten(1)), s.fc.bias), id="a weight beside"),
    ],
)
def test_outputs_without_a_batch_dimension(function: Callable[[Any, Tensor], Any], count: int, example: Tensor) -> None:
    model = _Head(function).eval()

    assert verify(model, model, example[:count], batch_sizes=(1,)).passed
    assert verify(model, model, example[:count]).passed
    assert verify(optimize(model, example[:count], backend="torch"), model, example[:count]).passed


def test_dataclass_of_outputs(example: Tensor) -> None:
    @dataclasses.dataclass
    class Output:
        logits: Tensor
        hidden: Tensor | None = None

    model = _Head(lambda s, x: Output(s.fc(x.flatten(1)))).eval()
    fast = optimize(model, example, backend="torch")

    assert verify(fast, model, example).passed
    assert type(fast(example)) is Output
    assert fast(example).hidden is None


def test_exact_float32_is_a_plain_context() -> None:
    before = settings()
    with exact_float32(), exact_float32():
        pass
    assert settings() == before
