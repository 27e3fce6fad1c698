"""When a run that keeps failing is given up: pure decisions,
so that they can be read and tested without a cluster.
"""

from dataclasses import dataclass

BARREN = 3  # restarts in a row that save nothing new


@dataclass(frozen=True)
class Failures:
    """What has happened so far.

    Ray counts failures too, but does not know whether a run gets anywhere.
    """

    best: int = 0  # the newest committed step that was seen
    total: int = 0
    barren: int = 0  # since that step


def after_failure(so_far: Failures, saved: int) -> Failures:
    """One more failure, at which the newest committed step was `saved`."""
    if saved > so_far.best:
        return Failures(saved, so_far.total + 1, 1)
    return Failures(so_far.best, so_far.total + 1, so_far.barren + 1)


def give_up(failures: Failures, allowed: int) -> str | None:
    """Why the run should not be started again, or None where it should."""
    if failures.barren > BARREN:
        return f"the workers failed {failures.barren} times without a new checkpoint"
    if failures.total > allowed:
        return (
            f"the workers failed {failures.total} times, "
            f"and --failures={allowed} allows no more restarts"
        )
    return None
