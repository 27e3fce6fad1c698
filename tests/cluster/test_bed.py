"""Jobs on a cluster of machines that have a bucket alone in common: submitted from a place beside
it that has this package installed and no checkout, watched, stopped and gone on with.
"""

import re
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


def readme(cluster, run) -> list[str]:
    """The commands of README's "On a cluster", with this cluster's names and a smoke size."""
    text = (ROOT / "README.md").read_text().partition("## On a cluster")[2].split("```")[1]
    export, *rest = (line.partition("  #")[0].strip() for line in text.strip().splitlines())
    assert len(rest) <= 6 and export.startswith("export RAY_API_SERVER_ADDRESS=")
    changed = (
        ("clip_vit_l14 ", "clip_vit_b32 --smoke "),
        ("'s3://bucket/{00000..41454}.tar'", f"{cluster.url}/toy"),
        ("system.world=32", " ".join((*KEYS, f"steps={STEPS}"))),
    )
    for old, new in changed:
        assert "\n".join(rest).count(old) == 1, old
        rest = [line.replace(old, new) for line in rest]
    first = 'vtx() { python -m vtx_scale "$@"; }; '
    first += f"export RAY_API_SERVER_ADDRESS={cluster.bed.dashboard} RUN={run} COLUMNS=100"
    return [f"{first}; {line}" for line in rest]


def assert_as_documented(outputs: list[str], url: str) -> None:
    """Each line of docs/cluster.md's session stands in its command's output, in that order; numbers
    may be others.
    """
    text = (ROOT / "docs" / "cluster.md").read_text().partition("```console\n")[2]
    _, *parts = re.split(r"^\$ .*\n", text.partition("```")[0], flags=re.M)
    assert len(parts) == len(outputs)
    for part, output in zip(parts, outputs, strict=True):
        at = 0
        for line in part.replace("s3://bucket", url).splitlines():
            if line != "...":
                words = (re.sub(r"\d+", r"\\d+", re.escape(word)) for word in line.split())
                found = re.compile(" +".join(words)).search(output, at)
                assert found, (line, output)
                at = found.end()


def test_from_submission_to_report_a_machine_lost_between_them(cluster):
    """README's commands, in its order, and the bits of a run that nothing happened to."""
    run, more = f"{cluster.url}/clip", (f"steps={STEPS}",)
    submitted, supervise, watch, stop, resume, report = readme(cluster, run)
    env, bed = {"PYTHONPATH": f"{HOME}/site", **cluster.bed.store}, cluster.bed
    log, above = cluster.at / "submit.log", cluster.at / "supervise.log"
    attached = bed.nodes.start(LAPTOP, log, "bash", "-c", submitted, env=env)
    shown = {}

    def typed(command):
        done = bed.nodes.run(LAPTOP, "bash", "-c", command, env=env, timeout=200)
        shown[command] = done.stdout + done.stderr
        return done

    until(lambda: steps(run) > 3, 120, "the first steps")
    again = submit(cluster, "clip_vit_b32", run, "--detach", *more)
    assert again.returncode == 0 and "alive" in again.stderr, again.stderr
    supervisor = bed.nodes.start(LAPTOP, above, "bash", "-c", supervise, env=env)
    driver = [i for i in bed.workers if bed.nodes.processes(i, "vtx_scale worker --run")]
    (lost,) = set(bed.workers) - set(driver)
    bed.nodes.crash(lost)
    bed.nodes.up(lost)
    bed.start_worker(lost)
    until(lambda: "resumed at step" in log.read_text(), 120, "the machine's return")
    before = steps(run)
    until(lambda: steps(run) > before + 3, 60, "steps with it")
    assert typed(watch).returncode == 0
    stopped = typed(stop)
    assert stopped.returncode in (0, 75), (stopped.stdout, stopped.stderr)
    assert attached.wait(60) == 75 and supervisor.wait(60) == 75, log.read_text()
    at = newest(checkpoints_of(place_at(run)))["step"]
    assert 0 < at < STEPS
    assert f"has saved and left at step {at}: 'vtx jobs resume {run}'" in log.read_text()
    resumed = typed(resume)
    assert resumed.returncode == 0, resumed.stderr
    followed = cluster.vtx("jobs", "logs", "-f", run)
    assert followed.returncode == 0, followed.stderr
    assert f"resumed at step {at} of {STEPS}" in followed.stdout + followed.stderr
    assert typed(report).returncode == 0
    shown = {submitted: log.read_text(), supervise: above.read_text(), **shown}
    assert_as_documented(list(shown.values()), cluster.url)
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
