"""A Ray of one node on the loopback, in a folder of its own and with a token, for tests that join
a cluster.
"""

import contextlib
import os
import secrets
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from tests.s3 import free_ports
from vtx_scale.cluster.guard import end, family

ROOT = Path(__file__).resolve().parent.parent


class Cluster:
    """`address`, and the environment of whoever joins."""

    def __init__(self, home: Path, cpus: int) -> None:
        self.home = home
        token = home / "token"
        token.touch(0o600)
        token.write_text(secrets.token_hex(32))
        self.environment = {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(token),
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_DISABLE_IMPORT_WARNING": "1",
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": f"{ROOT}:{os.environ.get('PYTHONPATH', '')}",
        }
        ports = free_ports(6)
        self.address = f"127.0.0.1:{ports[0]}"
        self.log = (home / "start.log").open("wb")
        self.process = subprocess.Popen(
            [
                Path(sys.executable).parent / "ray",
                "start",
                "--head",
                "--block",
                "--node-ip-address=127.0.0.1",
                f"--port={ports[0]}",
                f"--ray-client-server-port={ports[1]}",
                f"--dashboard-agent-listen-port={ports[2]}",
                f"--dashboard-agent-grpc-port={ports[3]}",
                f"--metrics-export-port={ports[4]}",
                f"--runtime-env-agent-port={ports[5]}",
                "--include-dashboard=false",
                f"--num-cpus={cpus}",
                "--object-store-memory=80000000",
                f"--temp-dir={home}/ray",
            ],
            env={**os.environ, **self.environment},
            stdout=self.log,
            stderr=self.log,
        )

    def wait(self, seconds: float = 120) -> None:
        """Until it answers."""
        deadline = time.monotonic() + seconds
        while b"Ray runtime started" not in (self.home / "start.log").read_bytes():
            assert self.process.poll() is None and time.monotonic() < deadline, (
                self.home / "start.log"
            ).read_text()
            time.sleep(0.2)

    def end(self) -> None:
        """It and all that came of it."""
        known = family(self.process.pid)
        self.process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(20)
        self.process.kill()
        self.process.wait()
        end(known)
        self.log.close()


@contextlib.contextmanager
def cluster(cpus: int = 2) -> Iterator[Cluster]:
    """A running one until the block ends."""
    # sockets allow 107 bytes for a path
    with tempfile.TemporaryDirectory(prefix="vtx-rc-", dir="/tmp") as home:
        running = Cluster(Path(home), cpus)
        try:
            running.wait()
            yield running
        finally:
            running.end()
