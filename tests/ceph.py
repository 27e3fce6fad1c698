"""Ceph's gateway as an S3 server for the long forms: a monitor, one store in memory, a gateway, all
on loopback. Debian's packages radosgw, ceph-mon and ceph-osd (16.2).
"""

import contextlib
import os
import secrets
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.require import need
from tests.s3 import Server, end_with_parent, free_ports

PATIENCE = 120.0  # seconds for each step of the start
SIZE = 4 << 30  # bytes: an upper bound, memory is taken as it is used

# where every request asks for a signature, so do the daemons among themselves: without that the
# gateway of 16.2 never comes up
SETTINGS = """
[global]
fsid = {fsid}
mon_host = [v2:127.0.0.1:{mon},v1:127.0.0.1:{mon_old}]
mon_initial_members = a
public_addr = 127.0.0.1
cluster_addr = 127.0.0.1
ms_bind_ipv6 = false
auth_cluster_required = cephx
auth_service_required = cephx
auth_client_required = cephx
auth_allow_insecure_global_id_reclaim = false
keyring = {folder}/keyring
osd_pool_default_size = 1
osd_pool_default_min_size = 1
osd_pool_default_pg_num = 4
osd_pool_default_pg_autoscale_mode = off
osd_crush_chooseleaf_type = 0
mon_allow_pool_size_one = true
mon_max_pg_per_osd = 2000
mon_data_avail_crit = 1
mon_data_avail_warn = 2
run_dir = {folder}/run
admin_socket =
log_file =
mon_cluster_log_file = {folder}/cluster.log
crash_dir = {folder}/run
[mon]
mon_data = {folder}/mon
[osd]
osd_data = {folder}/osd
osd_objectstore = memstore
memstore_device_bytes = {size}
osd_memory_target = 939524096
osd_memory_base = 268435456
osd_class_load_list = *
osd_class_default_list = *
osd_numa_auto_affinity = false
[client]
rgw_frontends = beast endpoint=127.0.0.1:{port} tcp_nodelay=1
rgw_data = {folder}/run
rgw_enable_usage_log = false
rgw_enable_ops_log = false
rgw_thread_pool_size = 96
rgw_init_timeout = 60
"""


class Cluster:
    """Daemons of one folder, ended by SIGKILL."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.conf = folder, folder / "ceph.conf"
        self.log = (folder / "out").open("ab")
        self.running: list[subprocess.Popen] = []

    def call(self, *command: object) -> str:
        """What a command of Ceph's prints; an empty string where it fails."""
        done = subprocess.run(
            [str(x) for x in command],
            env={**os.environ, "CEPH_CONF": str(self.conf)},
            stdout=subprocess.PIPE,
            stderr=self.log,
            text=True,
            timeout=PATIENCE,
        )
        return done.stdout + "." if done.returncode == 0 else ""

    def must(self, *command: object) -> None:
        assert self.call(*command), f"{command[0]} failed: {self.folder / 'out'}"

    def start(self, *command: str) -> None:
        self.running.append(
            subprocess.Popen(
                [command[0], "-c", str(self.conf), "-f", *command[1:]],
                stdin=subprocess.DEVNULL,
                stdout=self.log,
                stderr=self.log,
                preexec_fn=end_with_parent,
            )
        )

    def until(self, well: Callable[[], bool]) -> None:
        deadline = time.monotonic() + PATIENCE
        while not well():
            ended = [p.args for p in self.running if p.poll() is not None]
            assert not ended and time.monotonic() < deadline, f"{ended}, {self.folder / 'out'}"
            time.sleep(0.2)

    def close(self) -> None:
        for process in reversed(self.running):
            process.kill()
            process.wait()
        self.log.close()


def keys(cluster: Cluster) -> None:
    """A key for each daemon, and one to ask the monitor by."""
    every = ("mon", "allow *", "osd", "allow *", "mgr", "allow *")
    for name, caps in {
        "mon.": ("mon", "allow *"),
        "client.admin": every,
        "osd.0": ("mon", "allow profile osd", "osd", "allow *", "mgr", "allow profile osd"),
        "client.rgw": ("mon", "allow rw", "osd", "allow rwx", "mgr", "allow rw"),
    }.items():
        flags = [x for a, b in zip(caps[::2], caps[1::2], strict=True) for x in ("--cap", a, b)]
        tool = ["ceph-authtool", cluster.folder / "keyring", "--gen-key", "-n", name, *flags]
        cluster.must(*tool)


@contextlib.contextmanager
def ceph(folder: Path) -> Iterator[Server]:
    """A gateway with its data in memory."""
    port, mon, mon_old = free_ports(3)
    key, secret, fsid = secrets.token_hex(10), secrets.token_hex(20), uuid.uuid4()
    cluster = Cluster(folder)
    values = dict(fsid=fsid, mon=mon, mon_old=mon_old, folder=folder, size=SIZE, port=port)
    cluster.conf.write_text(SETTINGS.format(**values))
    for name in ("mon", "osd", "run"):
        (folder / name).mkdir()
    (folder / "keyring").touch(0o600)
    try:
        address = f"[v2:127.0.0.1:{mon},v1:127.0.0.1:{mon_old}]"
        made = ("--create", "--clobber", "--addv", "a", address, "--fsid", fsid, folder / "monmap")
        cluster.must("monmaptool", *made)
        keys(cluster)
        own = ("-c", cluster.conf)
        known = ("--monmap", folder / "monmap", "--keyring", folder / "keyring")
        cluster.must("ceph-mon", *own, "--mkfs", "-i", "a", *known)
        cluster.start("ceph-mon", "-i", "a")
        ask = ("ceph", *own, "--connect-timeout", "10")
        cluster.until(lambda: bool(cluster.call(*ask, "mon", "stat")))
        osd = uuid.uuid4()
        cluster.must(*ask, "osd", "new", osd)
        cluster.must("ceph-osd", *own, "-i", "0", "--mkfs", "--osd-uuid", osd)
        cluster.start("ceph-osd", "-i", "0")
        cluster.until(lambda: " 1 up" in cluster.call(*ask, "osd", "stat"))
        who = ("--uid=test", "--display-name=test", f"--access-key={key}", f"--secret-key={secret}")
        cluster.must("radosgw-admin", *own, "user", "create", *who)
        cluster.start("radosgw", "-n", "client.rgw")
        server = Server(port, key, secret, cluster.running[-1].pid)
        server.bucket()
        yield server
    finally:
        cluster.close()


@pytest.fixture(scope="session")
def ceph_bucket(tmp_path_factory) -> Iterator[tuple[Server, str]]:
    """A gateway for all tests, and a bucket in it."""
    need("ceph")
    with ceph(tmp_path_factory.mktemp("ceph")) as server:
        yield server, server.bucket()
