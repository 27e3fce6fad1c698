"""`python -m vtx_scale.launch.fork_ranks FD PARENT`: the warm server of a machine.

It imports what a rank needs, once, and forks ranks whenever `vtx_scale.launch.warm` asks at the
other end of the socket FD. What is forked must have neither threads nor a device, so this process
never has any, and forks nothing where it finds one.
"""

import contextlib
import gc
import importlib
import json
import os
import random
import select
import signal
import socket
import sys
import threading
from collections.abc import Mapping
from multiprocessing import current_process
from pathlib import Path
from typing import Any, NoReturn

from vtx_scale.data_pipeline import fork_server
from vtx_scale.data_pipeline.parent import die_with_parent, signalled
from vtx_scale.data_pipeline.system import threads, wake_pipe
from vtx_scale.distributed.phases import PHASES
from vtx_scale.trainer.output import open_missing_descriptors

ASKS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)
WORKER = "vtx_scale.launch.worker"
NEEDS = (WORKER, "torch._dynamo", "vtx_scale.trainer.events")  # the last two ranks import late


class Server:
    """The ranks that were forked from this process, and who asked for them.

    answers: what signals do in a rank, as they did when this process began.
    """

    def __init__(self, control: socket.socket, answers: Mapping[int, Any]) -> None:
        self.control, self.answers = control, answers
        self.ranks: dict[int, str] = {}  # process id -> rank, of those that live
        self.rest = b""
        # a byte for every signal, so that the end of a rank wakes the server
        self.woken, self.wakes = wake_pipe()

    def tell(self, **what: Any) -> None:
        """One line to the launcher. Raises OSError where it is gone."""
        self.control.sendall(json.dumps(what).encode() + b"\n")

    def serve(self) -> None:
        """Until the launcher hangs up."""
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(self.wakes, warn_on_full_buffer=False)
        wait = select.poll()
        wait.register(self.control, select.POLLIN)
        wait.register(self.woken, select.POLLIN)
        while True:
            ready = dict(wait.poll())
            if self.woken in ready:
                os.read(self.woken, 4096)
                self.reap()
            if self.control.fileno() in ready:
                got = self.control.recv(1 << 16)
                if not got:
                    return
                *lines, self.rest = (self.rest + got).split(b"\n")
                for line in lines:
                    self.follow(json.loads(line))

    def reap(self) -> None:
        """Tell how ranks ended."""
        while self.ranks:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if not pid:
                return
            if pid in self.ranks:
                self.tell(rank=self.ranks.pop(pid), code=os.waitstatus_to_exitcode(status))

    def follow(self, order: dict[str, Any]) -> None:
        """Fork ranks, or send those that live a signal."""
        if "signal" in order:
            for pid in self.ranks:  # not reaped: the number is still theirs
                os.kill(pid, order["signal"])
            return
        if fault := unfit():
            self.tell(unfit=fault)
            return
        for rank, environment in order["ranks"].items():
            known = {**order["environment"], **environment}
            self.fork(rank, known, order["arguments"], order["asked"])

    def fork(
        self, rank: str, environment: Mapping[str, str], arguments: list[str], asked: float
    ) -> None:
        """One more rank, which takes no signal before it answers signals as a new process does; its
        time counts since it was asked for, also where it waited for the import.
        """
        parent = os.getpid()
        signal.pthread_sigmask(signal.SIG_BLOCK, ASKS)
        pid = os.fork()
        if pid == 0:
            signal.set_wakeup_fd(-1)
            self.control.close()
            os.close(self.woken)
            os.close(self.wakes)
            PHASES.reset(asked)
            begin(environment, arguments, parent, self.answers)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, ASKS)
        self.ranks[pid] = rank
        self.tell(rank=rank, pid=pid)


def unfit() -> str:
    """Why nothing may be forked from this process, "" where it may."""
    torch = sys.modules.get("torch")
    if max(threading.active_count(), threads()) > 1:
        names = ", ".join(t.name for t in threading.enumerate()[1:]) or "of a library"
        return f"their server has threads ({names})"
    if torch is not None and torch.cuda.is_initialized():
        return "their server has a device"
    return ""


def begin(
    environment: Mapping[str, str],
    arguments: list[str],
    parent: int,
    answers: Mapping[int, Any],
) -> NoReturn:
    """Be a rank, as if this process had been started for it."""
    code = 1
    try:
        os.setpgid(0, 0)
        die_with_parent(parent)
        os.environ.clear()
        os.environ.update(environment)
        os.environ["VTX_PARENT"] = str(parent)
        with contextlib.suppress(OSError):  # a name for `ps`, which only Linux lets one give
            Path("/proc/self/comm").write_text(f"vtx-rank-{os.environ['RANK']}")
        for number, answer in answers.items():
            signal.signal(number, answer)
        worker = sys.modules[WORKER]
        sys.argv = [str(worker.__file__), *arguments]
        random.seed()
        sys.modules["numpy"].random.seed()
        sys.modules["torch"].default_generator.seed()
        current_process().authkey = os.urandom(32)
        gc.enable()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, ASKS)
        code = worker.main(arguments)
    except SystemExit as e:
        code = e.code if isinstance(e.code, int) else int(e.code is not None)
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        fork_server.clear()
        os._exit(code)


def main(arguments: list[str]) -> None:
    """Import, then serve until the launcher hangs up or is gone."""
    control, parent = socket.socket(fileno=int(arguments[0])), int(arguments[1])
    control.set_inheritable(False)
    asked: tuple[int, ...] = (*ASKS, signal.SIGCHLD, signal.SIGUSR2)
    answers = {number: signal.getsignal(number) for number in asked}
    # whether ranks leave is their launcher's word: started with these signals blocked
    for number in ASKS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, ASKS)

    def look(*_: object) -> None:
        if os.getppid() != parent:
            os._exit(1)

    # not SIGKILL: the kernel sends it when the thread ends that started this process, which may be
    # one of many
    signal.signal(signal.SIGUSR2, look)
    signalled(signal.SIGUSR2)
    look()
    gc.disable()
    for name in NEEDS:
        importlib.import_module(name)
    gc.freeze()  # what is there stays: to look at it would copy the pages that ranks share
    server = Server(control, answers)
    with contextlib.suppress(ConnectionError):  # the launcher is gone
        server.tell(ready=True)
        server.serve()


if __name__ == "__main__":
    open_missing_descriptors()
    main(sys.argv[1:])
    os._exit(0)  # ranks die with it
