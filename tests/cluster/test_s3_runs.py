"""Run folders in a bucket: trained, killed, resumed, copied and read as those on disk are."""

import contextlib
import json
import os
import secrets
import signal
import threading
import time
from pathlib import Path

import pytest

from tests.jobs import (
    Job,
    at_failpoint,
    end_at_write,
    ended,
    meet,
    no_pauses,
    shorter,
    stop_here,
)
from tests.runs import COLOUR, environment, losses, vtx
from tests.s3 import proxied
from vtx_scale import open_run
from vtx_scale.checkpoints.format import steps
from vtx_scale.checkpoints.read import Tensors, newest, verify
from vtx_scale.data_pipeline.objects import storage_of
from vtx_scale.launch.cli import main
from vtx_scale.launch.paths import checkpoints_of
from vtx_scale.launch.places import place_at
from vtx_scale.trainer.lines import written

pytestmark = [pytest.mark.services, pytest.mark.slow]
STEPS = 6
KEYS = (f"steps={STEPS}", "checkpoint.every=2")


@pytest.fixture
def url(s3_bucket, monkeypatch):
    """A run that is not there yet, in a bucket that this environment names."""
    server, bucket = s3_bucket
    for name, value in server.environment().items():
        monkeypatch.setenv(name, value)
    return f"s3://{bucket}/runs/{secrets.token_hex(4)}"


