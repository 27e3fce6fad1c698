"""Broken data, one test a row of the table in docs/data.md: what is wrong is found, named, and harms nothing else."""

import bz2
import gzip
import io
import json
import lzma
import os
import pickle
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_pipeline import members as sample
from data_pipeline.decode import decode_image
from data_pipeline.errors import BadSample, UserError, notes
from data_pipeline.index import open_index
from data_pipeline.loader import Batches, InOrder
from data_pipeline.read import ChunkReader
from data_pipeline.tools.shards import write_shard
from data_pipeline.tools.verify import verify
from tests.data_pipeline.make import (
    Pixels,
    batches_of,
    corrupt,
    encoded,
    jpeg,
    picture,
    png_header,
    rows,
    small_index,
    small_set,
)

GOOD = {"jpg": jpeg(), "txt": b"a picture"}
GREY = np.linspace(0, 65535, 24 * 32).astype(np.uint16).reshape(24, 32)


def masked(folder: Path) -> dict[str, str]:
    """shard/key -> reason of what a loader masks, in tar order."""
    index = open_index(str(folder))
    made = Batches(index, InOrder(index.n), Pixels(), index.n, 0, 1)[0]
    assert int(made["valid"].sum()) + len(made["bad"]) == index.n
    return {f"{e['shard']}/{e['key']}": e["reason"] for e in made["bad"]}


def verified(folder: Path) -> dict[str, str]:
    return {f"{r['shard']}/{r['key']}": r["reason"] for r in verify(str(folder))}


def body_of(*members: tuple[str, bytes], end: bool = True) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name, body in members:
            info = tarfile.TarInfo(name)
            info.size = len(body)
            tar.addfile(info, io.BytesIO(body))
    return out.getvalue()


TWO = body_of(("a.jpg", GOOD["jpg"]), ("a.txt", b"t"), ("b.txt", b"t"), ("b.jpg", GOOD["jpg"]))
LAST = TWO.index(b"b.jpg")  # its header


# Shards


def test_tar_that_ends_inside_a_member(tmp_path):
    (tmp_path / "a.tar").write_bytes(TWO[: LAST + 700])
    assert open_index(str(tmp_path)).n == 2, "the cut sample keeps its number"
    assert masked(tmp_path) == verified(tmp_path) == {"a.tar/b": "tar_truncated"}


def test_tar_that_ends_inside_a_header(tmp_path):
    (tmp_path / "a.tar").write_bytes(TWO[: LAST + 300])
    said = []
    index = open_index(str(tmp_path), say=said.append)
    assert index.n == 2 and len(said) == 1 and "tar_tail" in said[0]
    assert masked(tmp_path) == {"a.tar/b": "member_missing"}
    assert verified(tmp_path) == {"a.tar/b": "member_missing", "a.tar/": "tar_tail"}


