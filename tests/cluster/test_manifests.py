"""The files of `vtx submit --to`: what stands in them, and what never does."""

import copy
import os
import re
import secrets
import socket
import subprocess
from pathlib import Path

import jsonschema
import pytest
import yaml

from tests.cluster.bed import listens, until
from tests.nodes import ROOT
from tests.require import need
from tests.runs import vtx
from tests.s3 import free_ports
from vtx_scale.cluster.manifests.fields import check
from vtx_scale.launch import attempts
from vtx_scale.launch.places import place_at

RUN = "s3://bucket/runs/clip-b16"
SIZES = ("--nodes", "8", "--gpus-per-node", "8", "--cpus-per-node", "96")
KUBERAY = ("--to", "kuberay", "--dry-run", "--image", "registry.example/vtx:1.0", *SIZES)
PODS = ("--to", "kuberay", "--dry-run", "--image", "vtx:1.0", "--nodes", "2")
ALONE = ("-o", "--nodes", "--gpus-per-node", "--cpus-per-node", "--memory-per-node", "--grace")
ALONE += ("--image", "--secret")
PLANTED = {
    "AWS_ACCESS_KEY_ID": "AKIAPLANTED7EXAMPLE9",
    "AWS_SECRET_ACCESS_KEY": "planted/secret/of/s3+0123456789abcdefghij",
    "AWS_SESSION_TOKEN": "plantedsessiontoken0123456789",
    "RAY_AUTH_TOKEN": "plantedraytoken0123456789abcdef",
    "VTX_MASTER_ADDR": "planted.example",
}


def submit(*arguments: str, run: str = RUN) -> subprocess.CompletedProcess[str]:
    return vtx("submit", "clip_vit_b32", "--smoke", "--run", run, *arguments, env=PLANTED)


@pytest.fixture(scope="module")
def written() -> str:
    done = submit(*KUBERAY, "--memory-per-node", "900Gi", "--secret", "keys")
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return done.stdout


@pytest.fixture
def objects(written) -> dict[str, dict]:
    return {body["kind"]: body for body in yaml.safe_load_all(written)}


def test_every_object_has_known_fields_alone(objects):
    assert list(objects) == ["NetworkPolicy", "Service", "Deployment", "RayJob"]
    for body in objects.values():
        check(body)


def test_the_head_does_no_work_and_the_driver_is_not_on_it(objects):
    spec = objects["RayJob"]["spec"]
    assert spec["entrypoint"] == f"vtx worker --run {RUN}"
    assert spec["entrypointNumCpus"] == 1
    cluster = spec["rayClusterSpec"]
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    assert cluster["authOptions"] == {"mode": "token", "secretName": "vtx-clip-b16-token"}
    assert cluster["gcsFaultToleranceOptions"]["redisAddress"] == "vtx-clip-b16-redis:6379"
    assert objects["Service"]["metadata"]["name"] == "vtx-clip-b16-redis"
    ranks = cluster["workerGroupSpecs"][0]
    assert (ranks["minReplicas"], ranks["replicas"], ranks["maxReplicas"]) == (8, 8, 8)
    assert ranks["template"]["spec"]["terminationGracePeriodSeconds"] == 120
    (container,) = ranks["template"]["spec"]["containers"]
    assert container["resources"]["limits"] == {
        "cpu": "96",
        "memory": "900Gi",
        "nvidia.com/gpu": "8",
    }
    assert container["volumeMounts"] == [{"name": "shm", "mountPath": "/dev/shm"}]
    assert container["envFrom"] == [{"secretRef": {"name": "keys"}}]


def pods(value) -> list[dict]:
    """Every pod's spec in an object."""
    if isinstance(value, list):
        return [pod for part in value for pod in pods(part)]
    if not isinstance(value, dict):
        return []
    return [value] if "containers" in value else pods(list(value.values()))


def test_no_pod_has_rights_or_probes_of_ours_and_the_policy_knows_each(objects):
    found = pods(list(objects.values()))
    assert len(found) == 4  # head, ranks, what submits, Redis
    for pod in found:
        assert pod["automountServiceAccountToken"] is False
        assert pod["securityContext"]["runAsNonRoot"] is True
        for container in pod["containers"]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "capabilities": {"drop": ["ALL"]},
            }
            assert not [name for name in container if name.endswith("Probe")]
    chosen = objects["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"]
    assert str(objects).count(str(chosen)[1:-1]) >= 6, "labels of the four pods, and of the policy"


