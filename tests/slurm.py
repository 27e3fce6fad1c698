"""A Slurm of two nodes on this machine, in a folder of its own: munge, a controller, two daemons.

It needs root, and Debian's slurm-wlm and munge; nothing of the system's own Slurm is touched.
"""

import contextlib
import os
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from tests.s3 import free_ports
from tests.survivors import mentioning

CONF = """
ClusterName=vtx
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={at}/munge/socket
StateSaveLocation={at}/state
SlurmdSpoolDir={at}/spool-%n
SlurmctldPidFile={at}/slurmctld.pid
SlurmdPidFile={at}/slurmd-%n.pid
SlurmctldLogFile={at}/slurmctld.log
SlurmdLogFile={at}/slurmd-%n.log
ProctrackType=proctrack/pgid
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
JobRequeue=1
KillWait=5
SlurmdParameters=config_overrides
MailProg=/bin/true
NodeName=s1 NodeAddr=127.0.0.1 NodeHostname={host} Port={ports[1]} CPUs=4 RealMemory=1000
NodeName=s2 NodeAddr=127.0.0.1 NodeHostname={host} Port={ports[2]} CPUs=4 RealMemory=1000
PartitionName=all Nodes=s[1-2] Default=YES MaxTime=60 State=UP
"""


class Slurm:
    """What is running, and the commands that speak to it."""

    def __init__(self, at: Path) -> None:
        self.at = at
        self.daemons: list[subprocess.Popen[bytes]] = []
        # the paths of this Slurm stand in the environment of all that it starts
        self.environment = {**os.environ, "SLURM_CONF": str(at / "slurm.conf")}

    def start(self) -> None:
        """Begin; raises AssertionError where the two nodes are not idle within a minute."""
        (self.at / "state").mkdir()
        munge = self.at / "munge"
        munge.mkdir(mode=0o711)
        (munge / "key").write_bytes(os.urandom(128))
        (munge / "key").chmod(0o400)
        host = socket.gethostname().partition(".")[0]
        text = CONF.format(host=host, at=self.at, ports=free_ports(3))
        (self.at / "slurm.conf").write_text(text)
        files = [f"--{k}={munge}/{k.partition('-')[0]}" for k in ("socket", "pid-file", "log-file")]
        files += [f"--key-file={munge}/key", f"--seed-file={munge}/seed"]
        self.daemon("munged", "-F", "--force", *files)
        self.until(lambda: (munge / "socket").exists(), "munged does not start")
        self.daemon("slurmctld", "-D")
        for node in ("s1", "s2"):
            self.daemon("slurmd", "-D", "-N", node)
        self.until(
            lambda: self.ask("sinfo", "-h", "-t", "idle", "-o", "%D") == "2", "no idle nodes"
        )

    def daemon(self, *command: str) -> None:
        log = (self.at / f"{command[0]}.out").open("ab")
        self.daemons.append(subprocess.Popen(command, env=self.environment, stdout=log, stderr=log))

    def ask(self, *command: str, **environment: str) -> str:
        """What a command of Slurm prints."""
        done = subprocess.run(
            command,
            env={**self.environment, **environment},
            cwd=self.at,
            text=True,
            capture_output=True,
            timeout=60,
        )
        return done.stdout.strip()

    def state(self, job: str) -> str:
        """Of a job, as COMPLETED."""
        return self.ask("squeue", "-h", "-t", "all", "-j", job, "-o", "%T")

    def until(self, holds, what: str, seconds: float = 60) -> None:
        """Wait; raises AssertionError with what the daemons wrote."""
        deadline = time.monotonic() + seconds
        while not holds():
            assert time.monotonic() < deadline, f"{what}\n{self.logs()}"
            time.sleep(0.2)

    def logs(self) -> str:
        """The end of everything that was written."""
        found = [*self.at.glob("*.out"), *self.at.glob("*.log")]
        return "\n".join(f"== {p.name}\n{p.read_text(errors='replace')[-3000:]}" for p in found)

    def end(self) -> None:
        """Cancel every job, then end the daemons and whatever is left of the jobs."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.ask("scancel", "--user=root", "--signal=KILL")
            self.ask("scancel", "--user=root")
        deadline = time.monotonic() + 20
        while "slurmstepd" in str(mentioning(str(self.at))) and time.monotonic() < deadline:
            time.sleep(0.2)
        for daemon in reversed(self.daemons):
            daemon.terminate()
        for daemon in self.daemons:
            try:
                daemon.wait(20)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()
        for pid, _ in mentioning(str(self.at)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, 9)


@contextlib.contextmanager
def slurm() -> Iterator[Slurm]:
    """A running Slurm until the block ends."""
    # sockets allow 107 bytes for a path
    with tempfile.TemporaryDirectory(prefix="vtx-slurm-", dir="/tmp") as at:
        Path(at).chmod(0o711)
        running = Slurm(Path(at))
        try:
            running.start()
            yield running
        finally:
            running.end()
