"""Which machine's memory holds which part of a snapshot, and in which order parts travel. Pure.

A part is what one rank would write of one kind of its slices. It lies twice, on two machines: where
another machine has ranks that hold the same boxes, one of them writes it too, and nothing is sent;
else it is sent to the next machine. So what a machine takes along when it goes is there once more,
but where there is one machine alone.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Share:
    """A kind of a rank's slices: those of which `copies` ranks hold the same, this one being `copy`
    of them. digest: of their names and boxes, in order.
    """

    copies: int
    copy: int
    digest: str


@dataclass(frozen=True)
class Part:
    """What `rank` writes of its share number `share`. number: in the names of its files.

    second: a rank of another machine that keeps it too, -1 for none; its own share number `twin`
    holds the same boxes, and where that is -1 the part is sent.
    """

    number: int
    rank: int
    share: int
    second: int = -1
    twin: int = -1

    @property
    def sent(self) -> bool:
        """Whether it travels."""
        return self.second >= 0 and self.twin < 0


def placement(nodes: Sequence[int], shares: Sequence[Sequence[Share]]) -> list[Part]:
    """The parts of a snapshot. nodes: the machine of each rank. shares: those of each rank."""
    alike: dict[tuple[int, str], dict[int, tuple[int, int]]] = {}  # copy -> (rank, share)
    for rank, those in enumerate(shares):
        for k, s in enumerate(those):
            alike.setdefault((s.copies, s.digest), {}).setdefault(s.copy, (rank, k))
    parts: list[Part] = []
    for rank, those in enumerate(shares):
        for k, s in enumerate(those):
            found = alike[s.copies, s.digest]
            others = [found.get((s.copy + i) % s.copies) for i in range(1, s.copies)]
            away = [x for x in others if x is not None and nodes[x[0]] != nodes[rank]]
            second, twin = away[0] if away else (neighbour(nodes, rank), -1)
            parts.append(Part(len(parts), rank, k, second, twin))
    return parts


def neighbour(nodes: Sequence[int], rank: int) -> int:
    """The rank of the next machine that has the place there which `rank` has on its own; -1 where
    there is no other machine.
    """
    there = sorted(set(nodes))
    after = there[(there.index(nodes[rank]) + 1) % len(there)]
    if after == nodes[rank]:
        return -1
    mine, theirs = ([r for r, n in enumerate(nodes) if n == at] for at in (nodes[rank], after))
    return theirs[mine.index(rank) % len(theirs)]


def keepers(parts: Iterable[Part], nodes: Sequence[int]) -> dict[int, set[int]]:
    """Number of a part -> the machines that hold it."""
    return {p.number: {nodes[r] for r in (p.rank, p.second) if r >= 0} for p in parts}


@dataclass(frozen=True)
class Transfer:
    """A file that one rank sends to another."""

    name: str
    source: int
    target: int


def waves(transfers: Iterable[Transfer]) -> list[list[Transfer]]:
    """In groups, in each of which a rank sends one file at most and receives one at most."""
    found: list[list[Transfer]] = []
    sends: dict[int, int] = {}  # rank -> the wave from which on it is free
    receives: dict[int, int] = {}
    for t in transfers:
        k = max(sends.get(t.source, 0), receives.get(t.target, 0))
        found += [[]] * (k == len(found))
        found[k] = [*found[k], t]
        sends[t.source] = receives[t.target] = k + 1
    return found


@dataclass(frozen=True)
class Report:
    """What a machine has of one step under one epoch of the lease. rank: that answers for it.
    manifest: the digest of one that belongs to this run as it is now, "" where there is none;
    parts: how many it names. held: the numbers of the parts that are there.
    """

    rank: int
    step: int
    epoch: int
    manifest: str = ""
    parts: int = 0
    held: tuple[int, ...] = ()


def newest(reports: Sequence[Report], after: int) -> Report | None:
    """A report with a manifest of the newest step behind `after` of which every part is somewhere;
    None where there is no such step.
    """
    for report in sorted(reports, key=lambda r: (-r.step, -r.epoch, r.rank)):
        if report.manifest and report.step > after:
            there = {n for r in reports if same_save(r, report) for n in r.held}
            if there.issuperset(range(report.parts)):
                return report
    return None


def same_save(a: Report, b: Report) -> bool:
    """Whether two machines tell of one snapshot."""
    return (a.step, a.epoch) == (b.step, b.epoch)


def fetches(
    needs: dict[int, list[str]], has: dict[int, set[str]], order: Sequence[str]
) -> list[Transfer]:
    """What must travel so that every machine has what it needs, from those that have it by turns.

    needs, has: names of files, by the rank that answers for a machine. order: of all names.
    """
    found = []
    for k, name in enumerate(order):
        sources = sorted(rank for rank, names in has.items() if name in names)
        lacking = sorted(r for r, names in needs.items() if name in names and name not in has[r])
        for i, target in enumerate(lacking if sources else []):
            found.append(Transfer(name, sources[(k + i) % len(sources)], target))
    return found


def seconds(
    needs: dict[int, set[str]], has: dict[int, set[str]], names: Iterable[str]
) -> dict[int, set[str]]:
    """What machines must get beside what they need, so that every file lies on two again.

    needs, has: names of files, by the rank that answers for a machine, of all machines.
    """
    found: dict[int, set[str]] = {first: set() for first in has}
    order = sorted(has)
    for name in names:
        there = [first for first in order if name in has[first] or name in needs[first]]
        if len(there) == 1 < len(order):
            found[order[(order.index(there[0]) + 1) % len(order)]].add(name)
    return found