def test_slurm_warns_every_task_and_not_the_batch_shell(tmp_path):
    """srun takes SIGTERM for an abort, and with "B:" nobody but the batch shell would hear."""
    file = tmp_path / "job.sh"
    done = submit("--to", "slurm", "--nodes", "2", "data.caption=it's $(x)", "-o", str(file))
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    assert done.stderr == f"wrote {file}: sbatch {file}\n"
    script = file.read_text()
    assert "\nexport SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK\n" in script
    assert "#SBATCH --signal=USR1@120\n" in script and "#SBATCH --requeue\n" in script
    assert "srun --kill-on-bad-exit=0 " in script
    body = script.replace("srun --kill-on-bad-exit=0 --wait=0 bash", "command bash")
    (tmp_path / "vtx").write_text('#!/bin/bash\nprintf "%s|" $RANK $WORLD_SIZE "$@"\n')
    (tmp_path / "vtx").chmod(0o755)
    slurm = {"SLURM_PROCID": "1", "SLURM_NTASKS": "2", "SLURM_LOCALID": "0", "SLURM_NODEID": "1"}
    slurm |= {"SLURM_NNODES": "2", "SLURM_JOB_NODELIST": "s[1-2]", "SLURM_JOB_ID": "7"}
    path = f"{tmp_path}:{os.environ['PATH']}"
    run = subprocess.run(
        ["bash", "-c", f"scontrol() {{ echo s1; }}\n{body}"],
        text=True,
        capture_output=True,
        env={**os.environ, **slurm, "PATH": path},
    )
    words = f"1|2|train|clip_vit_b32|--smoke|--run|{RUN}|data.caption=it's $(x)|"
    assert (run.returncode, run.stdout) == (0, words), run.stderr


@pytest.mark.parametrize("scheduler", ["kuberay", "slurm", "slurm --ray"])
def test_nothing_of_the_environment_is_written(scheduler):
    done = submit(*KUBERAY, *("--to " + scheduler).split())
    assert done.returncode == 0, done.stderr
    for planted in PLANTED.values():
        assert planted not in done.stdout + done.stderr
    assert "planted" not in done.stdout
    assert os.environ["HOME"] == "/" or os.environ["HOME"] not in done.stdout