def test_missing_end_blocks_are_legal(tmp_path):
    (tmp_path / "a.tar").write_bytes(TWO[: LAST + 512 + -(-len(GOOD["jpg"]) // 512) * 512])
    said = []
    assert open_index(str(tmp_path), say=said.append).n == 2 and said == []
    assert masked(tmp_path) == verified(tmp_path) == {}


def test_header_with_a_wrong_checksum(tmp_path):
    """The walk goes on at the next header; half a sample is left and is masked."""
    at = TWO.index(b"a.txt")
    (tmp_path / "a.tar").write_bytes(TWO[:at] + b"X" + TWO[at + 1 :])
    said = []
    index = open_index(str(tmp_path), say=said.append)
    assert index.n == 2 and len(said) == 1 and "tar_header 1024 bytes passed over" in said[0]
    assert masked(tmp_path) == {"a.tar/a": "member_missing"}
    assert verified(tmp_path) == {"a.tar/a": "member_missing", "a.tar/": "tar_header"}


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, lzma.compress, lambda b: b"\x28\xb5\x2f\xfd" + b])
def test_compressed_tars_are_refused_whatever_their_name(tmp_path, pack):
    (tmp_path / "a.tar").write_bytes(pack(TWO))
    for read in (open_index, lambda s: list(verify(s))):
        with pytest.raises(UserError, match="unpack it with '(gzip|bzip2|xz|zstd) -dc .*a.tar > ") as refusal:
            read(str(tmp_path))
        assert "\n" not in str(refusal.value)


def test_links_devices_and_pipes_are_counted_and_never_opened(tmp_path):
    secret = tmp_path / "secret.txt"
    secret.write_bytes(b"not for training")
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, type_ in (("a.txt", tarfile.SYMTYPE), ("b.txt", tarfile.LNKTYPE), ("c.txt", tarfile.FIFOTYPE),
                            ("d.txt", tarfile.CHRTYPE), ("e.txt", tarfile.BLKTYPE)):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = type_, str(secret)
            tar.addfile(info)
        for extension, body in GOOD.items():
            info = tarfile.TarInfo(f"f.{extension}")
            info.size = len(body)
            tar.addfile(info, io.BytesIO(body))
    (tmp_path / "a.tar").write_bytes(out.getvalue())
    said = []
    index = open_index(str(tmp_path), say=said.append)
    assert [ChunkReader(index).id(g) for g in range(index.n)] == ["a.tar/f"]
    assert len(said) == 5 and all("member_type" in line for line in said)
    assert masked(tmp_path) == verified(tmp_path) == {}


def test_names_that_would_escape_are_text(tmp_path, monkeypatch):
    """Absolute names, `..` and control characters: used as keys, escaped, and nothing is written anywhere."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "d").mkdir()
    names = ["/etc/passwd", "../../up", "x\x1b[2Jy", "new\nline"]
    (tmp_path / "d" / "a.tar").write_bytes(body_of(*((f"{n}.{x}", b) for n in names for x, b in GOOD.items())))
    said = []
    index = open_index("d", say=said.append)
    reader = ChunkReader(index)
    assert [reader.id(g) for g in range(4)] == ["a.tar//etc/passwd", "a.tar/../../up", r"a.tar/x\x1b[2Jy",
                                                r"a.tar/new\nline"]
    assert len(said) == 8 and all("member_name" in x and x.isprintable() for x in said)
    assert reader.sample(1)["txt"] == b"a picture" and verified(tmp_path / "d") == {}
    assert {p.name for p in tmp_path.iterdir()} == {"d"}


def test_a_name_longer_than_any_path_is_passed_over(tmp_path):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for name in ("x" * 5000 + ".jpg", "a.txt"):
            info = tarfile.TarInfo(name)
            info.size = 1
            tar.addfile(info, io.BytesIO(b"1"))
    (tmp_path / "a.tar").write_bytes(out.getvalue())
    said = []
    assert open_index(str(tmp_path), say=said.append).n == 1 and "member_name" in said[0] and len(said[0]) < 300


def test_a_repeated_extension_begins_a_sample(tmp_path):
    (tmp_path / "a.tar").write_bytes(body_of(("k.jpg", GOOD["jpg"]), ("k.txt", b"one"), ("k.jpg", GOOD["jpg"]),
                                             ("k.txt", b"two"), ("k.txt", b"three")))
    said = []
    index = open_index(str(tmp_path), say=said.append)
    reader = ChunkReader(index)
    assert [reader.id(g) for g in range(3)] == ["a.tar/k", "a.tar/k#2", "a.tar/k#3"]
    assert reader.sample(1)["txt"] == b"two" and sum("member_repeated" in x for x in said) == 2
    assert masked(tmp_path) == verified(tmp_path) == {"a.tar/k#3": "member_missing"}


def test_a_member_of_more_than_64_megabytes(tmp_path, monkeypatch):
    """It keeps its number, is masked unread, and its neighbours are whole."""
    info = tarfile.TarInfo("b.jpg")
    info.size = (64 << 20) + 1
    with (tmp_path / "a.tar").open("wb") as f:
        f.write(body_of(*((f"a.{x}", b) for x, b in GOOD.items()))[:-8192].rstrip(b"\0").ljust(4096, b"\0"))
        at = f.tell()
        f.write(info.tobuf(tarfile.USTAR_FORMAT))
        f.truncate(at + 512 + (64 << 20) + 512)  # a hole on disk
        f.seek(0, 2)
        f.write(body_of(*((f"c.{x}", b) for x, b in GOOD.items())))
    index = open_index(str(tmp_path))
    assert index.n == 3 and index.bad == {1: "member_size"} and index.chunk_samples.tolist() == [1, 1, 1]
    reader, lengths = ChunkReader(index), []
    file = reader._file(0)
    read = file.read
    monkeypatch.setattr(file, "read", lambda offset, length: (lengths.append(length), read(offset, length))[1])
    assert reader.id(1) == "a.tar/b" and max(lengths) <= 1 << 20, "its name is known without its bytes"
    assert masked(tmp_path) == verified(tmp_path) == {"a.tar/b": "member_size"}


def test_an_image_without_bytes(tmp_path):
    write_shard(tmp_path / "a.tar", [("a", GOOD), ("b", {**GOOD, "jpg": b""})])
    assert open_index(str(tmp_path)).bad == {1: "empty"}
    assert masked(tmp_path) == verified(tmp_path) == {"a.tar/b": "empty"}


class Trap:
    """Makes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("extension", ["pyd", "pkl", "pickle", "pt", "pth", "meta.pkl", "pkl.gz", "PKL"])
def test_members_that_hold_code_are_never_read(tmp_path, extension):
    trap = pickle.dumps(Trap(tmp_path / "sprung"))
    write_shard(tmp_path / "a.tar", [("a", {**GOOD, extension: trap}), ("b", {extension: b"x"})])
    said = []
    index = open_index(str(tmp_path), say=said.append)
    reader = ChunkReader(index)
    assert {x for x in reader.sample(0) if not x.startswith("__")} == {"jpg", "txt"}
    assert {x for x in reader.sample(1) if not x.startswith("__")} == set()
    assert sum("member_ignored" in x for x in said) == 2
    assert masked(tmp_path) == verified(tmp_path) == {"a.tar/b": "member_missing"}
    assert not (tmp_path / "sprung").exists()


def test_an_empty_file_and_a_tar_without_members(tmp_path):
    (tmp_path / "a.tar").write_bytes(b"")
    write_shard(tmp_path / "b.tar", [])
    write_shard(tmp_path / "c.tar", [("k", GOOD)])
    index = open_index(str(tmp_path))
    assert index.shard_chunks.tolist() == [0, 0, 1] and ChunkReader(index).id(0) == "c.tar/k"
    assert masked(tmp_path) == {} and verified(tmp_path) == {"a.tar/": "tar_tail"}


# Reading


def test_a_shard_that_is_gone_or_another_size_stops(tmp_path):
    """The order can no longer be kept, so nothing is masked in silence."""
    index = small_index(small_set(tmp_path))
    (tmp_path / "s1.tar").unlink()
    with pytest.raises(UserError, match="s1.tar is gone .shard_changed"):
        ChunkReader(index).sample(5)
    with (tmp_path / "s2.tar").open("ab") as f:
        f.write(bytes(512))
    with pytest.raises(UserError, match="when it was indexed .shard_changed"):
        ChunkReader(index).sample(8)
    assert ChunkReader(index).sample(0)["txt"] == b"picture 0 0"


def test_a_shard_cut_while_it_is_read(tmp_path):
    """A mapped file would end the process here; what lies behind the cut is masked."""
    index = small_index(small_set(tmp_path))
    reader = ChunkReader(index)
    assert reader.sample(6)["txt"] == b"picture 2 0" and reader.sample(7)
    os.truncate(tmp_path / "s2.tar", reader.place(7)["offset"] + 600)
    assert reader.sample(6)["txt"] == b"picture 2 0"
    for g in (7, 8, 9):  # of a chunk that was read before, and of one that was not
        with pytest.raises(BadSample, match="read_error"):
            reader.sample(g)
    assert reader.sample(0)["txt"] == b"picture 0 0"


def test_three_unreadable_chunks_within_a_minute_stop(tmp_path):
    index = small_index(small_set(tmp_path))
    reader = ChunkReader(index)
    reader.sample(6)
    os.truncate(tmp_path / "s2.tar", 100)
    for g in (8, 9, 10):  # two chunks
        with pytest.raises(BadSample, match="read_error"):
            reader.sample(g)
    with pytest.raises(UserError, match="3 chunks could not be read within a minute, the last of .*s2.tar"):
        reader.sample(12)


def test_a_chunk_whose_checksum_differs_is_read_four_times(tmp_path, monkeypatch):
    """A fault that passes costs nothing; one that stays masks the chunk."""
    index = small_index(small_set(tmp_path))
    reader = ChunkReader(index)
    file = reader._file(0)
    good, reads = file.read, []

    def flaky(offset, length):
        reads.append((offset, length))
        body = good(offset, length)
        return body if len(reads) > times else bytes(100) + body[100:]

    monkeypatch.setattr(file, "read", flaky)
    times = 3
    assert reader.sample(0)["txt"] == b"picture 0 0" and len([r for r in reads if r[1] == index.chunk_bytes[0]]) == 4
    times, before = 10**9, len(reads)
    with pytest.raises(BadSample, match="chunk_crc"):
        reader.sample(2)
    assert len(reads) == before + 4
    assert reader.id(3) == "s0.tar/0-03", "names are read where headers stand"


def test_a_chunk_with_another_number_of_samples(tmp_path):
    index = small_index(small_set(tmp_path))
    index.chunk_samples_all = index.chunk_samples_all.copy()
    index.chunk_samples_all[[4, 5]] = 3, 1
    index.__post_init__()
    reader = ChunkReader(index)
    for g in (6, 8, 9):
        with pytest.raises(BadSample, match="chunk_walk"):
            reader.sample(g)
        assert reader.id(g).startswith("s2.tar/?")
    assert reader.sample(5)["txt"] == b"picture 1 0"


# Pictures


def reason(body: bytes) -> str:
    with pytest.raises(BadSample) as bad:
        decode_image(body)
    return bad.value.reason


@pytest.mark.parametrize("body", [bytes(4000), b"<!DOCTYPE html><html>None</html>", b"x", b"RIFF\x10\0\0\0WAVEfmt ",
                                  b"\x89PNG\r\n\x1a\n" + bytes(100), b"GIF89a", encoded(picture(0), "PNG")[:200],
                                  encoded(picture(0), "TIFF"), encoded(picture(0), "WEBP")[:100]])
def test_what_is_no_picture(body):
    assert reason(body) == "image_format"


@pytest.mark.parametrize("left", [-2, -1, 1000, 500, 30, 2])
def test_truncated_jpeg(left):
    assert reason(encoded(picture(0, 60, 80), quality=95)[:left]) == "jpeg_truncated"


def test_corrupt_jpeg():
    """Pillow gives pixels for it without a word."""
    body = encoded(picture(0, 60, 80), quality=95)
    at = body.index(b"\xff\xda") + 200
    zeroed = body[:at] + bytes(400) + body[at + 400 :]
    assert Image.open(io.BytesIO(zeroed)).convert("RGB").size == (80, 60)
    assert reason(corrupt(jpeg())) == reason(zeroed) == "jpeg_corrupt"
    assert reason(b"\xff\xd8" + b"<html>" * 50 + b"\xff\xd9") == "jpeg_corrupt"


BOMB = """
import resource, sys, time
from data_pipeline.decode import decode_image
from data_pipeline.errors import BadSample
from tests.data_pipeline.make import jpeg

decode_image(jpeg())
now = next(int(x.split()[1]) for x in open("/proc/self/status") if x.startswith("VmSize"))
resource.setrlimit(resource.RLIMIT_AS, ((now + 64 * 1024) * 1024,) * 2)
for body in open(sys.argv[1], "rb").read().split(b"=====") :
    began = time.process_time()
    try:
        decode_image(body)
        print("decoded")
    except BadSample as e:
        print(e.reason, time.process_time() - began < 0.3)
    except MemoryError:
        print("memory")
"""


def test_pixel_bombs_cost_no_memory_and_no_time(tmp_path):
    """50,000 x 50,000 in a process that may take 64 MiB more: a PNG, a GIF and a JPEG of few bytes."""
    large = bytearray(jpeg())
    at = large.index(b"\xff\xc0")
    large[at + 5 : at + 9] = b"\xc3\x50\xc3\x50"
    gif = bytearray(encoded(picture(0), "GIF"))
    gif[6:10] = b"\x50\xc3\x50\xc3"
    bombs = [png_header(50_000, 50_000), png_header(9_000, 9_000), bytes(large), bytes(gif)]
    (tmp_path / "bombs").write_bytes(b"=====".join(bombs))
    (tmp_path / "bomb.py").write_text(BOMB)
    done = subprocess.run([sys.executable, tmp_path / "bomb.py", tmp_path / "bombs"], text=True, capture_output=True,
                          env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])})
    assert done.stdout.splitlines() == ["image_bomb True"] * 4, done.stderr


