"""What keeps a machine's ranks, in the process that the cluster has started there for them.

Knows nothing of Ray, so that it can be read and tested without. The ranks are children of this
process and end with it. It ends them, and itself, when nobody has asked after them for `ttl`
seconds: then their driver is gone, or cannot be reached, and another may hold the run.
"""

import contextlib
import fcntl
import os
import shutil
import socket
import struct
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from vtx_scale.cluster.job import Ranks, State
from vtx_scale.data_pipeline.errors import UserError
from vtx_scale.data_pipeline.system import memory

SIOCGIFADDR = 0x8915
LEAST_FREE = 0.02  # of the memory
WRITTEN = 1 << 20  # bytes
SENT = 8 << 20  # bytes from one machine to the next
PAIR = 4.0  # seconds for them
SIDE = 256  # of matrices
INTERFACES = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")


class Keeper:
    """Calls may come from any thread; those to the ranks are made by one, because a child that dies
    with its parent dies with the thread that started it.
    """

    def __init__(
        self,
        start: Callable[[dict[str, Any], Path], Ranks],
        payload: dict[str, Any],
        address: str,
        ttl: float,
        home: str | None,
    ) -> None:
        """start, payload: see `Job`. address: of this machine, as the others know it. ttl: in
        seconds. home: where to put files, the temporary folder where None.
        """
        self.start, self.payload, self.address, self.ttl = start, payload, address, ttl
        self.folder = Path(tempfile.mkdtemp(prefix="vtx-node-", dir=home))
        os.chdir(self.folder)  # nothing is imported from where the cluster was started
        self.ranks: Ranks | None = None
        self.hand = ThreadPoolExecutor(1)
        self.heard = time.monotonic()
        threading.Thread(target=self._watch, daemon=True).start()

    def prepare(self) -> str:
        """What this machine needs before a round; why it cannot take part, or "". Again is no
        error.
        """
        self.heard = time.monotonic()
        for name in INTERFACES:
            os.environ.setdefault(name, interface_of(self.address))
            if not os.environ[name]:
                del os.environ[name]
        try:
            self.hand.submit(self._prepare).result()
        except UserError as e:
            return str(e)
        return ""

    def _prepare(self) -> None:
        if self.ranks is None:
            self.ranks = self.start(self.payload, self.folder)

    def check(self) -> str:
        """Whether this machine is fit for a round: memory, its disk, and how it multiplies; what is
        wrong with it, or "".
        """
        self.heard = time.monotonic()
        return unfit(self.folder)

    def receive(self) -> int:
        """The port at which this machine takes what another sends it to see how fast that is."""
        self.heard = time.monotonic()
        server = socket.create_server((self.address, 0), family=family_of(self.address))
        server.settimeout(PAIR)
        threading.Thread(target=swallow, args=(server,), daemon=True).start()
        return int(server.getsockname()[1])

    def send(self, address: str, port: int) -> float:
        """How many bytes a second arrive at another machine, 0 where none do."""
        self.heard = time.monotonic()
        began = time.monotonic()
        try:
            with socket.create_connection((address, port), PAIR) as s:
                s.sendall(bytes(SENT))
                s.shutdown(socket.SHUT_WR)
                return SENT / (time.monotonic() - began) if s.recv(1) else 0.0
        except OSError:
            return 0.0

    def meeting(self, alone: bool) -> str:
        """Where the ranks of a round can meet, of which this machine has the first. alone: it has
        all of them.

        Somebody else may take the port until then: that start fails and the next goes on.
        """
        self.heard = time.monotonic()
        if alone:
            return f"file://{tempfile.mkdtemp(prefix='meet-', dir=self.folder)}/store"
        with socket.socket(family_of(self.address)) as s:
            s.bind((self.address, 0))
            host = f"[{self.address}]" if ":" in self.address else self.address
            return f"tcp://{host}:{s.getsockname()[1]}"

    def poll(self) -> State:
        """What became of the ranks of this round."""
        self.heard = time.monotonic()
        ranks = self.ranks
        if ranks is None:
            return State()
        return self.hand.submit(state_of, ranks).result()

    def stacks(self) -> dict[int, str]:
        """As `Ranks.stacks`."""
        self.heard = time.monotonic()
        return self.ranks.stacks() if self.ranks is not None else {}

    def begin(self, *about: Any) -> None:
        """As `Ranks.begin`."""
        assert self.ranks is not None
        self.hand.submit(self.ranks.begin, *about).result()

    def ask(self) -> None:
        """As `Ranks.ask`."""
        if self.ranks is not None:
            self.hand.submit(self.ranks.ask).result()

    def end(self) -> None:
        """As `Ranks.end`."""
        if self.ranks is not None:
            self.hand.submit(self.ranks.end).result()

    def close(self) -> None:
        """End the ranks and remove what lies on this machine."""
        if self.ranks is not None:
            self.hand.submit(self.ranks.close).result()
            self.ranks = None
        shutil.rmtree(self.folder, ignore_errors=True)

    def _watch(self) -> None:
        while time.monotonic() - self.heard < self.ttl:
            time.sleep(min(1.0, self.ttl / 10))
        # the ranks end with this process, whatever becomes of the thread that closes
        closing = threading.Thread(target=self.close, daemon=True)
        closing.start()
        closing.join(5)
        os._exit(1)


def family_of(address: str) -> socket.AddressFamily:
    """IPv4 or IPv6."""
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def swallow(server: socket.socket) -> None:
    """Take one connection's bytes, and answer with one when all have come."""
    with contextlib.suppress(OSError), server:
        one, _ = server.accept()
        with one:
            one.settimeout(PAIR)
            while one.recv(1 << 16):
                pass
            one.sendall(b"1")


def state_of(ranks: Ranks) -> State:
    """What they say of themselves."""
    codes = ranks.codes()
    return State(codes, ranks.words(), ranks.beats(), ranks.kept())


def unfit(folder: Path) -> str:
    """Why this machine should have no ranks, or ""; files are written in `folder`."""
    free, all_of_it = memory() or (1, 1)
    if free < LEAST_FREE * all_of_it:
        return f"has {free >> 20} MB of {all_of_it >> 20} MB of memory left"
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            body = os.urandom(WRITTEN)
            file.write(body)
            file.flush()
            os.fsync(file.fileno())
            file.seek(0)
            if file.read() != body:
                return f"reads from {folder} what it has not written"
    except OSError as e:
        return f"cannot write to {folder} ({e.strerror})"
    left = np.arange(SIDE * SIDE, dtype=np.float64).reshape(SIDE, SIDE) % 7
    if not np.array_equal(left @ left.T, np.rint(np.einsum("ik,jk->ij", left, left))):
        return "multiplies wrongly"
    return ""


def interface_of(address: str) -> str:
    """The network interface of this machine that has an address, "" where none has it.

    Without it, ranks look one another up by the host's name, which on many machines means
    127.0.1.1.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        for _, name in socket.if_nameindex():
            try:
                found = fcntl.ioctl(s, SIOCGIFADDR, struct.pack("256s", name.encode()[:15]))
            except OSError:
                continue  # it has no address
            if socket.inet_ntoa(found[20:24]) == address:
                return name
    return ""