@pytest.mark.parametrize(
    ("wrong", "word"),
    [
        (("--to", "kuberay"), "--image"),
        ((*KUBERAY, "--memory-per-node", "900GB"), "--memory-per-node"),
        ((*KUBERAY, "--nodes", "0"), "--nodes 0"),
        ((*KUBERAY, "system.world=48"), "system.world=48 is not 8 nodes with 8 ranks"),
        (("--to", "slurm", "--nodes", "2", "system.world=3"), "system.world=3"),
        ((*PODS, "--cpus-per-node", "2", "system.world=4"), "give 3 or more"),
        (("--to", "slurm", "--cpus-per-node", "1", "system.world=2"), "give 2 or more"),
        *(
            ((*KUBERAY, "--secret", name), f"--secret {name}")
            for name in ("Keys", "k_s", "a.", ".a")
        ),
        *(((option, "2"), f"{option} is of --to slurm|kuberay") for option in ALONE),
        (("--ray",), "--ray is of --to"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_does_not_fit_is_refused(wrong, word):
    done = submit(*wrong)
    assert (done.returncode, done.stdout) == (2, "")
    assert len(done.stderr.splitlines()) == 1 and word in done.stderr, done.stderr


@pytest.mark.parametrize("to", ["slurm", "kuberay"])
def test_a_dry_run_prints_and_writes_nothing(to, tmp_path):
    file = tmp_path / "file"
    done = submit(*KUBERAY, "--to", to, "-o", str(file))
    assert (done.returncode, done.stderr, file.exists()) == (0, "", False)
    assert done.stdout == submit(*KUBERAY, "--to", to).stdout != ""


def test_a_pod_may_have_a_cpu_for_each_rank_and_the_driver():
    done = submit(*PODS, "--cpus-per-node", "3", "--secret", "a.b-1", "system.world=4")
    assert done.returncode == 0, done.stderr


def test_a_run_folder_of_this_machine_is_one_that_every_node_must_see(tmp_path):
    """Also where nobody named one."""
    file = tmp_path / "a job.sh"
    words = ("submit", "clip_vit_b32", "--smoke", "--to", "slurm", "-o", file)
    done = vtx(*words, cwd=tmp_path)
    folder = tmp_path / "runs" / "clip_vit_b32-smoke"
    assert done.returncode == 0
    assert done.stderr == f"wrote {file}: sbatch '{file}', where every node sees {folder}\n"
    assert f"# Every node must see the run folder, '{folder}'.\n#SBATCH" in file.read_text()
    assert "Every node" not in submit("--to", "slurm").stdout


def in_an_allocation(script: str, at: Path, path: str) -> subprocess.CompletedProcess[str]:
    """The batch shell of a job of one node whose srun starts nothing."""
    slurm = {"SLURM_JOB_NODELIST": "s1", "SLURM_JOB_ID": "7", "SLURM_CPUS_PER_TASK": "1"}
    slurm |= {"VTX_MASTER_ADDR": "127.0.0.1", "VTX_HEAD_WAIT": "1", "TMPDIR": str(at)}
    return subprocess.run(
        ["/bin/bash", "-c", f"scontrol() {{ echo s1; }}; srun() {{ :; }}\n{script}"],
        text=True,
        capture_output=True,
        env={**os.environ, **slurm, "PATH": path},
        timeout=60,
    )


def test_a_head_that_does_not_start_ends_the_job_with_why(tmp_path):
    """What Ray says last is kept, and what the log of its server says where there is one."""
    script = submit("--to", "slurm", "--ray").stdout
    bare = in_an_allocation(script, tmp_path, "/usr/bin:/bin")
    assert (bare.returncode, bare.stdout) == (1, "")
    assert bare.stderr == ("vtx: no ray on PATH here: give sbatch in the environment that has it\n")
    ray = tmp_path / "ray"
    ray.write_text("#!/bin/sh\necho out; echo first >&2; echo Timed out >&2; exit 1\n")
    ray.chmod(0o755)
    ended = in_an_allocation(script, tmp_path, f"{tmp_path}:/usr/bin:/bin")
    assert (ended.returncode, ended.stdout) == (1, "")
    assert ended.stderr == "vtx: no head of Ray answers at 127.0.0.1:20007 after 1 s: Timed out\n"
    ray.write_text(
        '#!/bin/sh\nat=$(echo "$TMPDIR"/vtx-ray-*)/session_latest/logs\nmkdir -p "$at"\n'
        'echo "Address already in use" > "$at/gcs_server.err"; exit 1\n'
    )
    ended = in_an_allocation(script, tmp_path, f"{tmp_path}:/usr/bin:/bin")
    assert ended.returncode == 1 and ended.stderr.endswith("1 s: Address already in use\n")
    assert list(tmp_path.iterdir()) == [ray], "the folder of the head is left"


def test_pods_have_no_folder_in_common(tmp_path):
    done = submit(*KUBERAY, run=str(tmp_path / "run"))
    assert done.returncode == 2 and "s3://" in done.stderr


@pytest.mark.services
def test_the_recipe_goes_into_the_run_folder_and_a_second_one_is_the_next(s3_bucket, monkeypatch):
    """What `vtx worker` finds there on the pod; who is no longer the newest attempt says so."""
    server, bucket = s3_bucket
    for name, value in server.environment().items():
        monkeypatch.setenv(name, value)
    uri = f"s3://{bucket}/runs/manifest-{secrets.token_hex(4)}"
    arguments = [word for word in KUBERAY if word != "--dry-run"]
    texts = []
    for number in (1, 2):
        done = vtx("submit", "clip_vit_b32", "--smoke", "--run", uri, *arguments, "steps=7")
        assert done.returncode == 0, done.stderr
        texts.append(done.stdout)
        job = [body for body in yaml.safe_load_all(done.stdout) if body["kind"] == "RayJob"][0]
        assert job["spec"]["metadata"] == {"vtx_run": uri, "vtx_attempt": str(number)}
        there = attempts.newest(place_at(uri))
        assert there is not None and there.number == number and there.recipe["steps"] == 7
    assert texts[0].replace("vtx_attempt: '1'", "vtx_attempt: '2'") == texts[1]
    for secret in server.environment().values():
        assert secret not in texts[0] or secret in ("true", "us-east-1"), "of the environment"


def changes() -> dict[str, tuple[list, object, str]]:
    """name -> (where in the RayJob, what stands there instead, what is said)."""
    group = ["spec", "rayClusterSpec", "workerGroupSpecs", 0]
    return {
        "misspelt": ([*group, "minReplica"], 1, "no field minReplica"),
        "missing": ([*group, "maxReplicas"], None, "maxReplicas is missing"),
        "number as text": ([*group, "replicas"], "8", "'8' is no int"),
        "truth as number": (["spec", "shutdownAfterJobFinishes"], 1, "1 is no bool"),
        "object as list": (["spec", "submitterConfig"], [], "is no object"),
        "list as object": ([*group, "template", "spec", "containers"], {}, "is no list"),
        "kind": (["kind"], "RayJobs", "no such object"),
    }


@pytest.mark.parametrize("name", list(changes()))
def test_the_table_refuses_what_it_does_not_know(objects, name):
    where, value, word = changes()[name]
    body = copy.deepcopy(objects["RayJob"])
    part = body
    for step in where[:-1]:
        part = part[step]
    if value is None:
        del part[where[-1]]
    else:
        part[where[-1]] = value
    with pytest.raises(ValueError, match=word):
        check(body)


def closed(schema):
    """A schema of a CRD that refuses what it does not name."""
    if isinstance(schema, list):
        return [closed(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    if schema.get("x-kubernetes-int-or-string"):
        return {"anyOf": [{"type": "integer"}, {"type": "string"}]}
    out = {name: closed(part) for name, part in schema.items()}
    if "properties" in schema and not schema.get("x-kubernetes-preserve-unknown-fields"):
        out.setdefault("additionalProperties", False)
    return out


@pytest.mark.full
def test_the_crd_takes_the_job(objects):
    """KUBERAY_CRD=ray.io_rayjobs.yaml of the KubeRay that is used."""
    if not (file := os.environ.get("KUBERAY_CRD")):
        pytest.skip("KUBERAY_CRD names no file")
    crd = yaml.load(Path(file).read_text(), getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    (version,) = (v for v in crd["spec"]["versions"] if v["name"] == "v1")
    schema = closed(version["schema"]["openAPIV3Schema"])
    schema["properties"]["metadata"] = {"type": "object"}
    body = objects["RayJob"]
    jsonschema.validate(body, schema)
    for name, wrong in (("minReplica", 1), ("replicas", "8")):
        other = copy.deepcopy(body)
        other["spec"]["rayClusterSpec"]["workerGroupSpecs"][0][name] = wrong
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(other, schema)


def head_recipe() -> tuple[str, str]:
    """The blocks of docs/cluster.md that start a Redis, and the head whose state it keeps."""
    blocks = (ROOT / "docs" / "cluster.md").read_text().split("```bash\n")
    (store,) = (block for block in blocks if "redis-server redis.conf" in block)
    (head,) = (block for block in blocks if "RAY_REDIS_ADDRESS=" in block)
    return store.partition("```")[0], head.partition("```")[0]


def test_the_documented_redis_has_a_port_that_rays_head_leaves_free():
    """Ray binds its own on every address: on the head's loopback that is the same port."""
    store, head = head_recipe()
    (kept,) = re.findall(r"^port (\d+)$", store, flags=re.M)
    (bound,) = re.findall(r"^bind (\S+)$", store, flags=re.M)
    assert f"RAY_REDIS_ADDRESS={bound}:{kept} " in head
    assert re.findall(r" --port=(\d+)", head) != [kept]


@pytest.mark.services
def test_the_documented_redis_starts_and_wants_the_password(tmp_path):
    need("redis")
    (port,) = free_ports(1)
    script = head_recipe()[0].replace("port 6380", f"port {port}")
    words = f"{script}\ntrap 'kill $!' EXIT\nread -r _"
    with subprocess.Popen(["bash", "-c", words], cwd=tmp_path, stdin=subprocess.PIPE) as running:
        try:
            until(lambda: listens("127.0.0.1", port), 20, "Redis")
            password = (tmp_path / "redis-password").read_text().strip()
            assert (tmp_path / "redis.conf").stat().st_mode & 0o077 == 0
            for line, answer in (("PING", b"-NOAUTH"), (f"AUTH {password}", b"+OK")):
                with socket.create_connection(("127.0.0.1", port)) as asked:
                    asked.sendall(f"{line}\r\n".encode())
                    assert asked.recv(100).startswith(answer)
        finally:
            running.stdin.close()
