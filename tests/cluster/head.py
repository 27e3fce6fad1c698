"""A real Ray head of a test's own, on the loopback, with a token: started, ended by its pids, and
nothing of it remains.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from tests.runs import environment
from tests.s3 import free_ports
from vtx_scale.cluster.guard import family, living

PORTS = (
    "--port",
    "--dashboard-port",
    "--dashboard-agent-listen-port",
    "--dashboard-agent-grpc-port",
    "--metrics-export-port",
    "--runtime-env-agent-port",
    "--ray-client-server-port",
)


class Head:
    """address: of its dashboard; logs: all that Ray and its jobs write; cmdlines: of every process
    that was met, each read again by `look`.
    """

    def __init__(self, token: Path, cpus: int, env: dict[str, str]) -> None:
        # sockets allow 107 bytes for a path
        self.home = Path(tempfile.mkdtemp(prefix="vtx-h-", dir="/tmp"))
        ports = dict(zip(PORTS, free_ports(len(PORTS)), strict=True))
        self.address = f"http://127.0.0.1:{ports['--dashboard-port']}"
        self.logs = self.home / "session_latest" / "logs"
        self.family: set[tuple[int, int]] = set()
        self.cmdlines: set[str] = set()
        bin = Path(sys.executable).parent
        with (self.home / "head.out").open("wb") as out:
            self.process = subprocess.Popen(
                [
                    bin / "ray",
                    "start",
                    "--head",
                    "--block",
                    "--node-ip-address=127.0.0.1",
                    "--dashboard-host=127.0.0.1",
                    f"--num-cpus={cpus}",
                    "--object-store-memory=80000000",
                    "--memory=2000000000",
                    f"--temp-dir={self.home}",
                    *(f"{name}={port}" for name, port in ports.items()),
                ],
                env={
                    **environment(env),
                    "PATH": f"{bin}:{os.environ['PATH']}",
                    "RAY_AUTH_MODE": "token",
                    "RAY_AUTH_TOKEN_PATH": str(token),
                    "RAY_USAGE_STATS_ENABLED": "0",
                    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # nothing listens elsewhere
                    "GLOO_SOCKET_IFNAME": "lo",
                },
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                start_new_session=True,
            )
        deadline = time.monotonic() + 120
        while not self.answers():
            self.look()
            assert self.process.poll() is None and time.monotonic() < deadline, self.output()
            time.sleep(0.3)

    def output(self) -> str:
        return (self.home / "head.out").read_text(errors="replace")

    def answers(self) -> bool:
        """Whether the dashboard does."""
        try:
            urllib.request.urlopen(f"{self.address}/api/version", timeout=5).close()
        except urllib.error.HTTPError:
            return True  # it wants a token
        except OSError:
            return False
        return True

    def look(self) -> None:
        """See who is there, and by which command."""
        found = family(self.process.pid) if self.process.poll() is None else set()
        self.family |= found
        for pid, _ in found:
            with contextlib.suppress(OSError):
                body = Path(f"/proc/{pid}/cmdline").read_bytes()
                self.cmdlines.add(body.replace(b"\x00", b" ").decode(errors="replace"))

    def variables(self) -> dict[str, str]:
        """Command -> environment of every process that is there now."""
        found = {}
        for pid, _ in family(self.process.pid):
            with contextlib.suppress(OSError):
                name = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\x00", b" ").decode()
                found[f"{pid} {name}"] = Path(f"/proc/{pid}/environ").read_text(errors="replace")
        return found

    def end(self) -> set[tuple[int, int]]:
        """End it; those of its processes that outlived the end, which are ended too."""
        if self.process.poll() is None:
            self.look()
            self.process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + 60
        while living(self.family) and time.monotonic() < deadline:
            self.process.poll()
            time.sleep(0.2)
        left = living(self.family)
        for pid, _ in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait(10)
        return left


@contextlib.contextmanager
def head(token: Path, cpus: int = 2, **env: str) -> Iterator[Head]:
    """A head until the block ends."""
    it = Head(token, cpus, env)
    try:
        yield it
    finally:
        it.end()
        shutil.rmtree(it.home, ignore_errors=True)
