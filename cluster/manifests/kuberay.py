"""What a run needs on Kubernetes with KubeRay: a RayJob, the Redis that its head keeps its state
in, and who may speak to whom.

KubeRay (1.7) adds probes, the token's variables and the pod that submits; nothing of these is
written here. The head does no work and the driver stands on a worker, so that a head that dies
costs no step.
"""

import json
import re
import shlex
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import yaml

from vtx_scale.cluster.manifests.fields import check
from vtx_scale.cluster.ray_settings import OWN
from vtx_scale.data_pipeline.errors import UserError

Value = dict[str, Any]
REDIS = "redis:7.4"
RECONNECT = "120"  # seconds that nodes wait for a head that is away
MEMORY = re.compile(r"[0-9]+(Mi|Gi|Ti)")
LABEL = r"[a-z0-9]([a-z0-9-]*[a-z0-9])?"
NAME = re.compile(rf"{LABEL}(\.{LABEL})*")  # RFC 1123, as Kubernetes asks of an object's name
PORTS = {"gcs": 6379, "dashboard": 8265}
# redis-server reads its configuration here, so that no command line has the password
START_REDIS = (
    "printf 'requirepass %s\\nappendonly yes\\ndir /data\\n' \"$REDIS_PASSWORD\""
    " | exec redis-server -"
)
HEAD = {"cpu": "2", "memory": "4Gi"}


@dataclass(frozen=True)
class Cluster:
    """An attempt at the run at `uri`, where its recipe stands, on `nodes` pods with `cpus`
    processors and `gpus` GPUs each.

    least: pods with which it goes on. memory: of a pod, such as 900Gi; "" leaves it out. grace:
    seconds that a pod has for its last save. secret: the name of a Secret whose keys ranks find in
    their environment, or "".
    """

    name: str
    uri: str
    attempt: int
    image: str
    nodes: int
    least: int
    cpus: int
    gpus: int
    memory: str
    grace: int
    threads: int
    secret: str


def kuberay(cluster: Cluster) -> str:
    """The file. Raises UserError where a value is none that Kubernetes takes."""
    if not cluster.image or shlex.quote(cluster.image) != cluster.image:
        raise UserError("--image: give an image that holds vtx-scale and its Ray.")
    if cluster.memory and not MEMORY.fullmatch(cluster.memory):
        raise UserError(f"--memory-per-node {cluster.memory}: give a size such as 900Gi.")
    if cluster.secret and (len(cluster.secret) > 253 or not NAME.fullmatch(cluster.secret)):
        raise UserError(
            f"--secret {cluster.secret}: give the name of a Secret: small letters, digits, '-' "
            "and '.', of which the last two neither begin nor end it."
        )
    if shlex.quote(cluster.uri) != cluster.uri:  # a shell reads the entrypoint
        raise UserError(f"--run {cluster.uri}: give a name of letters, digits, '-', '.' and '/'.")
    objects = [network(cluster), *redis(cluster), job(cluster)]
    for body in objects:
        check(body)
    apart = json.loads(json.dumps(objects))  # YAML would name what stands in several places
    text: str = yaml.safe_dump_all(apart, sort_keys=False, width=100)
    return about(cluster) + text


def about(cluster: Cluster) -> str:
    """What stands above the objects."""
    secret = f"kubectl create secret generic {token_of(cluster)}"
    return (
        "# Written by vtx submit --to kuberay. First, once, with two files of one random line each"
        "\n# (openssl rand -hex 32), which hold a token and the password of Redis:\n"
        f"#   {secret} --from-file=auth_token=TOKEN --from-file=redis_password=PASSWORD\n"
        "# then kubectl apply -f FILE. Where the bucket is not on port 443, add its port to egress."
        "\n"
    )


def job(cluster: Cluster) -> Value:
    """The RayJob: one run, resumed from its folder in a new cluster where the old one is lost."""
    pod = {"metadata": {"labels": labels(cluster)}}
    head = container(cluster, HEAD) | {
        "ports": [{"containerPort": port, "name": name} for name, port in PORTS.items()]
    }
    driver = {"name": "submitter", "image": cluster.image, "securityContext": NO_PRIVILEGES}
    start = {"num-cpus": "0", "dashboard-host": "0.0.0.0"}
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayJob",
        "metadata": {"name": cluster.name, "labels": labels(cluster)},
        "spec": {
            "submissionMode": "K8sJobMode",
            "entrypoint": f"vtx worker --run {cluster.uri}",
            "entrypointNumCpus": 1,
            "metadata": {"vtx_run": cluster.uri, "vtx_attempt": str(cluster.attempt)},
            "runtimeEnvYAML": f'env_vars: {{RAY_JOB_STOP_WAIT_TIME_S: "{cluster.grace}"}}',
            "backoffLimit": 3,
            "submitterConfig": {"backoffLimit": 6},
            "submitterPodTemplate": {**pod, "spec": bare([driver]) | {"restartPolicy": "Never"}},
            "preRunningDeadlineSeconds": 3600,
            "shutdownAfterJobFinishes": True,
            "ttlSecondsAfterFinished": 600,
            "rayClusterSpec": {
                "rayVersion": version("ray"),
                "authOptions": {"mode": "token", "secretName": token_of(cluster)},
                "gcsFaultToleranceOptions": {
                    "redisAddress": f"{cluster.name}-redis:6379",
                    "redisPassword": {"valueFrom": password(cluster)},
                },
                "headGroupSpec": {
                    "rayStartParams": start,
                    "template": {**pod, "spec": bare([head])},
                },
                "workerGroupSpecs": [workers(cluster, pod)],
            },
        },
    }


