"""A job whose run folder is a bucket, which it shares with the machine that submits, and nothing
else: what that machine has of its own goes along.
"""

import json
import shutil

import pytest

from tests.cluster.head import head
from tests.cluster.test_jobs import Laptop
from tests.require import need
from tests.runs import SMALL, losses, train_on_ranks

pytestmark = [pytest.mark.services, pytest.mark.slow, pytest.mark.timeout(900)]


def test_a_job_in_a_bucket_starts_from_a_run_of_the_laptop(s3_bucket, tmp_path):
    need("ray")
    server, bucket = s3_bucket
    start = tmp_path / "start"
    train_on_ranks(start, 1, "auto", "steps=2")
    keys = (*SMALL, "steps=3", "system.world=1")
    train_on_ranks(tmp_path / "calm", 1, "auto", "steps=3", f"init.from={start}")
    laptop, run = Laptop(tmp_path), f"s3://{bucket}/runs/clip"
    laptop.env |= server.environment()
    laptop("jobs", "token")
    token = tmp_path / "config" / "vtx-scale" / "ray-token"
    with head(token, **server.environment()) as cluster:
        where = ("--address", cluster.address)
        words = ("submit", "clip_vit_b32", "--smoke", *keys, f"init.from={start}", "--run", run)
        done = laptop(*words, *where, "--detach")
        assert done.returncode == 0, done.stderr
        assert f"init.from={start} goes along, as {run}/inputs/" in done.stderr
        shutil.rmtree(start)
        followed = laptop("jobs", "logs", "-f", run)
        assert followed.returncode == 0, followed.stdout + followed.stderr
        assert not cluster.end()
    logs, status = laptop("jobs", "logs", run), laptop("jobs", "status", run, "--json")
    assert "finished at step 3" in logs.stdout, logs.stderr
    row = json.loads(status.stdout)
    assert (row["state"], row["code"], row["step"], row["ray"]) == ("ended", 0, 3, ""), row
    assert row["loss"] == losses(tmp_path / "calm")[-1]
