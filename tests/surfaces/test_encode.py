"""DALL-E on the codes that `vtx data encode` writes."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest

from tests.runs import environment, lines, losses, smoke, train, train_on_ranks
from tests.s3 import prefix_of, proxied
from vtx_scale.data_pipeline.batches import uniforms
from vtx_scale.data_pipeline.codes import unpacked
from vtx_scale.data_pipeline.errors import UserError
from vtx_scale.data_pipeline.opening import open_index
from vtx_scale.data_pipeline.read import ChunkReader
from vtx_scale.data_pipeline.tools.toy import make_toy
from vtx_scale.launch import cli
from vtx_scale.launch.build import reader_of
from vtx_scale.launch.evaluate import evaluate
from vtx_scale.launch.prepare import refuse
from vtx_scale.launch.toy_data import toy_run, toy_shards
from vtx_scale.specs.run import Source
from vtx_scale.trainer.output import silent

pytestmark = pytest.mark.slow
DALLE = "dalle_12b"


@pytest.fixture(scope="module")
def codec():
    return toy_run("dvae_dalle", silent)


@pytest.fixture(scope="module")
def codes(codec, tmp_path_factory):
    return encoded(codec, tmp_path_factory.mktemp("codes") / "set")


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    folder = tmp_path_factory.mktemp("other") / "run"
    train_on_ranks(folder, 1, "single", "steps=1", recipe="dvae_dalle")
    return folder


def command(codec, out, *more, shards=None):
    return [str(x) for x in ("data", "encode", codec, shards or toy_shards(silent)[0], out, *more)]


def encoded(codec, out, *more, code=0, shards=None):
    """The command, in this process."""
    assert cli.main(command(codec, out, *more, "system.workers=0", shards=shards)) == code
    return out


def keys_of(codec, codes, *more):
    return (f"objective.codec_from={codec}", f"data.shards={codes}", *more)


def refusal(folder, *keys):
    with pytest.raises(UserError) as e:
        refuse(smoke(*keys, recipe=DALLE), folder, 1)
    return str(e.value)


def test_the_same_losses_as_with_the_codec_in_the_loop(codec, codes, tmp_path):
    """Bit for bit, in the first epoch."""
    keys = ("data.lanes=4", "data.window=64")
    theirs = keys_of(codec, toy_shards(silent)[0], *keys)
    train_on_ranks(tmp_path / "pictures", 1, "single", *theirs, recipe=DALLE)
    ours = keys_of(codec, codes, f"data.val_shards={codes}", *keys)
    train_on_ranks(tmp_path / "codes", 1, "single", *ours, recipe=DALLE)
    assert losses(tmp_path / "codes") == losses(tmp_path / "pictures")
    rows = {r["name"]: r for r in lines(tmp_path / "codes" / "evaluations.jsonl")}
    assert rows["loss"]["samples"] == 256 and rows["samples"]["samples"] == 4
    # either run on the other's kind of shards: it is one codec, and one model
    recipe = smoke(*ours, recipe=DALLE)
    found = dict(evaluate(tmp_path / "pictures", ["loss"], recipe))
    assert found["loss"]["loss"] == rows["loss"]["loss"]


def test_codes_of_another_codec_or_crop_are_refused(codec, codes, other, tmp_path, capsys):
    said = refusal(tmp_path / "run", *keys_of(other, codes))
    assert str(codec) in said and str(other) in said and "codec" in said
    said = refusal(tmp_path / "run", *keys_of(codec, codes, "data.zoom=1,1.5"))
    assert "add data.zoom=1.0,1.125" in said
    encoded(other, codes, code=2)
    said = capsys.readouterr().err
    assert str(codec) in said and str(other) in said
    assert not (tmp_path / "run").exists()


def test_one_codec_by_several_paths(codec, codes, other, tmp_path):
    """A copy, and a DALL-E that has it as a part; and what a run that has begun takes besides."""
    shutil.copytree(codec, tmp_path / "copy")
    refuse(smoke(*keys_of(tmp_path / "copy", codes), recipe=DALLE), tmp_path / "x", 1)
    keys = keys_of(codec, codes, "steps=1")
    train_on_ranks(tmp_path / "run", 1, "single", *keys, recipe=DALLE)
    refuse(smoke(*keys_of(tmp_path / "run", codes), recipe=DALLE), tmp_path / "x", 1)
    # validation shards of another codec
    few = make_toy(tmp_path / "few", samples=8, shards=1)
    theirs = encoded(other, tmp_path / "theirs", shards=few)
    pictures = keys_of(codec, toy_shards(silent)[0])
    for folder in (tmp_path / "run", tmp_path / "x"):
        for start in (keys, pictures):
            said = refusal(folder, *start, f"data.val_shards={theirs}")
            assert "data.val_shards holds codes of" in said and str(other) in said
    recipe = smoke(*keys, f"data.val_shards={theirs}", recipe=DALLE)
    with pytest.raises(UserError, match="data.val_shards holds codes of"):
        next(evaluate(tmp_path / "run", ["loss"], recipe))


def test_several_views(codec, tmp_path):
    """The first is that of an encoding of one; a run draws among them."""
    few = make_toy(tmp_path / "few", samples=32, shards=1)
    one, three = (encoded(codec, tmp_path / str(n), "--views", n, shards=few) for n in (1, 3))
    a, b = (ChunkReader(open_index(str(folder))) for folder in (one, three))
    pairs = [[unpacked(reader.sample(g), 64, 32) for reader in (a, b)] for g in range(32)]
    assert all(len(y) == 3 and np.array_equal(x[0], y[0]) for x, y in pairs)
    assert any(not np.array_equal(y[0], y[1]) for _, y in pairs)
    for training, wanted in ((True, {0, 1, 2}), (False, {0})):
        reader = reader_of(smoke(recipe=DALLE), training, coded=True)
        taken = set()
        for g in range(32):
            row = reader(b.sample(g), uniforms(0, 0, g, 0))
            same = [v for v in range(3) if np.array_equal(row["codes"], pairs[g][1][v])]
            taken |= set(same) if len(same) == 1 else set()
        assert taken == wanted


def content(folder):
    return {
        p.name: hashlib.sha256(p.read_bytes()).hexdigest()
        for p in folder.iterdir()
        if p.is_file() and p.suffix in (".tar", ".json")
    }


def test_the_command_killed_goes_on_where_it_ended(codec, codes, tmp_path, capsys):
    out = tmp_path / "out"
    words = [sys.executable, "-m", "vtx_scale.launch.cli", *command(codec, out, "system.workers=1")]
    process = subprocess.Popen(words, env=environment())
    deadline = time.monotonic() + 120
    while not (out / "toy-001.tar").exists() and time.monotonic() < deadline:
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGKILL)
    process.wait(30)
    there = {p.name: p.stat().st_mtime_ns for p in out.glob("*.tar")}
    assert "toy-001.tar" in there
    if "toy-003.tar" not in there:
        assert "some of its shards only" in refusal(tmp_path / "run", *keys_of(codec, out))
    capsys.readouterr()
    encoded(codec, out, "--json")
    assert json.loads(capsys.readouterr().out)["there_before"] == len(there)
    assert all((out / name).stat().st_mtime_ns == time_ns for name, time_ns in there.items())
    assert content(out) == content(codes)


def test_sources_of_one_kind(codec, codes, other, tmp_path):
    """Pictures and codes, or codes of two codecs, are no mix."""
    pictures = toy_shards(silent)[0]
    few = make_toy(tmp_path / "few", samples=8, shards=1)
    again = encoded(codec, tmp_path / "again", shards=few)
    theirs = encoded(other, tmp_path / "theirs", shards=few)

    def mixed(*folders):
        run = smoke(f"objective.codec_from={codec}", recipe=DALLE)
        parts = [Source(shards=str(f), name=f"s{i}") for i, f in enumerate(folders)]
        data = replace(run.data, shards="toy", val_shards="", sources=tuple(parts))
        return replace(run, data=data, evaluate=())

    assert refuse(mixed(codes, again), tmp_path / "x", 1).n == 264
    for pair in ((pictures, codes), (codes, pictures), (codes, theirs)):
        with pytest.raises(UserError, match="The source s1 holds .* and s0 "):
            refuse(mixed(*pair), tmp_path / "x", 1)


@pytest.mark.services
def test_in_a_bucket(codec, codes, s3_bucket, tmp_path, monkeypatch):
    """Pictures from there, codes to there: the bytes of the folder, also where the command is
    killed; a run of two ranks on them asks once which codec they are of.
    """
    server, bucket = s3_bucket
    out = prefix_of(server, bucket, monkeypatch)
    pictures = prefix_of(server, bucket, monkeypatch)
    for path in toy_shards(silent)[0].iterdir():
        if path.is_file():
            pictures.put(path.name, path.read_bytes())
    assert cli.main(["data", "index", str(pictures)]) == 0
    words = command(codec, out, "system.workers=0", shards=pictures)
    process = subprocess.Popen(
        [sys.executable, "-m", "vtx_scale.launch.cli", *words], env=environment()
    )
    deadline = time.monotonic() + 120
    while out.head("toy-001.tar") is None and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait(30)
    assert out.head("toy-001.tar") is not None
    encoded(codec, out, shards=pictures)
    assert sorted(out.list("")) == ["codec.json", *(f"toy-00{n}.tar" for n in range(4))]
    for name in out.list(""):
        body = out.get_range(name, 0, 1 << 30)
        assert body == (codes / name).read_bytes(), name
    assert cli.main(["data", "index", str(out)]) == 0
    keys = ("system.world=2", "steps=3", "data.lanes=4", "data.window=64")
    with proxied(server) as proxy:
        env = server.environment(proxy.port)
        train(tmp_path / "bucket", *keys_of(codec, out, *keys), recipe=DALLE, env=env)
    asked = [path for verb, path in proxy.asked if "codec.json" in path]
    assert len(asked) == 1
    train(tmp_path / "folder", *keys_of(codec, codes, *keys), recipe=DALLE)
    assert losses(tmp_path / "bucket") == losses(tmp_path / "folder")
