"""Shards that lie elsewhere than on this machine's disks: their lists, their index, their bytes."""

import os
import re
import tempfile
import tracemalloc
from collections import Counter

import numpy as np
import pytest

from tests.data_pipeline.make import small_set
from tests.storages import Memory
from vtx_scale.data_pipeline import chunks, hold_out
from vtx_scale.data_pipeline.errors import BadSample, UserError
from vtx_scale.data_pipeline.index import TAG, UNFINISHED, Index, index_name, read, save
from vtx_scale.data_pipeline.opening import open_index
from vtx_scale.data_pipeline.order import Order
from vtx_scale.data_pipeline.read import ChunkReader
from vtx_scale.data_pipeline.remote import index_remote
from vtx_scale.data_pipeline.shards import Shards, bucket_shards, in_bucket
from vtx_scale.data_pipeline.storage import Head, short_hash
from vtx_scale.data_pipeline.tools.verify import verify
from vtx_scale.launch import opened
from vtx_scale.launch.sharing import let_go


class Bucket(Memory):
    """Counts what it is asked for, and may answer a range with another bit."""

    def __init__(self, url="memory"):
        super().__init__()
        self.url, self.asked, self.flips = url, Counter(), 0

    def __str__(self):
        return self.url

    def get_range(self, name, offset, length, tag=None):
        self.asked["GET"] += 1
        body = super().get_range(name, offset, length, tag)
        if self.flips and name.endswith(".tar"):
            self.flips -= 1
            return body[:-1] + bytes([body[-1] ^ 1])
        return body

    def head(self, name):
        self.asked["HEAD"] += 1
        return super().head(name)

    def list(self, prefix):
        self.asked["LIST"] += 1
        return super().list(prefix)


@pytest.fixture
def both(tmp_path):
    """(a local index, a bucket with the same shards, those shards)."""
    folder = small_set(tmp_path / "d", (30, 7, 41))
    local, bucket = open_index(str(folder), chunk=4), Bucket(f"memory{tmp_path}")
    for path in sorted(folder.glob("*.tar")):
        bucket.put(path.name, path.read_bytes())
    return local, bucket, Shards(bucket, local.names, "s3://bkt/d")


LISTS = {
    "s3://bkt/d/s{0..2}.tar": ("s3://bkt/d", ["s0.tar", "s1.tar", "s2.tar"]),
    "S3://bkt/d/{b,a}/x.tar": ("s3://bkt/d", ["a/x.tar", "b/x.tar"]),
    "s3://bkt/x.tar,s3://bkt/d/y.tar": ("s3://bkt/", ["d/y.tar", "x.tar"]),
    "s3://bkt/d/x.tar::s3://bkt/d/a.tar": ("s3://bkt/d", ["a.tar", "x.tar"]),
    "s3://bkt/d/": ("s3://bkt/d/", []),
    "s3://bkt": ("s3://bkt", []),
}


@pytest.mark.parametrize("text", LISTS)
def test_lists_of_a_bucket(text):
    root, names = LISTS[text]
    found = bucket_shards(text, Bucket)
    assert in_bucket(text) and (found.root.url, found.names) == (root, names)
    assert found.folder == (None if names else "")


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("s3://bkt/*.tar", "not matched"),
        ("s3://bkt/{a,b}*.tar", "not matched"),
        ("s3://bkt/a//b/x.tar", "without //"),
        ("s3://bkt/./a/x.tar", "without //"),
        ("s3://bkt/a.tar,s3://bkt//c/b.tar", "without //"),
        ("s3://bkt/a.tar,/data/b.tar", "in a bucket"),
        ("s3://bkt/a.tar,s3://ckt/b.tar", "2 buckets"),
        ("s3://bkt/a.tar,s3://bkt/a.tar", "named twice"),
        ("s3://bkt/d/,s3://bkt/x.tar", "one folder"),
        ("s3://bkt/{0..99999999}.tar", "1,000,000"),
    ],
)
def test_lists_of_a_bucket_that_are_refused(text, word):
    with pytest.raises(UserError, match=word):
        bucket_shards(text, Bucket)


