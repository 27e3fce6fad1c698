"""Broken data of every kind at once: verify, the loader and the ledger say the same,
and it costs little.
"""

import json
import time

import numpy as np
from PIL import Image

from tests.data_pipeline.make import (
    GREY,
    Pixels,
    batches_of,
    corrupt,
    encoded,
    jpeg,
    masked,
    picture,
    png_header,
    rows,
    small_index,
    small_set,
)
from vtx_scale.data_pipeline.batches import Batches, InOrder
from vtx_scale.data_pipeline.opening import open_index
from vtx_scale.data_pipeline.tools.shards import write_shard
from vtx_scale.data_pipeline.tools.verify import verify

GOOD = {"jpg": jpeg(), "txt": b"a picture"}


def test_verify_names_exactly_the_bad(tmp_path):
    """Faults of every kind among sound samples, and each sound sample stays unnamed."""
    small_set(tmp_path)
    bad = {
        "cut": ("jpeg_truncated", {"jpg": GOOD["jpg"][:-2]}),
        "corrupt": ("jpeg_corrupt", {"jpg": corrupt(jpeg())}),
        "zeros": ("image_format", {"jpg": bytes(999)}),
        "html": ("image_format", {"jpg": b"<html></html>"}),
        "bomb": ("image_bomb", {"jpg": png_header(50_000, 50_000)}),
        "blank": ("text", {"txt": b"\n"}),
        "json": ("json", {"json": b"{"}),
        "class": ("label", {"cls": b"cat"}),
        "void": ("empty", {"jpg": b""}),
        "thin": ("image_shape", {"jpg": encoded(Image.new("RGB", (100, 2)))}),
    }
    fine = {
        "cmyk": {"jpg": encoded(picture(1).convert("CMYK"))},
        "grey": {"jpg": encoded(Image.fromarray(GREY), "PNG")},
        "other": {"mask.png": b"", "npy": b"\x93NUMPY"},
        "latin": {"txt": b"caf\xe9"},
        "class-7": {"cls": b"7"},
    }
    samples = [(k, GOOD | members) for k, (_, members) in bad.items()] + [
        (k, GOOD | v) for k, v in fine.items()
    ]
    samples += [("no-picture", {"txt": b"t"}), ("no-text", {"jpg": jpeg()})]
    reasons = {k: why for k, (why, _) in bad.items()} | {
        "no-picture": "member_missing",
        "no-text": "member_missing",
    }
    write_shard(tmp_path / "x.tar", samples[::2] + samples[1::2])
    found = list(verify(str(tmp_path)))
    assert {r["key"]: r["reason"] for r in found} == reasons
    assert len(found) == len(reasons) and {r["shard"] for r in found} == {"x.tar"}
    of_a_run = {f"x.tar/{k}": why for k, why in reasons.items() if k not in ("json", "class")}
    assert masked(tmp_path) == of_a_run, (
        "a run masks the same, but for members that its reader does not read"
    )


def test_a_reader_that_asks_for_a_missing_member_masks_the_sample(tmp_path):
    class Careless(Pixels):
        def __call__(self, members, draw):
            members["depth.png"]
            return super().__call__(members, draw)

    write_shard(tmp_path / "a.tar", [("a", GOOD), ("b", {**GOOD, "depth.png": b"1"})])
    index = open_index(str(tmp_path))
    batch = Batches(index, InOrder(2), Careless(), 2, 0, 1)[0]
    assert batch["valid"].tolist() == [False, True]
    assert (batch["bad"][0]["reason"], batch["bad"][0]["detail"]) == ("member_missing", "depth.png")


def test_a_ledger_entry_says_where_to_look(tmp_path):
    write_shard(tmp_path / "a.tar", [("a", GOOD), ("b", {**GOOD, "jpg": b"x"}), *rows(0, 3)])
    index = small_index(tmp_path)
    batches = batches_of(index, Pixels(), 5)
    entry = next(e for e in batches[1]["bad"])
    assert {
        k: entry[k] for k in ("kind", "reason", "source", "shard", "key", "sample", "epoch")
    } == {
        "kind": "sample",
        "reason": "image_format",
        "source": 0,
        "shard": "a.tar",
        "key": "b",
        "sample": 1,
        "epoch": 1,
    }
    assert (tmp_path / "a.tar").read_bytes()[entry["offset"] :].startswith(b"b.jpg")
    assert batches.order.slots(1, 5)[entry["slot"]] == entry["position"]
    assert len(json.dumps(entry)) < 4000


def test_reading_costs_little_beside_decoding(tmp_path):
    """Order, chunk, member and bookkeeping of a sample:
    some tens of microseconds, a JPEG takes a thousand.
    """

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
