"""Toy shards, digits and what `vtx data inspect` says."""

import hashlib
import io
import json
import tarfile

import pytest
from PIL import Image

from tests.require import need
from vtx_scale.data_pipeline.opening import open_index
from vtx_scale.data_pipeline.tools.digits import make_digits
from vtx_scale.data_pipeline.tools.inspect import inspect
from vtx_scale.data_pipeline.tools.shards import write_shard
from vtx_scale.data_pipeline.tools.toy import CLASSES, COLOURS, make_toy
from vtx_scale.data_pipeline.tools.verify import verify


def digest(folder):
    h = hashlib.sha256()
    for path in sorted(p for p in folder.rglob("*") if p.is_file() and ".vtx" not in p.parts):
        h.update(path.name.encode() + path.read_bytes())
    return h.hexdigest()


def test_toy_shards_are_the_same_for_the_same_arguments(tmp_path):
    folders = [
        make_toy(tmp_path / str(i), samples=11, shards=3, size=32, seed=s)
        for i, s in enumerate((5, 5, 6))
    ]
    assert digest(folders[0]) == digest(folders[1]) != digest(folders[2])
    index = open_index(str(folders[0]))
    assert (index.n, index.chunk_samples.tolist()) == (11, [3, 4, 4]) and list(
        verify(str(folders[0]))
    ) == []
    assert [
        p.name for p in folders[0].iterdir() if p.name.startswith(".") and p.name != ".vtx"
    ] == []


def test_toy_pictures_are_what_their_captions_say(tmp_path):
    make_toy(tmp_path, samples=12, shards=1, size=64)
    assert (tmp_path / "classes.txt").read_text().split("\n") == [*CLASSES, ""]
    with tarfile.open(tmp_path / "toy-000.tar") as tar:
        members = {m.name: tar.extractfile(m).read() for m in tar}
    for i in range(12):
        at = f"000-{i:05d}."
        about = json.loads(members[at + "json"])
        image = Image.open(io.BytesIO(members[at + "jpg"])).convert("RGB")
        mask = Image.open(io.BytesIO(members[at + "mask.png"]))
        assert about["caption"] == members[at + "txt"].decode() and about["class"] == int(
            members[at + "cls"]
        )
        for number, thing in enumerate(about["objects"], 1):
            x0, y0, x1, y1 = thing["box"]
            middle = int((x0 + x1) / 2), int((y0 + y1) / 2)
            assert mask.getpixel(middle) == number
            assert all(
                abs(a - b) < 40
                for a, b in zip(image.getpixel(middle), COLOURS[thing["colour"]], strict=True)
            )
            assert f"a {thing['size']} {thing['colour']} {thing['shape']}" in about["caption"]


def test_a_shard_is_whole_or_absent(tmp_path):
    def rows():
        yield "a", {"txt": b"1"}
        raise KeyError("in the middle")

    with pytest.raises(KeyError):
        write_shard(tmp_path / "a.tar", rows())
    assert list(tmp_path.iterdir()) == []


def test_inspect(tmp_path):
    make_toy(tmp_path, samples=10, shards=2, size=16)
    row = inspect(str(tmp_path))
    assert [row[k] for k in ("shards", "samples", "chunks", "known_bad", "lanes", "window")] == [
        2,
        10,
        2,
        0,
        1,
        1,
    ]
    assert row["members"] == {"jpg": 10, "txt": 10, "cls": 10, "json": 10, "mask.png": 10}
    assert row["bytes"] == sum(p.stat().st_size for p in tmp_path.glob("*.tar")) and row[
        "caption"
    ].startswith("a ")


def test_digits(tmp_path):
    need("sklearn")
    make_digits(tmp_path)
    train, val = open_index(str(tmp_path / "train")), open_index(str(tmp_path / "val"))
    assert (train.n, val.n) == (1437, 360) and list(verify(str(tmp_path / "val"))) == []
    assert (tmp_path / "classes.txt").read_text().split()[:3] == ["zero", "one", "two"]
