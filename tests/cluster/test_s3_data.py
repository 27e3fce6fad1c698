"""Training on shards in a bucket, from a real server, against the same run from a folder."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter

import pytest

from tests.processes import loader_workers_of
from tests.runs import environment, lines, losses, norms, tensors, train, vtx
from tests.s3 import free_ports, proxied
from vtx_scale.data_pipeline.tools.toy import make_toy

pytestmark = [pytest.mark.services, pytest.mark.slow]
SHORT = ("steps=10", "global_batch=32", "checkpoint.every=4")
CACHES = {"in memory": ("system.cache.bytes=0",), "on disk": ()}  # the first run that has one
FAULTS = ("500", "503", "reset", "short", "fewer", "flip")


@pytest.fixture(scope="module")
def places(s3_bucket, tmp_path_factory):
    """(server, toy shards in a folder, the same in the bucket), indexed."""
    from vtx_scale.cluster.storage.s3 import S3

    server, bucket = s3_bucket
    folder = make_toy(tmp_path_factory.mktemp("toy") / "train", samples=256, shards=4)
    prefix = f"toy-{os.urandom(4).hex()}"
    with pytest.MonkeyPatch.context() as patch:
        for name, value in server.environment().items():
            patch.setenv(name, value)
        storage = S3(bucket, prefix)
        for path in sorted(folder.iterdir()):
            if path.is_file():
                storage.put(path.name, path.read_bytes())
    url = f"s3://{bucket}/{prefix}"
    done = vtx("data", "index", url, "--json", env=server.environment())
    assert done.returncode == 0, done.stderr
    local = vtx("data", "index", folder, "--json")
    row, there = json.loads(done.stdout), json.loads(local.stdout)
    assert {**row, "file": ""} == {**there, "file": ""}
    return server, folder, url


@pytest.fixture(scope="module")
def from_disk(places, tmp_path_factory):
    """The run from the folder, on one process."""
    run = tmp_path_factory.mktemp("disk") / "run"
    train(run, f"data.shards={places[1]}", "system.world=2", *SHORT)
    return run


def assert_same(run, other):
    assert losses(run) == losses(other) and norms(run) == norms(other)
    found, wanted = tensors(run), tensors(other)
    assert found.keys() == wanted.keys() and all((found[k] == wanted[k]).all() for k in wanted)


def assert_asked_once(proxy):
    """No LIST, one GET of the index and one of the classes, two HEADs; each chunk once."""
    asked = Counter((verb, path.partition("?")[0].rpartition("/")[2]) for verb, path in proxy.asked)
    assert not [path for verb, path in proxy.asked if verb == "GET" and "list-type" in path]
    assert asked["GET", "index.safetensors"] == 1 and asked["GET", "classes.txt"] == 1
    assert proxy.seen["HEAD"] == 2 and set(proxy.seen) == {"GET", "HEAD"}
    tars = sum(n for (verb, name), n in asked.items() if verb == "GET" and name.endswith(".tar"))
    assert tars == 4, asked  # each chunk once, for both processes


def as_ranks(folder, env, *keys):
    """`vtx train` on two ranks of another launcher; (exit code, what it said) each."""
    port = str(free_ports(1)[0])
    common = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    words = [sys.executable, "-m", "vtx_scale.launch.cli", "train", "clip_vit_b32", "--smoke"]
    words += ["--run", str(folder), "system.workers=0", *keys]
    ranks = [
        subprocess.Popen(
            words,
            env=environment({**env, **common, "RANK": str(k), "LOCAL_RANK": str(k)}),
            stderr=subprocess.PIPE,
            text=True,
        )
        for k in range(2)
    ]
    try:
        said = [rank.communicate(timeout=120)[1] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    return [(rank.returncode, text) for rank, text in zip(ranks, said, strict=True)]


def test_ranks_of_another_launcher_ask_once_and_fail_alike(places, from_disk, tmp_path):
    server, _, url = places
    keys = (f"data.shards={url}", f"system.cache.folder={tmp_path / 'cache'}", *SHORT)
    with proxied(server) as proxy:
        ended = as_ranks(tmp_path / "run", server.environment(proxy.port), *keys)
    assert [code for code, _ in ended] == [0, 0], ended
    assert_same(tmp_path / "run", from_disk)
    assert_asked_once(proxy)
    ended = as_ranks(
        tmp_path / "no", server.environment(), *keys, f"data.val_shards={url}/none.tar"
    )
    assert [code for code, _ in ended] == [2, 2], ended
    assert "has no index yet" in "".join(text for _, text in ended)


def test_what_is_asked_for_at_a_start_and_in_an_epoch(places, from_disk, tmp_path):
    """Whatever the world."""
    server, _, url = places
    with proxied(server) as proxy:
        env = server.environment(proxy.port)
        cache = f"system.cache.folder={tmp_path / 'cache'}"
        train(tmp_path / "run", f"data.shards={url}", "system.world=2", cache, *SHORT, env=env)
    assert_same(tmp_path / "run", from_disk)
    assert_asked_once(proxy)
    with proxied(server) as proxy:  # from the cache alone
        env = server.environment(proxy.port)
        train(tmp_path / "again", f"data.shards={url}", "system.world=2", cache, *SHORT, env=env)
    assert_same(tmp_path / "again", from_disk)
    assert not any(
        path.partition("?")[0].endswith(".tar") for verb, path in proxy.asked if verb == "GET"
    )


def test_classes_lie_beside_the_shards_or_one_folder_up(places, monkeypatch):
    from vtx_scale.cluster.storage.s3 import S3
    from vtx_scale.data_pipeline.remote import index_remote
    from vtx_scale.launch import opened
    from vtx_scale.launch.places import shards_at

    server, folder, url = places
    for name, value in server.environment().items():
        monkeypatch.setenv(name, value)
    shards = f"{url}-up/train"
    storage = S3.at(shards)
    storage.put("a.tar", (folder / "toy-000.tar").read_bytes())
    index_remote(shards_at(shards))
    found = []
    for place, names in ((None, None), (f"{url}-up", b"one\n"), (shards, b"two\n")):
        if place:
            S3.at(place).put("classes.txt", names)
        found.append(opened.ask(shards_at(shards))[1])
    assert found == [None, ["one"], ["two"]]


@pytest.mark.parametrize("kept", CACHES)
def test_the_run_is_that_from_disk_under_faults_and_kills(places, from_disk, tmp_path, kept):
    """Each fault on 5 % of the reads; the launcher and a loader process are killed once each."""
    server, _, url = places
    run = tmp_path / "run"
    with proxied(server) as proxy:
        proxy.share, proxy.kinds = 0.05, FAULTS
        env = environment(server.environment(proxy.port))
        keys = (f"data.shards={url}", "system.world=2", "system.workers=1", *CACHES[kept], *SHORT)
        command = ["train", "clip_vit_b32", "--smoke", "--run", str(run), *keys]
        words = [sys.executable, "-m", "vtx_scale.launch.cli", *command]
        started = subprocess.Popen(words, env=env, stderr=subprocess.PIPE, text=True)
        wait_for(lambda: steps(run) >= 5, started)
        started.send_signal(signal.SIGKILL)
        started.wait()
        started = subprocess.Popen(words, env=env, stderr=subprocess.PIPE, text=True)
        try:
            wait_for(lambda: loader_workers_of(started.pid), started)
            os.kill(loader_workers_of(started.pid)[0], signal.SIGKILL)
            _, errors = started.communicate(timeout=180)
        finally:
            started.kill()
            started.wait()
        assert started.returncode == 0, errors
    assert_same(run, from_disk)
    ledger = run / "ledger.jsonl"
    assert not ledger.exists() or "sample" not in {row["kind"] for row in lines(ledger)}


def steps(run):
    path = run / "metrics.jsonl"
    return len(path.read_text().splitlines()) if path.exists() else 0


def wait_for(what, process):
    deadline = time.monotonic() + 120
    while not what():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
