"""Faults at random moments on a cluster of machines, and who looks on meanwhile."""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from tests.cluster.bed import Bed, until
from tests.nodes import HOME
from tests.runs import environment
from vtx_scale.launch.follow import last_line
from vtx_scale.launch.places import place_at
from vtx_scale.launch.warm import PROGRAM

NEW_STEPS = 3  # between two faults, at least
PATIENCE = 240.0  # seconds until a run goes on
AWAY = 6.0  # seconds that a machine is gone
SHORT, LONG = 3.0, 40.0  # seconds of a cut, below and above the limit


class Watcher(threading.Thread):
    """Reads every manifest as soon as it is there: step -> (epoch, tag), as first seen."""

    def __init__(self, bed: Bed, bucket: str, prefix: str) -> None:
        super().__init__(daemon=True)
        self.client, self.bucket, self.prefix = bed.server.client(), bucket, prefix
        self.seen: dict[int, tuple[int, str]] = {}
        self.changed: list[str] = []
        self.ended = threading.Event()

    def run(self) -> None:
        while not self.ended.wait(0.2):
            with contextlib.suppress(Exception):  # it looks again
                self.look()

    def look(self) -> None:
        pages = self.client.get_paginator("list_objects_v2")
        where = f"{self.prefix}/checkpoints/"
        for page in pages.paginate(Bucket=self.bucket, Prefix=where):
            for entry in page.get("Contents", []):
                name = entry["Key"].removeprefix(where)
                if name.startswith("step-") and name.endswith("/manifest.json"):
                    self.read(int(name[5:13]), entry["Key"], entry["ETag"])

    def read(self, step: int, key: str, tag: str) -> None:
        if step in self.seen:
            if self.seen[step][1] != tag:
                self.changed.append(f"step {step} was committed twice")
            return
        body = self.client.get_object(Bucket=self.bucket, Key=key)
        self.seen[step] = (json.loads(body["Body"].read())["epoch"], body["ETag"])

    def epochs(self) -> list[int]:
        """Of the committed steps, in their order."""
        return [epoch for _, (epoch, _) in sorted(self.seen.items())]


@dataclass(frozen=True)
class Past:
    """A fault that was: at which step, and from when until when, in Unix time; then there were
    steps that were finished behind it.
    """

    name: str
    step: int
    begun: float
    done: float

    def stood(self, times: list[float]) -> float:
        """For how long no step was finished meanwhile. times: of all steps that count, in order;
        where some were done again, from the last one that was not.
        """
        pairs = zip(times, times[1:], strict=False)
        return max((b - a for a, b in pairs if b > self.begun and a < self.done), default=0.0)


