"""The processes behind the loader's workers: signals to a whole job step do not reach them."""

import subprocess
import sys

BODY = """
import multiprocessing.forkserver as f, multiprocessing.resource_tracker as t, os, time
from vtx_scale.data_pipeline.fork_server import preload
from vtx_scale.data_pipeline.signals import leaving
preload("json")
children = [t._resource_tracker._pid, f._forkserver._forkserver_pid]
for number in leaving():
    for pid in children:
        os.kill(pid, number)
time.sleep(0.5)
for pid in children:
    assert os.waitpid(pid, os.WNOHANG) == (0, 0), pid
t.ensure_running()
assert t._resource_tracker._pid == children[0]
"""


def test_tracker_and_fork_server_outlive_a_schedulers_warning():
    """Slurm sends SIGUSR1 to every process of a step: a tracker that dies of it is started anew,
    with a warning, and forgets what it was to clean up.
    """
    done = subprocess.run([sys.executable, "-c", BODY], text=True, capture_output=True, timeout=100)
    assert (done.returncode, done.stderr) == (0, "")
