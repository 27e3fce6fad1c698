"""Quarantine: masked unread from then on, and nothing else moves."""

import json
import os
import signal

import pytest

from tests.data_pipeline.make import Pixels, corrupt, jpeg, masked, rows
from tests.data_pipeline.packs import packed, samples_of
from tests.data_pipeline.test_remote import Bucket
from tests.runs import vtx
from vtx_scale.data_pipeline import quarantine
from vtx_scale.data_pipeline.batches import Batches
from vtx_scale.data_pipeline.errors import BadSample, UserError
from vtx_scale.data_pipeline.index import Index
from vtx_scale.data_pipeline.opening import open_index
from vtx_scale.data_pipeline.order import Order
from vtx_scale.data_pipeline.read import ChunkReader
from vtx_scale.data_pipeline.remote import index_remote
from vtx_scale.data_pipeline.shards import Shards, local_shards
from vtx_scale.data_pipeline.storage import Folder
from vtx_scale.data_pipeline.tools.quarantine import Judging, lift, put_in
from vtx_scale.data_pipeline.tools.repack import set_again
from vtx_scale.data_pipeline.tools.shards import write_shard
from vtx_scale.data_pipeline.tools.shrink import Edit
from vtx_scale.data_pipeline.tools.verify import verify
from vtx_scale.launch.cli import main

BROKEN = {"s0.tar/0-01": "jpeg_corrupt", "s1.tar/1-00": "text", "s1.tar/1-03": "member_missing"}


def broken_set(folder):
    """Two shards of five, three of them broken, one known to be so from its headers alone."""
    sets = [rows(s, 5) for s in range(2)]
    sets[0][1][1]["jpg"] = corrupt(jpeg(1))
    sets[1][0][1]["txt"] = b" "
    del sets[1][3][1]["jpg"]
    sets[1][4][1]["jpg"] = b""
    for s, samples in enumerate(sets):
        write_shard(folder / f"s{s}.tar", samples)
    return folder


def put(folder, reader=None, workers=0):
    shards = local_shards(str(folder))
    return put_in(shards, open_index(shards), reader or Pixels(), 3, "about", workers)


def batch_of(index: Index):
    """Everything of one epoch."""
    order = Order(index.chunk_samples, 3, 3, 2)
    return order.fingerprint([index.digest]), Batches(index, order, Pixels(), index.n, 0, 1, 3)[0]


def test_what_verify_finds_is_masked_unread_and_nothing_moves(tmp_path):
    folder = broken_set(tmp_path)
    index = open_index(str(folder))
    before, digest = batch_of(index), index.digest
    wanted = {f"{r['shard']}/{r['key']}": r["reason"] for r in verify(str(folder), Pixels(), 3)}
    assert wanted == {**BROKEN, "s1.tar/1-04": "empty"}
    new, passing = put(folder, workers=2)
    assert {line["sample"]: line["reason"] for line in new} == BROKEN and not passing
    again = open_index(str(folder))
    after = batch_of(again)
    assert again.digest == digest and after[0] == before[0]
    assert {b["reason"] for b in after[1]["bad"]} == {"quarantined", "empty"}
    assert masked(folder) == {**dict.fromkeys(BROKEN, "quarantined"), "s1.tar/1-04": "empty"}
    for name in ("ids", "slot", "valid"):
        assert (before[1][name] == after[1][name]).all()
    for name, rows_before in before[1]["data"].items():
        assert (rows_before == after[1]["data"][name]).all()
    assert put(folder) == ([], [])


def test_no_byte_of_it_is_read(tmp_path, monkeypatch):
    folder = broken_set(tmp_path)
    put(folder)
    index = open_index(str(folder))
    reader = ChunkReader(index)
    monkeypatch.setattr(ChunkReader, "_chunk", lambda self, k: pytest.fail("it is read"))
    for g, reason in index.bad.items():
        with pytest.raises(BadSample) as fault:
            reader.sample(g)
        assert fault.value.reason == reason


def test_lift(tmp_path):
    folder = broken_set(tmp_path)
    plain = open_index(str(folder))
    before = masked(folder)
    put(folder)
    shards = local_shards(str(folder))
    assert lift(shards, open_index(shards)) == 3
    again = open_index(shards)
    assert again.bad == plain.bad and masked(folder) == before
    assert not list(folder.glob(".vtx/quarantine*"))
    assert lift(shards, again) == 0


def test_an_index_that_is_made_again_knows_it(tmp_path):
    """Also where the shards were only touched, or the index was torn; other shards do not."""
    folder = broken_set(tmp_path)
    put(folder)
    for shard in folder.glob("*.tar"):
        os.utime(shard, (1, 1))
    said = []
    index = open_index(str(folder), say=said.append)
    assert "made again" in said[0] and quarantined(index) == [1, 5, 8]
    index.file.write_bytes(b"torn")
    assert quarantined(open_index(str(folder))) == [1, 5, 8]
    write_shard(folder / "s2.tar", rows(2, 3))
    assert quarantined(open_index(str(folder))) == []


def quarantined(index):
    return sorted(g for g, reason in index.bad.items() if reason == "quarantined")


