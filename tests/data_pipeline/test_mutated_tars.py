"""Tars broken at random: indexing, a recipe's reader and `vtx data verify` come to an end,
and say the same of every sample.
"""

import tarfile
import time
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from tests.data_pipeline.make import corrupt, encoded, jpeg, picture
from tests.data_pipeline.test_tar import FIELDS, tar_of
from vtx_scale.data_pipeline.batches import Batches, InOrder
from vtx_scale.data_pipeline.errors import UserError
from vtx_scale.data_pipeline.index import build
from vtx_scale.data_pipeline.read import ChunkReader
from vtx_scale.data_pipeline.restarts import with_table
from vtx_scale.data_pipeline.shards import local_shards
from vtx_scale.data_pipeline.tools.verify import verify
from vtx_scale.launch.build import reader_of
from vtx_scale.launch.recipes import find

RECIPES = ("clip_vit_b32", "vit_b32_jft", "dino_vit_s16", "virtex_r50", "siglip_vit_b16")
PICTURES = [
    ("jpg", encoded(picture(0, 150, 200))),
    ("jpg", with_table(encoded(picture(1, 150, 200), restart_marker_blocks=1))),
    ("jpg", jpeg(2)),
    ("png", encoded(picture(3), "PNG")),
    ("bmp", encoded(picture(4, 9, 11), "BMP")),
    ("jpg", corrupt(jpeg(5))),
    ("img", b"GIF89a"),
]
OTHERS = [
    ("txt", b"a cat"),
    ("txt", b""),
    ("cap", "ein Käfer".encode("utf-16")),
    ("cls", b"3"),
    ("cls", b"x"),
    ("json", b'{"caption": "a dog", "captions": ["one", "two"]}'),
    ("json", b"{"),
    ("__key__", b"k"),
    ("pkl", b"code"),
    ("seg.png", b""),
]
TYPES = [tarfile.REGTYPE] * 40 + [tarfile.SYMTYPE, tarfile.DIRTYPE, tarfile.LNKTYPE]


def sound_tar(rng):
    """Up to eight samples of random members under names of every length."""
    members = []
    for i in range(rng.integers(1, 9)):
        key = ("k" * int(rng.choice([1, 5, 90, 130]))) + str(i % 6)
        key = str(rng.choice(["", "d/", "./", "é/"])) + key
        odd = rng.random() < 0.5
        chosen = [PICTURES[rng.integers(len(PICTURES) if odd else 5)]]
        chosen += [("txt", b"a picture"), ("cls", b"3")] if not odd else []
        chosen += [OTHERS[j] for j in rng.permutation(len(OTHERS))[: rng.integers(0, 4) * odd]]
        rng.shuffle(chosen)
        members += [(f"{key}.{x}", TYPES[rng.integers(len(TYPES))], body) for x, body in chosen]
    body = tar_of(members, str(rng.choice(["gnu", "pax", "ustar"])))
    return body if body is not None else tar_of(members, "gnu")


