"""Local folders as storage, and what users write for a list of shards."""

import os
from pathlib import Path

import pytest

from vtx_scale.data_pipeline.errors import UserError
from vtx_scale.data_pipeline.storage import File, Folder, braces, expand


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


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("a-{000..002}.tar", "a-000.tar a-001.tar a-002.tar"),
        ("{x,y}-{9..10}", "x-9 x-10 y-9 y-10"),
        ("a", "a"),
        ("{08..11}", "08 09 10 11"),
        ("{3..1}", ""),
        ("a{,b}", "a ab"),
    ],
)
def test_braces(pattern, names):
    assert braces(pattern) == names.split()


def test_shard_lists(tmp_path):
    for name in ("b.tar", "a.tar", "a.txt", "deep/c.tar", "d-00.tar", "d-01.tar"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "folder.tar").mkdir()

    def names(shards):
        return [p.relative_to(tmp_path).as_posix() for p in expand(shards)]

    assert names(str(tmp_path)) == ["a.tar", "b.tar", "d-00.tar", "d-01.tar"], (
        "its *.tar directly inside, sorted"
    )
    assert names(f"{tmp_path}/b.tar,{tmp_path}/a.tar") == ["b.tar", "a.tar"]
    assert names(f"{tmp_path}/d-{{00..01}}.tar") == ["d-00.tar", "d-01.tar"]
    assert names(f"{tmp_path}/{{a,b}}.tar,{tmp_path}/deep") == ["a.tar", "b.tar", "deep/c.tar"]
    assert names(f"{tmp_path}/*.tar") == ["a.tar", "b.tar", "d-00.tar", "d-01.tar"]
    was = Path.cwd()
    os.chdir(tmp_path)
    try:
        assert expand("a.tar") == [tmp_path / "a.tar"]
    finally:
        os.chdir(was)


@pytest.mark.parametrize(
    ("shards", "word"),
    [
        ("pipe:cat x.tar", "pipe: is never opened"),
        ("http://example.org/x.tar", "http: is never opened"),
        ("file:/x.tar", "file: is never opened"),
        ("gs://bucket/x.tar", "gs: is never opened"),
        ("s3://bucket/x", "local"),
        ("PIPE:cat", "PIPE: is never opened"),
        ("/none/such.tar", "/none/such.tar does not exist"),
        ("{here}/a-{{0..3}}.tar", "a-1.tar does not exist"),
        ("{here}/x*.tar", "matches no file"),
        ("{here}/empty", "no *.tar"),
        ("{here}/packed", "compressed"),
        ("{here}/a-0.tar,{here}/a-0.tar", "named twice"),
        ("{here}/a-{{9..2}}.tar", "no shard"),
        ("{here}/{{0..99999999999}}.tar", "1,000,000"),
        ("", "empty"),
        ("a.tar,,b.tar", "a.tar"),
        ("{here}/a-0.tar,", "empty"),
    ],
)
def test_lists_that_are_refused(tmp_path, monkeypatch, shards, word):
    """One sentence that names what is wrong; nothing is started or fetched."""
    (tmp_path / "a-0.tar").write_bytes(b"")
    (tmp_path / "empty").mkdir()
    (tmp_path / "packed").mkdir()
    (tmp_path / "packed" / "x.tar.gz").write_bytes(b"")

    def never(*_, **__):
        raise AssertionError("a process was started")

    monkeypatch.setattr("subprocess.Popen.__init__", never)
    monkeypatch.setattr("os.system", never)
    with pytest.raises(UserError) as refusal:
        expand(shards.format(here=tmp_path))
    assert word in str(refusal.value) and "\n" not in str(refusal.value)
