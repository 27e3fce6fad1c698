"""What decides over the jobs of a run, without a cluster: who is alive, which attempt comes next,
what goes along with a job.
"""

import argparse
import io
import json
import shlex
import threading
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.runs import vtx
from tests.storages import Memory
from vtx_scale.cluster.token import ensure_token, token, token_file
from vtx_scale.data_pipeline.errors import UserError
from vtx_scale.data_pipeline.objects import ObjectPath
from vtx_scale.launch import attempts, inputs, override, packing, recipes
from vtx_scale.launch.attempts import ALIVE, BARREN, FINAL, Attempt, End
from vtx_scale.launch.tail import Lines
from vtx_scale.trainer.output import Ledger

WORDS = st.sampled_from(["held", "silent", "free"])
RAY = st.sampled_from(["", "UNKNOWN", "PENDING", "RUNNING", "STOPPED", "SUCCEEDED", "FAILED"])
ENDS = st.none() | st.builds(End, st.sampled_from([0, 1, 2, 3, 4, 75, 130]))


def attempt(number: int, id: str = "run-1") -> Attempt:
    return Attempt(number, id, "http://head:8265", 0.0, {}, "code-0.zip")


@given(WORDS, RAY, ENDS, st.booleans(), st.floats(0, 1e6))
def test_the_lease_decides_who_is_alive_and_ray_where_nobody_has_it(word, ray, end, stop, age):
    state = attempts.state_of(word, ray, end, stop, age)
    if word == "held":
        assert state in ("running", "stopping")
    elif end is not None:
        assert state == "ended"
    elif word == "silent":  # whatever a head says that has just come back
        assert state == "lost"
    else:
        young = ray in ("", "UNKNOWN") and age < attempts.FRESH
        assert (state in ALIVE) == (ray in ("PENDING", "RUNNING") or young)
        assert (state == "unknown") == (ray == "" and not young)  # it may yet begin


@given(WORDS, RAY, ENDS, st.booleans(), st.floats(0, 1e6), st.integers(0, 9))
def test_a_supervisor_starts_nothing_beside_what_is_alive(word, ray, end, stop, age, barren):
    state = attempts.state_of(word, ray, end, stop, age)
    what = attempts.should(state, end, stop, barren)
    assert (what == "wait") == (state in ALIVE or (state == "unknown" and not stop))
    if what == "resume":
        assert not stop and barren < BARREN and (end is None or end.code not in FINAL)
    if end is not None and end.code == 75 and not stop and word == "free" and not barren:
        assert what == "resume"  # preempted: nobody asked for it


@given(st.lists(st.integers(0, 50), min_size=1, max_size=12))
def test_attempts_that_save_nothing_are_counted_from_the_last_that_did(steps):
    count = attempts.barren(steps)
    assert 0 <= count < len(steps)
    tail = steps[len(steps) - 1 - count :]
    assert all(b <= a for a, b in zip(tail, tail[1:], strict=False))
    if count < len(steps) - 1:
        assert tail[0] > steps[len(steps) - 2 - count]
    assert attempts.pause(count) <= attempts.pause(count + 1) <= 300


@given(st.text(max_size=20), st.integers(1, 10**6), st.integers(0, 24))
def test_an_id_is_new_to_the_cluster_and_says_run_and_attempt(name, number, before):
    used: set[str] = set()
    for _ in range(before + 1):
        id = attempts.job_id(name, number, used.__contains__)
        assert id not in used and f"-{number}" in id
        assert all(c.isascii() and (c.isalnum() or c in "_.-") for c in id)
        used.add(id)


def test_an_id_has_its_limit():
    with pytest.raises(UserError, match="name the run otherwise"):
        attempts.job_id("run", 1, lambda id: True)