def workers(cluster: Cluster, pod: Value) -> Value:
    """The pods in which the ranks are."""
    sizes = {"cpu": str(cluster.cpus)}
    sizes |= {"memory": cluster.memory} if cluster.memory else {}
    sizes |= {"nvidia.com/gpu": str(cluster.gpus)} if cluster.gpus else {}
    shared: Value = {"medium": "Memory"}
    shared |= {"sizeLimit": cluster.memory} if cluster.memory else {}
    ranks = container(cluster, sizes) | {"volumeMounts": [{"name": "shm", "mountPath": "/dev/shm"}]}
    if cluster.secret:
        ranks["envFrom"] = [{"secretRef": {"name": cluster.secret}}]
    spec = bare([ranks]) | {
        "terminationGracePeriodSeconds": cluster.grace,
        "volumes": [{"name": "shm", "emptyDir": shared}],
    }
    return {
        "groupName": "ranks",
        "replicas": cluster.nodes,
        "minReplicas": cluster.least,
        "maxReplicas": cluster.nodes,
        "rayStartParams": {},
        "template": {**pod, "spec": spec},
    }


NO_PRIVILEGES = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}


def container(cluster: Cluster, sizes: Value) -> Value:
    """A container of Ray. sizes: what it asks for, which is what it may use."""
    env = {k: v for k, v in OWN.items() if k.startswith("RAY_health_check")}
    env |= {"RAY_gcs_rpc_server_reconnect_timeout_s": RECONNECT}
    env |= {"OMP_NUM_THREADS": str(cluster.threads)}
    return {
        "name": "ray",
        "image": cluster.image,
        "securityContext": NO_PRIVILEGES,
        "env": [{"name": name, "value": value} for name, value in env.items()],
        "resources": {"limits": sizes, "requests": dict(sizes)},
    }


def bare(containers: list[Value], user: int = 1000) -> Value:
    """A pod without rights."""
    return {
        "automountServiceAccountToken": False,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": user,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": containers,
    }


def redis(cluster: Cluster) -> list[Value]:
    """Where the head keeps its state: a Deployment of one pod, and its name."""
    name, mine = f"{cluster.name}-redis", {**labels(cluster), "part": "redis"}
    server = {
        "name": "redis",
        "image": REDIS,
        "command": ["sh", "-c", START_REDIS],
        "securityContext": NO_PRIVILEGES,
        "env": [{"name": "REDIS_PASSWORD", "valueFrom": password(cluster)}],
        "ports": [{"containerPort": 6379, "name": "redis"}],
        "volumeMounts": [{"name": "data", "mountPath": "/data"}],
    }
    spec = bare([server], user=999) | {"volumes": [{"name": "data", "emptyDir": {}}]}
    return [
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": name, "labels": mine},
            "spec": {"selector": mine, "ports": [{"port": 6379, "targetPort": 6379}]},
        },
        {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": {"name": name, "labels": mine},
            "spec": {
                "replicas": 1,
                "selector": {"matchLabels": mine},
                "template": {"metadata": {"labels": mine}, "spec": spec},
            },
        },
    ]


def network(cluster: Cluster) -> Value:
    """Pods of the run speak to each other, to the bucket and to nobody else; the operator asks the
    dashboard.
    """
    ours = {"podSelector": {"matchLabels": labels(cluster)}}
    operator = {
        "namespaceSelector": {},
        "podSelector": {"matchLabels": {"app.kubernetes.io/name": "kuberay-operator"}},
    }
    names = [{"port": 53, "protocol": "UDP"}, {"port": 53, "protocol": "TCP"}]
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": cluster.name, "labels": labels(cluster)},
        "spec": {
            **ours,
            "policyTypes": ["Ingress", "Egress"],
            "ingress": [
                {"from": [ours]},
                {"from": [operator], "ports": [{"port": PORTS["dashboard"], "protocol": "TCP"}]},
            ],
            "egress": [
                {"to": [ours]},
                {"ports": [*names, {"port": 443, "protocol": "TCP"}]},
            ],
        },
    }


def labels(cluster: Cluster) -> dict[str, str]:
    """By which the pods of this run are known."""
    return {"app": cluster.name}


def token_of(cluster: Cluster) -> str:
    """The name of the Secret with the token of Ray and the password of Redis."""
    return f"{cluster.name}-token"


def password(cluster: Cluster) -> Value:
    """Where the password of Redis is."""
    return {"secretKeyRef": {"name": token_of(cluster), "key": "redis_password"}}
