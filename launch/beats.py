"""Heartbeats: each rank says once a second where it stands, and whoever started it reads that.

A thread of its own writes them into a small file of this machine, so that a rank that waits, or
holds Python's lock, or is stopped, shows by what its beats no longer say. `vtx_scale.launch.hangs`
judges; here are the files, the signals and the stacks. Standard library alone.
"""

import contextlib
import faulthandler
import json
import math
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

from vtx_scale.checkpoints.format import steps
from vtx_scale.data_pipeline.objects import AnyPath, storage_of
from vtx_scale.distributed.phases import PHASES, Phases
from vtx_scale.launch.hangs import Beat, Verdict, judge
from vtx_scale.launch.memory import MEMORY, owned
from vtx_scale.launch.paths import checkpoints_of
from vtx_scale.trainer.output import Ledger, append_text, why

BEATS = "VTX_BEATS"  # the folder of this machine's beats, for its ranks
NEEDED = 1 << 16  # bytes that a folder must have room for
BEGAN = "VTX_BEGAN"  # when this attempt began, by this machine's monotonic clock
EVERY = 1.0  # seconds from one beat to the next
ROOM = 512  # bytes of a beat
PAUSE = 3.0  # seconds that a watcher may be late, before it counts as stopped itself
STACKS = 3.0  # seconds for ranks to write their stacks
NATIVE = 15.0  # seconds for py-spy


class Heart:
    """The beats of this process, as long as it lives; nothing where nobody reads them."""

    def __init__(self, rank: int, phases: Phases = PHASES, every: float = EVERY) -> None:
        """every: in seconds."""
        self.phases, self.done = phases, threading.Event()
        if (folder := os.environ.get(BEATS)) is None:
            return
        with contextlib.suppress(OSError):  # a disk that is full: the run goes on unwatched
            path = Path(folder) / str(rank)
            flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
            self.stacks = os.open(path.with_suffix(".stacks"), flags, 0o600)
            faulthandler.register(signal.SIGUSR2, self.stacks, all_threads=True, chain=False)
            self.fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            self._beat()
            threading.Thread(target=self._run, args=(every,), daemon=True).start()

    def close(self) -> None:
        """No more beats."""
        self.done.set()

    def _run(self, every: float) -> None:
        while not self.done.wait(every):
            with contextlib.suppress(Exception):  # a beat that is missed says that it is
                self._beat()

    def _beat(self) -> None:
        s = self.phases.state()
        row = [s.phase, s.step, s.since, time.monotonic(), s.inside, s.collectives, s.usual]
        line = json.dumps([*row, os.getpid()])
        os.pwrite(self.fd, line.ljust(ROOM)[:ROOM].encode(), 0)


