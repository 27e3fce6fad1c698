"""Ranks that sleep, and a process that keeps them; light, so that it starts at once."""

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

from vtx_scale.cluster.job import State
from vtx_scale.data_pipeline.parent import die_with_parent

TTL = 3.0


class Sleepers:
    """Two ranks that sleep, as `vtx_scale.cluster.job.Ranks`."""

    def __init__(self, payload: dict, folder: Path) -> None:
        self.mark, self.processes = payload["mark"], []

    def begin(self) -> None:
        code = f"from {__name__} import *; sleep({os.getpid()})"
        for _ in range(2):
            command = [sys.executable, "-c", code, self.mark]
            self.processes.append(
                subprocess.Popen(command, start_new_session=True, stdout=subprocess.PIPE)
            )
        for process in self.processes:
            process.stdout.readline()

    def codes(self):
        return {rank: process.poll() for rank, process in enumerate(self.processes)}

    def words(self):
        return {}

    def beats(self):
        return []

    def kept(self):
        return 0

    def close(self) -> None:
        for process in self.processes:
            process.kill()
            process.wait()


def sleep(parent: int) -> None:
    die_with_parent(parent)
    print("here", flush=True)
    time.sleep(600)


def keep(mark: str, home: str, seconds: float) -> None:
    """A keeper that is asked for so many seconds, and then no more."""
    from vtx_scale.cluster.keeper import Keeper

    keeper = Keeper(Sleepers, {"mark": mark}, "127.0.0.1", TTL, home)
    assert keeper.prepare() == "" and keeper.check() == ""

    def thread(call):
        found = []
        one = threading.Thread(target=lambda: found.append(call()))
        one.start()
        one.join()
        return found[0]

    thread(keeper.begin)  # in threads that end, as those of Ray may
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        assert thread(keeper.poll) == State({0: None, 1: None})
        print("polled", flush=True)
        time.sleep(0.2)
    time.sleep(600)
