"""`vtx data verify` judges as the reader does that will read."""

import json
import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from tests.data_pipeline.make import corrupt, encoded, jpeg, picture, png_header
from tests.data_pipeline.test_tar import tar_of
from tests.runs import vtx
from vtx_scale.data_pipeline import storage
from vtx_scale.data_pipeline.batches import Batches, InOrder
from vtx_scale.data_pipeline.errors import UserError
from vtx_scale.data_pipeline.opening import open_index
from vtx_scale.data_pipeline.tools.shards import write_shard
from vtx_scale.data_pipeline.tools.verify import verify
from vtx_scale.launch.build import reader_of
from vtx_scale.launch.recipes import find

J = jpeg(1)
RECIPES = (
    "clip_vit_b32",
    "siglip_vit_b16",
    "dalle_2b8",
    "virtex_r50",
    "dino_vit_s16",
    "vit_b32_jft",
    "dvae_dalle",
    "vit_b16_masked",
)
SAMPLES = {
    "all": {"jpg": J, "txt": b"a cat", "cls": b"3", "json": b'{"caption": "a cat"}'},
    "picture": {"jpg": J},
    "captioned": {"jpg": J, "txt": b"a cat"},
    "classed": {"jpg": J, "cls": b"3"},
    "far-class": {"jpg": J, "cls": b"99999"},
    "classes": {"jpg": J, "cls": b"3,5", "txt": b"t"},
    "no-class": {"jpg": J, "cls": b"cat", "txt": b"t"},
    "about": {"jpg": J, "json": b'{"caption": "a cat"}'},
    "nothing-said": {"jpg": J, "json": b'{"url": "x", "caption": null}'},
    "two-lines": {"jpg": J, "txt": b"a cat", "cls": b"1", "json": b"{}\n{}"},
    "no-json": {"jpg": J, "json": b"{"},
    "blank": {"jpg": J, "txt": b" \n", "cls": b"1"},
    "blank-about": {"jpg": J, "txt": b"", "json": b'{"caption": "a cat"}'},
    "marks": {"jpg": J, "txt": b"...!", "cls": b"0"},
    "cap": {"bmp": encoded(picture(2), "BMP"), "cap": b"a cat", "cls": b"2"},
    "cut": {"jpg": J[:-2], "txt": b"t", "cls": b"1"},
    "corrupt": {"jpg": corrupt(J), "txt": b"t", "cls": b"1"},
    "page": {"png": b"<html>", "txt": b"t", "cls": b"1"},
    "bomb": {"png": png_header(50_000, 50_000), "txt": b"t", "cls": b"1"},
    "thin": {"jpg": encoded(Image.new("RGB", (100, 2))), "txt": b"t", "cls": b"1"},
    "void": {"jpg": b"", "txt": b"t"},
    "second": {"jpg": J, "png": b"x", "txt": b"t", "cls": b"1"},
    "text": {"txt": b"t"},
    "class": {"cls": b"1"},
    "odd": {"input.jpg": J, "txt": b"t"},
    "code": {"pkl": b"x"},
}


def run_of(name, **fields):
    run = find(name, True)
    return replace(run, data=replace(run.data, **fields))


def of_a_run(folder, run):
    """key -> reason of what a run masks."""
    index = open_index(str(folder))
    batch = Batches(index, InOrder(index.n), reader_of(run, True), index.n, 0, 1, run.seed)[0]
    return {e["key"]: e["reason"] for e in batch["bad"]}


def of_verify(folder, run=None):
    reader = reader_of(run, True) if run else None
    found = list(verify(str(folder), reader, run.seed if run else 0))
    assert len({r["key"] for r in found}) == len(found), "a line a sample"
    assert all(set(r) == {"shard", "key", "reason", "member"} for r in found)
    return {r["key"]: r["reason"] for r in found}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("every")
    names = list(SAMPLES)
    write_shard(folder / "b.tar", [(k, SAMPLES[k]) for k in names[::2]])
    write_shard(folder / "a.tar", [(k, SAMPLES[k]) for k in names[1::2]])
    return folder


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_and_verify_judge_alike(folder, name):
    """Sample by sample, with the reasons, and in both directions."""
    run = run_of(name)
    verdict = of_verify(folder, run)
    assert verdict == of_a_run(folder, run)
    assert {"cut", "corrupt", "page", "bomb", "thin", "void", "text"} <= set(verdict)
    assert not {"all", "two-lines"} & set(verdict)