class Beats:
    """Where the ranks of one machine write their beats, and what they say now."""

    def __init__(self) -> None:
        self.folder = folder_for()
        self.host, self.rounds = socket.gethostname(), -1
        self.begin()

    @property
    def environment(self) -> dict[str, str]:
        """What the ranks must know. An attempt begins with this process, where it is the first."""
        began = self.began if self.rounds > 1 else PHASES.began
        return {BEGAN: str(began), **({BEATS: str(self.folder)} if self.folder else {})}

    def begin(self) -> None:
        """A round begins: what ranks of the one before have left is gone."""
        self.began, self.rounds = time.monotonic(), self.rounds + 1
        self.last: dict[int, list[object]] = {}
        if self.folder is not None:
            with contextlib.suppress(OSError):
                self.folder.mkdir(0o700, exist_ok=True)
                for path in self.folder.iterdir():
                    path.unlink(missing_ok=True)

    def close(self) -> None:
        """The folder goes away."""
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)

    def read(self, ranks: Iterable[int]) -> list[Beat]:
        """Of each of these ranks; of one that has not begun, that it starts. None where there is no
        folder for them.
        """
        return [self._of(rank, self.folder) for rank in ranks if self.folder is not None]

    def _of(self, rank: int, folder: Path) -> Beat:
        with contextlib.suppress(OSError, ValueError):  # torn: the one before
            self.last[rank] = json.loads((folder / str(rank)).read_text())
        now = time.monotonic()
        if rank not in self.last:
            age = now - self.began
            return Beat(rank, "start.import", -1, age, age, collectives=-1, host=self.host)
        phase, step, since, at, inside, collectives, usual, pid = map(str, self.last[rank])
        return Beat(
            rank,
            phase,
            int(step),
            idle=now - float(since),
            silent=now - float(at),
            inside=inside == "True",
            collectives=int(collectives),
            usual=float(usual),
            still=is_still(int(pid)),
            host=self.host,
            pid=int(pid),
        )

    def stacks(self, ranks: Iterable[int]) -> dict[int, str]:
        """What the threads of these ranks are doing, in Python and, where py-spy is installed and
        may look, below it; of a process that is stopped, what the system says of it.
        """
        beats = [beat for beat in self.read(ranks) if beat.pid]
        native = {b.rank: py_spy(b.pid) for b in beats if not b.still}
        before = {b.rank: self._size(b.rank) for b in beats}
        for b in beats:
            with contextlib.suppress(ProcessLookupError):
                if not b.still:  # else it would come when nobody waits for it
                    os.kill(b.pid, signal.SIGUSR2)
        until = time.monotonic() + STACKS
        asked = [b.rank for b in beats if not b.still]
        while time.monotonic() < until and any(self._size(r) == before[r] for r in asked):
            time.sleep(0.05)
        time.sleep(0.2)  # for the rest of what has begun
        out = {}
        for b in beats:
            head = f"rank {b.rank} process {b.pid} on {b.host}: {b.phase}, {b.step} steps, "
            head += f"{b.collectives} collectives{', in one' if b.inside else ''}, "
            head += f"no progress for {b.idle:.1f} s, no beat for {b.silent:.1f} s\n\n"
            out[b.rank] = head + (of_system(b.pid) if b.still else self._stack(b.rank, before))
        until = time.monotonic() + NATIVE
        for rank, looking in native.items():
            out[rank] += answer_of(looking, until)
        return out

    def _size(self, rank: int) -> int:
        with contextlib.suppress(OSError):
            if self.folder is not None:
                return (self.folder / f"{rank}.stacks").stat().st_size
        return 0

    def _stack(self, rank: int, before: dict[int, int]) -> str:
        with contextlib.suppress(OSError):
            path = self.folder / f"{rank}.stacks" if self.folder is not None else None
            if path is not None and (body := path.read_bytes()[before[rank] :]):
                return body.decode(errors="replace")
        return "it did not answer: no handler, or the signal is blocked\n"


def folder_for() -> Path | None:
    """In memory, since a disk that is busy would hold beats up; in the temporary folder where that
    is full, None where both are: ranks are not watched then.
    """
    for home in (MEMORY, Path(tempfile.gettempdir())):
        with contextlib.suppress(OSError):
            path = owned("beats", home)
            try:
                (path / "room").write_bytes(bytes(NEEDED))
                return path
            except OSError:
                shutil.rmtree(path, ignore_errors=True)
    return None


def is_still(pid: int) -> bool:
    """Whether a process is stopped by a signal."""
    with contextlib.suppress(OSError, IndexError):
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        return state == "T"
    return False


def of_system(pid: int) -> str:
    """What the system knows of a process that cannot answer."""
    out = ""
    for name in ("wchan", "status", "stack"):
        with contextlib.suppress(OSError):
            out += f"/proc/{pid}/{name}\n{Path(f'/proc/{pid}/{name}').read_text()}\n"
    return out


def py_spy(pid: int) -> "subprocess.Popen[str] | None":
    """Begin to look at a process from outside; None where that cannot be."""
    if (found := shutil.which("py-spy")) is None:
        return None
    words = [found, "dump", "--native", "--pid", str(pid)]
    with contextlib.suppress(OSError):
        nowhere = subprocess.DEVNULL
        return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=nowhere, text=True)
    return None


def answer_of(looking: "subprocess.Popen[str] | None", until: float) -> str:
    """What it saw, nothing where it may not look or takes longer than the time `until`."""
    if looking is None:
        return ""
    try:
        text, _ = looking.communicate(timeout=max(0.1, until - time.monotonic()))
    except subprocess.TimeoutExpired:
        looking.kill()
        looking.communicate()
        return ""
    return f"\npy-spy\n{text}" if looking.returncode == 0 else ""


