"""A Ray cluster on the machines of tests/nodes.py, with a store as the one thing in common.

n0 is the head and has no room for work, n1, n2, ... are the workers: each raylet stands in a loop
that starts it again, as a partition that heals ends it.
"""

import contextlib
import json
import os
import secrets
import socket
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.nodes import HOME, Nodes, nodes
from tests.runs import vtx
from tests.s3 import Proxy, Server, proxied, seaweed
from vtx_scale.data_pipeline.tools.toy import make_toy

TOKEN = f"{HOME}/.config/vtx-scale/ray-token"
# how soon a head gives a node up: a second's silence is seen, five end it
HEALTH = {
    "RAY_health_check_initial_delay_ms": "3000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "2000",
    "RAY_health_check_failure_threshold": "3",
}
RECONNECT = {"RAY_gcs_rpc_server_reconnect_timeout_s": "120"}
MEMORY = ("--object-store-memory=80000000", "--memory=2000000000")


def until(holds: Callable[[], object], seconds: float, what: str, every: float = 0.2) -> float:
    """Wait for it; how long that took, in seconds."""
    begun = time.monotonic()
    while not holds():
        assert time.monotonic() < begun + seconds, f"not within {seconds:.0f} s: {what}"
        time.sleep(every)
    return time.monotonic() - begun


def filled(server: Server, folder: Path, samples: int = 256) -> str:
    """A new bucket with toy shards in toy/, indexed; s3://BUCKET."""
    from vtx_scale.cluster.storage.s3 import S3

    bucket, toy = server.bucket(), make_toy(folder / "toy", samples=samples, shards=4)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in server.environment().items():
            patch.setenv(name, value)
        for path in sorted(toy.glob("*.tar")):
            S3(bucket, "toy").put(path.name, path.read_bytes())
        done = vtx("data", "index", f"s3://{bucket}/toy")
    assert done.returncode == 0, done.stderr
    return f"s3://{bucket}"


class Bed:
    """Ray on machines. nodes: the machines, of which `workers` take work; store: an S3 server on
    their network, and proxy what makes its faults; logs: a folder of the host's.
    """

    def __init__(
        self, machines: Nodes, workers: tuple[int, ...], server: Server, proxy: Proxy, logs: Path
    ) -> None:
        self.nodes, self.workers, self.logs = machines, workers, logs
        self.server, self.proxy = server, proxy
        self.token, self.redis = secrets.token_hex(32), secrets.token_hex(16)
        self.store = server.environment(proxy.port)
        self.ray = {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": TOKEN,
            "RAY_USAGE_STATS_ENABLED": "0",
            **HEALTH,
            **RECONNECT,
        }
        self.keeper: dict[str, str] = {}  # where the head keeps its state
        self.given: dict[str, str] = {}  # to the workers' environment

    @property
    def head(self) -> str:
        """Where the cluster is joined."""
        return f"{self.nodes.address(0)}:6379"

    @property
    def dashboard(self) -> str:
        """Where jobs are submitted."""
        return f"http://{self.nodes.address(0)}:8265"

    def own(self, i: int) -> None:
        """Put the token into a machine's home, for its owner alone."""
        words = f"umask 077; mkdir -p {os.path.dirname(TOKEN)}; printf %s {self.token} > {TOKEN}"
        assert self.nodes.run(i, "sh", "-c", words).returncode == 0

    def with_redis(self, i: int) -> None:
        """The head keeps its state in a Redis on machine `i`, which its crash leaves alone."""
        address = self.nodes.address(i)
        self.nodes.start(
            i,
            self.logs / "redis.log",
            *("redis-server", "--bind", address, "--port", "6380", "--save", "", "--dir", HOME),
            *("--requirepass", self.redis),
        )
        self.keeper = {
            "RAY_REDIS_ADDRESS": f"{address}:6380",
            "RAY_external_storage_namespace": "bed",
        }
        until(lambda: listens(address, 6380), 20, "Redis")

    def start_head(self) -> None:
        """The head's Ray, in a loop, on a machine that has just booted."""
        self.own(0)
        address = self.nodes.address(0)
        start = (
            "ray start --head --port=6379 --num-cpus=0 --block"
            f" --node-ip-address={address} --dashboard-host={address} {' '.join(MEMORY)}"
        )
        if self.keeper:
            start += f" --redis-password={self.redis}"
        self.nodes.start(
            0,
            self.logs / "n0.log",
            *("sh", "-c", f"while :; do {start}; sleep 2; done"),
            env={**self.ray, **self.store, **self.keeper},
        )

    def start_worker(self, i: int) -> None:
        """A worker's Ray, in a loop, on a machine that has just booted."""
        self.own(i)
        start = (
            f"ray start --address={self.head} --node-ip-address={self.nodes.address(i)}"
            f" --num-cpus=1 --block {' '.join(MEMORY)}"
        )
        self.nodes.start(
            i,
            self.logs / f"n{i}.log",
            *("sh", "-c", f"while :; do {start}; sleep 2; done"),
            env={
                **self.ray,
                **self.store,
                **self.given,
                "RAY_NODE_IP": self.nodes.address(i),
            },
        )

    def alive(self) -> set[str]:
        """Addresses of the machines that the head counts in; empty where it does not answer."""
        with contextlib.suppress(OSError, ValueError, KeyError):
            rows = self.ask("/api/v0/nodes?limit=100")["data"]["result"]["result"]
            return {row["node_ip"] for row in rows if row["state"] == "ALIVE"}
        return set()

    def ask(self, path: str, token: str | None = None) -> dict:
        """What the dashboard answers to a GET, with the token of the cluster, another, or none."""
        sent = urllib.request.Request(self.dashboard + path)
        if token != "":
            sent.add_header("Authorization", f"Bearer {token or self.token}")
        with urllib.request.urlopen(sent, timeout=5) as answer:
            return json.load(answer)

    def ready(self, *workers: int, seconds: float = 120) -> float:
        """Wait until the head and these workers, or all, are in the cluster."""
        wanted = {self.nodes.address(i) for i in (0, *(workers or self.workers))}
        return until(lambda: wanted <= self.alive(), seconds, f"{wanted} in {self.alive()}", 0.5)


def listens(address: str, port: int) -> bool:
    """Whether somebody takes connections there."""
    with contextlib.suppress(OSError), socket.create_connection((address, port), 1):
        return True
    return False


@contextlib.contextmanager
def bed(
    folder: Path, workers: int = 2, more: int = 0, redis: bool = False, **given: str
) -> Iterator[Bed]:
    """A cluster that is up, and a store with its data in `folder`. more: machines that stand beside
    it; redis: the head's state outlives it, on the last machine. None of them has a checkout.
    given: to the workers' environment.
    """
    logs = folder / "logs"
    logs.mkdir(parents=True)
    (folder / "store").mkdir()
    with contextlib.ExitStack() as held:
        machines = held.enter_context(nodes(1 + workers + more + redis, checkout=False))
        server = held.enter_context(seaweed(folder / "store", machines.host))
        proxy = held.enter_context(proxied(server))
        made = Bed(machines, tuple(range(1, 1 + workers)), server, proxy, logs)
        made.given = given
        if redis:
            made.with_redis(machines.count - 1)
        made.start_head()
        until(lambda: listens(machines.address(0), 6379), 60, "the head's Ray")
        for i in made.workers:
            made.start_worker(i)
        made.ready()
        yield made
