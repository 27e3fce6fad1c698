"""The processes of a `vtx train` that runs: its launcher, server, ranks and loaders."""

from pathlib import Path


def about(pid: int) -> tuple[int, str, str]:
    """(parent, command line, name) of a process."""
    at = Path(f"/proc/{pid}")
    parent = int((at / "stat").read_text().rpartition(")")[2].split()[1])
    return parent, (at / "cmdline").read_text(), (at / "comm").read_text().strip()


def children(pid: int) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and about(int(entry.name))[0] == pid:
                found.append(int(entry.name))
        except OSError:
            continue
    return sorted(found)


def server_of(launcher: int) -> int:
    (server,) = [p for p in children(launcher) if "fork_ranks" in about(p)[1]]
    return server


def rank_of(launcher: int, rank: int) -> int:
    (found,) = [p for p in children(server_of(launcher)) if about(p)[2] == f"vtx-rank-{rank}"]
    return found


def loaders_of(launcher: int, rank: int = 0) -> int:
    """The process from which a rank's loader workers are forked."""
    parent = rank_of(launcher, rank)
    (found,) = [p for p in children(parent) if "resource_tracker" not in about(p)[1]]
    return found


def loader_workers_of(launcher: int, rank: int = 0) -> list[int]:
    """A rank's loader workers that are alive; none before they are."""
    try:
        return children(loaders_of(launcher, rank))
    except (OSError, ValueError):
        return []
