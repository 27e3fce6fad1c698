"""Whether machines are fit for a round: what each says of itself, and how fast their ring is."""

from collections.abc import Sequence

from vtx_scale.cluster.policy import slow
from vtx_scale.cluster.ray_nodes import Cluster, Held

RING = 4  # machines from which on one can be told from the others


def unfit(cluster: Cluster, held: Sequence[Held], ring: bool) -> list[str | None]:
    """Why each should have no ranks, "" where nothing is wrong, None where it is lost. ring: look
    at the network between them too.
    """
    faults = cluster.everywhere(held, "check")
    if not ring or len(held) < RING or any(faults) or None in faults:
        return faults
    ports = cluster.everywhere(held, "receive")
    if None in ports:
        return [None if one.lost else "" for one in held]
    following = [(i + 1) % len(held) for i in range(len(held))]
    rates = cluster.everywhere(
        held,
        "send",
        [held[i].machine.address for i in following],
        [ports[i] for i in following],
    )
    if None in rates:
        return [None if one.lost else "" for one in held]
    found = slow(rates)
    return [f"sends {rates[i] / 1e6:.1f} MB/s" if i in found else "" for i in range(len(held))]