def test_what_one_recipe_takes_another_does_not(folder):
    verdicts = {name: of_verify(folder, run_of(name)) for name in RECIPES}
    assert "picture" not in verdicts["dino_vit_s16"] and "picture" not in verdicts["dvae_dalle"]
    assert verdicts["clip_vit_b32"]["picture"] == "member_missing"
    assert verdicts["clip_vit_b32"]["classed"] == "member_missing"
    assert verdicts["clip_vit_b32"]["nothing-said"] == "member_missing"
    assert verdicts["vit_b32_jft"]["captioned"] == "member_missing"
    assert verdicts["vit_b32_jft"]["far-class"] == "label"
    assert "captioned" not in verdicts["clip_vit_b32"] and "classed" not in verdicts["vit_b32_jft"]
    assert verdicts["siglip_vit_b16"]["marks"] == "text" and "marks" not in verdicts["virtex_r50"]
    assert "cap" not in set().union(*verdicts.values())
    placed = of_verify(folder, run_of("clip_vit_b32", caption="cls"))
    assert "classed" not in placed and placed["captioned"] == "member_missing"


def test_without_a_recipe_each_member_is_judged(folder):
    found = {r["key"]: (r["reason"], r["member"]) for r in verify(str(folder))}
    assert found == {
        "no-class": ("label", "cls"),
        "two-lines": ("json", "json"),
        "no-json": ("json", "json"),
        "blank": ("text", "txt"),
        "cut": ("jpeg_truncated", "jpg"),
        "corrupt": ("jpeg_corrupt", "jpg"),
        "page": ("image_format", "png"),
        "bomb": ("image_bomb", "png"),
        "thin": ("image_shape", "jpg"),
        "void": ("empty", "jpg"),
        "second": ("image_format", "png"),
        "text": ("member_missing", "image"),
        "class": ("member_missing", "image"),
        "odd": ("member_missing", "image"),
        "code": ("member_missing", "image"),
        "picture": ("member_missing", "text or class"),
    }


@pytest.mark.parametrize("name", ["clip_vit_b32", "vit_b32_jft"])
def test_the_member_is_named_where_the_reason_says_it(folder, name):
    reader = reader_of(run_of(name), True)
    found = {r["key"]: r["member"] for r in verify(str(folder), reader)}
    assert found["cut"] == "jpg" and found["page"] == "png" and found["void"] == "jpg"
    if name == "clip_vit_b32":
        assert found["blank"] == "txt" and found["no-json"] == "json"
        assert found["no-class"] == "cls" and found["picture"] == "text"


def test_a_set_of_pictures_alone_is_sound(tmp_path):
    """Where no sample has a text or a class none lacks it; one that has shows what others lack,
    whichever comes first.
    """
    for folder, keys in (("alone", "abc"), ("late", "abcz"), ("early", "0abc")):
        rows = [(k, {"jpg": J, **({"txt": b"t"} if k in "0z" else {})}) for k in keys]
        write_shard(tmp_path / folder / "0.tar", rows)
        found = of_verify(tmp_path / folder)
        assert set(found) == (set() if folder == "alone" else set("abc"))


def said(folder):
    """(sentences at indexing, sentences of verify)."""
    one, two = [], []
    open_index(str(folder), say=one.append)
    list(verify(str(folder), say=two.append))
    return one, two


def shard(folder, *names):
    folder.mkdir(exist_ok=True)
    (folder / "0.tar").write_bytes(
        tar_of([(n, b"0", J if n.endswith("jpg") else b"t") for n in names])
    )
    return folder


@pytest.mark.parametrize(
    ("names", "count"),
    [
        ([f"{k}.{x}" for x in ("jpg", "txt") for k in "abcd"], 4),
        (["a.jpg", "b.jpg", "b.txt", "a.txt"], 1),
        ([f"d/{k}.{x}" for x in ("txt", "jpg", "cls") for k in "ab"], 4),
        (["a.jpg", "a.txt", "b.jpg", "b.txt"], 0),
        (["a.jpg", "a.txt", "b.jpg", "b.txt", "a.jpg", "a.txt"], 0),
        (["a.jpg", "a.jpg", "a.txt", "b.jpg", "b.txt"], 0),
    ],
)
def test_members_that_lie_apart_are_said(tmp_path, names, count):
    """A repeated name is another thing."""
    for lines in said(shard(tmp_path / "d", *names)):
        apart = [x for x in lines if "tar --sort=name" in x]
        assert len(apart) == (count > 0)
        if count:
            assert apart[0].startswith(f"{count} key")