@pytest.mark.parametrize(("height", "width"), [(1, 30), (30, 1), (2, 41), (410, 20)])
def test_shapes_that_hold_no_picture(height, width):
    for kind in ("JPEG", "PNG"):
        assert reason(encoded(Image.new("RGB", (width, height)), kind)) == "image_shape"
    assert decode_image(encoded(Image.new("RGB", (40, 2)), "PNG")).shape == (2, 40, 3)


def distance(a, b) -> int:
    return int(np.abs(np.asarray(a).astype(int) - np.asarray(b).astype(int)).max())


@pytest.mark.parametrize("mode", ["CMYK", "L", "RGB"])
@pytest.mark.parametrize("progressive", [False, True])
def test_jpegs_of_every_kind(mode, progressive):
    body = encoded(picture(3, 60, 80).convert(mode), progressive=progressive)
    assert distance(decode_image(body), Image.open(io.BytesIO(body)).convert("RGB")) <= 1


def test_grey_png_of_16_bits_keeps_its_steps():
    """Its upper byte; Pillow's own conversion makes nearly all of it white."""
    body = encoded(Image.fromarray(GREY), "PNG")
    assert (decode_image(body) == (GREY >> 8)[..., None]).all()
    assert distance(Image.open(io.BytesIO(body)).convert("RGB"), (GREY >> 8)[..., None]) > 200


