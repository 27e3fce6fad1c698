"""Local folders as storage."""

import os

import pytest

from vtx_scale.data_pipeline.storage import File, Folder


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