@pytest.mark.parametrize("bucket", [False, True])
def test_one_attempt_has_a_number(tmp_path, bucket):
    folder = ObjectPath(Memory(), "runs/a") if bucket else tmp_path / "a"
    assert attempts.newest(folder) is None and attempts.numbers(folder) == []
    won: list[str] = []

    def race(id: str) -> None:
        if attempts.claim(folder, attempt(1, id)):
            won.append(id)

    threads = [threading.Thread(target=race, args=(f"run-{i}",)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    assert attempts.newest(folder) == attempt(1, won[0])
    assert attempts.claim(folder, attempt(attempts.next_number(attempts.numbers(folder))))
    attempts.write_end(folder, 2, End(75, "", 30, 1.5))
    attempts.ask_to_stop(folder, 2)
    assert attempts.numbers(folder) == [1, 2]  # ends and requests are no attempts
    assert attempts.end_of(folder, 1) is None and attempts.end_of(folder, 2) == End(75, "", 30, 1.5)
    assert attempts.stop_asked(folder, 2) and not attempts.stop_asked(folder, 1)
    assert (folder / "control" / "stop").is_file()


def test_a_lease_is_held_while_it_is_renewed(tmp_path):
    from vtx_scale.checkpoints import lease
    from vtx_scale.launch.paths import lease_of

    assert attempts.holder_of(tmp_path).word == "free"
    held = lease.acquire(lease_of(tmp_path), {"who": "process 7 on n1"}, ttl=0.3)
    assert attempts.holder_of(tmp_path, ttl=30) == attempts.Holder("held", "process 7 on n1")
    held._ended.set()  # it dies without a word
    held._thread.join()
    found = attempts.holder_of(tmp_path, ttl=0.5)
    assert found == attempts.Holder("silent", "process 7 on n1")
    assert found.words == (1, lease.holder(lease_of(tmp_path), 1))
    held._ended.clear()
    held.close()
    assert attempts.holder_of(tmp_path).word == "free"


def test_a_package_holds_what_a_job_imports_and_nothing_else(tmp_path):
    mine = tmp_path / "mine"
    (mine / "parts" / "__pycache__").mkdir(parents=True)
    for name in ("recipe.py", "parts/__init__.py", "parts/table.json", "parts/.hidden", "notes.md"):
        (mine / name).write_text("x = 1\n")
    (mine / "parts" / "__pycache__" / "a.pyc").write_text("")
    (mine / "data").mkdir()
    (mine / "data" / "big.tar").write_text("")
    body = packing.pack([str(mine)])
    names = set(zipfile.ZipFile(io.BytesIO(body)).namelist())
    own = {n for n in names if not n.startswith("vtx_scale/")}
    assert own == {"recipe.py", "parts/__init__.py", "parts/table.json"}
    for name in ("__init__.py", "launch/job.py", "cluster/jobs.py", "planner/counts.json"):
        assert f"vtx_scale/{name}" in names
    assert "vtx_scale/data_pipeline/storage.py" in names
    assert not [n for n in names if ".pyc" in n or "tests/" in n or "/." in n]
    assert len(body) < 5_000_000 and packing.pack([str(mine)]) == body
    other = tmp_path / "other"
    other.mkdir()
    (other / "recipe.py").write_text("")
    with pytest.raises(UserError, match="have one name"):
        packing.pack([str(mine), str(other)])


def test_a_package_that_is_too_large_is_refused_with_the_largest_files(tmp_path, monkeypatch):
    (tmp_path / "parts").mkdir()
    for name, size in (("__init__.py", 0), ("weights.bin", 3000), ("more.bin", 2000), ("c.py", 1)):
        (tmp_path / "parts" / name).write_bytes(b"0" * size)
    whole = sum(p.stat().st_size for _, p in packing.below(packing.ROOT))
    monkeypatch.setattr(packing, "MOST", whole + 5001)
    packing.pack([str(tmp_path)])
    monkeypatch.setattr(packing, "MOST", 5000)
    monkeypatch.setattr(packing, "ROOT", tmp_path / "nothing")
    with pytest.raises(UserError, match=r"weights\.bin \(0\.0 MB\), .*more\.bin .*c\.py"):
        packing.pack([str(tmp_path)])


@pytest.fixture
def run():
    return recipes.find("clip_vit_b32", smoke=True)


def test_files_of_this_machine_go_along_and_are_there_on_a_node(run, tmp_path, monkeypatch):
    """The tokenizer's file, by a run folder in a bucket, to machines with caches of their own."""
    file = tmp_path / "laptop" / "mine.json"
    file.parent.mkdir()
    file.write_text('{"a": 1}')
    run = replace(run, data=replace(run.data, tokenizer=str(file)))
    folder, said = ObjectPath(Memory(), "runs/a"), []
    sent = inputs.send(run, folder, said.append)
    assert sent.data.tokenizer.startswith(f"{folder}/inputs/") and "data.tokenizer" in said[0]
    assert sent.data.shards == "toy"  # no path of this machine's cache
    file.unlink()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "n1"))
    one = inputs.here(sent, folder)
    assert Path(one.data.tokenizer).read_text() == '{"a": 1}'
    assert Path(one.data.tokenizer).is_relative_to(tmp_path / "n1")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "n2"))
    two = inputs.here(one, folder)  # as the driver on the first node gives it to a rank
    assert Path(two.data.tokenizer).read_text() == '{"a": 1}'
    assert Path(two.data.tokenizer).is_relative_to(tmp_path / "n2")


