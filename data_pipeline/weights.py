"""How a mix is shared out among its sources. Standard library alone."""

import math
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


def named_weights(text: str, names: Sequence[str], key: str) -> tuple[float, ...]:
    """The weights of `a:0.7,b:0.3` in the order of the names. Raises UserError where one is
    missing, unknown, given twice or no number above 0.
    """
    found: dict[str, float] = {}
    for part in text.split(","):
        name, colon, number = (word.strip() for word in part.partition(":"))
        try:
            weight = float(number)
        except ValueError:
            weight = math.nan
        if not colon or name not in names or name in found:
            raise UserError(
                f"{key}={text}: give each of {', '.join(names)} once, as in "
                f"{key}={','.join(f'{n}:1' for n in names)}."
            )
        if not (weight > 0 and math.isfinite(weight)):
            raise UserError(f"{key}={text}: the weight of {name} is no number above 0.")
        found[name] = weight
    if missing := [name for name in names if name not in found]:
        raise UserError(f"{key}={text}: give {', '.join(missing)} a weight too.")
    return tuple(found[name] for name in names)
