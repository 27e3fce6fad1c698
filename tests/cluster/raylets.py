"""A Ray cluster of several raylets on this machine, on the loopback, with a token and a folder of
its own: `with raylets() as cluster`. All of it has ended when the block has.

Run as a program it is that cluster: a command a line on its standard input, an answer a line.
"""

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator

from tests.runs import environment
from vtx_scale.cluster.ray_settings import settings


class Raylets:
    """What a test does to the cluster; machines by their names."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        about = self.answer()
        self.address, self.environment = about["address"], about["environment"]

    def answer(self) -> dict:
        line = self.process.stdout.readline()
        assert line, "the cluster has ended"
        return json.loads(line)

    def do(self, *words: object) -> dict:
        self.process.stdin.write(json.dumps(words) + "\n")
        self.process.stdin.flush()
        return self.answer()

    def add(self, name: str, cpus: int) -> None:
        """A machine that joins."""
        self.do("add", name, cpus)

    def remove(self, name: str) -> None:
        """A machine that dies, with all that it ran."""
        self.do("remove", name)

    def drain(self, name: str, seconds: float) -> None:
        """Notice that a machine is taken away after so many seconds."""
        self.do("drain", name, seconds)


@contextlib.contextmanager
def raylets(*machines: tuple[str, int]) -> Iterator[Raylets]:
    """machines: name and CPUs of each, beside a head without any."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.cluster.raylets"],
        env=environment(),
        text=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        cluster = Raylets(process)
        for name, cpus in machines:
            cluster.add(name, cpus)
        yield cluster
    finally:
        process.stdin.close()
        process.wait(60)


def main() -> None:
    answers, sys.stdout = sys.stdout, sys.stderr

    def answer(**about: object) -> None:
        answers.write(json.dumps(about) + "\n")
        answers.flush()

    with settings("local") as home:
        from ray._private import utils
        from ray.cluster_utils import Cluster

        utils.write_ray_address = lambda *_: None  # what "auto" finds is everybody's
        cluster = Cluster(
            initialize_head=True,
            shutdown_at_exit=False,
            head_node_args={
                "num_cpus": 0,
                "include_dashboard": False,
                "temp_dir": str(home),
                "node_name": "head",
                "object_store_memory": 80_000_000,
            },
        )
        given = ("RAY_", "GLOO_")
        answer(
            address=cluster.address,
            environment={k: v for k, v in os.environ.items() if k.startswith(given)},
        )
        machines = {}
        try:
            for line in sys.stdin:
                what, name, *about = json.loads(line)
                if what == "add":
                    machines[name] = cluster.add_node(
                        num_cpus=about[0], node_name=name, object_store_memory=80_000_000
                    )
                elif what == "remove":
                    cluster.remove_node(machines.pop(name), allow_graceful=False)
                else:
                    drain(cluster, machines[name], about[0])
                answer()
        finally:
            for node in [*machines.values(), cluster.head_node]:
                with contextlib.suppress(Exception):
                    node.kill_all_processes(check_alive=False, allow_graceful=False)


def drain(cluster, node, seconds: float) -> None:
    from ray._raylet import GcsClient
    from ray.core.generated import autoscaler_pb2

    client = GcsClient(address=cluster.address)
    reason = autoscaler_pb2.DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
    until = int((time.time() + seconds) * 1000)
    accepted, why = client.drain_node(node.node_id, reason, "notice", until)
    assert accepted, why


if __name__ == "__main__":
    main()
