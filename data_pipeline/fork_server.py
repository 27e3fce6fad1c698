"""The server from which multiprocessing forks workers, with everything imported.

multiprocessing starts it as a new Python, which imports torch once more. A process that has it
imported, and neither threads nor a device yet, forks the server from itself instead. What that
needs of `multiprocessing.forkserver` is private and stands here alone; where another Python has
it otherwise, and where the forked server has died, multiprocessing starts its own.
"""

import contextlib
import gc
import inspect
import multiprocessing
import multiprocessing.forkserver
import multiprocessing.resource_tracker
import os
import shutil
import socket
import sys
import threading
from multiprocessing.connection import arbitrary_address  # type: ignore[attr-defined]
from pathlib import Path
from typing import Any

from vtx_scale.data_pipeline.parent import die_with_parent
from vtx_scale.data_pipeline.signals import blocked

STATE = ("_forkserver_address", "_forkserver_alive_fd", "_forkserver_pid")
TAKES = ["listener_fd", "alive_r", "preload", "main_path", "sys_path"]  # its `main`


def private() -> Any:
    """multiprocessing's own record of its server; None where it is not as this file knows it."""
    module = multiprocessing.forkserver
    record = getattr(module, "_forkserver", None)
    main = getattr(module, "main", None)
    known = record is not None and all(hasattr(record, name) for name in STATE)
    return record if known and main and [*inspect.signature(main).parameters] == TAKES else None


def begin() -> bool:
    """Fork the server from this process, whose imports it keeps; whether that could be.

    It cannot where one runs, where this process has threads or a GPU, or where multiprocessing
    keeps its server in another way. It dies with this process.
    """
    record = private()
    if record is None or record._forkserver_pid is not None:
        return False
    torch = sys.modules.get("torch")
    if threading.active_count() > 1 or (torch is not None and torch.cuda.is_initialized()):
        return False
    address, parent = arbitrary_address("AF_UNIX"), os.getpid()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address)
        os.chmod(address, 0o600)
        listener.listen()
        ends_r, ends_w = os.pipe()
        with blocked():  # for good in the child: see `preload`
            pid = os.fork()
            if pid == 0:
                _serve(listener.fileno(), ends_r, parent)
        os.close(ends_r)
    record._forkserver_address = address
    record._forkserver_alive_fd = ends_w
    record._forkserver_pid = pid
    return True


def clear() -> None:
    """Before a process ends at once: remove the folder of its server's socket, which an orderly end
    of Python would.
    """
    folder = getattr(multiprocessing.current_process(), "_config", {}).get("tempdir")
    if folder:
        shutil.rmtree(folder, ignore_errors=True)


def _serve(listener: int, ends: int, parent: int) -> None:
    code = 1
    try:
        die_with_parent(parent)
        gc.freeze()  # nothing of the parent is finalised here
        # a lock on a file would be held here too
        for fd in map(int, os.listdir("/dev/fd")):
            if fd > 2 and fd not in (listener, ends):
                with contextlib.suppress(OSError):
                    os.close(fd)
        # those of a notebook or a test lie on descriptors that are closed now; kept, as Python 3.13
        # complains of a stream that it cannot close
        before = sys.stdout, sys.stderr
        sys.stdout, sys.stderr = sys.__stdout__, sys.__stderr__
        multiprocessing.forkserver.main(listener, ends, [])
        del before
    except SystemExit:  # its parent and all workers are gone
        code = 0
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        os._exit(code)


def preload(module: str) -> None:
    """Let the fork server run; where it does not yet, it imports this once for all its children."""
    settle()
    known = getattr(multiprocessing.forkserver._forkserver, "_preload_modules", [])
    if module not in known:
        multiprocessing.set_forkserver_preload([*known, module])
    # a terminal's Ctrl-C and a scheduler's warning go to all processes: the trainer decides, its
    # children must not die of it while they import
    with blocked():
        multiprocessing.resource_tracker.ensure_running()
        with blocked():  # once more, because the tracker's start lets signals through
            multiprocessing.forkserver.ensure_running()


def settle() -> None:
    """Where the server is about to end, wait until it has: multiprocessing would ask it still."""
    record = private()
    pid = record._forkserver_pid if record is not None else None
    if pid is not None:
        with contextlib.suppress(OSError):  # it is nobody's any more
            # its memory goes first, then its workers hear of it, then it can be waited for
            if not Path(f"/proc/{pid}/cmdline").read_bytes() and hasattr(os, "waitid"):
                os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
