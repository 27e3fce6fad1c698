"""Machines of a cluster on one Linux box: each has a network, a process table, /tmp, /dev/shm and
a home folder of its own, and an address on a bridge.

    with nodes(3) as machines:
        machines.run(0, "hostname")
        machines.start(1, log, "python", "-m", "http.server")
        machines.power_cut(1)

They see the host's disk as it is and can write nothing on it, so that they have in common what
listens at `machines.host` alone. Everything hangs on one process that holds the switch, and on one
for each machine; each ends when its standard input does, so that nothing remains of them where the
tests are killed.
"""

import contextlib
import io
import json
import os
import secrets
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PATIENCE = 20.0  # seconds until a machine has booted or has gone
TMP = "2g"  # what a machine can hold in /tmp
HOME = "/tmp/home"  # in a machine, whose /tmp is its own

# The switch: names of networks and the bridge exist within its namespaces alone.
SWITCH = """
import subprocess, sys
for line in ("mount -t tmpfs run /run", "ip link add switch type bridge",
             "ip link set switch up", "ip link set lo up"):
    subprocess.run(line.split(), check=True)
print("up", flush=True)
sys.stdin.read()
"""

# Process 1 of a machine: what it mounts is its own, and all that runs there ends with it.
FIRST = """
import json, os, signal, socket, subprocess, sys
at = json.loads(sys.argv[1])
def mount(*words, **more):
    subprocess.run(["mount", *words], check=True, **more)
socket.sethostname(at["name"])
mount("-t", "proc", "proc", "/proc")
kept = [(path, os.open(path, os.O_PATH)) for path in at["kept"]]
for line in open("/proc/self/mountinfo"):
    fields = line.split()
    kind = fields[fields.index("-") + 1]
    if kind in ("ext4", "xfs", "btrfs", "overlay", "zfs", "nfs", "nfs4", "9p", "virtiofs"):
        subprocess.run(["mount", "-o", "remount,bind,ro", fields[4]], check=False)
for where in ("/tmp", "/var/tmp", "/dev/shm", *at["hidden"]):
    os.makedirs(where, exist_ok=True)  # a checkout in the /tmp that is hidden by now
    mount("-t", "tmpfs", "-o", f"size={at['size']},mode=1777", "own", where)
for path, there in kept:
    os.makedirs(path, exist_ok=True)  # an environment within a checkout
    mount("-c", "--bind", f"/proc/self/fd/{there}", path, pass_fds=[there])
    mount("-o", "remount,bind,ro", path)
os.makedirs(at["home"])
for target, lines in at["files"].items():
    source = at["home"] + "/" + os.path.basename(target)
    with open(source, "w") as f:
        f.write(lines)
    mount("--bind", source, os.path.realpath(target))
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
print("up", flush=True)
sys.stdin.read()
"""


def checked(*words: object) -> str:
    """The output of a command that must not fail."""
    done = subprocess.run([str(w) for w in words], text=True, capture_output=True)
    assert done.returncode == 0, (words, done.stderr)
    return done.stdout


def held(*words: str) -> tuple[subprocess.Popen, int]:
    """A process in namespaces of its own that lives for as long as its input is open, and the
    number under which the host knows it.
    """
    pipe = subprocess.PIPE
    holder = subprocess.Popen(words, text=True, stdin=pipe, stdout=pipe, stderr=pipe)
    assert holder.stdout is not None and holder.stderr is not None
    if holder.stdout.readline() != "up\n":
        raise AssertionError(f"it did not start: {holder.stderr.read()}")
    while "--fork" in words:
        children = Path(f"/proc/{holder.pid}/task/{holder.pid}/children").read_text().split()
        if children:
            return holder, int(children[0])
    return holder, holder.pid


def checkouts() -> set[str]:
    """Where this package lies: here, and where this Python's own one does."""
    words = "import vtx_scale, sys; sys.stdout.write(list(vtx_scale.__path__)[0])"
    done = subprocess.run([sys.executable, "-I", "-c", words], text=True, capture_output=True)
    found = Path(done.stdout).parent if done.returncode == 0 else ROOT
    return {str(ROOT), *([] if found.name == "site-packages" else [str(found)])}


