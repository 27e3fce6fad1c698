"""`vtx data ... --address`: the bytes of one machine, from a real Ray whose processes die."""

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from tests.data_pipeline.make import jpeg, rows
from tests.data_pipeline.packs import contents
from tests.ray_cluster import cluster
from tests.require import need
from vtx_scale.cluster.guard import family
from vtx_scale.data_pipeline.tools.shards import write_shard

pytestmark = pytest.mark.services
SHARDS, EACH = 6, 30


@pytest.fixture(scope="module")
def ray():
    need("ray")
    with cluster() as running:
        yield running


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards")
    for s in range(SHARDS):
        bad = (f"{s}-bad", {"jpg": jpeg(s)[:200], "txt": b"cut"})
        write_shard(folder / f"s{s}.tar", [*rows(s, EACH), bad])
    return folder


def run(ray, *commands: list, watch=lambda known: None) -> list[dict]:
    """Commands of vtx one after the other in one process: codes, and what they print.

    watch: is called with the processes of the cluster over and over while they run.
    """
    asked = json.dumps([list(map(str, command)) for command in commands])
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.cluster.test_data_tasks", asked],
        env={**os.environ, **ray.environment},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    ended = threading.Event()

    def look() -> None:
        while not ended.is_set():
            watch(family(ray.process.pid))
            time.sleep(0.01)

    thread = threading.Thread(target=look)
    thread.start()
    try:
        out, err = process.communicate(timeout=250)
    finally:
        ended.set()
        thread.join()
        process.kill()
    assert process.returncode == 0, err
    return json.loads(out.splitlines()[-1])


def test_the_same_bytes_as_on_one_machine(ray, shards, tmp_path):
    assert not (shards / ".vtx").exists()
    here = ["data", "verify", shards, "--json"]
    there = [*here, "--address", ray.address]
    judged = [*here, "--for", "clip_vit_b32", "--smoke"]
    pack = ["--samples", 20, "--short-side", 32, "--workers", 2, "--json"]
    done = run(
        ray,
        ["data", "index", shards, "--address", ray.address, "--json"],
        here,
        there,
        judged,
        [*judged, "--address", ray.address],
        ["data", "repack", shards, tmp_path / "here", *pack],
        ["data", "repack", shards, tmp_path / "there", *pack, "--address", ray.address],
        ["data", "build", shards, tmp_path / "built", *pack[:2], "--address", ray.address],
    )
    index, *verdicts, here, there, built = done
    assert index["code"] == 0 and json.loads(index["out"])["samples"] == SHARDS * (EACH + 1)
    assert [row["code"] for row in verdicts] == [1, 1, 1, 1]
    assert verdicts[0] == verdicts[1] and verdicts[2] == verdicts[3]
    assert verdicts[0]["out"].count("\n") == SHARDS
    assert here["code"] == there["code"] == built["code"] == 0, done
    assert here["out"] == there["out"]
    assert contents(tmp_path / "here") == contents(tmp_path / "there")
    assert len(contents(tmp_path / "here")) > SHARDS


def test_a_process_killed_in_the_middle_of_a_task(ray, shards, tmp_path):
    """Three of them, one after the other: what they were to write is written by others."""
    killed: dict[int, float] = {}

    def kill(known) -> None:
        """One that does a task, not more than one in a third of a second."""
        if len(killed) == 3 or time.monotonic() - max(killed.values(), default=0.0) < 0.3:
            return
        for pid, _ in known:
            with contextlib.suppress(OSError):
                if (
                    pid not in killed
                    and Path(f"/proc/{pid}/cmdline").read_bytes()[:8] == b"ray::one"
                ):
                    killed[pid] = time.monotonic()
                    os.kill(pid, signal.SIGKILL)
                    return

    pack = ["--samples", 20, "--short-side", 32, "--json"]
    here = ["data", "repack", shards, tmp_path / "here", *pack, "--workers", 1]
    there = ["data", "repack", shards, tmp_path / "there", *pack, "--address", ray.address]
    one = run(ray, here)[0]
    other = run(ray, there, watch=kill)[0]
    assert one["code"] == other["code"] == 0, (one, other)
    assert len(killed) == 3
    assert other["err"].count("was lost on the cluster (") == 3, other["err"]
    assert one["out"] == other["out"]
    assert contents(tmp_path / "here") == contents(tmp_path / "there")
    assert not list((tmp_path / "there").rglob("*.part"))


def test_what_cannot_be_done_is_said_in_one_sentence(ray, shards, tmp_path):
    write_shard(tmp_path / "a.tar", rows(0, 2))
    (tmp_path / "b.tar").write_bytes(b"\x1f\x8b\x08\x00" + bytes(600))
    wrong = run(
        ray,
        ["data", "index", tmp_path],
        ["data", "index", tmp_path, "--address", ray.address],
        ["data", "index", shards, "--address", "127.0.0.1:9"],
        ["data", "index", shards, "--address", "http://127.0.0.1:8265"],
        ["dies", ray.address],
    )
    assert [row["code"] for row in wrong] == [2] * 5, wrong
    assert [row["out"] for row in wrong] == [""] * 5
    assert wrong[0] == wrong[1]
    assert "nobody listens there" in wrong[2]["err"]
    assert "HOST:PORT" in wrong[3]["err"]
    *lost, wrong[4]["err"] = wrong[4]["err"].splitlines(keepends=True)
    assert len(lost) == 3 and all(x.startswith("part 3 was lost on the cluster") for x in lost)
    assert wrong[4]["err"].startswith("vtx: Part 3 was lost 4 times on the cluster ("), wrong[4]
    for row in wrong:
        assert row["err"].startswith("vtx: ") and row["err"].count("\n") == 1, row


def dies(number: int) -> int:
    """What ends its process where the number is 2."""
    if number == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def always(address: str) -> int:
    """Work of which a part cannot be done, as a command."""
    from vtx_scale.cluster.ray_settings import settings
    from vtx_scale.data_pipeline.errors import UserError
    from vtx_scale.trainer.output import say

    with settings(address):
        from vtx_scale.cluster.ray_tasks import tasks

        try:
            with tasks(address, 0, list, say) as pool:
                print(list(pool(dies, range(5))))
        except UserError as e:
            print(f"vtx: {e}", file=sys.stderr)
            return 2
    return 0


def main(commands: list[list[str]]) -> None:
    """In the process of `run`."""
    from tests.cluster import test_data_tasks  # whose functions other processes find by this name
    from vtx_scale.launch import cli

    answers = []
    for command in commands:
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            if command[0] == "dies":
                code = test_data_tasks.always(command[1])
            else:
                code = cli.main(command)
        answers.append({"code": code, "out": out.getvalue(), "err": err.getvalue()})
    print(json.dumps(answers))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