def test_transparency_and_palettes_stand_on_white():
    rgba = picture(5).convert("RGBA")
    alpha = np.zeros((24, 32), np.uint8)
    alpha[:, 16:], alpha[:, 8:16] = 255, 128
    rgba.putalpha(Image.fromarray(alpha))
    for kind, near in (("PNG", 0), ("WEBP", 0)):
        out = decode_image(encoded(rgba, kind, **({"lossless": True, "exact": True} if kind == "WEBP" else {})))
        assert (out[:, :8] == 255).all() and distance(out[:, 16:], np.asarray(rgba)[:, 16:, :3]) <= near
        half = (np.asarray(rgba)[:, 8:16, :3].astype(float) * 128 + 255 * 127) / 255
        assert distance(out[:, 8:16], half.round()) <= 1
    palette = picture(5).quantize(8)
    assert distance(decode_image(encoded(palette, "PNG")), palette.convert("RGB")) == 0
    see_through = encoded(palette, "PNG", transparency=0)
    hole = np.asarray(palette) == 0
    out = decode_image(see_through)
    assert hole.any() and (out[hole] == 255).all() and (out[~hole] == np.asarray(palette.convert("RGB"))[~hole]).all()
    bits = Image.fromarray(GREY > 30_000)
    assert distance(decode_image(encoded(bits, "PNG")), bits.convert("RGB")) == 0


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_of_a_moving_picture_the_first_frame_counts(kind):
    frames = [Image.new("RGB", (20, 20), c) for c in ((250, 0, 0), (0, 250, 0), (0, 0, 250))]
    notes.clear()
    out = decode_image(encoded(frames[0], kind, save_all=True, append_images=frames[1:], **(
        {"lossless": True} if kind == "WEBP" else {})))
    assert (out == (250, 0, 0)).all() and notes == {"animated": 1}
    decode_image(encoded(frames[0], kind))
    assert notes == {"animated": 1}, "one frame does not move"


