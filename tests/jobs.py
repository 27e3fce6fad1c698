"""Whole jobs for tests, each a process of its own that can be killed: what `vtx train` does, forked
from a server that has imported it already.
"""

import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests import slow
from tests.ranks import SERVER
from tests.runs import COLOUR, smoke

Patch = tuple[Callable[..., None], tuple[Any, ...]]


@dataclass
class Job:
    """`vtx train RECIPE --smoke --run PLACE KEYS`.

    env: of the process. patches: (function, arguments), each called in it before it trains. said:
    a file for what it says.
    """

    place: str
    said: Path
    keys: tuple[str, ...] = ()
    recipe: str = COLOUR
    env: dict[str, str] = field(default_factory=dict)
    patches: tuple[Patch, ...] = ()

    def start(self):
        slow.must_be_marked()
        process = SERVER.Process(target=work, args=(self,))
        process.start()
        return process

    def run(self, patience: float = 60) -> int:
        """The exit code, that of a signal negative."""
        return ended(self.start(), patience)


def ended(process, patience: float = 60) -> int:
    """The exit code of a job that is to end by itself."""
    process.join(patience)
    if process.is_alive():
        process.kill()
        process.join()
        raise AssertionError(f"it did not end in {patience} s")
    return process.exitcode


def work(job: Job) -> None:
    os.environ |= {"OMP_NUM_THREADS": "1", **job.env}
    os.dup2(os.open(job.said, os.O_CREAT | os.O_WRONLY | os.O_APPEND), 2)
    from vtx_scale.data_pipeline.errors import UserError
    from vtx_scale.launch.places import place_at
    from vtx_scale.launch.train import train
    from vtx_scale.trainer.output import say

    for function, arguments in job.patches:
        function(*arguments)
    try:
        code = train(smoke(*job.keys, recipe=job.recipe), place_at(job.place))
    except UserError as e:
        say(f"vtx: {e}")
        code = 2
    os._exit(code)


def end_at_write(number: int, kind: str = "") -> None:
    """SIGKILL in place of a write to a bucket: the so-manieth, from 1, of those with this in their
    name.
    """
    from vtx_scale.cluster.storage.s3 import S3

    seen = []

    def counted(plain):
        def write(self, target, *arguments):
            if kind in target:
                seen.append(target)
                if len(seen) == number:
                    os.kill(os.getpid(), signal.SIGKILL)
            return plain(self, target, *arguments)

        return write

    for name in ("put", "put_if_absent", "replace_if", "delete", "_put_parts"):
        setattr(S3, name, counted(getattr(S3, name)))


def at_failpoint(name: str, function: Callable[..., None], *arguments: Any) -> None:
    """Call this once when a point is reached."""
    from vtx_scale.checkpoints import write
    from vtx_scale.trainer import loop

    once = [function]

    def reached(point: str) -> None:
        if point == name and once:
            once.pop()(*arguments)

    for module in (write, loop):
        before = module.failpoint

        def both(point: str, before=before) -> None:
            before(point)
            reached(point)

        module.failpoint = both


def stop_here() -> None:
    """As a machine that is suspended."""
    os.kill(os.getpid(), signal.SIGSTOP)
    time.sleep(0.5)  # this thread may run on for a moment before it is stopped


def meet(folder: Path, name: str) -> None:
    """Say that a point is reached, and go on when the test does."""
    (folder / name).touch()
    while not (folder / f"{name}-on").exists():
        time.sleep(0.01)


def shorter(seconds: float) -> None:
    """A lease runs out, a stop file is seen and lines are sent within so many seconds."""
    from vtx_scale.checkpoints import lease
    from vtx_scale.trainer import control, segments

    lease.acquire.__defaults__ = (*lease.acquire.__defaults__[:2], seconds, 0.05)
    lease.TTL = segments.EVERY = segments.AGAIN = seconds
    control.Looked.__init__.__defaults__ = (seconds,)


def no_pauses() -> None:
    """A request that fails is made again at once."""
    from vtx_scale.cluster.storage import pace

    pace.pause = lambda tries: 0.01
