"""The node cache: what is counted, what goes, and what a kill, a full disk or a stranger leaves."""

import fcntl
import os
import random
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.data_pipeline.caches import (
    DIGEST,
    LENGTH,
    audit,
    body,
    cache_of,
    disk_use,
    fetched,
    fill_for_ever,
    watch_disk,
)
from tests.ranks import SERVER
from vtx_scale.data_pipeline import cache as module
from vtx_scale.data_pipeline.book import ROW, Table, cost, seal
from vtx_scale.data_pipeline.cache import BOOK, MARK, SPARE, NodeCache
from vtx_scale.data_pipeline.users import say_in_use

OTHER = bytes(range(1, 33))


def by_number(chunks):
    """The lower its number, the sooner a chunk is needed."""
    return chunks.astype(float)


def there(cache: NodeCache, k: int) -> bool:
    file = cache.open(k, LENGTH)
    if file is not None:
        assert file.read(0, LENGTH) == body(k)
        file.close()
    return file is not None


def test_what_is_needed_last_makes_room(tmp_path):
    cache = cache_of(tmp_path / "c", 4)
    for k in (1, 9, 3, 7):
        assert cache.get(k, LENGTH, fetched(k), by_number, k) is not None
    assert cache.get(5, LENGTH, fetched(5), by_number, 5) is not None
    assert [k for k in range(10) if there(cache, k)] == [1, 3, 5, 7]
    # whoever is needed later than all of them is not kept, and none goes for it
    assert cache.get(8, LENGTH, fetched(8), by_number, 8) is None
    assert [k for k in range(10) if there(cache, k)] == [1, 3, 5, 7]
    # what is needed no more goes first
    dead = lambda chunks: np.where(chunks == 3, np.inf, chunks)  # noqa: E731
    assert cache.get(8, LENGTH, fetched(8), dead, 8) is not None
    assert [k for k in range(10) if there(cache, k)] == [1, 5, 7, 8]
    assert cache.used() == 4 * cost(LENGTH)
    audit(cache)


def test_a_file_that_was_deleted_while_open_is_read(tmp_path):
    cache = cache_of(tmp_path / "c", 1)
    file = cache.get(9, LENGTH, fetched(9), by_number, 9)
    assert cache.get(1, LENGTH, fetched(1), by_number, 1) is not None
    assert not there(cache, 9) and file.read(0, LENGTH) == body(9)


def test_what_the_disk_lost_is_dropped(tmp_path):
    cache = cache_of(tmp_path / "c", 2)
    cache.get(1, LENGTH, fetched(1)).close()
    os.truncate(cache.path(1), LENGTH - 1)
    assert cache.open(1, LENGTH) is None and cache.used() == 0
    cache.get(1, LENGTH, fetched(1)).close()
    (tmp_path / "c" / BOOK).write_bytes(b"")  # as a power loss leaves it
    assert cache.get(2, LENGTH, fetched(2)) is not None
    assert not there(cache, 1), "counted nowhere"
    audit(cache)


def test_a_fetch_that_fails_leaves_nothing(tmp_path):
    cache = cache_of(tmp_path / "c", 2)

    def fails() -> bytes:
        raise OSError("the network is gone")

    with pytest.raises(OSError, match="network"):
        cache.get(1, LENGTH, fails)
    assert cache.used() == 0
    audit(cache)
    assert cache.get(1, LENGTH, fetched(1)) is not None


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 9), st.integers(0, 30), st.booleans()), max_size=30),
    st.integers(0, 5),
)
def test_the_book_is_what_lies_there(tmp_path_factory, steps, room):
    """Whatever is asked for, dropped, lost or laid beside: counted is what is there."""
    folder = tmp_path_factory.mktemp("book") / "c"
    cache = cache_of(folder, room)
    for k, when, lost in steps:
        file = cache.get(k, LENGTH, fetched(k), by_number, when)
        assert file is None or file.read(0, LENGTH) == body(k)
        if file is not None and lost:
            cache.path(k).unlink()
        assert disk_use(folder) <= cache.limit
        assert cache.used() <= room * cost(LENGTH)
    assert cache.prepare() == ""
    audit(cache)


def test_two_data_sets_share_a_folder(tmp_path):
    """What somebody reads is left to him; of what nobody reads all may go."""
    mine, yours = cache_of(tmp_path / "c", 2), cache_of(tmp_path / "c", 2, OTHER)
    yours.enter(0)
    assert yours.get(1, LENGTH, fetched(1)) and yours.get(2, LENGTH, fetched(2))
    assert mine.get(1, LENGTH, fetched(1), by_number, 0) is None
    assert there(yours, 1) and there(yours, 2)
    yours.leave()
    assert mine.get(1, LENGTH, fetched(1), by_number, 0) is not None
    assert there(yours, 1) + there(yours, 2) == 1
    audit(mine)