def newest(folder: AnyPath) -> int:
    """The step of the newest checkpoint, 0 where there is none or nobody can say."""
    with contextlib.suppress(OSError):
        return max(steps(checkpoints_of(folder)), default=0)
    return 0


class Watcher:
    """Sees to it that the ranks of one attempt come on. timeout: `system.timeout`, in seconds."""

    def __init__(
        self, folder: AnyPath, attempt: str, timeout: float, say: Callable[[str], None]
    ) -> None:
        self.folder, self.attempt, self.timeout, self.say = folder, attempt, timeout, say
        self.still: dict[int, float] = {}  # ranks that are stopped, since when
        self.next = 0.0
        self.awake = -math.inf  # since when: this process was stopped itself, perhaps the ranks too
        self.since: float | None = None  # in Unix time: when the run has come no further
        self.doubt: tuple[object, float] = None, 0.0  # who may be stuck and where, since when

    @property
    def due(self) -> bool:
        """Whether it is time to look; the next time is then a beat later."""
        now = time.monotonic()
        if now < self.next:
            return False
        if self.next and now - self.next > max(PAUSE, self.timeout / 4):
            self.awake = now
        self.next = now + EVERY
        return True

    def see(self, beats: list[Beat]) -> Verdict | None:
        """Judge the ranks of all machines. One that is stopped is named at once."""
        for beat in beats:
            if beat.still and beat.rank not in self.still:
                self.still[beat.rank] = time.monotonic()
                self._tell(f"rank {beat.rank} on {beat.host} is stopped (process {beat.pid})")
                self._note(kind="stopped", rank=beat.rank, host=beat.host)
            elif not beat.still and (since := self.still.pop(beat.rank, None)) is not None:
                self._tell(f"rank {beat.rank} goes on after {time.monotonic() - since:.0f} s")
        age = time.monotonic() - self.awake
        heard = [replace(b, idle=min(b.idle, age), silent=min(b.silent, age)) for b in beats]
        verdict = judge(heard, self.timeout)
        return verdict if self._stands(verdict, heard) else None

    def _stands(self, verdict: Verdict | None, beats: list[Beat]) -> bool:
        """Beats are of different moments: one may be from before its rank came on, another from
        after. So a verdict stands where it is still the same when all ranks have beaten again, or
        have been silent for longer than a collective may take.
        """
        beat = verdict and verdict.beat
        where = (
            (beat.rank, beat.phase, beat.step, beat.collectives) if beat else verdict is not None
        )
        now = time.monotonic()
        if where != self.doubt[0]:
            self.doubt = where, now
        return all(
            b.still or b.silent > self.timeout or now - b.silent > self.doubt[1] for b in beats
        )

    def keep(self, verdict: Verdict, stacks: dict[int, str]) -> None:
        """Say which rank is stuck, and keep what all of them are doing in the run's folder."""
        self.since = time.time() - verdict.seconds
        storage = storage_of(self.folder)
        kept = f"stacks/{self.attempt}"
        try:
            for rank, text in stacks.items():
                storage.put(f"{kept}/{rank}.txt", text.encode(errors="replace"))
        except OSError as e:
            self._tell(f"{kept} cannot be written: {why(e)}")
        beat = verdict.beat
        about = {"rank": beat.rank, "phase": beat.phase, "host": beat.host} if beat else {}
        about |= {"finished": max(0, beat.step)} if beat else {}
        about |= {"seconds": round(verdict.seconds, 1), "stacks": kept}
        self._note(kind="hang", reason=str(verdict), **about)
        self._tell(f"{verdict}; stacks of all ranks are in {kept}")

    def _tell(self, line: str) -> None:
        self.say(line)
        append_text(self.folder, line)

    def _note(self, **entry: object) -> None:
        """step: from which the run can go on, so that no resume cuts the line."""
        Ledger(self.folder).write(**entry, step=newest(self.folder), time=time.time())
