"""`vtx data build`, `repack`, `stats` and `quarantine` as commands, killed, on folders and s3://."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from functools import partial

import pytest

from tests.data_pipeline.make import corrupt, jpeg
from tests.data_pipeline.packs import contents, samples_of, table
from tests.runs import environment, vtx
from tests.survivors import assert_none_survives
from vtx_scale.cluster.storage.s3 import S3
from vtx_scale.data_pipeline.storage import Folder
from vtx_scale.launch.cli import main

ROWS = 120


@pytest.fixture
def source(tmp_path):
    """A table of many pictures, some of them broken."""
    folder = tmp_path / "in"
    folder.mkdir()
    rows = [["path", "caption"]]
    for i in range(ROWS):
        body = jpeg(i)
        (folder / f"{i:03d}.jpg").write_bytes(corrupt(body) if i % 17 == 3 else body)
        rows.append([f"{i:03d}.jpg", f"number {i}"])
    return table(folder / "t.csv", rows)


def killed(words, folder, count, places) -> int:
    """Run a command that is killed when `count` says that so many shards are there; how many times
    it was. None of its processes is left.
    """
    command = [sys.executable, "-m", "vtx_scale.launch.cli", *map(str, words)]
    env = environment({"BELONGS_TO": str(folder)})
    times = 0
    for place in places:
        process = subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL)
        while process.poll() is None and count() < place:
            time.sleep(0.005)
        time.sleep(random.Random(place).random() * 0.05)
        if process.poll() is None:
            os.kill(process.pid, signal.SIGKILL)
            times += 1
        process.wait()
        assert_none_survives(folder / "any")
    return times


def tars_in(storage) -> int:
    return sum(name.endswith(".tar") for name in storage.list(""))


@pytest.mark.slow
def test_commands_on_folders(tmp_path, source):
    def build(out):
        return "data", "build", source, out, "--samples", 6, "--workers", 2, "--json"

    def repack(out):
        return "data", "repack", tmp_path / "built", out, *"--samples 9 --short-side 32".split()

    for words, name in ((build, "built"), (repack, "packed")):
        done = vtx(*words(tmp_path / name))
        assert done.returncode == 0, done.stderr
        out = tmp_path / f"{name}-killed"
        count = partial(tars_in, Folder(out))
        assert killed(words(out), tmp_path, count, (0, 3, 9)) >= 2
        again = vtx(*words(out))
        assert again.returncode == 0 and again.stdout == done.stdout, again.stderr
        assert contents(out) == contents(tmp_path / name)


@pytest.mark.services
@pytest.mark.slow
def test_commands_in_a_bucket(tmp_path, source, s3_bucket, monkeypatch, capsys):
    server, bucket = s3_bucket
    for name, value in server.environment().items():
        monkeypatch.setenv(name, value)
    place = f"s3://{bucket}/{tmp_path.name}"
    for path in source.parent.iterdir():
        S3.at(f"{place}/in").put(path.name, path.read_bytes())

    def run(*words):
        capsys.readouterr()
        assert main(["data", *map(str, words), "--json", "--workers", "1"]) == 0
        return [json.loads(line) for line in capsys.readouterr().out.splitlines()]

    local = run("build", source, tmp_path / "out", "--samples", 20)
    words = "build", f"{place}/in/t.csv", f"{place}/out", "--samples", 20
    out = S3.at(f"{place}/out")
    count = partial(tars_in, out)
    assert killed(("data", *words, "--workers", 2), tmp_path, count, (2,)) == 1
    assert run(*words) == local
    names = list(out.list(""))
    for name in filter(lambda x: x.endswith(".tar"), names):
        with out.open(name) as found:
            assert found.read(0, found.size) == (tmp_path / "out" / name).read_bytes()
    others = [name for name in names if not name.endswith(".tar")]
    assert [name for name in others if "index" not in name] == [".vtx/packed.json"]
    assert len(others) == 3

    assert run("stats", tmp_path / "out") == run("stats", f"{place}/out")
    judge = "quarantine", f"{place}/out", "--for", "clip_vit_b32", "--smoke"
    assert run(*judge) == [{"new": 0, "quarantined": 0}]
    assert run(*judge[:2], "--lift") == [{"lifted": 0}]
    run("repack", f"{place}/out", f"{place}/again", "--samples", 1000)
    run("repack", f"{place}/again", tmp_path / "again", "--samples", 7)
    assert samples_of(tmp_path / "again") == samples_of(tmp_path / "out")
    run("inspect", f"{place}/again", "--page", f"{place}/page.html")
    assert S3.at(place).head("page.html").size > 10_000