@pytest.mark.parametrize(
    "text",
    [
        "s3://bkt/x.tar?X-Amz-Credential=AKIAX&X-Amz-Signature=SECRETSIG",
        "s3://AKIAX:SECRETKEY@bkt/*.tar",
        "s3://AKIAX:SECRETKEY@bkt/{0..9}.tar,/data/x.tar",
        "/data/x.tar,s3://bkt/x.tar#SECRET",
    ],
)
def test_keys_in_an_address_are_not_repeated(text):
    with pytest.raises(UserError, match="no key") as refusal:
        bucket_shards(text, Bucket)
    assert "SECRET" not in str(refusal.value) and "AKIA" not in str(refusal.value)


def test_the_index_is_that_of_a_folder_and_opens_with_three_requests(both):
    local, bucket, shards = both
    with pytest.raises(UserError, match='run "vtx data index s3://bkt/d"'):
        open_index(shards, chunk=4)
    bucket.asked.clear()
    indexed = index_remote(shards, chunk=4)
    assert indexed.digest == local.digest
    # one more HEAD and GET: whether the set is being written, and whether a quarantine is kept
    assert dict(bucket.asked) == {"HEAD": 1 + 3, "GET": 3 + 1}, "each shard is read once"
    bucket.asked.clear()
    opened = open_index(shards, chunk=4)
    assert opened.digest == local.digest and dict(bucket.asked) == {"GET": 1, "HEAD": 2}


def test_a_folder_is_listed_once_when_it_is_indexed_and_never_when_it_is_opened(both):
    local, bucket, _ = both
    bucket.put("deep/x.tar", b"")
    folder = Shards(bucket, [], "s3://bkt/d", "")
    index_remote(folder, chunk=4)
    assert bucket.asked["LIST"] == 1
    bucket.asked.clear()
    opened = open_index(folder, chunk=4)
    assert opened.names == local.names and opened.digest == local.digest
    assert dict(bucket.asked) == {"GET": 1, "HEAD": 2}
    # the list by name finds it too
    assert open_index(Shards(bucket, local.names, "x"), chunk=4).digest == local.digest
    with pytest.raises(UserError, match="holds no"):
        index_remote(Shards(Bucket(), [], "s3://bkt/d", ""))


@pytest.mark.parametrize("below", ["", "deep/"])
@pytest.mark.parametrize("cache", [False, True])
def test_half_a_set_in_a_bucket_is_nobodys(both, below, cache):
    """By its folder or by names, in whichever folder it is that is being written."""
    _, bucket, shards = both
    body = bucket.objects["s0.tar"][0]
    bucket.put("deep/s3.tar", body)
    bucket.put(f"{below}{UNFINISHED}", b'{"plan": "abc"}')
    named = Shards(bucket, ["deep/s3.tar", *shards.names], "s3://b/d/{deep/s3,s0,s1,s2}.tar")
    lists = [named] if below else [named, shards, Shards(bucket, [], "s3://b/d", "")]
    for half in lists:
        with pytest.raises(UserError, match="is not complete: run the command"):
            index_remote(half, chunk=4, cache=cache)
    assert not any(name.endswith("index.safetensors") for name in bucket.objects)
    bucket.delete(f"{below}{UNFINISHED}")
    for whole in lists:
        assert index_remote(whole, chunk=4, cache=cache).n


def test_where_nothing_may_be_written_it_lies_in_the_cache(both):
    local, bucket, shards = both

    def put(name, body):
        raise PermissionError(13, "the server refuses it")

    bucket.put = put
    with pytest.raises(UserError, match="add --cache"):
        index_remote(shards, chunk=4)
    index_remote(shards, chunk=4, cache=True)
    assert open_index(shards, chunk=4).digest == local.digest