def test_a_lower_limit_holds_from_the_start(tmp_path):
    """What nobody reads goes, down to it."""
    cache = cache_of(tmp_path / "c", 6)
    for k in range(6):
        assert cache.get(k, LENGTH, fetched(k)) is not None
    lower = NodeCache(cache.folder, SPARE + 2 * cost(LENGTH), DIGEST)
    cache.enter(0)
    lower.shrink()
    assert cache.used() == 6 * cost(LENGTH), "somebody reads it"
    cache.leave()
    lower.shrink()
    assert cache.used() == 2 * cost(LENGTH)
    audit(cache)


def test_a_share_is_never_exceeded(tmp_path):
    """Of two data sets of one run: each makes room in its own."""
    cache = cache_of(tmp_path / "c", 6)
    mine = NodeCache(cache.folder, cache.limit, DIGEST, 2 * cost(LENGTH))
    yours = NodeCache(cache.folder, cache.limit, OTHER, 4 * cost(LENGTH))
    for k in (5, 4, 3, 2, 1):
        for one in (mine, yours):
            assert one.get(k, LENGTH, fetched(k), by_number, k) is not None
    assert [k for k in range(6) if there(mine, k)] == [1, 2]
    assert [k for k in range(6) if there(yours, k)] == [1, 2, 3, 4]
    audit(cache)


def test_a_strangers_files_are_left_alone(tmp_path):
    """A folder without our mark is refused with a sentence; in one of ours, what has other names
    stays, and what is no file of ours too.
    """
    folder = tmp_path / "photos"
    folder.mkdir()
    kept = folder / f"{int.from_bytes(DIGEST[:8], 'big'):016x}-00000007"
    kept.write_bytes(b"mine")
    cache = NodeCache(folder, 1 << 20, DIGEST)
    assert "holds other files" in cache.prepare()
    assert cache.get(1, LENGTH, fetched(1)) is None
    assert os.listdir(folder) == [kept.name] and kept.read_bytes() == b"mine"
    cache = cache_of(tmp_path / "c", 1)
    names = ["thesis.txt", "0123-1", "x.part", f"{'a' * 16}-00000001.bak"]
    for name in names:
        (tmp_path / "c" / name).write_text("mine")
    (tmp_path / "c" / f"{'b' * 16}-00000001").mkdir()
    (tmp_path / "c" / f"{'c' * 16}-00000001").symlink_to(kept)
    for k in (3, 2, 1):
        assert cache.get(k, LENGTH, fetched(k), by_number, k) is not None
    assert cache.prepare() == ""
    assert all((tmp_path / "c" / name).read_text() == "mine" for name in names)
    assert (tmp_path / "c" / f"{'b' * 16}-00000001").is_dir() and kept.read_bytes() == b"mine"
    assert (tmp_path / "c" / f"{'c' * 16}-00000001").is_symlink()
    # a folder that lost its mark is nobody's
    (tmp_path / "c" / MARK).unlink()
    assert cache.get(0, LENGTH, fetched(0), by_number, 0) is None and there(cache, 1)


@pytest.mark.skipif(os.geteuid() != 0, reason="a small disk is mounted by root alone")
def test_a_full_disk_and_a_read_only_one(tmp_path):
    """4 MiB: what fits is kept, the rest is passed, and then later ones make room; nothing ends."""
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", disk], check=True)
    try:
        (disk / "thesis.txt").write_text("mine")
        cache = NodeCache(disk / "c", 1 << 30, DIGEST)
        assert cache.prepare() == ""
        kept = [k for k in range(100) if cache.get(k, LENGTH, fetched(k), by_number, k)]
        assert 3 << 20 < len(kept) * LENGTH < 4 << 20 and kept == list(range(len(kept)))
        assert "No space left" in cache.fault
        audit(cache)
        later = lambda chunks: 200.0 - chunks  # noqa: E731
        assert cache.get(150, LENGTH, fetched(150), later, 50) is not None
        assert not there(cache, 0) and there(cache, 1) and there(cache, 150)
        assert (disk / "thesis.txt").read_text() == "mine"
        subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
        assert there(cache, 1), "what is there is read"
        assert cache.get(99, LENGTH, fetched(99), later, 50) is None
        assert "Read-only" in NodeCache(disk / "c", 1 << 30, DIGEST).prepare()
        assert "Read-only" in NodeCache(disk / "d", 1 << 30, DIGEST).prepare()
    finally:
        subprocess.run(["umount", "-l", disk], check=True)


