"""The recipe of a rank that only looks around: a rank imports it as it does a stranger's file."""

import ctypes
import json
import multiprocessing
import os
import random
import signal
import sys
import threading
import time
from pathlib import Path

import numpy as np
import torch

from vtx_scale.distributed.phases import PHASES

OWN = ("VTX_PARENT", "VTX_BEATS", "LC_CTYPE")  # of a rank, of a node, and of Python
SIGNALS = ("SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGCHLD", "SIGPIPE", "SIGALRM")


def drawn() -> dict:
    """Numbers that no two ranks may have in common, unless they fixed them."""
    own = {"python": random.random(), "numpy": np.random.rand(), "torch": torch.initial_seed()}
    return own | {"key": bytes(multiprocessing.current_process().authkey).hex()}


def seen() -> dict:
    """What must be the same in a forked rank and in a new Python."""
    fds = {}
    for fd in sorted(map(int, os.listdir("/proc/self/fd"))):
        if os.path.exists(f"/proc/self/fd/{fd}"):
            fds[fd] = os.readlink(f"/proc/self/fd/{fd}")
    return {
        "environment": {k: v for k, v in os.environ.items() if k not in OWN},
        "argv": sys.argv,
        "path": sys.path,
        "own group": os.getpgid(0) == os.getpid(),
        "signals": {name: str(signal.getsignal(getattr(signal, name))) for name in SIGNALS},
        "blocked": sorted(signal.pthread_sigmask(signal.SIG_BLOCK, [])),
        "wakeup": signal.set_wakeup_fd(-1),
        "fds": {fd: name for fd, name in fds.items() if fd < 3 or "/proc/" not in name},
        "threads": threading.active_count(),
        "torch threads": torch.get_num_threads(),
        "device": torch.cuda.is_initialized(),
        "umask": [mask := os.umask(0o22), os.umask(mask)][0],
        "cwd": os.getcwd(),
    }


def death_signal() -> int:
    number = ctypes.c_int()
    ctypes.CDLL(None).prctl(2, ctypes.byref(number))
    return number.value


if os.environ.get("PROBE"):
    at = Path(os.environ["PROBE"]) / os.environ["RANK"]
    about = {"seen": seen(), "drawn": drawn(), "pid": os.getpid(), "parent": os.getppid()}
    about["age"] = time.monotonic() - PHASES.began
    about |= {"said parent": int(os.environ["VTX_PARENT"]), "dies by": death_signal()}
    at.with_suffix(".part").write_text(json.dumps(about))
    at.with_suffix(".part").rename(at)
    if os.environ["PROBE_THEN"] == "sleep":
        time.sleep(600)
    if os.environ["PROBE_THEN"] == "raise":
        raise SystemExit(5)
    os._exit(int(os.environ["PROBE_THEN"]))