@dataclass
class Chaos:
    """A run on a cluster, which `vtx jobs supervise` goes on with wherever a job of it is gone.

    url: of the bucket; run: of the run; seed: of what happens when and to whom.
    """

    bed: Bed
    url: str
    run: str
    logs: Path
    seed: int
    past: list[Past] = field(default_factory=list)
    supervisor: subprocess.Popen | None = None

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)

    def vtx(self, *words: object) -> subprocess.Popen:
        """The command on this host, which is no machine of the cluster."""
        env = {**self.bed.store, "RAY_AUTH_TOKEN": self.bed.token}
        env |= {"RAY_API_SERVER_ADDRESS": self.bed.dashboard}
        command = [sys.executable, "-m", "vtx_scale", *map(str, words)]
        with (self.logs / f"vtx-{words[0]}.log").open("ab") as log:
            return subprocess.Popen(command, stdout=log, stderr=log, env=environment(env))

    def begin(self, recipe: str, *keys: str) -> None:
        """Submit the run, and let somebody see to it."""
        shards = f"data.shards={self.url}/toy"
        words = ("submit", recipe, "--smoke", "--run", self.run, "--detach", shards, *keys)
        assert self.vtx(*words, "--address", self.bed.dashboard).wait(120) == 0, self.logs
        self.supervisor = self.vtx("jobs", "supervise", self.run)

    def end(self) -> None:
        """Have the run save and leave."""
        assert self.vtx("jobs", "stop", self.run).wait(PATIENCE) == 0, self.logs
        assert self.supervisor is not None
        assert self.supervisor.wait(PATIENCE) == 75, (self.past, self.logs)

    def newest(self) -> tuple[int, float]:
        """The newest finished step and when it was, as far as the bucket has been told."""
        with contextlib.suppress(OSError):
            row = last_line(place_at(self.run))
            return row.get("step", 0), row.get("time", 0.0)
        return 0, 0.0

    def step(self) -> int:
        """The newest finished step."""
        return self.newest()[0]

    def goes_on(self, since: float) -> None:
        """Wait until a step is finished that ended after a moment, in Unix time."""
        until(
            lambda: self.newest()[1] > since or self.ended(),
            PATIENCE,
            f"steps after {self.past}, see {self.logs}",
        )

    def ended(self) -> bool:
        """Whether nobody sees to the run any more."""
        return self.supervisor is None or self.supervisor.poll() is not None

    def more(self, than: int) -> float:
        """Wait until more steps are finished; how long that took, in seconds."""
        return until(
            lambda: self.step() > than or self.ended(),
            PATIENCE,
            f"more than {than} steps after {self.past}, see {self.logs}",
        )

    def fault(self, name: str) -> None:
        """Make one, behind some new steps and at any moment between two, and wait until the run
        goes on.
        """
        before = self.step()
        self.more(before + NEW_STEPS - 1)
        time.sleep(self.random.uniform(0, 1))
        at, begun = self.step(), time.time()
        after = FAULTS[name](self)
        self.goes_on(time.time())
        assert not self.ended(), f"the run ended at {name}: {self.past}, see {self.logs}"
        self.past.append(Past(name, at, begun, time.time()))
        print(f"{name}: at step {at}, over after {time.time() - begun:.1f} s", flush=True)
        if after is not None:
            after()

    # who there is

    def ranks(self) -> list[tuple[int, int]]:
        """(machine, process) of each: what a machine's warm server has forked."""
        found = []
        for i in self.bed.workers:
            if i in self.bed.nodes.first:
                servers = self.bed.nodes.processes(i, PROGRAM)
                found += [(i, p) for p in servers if parent(p) in servers]
        return found

    def some_rank(self) -> tuple[int, int]:
        """A machine with a rank, and that rank's process."""
        until(lambda: len(self.ranks()) > 1 or self.ended(), PATIENCE, "ranks")
        return self.random.choice(sorted(self.ranks()))

    def driver(self) -> tuple[int, int] | None:
        """(machine, process) of the job's driver, where there is one."""
        for i in self.bed.workers:
            if i not in self.bed.nodes.first:
                continue
            found = [
                p
                for p, line in self.bed.nodes.processes(i, "vtx_scale worker --run").items()
                if "python" in line.split()[0]
            ]
            if found:
                return i, found[0]
        return None

    def boot(self, i: int) -> None:
        """A machine that was off comes back, and its Ray with it."""
        self.bed.nodes.up(i)
        if i == 0:
            self.bed.start_head()
        else:
            self.bed.start_worker(i)


def parent(process: int) -> int:
    """Of a process of the host's, 0 where that has ended."""
    with contextlib.suppress(OSError):
        return int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])
    return 0


After = Callable[[], None] | None


def worker_killed(chaos: Chaos) -> After:
    os.kill(chaos.some_rank()[1], signal.SIGKILL)
    return None


def worker_stopped(chaos: Chaos) -> After:
    os.kill(chaos.some_rank()[1], signal.SIGSTOP)
    return None


def worker_stopped_shortly(chaos: Chaos) -> After:
    _, process = chaos.some_rank()
    os.kill(process, signal.SIGSTOP)
    time.sleep(SHORT)
    os.kill(process, signal.SIGCONT)
    return None


