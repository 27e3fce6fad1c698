"""What is imported of Ray that is not stable API; tests/cluster imports and calls each name. `jobs`
overrides one method of Ray's client beside it, and reads texts of its errors.
"""

from typing import Any

from ray._private import state

known: Any = state.state  # Ray says no types of it


def draining() -> dict[str, float]:
    """Node id -> the time until which it may still run, 0 where none was given, of those that are
    being taken away.
    """
    found = known.get_draining_nodes()
    return {key: deadline / 1000 for key, deadline in found.items()}


def available() -> dict[str, dict[str, float]]:
    """Node id -> what nobody has taken of its resources."""
    found: dict[str, dict[str, float]] = known.available_resources_per_node()
    return found
