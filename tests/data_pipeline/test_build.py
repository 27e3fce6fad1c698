"""`vtx data build`: what goes in comes out, the same bytes each time, whatever is killed."""

import json
import os
import re
import shlex
import tarfile
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.data_pipeline.make import corrupt, encoded, jpeg, picture
from tests.data_pipeline.packs import (
    class_folders,
    contents,
    killed_at,
    packed,
    samples_of,
    table,
)
from tests.require import need
from tests.runs import vtx
from tests.storages import Memory
from vtx_scale.data_pipeline.errors import UserError
from vtx_scale.data_pipeline.index import UNFINISHED
from vtx_scale.data_pipeline.opening import open_index
from vtx_scale.data_pipeline.storage import Folder
from vtx_scale.data_pipeline.tools.columns import Columns
from vtx_scale.data_pipeline.tools.packing import pack
from vtx_scale.data_pipeline.tools.pictures import pictures_of
from vtx_scale.data_pipeline.tools.sides import Side, shuffled
from vtx_scale.data_pipeline.tools.tables import tables
from vtx_scale.data_pipeline.tools.verify import verify
from vtx_scale.launch.cli import main


def pictures(root, each=3):
    storage = Folder(root)
    return pictures_of(storage, list(storage.list("")), each)


def rows_of(path, each=3, **columns):
    return tables(Folder(path.parent), [path.name], Columns(**columns), each)


