"""Signs of life on stderr and in log.txt until the first step is done, every few seconds.

A thread of its own says what the process is at; it knows that from `PHASES` and ends by itself.
Standard library alone.
"""

import threading
import time
from collections.abc import Callable

from vtx_scale.distributed.phases import PHASES

EVERY = 5.0  # seconds
WORDS = {
    "start.import": "importing torch",
    "start.rendezvous": "waiting for the other ranks",
    "start.load": "making the model ready",
    "start.compile": "computing the first step",
    "data_wait": "reading the first batch",
    "evaluate": "evaluating",
    "save_stall": "saving",
}


class Signs:
    """Says every `every` seconds what this process is at, until a step is finished or `close`.

    say: takes the line. It must be closed before this process forks.
    """

    def __init__(self, say: Callable[[str], None], every: float = EVERY) -> None:
        self.say, self.every = say, every
        self.doing = ""  # in place of what the phase says
        self.first: int | None = None  # finished steps, when the loop began
        self.done = threading.Event()
        self.began = time.monotonic()
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def reading(self, step: int) -> None:
        """The first batch of this start is read from now on; so many steps are finished."""
        self.first = step
        self.say("reading the first batch")
        self.began = time.monotonic()

    def close(self) -> None:
        """No more signs; the thread has ended when this returns."""
        self.done.set()
        self.thread.join()

    def _run(self) -> None:
        at = self.began + self.every
        while not self.done.wait(min(0.2, self.every / 4)):
            if self.first is not None and PHASES.step > self.first:
                return
            if time.monotonic() >= at:
                at += self.every
                what = self.doing or WORDS.get(PHASES.state().phase, "getting ready")
                self.say(f"{what}, {time.monotonic() - self.began:.0f} s so far")


def of_batch(signs: "Signs | None", step: int) -> None:
    """`reading`, where there are signs."""
    if signs is not None:
        signs.reading(step)
