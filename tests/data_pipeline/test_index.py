"""The index: chunks, names, where it lies, when it is made again, and what a split keeps."""

import hashlib
import os
import pickle
import shutil
import tarfile
import zlib

import pytest
from safetensors.numpy import load_file

from tests.data_pipeline.make import jpeg, rows, small_index, small_set
from vtx_scale.data_pipeline import opening, scan
from vtx_scale.data_pipeline.errors import UserError
from vtx_scale.data_pipeline.hold_out import split
from vtx_scale.data_pipeline.opening import open_index
from vtx_scale.data_pipeline.read import ChunkReader
from vtx_scale.data_pipeline.tools.shards import write_shard


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def ids(index):
    reader = ChunkReader(index)
    return [reader.id(g) for g in range(index.n)]


def test_chunks_cover_the_shards(tmp_path):
    """Greedy chunks of at most C samples, each with the checksum of its own bytes."""
    index = small_index(small_set(tmp_path / "d"))
    assert index.chunk_samples.tolist() == [2, 2, 1, 1, 2, 2, 2, 2, 1] and index.n == 15
    for k in range(9):
        shard, offset = index.extent(k)
        extent = (tmp_path / "d" / index.names[shard]).read_bytes()[
            offset : offset + int(index.chunk_bytes[k])
        ]
        assert zlib.crc32(extent) == index.chunk_crc[k]
        assert extent.startswith(
            ids(index)[int(index.sample_first[k])].partition("/")[2].encode() + b".jpg"
        )
    assert ids(index) == [
        f"s{s}.tar/{s}-{i:02d}" for s, n in enumerate((5, 1, 9)) for i in range(n)
    ]


