"""What amendments make of a recipe, step by step. No torch.

They stand outside the hash: a run keeps its name, and its decisions say what was changed in it.
"""

from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from vtx_scale.data_pipeline.errors import UserError
from vtx_scale.data_pipeline.state import Segment, begun
from vtx_scale.data_pipeline.weights import TOTAL, shares
from vtx_scale.launch.decided import Decision, amendments
from vtx_scale.launch.override import WEIGHTS, override
from vtx_scale.specs.run import Run
from vtx_scale.specs.walk import walk

NUMBERS = (
    "optim.lr",
    "optim.trunk_lr",
    "optim.clip",
    "optim.decay",
    "optim.decay_end",
    "optim.head_decay",
    "schedule.floor",
)
KEYS = (*NUMBERS, WEIGHTS)


def amended(run: Run, key: str, value: str) -> Run:
    """The recipe with one field changed. value: as it is typed; `*0.5` is half of what holds.

    Raises UserError for a field that cannot be amended, and for a value that it cannot have.
    """
    if key not in KEYS:
        raise UserError(
            f"{key} cannot be amended: a run goes on with other {', '.join(KEYS)}; for what else "
            "is learned, give 'vtx train' the key and --fork."
        )
    if key in NUMBERS:
        value = number(run, key, value)
    return override(run, [f"{key}={value}"])


def number(run: Run, key: str, text: str) -> str:
    """A field's new value as `override` takes it. Raises UserError."""
    now: Any = next(v for k, v, _ in walk(run) if k == key)
    times = text.startswith("*")
    if text.lower() == "none":
        return text
    try:
        value = float(text.removeprefix("*"))
    except ValueError:
        raise UserError(f"{key}={text}: give a number, or *0.5 for half of what it is.") from None
    if times and now is None:
        raise UserError(f"{key}={text}: it is none, so give a number.")
    value = value * now if times else value
    if not value >= 0:
        raise UserError(f"{key}={text}: give 0 or more.")
    return repr(value)


@dataclass(frozen=True)
class Plan:
    """A recipe as it holds at each step of a run.

    behind: finished steps, ascending from 0; runs: the recipe from each of them on.
    """

    behind: tuple[int, ...]
    runs: tuple[Run, ...]

    def at(self, step: int) -> Run:
        """The recipe that holds behind so many finished steps."""
        return self.runs[bisect_right(self.behind, step) - 1]

    def weights(self, step: int) -> tuple[int, ...]:
        """The positions of each source in a block, behind so many finished steps."""
        return shares([source.weight for source in self.at(step).data.sources])


def plan(run: Run, decisions: Iterable[Decision]) -> Plan:
    """What the amendments among the decisions make of a recipe.

    Raises UserError, naming the decision, for one that cannot be followed.
    """
    behind, runs = [0], [run]
    for d in amendments(decisions):
        try:
            changed = amended(runs[-1], d.key, d.value)
        except UserError as e:
            raise UserError(f"decisions/{d.name}.json cannot be followed: {e}") from None
        behind.append(d.behind)
        runs.append(changed)
    return Plan(tuple(behind), tuple(runs))


def check_fork(old: Run, new: Run, decisions: Sequence[Decision], step: int) -> None:
    """Raises UserError where a fork behind `step` steps gives a field a value that an amendment
    does not let hold.
    """
    holds = plan(new, decisions).at(step)
    for key in KEYS:
        if value_of(old, key) != value_of(new, key) != value_of(holds, key):
            last = [d for d in amendments(decisions) if d.key == key and d.behind <= step][-1]
            raise UserError(
                f"decisions/{last.name}.json gives {key}={last.value} from step {last.step} on, "
                f"and --fork would not change what holds: leave {key} as the run has it, and give "
                "the new value to 'vtx amend' for a later step."
            )


def value_of(run: Run, key: str) -> Any:
    """What a recipe has in one of `KEYS`; of the weights, the shares."""
    if key == WEIGHTS:
        return shares([source.weight for source in run.data.sources]) if run.data.sources else ()
    return next((v for k, v, _ in walk(run) if k == key), None)


def segments(
    plan: Plan,
    known: Sequence[Segment],
    step: int,
    position: int,
    start: Callable[[int], int],
    forked: bool = False,
) -> list[Segment]:
    """The segments of a mix, from the beginning of the run on. Weights that stay begin none.

    known: those of the checkpoint that it goes on from, behind `step` steps and at `position`.
    start: the position at which the batch behind so many finished steps begins. forked: whether the
    recipe may have had other weights before.

    Raises UserError where the checkpoint was made with other weights than the decisions say.
    """
    out = begun(known, position)
    if out and not forked and out[-1][1] != (said := plan.weights(step - 1)):
        raise UserError(
            f"The sources had {list(out[-1][1])} of {TOTAL:,} positions before the checkpoint of "
            f"step {step}, and the run's decisions say {list(said)}: restore decisions/ from a "
            "copy of the run folder."
        )
    for at in (step, *(b for b in plan.behind if b > step)):
        weights = plan.weights(at)
        if not out:
            out.append((0, weights))
        elif out[-1][1] != weights:
            out.append((start(at), weights))
    return out
