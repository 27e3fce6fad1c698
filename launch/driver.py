"""The rounds of a run over the machines of a cluster: which machines, how many ranks, from one
round to the next.

What `local` does on one machine, by the same rules; here machines may be lost, come back, be taken
away with notice. Whatever happens, all ranks end and the next round goes on from the newest
checkpoint.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from vtx_scale.cluster.job import GaveUp, Machine, State
from vtx_scale.cluster.policy import EXCLUDED, admit, layout
from vtx_scale.cluster.ray_nodes import Cluster, Held
from vtx_scale.data_pipeline.errors import UserError
from vtx_scale.data_pipeline.objects import AnyPath, ObjectPath
from vtx_scale.launch import run_folder
from vtx_scale.launch.beats import Watcher
from vtx_scale.launch.faults import Faults
from vtx_scale.launch.fitness import unfit
from vtx_scale.launch.judged import Ended, codes_of, judge
from vtx_scale.launch.node import Round
from vtx_scale.launch.rounds import AGAIN, HUNG, Tries, Watch, left, newest, patiently, start_of
from vtx_scale.launch.summary import WAITING
from vtx_scale.specs.run import System
from vtx_scale.trainer.goodput import attempt_name
from vtx_scale.trainer.goodput import ended as ended_at
from vtx_scale.trainer.leave import requests
from vtx_scale.trainer.output import Ledger, append_text, say, send, silent

LOOK = 0.2  # seconds between two looks at the ranks
AT_ONCE = 1.0  # seconds that a bucket may take for what happened
HOUR = 3600.0  # seconds
STACKS = 60.0  # seconds for all machines to tell what their ranks are doing


@dataclass(frozen=True)
class World:
    """The ranks that a run may have: from low to high, in multiples of `unit`, of which `axis`
    share heads and hidden units.
    """

    low: int
    high: int
    unit: int
    axis: int


def world_of(system: System, cluster: Cluster) -> World:
    """As the recipe says, else a rank for each GPU of the cluster as it is now, else one."""
    low, high = system.worlds or (max(1, cluster.total("GPU") if cluster.kind == "GPU" else 0),) * 2
    return World(low, high, system.unit if low < high else 1, system.axis(low))


@dataclass
class Driver:
    """Runs rounds until the run has ended.

    lease: on the run folder. patience: minutes to wait for machines. memory: whether the run keeps
    snapshots there, which go with a machine's actor. news: shows what the ranks tell, and is called
    often. written: the lines of log.txt that were said here already.
    """

    cluster: Cluster
    system: System
    folder: AnyPath
    lease: run_folder.Held
    patience: float = math.inf
    memory: bool = False
    news: Callable[[], None] = lambda: None
    written: set[str] = field(default_factory=set)
    number: int = 0
    ranks: int = 0  # of the round
    began: float = 0.0  # when the round did
    idle: list[Held] = field(default_factory=list)  # machines that it does without
    known: set[str] = field(default_factory=set)  # machines between which the network is fit
    heard: dict[str, float] = field(default_factory=dict)  # what was said, and when

    def drive(self) -> int:
        """The exit code of the run. Raises GaveUp where it cannot go on, UserError where a machine
        lacks what it needs or another job has the run.
        """
        self.world = world_of(self.system, self.cluster)
        self.faults = Faults(self.folder)
        tries = Tries(newest(self.folder))
        while True:
            held = self.gather()
            if held is None:
                self.announce(
                    "asked to leave: no worker runs, and what there was to save has been saved"
                )
                return 75
            ended = self.round(held)
            self.news()
            if (code := self.after(ended, tries)) is not None:
                return code

    def after(self, ended: Ended, tries: Tries) -> int | None:
        """The exit code where the run is over, None where another round begins."""
        moves = ended.code == 75 and ended.moves and not requests.wanted()
        if not moves and (code := left(requests, ended.code)) is not None:
            if ended.words and code:
                say(f"vtx: {ended.words}")
            return code
        if ended.full:
            raise GaveUp(ended.words)
        stored = patiently(self.folder, newest, self.folder)
        if stored is None:
            say("vtx: asked to leave while nothing ran: run the same command again.")
            return 75
        now = max(stored, ended.kept)
        for held in ended.lost:
            self.forget(held)
        again = tries.lost_again({held.machine.name for held in ended.lost}, now)
        if ended.lost:
            # what a machine still writes that nobody can reach does not count from here on; of one
            # that Ray gives up nobody knows whether it is dead or cut off
            patiently(self.folder, self.lease.advance)
        if not moves and (again or not ended.lost) and tries.failed(now):
            raise GaveUp(
                f"the workers failed {tries.failures} times without a new checkpoint: {ended.why}"
            )
        self.tell(ended, now)
        return None

    def tell(self, ended: Ended, now: int) -> None:
        """What happened, in the ledger and on the terminal."""
        ledger = Ledger(self.folder)
        for held in ended.lost:
            ledger.write(
                kind="node_lost", node=held.machine.name, reason=held.lost, time=time.time()
            )
            self.faults.add(held.machine.name, held.lost)
        if ended.bad is not None and not ended.lost:
            self.faults.add(ended.bad.name, ended.why)
        ledger.write(kind="restart", reason=ended.why, step=now, time=time.time())
        self.announce(f"{ended.why}: starting again from {start_of(now)}")

    def announce(self, line: str) -> None:
        """A sentence for the terminal, and in log.txt for whoever looks on from elsewhere."""
        say(line)
        self.written.add(line)
        append_text(self.folder, line)
        send(AT_ONCE)  # before there are ranks whose lines take it along

    def forget(self, held: Held) -> None:
        """Let a lost machine go; one that may be there still is not tried again at once."""
        if held.still or self.cluster.gone(held.machine):
            self.cluster.put_aside(held)
        else:
            self.cluster.drop(held)

    def say_now_and_then(self, line: str, again: float = AGAIN) -> None:
        """A sentence at once, and again every `again` seconds."""
        now = time.monotonic()
        if now - self.heard.get(line, -math.inf) >= again:
            self.heard[line] = now
            self.announce(line)

    # before a round

    def plan(self) -> dict[Machine, int]:
        """Ranks on each machine of the next round, {} where there is no room for one.

        Machines with too many faults are left out where the run can do without.
        """
        machines, now = self.cluster.machines(), time.time()
        bad = [m for m in machines if self.faults.score(m.name, now) >= EXCLUDED]
        plan = self.placed([m for m in machines if m not in bad])
        if bad and plan:
            for machine in bad:
                self.say_now_and_then(
                    f"{machine.name} is left out: {self.faults.reasons(machine.name)}", HOUR
                )
        return plan or self.placed(machines)

    def placed(self, machines: list[Machine]) -> dict[Machine, int]:
        """Ranks on each of these machines, {} where there is no room for a round."""
        slots, world = [machine.slots for machine in machines], self.world
        ranks = admit(sum(slots), world.low, world.high, world.unit)
        given = layout(ranks, slots, world.axis)
        return {machine: n for machine, n in zip(machines, given, strict=True) if n}

    def gather(self) -> list[tuple[Held, int]] | None:
        """Machines that are ready for a round, with their ranks; None where the run is asked to
        leave before.

        Raises GaveUp where there are none for longer than the patience.
        """
        before, waited = time.monotonic(), 0.0
        while not requests.wanted():
            self.check_lease()
            self.forget_lost()
            plan = self.plan()
            if plan and (ready := self.ready(plan)):
                return ready
            now = time.monotonic()
            if not plan:
                waited += (now - before) / 60  # not while machines that there are prepare
                here = sum(machine.slots for machine in self.cluster.machines())
                self.say_now_and_then(f"{WAITING}: {here} of {self.world.low} slots")
            before = now
            if waited > self.patience:
                raise GaveUp(f"no room for the workers for {waited:.0f} minutes (--patience)")
            self.news()
            time.sleep(LOOK)
        return None

    def forget_lost(self, used: Sequence[Held] = ()) -> None:
        """Machines that were lost while they had no ranks. used: those that have some."""
        for held in [h for h in self.cluster.held.values() if h.lost and h not in used]:
            self.say_now_and_then(f"{held.machine.name} {held.lost}: left out for now")
            self.faults.add(held.machine.name, held.lost)
            self.cluster.put_aside(held)

    def ready(self, plan: dict[Machine, int]) -> list[tuple[Held, int]]:
        """The machines of a plan, [] where one of them is not ready or not fit. Raises UserError
        where one lacks what the run needs.
        """
        held = [self.hold(machine, ranks) for machine, ranks in plan.items()]
        if not all(self.prepared(one) for one in held):
            return []
        together = {machine.key for machine in plan}
        faults = unfit(self.cluster, held, ring=together != self.known)
        for one, fault in zip(held, faults, strict=True):
            if fault:
                self.say_now_and_then(f"{one.machine.name} {fault}: left out for now")
                self.faults.add(one.machine.name, fault)
                self.cluster.put_aside(one)
        if any(fault != "" for fault in faults):
            return []
        self.known = together
        return [(one, plan[one.machine]) for one in held]

    def hold(self, machine: Machine, ranks: int) -> Held:
        """A machine's actor. What it has in memory must outlive a round in which it gets more
        ranks.
        """
        return self.cluster.hold(machine, ranks, machine.slots if self.memory else ranks)

    def prepared(self, held: Held) -> bool:
        """Whether a machine is ready. Raises UserError where it lacks what the run needs."""
        if held.fault:
            raise UserError(f"{held.machine.name}: {held.fault}")
        return held.fault is not None and not held.lost

    def check_lease(self) -> None:
        """Raises UserError where another job has taken the run over, GaveUp where nobody asks after
        the machines any more.
        """
        self.cluster.check()
        if self.lease.taken:
            raise run_folder.refusal(self.folder, self.lease.taken)

    # a round

    def round(self, placed: list[tuple[Held, int]]) -> Ended:
        """One start of all ranks, to its end."""
        held, self.number, self.began = [h for h, _ in placed], self.number + 1, time.monotonic()
        attempt = attempt_name(self.lease.epoch, self.number)
        self.idle = [one for one in self.cluster.held.values() if one not in held]
        self.watcher = Watcher(self.folder, attempt, self.system.timeout, silent)
        try:
            if self.begin(placed):
                moves, watch = self.follow(held)
            else:
                moves, watch = "", self.watch()
        finally:
            codes = codes_of(held)
            self.cluster.everywhere(held, "end")
        ended = judge(held, codes, moves, watch)
        unheard = [time.time() - one.silent for one in ended.lost]
        ended_at(self.folder, attempt, ended.code, min(unheard, default=self.watcher.since))
        return ended

    def begin(self, placed: list[tuple[Held, int]]) -> bool:
        """Whether the ranks have been started on every machine."""
        held, self.ranks = [h for h, _ in placed], sum(n for _, n in placed)
        world = self.ranks
        self.say_world(placed, world)
        (meet,) = self.cluster.everywhere(held[:1], "meeting", [len(held) == 1])
        if meet is None:
            return False
        rounds, first = [], 0
        for i, (_, ranks) in enumerate(placed):
            rounds.append(Round(self.number, world, first, ranks, i, meet))
            first += ranks
        self.cluster.everywhere(held, "begin", rounds, [self.lease.epoch] * len(held))
        for one in held:
            one.state, one.round = State(), self.number
        return not any(one.lost for one in held)

    def say_world(self, placed: list[tuple[Held, int]], world: int) -> None:
        """Which machines a round has, and which room no admitted world can use."""
        where = ", ".join(f"{held.machine.name} ({ranks})" for held, ranks in placed)
        many = len(placed) > 1
        self.announce(f"starting {world} workers on {where}" if many else "starting the workers")
        taken = {held.machine.key: ranks for held, ranks in placed}
        idle = {m.name: m.slots - taken.get(m.key, 0) for m in self.cluster.machines()}
        idle = {name: n for name, n in idle.items() if n}
        if idle and self.world.low < self.world.high and world < self.world.high:
            rest = ", ".join(f"{n} on {name}" for name, n in idle.items())
            self.announce(f"idle slots, of which no world can be made: {rest}")

    def follow(self, held: list[Held]) -> tuple[str, Watch]:
        """Until the round is over: (why its ranks were asked to make place for the next one, "" if
        they were not; what was seen of them).
        """
        watch, announced, moves = self.watch(), False, ""
        while not any(one.lost for one in held) and requests.count < 2:
            self.news()
            self.check_lease()
            self.release(held)
            if not moves and not requests.asked:
                moves = self.wants_another(held)
                if moves:
                    self.announce(f"{moves}: the workers save and start again")
                    self.cluster.everywhere(held, "ask")
            if requests.wanted() and not announced:
                announced = True
                self.announce("asked to leave: the workers save and end")
                if not moves:
                    self.cluster.everywhere(held, "ask")
            if all(one.state.codes for one in held) and watch.over(codes_of(held)):
                break
            if watch.first is None and self.hangs(held, watch):
                break
            time.sleep(LOOK)
        return moves, watch

    def watch(self) -> Watch:
        """On the exit codes of a round."""
        return Watch(isinstance(self.folder, ObjectPath))

    def release(self, held: list[Held]) -> None:
        """Let go of machines that the round does without, once its ranks train: until then another
        round may need what those have in memory.
        """
        phases = [beat.phase for one in held for beat in one.state.beats]
        if len(phases) == self.ranks and not any(phase.startswith("start") for phase in phases):
            while self.idle:
                if self.cluster.held.get((one := self.idle.pop()).machine.key) is one:
                    self.cluster.drop(one)

    def hangs(self, held: list[Held], watch: Watch) -> bool:
        """Whether the ranks come no further; what they are doing is kept then."""
        if not self.watcher.due:
            return False
        beats = [replace(beat, host=one.machine.name) for one in held for beat in one.state.beats]
        if (verdict := self.watcher.see(beats)) is None:
            return False
        stacks = [s or {} for s in self.cluster.everywhere(held, "stacks", limit=STACKS)]
        self.watcher.keep(verdict, {rank: text for s in stacks for rank, text in s.items()})
        watch.first = (verdict.beat.rank if verdict.beat else -1, HUNG)
        return True

    def wants_another(self, held: list[Held]) -> str:
        """Why another round with other machines should begin now, "" where this one is right."""
        leaving = [one.machine.name for one in held if one.machine.key in self.cluster.leaving]
        if leaving:
            return f"{', '.join(leaving)} is being taken away"
        if self.world.low == self.world.high:
            return ""
        if time.monotonic() - self.began < self.cluster.limits.settle:
            return ""
        self.forget_lost(held)
        plan, mine = self.plan(), {one.machine.key for one in held}
        world = sum(plan.values())
        if world <= self.ranks or not mine <= {machine.key for machine in plan}:
            return ""
        new = [self.hold(m, ranks) for m, ranks in plan.items() if m.key not in mine]
        return f"room for {world} workers" if all(self.prepared(one) for one in new) else ""
