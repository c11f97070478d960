"""Shards: the same for everybody who is given the same sources, and together the input."""

from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path

import pytest
from picture_support import write_pictures

from fastcnn.errors import RequestError
from fastcnn.pictures import PictureError
from fastcnn.scale.places import SourceError
from fastcnn.scale.reading import entries
from fastcnn.scale.shards import Shard, find_shards, parse_share, share_of


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def names(shards: list[Shard]) -> list[str]:
    return [entry.file for shard in shards for entry in entries(shard)]


def test_tars_folders_and_lists_are_the_input_once_whatever_the_shares(tars) -> None:
    inside = tars(3, 4)
    listed = write_pictures(Path("more"), 7)
    Path("list.txt").write_text("\n".join([listed[0], "", *listed[1:]]) + "\r\n")
    sources = ["t", "t/1.tar", "loose", "list.txt"]
    shards = find_shards(sources, files_per_shard=5)
    assert [shard.kind for shard in shards] == ["tar"] * 3 + ["files"] * 3 + ["list"] * 2
    expected = [*(Path(name).name for name in inside), *sorted(str(path) for path in Path("loose").iterdir()), *listed]
    assert names(shards) == expected
    assert len({shard.name for shard in shards}) == len(shards)
    assert find_shards(sources, files_per_shard=5) == shards
    for count in (1, 3, 8, 11):
        shares = [share_of(shards, index, count) for index in range(count)]
        assert sorted(shard.name for share in shares for shard in share) == sorted(shard.name for shard in shards)


def test_another_input_has_another_name(tars) -> None:
    tars(1, 2)
    before = find_shards(["t", "loose"])
    Path("loose/new.png").touch()
    after = find_shards(["t", "loose"])
    assert before[0] == after[0]
    assert before[1].name != after[1].name
    with tarfile.open("t/0.tar", "a") as tar:
        tar.addfile(tarfile.TarInfo("big.png"), io.BytesIO())
        many = tarfile.TarInfo("many.png")
        many.size = 20_000
        tar.addfile(many, io.BytesIO(bytes(20_000)))
    assert find_shards(["t"])[0].name != before[0].name


@pytest.mark.parametrize("place", ["a b/ü.tar", "x" * 200 + ".tar", "..tar"])
def test_names_are_names_of_files(place: str) -> None:
    name = Shard("tar", place, digest="0" * 12).name
    assert name.isascii()
    assert os.sep not in name
    assert len(name) < 100
    assert not name.startswith(".")


@pytest.mark.parametrize("text", ["4/4", "0/0", "-1/4", "1", "1/2/3", "a/b", "", "1/99999999999"])
def test_a_share_out_of_range_is_refused(text: str) -> None:
    with pytest.raises(RequestError, match=r"--shard .*(out of range|is i/n)") as refused:
        parse_share(text)
    assert "\n" not in str(refused.value)
    assert parse_share("3/4") == (3, 4)


def test_what_cannot_be_read_is_told_in_one_line(tars) -> None:
    tars(1, 2)
    Path("empty").mkdir()
    Path("empty.txt").write_text("\n\n")
    for source in ("gone", "gone*.tar", "empty", "empty.txt", "s3.tar", "file:///gone/there.tar", "nosuch://bucket/a.tar"):
        with pytest.raises(RequestError) as refused:
            find_shards([source])
        assert source in str(refused.value)
        assert "\n" not in str(refused.value)
    with pytest.raises(RequestError, match=r"p0000\.png is meant by two of the sources"):
        find_shards(["loose", "loose/p0000.png"])


@pytest.mark.parametrize("damage", ["empty", "no tar", "cut in a picture", "cut between two", "without an end", "a header"])
def test_a_damaged_tar_does_not_end_early(tars, damage: str) -> None:
    """tarfile itself takes three of these for the end of the archive."""
    tars(1, 6)
    path = Path("t/0.tar")
    with tarfile.open(path) as tar:
        members = tar.getmembers()
        end = tar.offset
    data = bytearray(path.read_bytes())
    if damage == "a header":
        data[members[3].offset : members[3].offset + 512] = b"\xff" * 512
    else:
        cut = {"empty": 0, "cut in a picture": members[4].offset_data + 20, "cut between two": members[4].offset, "without an end": end}
        data = bytearray(b"no tar at all" * 100) if damage == "no tar" else data[: cut[damage]]
    path.write_bytes(data)
    with pytest.raises(SourceError, match=r"t/0\.tar"):
        list(entries(find_shards(["t"])[0]))


def test_members_that_are_no_pictures(tars, monkeypatch: pytest.MonkeyPatch) -> None:
    (picture,) = write_pictures(Path("loose"), 1)
    with tarfile.open("odd.tar.gz", "w:gz") as tar:
        tar.add(picture, "a/good.png")
        for name, kind, target in (("dir.png", tarfile.DIRTYPE, ""), ("pipe.png", tarfile.FIFOTYPE, ""), ("link.png", tarfile.SYMTYPE, "gone.png")):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, target
            tar.addfile(member)
        tar.add(picture, "a/._good.png")
        tar.add(picture, "a/good.json")
        tar.add(picture, "a/good.png")
    found = list(entries(find_shards(["odd.tar.gz"])[0]))
    assert [(entry.file, entry.reason is None) for entry in found] == [
        ("a/good.png", True),
        ("pipe.png", False),
        ("link.png", False),
        ("a/good.png", True),
    ]
    with pytest.raises(PictureError, match="not in the archive"):
        found[2].source()
    monkeypatch.setenv("FASTCNN_MAX_BYTES", "10")
    (entry, *_) = entries(find_shards(["odd.tar.gz"])[0])
    assert "FASTCNN_MAX_BYTES" in str(entry.reason)


def test_a_list_that_changes_is_noticed() -> None:
    Path("list.txt").write_text("a.png\nb.png\n")
    (shard,) = find_shards(["list.txt"])
    Path("list.txt").write_text("a.png\nc.png\n")
    with pytest.raises(SourceError, match="was changed"):
        list(entries(shard))
