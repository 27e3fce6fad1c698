"""What another system than Linux lacks is done without, or said."""

import os
import subprocess
import sys

import pytest

from tests.runs import assert_same_bits, train

LINUX = """
import ctypes, os, signal, time

class Library:
    def __init__(self, *_, **__): pass

library = ctypes.CDLL
ctypes.CDLL = lambda name, *a, **k: Library() if name is None else library(name, *a, **k)
for module, names in (
    (os, "pipe2 sched_getaffinity posix_fallocate posix_fadvise pidfd_open waitid"),
    (signal, "pidfd_send_signal"),
    (time, "CLOCK_BOOTTIME"),
):
    for name in names.split():
        delattr(module, name)

def closed(path):
    return isinstance(path, (str, os.PathLike)) and os.fspath(path).startswith("/proc")

def without(name, place):
    real = getattr(place, name)
    def call(path, *a, **k):
        if closed(path):
            raise FileNotFoundError(2, "No such file or directory", path)
        return real(path, *a, **k)
    setattr(place, name, call)

import builtins, io
without("open", io)
without("open", builtins)
without("listdir", os)
without("stat", os)
"""


@pytest.mark.slow
def test_two_ranks_without_what_linux_alone_has(tmp_path):
    """Not another system: this one, with the doors shut that others do not have."""
    site = tmp_path / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text(LINUX)
    paths = os.pathsep.join([str(site), *filter(None, [os.environ.get("PYTHONPATH")])])
    keys = ("steps=4", "system.world=2", "system.workers=1", "checkpoint.every=2")
    train(tmp_path / "other", *keys, env={"PYTHONPATH": paths})
    train(tmp_path / "linux", *keys)
    assert_same_bits(tmp_path / "other", tmp_path / "linux")


def test_a_system_without_its_locks_is_told_where_it_runs():
    code = "import sys; sys.modules['fcntl'] = None; import vtx_scale"
    done = subprocess.run([sys.executable, "-c", code], text=True, capture_output=True)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("ImportError: vtx-scale runs on Linux")