def test_a_torn_file_is_not_taken_for_none(tmp_path):
    folder = broken_set(tmp_path)
    put(folder)
    next(folder.glob(".vtx/quarantine-*")).write_text("{")
    (folder / "s0.tar").touch()
    with pytest.raises(UserError, match="cannot be read"):
        open_index(str(folder))


class Nothing(Pixels):
    def __call__(self, members, draw):
        raise BadSample("member_missing", "anything")


def test_a_recipe_that_reads_something_else_puts_nothing_there(tmp_path):
    folder = broken_set(tmp_path)
    with pytest.raises(UserError, match="None of the 10 samples"):
        put(folder, Nothing())
    assert not quarantined(open_index(str(folder))) and not list(folder.glob(".vtx/quarantine-*"))


def test_what_cannot_be_read_now_is_named_and_not_kept(tmp_path):
    folder = broken_set(tmp_path)
    index = open_index(str(folder))
    shard = folder / "s0.tar"
    stat, body = shard.stat(), bytearray(shard.read_bytes())
    body[700] ^= 1
    shard.write_bytes(body)
    os.utime(shard, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    new, passing = put(folder)
    assert {line["reason"] for line in passing} == {"chunk_crc"} and len(passing) == 5
    assert [line["sample"] for line in new] == ["s1.tar/1-00", "s1.tar/1-03"]
    again = open_index(str(folder))
    assert index.digest == again.digest and quarantined(again) == [5, 8]


def test_two_recipes_add_up_and_repack_deletes(tmp_path):
    folder = broken_set(tmp_path / "in")
    put(folder)

    class Short(Pixels):
        def __call__(self, members, draw):
            if members["cls"] == b"2":
                raise BadSample("label", "two")
            return super().__call__(members, draw)

    new, _ = put(folder, Short())
    assert [line["sample"] for line in new] == ["s0.tar/0-02", "s1.tar/1-02"]
    _, left = packed(set_again(open_index(str(folder)), Edit(), {}, 100), tmp_path / "out")
    assert [line["reason"] for line in left] == ["quarantined"] * 5 + ["empty"]
    assert [key for key, _ in samples_of(tmp_path / "out")] == ["0-00", "0-03", "0-04", "1-01"]


def test_in_a_bucket_it_costs_no_request_at_start(tmp_path):
    folder, bucket = broken_set(tmp_path), Bucket()
    for path in folder.glob("*.tar"):
        bucket.put(path.name, path.read_bytes())
    shards = Shards(bucket, [], "s3://b/d", "")
    index_remote(shards)
    new, _ = put_in(shards, open_index(shards), Pixels(), 3, "about", 0)
    assert {line["sample"]: line["reason"] for line in new} == BROKEN
    bucket.asked.clear()
    index = open_index(shards)
    assert quarantined(index) == [1, 5, 8] and dict(bucket.asked) == {"GET": 1, "HEAD": 2}
    by_name = Shards(bucket, index.names, "s3://b/d/s{0..1}.tar")
    assert quarantined(open_index(by_name)) == [1, 5, 8]
    assert quarantined(index_remote(shards)) == [1, 5, 8]
    assert lift(shards, open_index(shards)) == 3 and not quarantined(open_index(by_name))
    assert not [name for name in bucket.list("") if "quarantin" in name]


def test_killed_and_gone_on_with(tmp_path, monkeypatch):
    """What is judged is not judged again; the same file comes out."""
    folder = broken_set(tmp_path / "a")
    put(folder)
    wanted = next(folder.glob(".vtx/quarantine-*.json")).read_bytes()
    folder = broken_set(tmp_path / "b")
    open_index(str(folder))
    child = os.fork()
    if not child:
        store = Folder.put

        def dies(self, name, body):
            if "quarantining" in name and "000001" in name:
                os.kill(os.getpid(), signal.SIGKILL)
            store(self, name, body)

        Folder.put = dies
        put(folder)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    judged, plain = [], Judging.__call__
    monkeypatch.setattr(
        Judging, "__call__", lambda self, part: judged.append(part) or plain(self, part)
    )
    put(folder)
    assert judged == [(5, 10)]
    assert next(folder.glob(".vtx/quarantine-*.json")).read_bytes() == wanted
    assert not list(folder.glob(".vtx/quarantining*"))


def test_the_command(tmp_path, capsys):
    folder = broken_set(tmp_path)
    words = ["data", "quarantine", str(folder)]
    assert main(words) == 2 and "add --for RECIPE" in capsys.readouterr().err
    recipe = "--for", "clip_vit_b32", "--smoke"
    assert main([*words, *recipe, "--lift"]) == 2
    done = vtx(*words, *recipe, "--json")
    assert done.returncode == 0, done.stderr
    *new, row = map(json.loads, done.stdout.splitlines())
    assert {line["sample"]: line["reason"] for line in new} == BROKEN
    assert row == {"new": 3, "quarantined": 3}
    assert len(quarantine.stored(open_index(str(folder)), Folder(folder / ".vtx"), "")) == 3
    capsys.readouterr()
    assert main([*words, "--lift", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"lifted": 3}
    assert quarantined(open_index(str(folder))) == []
