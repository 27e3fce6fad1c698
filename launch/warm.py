"""The launcher's end of the warm server: a process of this machine that has imported what a rank
needs, and from which ranks are forked. No torch.
"""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path

from vtx_scale.data_pipeline.signals import blocked

PROGRAM = "vtx_scale.launch.fork_ranks"
# numpy's BLAS starts its threads when it is imported; who asks torch for GPUs initialises one
UNTOUCHED = {"OPENBLAS_NUM_THREADS": "1", "PYTORCH_NVML_BASED_CUDA_CHECK": "1"}
GONE = 10.0  # seconds for ranks whose server has died, or that were ended
ENDS = (signal.SIGTERM, signal.SIGKILL, signal.SIGINT)  # end a process that does not listen yet


class Warm:
    """A warm server, which is started at once and imports while this process goes on.

    Ranks that are asked for meanwhile begin when it is ready. It dies with this process, and the
    ranks with it; `unfit` says why it cannot fork, where it cannot. For several threads.

    environment: beside this process's, for what reads it when it is imported.
    """

    def __init__(self, environment: Mapping[str, str] | None = None) -> None:
        self.lock = threading.RLock()
        self.ready, self.unfit, self.rest = False, "", b""
        self.ranks: dict[int, int | None] = {}  # rank -> exit code
        self.processes: dict[int, int] = {}  # rank -> process id
        self.socket, theirs = socket.socketpair()
        with theirs, blocked():  # a mask is inherited: it begins by ignoring them
            self.process = subprocess.Popen(
                [sys.executable, "-m", PROGRAM, str(theirs.fileno()), str(os.getpid())],
                pass_fds=[theirs.fileno()],
                process_group=0,
                env={**os.environ, **(environment or {}), **UNTOUCHED},
            )

    def fork(
        self, request: Path, environment: Mapping[str, str], ranks: Mapping[int, Mapping[str, str]]
    ) -> None:
        """Let ranks begin: `environment` is what all of them have, `ranks` what each has besides.

        Those before must have ended.
        """
        with self.lock:
            self.ranks, self.processes = {rank: None for rank in ranks}, {}
            order = {"arguments": [str(request)], "environment": dict(environment)}
            self._send(**order, ranks=dict(ranks), asked=time.monotonic())

    def codes(self) -> dict[int, int | None]:
        """Rank -> its exit code, negative for a signal, None while it lives or waits."""
        with self.lock:
            self._listen()
            return dict(self.ranks)

    def signal(self, number: int) -> None:
        """Send a signal to the ranks that live; those that wait for the server have ended by it."""
        with self.lock:
            self._listen()
            if not self._living():
                return
            if self.ready:
                self._send(signal=number)
            elif number in ENDS:
                self._end_server(number)

    def end(self) -> None:
        """End the ranks at once; they are gone when this returns."""
        with self.lock:
            self.signal(signal.SIGKILL)
            until = time.monotonic() + GONE
            while self._living():
                left = until - time.monotonic()
                if left < 0:
                    self._end_server(signal.SIGKILL)
                else:
                    self._listen(left)

    def close(self) -> None:
        """End the ranks and the server."""
        with self.lock:
            self.end()
            self._end_server(signal.SIGKILL)

    @property
    def alive(self) -> bool:
        """Whether it can be asked for ranks, as far as is known."""
        with self.lock:
            self._listen()
            return self.socket.fileno() >= 0 and not self.unfit

    def _living(self) -> bool:
        return None in self.ranks.values()

    def _send(self, **order: object) -> None:
        try:
            self.socket.sendall(json.dumps(order).encode() + b"\n")
        except OSError:  # it has died
            self._end_server()

    def _listen(self, patience: float = 0.0) -> None:
        """Take in what the server tells; wait so many seconds for a first word."""
        while self.socket.fileno() >= 0:
            try:
                self.socket.settimeout(patience)
                got = self.socket.recv(1 << 16)
            except (BlockingIOError, TimeoutError):
                return
            except OSError:
                got = b""
            finally:
                self.socket.settimeout(None)
            if not got:
                self._end_server()
                return
            patience = 0.0
            *lines, self.rest = (self.rest + got).split(b"\n")
            for line in lines:
                self._take(json.loads(line))

    def _take(self, word: dict[str, object]) -> None:
        self.ready = True
        if "unfit" in word:
            self.unfit = str(word["unfit"])
            self.ranks = {}
        elif "rank" in word:
            rank = int(str(word["rank"]))
            if "pid" in word:
                self.processes[rank] = int(str(word["pid"]))
            else:
                self.ranks[rank] = int(str(word["code"]))

    def _end_server(self, number: int = 0) -> None:
        """End the server as if by this signal, or see how it has ended by itself; the ranks end
        with it, and are waited for.
        """
        self.socket.close()
        if number:
            self.process.kill()
        try:
            code = self.process.wait(1.0)
        except subprocess.TimeoutExpired:
            self.process.kill()
            code = self.process.wait()
        until = time.monotonic() + GONE
        for rank in [rank for rank, ended in self.ranks.items() if ended is None]:
            pid = self.processes.get(rank)
            while pid is not None and lives(pid) and time.monotonic() < until:
                time.sleep(0.005)
            began = -signal.SIGKILL if pid is not None else code or 1
            self.ranks[rank] = -number or began


def lives(pid: int) -> bool:
    """Whether there is such a process that has not ended."""
    with contextlib.suppress(OSError):
        os.kill(pid, 0)
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except FileNotFoundError:  # it ended just now, or the system keeps no such files
            return not Path("/proc/self/stat").exists()
        return state not in "ZX"
    return False
