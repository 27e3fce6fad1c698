"""What Ray must find in the environment, most of it when it is imported:
so this file does not import it.
"""

import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from vtx_scale.cluster.guard import guarded
from vtx_scale.cluster.job import GaveUp
from vtx_scale.cluster.token import write_token
from vtx_scale.data_pipeline.errors import UserError

OWN = {  # a cluster of our own
    # All of it listens on 127.0.0.1 alone. This is Ray's one switch for that, in spite of its name:
    # an address that is given to ray.init becomes a public one.
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "GLOO_SOCKET_IFNAME": "lo",
    "RAY_health_check_initial_delay_ms": "3000",
    "RAY_health_check_period_ms": "2000",
    "RAY_health_check_timeout_ms": "5000",
    "RAY_health_check_failure_threshold": "4",
}
GIVEN = {
    "RAY_NUM_REDIS_GET_RETRIES": "1",  # or it looks for twelve minutes for a head that is not there
    # a driver ends by itself when its head was away for longer
    "RAY_gcs_rpc_server_reconnect_timeout_s": "600",
}
# of a CPU, for a job's driver: a head that has none (--num-cpus=0) has no driver to take with it
DRIVER_CPUS = 0.01
QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}


@contextmanager
def settings(address: str) -> Iterator[Path | None]:
    """Around `import ray` and all that follows; yields the folder of a cluster of our own where
    address is "local".

    The folder goes with the block, except where the run was given up: then its logs
    are worth reading.
    """
    if "://" in address:
        raise UserError(
            f"--address={address}: give HOST:PORT of the cluster's head, "
            "on a machine of the cluster."
        )
    if address != "local":
        with environment({**QUIET, **GIVEN}):
            yield None
        return
    # sockets allow 107 bytes for a path
    own = Path(
        tempfile.mkdtemp(prefix="vtx-ray-", dir="/tmp" if len(tempfile.gettempdir()) > 20 else None)
    )
    home = own / "ray"  # Ray opens its folder to everybody, so it lies in one that stays closed
    home.mkdir(mode=0o700)
    try:
        with (
            environment(QUIET),
            environment({**OWN, **with_token(own)}, force=True),
            guarded(own),
        ):
            yield home
    except GaveUp as e:
        (own / "token").unlink(missing_ok=True)
        raise GaveUp(f"{e}; what Ray and the workers wrote is in {home}/session_latest/logs") from e
    except BaseException:
        shutil.rmtree(own, ignore_errors=True)
        raise
    shutil.rmtree(own, ignore_errors=True)


def with_token(folder: Path) -> dict[str, str]:
    """A token for this cluster alone that its owner alone can read;
    left to itself, Ray puts one into ~/.ray.
    """
    path = folder / "token"
    write_token(path)
    return {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(path)}


@contextmanager
def environment(values: Mapping[str, str], force: bool = False) -> Iterator[None]:
    """Variables for this process and those that it starts;
    what stands already stays, unless `force`.
    """
    new = {k: v for k, v in values.items() if force or k not in os.environ}
    before = {k: os.environ.get(k) for k in new}
    os.environ.update(new)
    try:
        yield
    finally:
        for k, v in before.items():
            if v is None:
                del os.environ[k]
            else:
                os.environ[k] = v
