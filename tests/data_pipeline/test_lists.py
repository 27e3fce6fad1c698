"""Shard lists as people write them: what they mean, what they leave out, what is no shard."""

import bz2
import gzip
import io
import os
import time
import zipfile
from pathlib import Path

import pytest
from braceexpand import braceexpand
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tests.data_pipeline.make import encoded, jpeg, picture
from vtx_scale.data_pipeline.errors import UserError
from vtx_scale.data_pipeline.lists import braces, expand, gaps, parts
from vtx_scale.data_pipeline.opening import open_index
from vtx_scale.data_pipeline.tools.shards import write_shard
from vtx_scale.data_pipeline.tools.verify import verify


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


def put(folder, *names, body=b""):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(body)


def meant(folder, shards):
    """(names below the folder, sentences)."""
    lines = []
    found = expand(shards.replace("DIR", str(folder)), lines.append)
    return [p.relative_to(folder).as_posix() for p in found], lines


def refused(folder, shards):
    with pytest.raises(UserError) as refusal:
        expand(shards.replace("DIR", str(folder)))
    text = str(refusal.value)
    assert "\n" not in text and text.endswith(".")
    return text


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
        ("s3://bucket/x", "folder"),
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


PLAIN = st.sampled_from(["a", "b0", "-", "x.y"])
NUMBERS = st.tuples(
    st.integers(0, 30), st.integers(0, 6), st.integers(1, 3), st.integers(1, 4)
).map(lambda t: f"{{{t[0]:0{t[2]}d}..{t[0] + t[1]:0{t[2]}d}..{t[3]}}}")
LETTERS = st.tuples(st.integers(0, 20), st.integers(0, 5)).map(
    lambda t: f"{{{chr(97 + t[0])}..{chr(97 + t[0] + t[1])}}}"
)
PATTERNS = st.recursive(
    PLAIN | NUMBERS | LETTERS,
    lambda inner: (
        st.lists(inner, min_size=1, max_size=3).map("".join)
        | st.lists(inner, min_size=1, max_size=3).map(lambda x: "{" + ",".join(x) + "}")
    ),
    max_leaves=5,
)


@settings(max_examples=300, deadline=None)
@given(PATTERNS)
@example("{1..010}")
@example("{x{a,b}}{c}")
@example("{,a{b,}}")
def test_braces_equal_the_shells(pattern):
    """Nested, in steps, with zeros before the numbers: as bash and webdataset read them."""
    assert braces(pattern) == list(braceexpand(pattern))


@pytest.mark.parametrize("pattern", ["{a,b", "a}b", "}{", "{a..3}", "{}", "{x}", "{-3..a}"])
def test_braces_that_are_none(pattern):
    assert braces(pattern) == [pattern]


def test_braces_without_end_are_refused_soon():
    for pattern in ("{0..999}" * 3, "{a,b}" * 30):
        with pytest.raises(UserError, match="1,000,000"):
            braces(pattern)
    with pytest.raises(UserError, match="more braces"):
        braces("{a," * 3000 + "}" * 3000)


