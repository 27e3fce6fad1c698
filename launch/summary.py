"""What a run's lines say of it: pure functions of them. Standard library alone."""

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

from vtx_scale.launch.columns import Columns, number
from vtx_scale.launch.redact import shown
from vtx_scale.trainer.goodput import Goodput, line_of
from vtx_scale.trainer.lines import parsed

RECENT = 50  # steps that "now" means
PACE = 200  # steps from which the time that is left is guessed
KEPT = 10_000  # entries of the ledger of one run that are kept one by one
NEWS = 200  # lines of log.txt that are kept
LETTERS = 400  # of a text in the ledger or the log

State = Literal["waiting", "running", "held", "silent", "left", "given up", "finished"]
NODES = re.compile(r"(\d+) ranks on (\d+) nodes: (.*)")
STEP = re.compile(r"step (\d+)/(\d+) ")
RESUMED = re.compile(r"resumed at step (\d+) of (\d+)")
ENDED = re.compile(r"(finished|left) at step (\d+)")
WAITING = "waiting for machines"  # how the driver's sentence on that begins
AWAKE = ("starting ", "asked to leave")  # and those that end the wait
DATED = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d ")
MASKING = ("sample",)
LONG = ("samples", "members", "slot", "position", "epoch", "part", "parts", "kind", "time", "step")


@dataclass
class Entry:
    """A line of the ledger that people are shown. step: where it names one. time: in seconds since
    1970 by the clock of who wrote it.
    """

    kind: str
    text: str
    step: int | None = None
    time: float | None = None
    lost: int | None = None  # steps that were computed again by it, where that is known


@dataclass
class Start:
    """One that went on from a checkpoint. reached: the last step that the log names before it, None
    where it names none. when: as the log has it.
    """

    step: int
    reached: int | None
    when: str


@dataclass
class Records:
    """What ledger.jsonl, evaluations.jsonl and log.txt say, line by line.

    masked: reason -> slots. skipped: step -> why. others: how many further entries there are.
    """

    masked: Counter[str] = field(default_factory=Counter)
    retries: int = 0
    skipped: dict[int, str] = field(default_factory=dict)
    entries: list[Entry] = field(default_factory=list)
    others: int = 0
    evaluations: dict[str, Columns] = field(default_factory=dict)
    starts: list[Start] = field(default_factory=list)
    news: list[str] = field(default_factory=list)
    ranks: int | None = None  # of the newest start that was on several machines
    nodes: list[str] = field(default_factory=list)  # its machines
    ended: str = ""  # the last that the log says of an end
    waiting: str = ""  # the newest sentence on a wait for machines, "" where that has ended
    reached: int | None = None
    damaged: Counter[str] = field(default_factory=Counter)  # file -> lines that are none

    def count(self, kind: str) -> int:
        """Entries of a kind."""
        return sum(entry.kind == kind for entry in self.entries)


def add_ledger(records: Records, lines: Iterable[bytes]) -> None:
    """Lines of ledger.jsonl."""
    for line in lines:
        row = parsed(line)
        if row is None:
            records.damaged["ledger.jsonl"] += bool(line.strip())
            continue
        kind, step = str(row.get("kind", "note")), row.get("step")
        at = step if type(step) is int else None
        reason = shown(str(row.get("reason", "")), LETTERS)
        if kind in MASKING:
            records.masked[reason] += "where" not in row
        elif kind == "retry":
            records.retries += 1
        elif kind == "skip" and at is not None:
            records.skipped[at] = reason
        elif kind != "note" and len(records.entries) < KEPT:
            at = decided_at(row) if kind == "decision" else at
            records.entries.append(Entry(kind, sentence(row), at, number(row.get("time"))))
        else:
            records.others += 1


def decided_at(row: dict[str, Any]) -> int | None:
    """The step of a decision, which its line does not call so, as it must not be cut."""
    step = row.get("to", row.get("from"))
    return step if type(step) is int else None


def sentence(row: dict[str, Any]) -> str:
    """What an entry says, in a line."""
    kind = row.get("kind")
    if kind == "decision" and row.get("reason") == "roll_back":
        return f"back to step {row.get('to')}, on at position {row.get('position')}"
    if kind == "decision" and row.get("key"):
        return shown(f"{row['key']}={row.get('value')} from step {row.get('from')} on", LETTERS)
    if kind == "dropped":
        return shown(f"{row.get('count')} writes of {row.get('place')}: {row.get('reason')}")
    reason = [str(row["reason"])] if row.get("reason") else []
    rest = [f"{k} {row[k]}" for k in row if k not in (*LONG, "reason") and row[k] is not None]
    return shown(" · ".join([*reason, *rest]), LETTERS)


