"""Every storage keeps to the contract: local folders, and a bucket of a real server."""

import collections
import os
import pickle
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.s3 import on_servers, prefix_of
from vtx_scale.data_pipeline.storage import Changed, Folder


@pytest.fixture(params=on_servers("folder"))
def storage(request, tmp_path, monkeypatch):
    """A storage without an object."""
    if request.param == "folder":
        return Folder(tmp_path / "root")
    return prefix_of(*request.getfixturevalue(request.param), monkeypatch)


def together(count, function):
    """What `function(i)` returns on as many threads, which begin at the same time."""
    barrier = threading.Barrier(count)

    def run(i):
        barrier.wait()
        return function(i)

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(run, range(count)))


def test_objects_are_kept_whole(storage):
    assert storage.head("a/b") is None and list(storage.list("")) == []
    storage.put("a/b", b"0123456789")
    assert storage.get_range("a/b", 3, 4) == b"3456"
    assert storage.get_range("a/b", 8, 99) == b"89" and storage.get_range("a/b", 10, 5) == b""
    assert storage.get_range("a/b", 99, 5) == storage.get_range("a/b", 2, 0) == b""
    storage.put("a/empty", b"")
    assert storage.head("a/empty").size == 0 and storage.get_range("a/empty", 0, 9) == b""
    with storage.open("a/empty") as file:
        assert file.size == 0 and file.read(0, 0) == b""
    storage.delete("a/b")
    storage.delete("a/b")
    for read in (storage.open, lambda name: storage.get_range(name, 0, 9)):
        with pytest.raises(FileNotFoundError, match="a/b"):
            read("a/b")
    with pytest.raises(FileNotFoundError):
        storage.get_range("a/b", 0, 0)
    assert list(storage.list("a/")) == ["a/empty"]


def test_names_come_in_the_order_of_their_bytes(storage):
    names = ["a-b", "a.b", "a/b", "a/b!c", "a/x/y", "a0", "b/ü +%&", "c"]
    for name in reversed(names):
        storage.put(name, b"x")
    assert list(storage.list("")) == names
    assert list(storage.list("a/b")) == ["a/b", "a/b!c"] and list(storage.list("a/x/")) == ["a/x/y"]
    assert storage.get_range("b/ü +%&", 0, 9) == b"x"


def test_a_tag_holds_a_reader_to_what_it_has_seen(storage):
    storage.put("a", b"0123456789")
    first = storage.head("a")
    assert first.size == 10 and '"' not in first.tag
    assert storage.get_range("a", 2, 3, first.tag) == b"234"
    storage.put("a", b"9876543210")
    assert storage.head("a").tag != first.tag
    for offset, length in ((2, 3), (2, 0), (99, 1)):
        with pytest.raises(Changed):
            storage.get_range("a", offset, length, first.tag)
    assert storage.get_range("a", 2, 3, storage.head("a").tag) == b"765"


def test_an_open_object_is_never_another(storage):
    """It is what it was, or says that it is not: a small one stays, a large one may not."""
    body = os.urandom(300_000)
    storage.put("small", b"0123456789")
    storage.put("large", body)
    with storage.open("small") as small, storage.open("large") as large:
        assert (small.size, len(large)) == (10, 300_000)
        assert small.tag == storage.head("small").tag and large.tag == storage.head("large").tag
        room = bytearray(200_000)
        large.read_into(memoryview(room), 70_000)
        assert room == body[70_000:270_000] and large.read(65_000, 2000) == body[65_000:67_000]
        storage.put("small", b"another")
        storage.put("large", os.urandom(300_000))
        assert small.read(0, 10) == b"0123456789"
        try:
            assert large.read(70_000, 100_000) == body[70_000:170_000]
        except Changed as e:
            assert "large" in str(e)
        for file, offset in ((small, 8), (large, 299_999)):
            with pytest.raises(OSError, match="ends"):
                file.read(offset, 5)


