"""Jobs on a cluster of machines that have a bucket alone in common: submitted from a place beside
it that has this package installed and no checkout, watched, stopped and gone on with.
"""

import urllib.error
from types import SimpleNamespace

import pytest

from tests.cluster.bed import bed, filled, until
from tests.nodes import HOME, ROOT
from tests.require import need
from tests.runs import train_on_ranks
from vtx_scale.checkpoints.read import Tensors, newest
from vtx_scale.launch.paths import checkpoints_of
from vtx_scale.launch.places import place_at
from vtx_scale.trainer.lines import written

pytestmark = [pytest.mark.services, pytest.mark.slow, pytest.mark.timeout(900)]
LAPTOP = 3
KEYS = ("system.workers=0", "system.strategy=fsdp", "system.world=2", "checkpoint.every=10")
STEPS = 500


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """The cluster, `url` of its bucket, and `vtx` as one types it on the laptop."""
    need("nodes")
    need("s3")
    need("ray")
    at = tmp_path_factory.mktemp("bed")
    with bed(at / "bed", more=1) as up, pytest.MonkeyPatch.context() as patch:
        for name, value in up.server.environment().items():
            patch.setenv(name, value)
        url = filled(up.server, at)
        up.own(LAPTOP)
        up.nodes.put(LAPTOP, ROOT / "vtx_scale", f"{HOME}/site/vtx_scale")

        def typed(*words, timeout=200, **env):
            env = {"PYTHONPATH": f"{HOME}/site", **up.store, **env}
            words = ("python", "-m", "vtx_scale", *words)
            return up.nodes.run(LAPTOP, *words, env=env, timeout=timeout)

        yield SimpleNamespace(bed=up, url=url, toy=at / "toy", vtx=typed, at=at)


def submit(cluster, recipe, run, *keys, **env):
    shards = f"data.shards={cluster.url}/toy"
    words = ("submit", recipe, "--smoke", "--run", run, "--address", cluster.bed.dashboard)
    return cluster.vtx(*words, shards, *KEYS, *keys, **env)


def steps(run) -> int:
    return len(written(place_at(run) / "metrics.jsonl"))


def assert_same(run, folder):
    """Losses and every bit of the end."""
    rows = [written(at / "metrics.jsonl") for at in (place_at(run), folder)]
    found, wanted = ([(r["step"], r["loss"], r["grad_norm"]) for r in of] for of in rows)
    assert found == wanted
    found, wanted = (Tensors(s, newest(s)) for s in map(checkpoints_of, (place_at(run), folder)))
    assert set(found.keys()) == set(wanted.keys())
    assert all((found.tensor(k) == wanted.tensor(k)).all() for k in wanted.keys())


def test_without_the_token_nobody_is_let_in(cluster):
    for token, code in (("", 401), ("0" * 64, 403)):
        with pytest.raises(urllib.error.HTTPError) as refused:
            cluster.bed.ask("/api/jobs/", token=token)
        assert refused.value.code == code
    done = submit(cluster, "clip_vit_b32", f"{cluster.url}/no", "--detach", RAY_AUTH_TOKEN="0" * 64)
    assert done.returncode == 2, done.stderr
    assert "token" in done.stderr and "0" * 64 not in done.stderr
    assert not place_at(f"{cluster.url}/no/run.json").exists()


def test_a_job_from_a_place_beside_is_stopped_and_goes_on_to_the_same_bits(cluster):
    run, more = f"{cluster.url}/clip", (f"steps={STEPS}",)
    done = submit(cluster, "clip_vit_b32", run, "--detach", *more)
    assert done.returncode == 0, done.stderr
    until(lambda: steps(run) > 3, 120, "the first steps")
    again = submit(cluster, "clip_vit_b32", run, "--detach", *more)
    assert again.returncode == 0 and "alive" in again.stderr, again.stderr
    stopped = cluster.vtx("jobs", "stop", run)
    assert stopped.returncode in (0, 75), (stopped.stdout, stopped.stderr)
    until(lambda: newest(checkpoints_of(place_at(run))), 60, "the save")
    at = newest(checkpoints_of(place_at(run)))["step"]
    assert 0 < at < STEPS
    resumed = cluster.vtx("jobs", "resume", run)
    assert resumed.returncode == 0, resumed.stderr
    followed = cluster.vtx("jobs", "logs", "-f", run)
    assert followed.returncode == 0, followed.stderr
    assert f"resumed at step {at} of {STEPS}" in followed.stdout + followed.stderr
    train_on_ranks(cluster.at / "clip", 2, "fsdp", f"data.shards={cluster.toy}", *KEYS, *more)
    assert_same(run, cluster.at / "clip")


def test_another_objective_and_its_log_when_the_head_is_gone(cluster):
    run, more = f"{cluster.url}/dino", ("steps=8",)
    done = submit(cluster, "dino_vit_s16", run, *more)
    assert done.returncode == 0, done.stderr
    train_on_ranks(
        *(cluster.at / "dino", 2, "fsdp", f"data.shards={cluster.toy}", *KEYS, *more),
        recipe="dino_vit_s16",
    )
    assert_same(run, cluster.at / "dino")
    cluster.bed.nodes.crash(0)
    logs = cluster.vtx("jobs", "logs", run)
    assert logs.returncode == 0 and "finished at step 8" in logs.stdout, logs.stderr
    cluster.bed.nodes.up(0)
    cluster.bed.start_head()