def test_notes_travel_with_the_batch(tmp_path):
    moving = encoded(picture(1), "GIF", save_all=True, append_images=[picture(2)])
    write_shard(tmp_path / "a.tar", [("a", {"gif": moving, "txt": b"a"}), ("b", {"jpg": jpeg(), "txt": b"caf\xe9"}),
                                     ("c", {"jpg": jpeg(), "txt": b"x" * 70_000})])
    index = open_index(str(tmp_path))
    made = Batches(index, InOrder(3), Pixels(), 3, 0, 1)[0]
    assert made["valid"].all() and made["notes"] == {"animated": 1, "text_replaced": 1, "text_cut": 1}
    assert made["data"]["length"].tolist() == [1, 4, 65_536]


def test_orientation_is_left_as_it_lies():
    image = picture(0, 20, 40)
    exif = Image.Exif()
    exif[274] = 6
    assert decode_image(encoded(image, exif=exif)).shape == (20, 40, 3)


def test_pillow_keeps_its_own_limit():
    """Importing the decoder changes nothing for other users of Pillow in the process."""
    assert Image.MAX_IMAGE_PIXELS == 89_478_485


# Texts, classes, JSON


@pytest.mark.parametrize(("body", "expected"), [
    (b"plain", "plain"), (b"caf\xc3\xa9", "café"), (b"caf\xe9 au lait", "caf\N{REPLACEMENT CHARACTER} au lait"),
    (b"x" * 70_000, "x" * 65_536), ("漢".encode() * 30_000, "漢" * 21_845 + "\N{REPLACEMENT CHARACTER}")])