def test_toy_shards_are_those_of_each_machine(run, tmp_path, monkeypatch):
    theirs = "/home/other/.cache/vtx-scale/toy-v1"
    data = replace(run.data, shards=f"{theirs}/train", val_shards=f"{theirs}/val")
    here = inputs.here(replace(run, data=data), tmp_path).data
    assert Path(here.shards).is_dir() and Path(here.val_shards).is_dir()
    assert here.shards.endswith("/toy-v1/train") and here.val_shards.endswith("/toy-v1/val")
    plain = replace(run, data=replace(run.data, shards="/data/toy-v1/train/a.tar"))
    assert inputs.here(plain, tmp_path) == plain


def test_what_is_too_large_to_go_along_is_refused_by_name(run, tmp_path, monkeypatch):
    monkeypatch.setattr(inputs, "MOST", 10)
    folder = ObjectPath(Memory(), "runs/a")
    (tmp_path / "start").mkdir()
    (tmp_path / "start" / "model.safetensors").write_bytes(b"0" * 11)
    started = replace(run, init=replace(run.init, from_=str(tmp_path / "start")))
    with pytest.raises(UserError, match=rf"init\.from={tmp_path}/start is of this machine alone"):
        inputs.send(started, folder, lambda line: None)
    # where the nodes see the run folder they see what lies beside it
    assert inputs.send(started, tmp_path / "run", lambda line: None) == started
    assert not folder.root.objects


def test_a_token_is_the_users_where_they_have_one(tmp_path, monkeypatch):
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_AUTH_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    assert token() == ""
    made = ensure_token()
    assert made == token_file() == ensure_token() and token() == made.read_text()
    assert made.stat().st_mode & 0o777 == 0o600
    made.chmod(0o640)
    with pytest.raises(UserError, match="can be read by others: chmod 600"):
        token()
    (tmp_path / "theirs").write_text("theirs\n")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "theirs"))
    assert token() == "theirs"
    monkeypatch.setenv("RAY_AUTH_TOKEN", "given")
    assert token() == "given"
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    assert token() == ""


@settings(max_examples=30, deadline=None)
@given(st.lists(st.text(alphabet="ab \n", max_size=9), max_size=8))
def test_a_tail_gives_each_line_once(tmp_path_factory, pieces):
    path = tmp_path_factory.mktemp("tail") / "log.txt"
    tail, found = Lines(path, whole=True), []
    for piece in pieces:
        with path.open("a") as f:
            f.write(piece)
        found += tail.new()
    whole = "".join(pieces)
    assert found == whole[: whole.rfind("\n") + 1].splitlines()


@pytest.mark.parametrize("code", [1, 2, 75])
def test_a_job_says_how_it_ended(tmp_path, monkeypatch, code):
    """Whatever the driver does: its code, and why, in the run folder."""
    from vtx_scale.launch import job

    def driver(run, folder, *rest):
        if code == 2:
            raise UserError("No such thing.")
        Ledger(folder).write(kind="gave_up", reason="failed 4 times", step=0, time=200.0)
        return code

    (tmp_path / "ledger.jsonl").write_text('{"kind": "gave_up", "time": 1, "reason": "old"}\n{"k\n')

    monkeypatch.setattr(job, "submit", driver)
    recipe = override.to_dict(recipes.find("clip_vit_b32", smoke=True))
    attempts.claim(tmp_path, replace(attempt(3), recipe=recipe))
    args = argparse.Namespace(run_folder=str(tmp_path), debug=False)
    if code == 2:
        with pytest.raises(UserError):
            job.run(args)
    else:
        assert job.run(args) == code
    end = attempts.end_of(tmp_path, 3)
    assert end is not None
    assert (end.code, end.text) == (code, {1: "failed 4 times", 2: "No such thing."}.get(code, ""))
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", '{"metadata": {"vtx_attempt": "2"}}')
    with pytest.raises(UserError, match="This is attempt 2, and run-1 has been submitted since"):
        job.run(args)


