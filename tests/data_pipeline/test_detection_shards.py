"""Broken shards, one test a row of the table in docs/data.md:
what is wrong is found, named, and harms nothing else.
"""

import bz2
import gzip
import io
import lzma
import os
import pickle
import tarfile

import pytest

from tests.data_pipeline.make import (
    jpeg,
    masked,
    small_index,
    small_set,
    verified,
)
from vtx_scale.data_pipeline.errors import BadSample, UserError
from vtx_scale.data_pipeline.opening import open_index
from vtx_scale.data_pipeline.read import ChunkReader
from vtx_scale.data_pipeline.tools.shards import write_shard
from vtx_scale.data_pipeline.tools.verify import verify

GOOD = {"jpg": jpeg(), "txt": b"a picture"}


def body_of(*members: tuple[str, bytes], end: bool = True) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name, body in members:
            info = tarfile.TarInfo(name)
            info.size = len(body)
            tar.addfile(info, io.BytesIO(body))
    return out.getvalue()


TWO = body_of(("a.jpg", GOOD["jpg"]), ("a.txt", b"t"), ("b.txt", b"t"), ("b.jpg", GOOD["jpg"]))
LAST = TWO.index(b"b.jpg")  # its header


def test_tar_that_ends_inside_a_member(tmp_path):
    (tmp_path / "a.tar").write_bytes(TWO[: LAST + 700])
    assert open_index(str(tmp_path)).n == 2, "the cut sample keeps its number"
    assert masked(tmp_path) == verified(tmp_path) == {"a.tar/b": "tar_truncated"}


def test_tar_that_ends_inside_a_header(tmp_path):
    (tmp_path / "a.tar").write_bytes(TWO[: LAST + 300])
    lines = []
    index = open_index(str(tmp_path), say=lines.append)
    assert index.n == 2 and len(lines) == 1 and "tar_tail" in lines[0]
    assert masked(tmp_path) == {"a.tar/b": "member_missing"}
    assert verified(tmp_path) == {"a.tar/b": "member_missing", "a.tar/": "tar_tail"}


