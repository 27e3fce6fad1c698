"""`vtx data repack`: the same samples in other shards, or with smaller pictures."""

import bz2
import gzip
import io
import json
import lzma
import shutil
import tarfile
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.data_pipeline.make import corrupt, encoded, jpeg, picture, rows, small_set, unreadable
from tests.data_pipeline.packs import contents, killed_at, packed, samples_of
from tests.require import need
from tests.runs import vtx
from vtx_scale.data_pipeline.codes import Coding, coding_in
from vtx_scale.data_pipeline.codes import packed as codes
from vtx_scale.data_pipeline.decode import decode_image
from vtx_scale.data_pipeline.errors import BadSample, UserError
from vtx_scale.data_pipeline.opening import open_index
from vtx_scale.data_pipeline.restarts import has_table
from vtx_scale.data_pipeline.storage import Folder
from vtx_scale.data_pipeline.tools.repack import archives, set_again, unpacked_set
from vtx_scale.data_pipeline.tools.shards import write_shard
from vtx_scale.data_pipeline.tools.shrink import Edit, smaller
from vtx_scale.data_pipeline.tools.stats import stats


def again(folder, each=4, edit=None, **about):
    return set_again(open_index(str(folder)), edit or Edit(), about, each)


names = st.text(st.characters(blacklist_categories=("Cs", "Cc"), blacklist_characters="./"))
keys = st.lists(names.filter(lambda x: x and not x.startswith("__")), min_size=1, max_size=9)
folders = st.sampled_from(["", "a/", "deep/" * 60])


