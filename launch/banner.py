"""What is said of a run before its first step: the recipe, its samples and epochs, and numbers that
do not go together. No torch.

Each is a line for people, and none of them ends a training.
"""

import math
from collections.abc import Callable

from vtx_scale.data_pipeline.objects import AnyPath
from vtx_scale.planner.stored import stored_counts
from vtx_scale.specs.models import published
from vtx_scale.specs.run import Run
from vtx_scale.trainer.output import append_text


class Banner:
    """The lines of one start, each said once and kept for log.txt, which is not there yet.

    name: of the recipe. say: takes a line.
    """

    def __init__(self, name: str, say: Callable[[str], None]) -> None:
        self.name, self.say, self.lines = name, say, list[str]()

    def tell(self, line: str) -> None:
        """Say a line unless it was said."""
        if line not in self.lines:
            self.say(line)
            self.lines.append(line)

    def recipe(self, run: Run) -> None:
        """Before the data is opened; the first call counts."""
        if not self.lines:
            self.tell(recipe_line(run, self.name))

    def data(self, run: Run, samples: int) -> None:
        """When it is open."""
        for line in data_lines(run, samples):
            self.tell(line)

    def keep(self, folder: AnyPath) -> None:
        """Write down what was said."""
        for line in self.lines:
            append_text(folder, line)


def recipe_line(run: Run, name: str = "") -> str:
    """What needs neither data nor torch. name: of the recipe, as it was typed."""
    title = run.objective.title()
    long = f"{run.epochs:g} epochs" if run.epochs is not None else f"{run.steps:,} steps"
    warm = f", warm-up {run.schedule.warmup:,} steps" if run.schedule.warmup else ""
    return (
        f"{f'{name}: ' if name else ''}{title}{sized(run)}, {long} of {run.global_batch:,} "
        f"samples{warm}"
    )


def sized(run: Run) -> str:
    """How many parameters, as far as they are stored: of the objective, or of its network."""
    counts = stored_counts()
    for name, (spec, _) in published().items():
        if spec == run.objective and name in counts:
            return f", {counts[name]['parameters']:,} parameters"
    networks = list(run.objective.networks().values())
    for name, (spec, _) in published().items():
        if spec in networks and name in counts:
            return f" of {name}, {counts[name]['parameters']:,} parameters"
    return ""


def steps_of(epochs: float, samples: int, batch: int) -> int:
    """The fewest steps that see every sample so often, at least one."""
    return max(1, math.ceil(epochs * samples / batch - 1e-9))


def data_lines(run: Run, samples: int) -> list[str]:
    """What is known when the index is open, and what does not go together."""
    epochs = run.steps * run.global_batch / samples
    an_epoch = samples / run.global_batch
    each = f", {an_epoch:,.1f} steps an epoch" if an_epoch >= 1 else ""
    return [
        f"{samples:,} samples: {run.steps:,} steps are {epochs:,.3g} epochs{each}",
        *misfits(run, samples),
    ]


def misfits(run: Run, samples: int) -> list[str]:
    """A sentence on each pair of numbers that do not go together; none of them is refused."""
    return [*of_schedule(run), *of_counts(run, samples)]


def of_schedule(run: Run) -> list[str]:
    """Of the learning rate."""
    found, rate, steps = [], run.schedule, run.steps
    if rate.warmup >= steps and rate.warmup > 1:
        found.append(
            f"schedule.warmup={rate.warmup} is not over within {steps} steps, so that the rate "
            f"never comes to optim.lr: schedule.warmup={max(1, steps // 10)} is a tenth of them"
        )
    if rate.kind in ("cosine", "linear") and rate.length not in (None, steps):
        ends = "before" if (rate.length or 0) < steps else "behind"
        found.append(
            f"schedule.length={rate.length}: the {rate.kind} ends {ends} the last of {steps} "
            "steps: schedule.length=none ends it there"
        )
    if rate.kind == "rsqrt" and rate.cooldown + rate.warmup > steps:
        found.append(
            f"schedule.cooldown={rate.cooldown} and schedule.warmup={rate.warmup} are more than "
            f"{steps} steps: schedule.cooldown={max(0, steps - rate.warmup) // 2} fits"
        )
    keep = run.optim.average
    if keep and keep**steps > 0.05:
        found.append(
            f"optim.average={keep}: after {steps} steps {keep**steps:.0%} of it are the weights "
            f"of the start: optim.average={max(0.0, 1 - 10 / steps):.3g} follows within them"
        )
    return found


def of_counts(run: Run, samples: int) -> list[str]:
    """Of the batch, and of what counts steps."""
    found, batch, steps = [], run.global_batch, run.steps
    if batch > samples:
        found.append(
            f"global_batch={batch} is {batch / samples:,.2g} epochs a step, of {samples:,} "
            f"samples: global_batch={max(1, samples // 16)} is 16 steps an epoch"
        )
    for name in ("warm_steps", "frozen", "kl_steps", "temperature_steps"):
        value = getattr(run.objective, name, 0)
        if value > steps:
            found.append(
                f"objective.{name}={value} is beyond steps={steps}: what it counts does not come "
                "to its end"
            )
    if run.guard.factor and run.guard.after >= steps:
        found.append(f"guard.after={run.guard.after} is beyond steps={steps}: the guard never acts")
    return found
