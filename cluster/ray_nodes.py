"""One actor on each machine of a Ray cluster that a run uses, and what the driver hears of them.

A thread asks every actor after its ranks, another what machines there are; neither waits for the
other, so that a head that is away for a while holds up nothing. An answer may come late: a machine
counts as lost when it was silent for `Limits.silence` while we listened, or when Ray says that its
actor is dead.
"""

import contextlib
import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import ActorUnavailableError, GetTimeoutError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from vtx_scale.cluster import ray_private
from vtx_scale.cluster.job import GaveUp, Job, Limits, Machine, State
from vtx_scale.cluster.keeper import Keeper
from vtx_scale.cluster.ray_settings import DRIVER_CPUS
from vtx_scale.data_pipeline.errors import UserError

CLOSE = 2.0  # seconds for an actor to remove what it has
CALLS = 8  # of one actor at once: a question is answered while the ranks are started
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
# Ray says no types of these
own_address: Callable[[], str] = ray.util.get_node_ip_address
nodes: Callable[[], list[dict[str, Any]]] = ray.nodes


@contextmanager
def connected(address: str, home: Path | None, cpus: int) -> Iterator[None]:
    """This process in a given cluster, or in one of its own (loopback; its files in `home`), until
    the block ends. What this process does at signals stays as it is.

    Raises UserError where no cluster answers, GaveUp where our own does not start.
    """
    options: dict[str, Any] = {"address": address}
    if home is not None:
        options |= {
            "num_cpus": cpus,
            "include_dashboard": False,
            "object_store_memory": 100_000_000,
            "_temp_dir": str(home),
        }
    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    with quiet():
        try:
            if home is None:
                knock(address)
            ray.init(log_to_driver=False, logging_level=logging.ERROR, **options)
        except Exception as e:
            ray.shutdown()
            if home is not None:
                raise GaveUp(f"Ray did not start on this machine ({first_line(e)})") from e
            raise UserError(
                f"No Ray cluster lets us in at --address={address} ({first_line(e)}): see "
                "that its head runs and that this machine is a part of it ('ray start'), or "
                "leave --address out."
            ) from e
        finally:  # Ray puts one of its own in the place of SIGTERM's
            for number, handler in handlers.items():
                signal.signal(number, handler)
        try:
            yield
        finally:
            ray.shutdown()


def knock(address: str) -> None:
    """Raises OSError where nobody listens, which Ray takes half a minute to find out."""
    host, _, port = address.rpartition(":")
    if host:
        # Ray means this machine's address by that
        local = host in ("localhost", "127.0.0.1", "[::1]")
        where = own_address() if local else host.strip("[]")
        socket.create_connection((where, int(port)), 5).close()


@contextmanager
def quiet() -> Iterator[None]:
    """Errors alone on stderr, and nothing on stdout, where Ray prints its guesses about every
    worker that died.
    """
    logging.getLogger("ray").setLevel(logging.ERROR)
    with open(os.devnull, "w") as nothing, redirect_stdout(nothing):
        yield


@dataclass(eq=False)
class Held:
    """A machine with an actor of ours, that has room for so many ranks.

    state: of its ranks, as it last answered. fault: why it cannot take part, "" once it is ready,
    None until then. lost: why it can no longer be used, "" while it can. silent: seconds without an
    answer. still: it may live on, where nobody hears it.
    """

    machine: Machine
    room: int
    actor: Any
    state: State = field(default_factory=State)
    fault: str | None = None
    preparing: Any = None
    silent: float = 0.0
    lost: str = ""
    still: bool = False
    asked: Any = None  # the poll that has not been answered, of the round ...
    asked_in: int = 0
    round: int = 0  # ... where that of a round before says nothing of this one
    answered: bool = False


