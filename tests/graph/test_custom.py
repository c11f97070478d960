"""Operations of other libraries: they run, are saved and loaded, and are refused by name where a file must do without."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
import torch
from torch import nn
from torchvision.ops import DeformConv2d

import fastcnn
from fastcnn.errors import FileFormatError, RequestError
from fastcnn.export import export_onnx, export_pt2
from fastcnn.graph.custom import find_operation


@torch.library.custom_op("fastcnn_tests::twice", mutates_args=())
def twice(x: torch.Tensor) -> torch.Tensor:
    return x * 2


@twice.register_fake
def _(x):
    return torch.empty_like(x)


@torch.library.custom_op("fastcnn_tests::by_name", mutates_args=())
def by_name(x: torch.Tensor, name: str) -> torch.Tensor:
    return x * len(name)


@by_name.register_fake
def _(x, name):
    return torch.empty_like(x)


class Net(nn.Module):
    def __init__(self, operation):
        super().__init__()
        self.conv, self.fc, self.operation = nn.Conv2d(3, 6, 3, padding=1), nn.Linear(6, 4), operation

    def forward(self, x):
        return self.fc(self.operation(self.conv(x)).relu().mean((2, 3)))


class Deformed(nn.Module):
    def __init__(self):
        super().__init__()
        self.offsets, self.conv = nn.Conv2d(3, 18, 3, padding=1), DeformConv2d(3, 6, 3, padding=1)

    def forward(self, x):
        return self.conv(x, self.offsets(x)).mean((2, 3))


X = torch.rand(2, 3, 8, 8)


def fast_of(model):
    return fastcnn.optimize(model.eval(), X, backend="torch")


@pytest.mark.parametrize("make", [Deformed, lambda: Net(twice)], ids=["torchvision", "custom_op"])
def test_saved_and_loaded(make, tmp_path):
    model = make()
    fast = fast_of(model)
    loaded = fastcnn.load(fastcnn.save(fast, tmp_path / "net.fast"))
    torch.testing.assert_close(loaded(X), fast(X), rtol=0, atol=0)
    torch.testing.assert_close(loaded(X), model(X))


def test_loaded_where_nothing_else_was_imported(tmp_path):
    """torchvision is imported for it; a library of the user's is for the user to import."""
    ours, theirs = (fastcnn.save(fast_of(model), tmp_path / name) for model, name in ((Deformed(), "a.fast"), (Net(twice), "b.fast")))
    script = "import sys, fastcnn; print(fastcnn.load(sys.argv[1]).backend)"
    first, second = (
        subprocess.run([sys.executable, "-c", script, str(path)], capture_output=True, text=True, check=False) for path in (ours, theirs)
    )
    assert first.stdout == "torch\n", first.stderr
    last = second.stderr.strip().splitlines()[-1]
    assert "calls fastcnn_tests::twice, which nothing in this process has registered: import the library that does, " in last


def test_what_could_reach_outside_is_not_kept(tmp_path):
    with pytest.raises(RequestError, match=r"operation fastcnn_tests::by_name of the library .* cannot be kept in a file: it takes a string"):
        fastcnn.save(fast_of(Net(lambda x: by_name(x, "ab"))), tmp_path / "net.fast")
    assert not list(tmp_path.iterdir())
    assert find_operation("image", "read_file", "default") is None
    assert find_operation("image", "write_file", "default") is None
    assert find_operation("fastcnn_tests", "by_name", "default") is None


def test_a_file_cannot_name_an_operation_beside_its_libraries(tmp_path):
    from fastcnn.graph.serialization import graph_from_json, graph_to_json

    data = graph_to_json(fast_of(Net(twice)).source.graph)
    constants = fast_of(Net(twice)).source.graph.constants()
    assert data["libraries"] == {"fastcnn_tests": twice._init_fn.__module__}
    with pytest.raises(FileFormatError, match="which this version of PyTorch does not have as an ATen operation"):
        graph_from_json({**data, "libraries": {}}, constants)


@pytest.mark.parametrize(("make", "name"), [(Deformed, "torchvision::deform_conv2d"), (lambda: Net(twice), "fastcnn_tests::twice")])
def test_files_that_must_do_without_name_the_operation_and_the_line(make, name, tmp_path):
    place = rf"operation {name} at test_custom\.py:\d+ \(return .*\) is of the library"
    for write in (export_onnx, export_pt2):
        with pytest.raises(RequestError, match=place):
            write(make().eval(), tmp_path / "net.file", X)
    with pytest.raises(RequestError, match=place):
        fastcnn.optimize(make().eval(), X, backend="onnxruntime")
    assert not list(tmp_path.iterdir())


class Squeezed(nn.Module):
    def __init__(self, *dims):
        super().__init__()
        self.fc, self.dims = nn.Linear(3, 4), dims

    def forward(self, x):
        return self.fc(x.mean((2, 3), keepdim=True).squeeze(*self.dims).reshape(-1, 3))


@pytest.mark.parametrize("dims", [(), (0,), ((0, 2, 3),)])
def test_a_squeeze_that_drops_the_batch_is_refused_with_its_line(dims, tmp_path):
    place = re.escape("operation squeeze at test_custom.py:")
    with pytest.raises(RequestError, match=rf"{place}\d+ .* drops the batch where it is 1.* squeeze\(\(2, 3\)\), or use flatten\(1\)"):
        export_onnx(Squeezed(*dims).eval(), tmp_path / "net.onnx", X)
    model = Squeezed(*dims).eval()
    torch.testing.assert_close(fast_of(model)(X[:1]), model(X[:1]))


def test_a_squeeze_of_other_dimensions_is_not(tmp_path):
    assert export_onnx(Squeezed((2, 3)).eval(), tmp_path / "net.onnx", X).parity.passed