def test_a_chunk_is_full_at_its_size_in_bytes(tmp_path, monkeypatch):
    """The next sample would take it beyond the cap; one sample alone may be larger."""
    small_set(tmp_path / "d", (4,))
    one = 512 * (3 + 1 + 1) + -(-len(rows(0, 1)[0][1]["jpg"]) // 512) * 512
    for i, (cap, expected) in enumerate(
        ((3 * one - 1, [2, 2]), (3 * one, [3, 1]), (100, [1, 1, 1, 1]))
    ):
        monkeypatch.setattr(scan, "CAP", cap)
        assert open_index(str(tmp_path / "d"), chunk=100 + i).chunk_samples.tolist() == expected


def test_order_of_shards_is_that_of_their_names(tmp_path):
    """Not the order in which they are given; a name counts from the folder common to all."""
    for name in ("b/x.tar", "a/y.tar", "a/Z.tar"):
        write_shard(tmp_path / name, [(name[2], {"txt": b"t"})])
    given = open_index(f"{tmp_path}/b,{tmp_path}/a/y.tar,{tmp_path}/a/Z.tar")
    assert ids(given) == ["a/Z.tar/Z", "a/y.tar/y", "b/x.tar/x"]
    assert (
        given.digest
        == open_index(f"{tmp_path}/a/Z.tar,{tmp_path}/a/y.tar,{tmp_path}/b/x.tar").digest
    )


def test_it_lies_beside_the_data_under_a_name_of_the_list(tmp_path):
    folder = small_set(tmp_path / "d")
    whole, part = open_index(str(folder)), open_index(f"{folder}/s0.tar,{folder}/s2.tar")
    assert whole.file.parent == part.file.parent == folder / ".vtx" and whole.file != part.file
    assert part.n == 14 and whole.n == 15
    assert open_index(str(folder), chunk=2).file not in (whole.file, part.file)
    stored = load_file(whole.file)
    assert {k: (v.dtype.name, v.shape) for k, v in stored.items()} == {
        "names": ("uint8", (20,)),
        "shard_bytes": ("uint64", (3,)),
        "shard_first": ("uint64", (3,)),
        "shard_chunks": ("uint32", (3,)),
        "shard_tag": ("uint8", (192,)),
        "chunk_samples": ("uint16", (3,)),
        "chunk_bytes": ("uint32", (3,)),
        "chunk_crc": ("uint32", (3,)),
        "bad_sample": ("uint64", (0,)),
        "bad_reason": ("uint8", (0,)),
        "again_sample": ("uint64", (0,)),
        "again_times": ("uint32", (0,)),
    }


def test_it_is_made_once_and_again_with_one_line_when_a_shard_changes(tmp_path):
    folder, lines = small_set(tmp_path / "d"), []
    first = open_index(str(folder), say=lines.append)
    written = first.file.stat().st_mtime_ns
    again = open_index(str(folder), say=lines.append)
    assert again.file.stat().st_mtime_ns == written and again.digest == first.digest and lines == []
    write_shard(folder / "s1.tar", rows(1, 3))
    changed = open_index(str(folder), say=lines.append)
    assert changed.n == 17 and changed.digest != first.digest
    assert len(lines) == 1 and "stale" in lines[0]
    os.utime(folder / "s1.tar")
    assert open_index(str(folder), say=lines.append).digest == changed.digest and len(lines) == 2
    assert open_index(str(folder), say=lines.append).n == 17 and len(lines) == 2


@pytest.mark.parametrize("harm", ["cut", "empty", "foreign", "version"])
def test_a_torn_or_foreign_index_is_never_trusted(tmp_path, harm):
    folder, lines = small_set(tmp_path / "d"), []
    index = open_index(str(folder))
    body = index.file.read_bytes()
    if harm == "foreign":
        shutil.copy(open_index(f"{folder}/s0.tar").file, index.file)
    else:
        index.file.write_bytes(
            {
                "cut": body[: len(body) // 2],
                "empty": b"",
                "version": body.replace(b'"version":"2"', b'"version":"9"'),
            }[harm]
        )
    again = open_index(str(folder), say=lines.append)
    assert again.digest == index.digest and len(lines) == 1 and "cannot be read" in lines[0]
    assert open_index(str(folder), say=lines.append).digest == index.digest and len(lines) == 1


def test_in_a_folder_that_cannot_be_written_it_lies_in_the_cache(tmp_path):
    """A file stands where the index folder would be, which holds for every user."""
    folder, lines = small_set(tmp_path / "d"), []
    (folder / ".vtx").write_text("")
    index = open_index(str(folder), say=lines.append)
    assert index.file.is_relative_to(tmp_path / "cache") and lines == []
    written = index.file.stat().st_mtime_ns
    assert open_index(str(folder)).file.stat().st_mtime_ns == written, "it was made again"
    write_shard(folder / "s1.tar", rows(1, 2))
    assert open_index(str(folder), say=lines.append).n == 16 and "stale" in lines[0]


@pytest.mark.parametrize("torn", [False, True])
def test_a_stale_index_in_a_folder_that_became_read_only_does_not_hide_the_fresh_one(
    tmp_path, monkeypatch, torn
):
    folder, lines = small_set(tmp_path / "d"), []
    beside = open_index(str(folder)).file
    write_shard(folder / "s1.tar", rows(1, 2))
    save = opening.save

    def refused(index, path):
        if path == beside:
            raise PermissionError("read-only")
        save(index, path)

    monkeypatch.setattr(opening, "save", refused)
    assert open_index(str(folder), say=lines.append).n == 16 and len(lines) == 1
    if torn:
        beside.write_bytes(b"torn")
    again = open_index(str(folder), say=lines.append)
    assert again.n == 16 and len(lines) == 1 and again.file.is_relative_to(tmp_path / "cache")


def test_where_nothing_can_be_written_it_serves_without_a_file(tmp_path, monkeypatch):
    folder, lines = small_set(tmp_path / "d"), []
    (folder / ".vtx").write_text("")
    (tmp_path / "no").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "no"))
    index = open_index(str(folder), say=lines.append)
    assert index.n == 15 and index.file is None and "could not be stored" in lines[0]


def test_digest_knows_no_path(tmp_path):
    one = open_index(str(small_set(tmp_path / "one")))
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    two = open_index(str(tmp_path / "two"))
    assert one.digest == two.digest
    assert pickle.loads(pickle.dumps(one)).digest == one.digest
    assert len(pickle.dumps(one)) < 4000, "only what it is made of travels to the workers"