@pytest.mark.parametrize(
    ("shards", "names"),
    [
        ("DIR/{train,val}/*.tar", "train/0.tar train/1.tar val/0.tar"),
        ("DIR/{train,val}", "train/0.tar train/1.tar val/0.tar"),
        ("DIR/{train,val}/{0..1}.tar,DIR/c.tar", None),
        ("DIR/val/0.tar, DIR/train/1.tar ,DIR/c.tar", "val/0.tar train/1.tar c.tar"),
        ("DIR/val::DIR/train", "val/0.tar train/0.tar train/1.tar"),
        (
            "DIR/val/*.tar::DIR/{b..c}.tar, DIR/train/",
            "val/0.tar b.tar c.tar train/0.tar train/1.tar",
        ),
        ("DIR/{train/{0..1},val/0}.tar", "train/0.tar train/1.tar val/0.tar"),
        ("DIR/{train/0, val/0}.tar", "train/0.tar val/0.tar"),
        ("DIR/**/*.tar", "b.tar c.tar train/0.tar train/1.tar train/deep/x/2.tar val/0.tar"),
        ("DIR/train/**/*.tar", "train/0.tar train/1.tar train/deep/x/2.tar"),
        ("DIR/**/0.tar", "train/0.tar val/0.tar"),
        ("DIR/*/[01].tar", "train/0.tar train/1.tar val/0.tar"),
        ("{DIR/b,DIR/val/0}.tar", "b.tar val/0.tar"),
    ],
)
def test_lists_of_every_kind(tmp_path, shards, names):
    put(tmp_path, "train/0.tar", "train/1.tar", "train/deep/x/2.tar", "val/0.tar", "b.tar", "c.tar")
    put(tmp_path, "train/._0.tar", ".hidden/0.tar", "train/deep/.x/3.tar")
    if names is None:
        assert "val/1.tar does not exist" in refused(tmp_path, shards)
    else:
        assert meant(tmp_path, shards)[0] == names.split()


ODD = st.text("ab[]{},:*?! .-0", min_size=1, max_size=9).filter(
    lambda n: n.strip() == n and n[0] != "." and "//" not in n
)


@settings(
    max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(ODD, min_size=1, max_size=3, unique=True), st.sampled_from([",", ", ", "::"]))
@example(["[2024] set", "a,b", "x{1,2}"], ", ")
@example(["a::b", "a"], "::")
@example(["a", "a,", ",b", ":"], ",")
def test_what_is_there_is_meant_by_its_name(tmp_path_factory, names, between):
    """Brackets, braces, commas and colons in the names of files and folders, alone, with a pattern
    behind them, and in a list.
    """
    folder = tmp_path_factory.mktemp("odd")
    put(folder, *(f"{n}/0.tar" for n in names), *(f"{n}/1.tar" for n in names))
    for rest in ("", "/{0..1}.tar", "/*.tar", "/[01].tar", "/{0,1}.tar"):
        for name in names:
            assert meant(folder, f"DIR/{name}{rest}")[0] == [f"{name}/0.tar", f"{name}/1.tar"]
        if any(n[0] in ",:" or n[-1] in ",:" or "{" in n or "}" in n for n in names):
            continue  # two commas in a row, a brace opened in one and closed in another
        everything = between.join(f"DIR/{n}{rest}" for n in names)
        assert meant(folder, everything)[0] == [f"{n}/{i}.tar" for n in names for i in (0, 1)]
    was = Path.cwd()
    os.chdir(folder)
    try:
        for name in names:
            if not name.startswith("~"):
                assert expand(f"{name}/0.tar") == [folder / name / "0.tar"]
    finally:
        os.chdir(was)


LEFT_OUT = {
    "00001.tar.gz 00002.tgz 00003.tar.zst 4.TBZ2": "4 compressed tars (00001.tar.gz ...)",
    "00001.tar.xz": "1 compressed tar (00001.tar.xz)",
    "._00000.tar .00001.tar.Xy12Zz": "2 hidden files (.00001.tar.Xy12Zz ...)",
    "00001.tar.part 2.tar.aria2": "2 unfinished downloads (00001.tar.part ...)",
    "00001.TAR": "1 other entry (00001.TAR)",
    "a/1.tar a/b/2.tar c/0.tar": "3 tars (a/1.tar ...) in subfolders, which DIR/**/*.tar takes",
}


@pytest.mark.parametrize("names", LEFT_OUT)
def test_what_a_folder_leaves_out_is_said(tmp_path, names):
    """In a sentence each time, and what belongs beside shards is not meant."""
    put(tmp_path, "00000.tar", "00000.parquet", "00000_stats.json", "00000.tar.idx", "00000.txt")
    assert meant(tmp_path, "DIR") == (["00000.tar"], [])
    put(tmp_path, *names.split())
    found, lines = meant(tmp_path, "DIR")
    assert found == ["00000.tar"]
    assert len(lines) == 1 and lines[0].startswith(f"{tmp_path}: 1 tar taken, left out ")
    assert LEFT_OUT[names].replace("DIR", str(tmp_path)) in lines[0]
    heard = []
    write_shard(tmp_path / "00000.tar", [("k", {"txt": b"t"})])
    for _ in range(2):  # also with an index that is there
        assert open_index(str(tmp_path), say=heard.append).names == ["00000.tar"]
    assert heard == lines * 2
    deep = "/" in names
    assert len(meant(tmp_path, "DIR/*.tar")[1]) == (not deep)
    assert meant(tmp_path, "DIR/00000.tar")[1] == []