@pytest.fixture
def job(url, s3_bucket, tmp_path):
    """What makes a job on that run."""

    def make(*patches, place=url, keys=KEYS, recipe=COLOUR, **env):
        said = tmp_path / f"said-{secrets.token_hex(4)}"
        return Job(str(place), said, keys, recipe, {**s3_bucket[0].environment(), **env}, patches)

    return make


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The same run on disk, to which nothing happened."""
    folder = tmp_path_factory.mktemp("disk") / "run"
    assert Job(str(folder), folder.parent / "said", KEYS).run() == 0
    return folder


def curve(place) -> list[tuple[float, ...]]:
    """Loss, rate and norm of each step, of a run in either form."""
    rows = written(place_at(place) / "metrics.jsonl")
    assert [row["step"] for row in rows] == list(range(1, len(rows) + 1))
    return [(row["loss"], row["lr"], row["grad_norm"]) for row in rows]


def end(place) -> dict[str, list[float]]:
    storage = checkpoints_of(place_at(place))
    tensors = Tensors(storage, newest(storage))
    return {key: tensors.tensor(key).tolist() for key in tensors.keys()}


def test_a_run_that_is_killed_between_any_two_writes_has_the_same_curve(url, job, undisturbed):
    """A start dies at each kind of write, then each at a later write than the one before, until one
    comes to the end.
    """
    storage = checkpoints_of(place_at(url))
    kinds = ("lease/", "run.json", "metrics/", "/data-", "/table-", "/manifest", "tensorboard/")
    for number, kind in ((1, kind) for kind in (*kinds, "/manifest")):
        assert job((end_at_write, (number, kind))).run() == -signal.SIGKILL
    assert steps(storage) == [], "a kill came late"
    for number in range(1, 60):
        begun = job((end_at_write, (number,)), (shorter, (20.0,)))
        code = begun.run()
        for step in steps(storage):  # what has a manifest is whole
            assert verify(storage, step)["step"] == step
        if code == 0:
            break
        assert code == -signal.SIGKILL, (number, code, begun.said.read_text())
    assert number > 12, "the kills did not reach into the saves"
    assert curve(url) == curve(undisturbed) and len(curve(url)) == STEPS
    assert end(url) == end(undisturbed)
    names = {n.split("/")[1] for n in storage.list("")}
    assert not any(n.endswith(".part") for n in names)


def test_a_second_job_refuses_and_of_one_that_was_suspended_nothing_is_committed(
    url, job, undisturbed, tmp_path
):
    first = job((shorter, (1.5,)), (at_failpoint, ("before-manifest-4", stop_here)))
    process = first.start()
    try:
        storage = checkpoints_of(place_at(url))
        wait_for(lambda: steps(storage) == [2])
        wait_for(lambda: is_stopped(process.pid))
        second = job()  # on the same machine its lock says that it lives
        assert second.run() == 2
        assert f"is being written by process {process.pid}" in second.said.read_text()
        other = job((shorter, (1.5,)), XDG_CACHE_HOME=str(tmp_path / "elsewhere"))
        assert other.run() == 0, other.said.read_text()
        assert "without a word" in other.said.read_text()
        os.kill(process.pid, signal.SIGCONT)
        assert ended(process) == 2, first.said.read_text()
        said = first.said.read_text()  # it had asked for its lease just before, or not
        assert "has taken the run over" in said or "was saved by another job" in said
    finally:
        process.kill()
        process.join()
    assert {step: verify(storage, step)["epoch"] for step in steps(storage)} == {2: 1, 4: 2, 6: 2}
    assert curve(url)[-1] == curve(undisturbed)[-1] and end(url) == end(undisturbed)


def test_a_job_that_was_suspended_adds_no_lines_behind_those_of_the_next(url, job, tmp_path):
    first = job((shorter, (1.5,)), (at_failpoint, ("backward-4", stop_here)))
    process = first.start()
    try:
        wait_for(lambda: is_stopped(process.pid))
        other = job((shorter, (1.5,)), XDG_CACHE_HOME=str(tmp_path / "elsewhere"))
        assert other.run() == 0, other.said.read_text()
        before = curve(url)
        os.kill(process.pid, signal.SIGCONT)
        assert ended(process) == 2, first.said.read_text()
    finally:
        process.kill()
        process.join()
    assert curve(url) == before and len(before) == STEPS


@pytest.mark.parametrize("lacks", ["bucket", "keys"])
def test_a_bucket_that_cannot_be_meant_is_wrong_input(url, lacks, tmp_path, monkeypatch):
    """Where nothing has begun: of the command, of a rank that another launcher has started."""
    place, said = "s3://vtx-nowhere/run", "s3://vtx-nowhere: no such bucket: look at the names"
    if lacks == "keys":
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        monkeypatch.setenv("HOME", str(tmp_path))
        place, said = url, "no credentials for AWS were found: set AWS_ACCESS_KEY_ID"
    train = ("train", COLOUR, "--smoke", "--run", place)
    for env in ({}, {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}):
        done = vtx(*train, env={**environment(), **env})
        assert (done.returncode, said in done.stderr) == (2, True), done.stderr


def is_stopped(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


def wait_for(what, patience: float = 30) -> None:
    until = time.monotonic() + patience
    while not what():
        assert time.monotonic() < until
        time.sleep(0.05)


def copied(source, target) -> None:
    """Every object of one place to another."""
    theirs, ours = storage_of(place_at(source)), storage_of(place_at(target))
    for name in list(theirs.list("")):
        with theirs.open(name) as file:
            ours.put(name, file.read(0, file.size))


@pytest.mark.parametrize("begins", ["bucket", "disk"])
def test_a_copy_goes_on_in_the_other_form(url, job, undisturbed, tmp_path, begins):
    here, there = (url, tmp_path / "run") if begins == "bucket" else (tmp_path / "run", url)
    assert job(place=here, keys=(*KEYS, "system.leave_after=3")).run() == 75
    assert len(curve(here)) == 3
    copied(here, there)
    assert job(place=there).run() == 0
    assert curve(there) == curve(undisturbed) and end(there) == end(undisturbed)
    assert curve(here) == curve(undisturbed)[:3]
    if begins == "disk":
        assert losses(here) == [loss for loss, *_ in curve(undisturbed)[:3]]


def test_every_reader_takes_it(url, job, tmp_path, capsys):
    keys = ("steps=4", "checkpoint.every=2")
    assert job(recipe="clip_vit_b32", keys=keys).run() == 0
    for words in (
        ("checkpoints", url, "--verify"),
        ("evaluate", url, "--json"),
        ("export", url, "--to", "safetensors", str(tmp_path / "out")),
        ("checkpoints", url, "--prune"),
        ("show", url),
    ):
        assert main(list(words)) == 0
        said = capsys.readouterr()
        assert "Traceback" not in said.err and said.out, said.err
    opened = open_run(url)
    assert opened.step == 4 and "encode_image" in opened.probes
    rows = written(place_at(url) / "evaluations.jsonl")
    assert [row["step"] for row in rows] == [4]
    assert (
        job(
            place=tmp_path / "from", recipe="clip_vit_b32", keys=("steps=1", f"init.from={url}")
        ).run()
        == 0
    )
    about = json.loads((tmp_path / "from" / "run.json").read_text())
    assert about["outside"]["init.from"]["path"] == url


def test_pictures_are_drawn_by_a_run_in_a_bucket(url, job, tmp_path, capsys):
    assert job(recipe="igpt_s", keys=("steps=1",)).run() == 0
    out = tmp_path / "out"
    assert main(["sample", url, str(out), "--count", "1"]) == 0
    assert [path.suffix for path in out.iterdir()] == [".png"]


def test_a_damaged_object_is_found(url, job, capsys):
    assert job(keys=("steps=2", "checkpoint.every=2")).run() == 0
    storage = checkpoints_of(place_at(url))
    name = next(n for n in storage.list("step-00000002/data-"))
    body = bytearray(storage.get_range(name, 0, 1 << 30))
    body[-1] ^= 1
    storage.put(name, bytes(body))
    assert main(["checkpoints", url, "--verify"]) == 1
    assert "does not match its digest" in capsys.readouterr().out


def test_a_bucket_that_is_away_costs_a_save_and_no_step(url, job, s3_bucket, undisturbed, tmp_path):
    storage = checkpoints_of(place_at(url))
    with proxied(s3_bucket[0]) as proxy:
        begun = job(
            (shorter, (0.3,)),
            (no_pauses, ()),
            (at_failpoint, ("step-3", meet, tmp_path, "away")),
            (at_failpoint, ("step-5", meet, tmp_path, "back")),
            AWS_ENDPOINT_URL_S3=f"http://127.0.0.1:{proxy.port}",
        )
        process = begun.start()
        wait_for((tmp_path / "away").exists)
        wait_for(lambda: steps(storage) == [2])
        target, proxy.target = proxy.target, 1
        (tmp_path / "away-on").touch()
        wait_for((tmp_path / "back").exists)  # the save of step 4 is under way, or has failed
        time.sleep(1.0)
        proxy.target = target
        (tmp_path / "back-on").touch()
        assert ended(process) == 0, begun.said.read_text()
    assert steps(storage) == [2, 6] and "saving step 4 failed" in begun.said.read_text()
    assert curve(url) == curve(undisturbed) and end(url) == end(undisturbed)
    rows = written(place_at(url) / "ledger.jsonl")
    assert [row["step"] for row in rows if row["kind"] == "save_failed"] == [4]


def test_a_stop_object_asks_to_leave(url, job):
    process = job((shorter, (0.2,)), keys=("steps=100000", "checkpoint.every=0")).start()
    wait_for(lambda: len(list(storage_of(place_at(url)).list("metrics/"))) > 0)
    storage_of(place_at(url)).put("control/stop", b"")
    assert ended(process, 30) == 75
    at = steps(checkpoints_of(place_at(url)))
    assert len(at) == 1 and len(curve(url)) == at[0]


@contextlib.contextmanager
def titles():
    """The command lines of all processes while inside."""
    seen, ended = set(), threading.Event()

    def look():
        while not ended.wait(0.2):
            for file in Path("/proc").glob("[0-9]*/cmdline"):
                with contextlib.suppress(OSError):
                    seen.add(file.read_text(errors="replace"))

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield seen
    finally:
        ended.set()
        thread.join()


def test_two_ranks_and_no_key_is_left_anywhere(url, s3_bucket, undisturbed, tmp_path):
    """Of the command itself, its processes and what it leaves."""
    secret, scratch = s3_bucket[0].secret, tmp_path / "scratch"
    keys = (*KEYS, "system.workers=0", "system.world=2", f"system.scratch={scratch}")
    with titles() as seen:
        done = vtx("train", COLOUR, "--smoke", "--run", url, *keys, env=environment())
    assert done.returncode == 0, done.stderr
    assert [row for row, *_ in curve(url)] == pytest.approx([x for x, *_ in curve(undisturbed)])
    storage = storage_of(place_at(url))
    everything = done.stdout + done.stderr + "".join(seen)
    assert url in everything
    for name in storage.list(""):
        everything += storage.get_range(name, 0, 1 << 30).decode("latin-1") + name
    assert secret not in everything and s3_bucket[0].key not in everything
    assert scratch.is_dir() and not list(scratch.iterdir()), "a staged file is left"
