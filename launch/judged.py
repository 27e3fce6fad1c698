"""How a round over the machines of a cluster has ended, and of what machine it speaks."""

import errno
import os
import signal
from collections.abc import Sequence
from dataclasses import dataclass

from vtx_scale.cluster.job import Machine
from vtx_scale.cluster.ray_nodes import Held
from vtx_scale.launch.rounds import HUNG, Watch, reason
from vtx_scale.trainer.leave import requests
from vtx_scale.trainer.output import say

FULL = tuple(os.strerror(number) for number in (errno.ENOSPC, errno.EDQUOT))


@dataclass(frozen=True)
class Ended:
    """How a round ended. code: of the rank that is believed; words: its sentence. why: for people.
    lost: machines. moves: why its ranks were asked to make place for another round. bad: the
    machine of a rank that was ended from outside. kept: the newest step that machines have in
    memory. full: there was no room for the last checkpoint, which another round would find too.
    """

    code: int
    why: str
    words: str
    lost: list[Held]
    moves: str
    bad: Machine | None = None
    kept: int = 0
    full: bool = False


def codes_of(held: Sequence[Held]) -> dict[int, int | None]:
    """Rank -> exit code, None while it lives, on all machines."""
    return {rank: code for one in held for rank, code in one.state.codes.items()}


def judge(held: Sequence[Held], codes: dict[int, int | None], moves: str, watch: Watch) -> Ended:
    """How a round has ended, after its ranks have."""
    lost = [one for one in held if one.lost]
    if requests.count > 1:
        say("vtx: ended at once: steps after the newest checkpoint are lost.")
        return Ended(130 if requests.last == signal.SIGINT else 1, "", "", lost, moves)
    rank, code = watch.verdict(codes)
    if code == 0 and (lost or None in codes.values()):
        code = 1  # not all of them came to the end
    words = {r: text for one in held for r, text in one.state.words.items()}.get(rank, "")
    words = words.removeprefix("vtx: ")
    where = next((one.machine for one in held if rank in one.state.codes), None)
    name = f"rank {rank} on {where.name}" if where else "the ranks"
    if lost:
        cause = "; ".join(f"{one.machine.name} {one.lost}" for one in lost)
    elif code == 75 and moves:
        cause = moves
    else:
        how = words.rstrip(".") if words and code > 0 else f"ended with {reason(code)}"
        cause = f"{name} hangs" if code == HUNG else f"{name}: {how}"
    bad = where if code < 0 or code == HUNG else None
    kept = max(one.state.kept for one in held)
    unsaved = code > 0 and words.startswith("The last checkpoint could not be saved")
    full = unsaved and any(text in words for text in FULL)
    return Ended(code, cause, words, lost, moves, bad, kept, full)
