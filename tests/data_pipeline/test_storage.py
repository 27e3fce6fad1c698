"""Local folders as storage."""

import contextlib
import os
import stat
from concurrent.futures import ThreadPoolExecutor

import pytest

from vtx_scale.data_pipeline import publish
from vtx_scale.data_pipeline.publish import locked, machine, part_of
from vtx_scale.data_pipeline.storage import Changed, File, Folder


def test_a_folder_keeps_objects_whole(tmp_path):
    folder = Folder(tmp_path / "root")
    assert folder.head("a/b") is None
    folder.put("a/b", b"0123456789")
    assert folder.get_range("a/b", 3, 4) == b"3456"
    assert (
        not folder.put_if_absent("a/b", b"other")
        and folder.get_range("a/b", 0, 99) == b"0123456789"
    )
    assert folder.put_if_absent("a/c", b"new")
    first = folder.head("a/b")
    assert first.size == 10
    assert folder.replace_if("a/b", b"second", "another tag") is None
    tag = folder.replace_if("a/b", b"second", first.tag)
    assert (
        tag == folder.head("a/b").tag != first.tag and folder.get_range("a/b", 0, 99) == b"second"
    )
    assert list(folder.list("a/")) == ["a/b", "a/c"], "nothing half written stays"
    folder.delete("a/b")
    folder.delete("a/b")
    assert list(folder.list("")) == ["a/c"]


def test_what_was_opened_is_read_whatever_becomes_of_its_name(tmp_path):
    folder = Folder(tmp_path)
    folder.put("a/b", b"0123456789")
    with folder.open("a/b") as first:
        folder.put("a/b", b"another123")
        with folder.open("a/b") as second:
            assert second.tag == folder.head("a/b").tag != first.tag
            folder.delete("a/b")
            room = bytearray(4)
            first.read_into(memoryview(room), 3)
            assert (len(first), first.read(0, 10), room) == (10, b"0123456789", b"3456")
            assert second.size == 10 and second.read(7, 3) == b"123"
        with pytest.raises(OSError, match="ends"):
            first.read_into(memoryview(room), 8)
    first.close()
    with pytest.raises(FileNotFoundError):
        folder.open("a/b")


@pytest.mark.parametrize("kind", ["link", "pipe", "folder"])
def test_an_object_is_a_file_of_its_own(tmp_path, kind):
    """Nothing is read through a link, and a pipe holds nobody up."""
    (tmp_path / "elsewhere").write_text("a secret")
    there = tmp_path / "there"
    {
        "link": lambda: there.symlink_to(tmp_path / "elsewhere"),
        "pipe": lambda: os.mkfifo(there),
    }.get(kind, there.mkdir)()
    with pytest.raises(OSError):
        Folder(tmp_path).open("there")


def test_a_file_is_moved_in_with_its_mode(tmp_path):
    folder = Folder(tmp_path / "root")
    folder.put("a/b", b"before")
    with folder.scratch("a/b") as path:
        path.write_bytes(b"after")
        mode = stat.S_IMODE(path.stat().st_mode)
        assert folder.get_range("a/b", 0, 9) == b"before"
        folder.put_file("a/b", path)
        assert not path.exists() and folder.get_range("a/b", 0, 9) == b"after"
    assert stat.S_IMODE((tmp_path / "root" / "a" / "b").stat().st_mode) == mode
    with pytest.raises(ZeroDivisionError), folder.scratch("a/c") as path:
        path.write_bytes(b"half")
        raise ZeroDivisionError
    with pytest.raises(ZeroDivisionError), folder.scratch("deep/a/c"):
        raise ZeroDivisionError
    assert list(folder.list("")) == ["a/b"] and not (tmp_path / "root" / "deep").exists()


def test_what_a_dead_writer_left_keeps_no_folder(tmp_path):
    """Killed between its file and the end of its part, it leaves an empty one beside no file."""
    folder = Folder(tmp_path)
    folder.put("step/deep/a", b"a")
    dead = tmp_path / "step" / "deep" / ".b.0123abcd.part"
    dead.mkdir()
    (dead / f"lock-{machine()}").touch()
    with part_of(tmp_path / "step" / "c"):
        folder.delete("step/deep/a")
        assert not (tmp_path / "step" / "deep").exists()
        folder.delete("step/none")
        assert (tmp_path / "step").exists(), "its writer lives"
    folder.put("step/d", b"d")
    folder.delete("step/d")
    assert not (tmp_path / "step").exists()


def test_who_gives_up_takes_no_folder_from_under_another(tmp_path):
    """The last file that is deleted takes its folder along, also while another one begins."""
    folder = Folder(tmp_path)

    def writes(i):
        if i % 2:
            for _ in range(300):
                with contextlib.suppress(ZeroDivisionError), folder.scratch("step/a"):
                    raise ZeroDivisionError
                folder.delete("step/b")
        else:
            for _ in range(300):
                with folder.scratch("step/c") as path:
                    with path.open("r+b") as file:
                        file.write(b"c")
                    folder.put_file("step/c", path)
                folder.put("step/b", b"b")
                folder.delete("step/c")

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(writes, range(2)))