def test_known_bad_samples_and_repeated_keys_keep_numbers_and_names(tmp_path):
    good = {"jpg": jpeg(), "txt": b"t"}
    folder = tmp_path / "d"
    write_shard(
        folder / "a.tar",
        [("x", good), ("y", {**good, "jpg": b""}), ("x", good), ("y", good), ("y", good)],
    )
    write_shard(folder / "b.tar", [("x", good)])
    lines = []
    fresh = small_index(folder)
    stored = small_index(folder)
    for index in (fresh, stored):
        assert ids(index) == [
            "a.tar/x",
            "a.tar/y",
            "a.tar/x#2",
            "a.tar/y#2",
            "a.tar/y#3",
            "b.tar/x",
        ]
        assert index.bad == {1: "empty"} and index.again == {2: 2, 3: 2, 4: 3}
    assert open_index(str(folder), say=lines.append).n == 6
    assert any("member_repeated" in line for line in lines)


def test_problems_are_said_and_then_counted(tmp_path):
    folder, lines = tmp_path / "d", []
    write_shard(folder / "a.tar", [(f"/k\x07{i}", {"txt": b"t", "pkl": b"x"}) for i in range(30)])
    index = open_index(str(folder), say=lines.append)
    assert index.n == 30 and len(lines) == 41, "20 lines a reason and a sum"
    assert lines[-1] == "in all: 30 member_ignored, 60 member_name" and all(
        line.isprintable() for line in lines
    )


@pytest.fixture(scope="module")
def keyed(tmp_path_factory):
    """60 keys in four shards, and the same in two."""
    samples = [(f"k{i:03d}", {"jpg": jpeg(), "txt": b"t"}) for i in range(60)]
    four, two = tmp_path_factory.mktemp("four"), tmp_path_factory.mktemp("two")
    for s in range(4):
        write_shard(four / f"{s}.tar", samples[15 * s : 15 * s + 15])
    for s in range(2):
        write_shard(two / f"other-{s}.tar", samples[s::2])
    return four, two


def keys(index):
    return [i.partition("/")[2] for i in ids(index)]


def test_a_split_is_a_partition_by_key_alone(keyed):
    four, two = (open_index(str(x), chunk=4) for x in keyed)
    for share in (0.1, 0.25, 0.5):
        kept, held = split(four, share)
        assert sorted(keys(kept) + keys(held)) == sorted(keys(four)) and kept.n + held.n == 60
        assert set(keys(held)) == {
            k
            for k in keys(four)
            if int.from_bytes(hashlib.sha256(k.encode()).digest()[:8], "big") / 2**64 < share
        }
        assert set(keys(split(two, share)[1])) == set(keys(held)), (
            "other shards hold out other samples"
        )
        assert (
            kept.chunk_samples.sum() == kept.n and len({four.digest, kept.digest, held.digest}) == 3
        )
    assert set(keys(split(four, 0.1)[1])) < set(keys(split(four, 0.5)[1])), (
        "a larger share holds out what a smaller did"
    )


def test_a_split_reads_its_own_samples(keyed):
    whole = open_index(str(keyed[0]), chunk=4)
    kept, _ = split(whole, 0.25)
    reader = ChunkReader(kept)
    assert [reader.sample(g)["__key__"] for g in range(kept.n)] == keys(kept)
    assert [kept.number(g) for g in range(kept.n)] == sorted(
        {kept.number(g) for g in range(kept.n)}
    )


@pytest.mark.parametrize("share", [1.0, 1e-9])
def test_a_split_with_an_empty_side_is_refused(keyed, share):
    with pytest.raises(UserError, match="hold_out"):
        split(open_index(str(keyed[0])), share)


def test_a_sample_beyond_four_gigabytes_is_refused(tmp_path):
    info = tarfile.TarInfo("a.jpg")
    info.size = 5 << 30
    with (tmp_path / "a.tar").open("wb") as f:
        f.write(info.tobuf(tarfile.GNU_FORMAT))
        f.truncate(512 + (5 << 30) + 1024)  # a hole on disk
    with pytest.raises(UserError, match="4 GiB"):
        open_index(str(tmp_path))