def lying_header(body, rng):
    """A field of a header becomes something else, and its checksum right."""
    heads = [i for i in range(0, len(body) - 511, 512) if body[i + 257 : i + 262] == b"ustar"]
    if not heads:
        return
    at = int(rng.choice(heads)) if rng.random() < 0.9 else int(rng.integers(len(body) // 512)) * 512
    begin, size = FIELDS[rng.integers(len(FIELDS))]
    big = int(rng.integers(2**31)) << int(rng.integers(0, 40))
    field = (
        b"%o" % (big % 8 ** (size - 1) if size > 1 else 7),
        b"%o" % int(rng.integers(3000)),
        b"\x80" + big.to_bytes(11, "big"),
        b"-1",
        b"xLKgSV150237"[int(rng.integers(12)) :],
        b"",
        rng.bytes(size),
    )[rng.integers(7)]
    body[at + begin : at + begin + size] = field.ljust(size, b"\0")[:size]
    body[at + 148 : at + 156] = b" " * 8
    body[at + 148 : at + 156] = b"%06o\0 " % (sum(body[at : at + 512]) % 8**6)


def mutated(body, other, rng):
    body = bytearray(body)
    for _ in range(rng.integers(1, 4)):
        size = len(body)
        if not size:
            break
        at, length = int(rng.integers(size)), int(rng.integers(1, 4000))
        if rng.random() < 0.5:  # whole blocks: what is behind stays in its place
            at, length = at // 512 * 512, -(-length // 512) * 512
        kind = rng.integers(8)
        if kind == 0:
            for place in rng.integers(size, size=rng.integers(1, 30)):
                body[place] ^= int(rng.integers(1, 256))
        elif kind == 1:
            del body[at:]
        elif kind == 2:
            body[at : at + length] = bytes(len(body[at : at + length]))
        elif kind == 3:
            del body[at : at + length]
        elif kind == 4:
            body[at:at] = body[at : at + length]
        elif kind == 5:
            body[at:at] = other[int(rng.integers(len(other))) // 512 * 512 :][:length]
        elif kind == 6:
            body[at:] = bytes(size - at)
        else:
            lying_header(body, rng)
    return bytes(body)


def masked(index, run, reader):
    """(shard/key, reason) of what a run masks, and the ids of all."""
    chunks = ChunkReader(index)
    ids = [chunks.id(g) for g in range(index.n)]
    chunks.close()
    batch = Batches(index, InOrder(index.n), reader, max(1, index.n), 0, 1, run.seed)[0]
    return [(f"{e['shard']}/{e['key']}", e["reason"]) for e in batch["bad"]], ids


def verdicts_agree(folder, seeds):
    """Reasons and their numbers over all."""
    reasons: Counter[str] = Counter()
    runs = [find(name, True) for name in RECIPES]
    readers = [reader_of(run, True) for run in runs]
    scaled = [
        reader_of(replace(run, data=replace(run.data, decode="scaled")), True) for run in runs
    ]
    path = folder / "0.tar"
    for seed in seeds:
        rng = np.random.default_rng([17, seed])
        path.write_bytes(mutated(sound_tar(rng), sound_tar(rng), rng))
        run, reader = runs[seed % len(runs)], readers[seed % len(runs)]
        began = time.process_time()
        try:
            index = build(local_shards(str(path)), chunk=int(rng.integers(1, 5)))
        except UserError as refusal:
            with pytest.raises(UserError) as same:
                list(verify(str(path), reader))
            assert str(same.value) == str(refusal)
            reasons["refused"] += 1
            continue
        of_a_run, ids = masked(index, run, reader)
        assert masked(index, run, scaled[seed % len(runs)])[0] == of_a_run, f"seed {seed}"
        lines = list(verify(str(path), reader, run.seed))
        of_verify = [(f"{r['shard']}/{r['key']}", r["reason"]) for r in lines if r["key"]]
        assert of_verify == of_a_run, f"seed {seed}"
        assert len(set(ids)) == len(ids) and {i for i, _ in of_verify} <= set(ids), f"seed {seed}"
        assert all(r["member"].isprintable() for r in verify(str(path))), f"seed {seed}"
        assert time.process_time() - began < 5, f"seed {seed}"
        reasons.update(r for _, r in of_a_run)
        reasons["sound"] += index.n - len(of_a_run)
    return reasons


def test_a_run_and_verify_say_the_same_of_mutated_tars(tmp_path):
    """500 tars; and what was broken is broken in many ways."""
    reasons = verdicts_agree(tmp_path, range(500))
    assert reasons["sound"] > 400 and len(reasons) > 9, reasons


@pytest.mark.full
def test_a_run_and_verify_say_the_same_of_20_000_mutated_tars(tmp_path):
    verdicts_agree(tmp_path, range(500, 20_500))