def test_texts_that_pass(body, expected):
    assert sample.caption({"txt": body}) == expected


@pytest.mark.parametrize(("members", "why"), [
    ({}, "member_missing"), ({"txt": b""}, "text"), ({"txt": b" \n\t"}, "text"), ({"json": b'{"caption": ""}'}, "text"),
    ({"json": b'{"caption": 3}'}, "member_missing"), ({"json": b"[1]"}, "member_missing"), ({"json": b"{"}, "json"),
    ({"json": b"\xff\xfe{}"}, "json"), ({"json": b"[" * 100_000}, "json"), ({"json": b"[" * 60 + b"]" * 60}, "json"),
    ({"json": b"1" * 6000}, "json")])
def test_captions_that_do_not_pass(members, why):
    with pytest.raises(BadSample) as bad:
        sample.caption(members)
    assert bad.value.reason == why


def test_captions_from_json():
    assert sample.caption({"json": json.dumps({"caption": "a dog"}).encode()}) == "a dog"
    assert sample.caption({"json": b'{"caption": "half \\ud800 pair"}'}) == "half ? pair"
    assert sample.about({"json": b"[" * 49 + b"]" * 49})


@pytest.mark.parametrize(("body", "expected"), [(b"7", 7), (b" 12\n", 12), (b"0", 0), (b"2147483647", 2**31 - 1)])
def test_labels(body, expected):
    assert sample.label({"cls": body}) == expected
    assert sample.label({}) == -1


@pytest.mark.parametrize("body", [b"", b"-1", b"cat", b"1.5", b"2147483648", b"9" * 5000, "²".encode()])
def test_labels_that_are_none(body):
    with pytest.raises(BadSample, match="label"):
        sample.label({"cls": body})


# Everything at once