def test_a_file_is_moved_in_from_another_disk(tmp_path, monkeypatch):
    plain = os.replace

    def replace(source, target):
        if source == tmp_path / "file":
            raise OSError(18, "Invalid cross-device link")
        plain(source, target)

    monkeypatch.setattr(os, "replace", replace)
    (tmp_path / "file").write_bytes(b"body")
    Folder(tmp_path / "root").put_file("a", tmp_path / "file")
    assert (tmp_path / "root" / "a").read_bytes() == b"body" and not (tmp_path / "file").exists()


def test_folders_are_no_objects(tmp_path):
    """One that is empty goes; a link to a folder leads on, and never round in a circle."""
    folder = Folder(tmp_path / "root")
    folder.put("a/b/c", b"")
    folder.put("a/d", b"")
    (tmp_path / "root" / "again").symlink_to(tmp_path / "root" / "a")
    (tmp_path / "root" / "a" / "round").symlink_to(tmp_path / "root")
    assert list(folder.list("again/")) == ["again/b/c", "again/d"]
    (tmp_path / "root" / "again").unlink()
    (tmp_path / "root" / "a" / "round").unlink()
    folder.delete("a/b/c")
    assert (tmp_path / "root" / "a").exists() and not (tmp_path / "root" / "a" / "b").exists()
    folder.delete("a/d")
    assert (tmp_path / "root").exists() and not list((tmp_path / "root").iterdir())


def test_a_file_is_sliced_like_bytes(tmp_path):
    body = os.urandom(70_000)
    (tmp_path / "f").write_bytes(body)
    with File(tmp_path / "f") as f:
        assert len(f) == len(body)
        for a, b in (
            (0, 512),
            (100, 700),
            (16_000, 17_000),
            (69_000, 99_000),
            (5, 5),
            (9, 3),
            (0, 70_000),
            (80_000, 90_000),
        ):
            assert f[a:b] == body[a:b]
        os.truncate(tmp_path / "f", 1000)
        with pytest.raises(OSError, match="too early"):
            f.read(500, 1000)
        assert f.read(500, 500) == body[500:1000]


def test_a_tag_is_of_the_content(tmp_path):
    """Time and size may be what they were; above a megabyte they and the inode are the tag."""
    folder = Folder(tmp_path)
    folder.put("a", b"first")
    head, status = folder.head("a"), (tmp_path / "a").stat()
    (tmp_path / "a").write_bytes(b"other")
    os.utime(tmp_path / "a", ns=(status.st_atime_ns, status.st_mtime_ns))
    assert folder.head("a").tag != head.tag and folder.head("a").size == head.size
    assert folder.replace_if("a", b"next", head.tag) is None
    with pytest.raises(Changed):
        folder.get_range("a", 0, 5, head.tag)
    large = bytes((1 << 20) + 1)
    folder.put("b", large)
    first = folder.head("b").tag
    with folder.open("b") as file:
        assert file.tag == first
    second = folder.replace_if("b", large, first)
    assert second == folder.head("b").tag != first


def test_a_lock_is_no_object_and_goes(tmp_path):
    """One that a killed process left holds nobody up; one that is held does."""
    folder = Folder(tmp_path)
    folder.put("x/a", b"first")
    (tmp_path / "x" / ".a.lock").touch()
    assert list(folder.list("")) == ["x/a"]
    tag = folder.replace_if("x/a", b"second", folder.head("x/a").tag)
    assert tag and os.listdir(tmp_path / "x") == ["a"]
    with locked(tmp_path / "x" / "a"), ThreadPoolExecutor(1) as pool:
        waits = pool.submit(folder.replace_if, "x/a", b"third", tag)
        with pytest.raises(TimeoutError):
            waits.result(0.2)
        assert folder.get_range("x/a", 0, 9) == b"second"
        (tmp_path / "x" / ".a.lock").unlink()  # the pool ends when the thread has
    assert waits.result() and folder.get_range("x/a", 0, 9) == b"third"


def test_a_lock_that_is_never_given_back_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(publish, "HELD", 0.1)
    folder = Folder(tmp_path)
    folder.put("a", b"first")
    with locked(tmp_path / "a"), pytest.raises(OSError, match="another process holds it"):
        folder.replace_if("a", b"second", folder.head("a").tag)
    assert folder.get_range("a", 0, 9) == b"first"


def test_a_lock_is_the_one_that_others_find(tmp_path, monkeypatch):
    """Its holder may remove it between one's opening it and one's locking it."""
    plain, lock, seen = publish.flocked, tmp_path / ".a.lock", []

    def late(fd):
        if not seen:
            lock.unlink()
        seen.append(fd)
        return plain(fd)

    monkeypatch.setattr(publish, "flocked", late)
    with locked(tmp_path / "a"):
        assert lock.exists() and len(seen) == 2
    assert not lock.exists()