def test_what_an_earlier_attempt_gave_up_for_is_not_said_again(tmp_path):
    from vtx_scale.launch.job import given_up

    Ledger(tmp_path).write(kind="gave_up", reason="failed 4 times", step=0, time=200.0)
    assert given_up(tmp_path, 100.0) == "failed 4 times"
    assert given_up(tmp_path, 300.0) == ""


def test_what_was_refused_is_nothing_to_go_on_with(tmp_path):
    """A recipe that was submitted by mistake to a folder that holds another run."""
    assert attempts.current(tmp_path) is None
    for number, code in ((1, 0), (2, 2), (3, 2)):
        attempts.claim(tmp_path, attempt(number))
        attempts.write_end(tmp_path, number, End(code))
    assert attempts.current(tmp_path).number == 1 and attempts.newest(tmp_path).number == 3
    attempts.claim(tmp_path, attempt(4))
    assert attempts.current(tmp_path).number == 4


def test_a_run_that_was_refused_from_the_start_is_that(tmp_path):
    attempts.claim(tmp_path, attempt(1))
    attempts.write_end(tmp_path, 1, End(2, "No such thing."))
    assert attempts.current(tmp_path).number == 1


def test_a_newer_versions_records_are_read(tmp_path):
    """They have a field more; one that lacks a field is refused by name."""
    attempts.claim(tmp_path, attempt(1))
    attempts.write_end(tmp_path, 1, End(75, "", 40))
    for name in ("00000001.json", "00000001.end.json"):
        path = tmp_path / "jobs" / name
        path.write_text(json.dumps({**json.loads(path.read_text()), "zone": "b"}))
    assert attempts.newest(tmp_path) == attempt(1)
    assert attempts.end_of(tmp_path, 1) == End(75, "", 40)
    (tmp_path / "jobs" / "00000001.json").write_text('{"number": 1}')
    (tmp_path / "jobs" / "00000001.end.json").write_text('{"text": ""}')
    with pytest.raises(UserError, match=r"00000001\.json is not what 'vtx submit' wrote"):
        attempts.newest(tmp_path)
    with pytest.raises(UserError, match=r"00000001\.end\.json is not what its job wrote"):
        attempts.end_of(tmp_path, 1)


@pytest.mark.parametrize("name", ["status", "stop", "logs", "resume", "supervise"])
def test_of_a_run_that_is_no_job_it_is_said_who_drives_it(tmp_path, name):
    from vtx_scale.checkpoints import lease
    from vtx_scale.launch import jobs
    from vtx_scale.launch.paths import lease_of

    (tmp_path / "run.json").write_text("{}")
    given = argparse.Namespace(action=name, target=str(tmp_path), address="")
    with pytest.raises(UserError, match="nobody drives it now: 'vtx watch"):
        jobs.run(given)
    held = lease.acquire(lease_of(tmp_path), {"who": "process 7 on n1"}, ttl=0.3)
    with pytest.raises(UserError, match=r"driven by process 7 on n1\. .*control/stop"):
        jobs.run(given)
    held.close()


def test_a_token_is_shown_by_a_path_that_a_shell_can_read(tmp_path, monkeypatch, capsys):
    from vtx_scale.launch import jobs

    path = tmp_path / "my files" / "token"
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(path))
    assert jobs.show_token() == 0
    assert shlex.split(capsys.readouterr().out)[-1] == f"RAY_AUTH_TOKEN_PATH={path}"
    path.write_text("\n")
    with pytest.raises(UserError, match="token is empty: remove it"):
        jobs.show_token()


def test_a_supervisor_and_who_looks_on_wait_for_a_bucket(tmp_path, monkeypatch, capsys):
    """It is away for three looks; then the run turns out to have been stopped by somebody."""
    from vtx_scale.launch import follow, jobs

    attempts.claim(tmp_path, replace(attempt(1), code="code-1.zip"))
    attempts.write_end(tmp_path, 1, End(75, "", 40))
    attempts.ask_to_stop(tmp_path, 1)
    away = iter([True] * 3)
    real = attempts.end_of

    def end_of(folder, number):
        if next(away, False):
            raise OSError(5, "Input/output error")
        return real(folder, number)

    monkeypatch.setattr(attempts, "end_of", end_of)
    monkeypatch.setattr(jobs, "WATCH", 0.0)
    monkeypatch.setattr(jobs, "asked", lambda args, attempt: None)
    given = argparse.Namespace(address="")
    assert jobs.supervise(given, tmp_path, attempts.read(tmp_path, 1)) == 75
    said = capsys.readouterr().err
    assert said.count("does not answer") == 1 and "asked to leave: left, saved at step 40" in said
    away = iter([True] * 2)
    monkeypatch.setattr(follow, "POLL", 0.0)
    assert follow.follow(tmp_path, attempts.read(tmp_path, 1), None, print) == 75
    said = capsys.readouterr().err
    assert said.count("asking again") == 1
    assert f"has saved and left at step 40: 'vtx jobs resume {tmp_path}'" in said