@pytest.mark.parametrize(
    ("names", "count"),
    [
        ([f"v1.0_{i:05d}.{x}" for i in range(30) for x in ("jpg", "txt")], 1),
        ([f"a/img.{i:03d}x.jpg" for i in range(5)], 1),
        ([f"./{i} Track 2.0 (Clean).{x}" for i in range(3) for x in ("jpg", "txt")], 3),
        ([f"{k}.{x}" for k in "ab" for x in ("left.jpg", "right.jpg", "txt")], 0),
        ([f"{k}.{x}.jpg" for k in "ab" for x in range(3)], 0),
        ([f"set.v1.0/{i}.{x}" for i in range(9) for x in ("jpg", "txt")], 0),
        ([f"{i}.{x}" for i in range(9) for x in ("jpg", "seg.1x.png", "0a.jpg")], 0),
    ],
)
def test_dots_that_make_pictures_one_sample_are_said(tmp_path, names, count):
    for lines in said(shard(tmp_path / "d", *names)):
        dotted = [x for x in lines if "first dot" in x]
        assert len(dotted) == (count > 0)
        if count:
            assert dotted[0].startswith(f"{count} sample") and len(dotted[0]) < 500


def test_what_a_mac_adds_is_said_and_not_mistaken(tmp_path):
    names = [f"t/{dot}{k}.{x}" for k in "abc" for x in ("jpg", "txt") for dot in ("._", "")]
    for lines in said(shard(tmp_path / "d", *names)):
        assert len(lines) == 1 and "COPYFILE_DISABLE" in lines[0]


def test_a_sample_that_cannot_be_read_is_one(tmp_path, monkeypatch):
    write_shard(tmp_path / "a.tar", [(k, {"jpg": J, "txt": b"t"}) for k in "abc"])
    read = storage.File.read

    def torn(self, offset, length):
        if length == len(J) and b"b.jpg" in read(self, offset - 512, 512):
            raise OSError("Input/output error")
        return read(self, offset, length)

    monkeypatch.setattr(storage.File, "read", torn)
    assert of_verify(tmp_path) == {"b": "read_error"}


@pytest.mark.slow
def test_the_command_judges_by_a_recipe(folder):
    done = vtx("data", "verify", folder, "--for", "dino_vit_s16", "--smoke", "--json")
    assert done.returncode == 1
    found = {r["key"]: r["reason"] for r in map(json.loads, done.stdout.splitlines())}
    assert found == of_verify(folder, run_of("dino_vit_s16"))
    plain = vtx("data", "verify", folder, "--for", "clip_vit_b32", "data.tokenizer=bytes")
    assert "a.tar/picture: member_missing text\n" in plain.stdout
    assert "--for RECIPE" in vtx("data", "verify", folder, "--smoke").stderr
    assert "clip_vit_b32" in vtx("data", "verify", folder, "--for", "clip_vit_b3").stderr


def test_what_is_no_fault_of_a_sample_ends_it(folder):
    class Lacks:
        def blank(self):
            return {"n": np.zeros((), np.int64)}

        def __call__(self, members, draw):
            raise UserError("Give a palette.")

    with pytest.raises(UserError, match="palette"):
        list(verify(str(folder), Lacks()))


def test_the_member_at_fault_behind_an_empty_one(tmp_path):
    write_shard(
        tmp_path / "a.tar",
        [
            ("json", {"jpg": J, "txt": b"", "json": b"{"}),
            ("label", {"jpg": J, "txt": b"t", "cls": b" "}),
            ("text", {"jpg": J, "txt": b"\x00\x00"}),
        ],
    )
    found = {r["key"]: (r["reason"], r["member"]) for r in verify(str(tmp_path))}
    assert found == {"json": ("json", "json"), "label": ("label", "cls"), "text": ("text", "txt")}


def test_a_verdict_that_nobody_reads_to_its_end_is_no_success(tmp_path):
    """And names that an ASCII terminal lacks are escaped; a full disk is said of stdout."""
    write_shard(tmp_path / "\u00fc.tar", [(f"{i:05d}", {"txt": b"t"}) for i in range(4000)])
    command = [sys.executable, "-m", "vtx_scale", "data", "verify", str(tmp_path)]
    env = {**os.environ, "PYTHONIOENCODING": "ascii"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=env) as run:
        assert run.stdout.readline() == b"\\xfc.tar/00000: member_missing image\n"
        run.stdout.close()
        assert run.wait(60) == 1
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, env=env, timeout=60)
    assert done.returncode == 1 and b"stdout" in done.stderr