@pytest.mark.slow
def test_killed_at_any_moment(tmp_path):
    """50 writers, two at a time, are killed: a start finds no file that is counted nowhere or not
    what it should be, and the disk use was never above the limit.
    """
    folder, chunks = tmp_path / "c", 12
    cache, rng = cache_of(folder, chunks), random.Random(3)
    most, stop = SERVER.Value("q", 0), SERVER.Event()
    watcher = SERVER.Process(target=watch_disk, args=(folder, most, stop))
    watcher.start()
    parts = 0
    try:
        for _ in range(25):
            pair = [
                SERVER.Process(target=fill_for_ever, args=(cache, rng.random())) for _ in range(2)
            ]
            for process in pair:
                process.start()
            begin, late = folder.stat().st_mtime_ns, time.monotonic() + 10
            while folder.stat().st_mtime_ns == begin and time.monotonic() < late:
                time.sleep(0.001)
            for process in pair:
                time.sleep(rng.random() * 0.02)
                process.kill()
                process.join()
            parts += any(path.suffix == ".part" for path in folder.iterdir())
            assert cache.prepare() == ""
            audit(cache)
            for k in range(40):
                there(cache, k)
    finally:
        stop.set()
        watcher.join()
    assert parts > 3, "the kills missed what they are meant for"
    assert chunks * LENGTH / 2 < most.value <= cache.limit


def test_a_dead_writers_chunk_is_written_anew(tmp_path):
    """Also by whoever waits for it, without another start."""
    cache = cache_of(tmp_path / "c", 1)
    fd = cache._reserve(1, LENGTH, None, 0)
    os.write(fd, b"half")
    assert cache._reserve(1, LENGTH, None, 0) == -1, "its writer lives"
    os.close(fd)
    file = cache.get(1, LENGTH, fetched(1))
    assert file.read(0, LENGTH) == body(1)
    audit(cache)


def test_a_chunk_that_is_finished_while_another_looks_is_his_too(tmp_path, monkeypatch):
    """Whoever looks at the part first and at the file then misses neither."""
    cache = cache_of(tmp_path / "c", 3)
    fd = cache._reserve(1, LENGTH, None, 0)
    path = cache.path(1)
    part = module.part_of(path)
    part.write_bytes(body(1))
    plain, late = os.path.exists, []

    def looked(self: Path) -> bool:
        found = plain(self)
        if self == path and part.exists():
            late.append(self)
            os.rename(part, path)
        return found

    monkeypatch.setattr(Path, "exists", looked)
    assert cache._reserve(1, LENGTH, None, 0) == -1
    monkeypatch.undo()
    assert cache.used() == cost(LENGTH)
    os.close(fd)
    assert cache.prepare() == ""
    audit(cache)


def test_rows_that_a_power_loss_tore_count_nothing(tmp_path):
    cache = cache_of(tmp_path / "c", 9)
    for k in range(5):
        cache.get(k, LENGTH, fetched(k)).close()
    book = tmp_path / "c" / BOOK
    torn = bytearray(book.read_bytes())
    torn[70] ^= 1  # in the third row
    book.write_bytes(torn)
    with cache._book() as table:
        assert table.find(cache.number, 2) == -1 and table.used == 4 * cost(LENGTH)
    assert cache.prepare() == "" and not there(cache, 2) and there(cache, 3)
    audit(cache)


def test_a_table_of_many_rows_is_quick(tmp_path):
    """25,000 chunks: 200 GB of 8 MiB. One look at the book takes milliseconds."""
    fd = os.open(tmp_path / "book", os.O_CREAT | os.O_RDWR)
    table = Table(fd)
    for k in range(300):
        table.put(5, k, 8 << 20)
    os.pwrite(fd, table.rows.tobytes() * 83, 0)
    before = time.process_time()
    for _ in range(20):
        assert Table(fd).find(5, 299) == 299
    assert (time.process_time() - before) / 20 < 0.02
    os.close(fd)


def test_a_full_cache_of_usual_size_takes_chunks_quickly(tmp_path):
    """25,000 chunks: each new one makes room under the node's lock, within milliseconds."""
    count = 25_000
    cache = NodeCache(tmp_path / "c", SPARE + count * cost(1), DIGEST)
    assert cache.prepare() == ""
    rows = np.zeros(count, ROW)
    rows["set"], rows["chunk"], rows["bytes"] = cache.number, np.arange(count), 1
    rows["check"] = seal(rows)
    (cache.folder / BOOK).write_bytes(rows.tobytes())
    for k in range(count):
        os.mknod(cache.path(k))
        os.truncate(cache.path(k), 1)
    begin = time.process_time()
    for k in range(20):
        assert cache.get(count + k, 1, lambda: b"x", by_number, -1.0) is not None
    taken = time.process_time() - begin
    assert taken / 20 < 0.03, taken
    assert cache.used() == count * cost(1)


