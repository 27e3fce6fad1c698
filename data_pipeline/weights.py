"""How a mix is shared out among its sources. Standard library alone."""

from collections.abc import Sequence
from fractions import Fraction

from vtx_scale.data_pipeline.errors import UserError

TOTAL = 65_536  # positions of a block


def shares(weights: Sequence[float], names: Sequence[str] = ()) -> tuple[int, ...]:
    """Positions of each source in a block of `TOTAL`: the largest remainders of the weights as they
    are written, ties to the source that stands first.

    weights: above 0, of any sum. names: of the sources, for the refusal. Raises UserError where a
    weight is so small that its source would have no position.
    """
    exact = [Fraction(str(w)) for w in weights]
    parts = [TOTAL * w / sum(exact) for w in exact]
    out = [int(part) for part in parts]
    by_rest = sorted(range(len(parts)), key=lambda i: out[i] - parts[i])
    for i in by_rest[: TOTAL - sum(out)]:
        out[i] += 1
    for i, count in enumerate(out):
        if count < 1:
            name = names[i] if names else f"source {i}"
            raise UserError(
                f"The weight {weights[i]:g} of {name} is less than 1 of {TOTAL:,} positions: "
                "give it more, or leave the source out."
            )
    return tuple(out)