@settings(max_examples=25, deadline=None)
@given(keys, folders, st.integers(1, 6), st.binary(max_size=600))
def test_keys_and_members_come_out_as_they_went_in(tmp_path_factory, keys, above, each, body):
    """Of any name: long ones, other letters, the same again."""
    folder = tmp_path_factory.mktemp("repack")
    members = {"jpg": b"x" + body, "txt": body[:9], "meta.json": b"{}"}
    write_shard(folder / "in" / "a.tar", [(above + key, members) for key in keys])
    made, left = packed(again(folder / "in", each), folder / "out")
    assert samples_of(folder / "out") == samples_of(folder / "in") and not left
    assert (made["samples"], made["shards"]) == (len(keys), -(-len(keys) // each))


@pytest.mark.parametrize("reason", ["chunk_crc", "read_error"])
def test_what_cannot_be_read_now_ends_it_and_is_not_left_out(tmp_path, reason):
    """Neither set nor record says so, and once it can be read the same command gives what it gives
    of a sound disk.
    """
    source, out = small_set(tmp_path / "in"), tmp_path / "out"
    wanted, _ = packed(again(source, 6), tmp_path / "whole")
    work = again(source, 6)
    with unreadable(source / "s2.tar", reason):
        for _ in range(2):
            with pytest.raises(UserError, match=rf"s2.tar/\S+ could not be read \({reason}\)"):
                packed(work, out)
    assert not list(out.rglob("*.safetensors"))
    records = [json.loads(path.read_text()) for path in (out / ".vtx").rglob("00*.json")]
    assert all(record["left"] == [] for record in records) and len(records) == 1
    with pytest.raises(UserError, match="is not complete"):
        open_index(str(out))
    made, left = packed(work, out)
    assert made == wanted and not left and contents(out) == contents(tmp_path / "whole")
    assert samples_of(out) == samples_of(source)


def test_what_stays_unreadable_is_copied_anew(tmp_path):
    """Then it is indexed again, and what is in it is repacked."""
    source = small_set(tmp_path / "in")
    again(source, 6)
    shard = source / "s0.tar"
    with unreadable(shard, "chunk_crc"):
        with pytest.raises(UserError, match="copy the shard there anew"):
            packed(again(source, 6), tmp_path / "out")
        body = shard.read_bytes()
    shard.write_bytes(body)
    made, left = packed(again(source, 6), tmp_path / "other")
    assert made["samples"] == len(samples_of(source)) and not left


def test_two_that_would_become_one_are_named(tmp_path):
    samples = [("a", {"jpg": jpeg()}), ("b", {"jpg": corrupt(jpeg())}), ("a", {"txt": b"apart"})]
    write_shard(tmp_path / "in" / "a.tar", samples)
    _, left = packed(again(tmp_path / "in", edit=Edit(32)), tmp_path / "out")
    assert [line["reason"] for line in left] == ["jpeg_corrupt", "apart"]
    assert samples_of(tmp_path / "out") == [("a", {"jpg": jpeg()})]


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP"])
def test_a_short_side(kind):
    body = encoded(picture(3, 90, 130), kind)
    out, size = smaller(body, 45)
    assert size == (65, 45)
    image = Image.open(io.BytesIO(out))
    assert image.format == (kind if kind in ("JPEG", "PNG", "WEBP") else "PNG")
    wanted = np.asarray(picture(3, 90, 130).convert("RGB").resize(size, Image.Resampling.LANCZOS))
    apart = np.abs(decode_image(out).astype(int) - wanted)
    assert decode_image(out).shape == (45, 65, 3) and apart.mean() < 6
    assert smaller(body, 45)[0] == out and smaller(body, 90) == (body, None)


@given(st.integers(2, 900), st.integers(2, 900), st.integers(2, 64))
@settings(max_examples=30, deadline=None)
def test_the_short_side_is_met_whatever_the_shape(height, width, side):
    if max(height, width) > 20 * min(height, width):
        return
    body = encoded(Image.new("RGB", (width, height)), "PNG")
    pixels = decode_image(smaller(body, side)[0])
    assert min(pixels.shape[:2]) == min(side, height, width)
    ratio = max(height, width) / min(height, width)
    assert abs(max(pixels.shape[:2]) - ratio * min(pixels.shape[:2])) <= 1


def test_a_mask_is_made_as_small_and_keeps_its_values(tmp_path):
    values = np.where(np.indices((96, 120)).sum(0) % 9 < 4, 200, 7).astype(np.uint8)
    members = {"jpg": encoded(picture(1, 96, 120)), "json": b'{"boxes": []}'}
    members["mask.png"] = encoded(Image.fromarray(values), "PNG")
    write_shard(tmp_path / "in" / "a.tar", [("a", members)])
    packed(again(tmp_path / "in", edit=Edit(40), short_side=40), tmp_path / "out")
    [(_, found)] = samples_of(tmp_path / "out")
    mask = Image.open(io.BytesIO(found["mask.png"]))
    assert mask.size == (50, 40) and set(np.unique(np.asarray(mask))) == {7, 200}
    assert decode_image(found["jpg"]).shape == (40, 50, 3) and found["json"] == members["json"]


def test_the_names_of_classes_and_of_a_codec_go_with_the_samples(tmp_path):
    coding = Coding("a run", "0" * 64, 32, 4, 16, 1, {}, 0, "source", 2)
    members = {"codes.npy": codes(np.arange(16).reshape(1, 16), 16), "txt": b"a text"}
    for s in range(2):
        write_shard(tmp_path / "in" / f"{s}.tar", [(f"{s}-{i}", members) for i in range(3)])
    (tmp_path / "in" / "codec.json").write_bytes(coding.body())
    (tmp_path / "classes.txt").write_text("one\ntwo\n")
    source = again(tmp_path / "in", 2)
    packed(source, tmp_path / "out" / "deep")
    out = tmp_path / "out" / "deep"
    assert {"classes.txt", "codec.json"} <= {path.name for path in out.iterdir()}
    assert (out / "classes.txt").read_text() == "one\ntwo\n"
    assert coding_in(Folder(out)) == replace(coding, shards=3)
    found = stats(open_index(str(out)), 0)
    assert (found["sound"], found["duplicates"]["pictures"], found["bad"]) == (6, 0, {})
    (tmp_path / "in" / "codec.json").write_bytes(replace(coding, shards=None).body())
    with pytest.raises(UserError, match="some of its shards only"):
        again(tmp_path / "in", 2)


def reversed_bytes(body: bytes) -> bytes:
    if body == jpeg(102):
        raise BadSample("other", "asked for")
    return b"\xff\xd8" + body[::-1]


def test_a_change_of_each_picture(tmp_path):
    """The place where another rewrite of pictures goes in: bytes to bytes."""
    source = small_set(tmp_path / "in", (2, 5))
    edit = Edit(change=reversed_bytes)
    _, left = packed(again(source, edit=edit), tmp_path / "out", workers=2)
    assert left == [{"row": "s1.tar/1-02", "reason": "other", "detail": "asked for"}]
    wanted = [
        (key, {**members, "jpg": reversed_bytes(members["jpg"])})
        for key, members in [*rows(0, 2), *rows(1, 5)]
        if key != "1-02"
    ]
    assert samples_of(tmp_path / "out") == wanted


def test_the_same_bytes_after_a_kill_at_every_place(tmp_path):
    source = small_set(tmp_path / "in", (7, 6))

    def work():
        return again(source, 3, Edit(16), short_side=16)

    made, _ = packed(work(), tmp_path / "unkilled")
    wanted, places = contents(tmp_path / "unkilled"), 0
    while killed_at(work(), out := tmp_path / f"k{places}", places):
        assert packed(work(), out)[0] == made and contents(out) == wanted, places
        places += 2
    assert places > 20 and contents(out) == wanted


@pytest.mark.services
def test_restarts_change_no_pixel(tmp_path):
    need("jpegtran")
    source = small_set(tmp_path / "in", (2, 3))
    done = vtx("data", "repack", source, tmp_path / "out", "--restarts", "--json")
    assert done.returncode == 0, done.stderr
    for (key, found), (was, before) in zip(
        samples_of(tmp_path / "out"), samples_of(source), strict=True
    ):
        assert key == was and has_table(found["jpg"]) and not has_table(before["jpg"])
        assert np.array_equal(decode_image(found["jpg"]), decode_image(before["jpg"]))
        assert (found["txt"], found["cls"]) == (before["txt"], before["cls"])


PACKERS = {"gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress}


@pytest.fixture
def compressed(tmp_path):
    folder = small_set(tmp_path / "plain", (5, 1, 9))
    (tmp_path / "in").mkdir()
    for path, (ending, pack) in zip(sorted(folder.glob("*.tar")), PACKERS.items(), strict=True):
        (tmp_path / "in" / f"{path.name}.{ending}").write_bytes(pack(path.read_bytes()))
    return tmp_path / "in"


def test_compressed_tars(tmp_path, compressed):
    storage = Folder(compressed)
    found = archives(storage, "")
    assert found == ["s0.tar.gz", "s1.tar.bz2", "s2.tar.xz"]
    made, left = packed(unpacked_set(storage, found, Edit(), {}, 0), tmp_path / "out")
    assert (made["shards"], made["samples"], left) == (3, 15, [])
    assert samples_of(tmp_path / "out") == samples_of(tmp_path / "plain")
    made, _ = packed(unpacked_set(storage, found, Edit(), {}, 4), tmp_path / "smaller")
    assert made["shards"] == 2 + 1 + 3
    assert samples_of(tmp_path / "smaller") == samples_of(tmp_path / "plain")
    places = 0
    while killed_at(unpacked_set(storage, found, Edit(), {}, 4), out := tmp_path / "k", places):
        places += 3
    assert contents(out) == contents(tmp_path / "smaller") and places > 9


def test_a_torn_archive_gives_what_is_in_it(tmp_path, compressed):
    whole = (compressed / "s0.tar.gz").read_bytes()
    (compressed / "s0.tar.gz").write_bytes(whole[: len(whole) * 2 // 3])
    made, left = packed(
        unpacked_set(Folder(compressed), ["s0.tar.gz"], Edit(), {}, 0), tmp_path / "out"
    )
    assert left[0]["reason"] == "compressed" and "EOFError" in left[0]["detail"]
    found = samples_of(tmp_path / "out")
    assert 0 < len(found) < 5 and found == rows(0, 5)[: len(found)]


@pytest.mark.services
def test_zstd(tmp_path):
    need("parquet")
    import pyarrow as pa

    source = small_set(tmp_path / "plain", (3,)) / "s0.tar"
    (tmp_path / "in").mkdir()
    with pa.CompressedOutputStream(str(tmp_path / "in" / "s0.tar.zst"), "zstd") as out:
        out.write(source.read_bytes())
    packed(unpacked_set(Folder(tmp_path / "in"), ["s0.tar.zst"], Edit(), {}, 0), tmp_path / "out")
    assert samples_of(tmp_path / "out") == rows(0, 3)


def test_archives_by_pattern(compressed):
    storage = Folder(compressed)
    assert archives(storage, "s{0,2}.tar.*") == ["s0.tar.gz", "s2.tar.xz"]
    with pytest.raises(UserError, match="s7.tar.gz is not there"):
        archives(storage, "s{7..8}.tar.gz")


def test_the_layout_of_img2dataset(tmp_path):
    """00000.tar beside 00000_stats.json and a table; what failed is in the tables alone."""
    folder = tmp_path / "in"
    for s in range(2):
        samples = [
            (f"{s:05d}{i:04d}", {**members, "json": json.dumps({"url": "x"}).encode()})
            for i, (_, members) in enumerate(rows(s, 3))
        ]
        write_shard(folder / f"{s:05d}.tar", samples)
        (folder / f"{s:05d}_stats.json").write_text("{}")
        (folder / f"{s:05d}.parquet").write_bytes(b"PAR1")
    done = vtx("data", "build", folder, tmp_path / "out", "--samples", 4, "--json")
    assert done.returncode == 0, done.stderr
    assert samples_of(tmp_path / "out") == samples_of(folder)
    assert json.loads(done.stdout)["shards"] == 2


def test_the_command(tmp_path, compressed):
    words = "data", "repack", f"{compressed}/s*", tmp_path / "out", "--short-side"
    assert vtx(*words, 8).returncode == 2
    done = vtx("data", "repack", f"{compressed}/*.tar.gz", tmp_path / "out", "--json")
    assert done.returncode == 0, done.stderr
    with tarfile.open(tmp_path / "out" / "part-000000.tar") as tar:
        assert len(tar.getnames()) == 15


@pytest.mark.full
def test_photographs_from_end_to_end(tmp_path, request):
    """Packed anew, made small, written with restart markers: the same samples, and sound."""
    given = request.config.getoption("--photographs")
    if not given:
        pytest.skip("--photographs FOLDER names none")
    need("jpegtran")
    source = tmp_path / "photographs"
    shutil.copytree(given, source)
    for name, options in {
        "anew": [],
        "small": ["--short-side", 256],
        "marked": ["--restarts"],
    }.items():
        done = vtx("data", "repack", source, tmp_path / name, "--samples", 33, *options)
        assert done.returncode == 0, done.stderr
        assert vtx("data", "verify", tmp_path / name).returncode == 0
    assert samples_of(tmp_path / "anew") == samples_of(source)
    pictures = [samples_of(tmp_path / name) for name in ("anew", "small", "marked")]
    for (key, whole), (_, small), (_, marked) in zip(*pictures, strict=True):
        assert (decode_image(whole["jpg"]) == decode_image(marked["jpg"])).all(), key
        assert min(decode_image(small["jpg"]).shape[:2]) <= 256
    found = stats(open_index(str(tmp_path / "anew")), 2)
    assert found["sound"] == found["samples"] == len(pictures[0])
    page = vtx("data", "inspect", tmp_path / "small", "--page", tmp_path / "page.html")
    assert page.returncode == 0 and (tmp_path / "page.html").stat().st_size > 100_000
