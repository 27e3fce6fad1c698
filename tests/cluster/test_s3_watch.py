"""`vtx watch` and `vtx report` of a run in a bucket: its segments, its beats, and its silence."""

import json
import os
import secrets
import time

import pytest

from tests.runs import vtx
from tests.s3 import proxied
from tests.surfaces.run_folders import recipe, row
from tests.surfaces.test_report import Page
from tests.surfaces.test_watch import terminal
from vtx_scale.checkpoints import lease
from vtx_scale.cluster.storage.s3 import S3
from vtx_scale.trainer.output import stamped

pytestmark = [pytest.mark.services, pytest.mark.slow]


def segment(first: int, last: int) -> bytes:
    return b"".join(row(step) for step in range(first, last + 1))


def holder(beat: int, state: str = "held") -> bytes:
    return json.dumps({"who": "process 7 on there", "state": state, "beat": beat}).encode()


def test_a_run_in_a_bucket(s3_bucket, tmp_path, monkeypatch):
    """Segments come, a resume takes some back under their old numbers, and the bucket is silent for
    a while: each is shown, and nothing is written.
    """
    server, bucket = s3_bucket
    with proxied(server) as proxy:
        for name, value in server.environment(proxy.port).items():
            monkeypatch.setenv(name, value)
        prefix = f"runs/{secrets.token_hex(4)}"
        store, url = S3(bucket, prefix), f"s3://{bucket}/{prefix}"
        assert vtx("watch", url).returncode == 2
        store.put("run.json", json.dumps({"recipe": recipe(200), "hash": "h"}).encode())
        for k in range(6):
            store.put(f"metrics/{k + 1:08d}.jsonl", segment(20 * k + 1, 20 * k + 20))
        store.put("log/00000-00000001.txt", stamped("step 120/200  loss 1") + b"\n")
        entry = {"kind": "skip", "reason": "spike", "step": 7, "rank": 3}
        store.put("ledger/00003-00000001.jsonl", json.dumps(entry).encode() + b"\n")
        store.put(f"lease/{lease.name_of(1)}", holder(0))
        proxy.seen.clear()
        with terminal(url, every=0.3) as shown:
            shown.until("step \x1b[0m\x1b[1m120\x1b[0m of 200")
            store.put(f"lease/{lease.name_of(1)}", holder(1))
            shown.until("running")
            for number in (5, 6):
                store.delete(f"metrics/{number:08d}.jsonl")
            store.put("metrics/00000005.jsonl", segment(81, 91))
            shown.until("step \x1b[0m\x1b[1m91\x1b[0m of 200")
            proxy.share, proxy.kinds = 1.0, ("stall",)
            shown.until("has not answered for")
            store.put("metrics/00000006.jsonl", segment(92, 95))
            proxy.share = 0.0
            shown.until("step \x1b[0m\x1b[1m95\x1b[0m of 200", 90)
            proxy.share = 1.0
            shown.until("has not answered for")
            began = time.monotonic()
            os.write(shown.fd, b"\x03")
            assert shown.end() == 0 and time.monotonic() - began < 30
        proxy.share = 0.0
        asked = [path for verb, path in proxy.asked if verb in ("PUT", "POST", "DELETE")]
        store.put(f"lease/{lease.name_of(1)}", holder(2, "released"))
        page = tmp_path / "page.html"
        before = len(asked)
        done = vtx("report", url, "-o", page)
        assert done.returncode == 0, done.stderr
        words = Page(page.read_text()).words
        assert "stopped" in words and "95" in words and "without an update: spike" in words
        assert server.key not in page.read_text() and server.secret not in page.read_text()
        text = vtx("watch", url, "--once").stdout
        assert "step 95 of 200" in text and "has given it back" in text
        asked = [path for verb, path in proxy.asked if verb in ("PUT", "POST", "DELETE")]
        assert len(asked) == before + 1, "it writes into the bucket"