def test_class_folders_become_labels(tmp_path):
    source = class_folders(tmp_path / "in")
    (source / "dog" / "0.v1.txt").write_text("a dog")
    (source / "dog" / "._0.jpg").write_bytes(b"of a Mac")
    made, left = packed(pictures(source), tmp_path / "out")
    assert made == {**made, "shards": 3, "samples": 8, "left_out": 0} and not left
    found = samples_of(tmp_path / "out")
    assert [key for key, _ in found] == [f"{i:09d}" for i in range(8)]
    paths = {json.loads(members["json"])["path"]: members for _, members in found}
    assert list(paths) == shuffled(sorted(paths))
    for i in range(8):
        members = paths[f"{'cat' if i < 4 else 'dog'}/{i % 4}.v1.jpg"]
        assert members["jpg"] == jpeg(10 * (i // 4) + i % 4)
        assert members["cls"] == str(i // 4).encode()
        assert ("txt" in members) == (i == 4)
    assert paths["dog/0.v1.jpg"]["txt"] == b"a dog"
    assert (tmp_path / "out" / "classes.txt").read_text() == "cat\ndog\n"


def test_each_shard_holds_all_classes_in_an_order_that_names_alone_decide(tmp_path):
    """Else a batch, which is read from a few shards, is of one class or two."""
    names = [f"{c}/{i:03d}.jpg" for c in "abcde" for i in range(100)]
    storage = Memory()
    source = pictures_of(storage, names, 100)
    for _, unit, _ in source.units:
        counts = Counter(name[0] for name in unit)
        assert len(counts) == 5 and max(counts.values()) < 40, counts
    assert source.about["pictures"] == [name for _, unit, _ in source.units for name in unit]
    again = pictures_of(storage, names[::-1], 100)
    assert again.about == source.about
    fewer = pictures_of(storage, names[::2], 100).about["pictures"]
    assert fewer == [x for x in source.about["pictures"] if x in fewer], "others move none"
    held = [[Side(0.2, True).takes(name) for name in unit] for _, unit, _ in source.units]
    assert all(8 < sum(unit) < 35 for unit in held), "a share of each shard is held"


def test_a_set_that_was_begun_in_another_order_is_not_gone_on_with(tmp_path):
    source = pictures(class_folders(tmp_path / "in"))
    names = sorted(source.about["pictures"])
    by_name = replace(source, about={**source.about, "pictures": names})
    assert killed_at(by_name, tmp_path / "out", 4)
    with pytest.raises(UserError, match="the beginning of another set"):
        packed(source, tmp_path / "out")


@pytest.mark.parametrize(
    ("labels", "is_sorted"),
    [
        ("a" * 10 + "b" * 10, True),
        ("b" * 18 + "a" * 2, True),
        ("ab" * 10, False),
        ("aabbabbaabaabbabbaba", False),
        ("aaaaaaaaabaaaaaaaaaa", False),  # so it is by chance, too
        ("a" * 20, False),
        ("ab", False),
    ],
)
def test_a_table_that_is_sorted_by_class_is_told(tmp_path, labels, is_sorted):
    """Its rows keep their order."""
    rows = [[f"{i}.jpg", label] for i, label in enumerate(labels)]
    source = rows_of(table(tmp_path / "t.csv", [["image", "label"], *rows]))
    assert ("shuffle the table" in source.warning) == is_sorted
    assert not rows_of(table(tmp_path / "c.csv", [["image", "text"], *rows])).warning


def test_a_picture_beside_folders_of_classes_drops_them_not_in_silence(tmp_path):
    source = class_folders(tmp_path / "in")
    (source / "loose.jpg").write_bytes(jpeg(5))
    with pytest.raises(UserError, match=r"1 pictures beside its folders \(loose.jpg\)"):
        pictures(source)
    for path in source.rglob("*.jpg"):
        path.with_suffix(".txt").write_text("a caption")
    made, _ = packed(pictures(source), tmp_path / "out")
    assert made["samples"] == 9 and not (tmp_path / "out" / "classes.txt").exists()


def test_a_picture_without_text_where_others_have_one_is_found_in_what_was_built(tmp_path):
    """Its JSON says where it came from and nothing of what it shows."""
    source = tmp_path / "in"
    source.mkdir()
    for i in range(4):
        (source / f"{i}.jpg").write_bytes(jpeg(i))
        if i != 2:
            (source / f"{i}.txt").write_text("a caption")
    packed(pictures(source), tmp_path / "out")
    (line,) = verify(str(tmp_path / "out"))
    row = shuffled([f"{i}.jpg" for i in range(4)]).index("2.jpg")
    assert line["key"] == f"{row:09d}" and line["reason"] == "member_missing"


@pytest.mark.parametrize(
    ("folders", "commands"),
    [
        (("val", "train"), ("train", "val")),
        (("Train", "valid", "test"), ("Train", "valid", "test")),
        (("train",), ("train",)),
    ],
)
def test_the_splits_of_a_set_are_no_classes(tmp_path, folders, commands):
    for folder in folders:
        class_folders(tmp_path / "two sides" / folder, each=1)
    with pytest.raises(UserError, match="are splits and no classes") as error:
        pictures(tmp_path / "two sides")
    found = re.findall(r"'(vtx .*?)'(?: and |\smake)", str(error.value))
    root = tmp_path / "two sides"
    assert [shlex.split(x)[3:] for x in found] == [
        [f"{root}/{name}", f"shards/{name}"] for name in commands
    ]
    class_folders(root, ("cat",), each=1)
    assert pictures(root).holds[2] == len(folders) + 1, "beside a class they are classes"


def test_photographs_that_cannot_be_read_are_counted_and_empty_classes_named(tmp_path):
    source = class_folders(tmp_path / "in")
    assert pictures(source).guess.endswith("labels from 2 folders.")
    for name in ("cat/a.HEIC", "cat/b.heic", "cat/c.avif", "cat/notes.md", "emu/d.cr2"):
        (source / name).parent.mkdir(exist_ok=True)
        (source / name).write_bytes(b"x")
    (source / "yak").mkdir()
    (source / ".hidden").mkdir()
    guess = pictures(source).guess
    assert "4 files left out: 2 HEIC, 1 AVIF, 1 CR2: make JPEGs of them." in guess
    assert guess.endswith("No picture lies in emu, yak: no class.")
    alone = tmp_path / "alone"
    alone.mkdir()
    (alone / "a.heic").write_bytes(b"x")
    with pytest.raises(UserError, match=r"can be read \(1 file left out: 1 HEIC\): make JPEGs"):
        pictures(alone)


def test_bad_files_are_named_and_left_out(tmp_path):
    source = class_folders(tmp_path / "in")
    (source / "cat" / "1.v1.jpg").write_bytes(b"")
    (source / "dog" / "2.v1.jpg").write_bytes(corrupt(jpeg(3)))
    made, left = packed(pictures(source), tmp_path / "out")
    assert sorted((line["row"], line["reason"]) for line in left) == [
        ("cat/1.v1.jpg", "empty"),
        ("dog/2.v1.jpg", "jpeg_corrupt"),
    ]
    assert (made["samples"], made["left_out"]) == (6, 2)
    assert not list(verify(str(tmp_path / "out")))


def test_nothing_usable_makes_no_set(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.jpg").write_bytes(b"no picture")
    with pytest.raises(UserError, match="Nothing of the 1 rows"):
        packed(pictures(tmp_path / "in"), tmp_path / "out")
    assert not list((tmp_path / "out").rglob("*"))


def test_a_table_of_paths_urls_and_captions(tmp_path):
    for i in range(4):
        (tmp_path / f"p {i}.jpg").write_bytes(jpeg(i))
    (tmp_path / "grey.png").write_bytes(encoded(picture(9).convert("L"), "PNG"))
    path = table(
        tmp_path / "t.csv",
        [
            ["id", "url", "caption"],
            ["0", "p 0.jpg", 'two\nlines, and "quotes"'],
            ["1", (tmp_path / "p 1.jpg").as_uri(), "é"],
            ["2", str(tmp_path / "p 2.jpg"), " "],
            ["3", "http://localhost:9/p.jpg", "far"],
            ["4", "p 3.jpg"],
            [],
            ["5", "nowhere.jpg", "none"],
            ["6", "grey.png", "grey"],
        ],
    )
    made, left = packed(rows_of(path, each=2), tmp_path / "out")
    assert [(line["row"], line["reason"]) for line in left] == [
        ("t.csv row 3", "text"),
        ("t.csv row 4", "url"),
        ("t.csv row 5", "columns"),
        ("t.csv row 6", "path"),
    ]
    found = samples_of(tmp_path / "out")
    assert [m["txt"].decode() for _, m in found] == ['two\nlines, and "quotes"', "é", "grey"]
    assert [m.get("jpg") for _, m in found[:2]] == [jpeg(0), jpeg(1)] and "png" in found[2][1]
    assert made["samples"] + made["left_out"] == 7


cells = st.text(st.characters(blacklist_categories=("Cs", "Cc")), max_size=12)
texts = st.lists(cells.map(lambda x: f"x{x}\n{x}" if len(x) % 3 else f"x{x}"), min_size=1)


@settings(max_examples=25, deadline=None)
@given(texts, st.integers(1, 5), st.sampled_from(",\t;"), st.booleans())
def test_parts_of_a_table_are_its_rows(tmp_path_factory, captions, each, delimiter, marked):
    """Cut anywhere, also behind cells of several lines, a table gives each row once."""
    folder = tmp_path_factory.mktemp("table")
    rows = [[f"{i}.jpg", caption] for i, caption in enumerate(captions)]
    path = table(folder / "t.csv", [["path", "text"], *rows], delimiter)
    if marked:
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    source = rows_of(path, each)
    assert source.count == -(-len(rows) // each)
    found = [cells for part in source.units for cells in source.read.cells(part)]
    assert found == [(name, caption, None) for name, caption in rows]


def test_paths_that_lead_nowhere_are_shown_whole_and_few(tmp_path, capfd):
    (tmp_path / "0.jpg").write_bytes(jpeg(0))
    rows = [[f"photos/{i}.jpg", "x"] for i in range(160)]
    path = table(tmp_path / "t.csv", [["image", "text"], ["0.jpg", "x"], *rows])
    assert main(["data", "build", str(path), str(tmp_path / "out"), "--workers", "1"]) == 0
    out, _ = capfd.readouterr()
    lines = [line for line in out.splitlines() if ": path " in line]
    assert lines[0] == f"t.csv row 2: path {tmp_path}/photos/0.jpg: No such file or directory"
    assert len(lines) == 5 and "and 155 more: path\n" in out
    assert "paths are relative to the table's folder" in out
    assert main(["data", "build", str(path), str(tmp_path / "j"), "--workers", "1", "--json"]) == 0
    assert len(capfd.readouterr().out.splitlines()) == 161, "JSON stays whole"


def test_nothing_but_paths_that_lead_nowhere(tmp_path, capfd):
    path = table(tmp_path / "t.csv", [["image", "text"], *([["/no.jpg", "x"]] * 9)])
    assert main(["data", "build", str(path), str(tmp_path / "out"), "--workers", "1"]) == 2
    out, err = capfd.readouterr()
    assert "path /no.jpg: No such" in out and "and 4 more: path" in out
    assert "Nothing of the 9 rows" in err and "relative to the table" in out


def test_a_set_without_classes_is_one_sentence(tmp_path, capfd):
    for i in range(12):
        (tmp_path / f"{i}.jpg").write_bytes(jpeg(i))
    packed(pictures(tmp_path), tmp_path / "out")
    words = ["data", "verify", str(tmp_path / "out"), "--for", "vit_small"]
    capfd.readouterr()
    assert main(words) == 1
    out, err = capfd.readouterr()
    assert out.count(".tar/") == 5 and "and 7 more: member_missing cls\n" in out
    assert "no sample has a class" in err and "12 bad" in out
    assert main([*words, "--json"]) == 1
    assert len(capfd.readouterr().out.splitlines()) == 12


def test_names_of_classes_in_a_column(tmp_path):
    for i in range(3):
        (tmp_path / f"{i}.jpg").write_bytes(jpeg(i))
    rows = [["0.jpg", "wolf"], ["1.jpg", "bear"], ["2.jpg", ""]]
    path = table(tmp_path / "t.tsv", [["file", "label"], *rows], "\t")
    _, left = packed(rows_of(path), tmp_path / "out")
    assert [m["cls"] for _, m in samples_of(tmp_path / "out")] == [b"1", b"0"]
    assert (tmp_path / "out" / "classes.txt").read_text() == "bear\nwolf\n"
    assert [(line["row"], line["reason"]) for line in left] == [("t.tsv row 3", "label")]


@pytest.mark.parametrize(
    ("columns", "given", "words"),
    [
        (["a", "caption"], {}, "pictures (--image)"),
        (["path", "b"], {}, "captions (--caption) or labels (--label)"),
        (["path", "text"], {"caption": "words"}, "no column 'words'"),
        ([], {}, "is empty"),
    ],
)
def test_a_column_that_is_not_there_is_asked_for(tmp_path, columns, given, words):
    path = table(tmp_path / "t.csv", [columns, ["x", "y"]] if columns else [])
    with pytest.raises(UserError) as error:
        rows_of(path, **given)
    assert words in str(error.value)


@pytest.mark.services
def test_a_parquet_table(tmp_path):
    need("parquet")
    import pyarrow as pa
    from pyarrow import parquet

    bodies = [jpeg(i) for i in range(10)]
    (tmp_path / "beside.jpg").write_bytes(jpeg(99))
    images = [{"bytes": b, "path": f"{i}.jpg"} for i, b in enumerate(bodies)]
    images[4] = {"bytes": None, "path": "beside.jpg"}
    images[5] = None
    found = pa.table({"image": images, "label": [float(i % 3) for i in range(9)] + [None]})
    parquet.write_table(found, tmp_path / "t.parquet", row_group_size=4)
    for each in (3, 4, 7, 20):
        out = tmp_path / f"out{each}"
        made, left = packed(rows_of(tmp_path / "t.parquet", each), out)
        assert [(x["row"], x["reason"]) for x in left] == [
            ("t.parquet row 6", "empty"),
            ("t.parquet row 10", "label"),
        ]
        got = samples_of(out)
        wanted = [*bodies[:4], jpeg(99), *bodies[6:9]]
        assert [m["jpg"] for _, m in got] == wanted
        assert [m["cls"] for _, m in got] == [b"0", b"1", b"2", b"0", b"1", b"0", b"1", b"2"]
        assert made["shards"] == -(-9 // each)  # of the tenth row alone none is made


def test_without_pyarrow_the_extra_is_named(tmp_path):
    (tmp_path / "t.parquet").write_bytes(b"PAR1")
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "pyarrow.py").write_text("raise ImportError")
    paths = f"{tmp_path / 'none'}:{os.environ.get('PYTHONPATH', '.')}"
    done = vtx("data", "build", tmp_path / "t.parquet", tmp_path / "o", env={"PYTHONPATH": paths})
    assert done.returncode == 2 and "pip install 'vtx-scale[parquet]'" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_the_same_bytes_each_time_and_after_a_kill_at_every_place(tmp_path):
    """At each change of the storage, from the plan to the last record that is removed."""
    source = class_folders(tmp_path / "in", each=5)
    (source / "cat" / "2.v1.jpg").write_bytes(b"broken")
    unkilled, left = packed(pictures(source), tmp_path / "unkilled")
    wanted = contents(tmp_path / "unkilled")
    again = packed(pictures(source), tmp_path / "again", workers=2)
    assert again == (unkilled, left) and contents(tmp_path / "again") == wanted
    places = 0
    while killed_at(pictures(source), out := tmp_path / f"k{places}", places):
        assert packed(pictures(source), out)[0] == unkilled
        assert contents(out) == wanted, places
        places += 1
    assert places > 20 and contents(out) == wanted


def test_killed_again_and_again(tmp_path):
    """Each attempt comes one change further; what is there is not written again."""
    source = class_folders(tmp_path / "in", each=5)
    packed(pictures(source), tmp_path / "unkilled")
    rounds = 0
    rng = np.random.default_rng(0)
    while killed_at(pictures(source), tmp_path / "out", int(rng.integers(1, 5))):
        rounds += 1
        assert rounds < 50
    assert rounds > 3 and contents(tmp_path / "out") == contents(tmp_path / "unkilled")


def test_a_shard_that_is_gone_is_written_again_and_others_are_not(tmp_path):
    source = class_folders(tmp_path / "in", each=5)
    packed(pictures(source), tmp_path / "unkilled")
    out = tmp_path / "out"
    assert killed_at(pictures(source), out, 10)
    first, second = sorted(out.glob("part-*.tar"))[:2]
    first.unlink()
    kept = second.stat().st_ino
    packed(pictures(source), out)
    assert contents(out) == contents(tmp_path / "unkilled") and second.stat().st_ino == kept


def test_half_a_set_is_nobodys(tmp_path):
    source = class_folders(tmp_path / "in", each=5)
    out = tmp_path / "out"
    assert killed_at(pictures(source), out, 9) and len(list(out.glob("*.tar"))) == 2
    with pytest.raises(UserError, match="is not complete"):
        open_index(str(out))
    packed(pictures(source), out)
    assert open_index(str(out)).n == 10


class Loses(Folder):
    """The first shard is gone when the last one is stored."""

    def put_file(self, name, path):
        super().put_file(name, path)
        if name.endswith("2.tar"):
            self.delete("part-000000.tar")


def test_no_set_appears_without_every_shard(tmp_path):
    source, out = class_folders(tmp_path / "in"), tmp_path / "out"
    with pytest.raises(UserError, match="part-000000.tar is gone again"):
        packed(pictures(source), out, storage=Loses(out))
    assert not list(out.rglob("*.safetensors"))
    with pytest.raises(UserError, match="is not complete"):
        open_index(str(out))
    assert packed(pictures(source), out)[0]["samples"] == 8


def test_what_stands_there_is_never_overwritten(tmp_path):
    one, two = class_folders(tmp_path / "a"), class_folders(tmp_path / "b", ("x", "y"))
    out = tmp_path / "out"
    assert killed_at(pictures(one), out, 4)
    before = contents(out)
    with pytest.raises(UserError, match="the beginning of another set"):
        packed(pictures(two), out)
    assert contents(out) == before
    made, _ = packed(pictures(one), out)
    assert packed(pictures(one), out)[0] == made
    with pytest.raises(UserError, match="holds shards already"):
        packed(pictures(two), out)
    with pytest.raises(UserError, match="holds shards already"):
        packed(pictures(one, each=2), out)


class Raced(Memory):
    """Another command puts its plan there between the look and the plan of this one."""

    def __init__(self, theirs):
        super().__init__()
        self.theirs = theirs

    def put_if_absent(self, name, body):
        if self.theirs is not None:
            self.put(name, self.theirs or body)
        return super().put_if_absent(name, body)


def test_of_two_sets_at_once_one_is_refused(tmp_path):
    """The same set by two processes is one set; a plan that cannot be read is nobody's."""
    source = class_folders(tmp_path / "in")
    for theirs, words in ((b'{"plan": "other"}', "of another set"), (b"{", "is torn")):
        out = Raced(theirs)
        with pytest.raises(UserError, match=words):
            packed(pictures(source), tmp_path, storage=out)
        assert list(out.objects) == [UNFINISHED] and out.objects[UNFINISHED][0] == theirs
    plain = pack(Raced(None), pictures(source), 0, lambda: None)
    assert pack(Raced(b""), pictures(source), 0, lambda: None) == plain


def test_webdataset_reads_it_and_no_time_or_owner_is_in_it(tmp_path):
    import webdataset as wds

    packed(pictures(class_folders(tmp_path / "in")), tmp_path / "out")
    names = sorted(map(str, (tmp_path / "out").glob("*.tar")))
    stages = wds.WebDataset(names, shardshuffle=False).decode("pil").to_tuple("jpg", "cls")
    found = list(stages)
    assert sorted(label for _, label in found) == [0] * 4 + [1] * 4
    assert {image.size for image, _ in found} == {(32, 24)}
    for name in names:
        with tarfile.open(name) as tar:
            about = {(m.mtime, m.uid, m.gid, m.uname, m.gname, m.mode) for m in tar}
        assert about == {(0, 0, 0, "", "", 0o644)}


def test_the_command(tmp_path):
    source = class_folders(tmp_path / "in")
    (source / "cat" / "1.v1.jpg").write_bytes(b"")
    words = "data", "build", source, tmp_path / "out", "--samples", 2, "--workers", 2, "--json"
    done = vtx(*words)
    assert done.returncode == 0, done.stderr
    assert not done.stderr, "also of semaphores that would be left"
    *left, made = map(json.loads, done.stdout.splitlines())
    assert left == [{"row": "cat/1.v1.jpg", "reason": "empty"}]
    assert (made["shards"], made["samples"], made["left_out"]) == (4, 7, 1)
    assert contents(tmp_path / "out").keys() == {
        *(f"part-{i:06d}.tar" for i in range(4)),
        "classes.txt",
        ".vtx/packed.json",
    }
