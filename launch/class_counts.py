"""Whether a network has as many classes as the data names: what fewer would cost is said before the
first step. Standard library alone.
"""

from collections.abc import Iterator, Sequence

from vtx_scale.data_pipeline.errors import UserError
from vtx_scale.specs.objective import ObjectiveSpec
from vtx_scale.specs.run import Run


def class_count(objective: ObjectiveSpec) -> int:
    """How many classes an objective learns from labels, 0 where it learns from something else."""
    if not objective.class_field:
        return 0
    found: object = objective
    for name in objective.class_field.split("."):
        found = getattr(found, name)
    return found if isinstance(found, int) else 0


def class_key(objective: ObjectiveSpec, names: int) -> str:
    """The key that gives an objective as many classes as there are names."""
    return f"objective.{objective.class_field}={names}"


def of_names(listed: Sequence[str] | None) -> int:
    """The classes that the lines of classes.txt name, 0 without one; blank lines end it."""
    return len("\n".join(listed or ()).rstrip().splitlines())


def class_misfit(run: Run, shards: str, names: int) -> str:
    """A sentence where a network has more classes than names, "" where it fits or nothing is known.

    shards: whose names they are. Raises UserError for fewer: samples of the rest would be masked.
    """
    have = class_count(run.objective)
    if not names or not have or have == names:
        return ""
    key, fits = class_key(run.objective, have), class_key(run.objective, names)
    if have > names:
        return f"{key}: classes.txt of {shards} names {names:,}, for which {fits} is enough"
    raise UserError(
        f"{key}: classes.txt of {shards} names {names:,} classes, and samples of those beyond "
        f"could not be used: add {fits}."
    )


def class_misfits(run: Run, listed: dict[str, list[str] | None], begun: bool) -> Iterator[str]:
    """The sentence of each set of shards. listed: shards -> the lines of its classes.txt.

    begun: a run that has begun keeps its network, and is told alone. Raises UserError.
    """
    for shards, lines in listed.items():
        try:
            sentence = class_misfit(run, shards, of_names(lines))
        except UserError as fault:
            if not begun:
                raise
            sentence = str(fault)
        if sentence:
            yield sentence