def test_verify_names_exactly_the_bad(tmp_path):
    """Faults of every kind among sound samples, and each sound sample stays unnamed."""
    small_set(tmp_path)
    bad = {
        "cut": ("jpeg_truncated", {"jpg": GOOD["jpg"][:-2]}), "corrupt": ("jpeg_corrupt", {"jpg": corrupt(jpeg())}),
        "zeros": ("image_format", {"jpg": bytes(999)}), "html": ("image_format", {"jpg": b"<html></html>"}),
        "bomb": ("image_bomb", {"jpg": png_header(50_000, 50_000)}), "blank": ("text", {"txt": b"\n"}),
        "json": ("json", {"json": b"{"}), "class": ("label", {"cls": b"cat"}), "void": ("empty", {"jpg": b""}),
        "thin": ("image_shape", {"jpg": encoded(Image.new("RGB", (100, 2)))}),
    }
    fine = {"cmyk": {"jpg": encoded(picture(1).convert("CMYK"))},
            "grey": {"jpg": encoded(Image.fromarray(GREY), "PNG")},
            "other": {"mask.png": b"", "npy": b"\x93NUMPY"}, "latin": {"txt": b"caf\xe9"}, "class-7": {"cls": b"7"}}
    made = [(k, GOOD | members) for k, (_, members) in bad.items()] + [(k, GOOD | v) for k, v in fine.items()]
    made += [("no-picture", {"txt": b"t"}), ("no-text", {"jpg": jpeg()})]
    reasons = {k: why for k, (why, _) in bad.items()} | {"no-picture": "member_missing", "no-text": "member_missing"}
    write_shard(tmp_path / "x.tar", made[::2] + made[1::2])
    found = list(verify(str(tmp_path)))
    assert {r["key"]: r["reason"] for r in found} == reasons
    assert len(found) == len(reasons) and {r["shard"] for r in found} == {"x.tar"}
    of_a_run = {f"x.tar/{k}": why for k, why in reasons.items() if k not in ("json", "class")}
    assert masked(tmp_path) == of_a_run, "a run masks the same, but for members that its reader does not read"


def test_a_reader_that_asks_for_a_missing_member_masks_the_sample(tmp_path):
    class Careless(Pixels):
        def __call__(self, members, draw):
            members["depth.png"]
            return super().__call__(members, draw)

    write_shard(tmp_path / "a.tar", [("a", GOOD), ("b", {**GOOD, "depth.png": b"1"})])
    index = open_index(str(tmp_path))
    made = Batches(index, InOrder(2), Careless(), 2, 0, 1)[0]
    assert made["valid"].tolist() == [False, True]
    assert (made["bad"][0]["reason"], made["bad"][0]["detail"]) == ("member_missing", "depth.png")


def test_a_ledger_entry_says_where_to_look(tmp_path):
    write_shard(tmp_path / "a.tar", [("a", GOOD), ("b", {**GOOD, "jpg": b"x"}), *rows(0, 3)])
    index = small_index(tmp_path)
    batches = batches_of(index, Pixels(), 5)
    entry = next(e for e in batches[1]["bad"])
    assert {k: entry[k] for k in ("kind", "reason", "source", "shard", "key", "sample", "epoch")} == {
        "kind": "sample", "reason": "image_format", "source": 0, "shard": "a.tar", "key": "b", "sample": 1, "epoch": 1}
    assert (tmp_path / "a.tar").read_bytes()[entry["offset"] :].startswith(b"b.jpg")
    assert batches.order.slots(1, 5)[entry["slot"]] == entry["position"]
    assert len(json.dumps(entry)) < 4000


def test_reading_costs_little_beside_decoding(tmp_path):
    """Order, chunk, member and bookkeeping of a sample: some tens of microseconds, a JPEG takes a thousand."""

    class Nothing:
        def blank(self):
            return {"n": np.zeros((), np.int64)}

        def __call__(self, members, draw):
            return {"n": np.int64(len(members["jpg"]))}

    small_set(tmp_path, (256,))
    index = open_index(str(tmp_path))
    batches = batches_of(index, Nothing(), 64)
    batches[0], batches[1], batches[2], batches[3]
    best = 1.0
    for _ in range(5):
        began = time.process_time()
        for step in range(8):
            batches[step]
        best = min(best, time.process_time() - began)
    assert best / (8 * 64) < 200e-6