class Cluster:
    """The machines of a cluster that this process is connected to, and the actors of a job on them.

    To be used in a `with` block, at the end of which the actors are gone.
    """

    def __init__(self, job: Job, limits: Limits, home: Path | None = None) -> None:
        self.job, self.limits, self.home = job, limits, home
        self.held: dict[str, Held] = {}  # by the machine's key
        self.leaving: dict[str, float] = {}  # draining: key -> until when it may run
        self._rows: list[dict[str, Any]] = []
        self._free: dict[str, dict[str, float]] = {}
        self._room: dict[str, int] = {}  # slots of a machine while an actor of ours was on it
        self._aside: dict[str, float] = {}  # key -> until when a machine is not tried again
        self._ended = threading.Event()
        self._threads = [threading.Thread(target=t, daemon=True) for t in (self._look, self._poll)]

    def __enter__(self) -> "Cluster":
        self.see()
        self.kind = "GPU" if self.job.gpus and self.total("GPU") else "CPU"
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        closing = [h for h in self.held.values() if not h.lost]
        self.everywhere(closing, "close", limit=5.0)
        for held in list(self.held.values()):
            self._kill(held)
        for thread in self._threads:
            thread.join(self.limits.look)

    def total(self, kind: str) -> int:
        """How many CPUs or GPUs the living machines have."""
        return sum(int(row["Resources"].get(kind, 0)) for row in self._rows)

    def machines(self) -> list[Machine]:
        """Those that can have ranks now, the ones with our actors first."""
        now, found = time.monotonic(), []
        for row in self._rows:
            key = row["NodeID"]
            held = self.held.get(key)
            if key in self.leaving or self._aside.get(key, 0) > now or (held and held.lost):
                continue
            # a job's driver may have its share of a CPU here
            free = int(self._free.get(key, {}).get(self.kind, 0) + DRIVER_CPUS)
            mine = self._room.get(key, 0)
            slots = max(free, mine) if held is None else max(held.room, mine)
            if held is None:
                self._room[key] = slots
            if slots:
                found.append(Machine(key, name_of(row), row["NodeManagerAddress"], slots))
        return sorted(found, key=lambda m: (m.key not in self.held, -m.slots, m.name))

    def check(self) -> None:
        """Raises GaveUp where nobody asks after the machines any more."""
        if not all(thread.is_alive() for thread in self._threads):
            raise GaveUp("a thread that asks after the machines has ended")

    def hold(self, machine: Machine, ranks: int, room: int) -> Held:
        """The actor on a machine, started with this room unless there is one with room for so many
        ranks.
        """
        held = self.held.get(machine.key)
        if held is not None and ranks <= held.room and not held.lost:
            return held
        if held is not None:
            self.drop(held)
        gpu = self.kind == "GPU"
        options = ray.remote(Keeper).options(
            scheduling_strategy=NodeAffinitySchedulingStrategy(machine.key, soft=False),
            num_cpus=0 if gpu else room - DRIVER_CPUS,
            num_gpus=room if gpu else 0,
            max_concurrency=CALLS,
            max_restarts=0,
        )
        home = str(self.home) if self.home else None
        actor = options.remote(
            self.job.start, self.job.payload, machine.address, self.limits.ttl, home
        )
        held = Held(machine, room, actor)
        held.preparing = self._call(held, "prepare")
        self.held[machine.key] = held
        return held

    def drop(self, held: Held) -> None:
        """End an actor, and remove what it has on its machine, which may be used again."""
        if held.answered and not held.lost:
            self.everywhere([held], "close", limit=CLOSE)
        self.held.pop(held.machine.key, None)
        self._kill(held)

    def _kill(self, held: Held) -> None:
        with contextlib.suppress(Exception):  # it is gone already, or Ray is
            ray.kill(held.actor, no_restart=True)

    def put_aside(self, held: Held) -> None:
        """Drop an actor, and leave its machine alone for a while."""
        self._aside[held.machine.key] = time.monotonic() + self.limits.aside
        self._room.pop(held.machine.key, None)
        self.drop(held)

    def gone(self, machine: Machine) -> bool:
        """Whether Ray has given a machine up."""
        return machine.key not in {row["NodeID"] for row in self._rows}

    def everywhere(
        self, all_held: Sequence[Held], name: str, *about: Any, limit: float | None = None
    ) -> list[Any]:
        """What a method of each actor answers, asked of all at once; None of those that are lost by
        it. about: arguments, a sequence with one for each actor each. limit: in seconds, else that
        of silence.
        """
        calls = [
            (held, tuple(a[i] for a in about)) for i, held in enumerate(all_held) if not held.lost
        ]
        refs = {id(held): self._call(held, name, given) for held, given in calls}
        until = time.monotonic() + (limit or self.limits.silence)
        answers: dict[int, Any] = {}
        for held, given in calls:
            while id(held) not in answers and not held.lost:
                left = until - time.monotonic()
                try:
                    answers[id(held)] = ray.get(refs[id(held)], timeout=max(0.0, left))
                except GetTimeoutError:
                    self._lose(held, f"has not answered for {limit or self.limits.silence:.0f} s")
                except ActorUnavailableError:  # the connection is broken; the actor may live
                    if left <= 0:
                        self._lose(held, f"was out of reach for {self.limits.silence:.0f} s")
                    time.sleep(min(self.limits.poll, max(0.0, left)))
                    refs[id(held)] = self._call(held, name, given)
                except Exception as e:
                    self._die(held, e)
        return [answers.get(id(held)) for held in all_held]

    def _call(self, held: Held, name: str, about: Sequence[Any] = ()) -> Any:
        return getattr(held.actor, name).remote(*about)

    def _lose(self, held: Held, why: str) -> None:
        held.lost, held.still = why, True

    def _die(self, held: Held, e: Exception) -> None:
        ours = isinstance(e, RayTaskError)  # an error of this program
        why = f" ({str(e).strip().splitlines()[-1]})" if ours else ""
        held.lost = held.lost or f"has lost the process that keeps its ranks{why}"

    def see(self) -> None:
        """Look at the cluster."""
        self._rows = [row for row in nodes() if row["Alive"]]
        self._free, self.leaving = ray_private.available(), ray_private.draining()

    def _look(self) -> None:
        while not self._ended.wait(self.limits.look):
            with contextlib.suppress(Exception):  # a head that is away for a while
                self.see()

    def _poll(self) -> None:
        before = time.monotonic()
        while not self._ended.is_set():
            everyone = [held for held in list(self.held.values()) if not held.lost]
            answered: set[int] = set()
            with contextlib.suppress(Exception):  # of Ray's: who is not heard falls silent
                answered = self._ask(everyone)
            self._ended.wait(max(0.0, before + self.limits.poll - time.monotonic()))
            now = time.monotonic()
            passed, before = min(1.0, now - before), now  # a process that was stopped heard nobody
            for held in everyone:
                held.silent += passed
                if id(held) in answered:
                    self._answered(held, held.asked)
                limit = self.limits.silence if held.answered else self.limits.start
                if held.silent > limit and not held.lost:
                    self._lose(held, f"has been silent for {limit:.0f} s")

    def _ask(self, everyone: Sequence[Held]) -> set[int]:
        """Ask each of them that has answered; the ids of those whose answer is there by now."""
        for held in everyone:
            if held.asked is None:
                held.asked, held.asked_in = self._call(held, "poll"), held.round
            if held.fault is None:
                self._prepared(held)
        refs = {held.asked: held for held in everyone}
        if not refs:
            return set()
        done, _ = ray.wait(list(refs), num_returns=len(refs), timeout=self.limits.poll)
        return {id(refs[ref]) for ref in done}

    def _prepared(self, held: Held) -> None:
        if ray.wait([held.preparing], timeout=0)[0]:
            try:
                held.fault = ray.get(held.preparing)
            except ActorUnavailableError:
                held.preparing = self._call(held, "prepare")
            except Exception as e:
                self._die(held, e)

    def _answered(self, held: Held, ref: Any) -> None:
        held.asked = None
        try:
            state = ray.get(ref)
        except ActorUnavailableError:
            return
        except Exception as e:
            self._die(held, e)
            return
        held.silent, held.answered = 0.0, True
        if held.asked_in == held.round:
            held.state = state


def name_of(row: Mapping[str, Any]) -> str:
    """What people call a machine: the name of `ray start --node-name`, else its host's."""
    given = row.get("NodeName") or ""
    return given if given and given != row["NodeManagerAddress"] else row["NodeManagerHostname"]


def first_line(e: BaseException | None) -> str:
    return next(iter(str(e).strip().splitlines()), type(e).__name__)
