"""The fields of Kubernetes that our files use: their names, types, and which must be there.

A dict is an object: a name that ends in "!" must be there, and "*" stands for names of the user's
choice. A list is an array of what is in it.
"""

from typing import Any

LABELS = {"*": str}
METADATA = {"name!": str, "labels": LABELS}
SELECTOR = {"matchLabels!": LABELS}
FROM = {"secretKeyRef!": {"name!": str, "key!": str}}
PORT = {"port!": int, "protocol!": str}
PEER = {"podSelector": SELECTOR, "namespaceSelector": {}}
SIZES = {"cpu!": str, "memory": str, "nvidia.com/gpu": str}
CONTAINER = {
    "name!": str,
    "image!": str,
    "command": [str],
    "securityContext!": {"allowPrivilegeEscalation!": bool, "capabilities!": {"drop!": [str]}},
    "env": [{"name!": str, "value": str, "valueFrom": FROM}],
    "envFrom": [{"secretRef!": {"name!": str}}],
    "resources": {"limits!": SIZES, "requests!": SIZES},
    "ports": [{"containerPort!": int, "name!": str}],
    "volumeMounts": [{"name!": str, "mountPath!": str}],
}
POD = {
    "metadata!": {"labels!": LABELS},
    "spec!": {
        "automountServiceAccountToken!": bool,
        "terminationGracePeriodSeconds": int,
        "restartPolicy": str,
        "securityContext!": {
            "runAsNonRoot!": bool,
            "runAsUser!": int,
            "seccompProfile!": {"type!": str},
        },
        "containers!": [CONTAINER],
        "volumes": [{"name!": str, "emptyDir!": {"medium": str, "sizeLimit": str}}],
    },
}
RAY_CLUSTER = {
    "rayVersion!": str,
    "authOptions!": {"mode!": str, "secretName!": str},
    "gcsFaultToleranceOptions!": {"redisAddress!": str, "redisPassword!": {"valueFrom!": FROM}},
    "headGroupSpec!": {"rayStartParams!": {"*": str}, "template!": POD},
    "workerGroupSpecs!": [
        {
            "groupName!": str,
            "replicas!": int,
            "minReplicas!": int,
            "maxReplicas!": int,
            "rayStartParams!": {"*": str},
            "template!": POD,
        }
    ],
}
SPECS: dict[tuple[str, str], Any] = {
    ("ray.io/v1", "RayJob"): {
        "submissionMode!": str,
        "entrypoint!": str,
        "entrypointNumCpus!": int,
        "metadata!": LABELS,
        "runtimeEnvYAML!": str,
        "backoffLimit!": int,
        "submitterConfig!": {"backoffLimit!": int},
        "submitterPodTemplate!": POD,
        "preRunningDeadlineSeconds!": int,
        "shutdownAfterJobFinishes!": bool,
        "ttlSecondsAfterFinished!": int,
        "rayClusterSpec!": RAY_CLUSTER,
    },
    ("networking.k8s.io/v1", "NetworkPolicy"): {
        "podSelector!": SELECTOR,
        "policyTypes!": [str],
        "ingress!": [{"from!": [PEER], "ports": [PORT]}],
        "egress!": [{"to": [PEER], "ports": [PORT]}],
    },
    ("v1", "Service"): {"selector!": LABELS, "ports!": [{"port!": int, "targetPort!": int}]},
    ("apps/v1", "Deployment"): {"replicas!": int, "selector!": SELECTOR, "template!": POD},
}


def check(body: dict[str, Any]) -> None:
    """Raises ValueError for an object with an unknown field, one of another type, or without one
    that must be there.
    """
    spec = SPECS.get((body.get("apiVersion", ""), body.get("kind", "")))
    if spec is None:
        raise ValueError(f"no such object: {body.get('apiVersion')} {body.get('kind')}")
    table = {"apiVersion!": str, "kind!": str, "metadata!": METADATA, "spec!": spec}
    compare(body, table, body["kind"])


def compare(value: Any, table: Any, at: str) -> None:
    """As `check`, of a part. at: where it stands."""
    if isinstance(table, list):
        if not isinstance(value, list):
            raise ValueError(f"{at}: {value!r} is no list")
        for i, item in enumerate(value):
            compare(item, table[0], f"{at}[{i}]")
    elif not isinstance(table, dict):
        if type(value) is not table:
            raise ValueError(f"{at}: {value!r} is no {table.__name__}")
    elif not isinstance(value, dict):
        raise ValueError(f"{at}: {value!r} is no object")
    else:
        known = {name.removesuffix("!"): part for name, part in table.items()}
        for name, part in value.items():
            if name not in known and "*" not in known:
                raise ValueError(f"{at}: no field {name}")
            compare(part, known.get(name, known.get("*")), f"{at}.{name}")
        for name in table:
            if name.endswith("!") and name[:-1] not in value:
                raise ValueError(f"{at}: {name[:-1]} is missing")