def kind_of(entry: Entry) -> str:
    """Its word for people."""
    if entry.kind == "decision":
        return "roll-back" if entry.text.startswith("back to") else "amendment"
    return entry.kind.replace("_", " ")


def add_evaluations(records: Records, lines: Iterable[bytes]) -> None:
    """Lines of evaluations.jsonl."""
    for line in lines:
        row = parsed(line)
        if row is None:
            records.damaged["evaluations.jsonl"] += bool(line.strip())
            continue
        name = shown(str(row.get("name", "")))[:60]
        records.evaluations.setdefault(name, Columns()).add(row)


def add_log(records: Records, lines: Iterable[bytes]) -> None:
    """Lines of log.txt: tracebacks between them are left out."""
    for line in lines:
        text = line.decode(errors="replace")
        if not DATED.match(text):
            continue
        words = text[20:]
        if words.startswith(WAITING):
            records.waiting = shown(words, LETTERS)
        elif words.startswith(AWAKE) or any(p.match(words) for p in (STEP, RESUMED, NODES, ENDED)):
            records.waiting = ""
        if found := STEP.match(words):
            records.reached, records.ended = int(found[1]), ""
        elif found := RESUMED.match(words):
            records.starts.append(Start(int(found[1]), records.reached, text[:19]))
            records.reached, records.ended = int(found[1]), ""
            records.ranks, records.nodes = None, []
        elif found := NODES.match(words):
            records.ranks, records.nodes = int(found[1]), shown(found[3]).split(", ")
        elif found := ENDED.match(words):
            records.reached, records.ended = int(found[2]), found[1]
        records.news.append(shown(text, LETTERS))
    del records.news[:-NEWS]


def add_metrics(columns: Columns, lines: Iterable[bytes]) -> int:
    """Lines of metrics.jsonl; how many of them are none."""
    bad = 0
    for line in lines:
        row = parsed(line)
        bad += bool(line.strip()) and (row is None or not columns.add(row))
    return bad


@dataclass(frozen=True)
class Holder:
    """What the lease says. who: the process that has it, "" where nobody had it yet. quiet: seconds
    of this machine's clock since its last beat was seen to change, None where none was seen yet.
    watched: seconds since the first look.
    """

    who: str = ""
    epoch: int = 0
    released: bool = True
    quiet: float | None = None
    watched: float = 0.0