def test_what_another_part_of_a_list_takes_is_not_left_out(tmp_path):
    put(tmp_path, "0.tar", "deep/1.tar", "deep/y-1.tar.gz", "x-0.tar")
    assert len(meant(tmp_path, "DIR")[1]) == 1
    lines = meant(tmp_path, "DIR::DIR/deep")[1]
    assert len(lines) == 1 and "y-1.tar.gz" in lines[0]
    assert meant(tmp_path, "DIR/x-*.tar")[1] == [], "a glob is not asked about other names"


@pytest.mark.parametrize(
    ("numbers", "count", "first"),
    [
        ("0000 0001 0003", 1, "s-0002.tar"),
        ("0 1 2 8 9 12", 7, "s-3.tar"),
        ("08 11", 2, "s-09.tar"),
        ("0000 0001 0002", 0, ""),
        ("7", 0, ""),
        ("20190101 20240101", 0, ""),
    ],
)
def test_gaps_in_numbers_are_counted(tmp_path, numbers, count, first):
    put(tmp_path, *(f"s-{n}.tar" for n in numbers.split()))
    for shards in ("DIR", "DIR/s-*.tar"):
        lines = meant(tmp_path, shards)[1]
        assert len(lines) == (count > 0)
        if count:
            verb = "1 number is" if count == 1 else f"{count} numbers are"
            assert f"{verb} missing" in lines[0] and lines[0].endswith(f"the first {first}.")
    assert gaps(tmp_path, ["a.tar", "b.tar"]) == ""


def test_missing_shards_of_a_pattern_are_counted(tmp_path):
    put(tmp_path, *(f"s-{n:03d}.tar" for n in (0, 1, 5, 6)))
    text = refused(tmp_path, "DIR/s-{000..009}.tar")
    assert text.startswith(f"{tmp_path}/s-002.tar does not exist, nor do 5 others of the 10 that")
    assert "s-003.tar does not exist, nor does 1 other of the 5" in refused(
        tmp_path, "DIR/s-{000,001,003,004,005}.tar"
    )
    assert "{000..009}" in refused(tmp_path, "DIR/s-{000-009}.tar"), "how a range is written"
    assert "s-000.tar does" in refused(tmp_path, "DIR/s-000")
    put(tmp_path, "b/1.tar", "c/1.tar")
    assert "commas" in refused(tmp_path, "DIR/b DIR/c")


def zipped():
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("a.jpg", jpeg())
    return out.getvalue()


SOMETHING_ELSE = {
    "git-lfs": b"version https://git-lfs.github.com/spec/v1\noid sha256:"
    + b"a" * 64
    + b"\nsize 9\n",
    "parquet": b"PAR1" + bytes(3000) + b"PAR1",
    "zip": zipped(),
    "picture": jpeg(),
    "PICTURE": encoded(picture(0), "PNG"),
    "web page": b"<!DOCTYPE html><html>" + b"denied " * 400,
    "text file": b"url,caption\nhttp://a/b.jpg,a cat\n" * 40,
    "gzip": gzip.compress(bytes(20_000)),
    "bzip2": bz2.compress(bytes(20_000)),
}


