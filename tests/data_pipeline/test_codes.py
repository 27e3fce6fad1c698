"""Codes in place of pictures: the member, what is said beside them, and shards that are whole or
absent wherever the command that writes them is killed.
"""

import hashlib
import io
import multiprocessing
import os
import pickle
import shutil
import signal
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.data_pipeline.make import corrupt, jpeg, unreadable
from vtx_scale.data_pipeline.codes import (
    LIMIT,
    MEMBER,
    Coding,
    coding_in,
    coding_of,
    packed,
    unpacked,
)
from vtx_scale.data_pipeline.decode import decode_image
from vtx_scale.data_pipeline.errors import BadSample, UserError
from vtx_scale.data_pipeline.members import image
from vtx_scale.data_pipeline.opening import open_index
from vtx_scale.data_pipeline.read import ChunkReader
from vtx_scale.data_pipeline.storage import Folder
from vtx_scale.data_pipeline.tools import encode as tool
from vtx_scale.data_pipeline.tools.encode import SIZE, encode
from vtx_scale.data_pipeline.tools.shards import write_shard

SAMPLES = (2 * SIZE + 3, 1, SIZE)  # of each shard
LONG = "x" * 120  # a name that ustar has no room for
CODING = Coding("/runs/dvae", "0123456789abcdef", 8, 4, 300, 2, {"zoom": [1.0, 1.5]}, 7, "src")


class Crops:
    """Two crops of 8 x 8, the second where the sample's own numbers put it."""

    def blank(self):
        return {"image": np.zeros((2, 8, 8, 3), np.uint8)}

    def __call__(self, members, draw):
        pixels = decode_image(image(members))
        left = int(draw(0, 1)[0] * 20)
        return {"image": np.stack([pixels[:8, :8], pixels[8:16, left : left + 8]])}


def coder(pixels):
    """(B, 8, 8, 3) -> (B, 4, 4): sums of blocks, so that each code depends on its pixels."""
    blocks = pixels.astype(np.int64).reshape(-1, 4, 2, 4, 2, 3).sum((2, 4, 5))
    return blocks % CODING.vocab


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder, seed = tmp_path_factory.mktemp("pictures"), 0
    for s, count in enumerate(SAMPLES):
        rows = []
        for i in range(count):
            key = f"{LONG}/{i:03d}" if i == 1 else f"{s}/{i:03d}é"
            body = corrupt(jpeg(seed)) if (s, i) == (0, 5) else jpeg(seed)
            members = {"jpg": body, "txt": f"caption {seed}".encode(), "cls": b"3", "bin": b"no"}
            rows.append((key, members))
            seed += 1
        write_shard(folder / f"part-{s}.tar", rows)
    return folder


def whole_of(pictures, out, storage=Folder, **how):
    index = open_index(str(pictures))
    return encode(index, Crops(), how.pop("coder", coder), storage(out), CODING, **how)


def content(folder):
    return {
        p.relative_to(folder).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(folder.rglob("*"))
        if p.is_file() and ".vtx" not in p.parts
    }


@pytest.mark.parametrize(
    ("vocab", "dtype"), [(2, "<u2"), (65_536, "<u2"), (65_537, "<u4"), (1 << 31, "<u4")]
)
def test_there_and_back(vocab, dtype):
    codes = np.random.default_rng(vocab).integers(0, vocab, (3, 16))
    body = packed(codes, vocab)
    assert np.load(io.BytesIO(body), allow_pickle=False).dtype == dtype
    assert np.array_equal(unpacked({MEMBER: body}, 16, vocab), codes)
    assert packed(codes[:, ::-1][:, ::-1], vocab) == body  # whatever lies in memory