@pytest.mark.parametrize("size", [0, 1000, (20 << 20) + 7])
def test_a_file_is_moved_in(storage, size):
    body = os.urandom(size)
    storage.put("a/b", b"before")
    with storage.scratch("a/b") as path:
        path.write_bytes(body)
        storage.put_file("a/b", path)
        assert not path.exists()
    with storage.open("a/b") as file:
        assert file.size == size and file.tag == storage.head("a/b").tag
        assert file.read(0, size) == body
        assert file.read(size // 2, size // 3) == body[size // 2 : size // 2 + size // 3]
    with pytest.raises(ZeroDivisionError), storage.scratch("a/c") as path:
        path.write_bytes(b"half")
        raise ZeroDivisionError
    assert not path.exists() and list(storage.list("")) == ["a/b"]


def test_of_64_who_put_at_once_one_wins(storage):
    """Twice, so that it is no chance."""
    for name in ("x/1", "x/2"):
        won = together(64, lambda i, name=name: storage.put_if_absent(name, b"%d" % i))
        assert sum(won) == 1
        assert storage.get_range(name, 0, 9) == b"%d" % won.index(True)


def count_up(storage, times):
    for _ in range(times):
        while True:
            head = storage.head("counter")
            with storage.open("counter") as file:
                number = int(file.read(0, file.size))
                if file.tag != head.tag:
                    continue
            if storage.replace_if("counter", b"%d" % (number + 1), head.tag):
                break


def test_a_counter_loses_no_step(storage):
    storage.put("counter", b"0")
    together(8, lambda i: count_up(storage, 10))
    assert storage.get_range("counter", 0, 9) == b"80"
    assert list(storage.list("")) == ["counter"]


def test_replaced_where_the_tag_is_the_one(storage):
    assert storage.replace_if("a/b", b"x", "none") is None and storage.head("a/b") is None
    storage.put("a/b", b"first")
    tag = storage.head("a/b").tag
    assert storage.replace_if("a/b", b"second", "another") is None
    new = storage.replace_if("a/b", b"second", tag)
    assert new == storage.head("a/b").tag != tag
    assert storage.replace_if("a/b", b"third", tag) is None
    assert storage.get_range("a/b", 0, 9) == b"second"


def test_a_reader_never_sees_half_an_object(storage):
    """Small ones and such that are sent in parts, under three ways to store them."""
    size, seen, ended = (9 << 20) + 5, collections.Counter(), threading.Event()
    storage.put("a", b"0" * size)

    def read():
        while not ended.is_set():
            head = storage.head("a")
            try:
                body = storage.get_range("a", 0, size + 1, head.tag)
            except Changed:
                continue
            assert len(body) == head.size and body == body[:1] * len(body)
            seen[body[:1]] += 1

    with ThreadPoolExecutor(2) as pool:
        readers = [pool.submit(read) for _ in range(2)]
        try:
            for i in range(1, 7):
                body = b"%d" % i * (size - i if i % 2 else 1000 + i)
                with storage.scratch("a") as path:
                    path.write_bytes(body)
                    storage.put_file("a", path)
                until = time.monotonic() + 5
                while not seen[b"%d" % i] and time.monotonic() < until:
                    time.sleep(0.01)
        finally:
            ended.set()
        for reader in readers:
            reader.result()
    assert len(seen) >= 6


THERE = """
import pickle, sys
sys.stdout.buffer.write(pickle.load(sys.stdin.buffer).get_range("a", 0, 9))
"""


def test_it_travels_to_other_processes(storage):
    """Also once it was used here: it takes no client along."""
    storage.put("a", b"body")
    packed = pickle.dumps(storage)
    assert pickle.loads(packed).get_range("a", 0, 9) == b"body"
    done = subprocess.run([sys.executable, "-c", THERE], input=packed, capture_output=True)
    assert (done.returncode, done.stdout) == (0, b"body"), done.stderr