def writer_killed(chaos: Chaos) -> After:
    """A rank, right when a save puts its first file."""
    asked, begun = chaos.bed.proxy.asked, len(chaos.bed.proxy.asked)

    def saves() -> bool:
        return any(v == "PUT" and "/data-" in path for v, path in asked[begun:])

    until(lambda: saves() or chaos.ended(), PATIENCE, "a save", 0.01)
    os.kill(chaos.some_rank()[1], signal.SIGKILL)
    return None


def cut_for(seconds: float) -> Callable[[Chaos], After]:
    def cut(chaos: Chaos) -> After:
        i, _ = chaos.some_rank()
        chaos.bed.nodes.cut(i)
        time.sleep(seconds)
        chaos.bed.nodes.heal(i)
        return None

    return cut


def node_crashed(chaos: Chaos) -> After:
    i, _ = chaos.some_rank()
    chaos.bed.nodes.crash(i)
    time.sleep(AWAY)
    chaos.boot(i)
    return None


def power_cut(chaos: Chaos) -> After:
    return without_power(chaos, chaos.some_rank()[0])


def without_power(chaos: Chaos, i: int) -> After:
    chaos.bed.nodes.power_cut(i)
    time.sleep(AWAY)
    chaos.boot(i)
    return None


def power_cut_of_the_driver(chaos: Chaos) -> After:
    """Of its machine, which has a rank too."""
    until(chaos.driver, PATIENCE, "a driver")
    driver = chaos.driver()
    assert driver is not None
    return without_power(chaos, driver[0])


def head_crashed(chaos: Chaos) -> After:
    """Its state lies in Redis: the run goes on while it is away."""
    chaos.bed.nodes.crash(0)
    time.sleep(AWAY)
    at = chaos.step()
    chaos.more(at)
    print(f"head away: {chaos.step() - at} more steps", flush=True)
    chaos.boot(0)
    chaos.bed.ready(seconds=PATIENCE)
    return None


def driver_killed(chaos: Chaos) -> After:
    """Its ranks go on for as long as nobody asks after them; then there is another."""
    until(chaos.driver, PATIENCE, "a driver")
    killed = chaos.driver()
    assert killed is not None
    os.kill(killed[1], signal.SIGKILL)
    until(lambda: chaos.driver() not in (None, killed), PATIENCE, "another driver")
    return None


def store_errors(chaos: Chaos) -> After:
    kinds = ["503", "500", "reset", "lost", "429"]
    verbs = ["PUT", "GET", "HEAD"]
    pick = chaos.random.choice
    chaos.bed.proxy.faults += [(pick(verbs), pick(kinds)) for _ in range(12)]
    return chaos.bed.proxy.faults.clear


def disk_full(chaos: Chaos) -> After:
    i, _ = chaos.some_rank()
    words = f"dd if=/dev/zero of={HOME}/full bs=1M 2>/dev/null; true"
    chaos.bed.nodes.run(i, "sh", "-c", words)
    time.sleep(SHORT)
    chaos.bed.nodes.run(i, "rm", "-f", f"{HOME}/full")
    return None


FAULTS: dict[str, Callable[[Chaos], After]] = {
    "a worker killed": worker_killed,
    "a worker stopped": worker_stopped,
    "a worker stopped for 3 s": worker_stopped_shortly,
    "the writer killed": writer_killed,
    "a node cut for 3 s": cut_for(SHORT),
    "a node cut for 40 s": cut_for(LONG),
    "a node crashed": node_crashed,
    "a power cut": power_cut,
    "a power cut of the driver's machine": power_cut_of_the_driver,
    "the head crashed": head_crashed,
    "the driver killed": driver_killed,
    "store errors": store_errors,
    "a full disk": disk_full,
}

# which no rank is to notice: nothing starts again
HARMLESS = (
    "a worker stopped for 3 s",
    "a node cut for 3 s",
    "the head crashed",
    "store errors",
    "a full disk",
)