def test_shards_that_were_written_anew_are_found(both):
    """The first and the last when the set is opened, each other one when it is read."""
    local, bucket, shards = both
    index_remote(shards, chunk=4)
    opened = open_index(shards, chunk=4)
    plain = dict(bucket.objects)
    for name, word in (("s0.tar", "anew"), ("s2.tar", "anew"), ("s1.tar", "")):
        bucket.objects = dict(plain)
        bucket.put(name, plain[name][0])
        if word:
            with pytest.raises(UserError, match=word):
                open_index(shards, chunk=4)
        else:
            open_index(shards, chunk=4)
        g = int(opened.sample_first[opened.chunk_first[local.names.index(name)]])
        with pytest.raises(UserError, match="shard_changed"):
            ChunkReader(opened).sample(g)
        bucket.delete(name)
        with pytest.raises(UserError, match="gone"):
            ChunkReader(opened).sample(g)
    bucket.objects = dict(plain)
    name = f".vtx/{index_name(local.names, 4)}"
    body, tag = plain[name]
    for at in range(len(body) - 400, len(body), 37):
        bucket.objects[name] = body[:at] + bytes([body[at] ^ 4]) + body[at + 1 :], tag
        with pytest.raises(UserError, match="cannot be read"):
            open_index(shards, chunk=4)
    bucket.put(f".vtx/{index_name(local.names, 4)}", b"torn")
    with pytest.raises(UserError, match="cannot be read"):
        open_index(shards, chunk=4)


def everything(reader, n):
    return [
        (reader.id(g), {k: v for k, v in reader.sample(g).items() if k != "__url__"})
        for g in range(n)
    ]


def test_samples_are_those_of_a_folder_by_one_request_a_chunk(both):
    local, bucket, shards = both
    index_remote(shards, chunk=4)
    remote = open_index(shards, chunk=4)
    bucket.asked.clear()
    assert everything(ChunkReader(remote), remote.n) == everything(ChunkReader(local), local.n)
    assert dict(bucket.asked) == {"GET": len(local.chunk_bytes)}


def test_little_memory_costs_requests_and_changes_no_byte(both):
    local, bucket, shards = both
    index_remote(shards, chunk=4)
    remote = open_index(shards, chunk=4)
    source = chunks.Copies(remote, bucket, kept=1)
    bucket.asked.clear()
    reader = ChunkReader(remote, source=source)
    turns = [g for pair in zip(range(0, 30), range(40, 70), strict=True) for g in pair]
    expected = ChunkReader(local)
    for g in turns:
        assert reader.sample(g)["jpg"] == expected.sample(g)["jpg"]
        assert source._bytes <= local.chunk_bytes.max()
    assert bucket.asked["GET"] >= 60


@pytest.mark.parametrize("flips", [1, 3, 4, 10**9])
def test_no_byte_is_used_of_a_chunk_with_another_checksum(both, flips):
    """A fault that passes costs requests alone; one that stays masks the chunk's samples."""
    local, bucket, shards = both
    index_remote(shards, chunk=4)
    remote = open_index(shards, chunk=4)
    for kept in (1, 1 << 20):
        reader = ChunkReader(remote, source=chunks.Copies(remote, bucket, kept))
        bucket.flips = flips
        if flips < chunks.FETCHES:
            assert reader.sample(0)["jpg"] == ChunkReader(local).sample(0)["jpg"]
        else:
            with pytest.raises(BadSample, match="chunk_crc"):
                reader.sample(0)
            assert reader.id(0) == "s0.tar/0-00"
        # a table that is known, of a chunk that is fetched once more
        bucket.flips = 0
        reader = ChunkReader(remote, source=chunks.Copies(remote, bucket, kept=1))
        assert reader.sample(0) and reader.sample(40)
        bucket.flips = flips
        if flips < chunks.FETCHES:
            assert reader.sample(1)["jpg"] == ChunkReader(local).sample(1)["jpg"]
        else:
            with pytest.raises(BadSample, match="read_error"):
                reader.sample(1)
        bucket.flips = 0


def test_a_server_that_is_gone_ends_the_run_and_masks_few(both):
    _, bucket, shards = both
    index_remote(shards, chunk=4)
    remote = open_index(shards, chunk=4)
    source = chunks.Copies(remote, bucket)

    def get_range(*_):
        raise OSError(5, "the server did not answer")

    plain, bucket.get_range = bucket.get_range, get_range
    with pytest.raises(OSError, match="did not answer"):
        source.at(0)
    bucket.get_range = plain
    source.at(0)
    bucket.get_range = get_range
    for k in (1, 2):
        with pytest.raises(OSError, match="did not answer"):
            source.at(k)
    with pytest.raises((UserError, OSError)) as third:
        source.at(3)
    assert "in a row" in str(third.value)

    # one chunk alone is masked, after the requests that its storage makes
    asked = []

    def but_one(name, offset, *rest):
        if (name, offset) == ("s0.tar", int(remote.extent(1)[1])):
            asked.append(offset)
            raise OSError(5, "the server did not answer")
        return plain(name, offset, *rest)

    bucket.get_range = but_one
    reader = ChunkReader(remote)
    for g in range(remote.n):
        if 4 <= g < 8:
            with pytest.raises(BadSample, match="read_error"):
                reader.sample(g)
        else:
            reader.sample(g)
    assert len(asked) == 1

    def refused(*_):
        raise PermissionError(13, "the server refuses it (403)")

    bucket.get_range = refused
    with pytest.raises(UserError, match="give keys"):
        chunks.Copies(remote, bucket).at(0)