def test_a_job_that_leaves_while_it_is_looked_at_was_asked(tmp_path, monkeypatch, capsys):
    """A dashboard may take seconds to answer, in which the run saves and leaves."""
    from vtx_scale.launch import jobs

    attempts.claim(tmp_path, attempt(1))
    real = jobs.look

    def look(folder, newest, cluster):
        attempts.write_end(folder, newest.number, End(75, "", 40))
        return real(folder, newest, cluster)

    monkeypatch.setattr(jobs, "look", look)
    monkeypatch.setattr(jobs, "if_there", lambda args, attempt: None)
    assert jobs.stop(argparse.Namespace(address=""), tmp_path, attempts.read(tmp_path, 1)) == 0
    assert f"{attempt(1).id} has ended with 75" in capsys.readouterr().err


def test_a_job_of_a_file_for_kubernetes_is_kubernetes_business(tmp_path):
    from vtx_scale.launch import jobs

    attempts.claim(tmp_path, replace(attempt(1), address="", code=""))
    with pytest.raises(UserError, match="kubectl"):
        jobs.asked(argparse.Namespace(address=""), attempts.read(tmp_path, 1))


def test_of_rays_message_the_cause_alone_is_said():
    from vtx_scale.launch import follow

    long = "exit code 137, last available logs (truncated to 20,000 chars):\nstep 1\nKilled\n)"
    found = follow.Look(attempt(1), "lost", attempts.Holder("silent"), None, "FAILED", long)
    assert found.sentence() == "lost without a word (exit code 137)"


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("submit", "clip_vit_b32", "--smoke", "--address", "http://h:1"), "give --run s3://"),
        (
            ("submit", "clip_vit_b32", "--smoke", "--address", "http://me:pass@h:1", "--run", "/r"),
            "a name or password in it",
        ),
        (
            (
                "submit",
                "clip_vit_b32",
                "--address",
                "http://h:1",
                "--run",
                "/no/such/run",
                "-smoke",
            ),
            "does not take '-smoke'",
        ),
        (
            ("submit", "clip_vit_b32", "--smoke", "--address", "http://h:1", "--run", "/no/such/r"),
            "/no/such is not there",
        ),
        (("submit", "clip_vit_b32", "--smoke", "--detach"), "--detach needs the dashboard's"),
        (("submit", "clip_vit_b32", "--smoke", "--patience=-1"), "--patience=-1"),
        (("jobs", "list"), "Of which cluster?"),
        (("jobs", "stop"), "needs a run folder"),
        (("jobs", "stpo", "/no/such"), "vtx jobs has no 'stpo'"),
        (("jobs", "logs", "-f", "/no/such", "/no/other"), "leave /no/other out"),
        (("jobs", "status", "/no/such"), "neither a run that was submitted"),
        (("jobs", "--address", "h:6379"), "--address=h:6379: give the dashboard's"),
        (("jobs", "--address", "http://[::1"), "--address: give the dashboard's"),
        (("jobs", "--address", "http://h:80b"), "--address: give the dashboard's"),
        (("jobs", "token", "/no/such"), "takes no run: leave /no/such out"),
        (("worker", "--run", "/no/such"), "is no run folder"),
    ],
)
def test_refusals(words, sentence):
    done = vtx(*words, env={"RAY_ADDRESS": "", "RAY_API_SERVER_ADDRESS": ""})
    assert done.returncode == 2 and sentence in done.stderr, done.stderr
    assert len(done.stderr.splitlines()) == 1 and "pass" not in done.stderr.replace("password", "")


def test_a_dry_run_says_what_would_be_done_and_does_nothing(tmp_path):
    words = ("submit", "clip_vit_b32", "--smoke", "--dry-run", "--run", tmp_path / "run")
    done = vtx(*words, "--address", "http://127.0.0.1:9")
    assert done.returncode == 0, done.stderr
    assert "would submit 'python -m vtx_scale worker --run" in done.stderr
    assert vtx(*words).returncode == 0 and not (tmp_path / "run").exists()
