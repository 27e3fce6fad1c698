"""Whether a Ray cluster lets a process of this machine in, tried by another process: where Ray sees
a raylet that it cannot reach, it ends its process in the midst of things.
"""

import os
import subprocess
import sys

from vtx_scale.cluster.ray_settings import GIVEN, QUIET
from vtx_scale.data_pipeline.errors import UserError

LIMIT = 90.0  # seconds for Ray to start in a process, on a busy machine
# a knock first: Ray takes half a minute to find out that nobody listens
JOIN = """
import ray, socket, sys
address = sys.argv[1]
host, _, port = address.rpartition(":")
if host in ("localhost", "127.0.0.1", "[::1]"):  # by which Ray means this machine's address
    host = ray.util.get_node_ip_address()
if host:
    socket.create_connection((host.strip("[]"), int(port)), 4).close()
ray.init(address=address, log_to_driver=False, logging_level=50)
ray.shutdown()
"""


def check_admitted(address: str) -> None:
    """Raises UserError where no cluster lets us in at HOST:PORT, or at "auto", this machine's."""
    command, env = [sys.executable, "-c", JOIN, address], {**GIVEN, **QUIET, **os.environ}
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT, env=env)
    except subprocess.TimeoutExpired:
        raise refusal(address, f"no answer in {LIMIT:.0f} s") from None
    if done.returncode:
        lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        raise refusal(address, lines[-1] if lines else f"exit code {done.returncode}")


def refusal(address: str, why: str) -> UserError:
    """The sentence on an address where one is not let in."""
    return UserError(
        f"No Ray cluster lets us in at --address={address} ({why}): see that its head runs and "
        "that this machine is a part of it ('ray start'), give the dashboard's address "
        "(http://HOST:8265), or leave --address out."
    )
