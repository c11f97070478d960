"""What calibration takes, and what it refuses."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from fastcnn.errors import InputError, RequestError
from fastcnn.preprocessing import Preprocessing
from fastcnn.quantization.samples import MOST_HELD_OUT, Samples, draw

SHAPE = (3, 16, 16)
PREPROCESSING = Preprocessing(resize=16, crop=(16, 16))


def smooth(count: int) -> torch.Tensor:
    """[count, 3, 16, 16]: random pictures whose neighbouring pixels are alike."""
    coarse = torch.rand(count, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    return torch.nn.functional.interpolate(coarse, size=16, mode="bilinear")


def read(samples: Samples) -> int:
    return sum(len(batch) for batch in samples.batches())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Twelve pictures, and two files that are none."""
    for number, picture in enumerate(smooth(12)):
        Image.fromarray((picture.permute(1, 2, 0) * 255).to(torch.uint8).numpy()).save(tmp_path / f"{number:02}.png")
    (tmp_path / "damaged.png").write_bytes(b"no picture")
    (tmp_path / "cut.png").write_bytes((tmp_path / "00.png").read_bytes()[:100])
    return tmp_path


def test_an_array_is_split_in_what_is_observed_and_what_judges() -> None:
    pictures = smooth(50)
    samples = draw(pictures, SHAPE, None)
    seen = torch.cat(list(samples.batches()))
    assert (samples.used, len(samples.held_out)) == (40, 10)
    assert all(torch.equal(one, pictures[number]) for one, number in zip(samples.held_out, range(4, 50, 5), strict=True))
    assert torch.equal(seen, torch.stack([picture for number, picture in enumerate(pictures) if number % 5 != 4]))


def test_many_pictures_are_drawn_evenly() -> None:
    samples = draw(torch.arange(5000.0).reshape(-1, 1, 1, 1) + smooth(1)[:, :1], (1, 16, 16), None, limit=300)
    firsts = torch.cat([batch[:, 0, 0, 0] for batch in samples.batches()])
    assert len(firsts) + len(samples.held_out) == 300 + MOST_HELD_OUT
    assert firsts.min() < 50
    assert firsts.max() > 4950


def test_pictures_that_cannot_be_read_are_counted(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    samples = draw(folder, SHAPE, PREPROCESSING)
    with caplog.at_level(logging.WARNING):
        assert read(samples) == samples.used
    assert (samples.used + len(samples.held_out), samples.skipped) == (12, 2)
    assert "2 of the files" in caplog.text
    assert "pictures are few" in caplog.text


@pytest.mark.parametrize("suffix", [".npy", ".npz"])
def test_files_of_arrays(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"pictures{suffix}"
    (np.save if suffix == ".npy" else np.savez)(path, smooth(10).numpy())
    assert read(draw(path, SHAPE, None)) == 8


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: np.save(path, np.float32(3)), "holds a single number"),
        (lambda path: path.write_text("hello"), "it holds something else than arrays of numbers"),
        (lambda path: np.save(path, np.linspace(0, 1, 9, dtype="f4")[:, None, None, None] + np.zeros((1, *SHAPE), "f4")), "9 pictures of one colour"),
        (lambda path: np.save(path, 1e30 * smooth(9).numpy()), "picture 0 of p.npy holds numbers up to 9.3e.29: those are no preprocessed pixels"),
    ],
)
def test_what_is_no_picture_is_told_in_a_line(tmp_path: Path, make: Any, message: str) -> None:
    make(tmp_path / "p.npy")
    with pytest.raises((RequestError, InputError), match=message) as caught:
        read(draw(tmp_path / "p.npy", SHAPE, None))
    assert "\n" not in str(caught.value)
    assert "pickle" not in str(caught.value)


def test_a_cut_off_file_of_arrays_is_told(tmp_path: Path) -> None:
    path = tmp_path / "pictures.npy"
    np.save(path, smooth(4).numpy())
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(RequestError, match="no whole file of NumPy arrays"):
        draw(path, SHAPE, None)


@pytest.mark.parametrize(
    ("array", "error", "message"),
    [
        pytest.param(smooth(0), RequestError, "holds no picture", id="empty"),
        pytest.param(smooth(1), RequestError, "holds one picture", id="one"),
        pytest.param(smooth(1).repeat(9, 1, 1, 1), RequestError, "9 times the same picture", id="the same"),
        pytest.param(torch.randn(40, *SHAPE), RequestError, "holds noise", id="noise"),
        pytest.param(torch.zeros(4, 3, 16, 15), InputError, "the model takes N×3×16×16", id="size"),
        pytest.param(torch.zeros(4, *SHAPE, dtype=torch.uint8), InputError, "are floating-point numbers", id="integers"),
        pytest.param(smooth(4).index_fill(0, torch.tensor(2), float("nan")), InputError, "picture 2 of the array given holds NaN", id="nan"),
        pytest.param([1, 2], InputError, "not a list", id="list"),
    ],
)
def test_what_cannot_serve_is_an_error(array: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        read(draw(array, SHAPE, None))


def test_folders_that_cannot_serve_are_errors(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="does not exist"):
        draw(tmp_path / "nowhere", SHAPE, PREPROCESSING)
    with pytest.raises(RequestError, match="no picture in the folder"):
        draw(tmp_path, SHAPE, PREPROCESSING)
    with pytest.raises(RequestError, match="does not say how the pictures"):
        draw(tmp_path, SHAPE, None)
    (tmp_path / "damaged.png").write_bytes(b"no picture")
    with pytest.raises(RequestError, match=r"holds no picture that can be read \(1 file"):
        read(draw(tmp_path, SHAPE, PREPROCESSING))