def test_what_is_held_out_is_found_once(both):
    local, bucket, shards = both
    index_remote(shards, chunk=4)
    remote = open_index(shards, chunk=4)
    with pytest.raises(UserError, match="--hold-out 0.25"):
        hold_out.split(remote, 0.25)
    words = hold_out.Words()
    bucket.asked.clear()
    index_remote(shards, chunk=4, key=words)
    assert bucket.asked["HEAD"] == 4, "the shards are read once for both"
    hold_out.store(remote, 0.25, words.mask(0.25))
    hold_out._splits.clear()
    bucket.asked.clear()
    found = hold_out.split(open_index(shards, chunk=4), 0.25)
    assert dict(bucket.asked) == {"GET": 2, "HEAD": 2}
    wanted = hold_out.split(local, 0.25)
    assert [i.keep.tolist() for i in found] == [i.keep.tolist() for i in wanted]


def test_who_may_only_read_goes_on_with_an_index_of_its_own(both):
    """The one beside the shards is its owner's, who wrote a shard anew."""
    _, bucket, shards = both
    index_remote(shards, chunk=4)
    bucket.put("s0.tar", bucket.objects["s1.tar"][0])

    def put(name, body):
        raise PermissionError(13, "the server refuses it")

    bucket.put = put
    with pytest.raises(UserError, match="written anew"):
        open_index(shards, chunk=4)
    words = hold_out.Words()
    mine = index_remote(shards, chunk=4, cache=True, key=words)
    hold_out.store(mine, 0.25, words.mask(0.25))
    opened = open_index(shards, chunk=4)
    assert opened.digest == mine.digest
    assert hold_out.split(opened, 0.25)[1].n == words.mask(0.25).sum()


def test_a_mask_in_the_cache_serves_an_index_beside_the_shards(both):
    _, _, shards = both
    beside = index_remote(shards, chunk=4)
    words = hold_out.Words()
    mine = index_remote(shards, chunk=4, cache=True, key=words)
    hold_out.store(mine, 0.375, words.mask(0.375))
    hold_out._splits.clear()
    assert hold_out.split(beside, 0.375)[1].n == words.mask(0.375).sum()


@pytest.mark.parametrize("harm", ["torn", "short"])
def test_a_torn_mask_is_never_trusted(tmp_path, harm):
    folder = small_set(tmp_path / "d", (30,))
    index = open_index(str(folder))
    hold_out._splits.clear()
    kept = hold_out.split(index, 0.5)[0].keep.tolist()
    (mask,) = (folder / ".vtx").glob("split-*")
    body = mask.read_bytes()
    assert re.fullmatch(r"split-[0-9a-f]{32}-0\.5\.safetensors", mask.name)
    mask.write_bytes(body[:-1] if harm == "short" else b"torn")
    hold_out._splits.clear()
    assert hold_out.split(index, 0.5)[0].keep.tolist() == kept
    assert len(mask.read_bytes()) == len(body)


def test_verify_says_the_same_of_both(both):
    local, bucket, shards = both
    body = bytearray(bucket.objects["s1.tar"][0])
    body[700:720] = bytes(20)
    bucket.put("s1.tar", bytes(body))
    local.root.put("s1.tar", bytes(body))
    assert list(verify(shards)) == list(verify(str(local.root))) != []