def test_what_is_absent_makes_room_without_a_sweep(tmp_path):
    """A file that somebody removed, and a part whose writer is dead, when their turn has come."""
    cache = cache_of(tmp_path / "c", 3)
    os.close(cache._reserve(9, LENGTH, None, 0))  # as a writer leaves it that was killed
    for k in (8, 7):
        assert cache.get(k, LENGTH, fetched(k), by_number, k) is not None
    cache.path(8).unlink()
    for k in (1, 2):
        assert cache.get(k, LENGTH, fetched(k), by_number, k) is not None
    assert [k for k in range(10) if there(cache, k)] == [1, 2, 7]
    audit(cache)


def test_a_full_cache_is_swept_once_in_minutes(tmp_path):
    """What is counted nowhere goes then, in whichever process of the node finds it full."""
    cache = cache_of(tmp_path / "c", 1)
    assert cache.get(3, LENGTH, fetched(3), by_number, 3) is not None
    stray = cache.path(7)
    stray.write_bytes(b"counted nowhere")
    assert cache.get(2, LENGTH, fetched(2), by_number, 2) is not None and stray.exists()
    os.utime(cache.folder / MARK, (0, 0))
    assert cache.get(1, LENGTH, fetched(1), by_number, 1) is not None and not stray.exists()
    audit(cache)


def test_nobody_waits_while_it_is_found_out_what_is_needed(tmp_path):
    """Others come to the book in between; what they put there since is needed."""
    cache = cache_of(tmp_path / "c", 3)
    for k in (7, 8):
        assert cache.get(k, LENGTH, fetched(k), by_number, k) is not None
    other = NodeCache(cache.folder, cache.limit, DIGEST)
    asked = []

    def slowly(chunks):
        asked.append(chunks.tolist())
        with (cache.folder / BOOK).open() as book:
            fcntl.flock(book, fcntl.LOCK_EX | fcntl.LOCK_NB)  # raises where it is held
        other.get(6, LENGTH, fetched(6)).close()
        return np.where(chunks == 6, np.inf, by_number(chunks))

    crowd = NodeCache(cache.folder, SPARE + 2 * cost(LENGTH), DIGEST)
    assert crowd.get(1, LENGTH, fetched(1), slowly, 1) is not None
    assert asked == [[7, 8]]
    assert [k for k in range(10) if there(cache, k)] == [1, 6]
    audit(crowd)


def test_what_is_being_written_is_passed(tmp_path):
    """It cannot go yet, and what is needed last but for it makes room."""
    cache = cache_of(tmp_path / "c", 3)
    fd = cache._reserve(9, LENGTH, None, 0)
    for k in (8, 7, 1):
        assert cache.get(k, LENGTH, fetched(k), by_number, k) is not None
    os.close(fd)
    assert [k for k in range(10) if there(cache, k)] == [1, 7]
    assert cache.prepare() == ""
    audit(cache)


def test_what_came_meanwhile_is_judged_too(tmp_path):
    cache = cache_of(tmp_path / "c", 2)
    other = cache_of(tmp_path / "c", 2)
    for k in (3, 8):
        assert cache.get(k, LENGTH, fetched(k), by_number, k) is not None

    def slowly(chunks):
        if not there(cache, 7):
            assert other.get(7, LENGTH, fetched(7), by_number, 7) is not None
        return by_number(chunks)

    assert cache.get(6, LENGTH, fetched(6), slowly, 6) is not None
    assert [k for k in range(10) if there(cache, k)] == [3, 6]
    assert cache.get(9, LENGTH, fetched(9), by_number, 9) is None
    audit(cache)


def test_what_another_run_has_in_use_stays(tmp_path):
    """Of the same data in another order, as its prefetcher says it, as long as that one lives."""
    mine = NodeCache(tmp_path / "c", SPARE + 3 * cost(LENGTH), DIGEST, order=1)
    yours = NodeCache(mine.folder, mine.limit, DIGEST, order=2)
    assert mine.prepare() == ""
    mine.enter(0, 7)
    yours.enter(0, 300)
    assert mine.users.readers() == [(0, 7)] and yours.users.readers() == [(0, 300)]
    for k in (9, 8, 7):
        assert mine.get(k, LENGTH, fetched(k), by_number, k) is not None
    first, second = yours.users.lead(), mine.users.lead()
    assert min(first, second) >= 0 and yours.users.lead() == mine.users.lead() == -1
    say_in_use(first, np.array([9, 4]))
    say_in_use(second, np.array([8, 7]))
    for k in (3, 2, 1):
        assert mine.get(k, LENGTH, fetched(k), by_number, k) is not None
    assert [k for k in range(10) if there(mine, k)] == [1, 2, 9]
    os.close(first)
    assert mine.get(0, LENGTH, fetched(0), by_number, 0) is not None and not there(mine, 9)
    os.close(second)
    yours.leave()
    assert mine.prepare() == "" and len(os.listdir(mine.folder / "users")) == 1, "the dead go"
    audit(mine)