@pytest.mark.parametrize("kind", SOMETHING_ELSE)
@pytest.mark.parametrize("name", ["x.tar", "x"])
def test_what_is_no_tar_is_refused_as_what_it_is(tmp_path, kind, name):
    """By its bytes, whatever its name, among sound shards too; and no index is left."""
    put(tmp_path, name, body=SOMETHING_ELSE[kind])
    write_shard(tmp_path / "0.tar", [("k", {"txt": b"t"})])
    for shards in (f"{tmp_path}/{name}", f"{tmp_path}/0.tar,{tmp_path}/{name}"):
        for read in (open_index, lambda s: list(verify(s))):
            with pytest.raises(UserError) as refusal:
                read(shards)
            text = str(refusal.value)
            assert kind.lower() in text and f"{tmp_path}/{name} is" in text and "\n" not in text
            advised = ("docs/data.md", "vtx data build", "git lfs pull", "fetch it again")
            advised += ("unpack it",)
            assert any(x in text for x in advised)
    assert not (tmp_path / ".vtx").exists()


@pytest.mark.parametrize(
    ("names", "word"),
    [
        ("a.jpg b.jpg c.JPG d.png notes.txt", "4 pictures"),
        ("cat/1.jpg cat/2.jpg dog/1.webp", "3 pictures"),
        ("train-0.parquet train-1.parquet README.json", "2 parquet tables"),
        ("data.csv", "1 CSV table"),
        ("images.zip", "1 zip archive"),
        ("00000.tar.gz 00001.tgz", "compressed"),
        ("0/1.tar 1/2.tar", "2 tars (0/1.tar ...) in subfolders: give DIR/**/*.tar"),
        ("._0.tar", "no *.tar"),
    ],
)
def test_folders_without_shards_are_named_as_what_they_are(tmp_path, names, word):
    put(tmp_path, *names.split())
    for read in (open_index, lambda s: list(verify(s))):
        with pytest.raises(UserError) as refusal:
            read(str(tmp_path))
        assert word.replace("DIR", str(tmp_path)) in str(refusal.value)
        assert "holds no *.tar" in str(refusal.value)
    if "jpg" in names or "parquet" in names or "csv" in names:
        assert refusal.value.source == str(tmp_path)
        pasted = f"'vtx data build {tmp_path} {tmp_path.name}-shards' makes shards of it."
        assert str(refusal.value).endswith(pasted)
    assert not list(tmp_path.rglob(".vtx"))


@pytest.mark.parametrize("name", ["t.csv", "t.tsv", "t.jsonl", "t.parquet", "t.arrow", "t.zip"])
def test_files_by_their_names(tmp_path, name):
    put(tmp_path, name, body=b"\x01\x02\x00 nothing that is known")
    text = refused(tmp_path, f"DIR/{name}")
    advice = "vtx data build" if name[2:] in ("csv", "tsv", "parquet") else "docs/data.md"
    assert name in text and "no tar" in text and advice in text
    write_shard(tmp_path / name, [("k", {"txt": b"t"})])
    assert open_index(f"{tmp_path}/{name}").n == 1, "a tar may have any name"


def test_no_index_is_left_where_there_is_no_sample(tmp_path):
    put(tmp_path, "0.tar", body=bytes(20_000))
    assert open_index(str(tmp_path)).n == 0 and not (tmp_path / ".vtx").exists()


def test_the_index_lies_beside_a_shard(tmp_path):
    """Not in a folder of folders; one that the first version left there still counts."""
    for name in ("a", "b"):
        write_shard(tmp_path / name / "0.tar", [("k", {"txt": b"t"})])
    index = open_index(f"{tmp_path}/{{a,b}}/*.tar")
    assert index.file.parent == tmp_path / "a" / ".vtx" and not (tmp_path / ".vtx").exists()
    (tmp_path / ".vtx").mkdir()
    index.file.rename(tmp_path / ".vtx" / index.file.name)
    again = open_index(f"{tmp_path}/{{a,b}}")
    assert again.file == tmp_path / ".vtx" / index.file.name and again.digest == index.digest


def test_links_that_lead_back_and_pipes(tmp_path):
    put(tmp_path, "a/0.tar")
    (tmp_path / "a" / "up").symlink_to(tmp_path)
    os.mkfifo(tmp_path / "p.tar")
    assert meant(tmp_path, "DIR/**/*.tar")[0] == ["a/0.tar"]
    assert "no regular file" in refused(tmp_path, "DIR/p.tar")