def test_the_first_version_of_an_index_is_read(tmp_path):
    """Its tags are 32 bytes wide."""
    from safetensors.numpy import load_file, save_file

    folder = small_set(tmp_path / "d")
    index = open_index(str(folder))
    tensors = load_file(index.file)
    tensors["shard_tag"] = tensors["shard_tag"].reshape(-1, TAG)[:, :32].reshape(-1).copy()
    about = {"format": "vtx-index", "version": "1", "cap": str(8 << 20)}
    save_file(tensors, index.file, metadata=about)
    written, lines = index.file.read_bytes(), []
    again = open_index(str(folder), say=lines.append)
    assert again.digest == index.digest and lines == [] and index.file.read_bytes() == written


def synthetic(bucket, shards, samples):
    """An index of so many shards without a tar, of 250 samples a chunk."""
    sizes = np.full(shards, samples // shards)
    sizes[: samples % shards] += 1
    counts = -(-sizes // 250)
    chunk_samples = np.full(int(counts.sum()), 250)
    last = np.cumsum(counts) - 1
    chunk_samples[last] = sizes - 250 * (counts - 1)
    chunk_bytes = chunk_samples * 20_000
    return Index(
        bucket,
        [f"{i:05d}.tar" for i in range(shards)],
        (sizes * 20_000 + 1024).astype(np.uint64),
        np.zeros(shards, np.uint64),
        counts.astype(np.uint32),
        np.tile(np.frombuffer(b"t" * TAG, np.uint8), (shards, 1)),
        chunk_samples.astype(np.uint16),
        chunk_bytes.astype(np.uint32),
        np.arange(len(chunk_bytes), dtype=np.uint32),
    )


def test_400_million_samples_open_in_a_second_and_4096_ranks_ask_once(tmp_path):
    """41,000 shards by arithmetic; seconds of this process."""
    import time

    bucket = Bucket()
    whole = synthetic(bucket, 41_000, 400_060_652)
    save(whole, tmp_path / "index")
    tracemalloc.start()
    began = time.process_time()
    index = read(tmp_path / "index", bucket)
    opened = time.process_time() - began
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert index.n == 400_060_652 and index.digest == whole.digest
    assert opened < 1 and peak < 150 << 20, (opened, peak)
    order = Order(index.chunk_samples, seed=1)
    order.share(3, 32_768, 0, 4096)  # the epoch's tables
    began = time.process_time()
    share = order.share(9_999, 32_768, 4_095, 4096)
    assert time.process_time() - began < 1 and len(share) == 8
    seen = set()
    for rank in range(4096):
        seen.update(order.share(9_999, 32_768, rank, 4096).tolist())
    assert len(seen) == 32_768 and not bucket.asked


class Untold(Bucket):
    """Says of every shard that it is as it was indexed."""

    def head(self, name):
        self.asked["HEAD"] += 1
        return Head(1, "t" * TAG)


def test_one_rank_asks_and_the_others_are_given_what_it_was_told(tmp_path):
    bucket = Untold(f"memory{tmp_path}")
    whole = synthetic(bucket, 1_000, 1_000_000)
    save(whole, tmp_path / "index")
    bucket.put(".vtx/index.safetensors", (tmp_path / "index").read_bytes())
    bucket.put("classes.txt", b"cat\ndog\n")
    shards = Shards(bucket, [], f"s3://bkt/{tmp_path.name}", "")
    opened.forget()
    first = opened.opened(shards)
    assert opened.opened(shards) is first and first[1] == ["cat", "dog"]
    assert dict(bucket.asked) == {"GET": 2, "HEAD": 2}
    (tmp_path / "kept").mkdir()
    opened.keep(tmp_path / "kept", 0)
    for _ in range(64):
        index, classes = opened.given(tmp_path / "kept" / short_hash(shards.title), shards)
        assert classes == first[1] and index.digest == whole.digest
    assert dict(bucket.asked) == {"GET": 2, "HEAD": 2}
    opened.forget()


def test_what_was_shared_is_let_go_with_its_run(tmp_path, monkeypatch):
    """The next run in the same process asks anew."""
    folder = tempfile.TemporaryDirectory(dir=tmp_path)
    monkeypatch.setenv(opened.KEPT, folder.name)
    opened._opened["s3://bkt/d"] = None, None
    let_go(folder)
    assert opened.KEPT not in os.environ and not opened._opened
    assert not os.path.exists(folder.name)
