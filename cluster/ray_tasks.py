"""The same work on many units as tasks of a Ray cluster, a unit a task.

A task that is lost with its process or its machine is done again elsewhere; the results come in the
order of the units.
"""

import io
import logging
import os
import socket
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, redirect_stdout
from typing import Any, TextIO, TypeVar

import ray
from ray.exceptions import RayError

from vtx_scale.data_pipeline.errors import UserError
from vtx_scale.data_pipeline.pool import Pool

AGAIN = 3  # times that a task is given out once more
AHEAD = 4  # tasks a processor that are handed out before the first result is taken
PATIENCE = 4.0  # seconds for somebody to listen at an address
U = TypeVar("U")
R = TypeVar("R")
# Ray says no types of these
own_address: Callable[[], str] = ray.util.get_node_ip_address
resources: Callable[[], dict[str, float]] = ray.cluster_resources
packed: Callable[[Any], bytes] = ray.cloudpickle.dumps
unpacked: Callable[[bytes], Any] = ray.cloudpickle.loads


@contextmanager
def tasks(
    address: str, limit: int, prepare: Callable[[], None], say: Callable[[str], None]
) -> Iterator[Pool]:
    """A pool on the cluster that answers at HOST:PORT, or at "auto", until the block ends.

    limit: tasks at once, 0 for as many as there are processors. prepare: is called first wherever
    a task runs; every machine must be able to import it. say: takes a line for each task that was
    lost. Raises UserError where no cluster answers.
    """
    logging.getLogger("ray").setLevel(logging.ERROR)
    with redirect_stdout(OfThisThread(sys.stdout)):
        try:
            knock(address)
            ray.init(
                address=address,
                log_to_driver=False,
                logging_level=logging.ERROR,
                runtime_env={"env_vars": {"OMP_NUM_THREADS": "1"}},
            )
        except Exception as e:
            ray.shutdown()
            raise UserError(
                f"No Ray cluster lets us in at --address={address} ({first_line(e)}): see that its "
                "head runs and that this machine is a part of it ('ray start')."
            ) from e
        try:
            yield Tasks(limit, prepare, say)
        finally:
            with open(os.devnull, "w") as nothing, redirect_stdout(nothing):
                ray.shutdown()  # it prints the news that it held back


class OfThisThread(io.TextIOBase):
    """A standard output for the thread that makes it alone: Ray prints its news among results from
    one of its own.
    """

    def __init__(self, out: TextIO) -> None:
        self.out, self.thread = out, threading.current_thread()

    def write(self, text: str) -> int:
        """What another thread writes is dropped."""
        ours = threading.current_thread() is self.thread
        return self.out.write(text) if ours else len(text)

    def flush(self) -> None:
        """As of any."""
        self.out.flush()


def knock(address: str) -> None:
    """Raises OSError where nobody listens, which Ray takes most of a minute to find out."""
    host, _, port = address.rpartition(":")
    if host and host not in ("localhost", "127.0.0.1", "[::1]"):  # by which Ray means another one
        socket.create_connection((host.strip("[]"), int(port)), PATIENCE).close()
    elif host and not any(listens(where, int(port)) for where in ("127.0.0.1", own_address())):
        raise ConnectionRefusedError("nobody listens there")


def listens(host: str, port: int) -> bool:
    """Whether somebody does."""
    try:
        socket.create_connection((host, port), PATIENCE).close()
    except OSError:
        return False
    return True


class Tasks:
    """A `Pool`, to be used while this process is connected."""

    def __init__(self, limit: int, prepare: Callable[[], None], say: Callable[[str], None]) -> None:
        self.limit, self.prepare, self.say = limit, prepare, say

    def __call__(self, work: Callable[[U], R], units: Iterable[U]) -> Iterator[R]:
        """As `Pool`."""
        # a task is given out again here, where it can be said
        task: Any = ray.remote(num_cpus=1, max_retries=0)(one)
        body = ray.put(packed(work))

        def give(unit: bytes) -> Any:
            return task.remote(self.prepare, body, unit)

        room = self.limit or AHEAD * max(1, int(resources().get("CPU", 1)))
        ahead: deque[tuple[bytes, Any]] = deque()
        done = 0
        for unit in map(packed, units):
            ahead.append((unit, give(unit)))
            if len(ahead) >= room:
                done += 1
                yield self.result(done, *ahead.popleft(), give)
        while ahead:
            done += 1
            yield self.result(done, *ahead.popleft(), give)

    def result(self, number: int, unit: bytes, task: Any, give: Callable[[bytes], Any]) -> Any:
        """What a task gives. Raises what its work raises, and UserError where its process ends
        again and again.
        """
        for time in range(AGAIN + 1):
            try:
                value, fault = ray.get(task)
            except RayError as e:
                why = first_line(e)
                if time < AGAIN:
                    self.say(f"part {number} was lost on the cluster ({why}): done again")
                    task = give(unit)
                continue
            if fault is not None:
                raise fault
            return value
        raise UserError(
            f"Part {number} was lost {AGAIN + 1} times on the cluster ({why}): look at the memory "
            "of its machines, then run the same command again, which goes on from here."
        )


def one(prepare: Callable[[], None], work: bytes, unit: bytes) -> tuple[Any, Exception | None]:
    """A task: (what the work gives, None), or (None, what it raises)."""
    prepare()
    try:
        return unpacked(work)(unpacked(unit)), None
    except Exception as e:
        return None, e


def first_line(e: BaseException) -> str:
    """The first sentence of what an exception says, or the name of its class."""
    line = next(iter(str(e).strip().splitlines()), type(e).__name__)
    return line.partition(". ")[0].rstrip(".")
