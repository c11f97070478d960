"""Which files are pictures, and what becomes of those that are none."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fastcnn.errors import RequestError
from fastcnn.pictures import PictureError, find_pictures, open_picture, read_ahead, to_mode


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in ("b.png", "a.JPG", "notes.txt", ".hidden.png", "sub/c.webp", "sub/.cache/d.png", "x[1].png"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return tmp_path


def test_folders_globs_and_files(tree: Path) -> None:
    assert find_pictures(["."]) == ["./a.JPG", "./b.png", "./sub/c.webp", "./x[1].png"]
    assert find_pictures(["*.png"]) == ["b.png", "x[1].png"]
    assert find_pictures(["**/*"]) == ["a.JPG", "b.png", "sub/c.webp", "x[1].png"]
    assert find_pictures(["notes.txt"]) == ["notes.txt"], "what is named is taken, whatever its name"
    assert find_pictures(["x[1].png"]) == ["x[1].png"], "a name that looks like a pattern"
    assert find_pictures(["b.png", "*.png", "b.png"]) == ["b.png", "x[1].png"]


@pytest.mark.parametrize(
    ("argument", "said"), [("*.gif", "matches no picture"), ("gone.png", "no picture or folder gone.png"), ("sub/.cache/..", "")]
)
def test_nothing_found(tree: Path, argument: str, said: str) -> None:
    if not said:
        (tree / "empty").mkdir()
        argument, said = "empty", "no picture in the folder empty"
    with pytest.raises(RequestError, match=said):
        find_pictures(["b.png", argument])


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "tiff", "bmp", "gif", "ppm", "tga", "jp2", "avif"])
def test_formats_and_what_is_left_of_cut_off_ones(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"x.{suffix}"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)).save(path)
    assert open_picture(str(path)).size == (50, 40)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(PictureError, match=r"^\S"):
        open_picture(str(path))


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tiff"])
def test_orientation_survives_the_closed_file(tmp_path: Path, suffix: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.linear_gradient("L").resize((60, 20)).convert("RGB").save(tmp_path / f"x.{suffix}", exif=exif)
    assert to_mode(open_picture(str(tmp_path / f"x.{suffix}")), "RGB").size == (20, 60)


def test_what_is_no_picture(tmp_path: Path) -> None:
    text, postscript = tmp_path / "x.png", tmp_path / "x.jpg"
    text.write_text("no picture")
    postscript.write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n")
    for path in (text, postscript):
        with pytest.raises(PictureError, match="not a picture, or of a format that is not read"):
            open_picture(str(path))
    with pytest.raises(PictureError, match="No such file"):
        open_picture(str(tmp_path / "gone.png"))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="Windows has no named pipes in folders")
def test_a_pipe_in_a_folder_stops_nothing(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.png")
    (path,) = find_pictures([str(tmp_path)])
    with pytest.raises(PictureError, match="not a file, but a device or a pipe"):
        open_picture(path)


def test_reading_ahead_keeps_order_and_bounds() -> None:
    lock, started = threading.Lock(), []

    def read(name: str) -> int:
        with lock:
            started.append(name)
        time.sleep(0.001 * (7 - int(name) % 7))
        if name == "11":
            raise PictureError("damaged")
        return int(name)

    results, ahead = [], 6
    for done, result in enumerate(read_ahead(read, [str(number) for number in range(40)], workers=4, ahead=ahead), start=1):
        results.append(result)
        assert len(started) <= done + ahead
    assert str(results.pop(11)) == "damaged"
    assert results == [number for number in range(40) if number != 11]


def test_closing_early_stops_the_threads() -> None:
    read = []
    results = read_ahead(lambda name: read.append(name), [str(number) for number in range(1000)], workers=2, ahead=4)
    next(results)
    results.close()
    seen = len(read)
    assert seen < 20
    time.sleep(0.02)
    assert len(read) == seen