def test_a_long_list_of_relative_names_is_read_soon(tmp_path, monkeypatch):
    """Also beside names that hold commas, of which each is meant where it is named."""
    monkeypatch.chdir(tmp_path)
    put(tmp_path, "cc/a,b.tar", "cc/00007.tar,cc", "cc/x,y/0.tar")
    names = [f"cc/{i:05d}.tar" for i in range(3000)]
    began = time.monotonic()
    assert parts(",".join(names)) == names
    assert parts("::".join(names)) == names
    assert parts("cc/a,b.tar,cc/x,y/0.tar," + ",".join(names))[:3] == [
        "cc/a,b.tar",
        "cc/x,y/0.tar",
        names[0],
    ]
    assert time.monotonic() - began < 2


@pytest.mark.parametrize(
    "shards", ["DIR/ok,DIR/ok/../ok", "DIR/ok/0.tar,DIR/link/0.tar", "DIR/ok,DIR/one.tar"]
)
def test_a_shard_by_two_names_is_named_twice(tmp_path, shards):
    put(tmp_path, "ok/0.tar", "ok/1.tar")
    (tmp_path / "link").symlink_to("ok")
    (tmp_path / "one.tar").symlink_to("ok/1.tar")
    text = refused(tmp_path, shards)
    assert "named twice" in text and f"{tmp_path}/ok/" in text
    assert meant(tmp_path, "DIR/link")[0] == ["link/0.tar", "link/1.tar"], (
        "one name is none too many"
    )


@pytest.mark.parametrize(
    ("names", "count", "first"),
    [
        ([f"train-{i:05d}-of-00006.tar" for i in (0, 1, 3, 5)], 2, "train-00002-of-00006.tar"),
        ([f"part-{i:04d}.v2.tar" for i in (0, 1, 4)], 2, "part-0002.v2.tar"),
        ([f"2024-{m:02d}-0{d}.tar" for m in (1, 7) for d in (1, 3)], 2, "2024-01-02.tar"),
        ([f"part-{i:04d}.v2.tar" for i in range(3)], 0, ""),
        (["a-1.v2.tar", "a-2.v4.tar"], 0, ""),
    ],
)
def test_gaps_are_looked_for_in_the_number_that_varies(tmp_path, names, count, first):
    text = gaps(tmp_path, names)
    assert (f"{count} numbers are missing" in text and first in text) if count else text == ""


@pytest.mark.parametrize(
    ("names", "word"),
    [
        ("0.TAR", "1 other entry (0.TAR)"),
        ("0.tar.part 1.tar.part", "2 unfinished downloads (0.tar.part ...)"),
        (".0.tar", "1 hidden file (.0.tar)"),
        (".0.tar 1.TAR a.jpg", "1 hidden file (.0.tar); 1 other entry (1.TAR)"),
    ],
)
def test_a_folder_of_what_looks_like_shards_is_refused_with_their_names(tmp_path, names, word):
    put(tmp_path, *names.split())
    text = refused(tmp_path, "DIR")
    assert "holds no *.tar" in text and word in text


@pytest.mark.parametrize(
    "shards",
    [
        "t-2024T12:00/*.tar",
        "t-2024T12:00/{0..1}.tar",
        "t-2024T12:0[0]/*.tar",
        "t-2024T12:0{0,1}.tar",
    ],
)
def test_a_colon_in_a_name_that_is_there_is_no_scheme(tmp_path, monkeypatch, shards):
    put(
        tmp_path, "t-2024T12:00/0.tar", "t-2024T12:00/1.tar", "t-2024T12:00.tar", "t-2024T12:01.tar"
    )
    monkeypatch.chdir(tmp_path)
    assert len(expand(shards)) == 2
    for scheme in ("pipe:cat x", "t:0.tar", "t-2024T12://0.tar"):
        with pytest.raises(UserError, match="is never opened"):
            expand(scheme)