class Canary:
    """Writes a file where it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def refused(body, places=16, vocab=300):
    with pytest.raises(BadSample) as e:
        unpacked({MEMBER: body}, places, vocab)
    return e.value


def test_pickled_arrays_are_refused_and_their_canary_unwritten(tmp_path):
    objects = io.BytesIO()
    np.save(objects, np.array([[Canary(tmp_path / "a")]], dtype=object), allow_pickle=True)
    plain = pickle.dumps(Canary(tmp_path / "b"))
    shape = b"\x93NUMPY\x01\x00\x76\x00{'descr': '|O', 'fortran_order': False, 'shape': (1, 16), }"
    claimed = shape.ljust(127) + b"\n" + plain
    for body in (objects.getvalue(), plain, claimed):
        assert refused(body).reason == "codes"
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(FileExistsError):  # the canary sings where somebody lets it
        (tmp_path / "a").mkdir()
        np.load(io.BytesIO(objects.getvalue()), allow_pickle=True)


def npy(array):
    out = io.BytesIO()
    np.save(out, array)
    return out.getvalue()


def test_what_is_no_array_of_codes_is_a_bad_sample():
    good = np.arange(32).reshape(2, 16)
    words = {
        "3 dimensions": npy(good.astype(np.uint16).reshape(2, 4, 4)),
        "int64": npy(good),
        "float": npy(good.astype(np.float16)),
        "bytes": npy(good.astype(np.uint8)),
        "other places": npy(good.astype(np.uint16)[:, :15]),
        "no views": npy(good.astype(np.uint16)[:0]),
        "too large a code": npy(np.full((1, 16), 300, np.uint16)),
        "cut": packed(good, 300)[:-1],
        "more": packed(good, 300) + b"0",
        "by columns": npy(np.asfortranarray(good.astype(np.uint16))),
        "large": npy(np.zeros((1 + LIMIT // 32, 16), np.uint16)),
        "claims much": npy(good.astype(np.uint16)).replace(b"(2, 16)", b"(2000000000000, 16)"),
        "empty": b"",
    }
    for word, body in words.items():
        assert refused(body).reason == "codes", word
    with pytest.raises(BadSample, match="member_missing: codes.npy"):
        unpacked({}, 16, 300)
    with pytest.raises(ValueError, match="limit"):
        packed(np.zeros((LIMIT // 32 + 1, 16)), 300)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_changed_bytes_give_codes_or_a_bad_sample(data):
    body = bytearray(packed(np.arange(32).reshape(2, 16), 300))
    for _ in range(data.draw(st.integers(1, 4))):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    try:
        codes = unpacked({MEMBER: bytes(body)}, 16, 300)
    except BadSample as e:
        assert e.reason == "codes"
    else:
        assert codes.shape[1] == 16 and codes.max() < 300


def test_encoded_shards(pictures, tmp_path):
    lines = []
    out = whole_of(pictures, tmp_path, say=lines.append)
    assert (out.wrote, out.there, out.samples, out.bad) == (3, 0, sum(SAMPLES) - 1, 1)
    assert [line for line in lines if "left out" in line and "jpeg_corrupt" in line]
    there, here = open_index(str(pictures)), open_index(str(tmp_path))
    assert here.names == there.names and here.n == there.n - 1
    theirs, ours = ChunkReader(there), ChunkReader(here)
    lost = [g for g in range(there.n) if "005" in theirs.id(g)][:1]
    for g, old in enumerate(g for g in range(there.n) if g not in lost):
        before, now = theirs.sample(old), ours.sample(g)
        assert ours.id(g) == theirs.id(old)  # the key is kept
        assert {k for k in now if not k.startswith("__")} == {MEMBER, "txt", "cls"}
        assert now["txt"] == before["txt"] and now["cls"] == before["cls"]
        codes = unpacked(now, 16, CODING.vocab)
        pixels = decode_image(before["jpg"])
        assert codes.shape == (2, 16)
        assert np.array_equal(codes[0], coder(pixels[None, :8, :8])[0].ravel())
    assert coding_in(Folder(tmp_path)) == replace(CODING, shards=3)
    again = whole_of(pictures, tmp_path, coder=None)  # nothing is computed again
    assert (again.wrote, again.there) == (0, 3)


def test_workers_change_no_byte(pictures, tmp_path):
    whole_of(pictures, tmp_path / "a")
    whole_of(pictures, tmp_path / "b", workers=2)
    assert content(tmp_path / "a") == content(tmp_path / "b")


class Killed(Folder):
    """A folder whose process is killed at the n-th of its writes, before it or behind it."""

    left = 0

    def put_file(self, name, path):
        self.step()
        super().put_file(name, path)
        self.step()

    def put(self, name, body):
        self.step()
        super().put(name, body)
        self.step()

    @classmethod
    def step(cls):
        cls.left -= 1
        if cls.left == 0:
            os.kill(os.getpid(), signal.SIGKILL)


def child(pictures: Path, out: Path, writes: int, codes: int, members: int) -> None:
    """Killed at one of these: in a write, while codes are computed, or within a shard."""

    def killing(function, left):
        def counted(*rows):
            nonlocal left
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*rows)

        return counted

    Killed.left = writes
    tool.sample = killing(tool.sample, members)
    whole_of(pictures, out, Killed, coder=killing(coder, codes))


def test_killed_anywhere_and_run_again_gives_the_same_bytes(pictures, tmp_path):
    """Of its 10 writes (codec.json twice, 3 shards, before and behind), 10 batches, 27 samples."""
    whole_of(pictures, tmp_path / "whole")
    wanted = content(tmp_path / "whole")
    assert set(wanted) == {"codec.json", *(f"part-{s}.tar" for s in range(3))}
    context, ends = multiprocessing.get_context("fork"), set()
    places = [(n, 0, 0) for n in range(1, 11)] + [(0, n, 0) for n in range(1, 11)]
    for at in places + [(0, 0, n) for n in (1, 2, 11, 18, 19, 20, 27)]:
        out = tmp_path / "-".join(map(str, at))
        process = context.Process(target=partial(child, pictures, out, *at))
        process.start()
        process.join(60)
        assert process.exitcode == -signal.SIGKILL, at
        left = content(out) if out.exists() else {}
        ends.add(len(left))
        for name in left:  # whole or absent
            assert name == "codec.json" or name.endswith(".part") or left[name] == wanted[name]
        if wanted != left:
            with pytest.raises(UserError, match="go|has one|no codec"):
                coding = coding_of(Folder(out), [n for n in wanted if n.endswith(".tar")])
                if coding is None:
                    raise UserError("no codec.json yet")
        whole_of(pictures, out)
        assert content(out) == wanted, at
    assert len(ends) >= 4


@pytest.mark.parametrize("reason", ["chunk_crc", "read_error"])
def test_what_cannot_be_read_now_is_not_left_out(pictures, tmp_path, reason):
    """The command ends at that shard, and goes on there once the disk is well."""
    whole_of(pictures, tmp_path / "whole")
    source = tmp_path / "in"
    shutil.copytree(pictures, source)
    open_index(str(source))
    with unreadable(source / "part-1.tar", reason):
        with pytest.raises(UserError, match=rf"part-1.tar/\S+ could not be read \({reason}\)"):
            whole_of(source, tmp_path / "out")
    assert set(content(tmp_path / "out")) == {"codec.json", "part-0.tar"}
    again = whole_of(source, tmp_path / "out")
    assert (again.wrote, again.there) == (2, 1)
    assert content(tmp_path / "out") == content(tmp_path / "whole")


def test_other_codes_in_the_folder_are_refused(pictures, tmp_path):
    whole_of(pictures, tmp_path / "a")
    before = content(tmp_path / "a")
    index = open_index(str(pictures))
    for change, words in (
        ({"digest": "f" * 64, "codec": "/runs/other"}, ["/runs/dvae", "/runs/other"]),
        ({"views": 1}, ["views 2", "views 1"]),
        ({"crop": {}}, ["zoom"]),
        ({"seed": 0}, ["seed 7", "seed 0"]),
        ({"source": "other"}, ["source src", "source other"]),
    ):
        with pytest.raises(UserError) as e:
            encode(index, Crops(), coder, Folder(tmp_path / "a"), replace(CODING, **change))
        assert all(word in str(e.value) for word in words), str(e.value)
    assert content(tmp_path / "a") == before
    with pytest.raises(UserError, match="give an empty folder"):
        encode(index, Crops(), coder, Folder(pictures), CODING)


def test_sets_that_are_not_one(pictures, tmp_path):
    names = [f"part-{s}.tar" for s in range(3)]
    assert coding_of(Folder(pictures), names) is None
    whole_of(pictures, tmp_path / "a")
    assert coding_of(Folder(tmp_path), [f"a/{name}" for name in names]).digest == CODING.digest
    (tmp_path / "b").mkdir()
    for other, words in (
        (replace(CODING, shards=3, digest="f" * 64), "one codec"),
        (replace(CODING, shards=None), "some of its shards only"),
    ):
        (tmp_path / "b" / "codec.json").write_bytes(other.body())
        with pytest.raises(UserError, match=words):
            coding_of(Folder(tmp_path), ["a/part-0.tar", "b/part-0.tar"])
    (tmp_path / "b" / "codec.json").write_bytes(replace(CODING, shards=9, seed=1).body())
    assert coding_of(Folder(tmp_path), ["a/part-0.tar", "b/part-0.tar"]) is not None
    for name, body in (("c", b"{}"), ("d", b"[]"), ("e", b"\xff"), ("f", b'{"format": 1}')):
        (tmp_path / name).mkdir()
        (tmp_path / name / "codec.json").write_bytes(body)
        with pytest.raises(UserError, match="not one that"):
            coding_of(Folder(tmp_path), [f"{name}/x.tar"])
    for pair in (["a/x.tar", "pictures/x.tar"], ["0/x.tar", "a/x.tar"]):
        with pytest.raises(UserError, match="one codec|has no codec.json"):
            coding_of(Folder(tmp_path), pair)