class Nodes:
    """Machines 0 to count - 1, which are called n0, n1, ... and stand at `address(i)`; `host` is
    the address of this one on their network.
    """

    def __init__(self, count: int, checkout: bool) -> None:
        self.count = count
        self.hidden = set() if checkout else checkouts()
        self.switch, self.holder = held(
            *("unshare", "--net", "--mount", "--propagation", "private"),
            *(sys.executable, "-I", "-S", "-c", SWITCH),
        )
        self.first: dict[int, tuple[subprocess.Popen, int]] = {}
        try:
            self.link = self.network = ""
            while not self.link:
                self.claim()
            self.host = f"{self.network}.1"
            for i in range(count):
                self.plug(i)
                self.up(i)
        except BaseException:
            self.down()
            raise

    def claim(self) -> None:
        """Take a network that nobody on this machine has: an interface's name can be had once."""
        second, third = 64 + secrets.randbelow(190), secrets.randbelow(256)
        link, network = f"vtx-{second}-{third}", f"10.{second}.{third}"
        if f" 10.{second}." in checked("ip", "-4", "-o", "address"):
            return
        words = ("ip", "link", "add", "uplink", "type", "veth", "peer", "name", link, "netns")
        done = subprocess.run(
            [*self.at_switch(), *words, str(os.getpid())], text=True, capture_output=True
        )
        if done.returncode:
            assert "exists" in done.stderr, done.stderr
            return
        self.link, self.network = link, network
        checked(*self.at_switch(), "ip", "link", "set", "uplink", "master", "switch", "up")
        checked("ip", "address", "add", f"{network}.1/24", "dev", link)
        checked("ip", "link", "set", link, "up")

    def at_switch(self) -> tuple[str, ...]:
        return ("nsenter", "-t", str(self.holder), "--net", "--mount")

    def ip(self, *words: object) -> None:
        checked(*self.at_switch(), "ip", *words)

    def plug(self, i: int) -> None:
        """The machine's network, which a power cut leaves there: nobody answers on it."""
        name = f"n{i}"
        self.ip("netns", "add", name)
        self.ip("link", "add", f"v{i}", "type", "veth", "peer", "name", "eth0", "netns", name)
        self.ip("-n", name, "address", "add", f"{self.address(i)}/24", "dev", "eth0")
        self.ip("-n", name, "link", "set", "lo", "up")
        self.ip("-n", name, "link", "set", "eth0", "up")

    def address(self, i: int) -> str:
        """Of a machine on the network."""
        return f"{self.network}.{10 + i}"

    def up(self, i: int) -> None:
        """Boot a machine, with empty private folders, and plug it in."""
        assert i not in self.first, f"n{i} is up"
        self.heal(i)
        names = [f"{self.address(k)} n{k}" for k in range(self.count)]
        # both ways without a name server: torch asks for the names of its peers
        hosts = ["127.0.0.1 localhost", *names, f"{self.host} host"]
        kept = {sys.prefix, sys.base_prefix, *(() if self.hidden else (str(ROOT),))}
        private = tuple(f"{p}/" for p in ("/tmp", "/var/tmp", "/dev/shm", *self.hidden))
        about = {
            "name": f"n{i}",
            "size": TMP,
            "home": HOME,
            "kept": sorted(p for p in kept if p.startswith(private)),
            "hidden": sorted(self.hidden),
            "files": {
                "/etc/hosts": "\n".join(hosts) + "\n",
                "/etc/resolv.conf": "options timeout:1 attempts:1\n",
            },
        }
        self.first[i] = held(
            *("nsenter", f"--net=/proc/{self.holder}/root/run/netns/n{i}"),
            *("unshare", "--mount", "--propagation", "private", "--pid", "--fork"),
            *("--kill-child", "--ipc", "--uts"),
            *(sys.executable, "-I", "-S", "-c", FIRST, json.dumps(about)),
        )

    def inside(self, i: int, env: Mapping[str, str], words: tuple[object, ...]) -> list[str]:
        """The command line that runs one within a machine: nothing of this process's environment
        goes there.
        """
        path = f"{sys.prefix}/bin:/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"
        own = {"PATH": path, "HOME": HOME, "LANG": "C.UTF-8", "OMP_NUM_THREADS": "1"}
        own |= {
            "PYTHONUNBUFFERED": "1",
            **({} if self.hidden else {"PYTHONPATH": str(ROOT)}),
            **env,
        }
        return [
            *("nsenter", "-t", str(self.first[i][1]), "--net", "--mount", "--pid", "--ipc"),
            *("--uts", "--", "env", "-i", "-C", HOME),  # nsenter's own --wd is the host's folder
            *(f"{k}={v}" for k, v in {**own, **env}.items()),
            *map(str, words),
        ]

    def run(
        self, i: int, *words: object, env: Mapping[str, str] | None = None, timeout: float = 60
    ) -> subprocess.CompletedProcess[str]:
        """A command within a machine, to its end."""
        command = self.inside(i, env or {}, words)
        return subprocess.run(command, text=True, capture_output=True, timeout=timeout)

    def start(
        self, i: int, log: Path, *words: object, env: Mapping[str, str] | None = None
    ) -> subprocess.Popen:
        """A command within a machine in the background; what it says goes to a file of the
        host's.
        """
        with log.open("ab") as out:
            return subprocess.Popen(
                self.inside(i, env or {}, words),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                start_new_session=True,
            )

    def put(self, i: int, folder: Path, where: str) -> None:
        """Copy a folder's content into a machine's; what it links to is copied too."""
        body = io.BytesIO()
        with tarfile.open(fileobj=body, mode="w", dereference=True) as tar:
            tar.add(
                folder, where.lstrip("/"), filter=lambda m: None if "__pycache__" in m.name else m
            )
        words = self.inside(i, {}, ("tar", "-x", "-C", "/"))
        subprocess.run(words, input=body.getvalue(), check=True)

    def processes(self, i: int, text: str = "") -> dict[int, str]:
        """Number, as the host counts them, and command line of what runs within a machine with
        `text` in that line.
        """
        found = {}
        own = os.readlink(f"/proc/{self.first[i][1]}/ns/pid")
        for entry in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode().strip()
                if line and text in line and os.readlink(entry / "ns" / "pid") == own:
                    found[int(entry.name)] = line
        found.pop(self.first[i][1], None)
        return found

    def power_cut(self, i: int) -> None:
        """Its peers see silence."""
        self.cut(i)
        self.crash(i)

    def crash(self, i: int) -> None:
        """Everything on it ends at once; the system lives, and closes connections."""
        holder, first = self.first.pop(i)
        with contextlib.suppress(ProcessLookupError):
            os.kill(first, signal.SIGKILL)
        holder.communicate()

    def cut(self, i: int) -> None:
        """Unplug it; what runs there lives on."""
        self.ip("link", "set", f"v{i}", "nomaster")

    def heal(self, i: int) -> None:
        """Plug it in again."""
        self.ip("link", "set", f"v{i}", "master", "switch", "up")

    def netem(self, i: int, *words: str) -> None:
        """Delay, loss and the like on the link, both ways; none: as it was. See `has_netem`."""
        ends = ((f"v{i}", self.at_switch()), ("eth0", (*self.at_switch(), *self.named(i))))
        for link, where in ends:
            what = ("replace", "dev", link, "root", "netem", *words)
            checked(*where, "tc", "qdisc", *(what if words else ("del", "dev", link, "root")))

    def named(self, i: int) -> tuple[str, ...]:
        return ("ip", "netns", "exec", f"n{i}")

    def has_netem(self) -> bool:
        """Whether the kernel can delay and lose packets."""
        words = ("tc", "qdisc", "replace", "dev", "lo", "root", "netem", "delay", "1ms")
        done = subprocess.run([*self.at_switch(), *words], capture_output=True)
        return done.returncode == 0

    def down(self) -> None:
        """End all of it."""
        for i in list(self.first):
            self.crash(i)
        self.switch.kill()
        self.switch.communicate()
        until = time.monotonic() + PATIENCE
        while self.link and Path(f"/sys/class/net/{self.link}").exists():  # the kernel's own time
            assert time.monotonic() < until, f"{self.link} is still there"
            time.sleep(0.05)


@contextlib.contextmanager
def nodes(count: int, checkout: bool = True) -> Iterator[Nodes]:
    """So many machines, until the end of the block. checkout: they can import this package."""
    machines = Nodes(count, checkout)
    try:
        yield machines
    finally:
        machines.down()