def test_missing_end_blocks_are_legal(tmp_path):
    (tmp_path / "a.tar").write_bytes(TWO[: LAST + 512 + -(-len(GOOD["jpg"]) // 512) * 512])
    lines = []
    assert open_index(str(tmp_path), say=lines.append).n == 2 and lines == []
    assert masked(tmp_path) == verified(tmp_path) == {}


def test_header_with_a_wrong_checksum(tmp_path):
    """The walk goes on at the next header; half a sample is left and is masked."""
    at = TWO.index(b"a.txt")
    (tmp_path / "a.tar").write_bytes(TWO[:at] + b"X" + TWO[at + 1 :])
    lines = []
    index = open_index(str(tmp_path), say=lines.append)
    assert index.n == 2 and len(lines) == 1 and "tar_header 1024 bytes passed over" in lines[0]
    assert masked(tmp_path) == {"a.tar/a": "member_missing"}
    assert verified(tmp_path) == {"a.tar/a": "member_missing", "a.tar/": "tar_header"}


@pytest.mark.parametrize(
    "pack", [gzip.compress, bz2.compress, lzma.compress, lambda b: b"\x28\xb5\x2f\xfd" + b]
)
def test_compressed_tars_are_refused_whatever_their_name(tmp_path, pack):
    (tmp_path / "a.tar").write_bytes(pack(TWO))
    for read in (open_index, lambda s: list(verify(s))):
        with pytest.raises(
            UserError, match="unpack it with '(gzip|bzip2|xz|zstd) -dc .*a.tar > "
        ) as refusal:
            read(str(tmp_path))
        assert "\n" not in str(refusal.value)


def test_links_devices_and_pipes_are_counted_and_never_opened(tmp_path):
    secret = tmp_path / "secret.txt"
    secret.write_bytes(b"not for training")
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, type_ in (
            ("a.txt", tarfile.SYMTYPE),
            ("b.txt", tarfile.LNKTYPE),
            ("c.txt", tarfile.FIFOTYPE),
            ("d.txt", tarfile.CHRTYPE),
            ("e.txt", tarfile.BLKTYPE),
        ):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = type_, str(secret)
            tar.addfile(info)
        for extension, body in GOOD.items():
            info = tarfile.TarInfo(f"f.{extension}")
            info.size = len(body)
            tar.addfile(info, io.BytesIO(body))
    (tmp_path / "a.tar").write_bytes(out.getvalue())
    lines = []
    index = open_index(str(tmp_path), say=lines.append)
    assert [ChunkReader(index).id(g) for g in range(index.n)] == ["a.tar/f"]
    assert len(lines) == 5 and all("member_type" in line for line in lines)
    assert masked(tmp_path) == verified(tmp_path) == {}


def test_names_that_would_escape_are_text(tmp_path, monkeypatch):
    """Absolute names, `..` and control characters: used as keys, escaped,
    and nothing is written anywhere.
    """
    monkeypatch.chdir(tmp_path)
    (tmp_path / "d").mkdir()
    names = ["/etc/passwd", "../../up", "x\x1b[2Jy", "new\nline"]
    (tmp_path / "d" / "a.tar").write_bytes(
        body_of(*((f"{n}.{x}", b) for n in names for x, b in GOOD.items()))
    )
    lines = []
    index = open_index("d", say=lines.append)
    reader = ChunkReader(index)
    assert [reader.id(g) for g in range(4)] == [
        "a.tar//etc/passwd",
        "a.tar/../../up",
        r"a.tar/x\x1b[2Jy",
        r"a.tar/new\nline",
    ]
    assert len(lines) == 8 and all("member_name" in x and x.isprintable() for x in lines)
    assert reader.sample(1)["txt"] == b"a picture" and verified(tmp_path / "d") == {}
    assert {p.name for p in tmp_path.iterdir()} == {"d"}


def test_a_name_longer_than_any_path_is_passed_over(tmp_path):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for name in ("x" * 5000 + ".jpg", "a.txt"):
            info = tarfile.TarInfo(name)
            info.size = 1
            tar.addfile(info, io.BytesIO(b"1"))
    (tmp_path / "a.tar").write_bytes(out.getvalue())
    lines = []
    assert (
        open_index(str(tmp_path), say=lines.append).n == 1
        and "member_name" in lines[0]
        and len(lines[0]) < 300
    )


def test_a_repeated_extension_begins_a_sample(tmp_path):
    (tmp_path / "a.tar").write_bytes(
        body_of(
            ("k.jpg", GOOD["jpg"]),
            ("k.txt", b"one"),
            ("k.jpg", GOOD["jpg"]),
            ("k.txt", b"two"),
            ("k.txt", b"three"),
        )
    )
    lines = []
    index = open_index(str(tmp_path), say=lines.append)
    reader = ChunkReader(index)
    assert [reader.id(g) for g in range(3)] == ["a.tar/k", "a.tar/k#2", "a.tar/k#3"]
    assert reader.sample(1)["txt"] == b"two" and sum("member_repeated" in x for x in lines) == 2
    assert masked(tmp_path) == verified(tmp_path) == {"a.tar/k#3": "member_missing"}


def test_a_member_of_more_than_64_megabytes(tmp_path, monkeypatch):
    """It keeps its number, is masked unread, and its neighbours are whole."""
    info = tarfile.TarInfo("b.jpg")
    info.size = (64 << 20) + 1
    with (tmp_path / "a.tar").open("wb") as f:
        first = body_of(*((f"a.{x}", b) for x, b in GOOD.items())).rstrip(b"\0")
        f.write(first.ljust(-(-len(first) // 512) * 512, b"\0"))
        at = f.tell()
        f.write(info.tobuf(tarfile.USTAR_FORMAT))
        f.truncate(at + 512 + (64 << 20) + 512)  # a hole on disk
        f.seek(0, 2)
        f.write(body_of(*((f"c.{x}", b) for x, b in GOOD.items())))
    index = open_index(str(tmp_path))
    assert (
        index.n == 3
        and index.bad == {1: "member_size"}
        and index.chunk_samples.tolist() == [1, 1, 1]
    )
    reader, lengths = ChunkReader(index), []
    file, _ = reader._source.at(0)
    read = file.read
    monkeypatch.setattr(
        file, "read", lambda offset, length: (lengths.append(length), read(offset, length))[1]
    )
    assert reader.id(1) == "a.tar/b" and max(lengths) <= 1 << 20, (
        "its name is known without its bytes"
    )
    assert masked(tmp_path) == verified(tmp_path) == {"a.tar/b": "member_size"}


def test_an_image_without_bytes(tmp_path):
    write_shard(tmp_path / "a.tar", [("a", GOOD), ("b", {**GOOD, "jpg": b""})])
    assert open_index(str(tmp_path)).bad == {1: "empty"}
    assert masked(tmp_path) == verified(tmp_path) == {"a.tar/b": "empty"}


class Trap:
    """Makes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize(
    "extension", ["pyd", "pkl", "pickle", "pt", "pth", "meta.pkl", "pkl.gz", "PKL"]
)
def test_members_that_hold_code_are_never_read(tmp_path, extension):
    trap = pickle.dumps(Trap(tmp_path / "sprung"))
    write_shard(tmp_path / "a.tar", [("a", {**GOOD, extension: trap}), ("b", {extension: b"x"})])
    lines = []
    index = open_index(str(tmp_path), say=lines.append)
    reader = ChunkReader(index)
    assert {x for x in reader.sample(0) if not x.startswith("__")} == {"jpg", "txt"}
    assert {x for x in reader.sample(1) if not x.startswith("__")} == set()
    assert sum("member_ignored" in x for x in lines) == 2
    assert masked(tmp_path) == verified(tmp_path) == {"a.tar/b": "member_missing"}
    assert not (tmp_path / "sprung").exists()


def test_an_empty_file_and_a_tar_without_members(tmp_path):
    (tmp_path / "a.tar").write_bytes(b"")
    write_shard(tmp_path / "b.tar", [])
    write_shard(tmp_path / "c.tar", [("k", GOOD)])
    index = open_index(str(tmp_path))
    assert index.shard_chunks.tolist() == [0, 0, 1] and ChunkReader(index).id(0) == "c.tar/k"
    assert masked(tmp_path) == {} and verified(tmp_path) == {"a.tar/": "tar_tail"}


def test_a_shard_that_is_gone_or_another_size_stops(tmp_path):
    """The order can no longer be kept, so nothing is masked in silence."""
    index = small_index(small_set(tmp_path))
    (tmp_path / "s1.tar").unlink()
    with pytest.raises(UserError, match="s1.tar is gone .shard_changed"):
        ChunkReader(index).sample(5)
    with (tmp_path / "s2.tar").open("ab") as f:
        f.write(bytes(512))
    with pytest.raises(UserError, match="when it was indexed .shard_changed"):
        ChunkReader(index).sample(8)
    assert ChunkReader(index).sample(0)["txt"] == b"picture 0 0"


def test_a_shard_cut_while_it_is_read(tmp_path):
    """A mapped file would end the process here; what lies behind the cut is masked."""
    index = small_index(small_set(tmp_path))
    reader = ChunkReader(index)
    assert reader.sample(6)["txt"] == b"picture 2 0" and reader.sample(7)
    os.truncate(tmp_path / "s2.tar", reader.place(7)["offset"] + 600)
    assert reader.sample(6)["txt"] == b"picture 2 0"
    for g in (7, 8, 9):  # of a chunk that was read before, and of one that was not
        with pytest.raises(BadSample, match="read_error"):
            reader.sample(g)
    assert reader.sample(0)["txt"] == b"picture 0 0"


def test_three_unreadable_chunks_within_a_minute_stop(tmp_path):
    index = small_index(small_set(tmp_path))
    reader = ChunkReader(index)
    reader.sample(6)
    os.truncate(tmp_path / "s2.tar", 100)
    for g in (8, 9, 10):  # two chunks
        with pytest.raises(BadSample, match="read_error"):
            reader.sample(g)
    with pytest.raises(
        UserError, match="3 chunks could not be read within a minute, the last of .*s2.tar"
    ):
        reader.sample(12)


def test_a_chunk_whose_checksum_differs_is_read_four_times(tmp_path, monkeypatch):
    """A fault that passes costs nothing; one that stays masks the chunk."""
    index = small_index(small_set(tmp_path))
    reader = ChunkReader(index)
    file, _ = reader._source.at(0)
    good, reads = file.read, []

    def flaky(offset, length):
        reads.append((offset, length))
        body = good(offset, length)
        return body if len(reads) > times else bytes(100) + body[100:]

    monkeypatch.setattr(file, "read", flaky)
    times = 3
    assert (
        reader.sample(0)["txt"] == b"picture 0 0"
        and len([r for r in reads if r[1] == index.chunk_bytes[0]]) == 4
    )
    times, before = 10**9, len(reads)
    with pytest.raises(BadSample, match="chunk_crc"):
        reader.sample(2)
    assert len(reads) == before + 4
    assert reader.id(3) == "s0.tar/0-03", "names are read where headers stand"


def test_a_chunk_with_another_number_of_samples(tmp_path):
    index = small_index(small_set(tmp_path))
    index.chunk_samples_all = index.chunk_samples_all.copy()
    index.chunk_samples_all[[4, 5]] = 3, 1
    index.__post_init__()
    reader = ChunkReader(index)
    for g in (6, 8, 9):
        with pytest.raises(BadSample, match="chunk_walk"):
            reader.sample(g)
        assert reader.id(g).startswith("s2.tar/?")
    assert reader.sample(5)["txt"] == b"picture 1 0"