@dataclass
class Summary:
    """A run as it stands. about: run.json, empty where there is none. steps: it should have.
    checkpoints: their steps. manifest: of the newest. fault: what cannot be read, for people.
    resumes: as `resumes` has them. grown: seconds of this machine's clock since steps were seen to
    come, None where none were.
    """

    folder: str
    about: dict[str, Any] = field(default_factory=dict)
    fault: str = ""
    steps: int | None = None
    columns: Columns = field(default_factory=Columns)
    records: Records = field(default_factory=Records)
    checkpoints: list[int] = field(default_factory=list)
    manifest: dict[str, Any] = field(default_factory=dict)
    holder: Holder = field(default_factory=Holder)
    goodput: Goodput | None = None
    resumes: list[tuple[int, int]] = field(default_factory=list)
    grown: float | None = None
    ttl: float = 30.0

    @property
    def step(self) -> int:
        """Finished steps."""
        newest = self.columns.steps[-1] if len(self.columns) else 0
        return max(newest, 0)

    @property
    def name(self) -> str:
        """Of the run: its folder's."""
        return self.folder.rstrip("/").rpartition("/")[2] or self.folder

    @property
    def state(self) -> State:
        """What it does, as far as the lease and its own files say."""
        saved = max(self.checkpoints, default=0)
        if self.steps is not None and saved >= self.steps:
            return "finished"
        if saved and any(e.kind == "stopped" and e.step == saved for e in self.records.entries):
            return "finished"
        if not self.about and not self.holder.who:
            return "waiting"
        if not self.holder.released:
            quiet, watched = self.holder.quiet, self.holder.watched
            signs = [age for age in (quiet, self.grown) if age is not None]
            if signs and min(signs) <= self.ttl:
                return "running"
            return "silent" if watched > self.ttl or quiet is not None else "held"
        if any(entry.kind == "gave_up" for entry in self.records.entries[-1:]):
            return "given up"
        return "left" if len(self.columns) or self.checkpoints else "waiting"

    @property
    def waits(self) -> str:
        """That it waits for machines, as its driver says it, "" where it does not."""
        return self.records.waiting if self.state in ("running", "held", "silent") else ""

    @property
    def restarts(self) -> int:
        """Starts that went on from a checkpoint, by the ledger or the log, whichever knows more; a
        roll-back is none.
        """
        back = sum(kind_of(entry) == "roll-back" for entry in self.records.entries)
        return max(self.records.count("restart"), len(self.starts) - back)

    @property
    def starts(self) -> list[Start]:
        """Those that had something left to do."""
        return [s for s in self.records.starts if self.steps is None or s.step < self.steps]

    def share(self, part: str, of: str = "seconds") -> float | None:
        """A column by another over the newest steps."""
        return self.columns.share(part, of, RECENT)

    def speed(self) -> float | None:
        """Samples a second over the newest steps, of the time that steps took."""
        speeds = self.columns.tail("samples_per_second", RECENT)
        return sum(speeds) / len(speeds) if speeds else None

    def pace(self) -> float | None:
        """Seconds a step, with all that comes between steps but for restarts."""
        times = self.columns.of("time")[-PACE - 1 :]
        steps = self.columns.steps[-PACE - 1 :]
        pairs = zip(times, times[1:], steps, steps[1:], strict=False)
        gaps = [(b - a) / (t - s) for a, b, s, t in pairs if b > a]
        if not gaps:
            return None
        usual = sorted(gaps)[len(gaps) // 2]
        gaps = [gap for gap in gaps if gap < max(60.0, 50 * usual)]
        return sum(gaps) / len(gaps) if gaps else usual

    def left(self) -> float | None:
        """Seconds until the last step, None where that cannot be said: it waits for machines."""
        pace = self.pace()
        over = self.waits or self.state in ("finished", "given up")
        if pace is None or self.steps is None or over:
            return None
        return max(0, self.steps - self.step) * pace

    def since_saved(self) -> tuple[int, float | None] | None:
        """(steps, seconds by the run's own clock) since the newest checkpoint; None without one."""
        if not self.checkpoints:
            return None
        saved = max(self.checkpoints)
        then, now = self.columns.at("time", saved), self.columns.last("time")
        known = then is not None and now is not None and now >= then
        return max(0, self.step - saved), now - then if known and now and then else None

    def wall(self) -> float | None:
        """Seconds from the first step to the newest, by the run's own clocks."""
        if self.goodput is not None:
            return self.goodput.wall
        times = [t for t in self.columns.of("time") if t == t]
        return times[-1] - times[0] if len(times) > 1 else None


def resumes(events: Iterable[dict[str, Any]]) -> list[tuple[int, int]]:
    """(step, last step before it that events.jsonl names) of each start that went on from a
    checkpoint, and of each roll-back.
    """
    lines = sorted(
        (line for e in events if (line := line_of(e)) is not None), key=lambda line: line.start
    )
    return [
        (later.behind, line.step)
        for line, later in zip(lines, lines[1:], strict=False)
        if later.behind < line.step or later.attempt != line.attempt
    ]


def faults(summary: Summary) -> list[Entry]:
    """What the run went through, in the order of steps: restarts with the steps that they cost, as
    far as log and events name them, and skipped steps in one entry a reason.
    """
    records = summary.records
    out = [Entry(e.kind, e.text, e.step, e.time, e.lost) for e in records.entries]
    causes = [entry for entry in out if kind_of(entry) in ("restart", "roll-back")]
    events = list(summary.resumes)
    for start in summary.starts:
        reached = [] if start.reached is None else [start.reached]
        if event := next((e for e in events if e[0] == start.step), None):
            events.remove(event)
            reached.append(event[1])
        lost = max(0, max(reached) - start.step) if reached else None
        known = next((e for e in causes if e.step == start.step and e.lost is None), None)
        if known is None:
            text = f"started again ({start.when})"
            out.append(Entry("resumed", text, start.step, None, lost))
        else:
            known.lost = lost
    for reason, count in Counter(records.skipped.values()).items():
        first = min(step for step, why in records.skipped.items() if why == reason)
        text = f"{count:,} {plural(count, 'step')} without an update: {reason}"
        out.append(Entry("skip", text, first))
    return sorted(out, key=lambda entry: (entry.step is None, entry.step or 0))


def plural(count: int, word: str) -> str:
    """A word for so many."""
    return word if count == 1 else f"{word}s"
